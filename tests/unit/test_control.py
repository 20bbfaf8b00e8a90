"""Owns the claims about control: what a pause, a resume and a replay do to a stream, now and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from producer.errors import PermanentError, SourceUnavailableError, StoreUnavailableError
from producer.model import Between
from producer.service import Service
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter, service_of


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def follower(writer: ScriptedWriter, store: MemoryStore, rows: int = 100, **more: Any) -> Service:
    settings: dict[str, Any] = {"mode": "snapshot_then_tail", "poll_interval_s": 0.01, **more}
    return service_of({"a": ScriptedSource(rows, cuts=(40,))}, {"a": writer}, store, **settings)


class Running:
    """A service that runs until the end of ``async with``."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.stop = asyncio.Event()

    async def __aenter__(self) -> Service:
        self.task = asyncio.create_task(self.service.run(once=False, stop=self.stop))
        await until(lambda: "a" in self.service.streams and self.service.streams["a"].state != "starting")
        return self.service

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        async with asyncio.timeout(10):
            await self.task


async def test_a_pause_outlives_a_restart_and_a_resume_ends_it_for_good() -> None:
    store, writer = MemoryStore(), ScriptedWriter()
    async with Running(follower(writer, store)) as service:
        await until(lambda: len(writer.acknowledged) == 100)
        await service.pause("a")
    assert store.states["a"].paused

    writer = ScriptedWriter()
    async with Running(follower(writer, store, rows=150)) as service:
        assert service.streams["a"].state == "paused"
        await asyncio.sleep(0.05)
        assert writer.sent == []
        await service.resume("a")
        await until(lambda: writer.acknowledged == list(range(101, 151)))
    assert not store.states["a"].paused


async def test_a_pause_before_the_stream_has_started_is_remembered_too() -> None:
    store = MemoryStore()
    service = follower(ScriptedWriter(), store)
    stop = asyncio.Event()
    running = asyncio.create_task(service.run(once=False, stop=stop))
    await until(lambda: "a" in service.streams)
    await service.pause("a")
    await until(lambda: "a" in store.states)
    await until(lambda: store.states["a"].paused)
    stop.set()
    await running


async def test_a_store_that_cannot_remember_a_pause_says_so_and_the_stream_stands_still() -> None:
    class Away(MemoryStore):
        async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
            raise StoreUnavailableError("away")

    async with Running(follower(ScriptedWriter(), Away())) as service:
        with pytest.raises(StoreUnavailableError, match="away"):
            await service.pause("a")
        assert service.streams["a"].state == "paused"


async def test_a_replay_runs_beside_a_stream_that_follows_and_ends() -> None:
    store, writer = MemoryStore(), ScriptedWriter()
    async with Running(follower(writer, store, max_parallel=1)) as service:
        await until(lambda: set(writer.acknowledged) >= set(range(1, 41)))
        split = await service.replay("a", Between("", "30", "45"))
        assert split.id == "replay-1"
        await until(lambda: all(c.done for c in store.states["a"].checkpoints if c.split.is_replay))
        assert [writer.acknowledged.count(i) for i in (29, 30, 40)] == [1, 2, 2]
        assert service.streams["a"].state == "running"
        assert (await service.replay("a", Between("", "1", "2"))).id == "replay-2"


async def test_a_replay_goes_on_after_a_restart_where_it_was() -> None:
    store, writer = MemoryStore(), ScriptedWriter()
    held = asyncio.Event()

    def answer(count: int, page: object) -> asyncio.Future[None] | None:
        return asyncio.get_running_loop().create_future() if held.is_set() else None

    writer.answer = answer
    async with Running(follower(writer, store, shutdown_timeout_s=0.1)) as service:
        await until(lambda: len(writer.acknowledged) == 100)
        held.set()
        await service.replay("a", Between("", "11", "60"))
        await until(lambda: len(writer.sent) > 100)

    writer = ScriptedWriter()
    async with Running(follower(writer, store)) as service:
        await until(lambda: len(writer.acknowledged) == 50)
        assert writer.acknowledged == list(range(11, 61))
    assert [c.done for c in store.states["a"].checkpoints if c.split.is_replay] == [True]


async def test_a_complete_stream_is_moved_again_by_a_replay() -> None:
    store, writer = MemoryStore(), ScriptedWriter()
    async with Running(follower(writer, store, mode="snapshot")) as service:
        for number in (1, 2):
            await until(lambda: service.streams["a"].state == "complete")
            await service.replay("a", Between("", "99", None))
            await until(lambda: len(writer.acknowledged) == 100 + 2 * number)  # noqa: B023
    assert writer.acknowledged[-4:] == [99, 100, 99, 100]


async def test_a_replay_does_not_disturb_the_ids_of_splits_that_are_divided() -> None:
    store, writer = MemoryStore(), ScriptedWriter()
    source = ScriptedSource(20_000)
    service = service_of({"a": source}, {"a": writer}, store)
    async with Running(service):
        await service.replay("a", Between("", "1", "5"))
        await until(lambda: service.streams["a"].state == "complete")
    ids = [c.split.id for c in store.states["a"].checkpoints]
    assert source.divided > 0
    assert sorted(ids) == sorted([*map(str, range(len(ids) - 1)), "replay-1"])
    assert sorted(writer.acknowledged) == sorted([*range(1, 20_001), *range(1, 6)])


async def test_a_stream_that_starts_or_has_failed_takes_no_replay() -> None:
    writer = ScriptedWriter(lambda count, page: PermanentError("no"))
    async with Running(follower(writer, MemoryStore())) as service:
        await until(lambda: service.streams["a"].state == "failed")
        with pytest.raises(PermanentError, match="has failed"):
            await service.replay("a", Between("", "1", "5"))

    source = ScriptedSource(5, describe_error=SourceUnavailableError("away"))
    other = service_of({"a": source, "b": ScriptedSource(5)}, {"b": ScriptedWriter()}, MemoryStore())
    stop = asyncio.Event()
    running = asyncio.create_task(other.run(once=False, stop=stop))
    await until(lambda: "b" in other.streams and other.streams["b"].state == "complete")
    with pytest.raises(SourceUnavailableError, match="still starting"):
        await other.replay("a", Between("", "1", "5"))
    stop.set()
    await running
