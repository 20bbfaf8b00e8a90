"""Owns the claims about what nobody foresaw: errors that are not ours, estimates that fail, a state that came back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from producer.checkpoints.file import FileCheckpointStore
from producer.config import Config, StreamConfig
from producer.errors import CheckpointConflictError, ConfigError, SourceUnavailableError
from producer.model import Checkpoint, Dataset, KeyPosition, Split, StreamState
from producer.pipeline import Limits, PageSizer, run_split
from tests.unit import engine
from tests.unit.engine import MemoryStore, ScriptedReader, ScriptedSource, ScriptedWriter, service_of, stream_io


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_an_unforeseen_error_fails_its_stream_at_once_and_no_other() -> None:
    sources = {"bad": ScriptedSource(100, reader_faults={2: RuntimeError("s3cret")}), "good": ScriptedSource(100)}
    writers = {"bad": ScriptedWriter(), "good": ScriptedWriter()}
    stop = asyncio.Event()
    service = service_of(sources, writers, MemoryStore())
    running = asyncio.create_task(service.run(once=False, stop=stop))
    try:
        await until(lambda: bool(service.streams) and service.streams["good"].state == "complete")
        await until(lambda: service.streams["bad"].state == "failed")
        assert "RuntimeError" in str(service.streams["bad"].error)
        assert "s3cret" not in str(service.streams["bad"].error)
    finally:
        stop.set()
        await asyncio.wait({running})
    assert {summary.stream: summary.state for summary in running.result()} == {"bad": "failed", "good": "complete"}


@dataclass
class UnestimatedSource(ScriptedSource):
    asked: int = 0

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        self.asked += 1
        raise ConfigError("column v does not exist")


async def test_an_estimate_that_cannot_be_had_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    monkeypatch.setattr("producer.stream.WATCH_INTERVAL_S", 0.001)
    source, stop = UnestimatedSource(20), asyncio.Event()
    service = service_of({"a": source}, {"a": ScriptedWriter()}, MemoryStore(), mode="tail", max_parallel=1)
    running = asyncio.create_task(service.run(once=False, stop=stop))
    try:
        await until(lambda: source.asked >= 3)
    finally:
        stop.set()
        await asyncio.wait({running})
    assert running.result()[0].state == "stopped"
    assert told == []


async def test_pages_in_flight_of_a_failed_attempt_still_count_against_the_budget() -> None:
    unanswered: list[asyncio.Future[None]] = []

    def never(count: int, page: engine.Prepared) -> asyncio.Future[None]:
        unanswered.append(asyncio.get_running_loop().create_future())
        return unanswered[-1]

    io = stream_io(ScriptedWriter(never), MemoryStore(), page_rows=10)
    with pytest.raises(SourceUnavailableError):
        await run_split(io, ScriptedReader(100, faults={4: SourceUnavailableError("away")}), engine.fresh())
    assert unanswered
    assert io.budget.used_bytes == 80 * len(unanswered)
    for future in unanswered:
        future.set_result(None)
    await asyncio.sleep(0)
    assert io.budget.used_bytes == 0


def test_a_row_wider_than_a_page_reserves_its_own_width() -> None:
    sizer = PageSizer(Limits(4, 5000, 4 << 20))
    sizer.saw(1, 30 << 20)
    assert sizer.rows == 1
    assert sizer.bytes >= 30 << 20


async def test_a_state_directory_that_was_made_anew_is_not_written_by_the_runner_of_the_old_one(tmp_path: Path) -> None:
    def store() -> FileCheckpointStore:
        return FileCheckpointStore(
            Config.model_validate(
                {
                    "checkpoints": {"type": "file", "path": str(tmp_path / "state")},
                    "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
                    "streams": [{"name": "t", "source": "s", "table": "t"}],
                }
            )
        )

    def at(rows: int) -> Sequence[Checkpoint]:
        return (Checkpoint(Split("0"), KeyPosition((rows,)), rows),)

    old, new = store(), store()
    await old.start()
    await old.claim("t")
    epoch = await old.claim("t", 4)
    await old.begin(StreamState("t", "f", epoch, tuple(at(0))))
    for path in (tmp_path / "state").iterdir():
        path.unlink()
    await new.start()
    newer = await new.claim("t")
    await new.begin(StreamState("t", "f", newer, tuple(at(1))))
    with pytest.raises(CheckpointConflictError):
        await old.commit("t", epoch, at(90))
    state = await new.load("t")
    assert state is not None and state.checkpoints == tuple(at(1))
    await old.close()
    await new.close()


@dataclass
class SilentSource(ScriptedSource):
    asked: bool = False

    async def describe(self, stream: StreamConfig) -> Dataset:
        self.asked = True
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_stop_does_not_wait_for_a_source_that_does_not_answer_at_the_start() -> None:
    source, stop = SilentSource(10), asyncio.Event()
    service = service_of({"a": source}, {"a": ScriptedWriter()}, MemoryStore())
    running = asyncio.create_task(service.run(once=True, stop=stop))
    await until(lambda: source.asked)
    stop.set()
    async with asyncio.timeout(10):
        (summary,) = await running
    assert (summary.state, source.closed) == ("stopped", 1)
