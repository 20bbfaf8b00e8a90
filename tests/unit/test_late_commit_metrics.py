"""Owns the claim that the metrics of late commits say what the committed ledger says, over a restart too."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from producer import holes
from producer.config import StreamConfig
from producer.holes import Hole, Ledger
from producer.inflight import ByteBudget
from producer.metrics import Metrics
from producer.model import Checkpoint, KeyPosition, Split, StreamState
from producer.stream import Stream
from producer.unit import Engine
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter

LABELS = {"stream": "a", "source": "s", "topic": "t"}


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(f"producer_{name}", LABELS)


async def test_holes_are_gauged_and_given_up_ones_counted_from_where_the_last_run_was() -> None:
    metrics, store, source = Metrics(), MemoryStore(), ScriptedSource(80)
    config = StreamConfig(name="a", source="s", table="a", topic="t", mode="tail")
    fingerprint = (await source.describe(config)).fingerprint("ID_RANGE")
    before = Checkpoint(Split("0"), KeyPosition((80,)), 80, detail=holes.to_json(Ledger(expired=5)))
    store.states["a"] = StreamState("a", fingerprint, 1, (before,))

    async def open_writer(*_: object) -> ScriptedWriter:
        return ScriptedWriter()

    with ThreadPoolExecutor(1) as executor:
        engine = Engine(store, open_writer, ByteBudget(1), executor, asyncio.Event(), True, 1.0)
        stream = Stream(config, source, engine, metrics.stream("a", "s", "t"))
        await stream.start()
        ledger = Ledger((Hole(81, 81, 0.0), Hole(90, 99, 0.0)), expired=7)
        for _ in range(2):
            stream.committed([Checkpoint(Split("0"), KeyPosition((99,)), detail=holes.to_json(ledger))], 0.01)
    assert (value(metrics, "gap_holes_open"), value(metrics, "gap_holes_expired_total")) == (2, 2)
