"""Owns the claim about a page whose sending breaks off: nobody complains of the batches that had gone before."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from producer.config import KafkaConfig
from producer.sinks.kafka import Connection
from producer.sinks.record_batch import FinishedBatch


class Refusing:
    """Takes one batch, whose delivery fails later, and refuses the next."""

    def __init__(self) -> None:
        self.taken: list[asyncio.Future[None]] = []

    async def send_batch(self, batch: FinishedBatch, topic: str, *, partition: int) -> asyncio.Future[None]:
        if self.taken:
            raise KafkaError("refused")
        self.taken.append(asyncio.get_running_loop().create_future())
        return self.taken[0]


async def test_a_batch_before_one_that_is_refused_fails_without_a_complaint(caplog: pytest.LogCaptureFixture) -> None:
    producer = Refusing()
    connection = Connection(KafkaConfig(bootstrap_servers="localhost:1"), "t", cast(AIOKafkaProducer, producer))
    batches: Any = {0: [FinishedBatch(b"", 1, 0, codec="none", level=None, transactional=False)] * 2}
    with pytest.raises(KafkaError):
        await connection.send([("t", batches)])
    producer.taken.pop().set_exception(KafkaError("the line broke"))
    await asyncio.sleep(0)
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
