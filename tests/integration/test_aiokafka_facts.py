"""Owns what was found out about aiokafka 0.14 and the broker, and what the engine is built around: each a claim that
an upgrade must keep, or tell us of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as ke

from producer.config import KafkaConfig
from producer.embedded import EmbeddedKafka
from producer.kafka import abandon, client_options, ensure_topic
from producer.sinks.record_batch import FinishedBatch
from tests.integration.kafka_rows import framed, read_topic

Open = Callable[..., Any]


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[Open]:
    opened: list[AIOKafkaProducer] = []

    async def open_one(bootstrap: str = kafka_bootstrap, **settings: Any) -> AIOKafkaProducer:
        one = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", **settings)
        await one.start()
        opened.append(one)
        return one

    yield open_one
    for one in opened:
        await abandon(one)


def batch(*values: bytes, transactional: bool = False, key: bytes | None = b"k") -> FinishedBatch:
    records = b"".join(framed(offset, key, value) for offset, value in enumerate(values))
    return FinishedBatch(records, len(values), 1_700_000_000_000, codec="none", transactional=transactional)


async def sent(producer: AIOKafkaProducer, topic: str, ready: FinishedBatch) -> Any:
    return await asyncio.wait_for(await producer.send_batch(ready, topic, partition=0), 20)


@pytest.fixture
async def small_topic(kafka_bootstrap: str, unique: str) -> str:
    """A topic of one partition that takes batches of at most 1,000 bytes."""
    config = KafkaConfig(bootstrap_servers=kafka_bootstrap)
    await ensure_topic(config, unique, partitions=1, topic_config={"max.message.bytes": "1000"})
    return unique


async def test_a_transaction_commits_though_a_batch_of_it_failed(
    producer: Open, small_topic: str, kafka_bootstrap: str
) -> None:
    """Why each future is awaited before the commit."""
    one = await producer(transactional_id=small_topic)
    await one.begin_transaction()
    await sent(one, small_topic, batch(b"good", transactional=True))
    with pytest.raises(ke.MessageSizeTooLargeError):
        await sent(one, small_topic, batch(b"x" * 2000, transactional=True))

    await one.commit_transaction()

    records = await read_topic(kafka_bootstrap, small_topic, isolation_level="read_committed")
    assert [r.value for r in records] == [b"good"]


@pytest.mark.parametrize("transactional", [False, True])
async def test_one_refused_batch_leaves_its_partition_out_of_order_for_ever(
    producer: Open, small_topic: str, transactional: bool
) -> None:
    """Why a producer that failed is made anew. Aborting the transaction does not help."""
    how = {"transactional_id": small_topic} if transactional else {"enable_idempotence": True}
    one = await producer(**how)
    if transactional:
        await one.begin_transaction()
    await sent(one, small_topic, batch(b"good", transactional=transactional))
    with pytest.raises(ke.MessageSizeTooLargeError):
        await sent(one, small_topic, batch(b"x" * 2000, transactional=transactional))
    for _ in range(2):
        if transactional:
            await one.abort_transaction()
            await one.begin_transaction()
        with pytest.raises(ke.OutOfOrderSequenceNumber):
            await sent(one, small_topic, batch(b"good", transactional=transactional))

    another = await producer(**how)
    if transactional:
        await another.begin_transaction()
    await sent(another, small_topic, batch(b"good", transactional=transactional))


async def test_a_fenced_producers_send_and_commit_fail(producer: Open, small_topic: str) -> None:
    old = await producer(transactional_id=small_topic)
    await old.begin_transaction()
    await sent(old, small_topic, batch(b"1", transactional=True))
    await producer(transactional_id=small_topic)

    with pytest.raises(ke.ProducerFenced):
        await sent(old, small_topic, batch(b"2", transactional=True))
    with pytest.raises(ke.ProducerFenced):
        await asyncio.wait_for(old.commit_transaction(), 20)


async def test_a_takeover_ends_the_open_transaction_of_the_old_one(
    producer: Open, small_topic: str, kafka_bootstrap: str
) -> None:
    old = await producer(transactional_id=small_topic)
    await old.begin_transaction()
    await sent(old, small_topic, batch(b"1", transactional=True))

    new = await producer(transactional_id=small_topic)
    await new.begin_transaction()
    await sent(new, small_topic, batch(b"2", transactional=True))
    await new.commit_transaction()

    records = await read_topic(kafka_bootstrap, small_topic, isolation_level="read_committed")
    assert [r.value for r in records] == [b"2"]


async def test_a_cancelled_commit_completes_in_the_background(
    producer: Open, small_topic: str, kafka_bootstrap: str
) -> None:
    one = await producer(transactional_id=small_topic)
    await one.begin_transaction()
    await sent(one, small_topic, batch(b"1", transactional=True))
    commit = asyncio.create_task(one.commit_transaction())
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit

    async with asyncio.timeout(20):
        while not await read_topic(kafka_bootstrap, small_topic, isolation_level="read_committed"):
            await asyncio.sleep(0.01)


async def test_position_counts_transaction_markers(producer: Open, small_topic: str, kafka_bootstrap: str) -> None:
    """Why a reader goes by position and not by the last record's offset."""
    one = await producer(transactional_id=small_topic)
    await one.begin_transaction()
    await sent(one, small_topic, batch(b"1", transactional=True))
    await one.commit_transaction()
    partition = TopicPartition(small_topic, 0)
    consumer = AIOKafkaConsumer(
        **client_options(KafkaConfig(bootstrap_servers=kafka_bootstrap)),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        consumer.assign([partition])
        offsets = []
        async with asyncio.timeout(20):
            while not (end := (await consumer.end_offsets([partition]))[partition]):
                await asyncio.sleep(0.01)  # the broker answers a commit before it has written its markers
            while await consumer.position(partition) < end:
                offsets += [r.offset for r in (await consumer.getmany(timeout_ms=100)).get(partition, [])]
        assert (offsets, end) == ([0], 2)
    finally:
        await consumer.stop()


async def test_a_null_key_on_a_compacted_topic_shows_as_an_unknown_error(
    producer: Open, unique: str, kafka_bootstrap: str
) -> None:
    """Why the state topic's records always have one: the broker's own error (87) has no name in aiokafka."""
    config = KafkaConfig(bootstrap_servers=kafka_bootstrap)
    await ensure_topic(config, unique, partitions=1, topic_config={"cleanup.policy": "compact"})
    one = await producer(enable_idempotence=True)

    with pytest.raises(ke.UnknownError):
        await sent(one, unique, batch(b"v", key=None))


async def test_with_the_broker_down_an_idempotent_future_and_stop_hang(
    producer: Open, own_kafka: Callable[..., EmbeddedKafka]
) -> None:
    """Why there is a deadline of ours around both (aiokafka #1101)."""
    broker = await asyncio.to_thread(own_kafka)
    one = await producer(broker.bootstrap, enable_idempotence=True, request_timeout_ms=300)
    await one.send_and_wait("t", b"1")
    await asyncio.to_thread(broker.kill)

    future = await one.send("t", b"2")
    done, _ = await asyncio.wait({asyncio.ensure_future(future)}, timeout=2)
    assert not done, "request_timeout_ms does not end it"
    stopping = asyncio.create_task(one.stop())
    done, _ = await asyncio.wait({stopping}, timeout=2)
    assert not done, "nor does stop()"

    stopping.cancel()
    await asyncio.wait_for(abandon(one), 20)
    with pytest.raises(ke.ProducerClosed):
        await future
