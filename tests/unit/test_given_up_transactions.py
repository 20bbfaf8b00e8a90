"""Owns the claims about a unit whose transaction was fenced: by the broker's clock, or by a newer runner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from producer.config import Config, StreamConfig
from producer.errors import CheckpointConflictError, SourceUnavailableError
from producer.inflight import ByteBudget
from producer.metrics import Metrics
from producer.model import Checkpoint, Dataset, Page, Position, Split
from producer.stream import Stream
from producer.unit import Engine
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter, SplitReader


@dataclass
class LentStore(MemoryStore):
    topic: str = "state"
    newer: bool = False  # another runner's epoch stands in the store
    lent: Sequence[Checkpoint] = ()

    async def lend(self, stream: str, epoch: int) -> None:
        if self.newer:
            raise CheckpointConflictError("taken over")

    def records(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> list[Any]:
        self.lent = changed
        return []


@dataclass
class Committing(ScriptedWriter):
    """What is sent counts with the next commit, and is dropped where the transaction begins anew."""

    store: LentStore = field(default_factory=LentStore)
    begun: int = 0
    committed: list[int] = field(default_factory=list)

    async def begin(self) -> None:
        self.begun += 1
        self.sent.clear()

    async def commit(self, topic: str, records: Sequence[Any]) -> None:
        await asyncio.sleep(0.001)
        self.committed += self.sent
        self.sent.clear()
        await self.store.commit("t", 1, self.store.lent)


@dataclass
class FencedOnce(Committing):
    """Its first commit is refused as that of an older producer."""

    taken_over: bool = False

    async def commit(self, topic: str, records: Sequence[Any]) -> None:
        if self.begun == 1:
            self.store.newer = self.taken_over
            raise CheckpointConflictError("a newer runner has taken over")
        await super().commit(topic, records)


async def run(source: ScriptedSource, writer: Committing, **settings: Any) -> Stream:
    """The stream `t` from `source`, in transactions, to its end."""
    config = Config.model_validate(
        {
            "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
            "streams": [{"name": "t", "source": "s", "table": "t", "page_size": 10, **settings}],
        }
    )

    async def open_writer(*about: Any) -> ScriptedWriter:
        return writer

    with ThreadPoolExecutor(2) as executor:
        engine = Engine(
            store=cast(Any, writer.store),
            open_writer=open_writer,
            budget=ByteBudget(1 << 20),
            executor=executor,
            stop=asyncio.Event(),
            once=True,
            give_up_after_s=5,
            exactly_once=True,
        )
        stream = Stream(config.streams[0], source, engine, Metrics().stream("t", "s", "t"))
        async with asyncio.timeout(30):
            await stream.run()
    return stream


@pytest.mark.parametrize("taken_over", [False, True])
async def test_only_a_newer_runner_ends_a_stream_whose_transaction_was_fenced(
    taken_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.unit.TAKEN_OVER_KNOWN_S", 0.01)
    writer = FencedOnce(taken_over=taken_over)
    stream = await run(ScriptedSource(50), writer)
    if taken_over:
        assert (stream.status.state, writer.committed) == ("failed", [])
    else:
        assert (stream.status.state, writer.committed) == ("complete", list(range(1, 51)))


@dataclass
class SlowToClose(SplitReader):
    """The first split's line breaks in its midst; its close, and the end of the other's request, take their time."""

    broken: list[bool] = field(default_factory=list)
    close_s: float = 0.0
    cancel_s: float = 0.0

    async def fetch(self, position: Position | None, limit: int) -> Page:
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            await asyncio.sleep(self.cancel_s)
            raise
        if self.split.id == "0" and self.fetches == 45 and not self.broken:
            self.broken.append(True)
            raise SourceUnavailableError("the line broke")
        return await super().fetch(position, limit)

    async def close(self) -> None:
        await asyncio.sleep(self.close_s)


@dataclass
class BreakingSource(ScriptedSource):
    close_s: float = 0.0
    cancel_s: float = 0.0
    broken: list[bool] = field(default_factory=list)

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> SplitReader:
        last = (await super().reader(stream, dataset, split)).last
        return SlowToClose(last, split=split, broken=self.broken, close_s=self.close_s, cancel_s=self.cancel_s)


@pytest.mark.parametrize(("close_s", "cancel_s"), [(0.2, 0.0), (0.0, 0.3)])
async def test_what_a_failed_split_had_in_the_transaction_is_not_committed_without_its_checkpoint(
    close_s: float, cancel_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be there a second time when the split begins again."""
    monkeypatch.setattr("producer.unit.TRANSACTION_INTERVAL_S", 0.05)
    writer = Committing()
    source = BreakingSource(2_000, cuts=(1_000,), close_s=close_s, cancel_s=cancel_s)
    stream = await run(source, writer, max_parallel=2)
    assert (stream.status.state, source.broken, writer.begun) == ("complete", [True], 2)
    assert sorted(writer.committed) == list(range(1, 2_001))
