"""Owns the claims about the units of a shared stream that need no broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from producer.config import Config
from producer.coordination.sharing import SharedStream
from producer.errors import SourceUnavailableError
from producer.inflight import ByteBudget
from producer.metrics import Metrics
from producer.unit import Engine
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter


@dataclass
class MemoryLendingStore(MemoryStore):
    topic: str = "state"
    partitions: int = 2

    async def release(self, stream: str) -> None: ...


@contextmanager
def shared(source: ScriptedSource, writer: ScriptedWriter, store: MemoryStore, stop: asyncio.Event) -> Iterator[Any]:
    config = Config.model_validate(
        {
            "coordination": "kafka",
            "checkpoints": {"type": "kafka"},
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
            stop=stop,
            once=True,
            give_up_after_s=5,
        )
        yield SharedStream(config.streams[0], source, engine, Metrics().stream("t", "s", "t"))


async def test_units_that_are_assigned_before_the_stream_has_started_are_run_when_it_has() -> None:
    source, writer = ScriptedSource(200, cuts=(100,)), ScriptedWriter()
    source.describe_error = SourceUnavailableError("away")
    with shared(source, writer, MemoryLendingStore(), asyncio.Event()) as stream:
        with pytest.raises(SourceUnavailableError):
            await stream.start()
        await stream.own([0, 1])  # as the group does, which knows nothing of the source
        await asyncio.sleep(0)
        source.describe_error = None
        async with asyncio.timeout(10):
            await stream.run()
    assert stream.status.state == "complete"
    assert sorted(writer.sent) == list(range(1, 201))


async def test_a_paused_stream_sends_nothing_after_a_restart() -> None:
    source, writer, store, stop = ScriptedSource(200), ScriptedWriter(), MemoryLendingStore(), asyncio.Event()
    with shared(source, writer, store, stop) as stream:
        await stream.start()
        store.states["t"] = replace(store.states["t"], paused=True)
        await stream.own([0, 1])
        running = asyncio.create_task(stream.run())
        try:
            async with asyncio.timeout(10):
                while stream.status.state != "paused" or not source.readers:
                    await asyncio.sleep(0.002)
        finally:
            stop.set()
            await asyncio.wait({running})
    assert writer.sent == []
