"""Owns the claim that batches enter aiokafka in order, whatever the event loop does between them."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

from producer.config import KafkaConfig
from producer.sinks.kafka import Connection
from producer.sinks.record_batch import FinishedBatch
from tests.integration.kafka_rows import framed


class SlowProducer:
    """Takes each batch after another number of turns of the loop, as aiokafka does while its queue is full."""

    def __init__(self, seed: int) -> None:
        self.taken: defaultdict[int, list[FinishedBatch]] = defaultdict(list)
        self.order: list[int] = []
        self._random = random.Random(seed)

    async def send_batch(self, batch: FinishedBatch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        for _ in range(self._random.randrange(5)):
            await asyncio.sleep(0)
        self.taken[partition].append(batch)
        self.order.append(partition)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def made(count: int) -> list[FinishedBatch]:
    return [FinishedBatch(framed(0, b"k", b"v"), 1, 0) for _ in range(count)]


async def test_a_page_that_comes_while_another_waits_does_not_overtake_it() -> None:
    for seed in range(20):
        producer = SlowProducer(seed)
        connection = Connection(KafkaConfig(), "t", producer)
        pages = [{0: made(3), 1: made(2)} for _ in range(5)]
        async with asyncio.TaskGroup() as group:
            for batches in pages:
                group.create_task(connection.send([("t", batches)]))
                await asyncio.sleep(0)

        for partition in (0, 1):
            assert producer.taken[partition] == [batch for batches in pages for batch in batches[partition]]


async def test_the_first_batches_of_all_partitions_come_before_any_second_one() -> None:
    producer = SlowProducer(seed=0)
    await Connection(KafkaConfig(), "t", producer).send([("t", {0: made(2), 1: made(1)}), ("t.dlq", {2: made(1)})])

    assert producer.order == [0, 1, 2, 0]
