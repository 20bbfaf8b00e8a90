"""Owns the claim that batches enter aiokafka in order, whatever the event loop does between them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from producer.config import KafkaConfig
from producer.sinks.kafka import Connection
from producer.sinks.record_batch import FinishedBatch
from tests.integration.kafka_rows import framed


class SlowProducer:
    """Takes each batch after another number of turns of the loop, as aiokafka does while its queue is full."""

    def __init__(self, seed: int) -> None:
        self.taken: list[FinishedBatch] = []
        self._random = random.Random(seed)

    async def send_batch(self, batch: FinishedBatch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        for _ in range(self._random.randrange(5)):
            await asyncio.sleep(0)
        self.taken.append(batch)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


async def test_a_page_that_comes_while_another_waits_does_not_overtake_it() -> None:
    for seed in range(20):
        producer = SlowProducer(seed)
        connection = Connection(KafkaConfig(), "t", producer)
        pages = [[FinishedBatch(framed(0, b"k", b"v"), 1, 0) for _ in range(3)] for _ in range(5)]
        async with asyncio.TaskGroup() as group:
            for batches in pages:
                group.create_task(connection.send("t", 0, batches))
                await asyncio.sleep(0)

        assert producer.taken == [batch for batches in pages for batch in batches]
