"""Owns the claims about the units of a shared stream that need no broker."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

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


async def test_units_that_are_assigned_before_the_stream_has_started_are_run_when_it_has() -> None:
    source, writer, stop = ScriptedSource(200, cuts=(100,)), ScriptedWriter(), asyncio.Event()
    source.describe_error = SourceUnavailableError("away")
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
            store=cast(Any, MemoryLendingStore()),
            open_writer=open_writer,
            budget=ByteBudget(1 << 20),
            executor=executor,
            stop=stop,
            once=True,
            give_up_after_s=5,
        )
        stream = SharedStream(config.streams[0], source, engine, Metrics().stream("t", "s", "t"))
        try:
            await stream.start()
        except SourceUnavailableError:
            pass
        await stream.own([0, 1])  # as the group does, which knows nothing of the source
        await asyncio.sleep(0)
        source.describe_error = None
        async with asyncio.timeout(10):
            await stream.run()
    assert stream.status.state == "complete"
    assert sorted(writer.sent) == list(range(1, 201))
