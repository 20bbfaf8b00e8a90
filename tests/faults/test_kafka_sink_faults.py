"""Owns the claims about the sink while the broker or the line to it fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import Counter
from collections.abc import Callable

import pytest

from producer.config import KafkaConfig
from producer.embedded import EmbeddedKafka
from producer.errors import SinkUnavailableError
from producer.sinks.kafka import KafkaSink, KafkaWriter
from tests.integration.kafka_rows import TextEncoder, page, read_topic, stream
from tests.services.proxy import Proxy


def sink_to(bootstrap: str, **settings: float) -> KafkaSink:
    return KafkaSink(KafkaConfig.model_validate({"bootstrap_servers": bootstrap, **settings}), "faults", "run")


async def submitted(writer: KafkaWriter, first: int, rows: int) -> asyncio.Future[None]:
    return await writer.submit(writer.prepare(page(first, first + rows - 1)))


async def test_a_broker_restart_in_the_middle_loses_and_repeats_nothing(
    own_kafka: Callable[..., EmbeddedKafka],
) -> None:
    broker = await asyncio.to_thread(own_kafka)
    sink = sink_to(broker.bootstrap, request_timeout_s=5, delivery_timeout_s=90)
    s = stream()
    await sink.ensure_topic(s.topic, 2)
    writer = sink.writer(s, TextEncoder())
    futures = [await submitted(writer, 1, 50)]
    await futures[0]

    async def produce() -> None:
        for number in range(1, 200):
            futures.append(await submitted(writer, number * 50 + 1, 50))
            await asyncio.sleep(0.005)

    producing = asyncio.create_task(produce())
    await asyncio.sleep(0.3)
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    await producing
    await asyncio.wait_for(asyncio.gather(*futures), 100)

    records = await read_topic(broker.bootstrap, s.topic)
    assert Counter(int(r.key) for r in records) == Counter(range(1, 10_001))
    for partition in (0, 1):
        keys = [int(r.key) for r in records if r.partition == partition]
        assert keys == sorted(keys)
    await sink.close()


async def test_lost_acknowledgements_neither_repeat_nor_reorder_anything(
    proxied_kafka: tuple[EmbeddedKafka, Proxy],
) -> None:
    broker, proxy = proxied_kafka
    sink = sink_to(proxy.address, request_timeout_s=2, delivery_timeout_s=90)
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    await (await submitted(writer, 0, 1))
    for round_number in range(6):
        proxy.swallow_answers = True
        futures = [await submitted(writer, 1 + round_number * 30 + i * 10, 10) for i in range(3)]
        await asyncio.sleep(0.2)
        proxy.reset()
        proxy.swallow_answers = False
        await asyncio.wait_for(asyncio.gather(*futures), 60)

    assert [int(r.key) for r in await read_topic(broker.bootstrap, s.topic)] == list(range(181))
    await sink.close()


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_broker_that_is_gone_fails_the_page_and_closes_at_their_deadlines(
    own_kafka: Callable[..., EmbeddedKafka], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await asyncio.to_thread(own_kafka)
    sink = sink_to(broker.bootstrap, delivery_timeout_s=2, connect_timeout_s=1)
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    await (await submitted(writer, 1, 10))
    await asyncio.to_thread(getattr(broker, fault))

    futures = [await submitted(writer, first, 10) for first in (11, 21, 31)]
    start = time.monotonic()
    done, _ = await asyncio.wait(futures, timeout=20)
    assert len(done) == 3
    for future in futures:
        with pytest.raises(SinkUnavailableError, match=f"{broker.bootstrap}: topic .* no acknowledgement within 2 s"):
            future.result()
    with pytest.raises(SinkUnavailableError, match="could not write to topic"):
        await asyncio.wait_for(submitted(writer, 11, 10), 20)
    await asyncio.wait_for(sink.close(), 20)
    assert time.monotonic() - start < 30

    gc.collect()
    assert [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR] == []
    if fault == "pause":
        await asyncio.to_thread(broker.resume)


async def test_after_a_failure_a_rewound_split_goes_on_when_the_broker_is_back(
    own_kafka: Callable[..., EmbeddedKafka],
) -> None:
    broker = await asyncio.to_thread(own_kafka)
    sink = sink_to(broker.bootstrap, delivery_timeout_s=2, connect_timeout_s=1)
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    await (await submitted(writer, 1, 10))
    await asyncio.to_thread(broker.kill)
    lost = await submitted(writer, 11, 10)
    with pytest.raises(SinkUnavailableError):
        await asyncio.wait_for(lost, 20)
    await asyncio.to_thread(broker.start)

    for first in (11, 21):
        await asyncio.wait_for(await submitted(writer, first, 10), 20)

    assert [int(r.key) for r in await read_topic(broker.bootstrap, s.topic)] == list(range(1, 31))
    await sink.close()


async def test_a_broker_that_comes_back_within_the_deadline_fails_nothing(
    own_kafka: Callable[..., EmbeddedKafka],
) -> None:
    broker = await asyncio.to_thread(own_kafka)
    sink = sink_to(broker.bootstrap, request_timeout_s=1, delivery_timeout_s=60)
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    await (await submitted(writer, 1, 10))
    await asyncio.to_thread(broker.stop)
    # Longer than aiokafka lets a batch wait for its place in the queue (request_timeout_s).
    futures = [await submitted(writer, first, 10) for first in (11, 21, 31)]
    await asyncio.sleep(2.5)
    assert not any(future.done() for future in futures)
    await asyncio.to_thread(broker.start)

    await asyncio.wait_for(asyncio.gather(*futures), 60)

    assert [int(r.key) for r in await read_topic(broker.bootstrap, s.topic)] == list(range(1, 41))
    await sink.close()
