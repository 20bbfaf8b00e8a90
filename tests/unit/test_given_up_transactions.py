"""Owns the claims about a unit whose transaction was fenced: by the broker's clock, or by a newer runner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from producer.config import Config
from producer.errors import CheckpointConflictError
from producer.inflight import ByteBudget
from producer.metrics import Metrics
from producer.model import Checkpoint
from producer.stream import Stream
from producer.unit import Engine
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter


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
class FencedOnce(ScriptedWriter):
    """Its first commit is refused as that of an older producer; what counts is in `committed`."""

    store: LentStore = field(default_factory=LentStore)
    taken_over: bool = False
    begun: int = 0
    committed: list[int] = field(default_factory=list)

    async def begin(self) -> None:
        self.begun += 1
        self.sent.clear()

    async def commit(self, topic: str, records: Sequence[Any]) -> None:
        if self.begun == 1:
            self.store.newer = self.taken_over
            raise CheckpointConflictError("a newer runner has taken over")
        self.committed += self.sent
        self.sent.clear()
        await self.store.commit("t", 1, self.store.lent)


@pytest.mark.parametrize("taken_over", [False, True])
async def test_only_a_newer_runner_ends_a_stream_whose_transaction_was_fenced(
    taken_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.unit.TAKEN_OVER_KNOWN_S", 0.01)
    store = LentStore()
    writer = FencedOnce(store=store, taken_over=taken_over)
    config = Config.model_validate(
        {
            "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
            "streams": [{"name": "t", "source": "s", "table": "t", "page_size": 10}],
        }
    )

    async def open_writer(*about: Any) -> ScriptedWriter:
        return writer

    with ThreadPoolExecutor(1) as executor:
        engine = Engine(
            store=cast(Any, store),
            open_writer=open_writer,
            budget=ByteBudget(1 << 20),
            executor=executor,
            stop=asyncio.Event(),
            once=True,
            give_up_after_s=5,
            exactly_once=True,
        )
        stream = Stream(config.streams[0], ScriptedSource(50), engine, Metrics().stream("t", "s", "t"))
        async with asyncio.timeout(10):
            await stream.run()
    if taken_over:
        assert (stream.status.state, writer.committed) == ("failed", [])
    else:
        assert (stream.status.state, writer.committed) == ("complete", list(range(1, 51)))
