"""Owns the claims about the Kafka sink that need a real broker."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import uuid
from collections.abc import AsyncIterator

import pyarrow as pa
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from producer.config import KafkaConfig
from producer.errors import ConfigError, ProducerError, RecordTooLargeError, SinkUnavailableError
from producer.kafka import DEFAULT_MAX_MESSAGE_BYTES
from producer.sinks.kafka import KafkaSink, KafkaWriter
from producer.sinks.record_batch import Codec
from tests.integration.kafka_rows import TextEncoder, page, read_topic, stream


def config(bootstrap: str, **more: object) -> KafkaConfig:
    return KafkaConfig.model_validate({"bootstrap_servers": bootstrap, **more})


@pytest.fixture
async def sink(kafka_bootstrap: str) -> AsyncIterator[KafkaSink]:
    sink = KafkaSink(config(kafka_bootstrap), "sink-tests", "run-1")
    await sink.start()
    yield sink
    await sink.close()


async def written(writer: KafkaWriter, first: int, last: int, text: str = "text {}") -> None:
    future = await writer.submit(await asyncio.to_thread(writer.prepare, page(first, last, text=text)))
    await asyncio.wait_for(future, 30)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_the_broker_takes_batches_of_every_codec_and_gives_them_back(codec: Codec, kafka_bootstrap: str) -> None:
    sink = KafkaSink(config(kafka_bootstrap, compression=codec), "sink-tests", "run-1")
    s = stream()
    assert await sink.ensure_topic(s.topic, partitions=3) == 3
    writer = sink.writer(s, TextEncoder())
    futures = [await writer.submit(writer.prepare(page(i, i + 999))) for i in range(1, 5000, 1000)]
    await asyncio.gather(*futures)
    await sink.close()

    records = await read_topic(kafka_bootstrap, s.topic)

    assert sorted((int(r.key), r.value.decode()) for r in records) == [(i, f"text {i}") for i in range(1, 5001)]
    partitioner = DefaultPartitioner()
    assert all(r.partition == partitioner(r.key, [0, 1, 2], [0, 1, 2]) for r in records)
    for partition in range(3):
        keys = [int(r.key) for r in records if r.partition == partition]
        assert keys == sorted(keys), "each partition keeps the order of the pages"


async def test_headers_say_source_run_and_position_and_the_fingerprint(sink: KafkaSink, kafka_bootstrap: str) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, partitions=1)
    await written(sink.writer(s, TextEncoder(), fingerprint=b"12345678"), 1, 2)

    record = (await read_topic(kafka_bootstrap, s.topic))[0]

    assert dict(record.headers) == {
        "avro.fingerprint": b"12345678",
        "source": b"shop",
        "run_id": b"run-1",
        "position": b'{"key":[2]}',
    }


async def test_headers_can_be_off_but_for_the_fingerprint(kafka_bootstrap: str) -> None:
    sink = KafkaSink(config(kafka_bootstrap, headers=False), "sink-tests", "run-1")
    s = stream()
    await sink.ensure_topic(s.topic, partitions=1)
    await written(sink.writer(s, TextEncoder(), fingerprint=b"12345678"), 1, 1)
    await written(sink.writer(s, TextEncoder()), 2, 2)
    await sink.close()

    first, second = await read_topic(kafka_bootstrap, s.topic)

    assert (first.headers, second.headers) == ((("avro.fingerprint", b"12345678"),), ())


async def test_a_topic_is_made_with_its_partitions_and_settings_and_then_left_alone(sink: KafkaSink) -> None:
    name = stream().topic

    assert await sink.ensure_topic(name, 5, 1, {"max.message.bytes": "20000"}) == 5
    assert await sink.ensure_topic(name) == 5
    assert sink._topics[name].max_message_bytes == 20000
    with pytest.raises(ConfigError, match=r"has 5 partitions, not 2 \(set partitions: 5"):
        await sink.ensure_topic(name, 2)


async def test_a_topic_without_settings_gets_the_brokers_own(sink: KafkaSink) -> None:
    name = stream().topic

    assert await sink.ensure_topic(name) == 1
    assert sink._topics[name].max_message_bytes == DEFAULT_MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no spaces", {}, "name is not valid"),
        ("", {"replication_factor": 9}, "(?i)replication factor"),
        ("", {"topic_config": {"cleanup.policy": "sometimes"}}, "cleanup.policy"),
    ],
)
async def test_a_topic_that_cannot_be_made_is_a_configuration_error(
    sink: KafkaSink, name: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await sink.ensure_topic(name or stream().topic, partitions=1, **settings)  # type: ignore[arg-type]


async def test_batches_stay_under_the_topics_limit(sink: KafkaSink, kafka_bootstrap: str) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 2, 1, {"max.message.bytes": "5000"})
    writer = sink.writer(s, TextEncoder())

    prepared = writer.prepare(page(1, 2000))
    await (await writer.submit(prepared))

    assert all(b.size() <= 5000 for batches in prepared.batches.values() for b in batches)
    assert len(await read_topic(kafka_bootstrap, s.topic)) == 2000


async def test_pages_of_many_batches_keep_their_order_in_each_partition(kafka_bootstrap: str) -> None:
    sink = KafkaSink(config(kafka_bootstrap, compression="none"), "sink-tests", "run-1")
    s = stream()
    await sink.ensure_topic(s.topic, 2, 1, {"max.message.bytes": "3000"})
    writer = sink.writer(s, TextEncoder())
    pages = [writer.prepare(page(i, i + 499)) for i in range(0, 5000, 500)]
    assert all(len(batches) > 2 for prepared in pages for batches in prepared.batches.values())

    await asyncio.gather(*[await writer.submit(prepared) for prepared in pages])
    await sink.close()

    records = await read_topic(kafka_bootstrap, s.topic)
    assert len(records) == 5000
    for partition in (0, 1):
        keys = [int(r.key) for r in records if r.partition == partition]
        assert keys == sorted(keys)


async def test_one_record_over_the_limit_is_refused_by_its_key_before_it_is_sent(sink: KafkaSink) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 1, 1, {"max.message.bytes": "2000"})
    writer = sink.writer(s, TextEncoder())
    noise = "".join(str(uuid.uuid4()) for _ in range(200))

    with pytest.raises(RecordTooLargeError, match="the record with key 5 is too large"):
        writer.prepare(page(5, 5, text=noise))


async def test_tombstones_follow_the_pages_rows(sink: KafkaSink, kafka_bootstrap: str) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    gone = pa.RecordBatch.from_pydict({"id": [7, 8]})

    await (await writer.submit(writer.prepare(dataclasses.replace(page(1, 2), tombstones=gone))))

    records = await read_topic(kafka_bootstrap, s.topic)
    assert [(r.key, r.value) for r in records] == [(b"1", b"text 1"), (b"2", b"text 2"), (b"7", None), (b"8", None)]


async def test_a_record_that_fits_once_compressed_is_sent(sink: KafkaSink, kafka_bootstrap: str) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 1, 1, {"max.message.bytes": "2000"})

    await written(sink.writer(s, TextEncoder()), 1, 1, text="x" * 100_000)

    assert [len(r.value) for r in await read_topic(kafka_bootstrap, s.topic)] == [100_000]


async def test_after_a_refused_batch_the_writer_goes_on_with_a_new_producer(
    sink: KafkaSink, kafka_bootstrap: str
) -> None:
    """The wedge: a refusal leaves a partition of the old producer with OutOfOrderSequenceNumber for ever."""
    s = stream()
    await sink.ensure_topic(s.topic, 1, 1, {"max.message.bytes": "3000"})
    writer = sink.writer(s, TextEncoder())
    await written(writer, 1, 10)
    writer._max_batch_bytes = 1_000_000  # as if the topic's limit had been lowered behind our back
    noise = "".join(str(uuid.uuid4()) for _ in range(200))
    refused = await writer.submit(writer.prepare(page(11, 11, text=noise)))
    behind = await writer.submit(writer.prepare(page(12, 12)))

    with pytest.raises(RecordTooLargeError, match="larger than the topic takes"):
        await asyncio.wait_for(refused, 30)
    with pytest.raises(SinkUnavailableError, match=r"the connection was given up: .*larger"):
        await asyncio.wait_for(behind, 30)

    await written(writer, 12, 20)
    keys = [int(r.key) for r in await read_topic(kafka_bootstrap, s.topic)]
    assert keys[:10] == list(range(1, 11))
    assert keys[-9:] == list(range(12, 21))
    assert 11 not in keys


async def test_closing_fails_what_has_not_been_acknowledged(sink: KafkaSink) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    futures = [await writer.submit(writer.prepare(page(i * 100, i * 100 + 99))) for i in range(50)]

    await writer.close()

    assert all(f.done() for f in futures)
    assert isinstance(futures[-1].exception(), SinkUnavailableError)


async def test_a_cancelled_delivery_leaves_the_writer_usable(sink: KafkaSink, kafka_bootstrap: str) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    writer = sink.writer(s, TextEncoder())
    (await writer.submit(writer.prepare(page(1, 5)))).cancel()

    await written(writer, 6, 9)

    assert [int(r.key) for r in await read_topic(kafka_bootstrap, s.topic)][-4:] == [6, 7, 8, 9]


async def test_a_broker_that_is_not_there_is_named_within_the_deadline() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        sink = KafkaSink(config(address, sasl_password="hunter2"), "app", "run")
        with pytest.raises(SinkUnavailableError) as caught:
            await asyncio.wait_for(sink.start(), 10)
    assert f"Kafka at {address}: could not connect: connection refused" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_server_that_never_answers_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        sink = KafkaSink(config(address, connect_timeout_s=0.3), "app", "run")
        with pytest.raises(SinkUnavailableError, match=f"{address}: could not connect: no answer in time"):
            await asyncio.wait_for(sink.start(), 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"security_protocol": "SASL_PLAINTEXT"}, "sasl_username or kafka.sasl_password is missing"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}, "sasl_password are missing"),
        ({"security_protocol": "SSL", "ssl_cafile": "/nowhere/ca.pem"}, "cannot be loaded: No such file"),
    ],
)
async def test_settings_that_cannot_work_are_configuration_errors(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await KafkaSink(config("127.0.0.1:1", **settings), "app", "run").start()


async def test_a_tls_client_at_a_plaintext_listener_is_told_so(kafka_bootstrap: str) -> None:
    sink = KafkaSink(config(kafka_bootstrap, security_protocol="SSL", connect_timeout_s=3), "app", "run")

    with pytest.raises(ProducerError, match=kafka_bootstrap):
        await sink.start()


async def test_a_published_schema_is_found_in_the_state_topic(kafka_bootstrap: str) -> None:
    sink = KafkaSink(config(kafka_bootstrap), f"app-{uuid.uuid4().hex[:8]}", "run")

    await sink.publish_schema("abcd", {"type": "string"})
    await sink.publish_schema("abcd", {"type": "string"})
    await sink.close()

    records = await read_topic(kafka_bootstrap, sink.state_topic)
    assert [(r.key, r.value) for r in records] == [(b"schema/abcd", b'{"type": "string"}')] * 2


async def test_nothing_of_a_writer_is_left_behind(sink: KafkaSink) -> None:
    before = asyncio.all_tasks()
    s = stream()
    await sink.ensure_topic(s.topic, 2)
    writer = sink.writer(s, TextEncoder())
    await written(writer, 1, 100)

    await writer.close()
    await asyncio.sleep(0)

    assert asyncio.all_tasks() - before == set()


async def test_aiokafkas_own_batches_and_ours_go_through_one_producer(kafka_bootstrap: str, sink: KafkaSink) -> None:
    s = stream()
    await sink.ensure_topic(s.topic, 1)
    prepared = sink.writer(s, TextEncoder()).prepare(page(1, 3))
    async with AIOKafkaProducer(
        bootstrap_servers=kafka_bootstrap, enable_idempotence=True, acks="all", compression_type="gzip"
    ) as producer:
        await producer.send_and_wait(s.topic, key=b"0", value=b"theirs", partition=0)
        await (await producer.send_batch(prepared.batches[0][0], s.topic, partition=0))
        await producer.send_and_wait(s.topic, key=b"4", value=b"theirs", partition=0)

    assert [int(r.key) for r in await read_topic(kafka_bootstrap, s.topic)] == [0, 1, 2, 3, 4]
