"""Owns the claim that what is on the topic is what was in the table, as other people's tools read it: confluent-kafka's
AvroDeserializer with a real registry."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import math
import uuid
from typing import Any

import pyarrow as pa
import pytest
from aiokafka.partitioner import DefaultPartitioner
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from producer.config import KafkaConfig, RegistryConfig, StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.records import RecordEncoder
from producer.encoding.registry import RegistryClient
from producer.encoding.schema import crc64_fingerprint, derive_key_schema, derive_value_schema
from producer.model import Dataset, KeyPosition, Page
from producer.sinks.kafka import KafkaSink
from tests.integration.kafka_rows import read_topic

UTC = dt.UTC
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("region", pa.string(), nullable=False),
        pa.field("small", pa.int16()),
        pa.field("amount", pa.decimal128(12, 2)),
        pa.field("ratio", pa.float64()),
        pa.field("active", pa.bool_()),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("local", pa.timestamp("us")),
        pa.field("day", pa.date32()),
        pa.field("hour", pa.time64("us")),
        pa.field("token", pa.string(), metadata={"avro.logical": "uuid"}),
        pa.field("raw", pa.binary()),
        pa.field("text", pa.string()),
        pa.field("numbers", pa.list_(pa.int32())),
        pa.field("Mixed Case", pa.string()),
    ]
)
TOKEN = uuid.UUID("12345678-1234-5678-1234-567812345678")
ROWS: list[dict[str, Any]] = [
    {
        "id": 2**63 - 1, "region": "größe ☃ 🐘", "small": -(2**15), "amount": decimal.Decimal("9999999999.99"),
        "ratio": math.inf, "active": True, "at": dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "local": dt.datetime(1, 1, 1, 0, 0, 0, 1), "day": dt.date(1, 1, 1), "hour": dt.time(23, 59, 59, 999999),
        "token": str(TOKEN), "raw": b"\x00\xff", "text": "ä" * 500_000, "numbers": [1, None, -(2**31)],
        "Mixed Case": "x",
    },
    {
        "id": -(2**63), "region": "", "small": 0, "amount": decimal.Decimal("-0.01"), "ratio": -math.inf,
        "active": False, "at": dt.datetime(1, 1, 1, tzinfo=UTC), "local": dt.datetime(9999, 12, 31, 23, 59, 59, 999999),
        "day": dt.date(9999, 12, 31), "hour": dt.time(0), "token": str(uuid.UUID(int=0)), "raw": b"", "text": "",
        "numbers": [], "Mixed Case": "",
    },
    {"id": 0, "region": "null"} | dict.fromkeys(SCHEMA.names[2:]),
    {"id": 1, "region": "nan", "ratio": math.nan, "amount": decimal.Decimal("0.00"),
     "at": dt.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)},
]  # fmt: skip


def dataset() -> Dataset:
    return Dataset("Odd Table", SCHEMA, ("id", "region"), ("id", "region"), {"table": "odd"})


def batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict.fromkeys(SCHEMA.names) | row for row in rows], schema=SCHEMA)


def as_decoded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the types that fastavro gives: a uuid as UUID, and names as Avro allows them."""
    full = dict.fromkeys(SCHEMA.names) | row
    full["Mixed_Case"] = full.pop("Mixed Case")
    if full["token"] is not None:
        full["token"] = uuid.UUID(full["token"])
    return full


async def register(url: str, topic: str) -> tuple[bytes, bytes]:
    client = RegistryClient(RegistryConfig(url=url))
    await client.start()
    try:
        key = await client.register(topic, derive_key_schema(dataset()), is_key=True)
        value = await client.register(topic, derive_value_schema(dataset()), is_key=False)
    finally:
        await client.close()
    return key, value


async def write(bootstrap: str, topic: str, encoder: RecordEncoder, *batches: pa.RecordBatch) -> None:
    sink = KafkaSink(KafkaConfig(bootstrap_servers=bootstrap, max_request_size=2**20), "decode", "run")
    await sink.ensure_topic(topic, 5)
    writer = sink.writer(StreamConfig(name="odd", source="shop", table="odd", topic=topic), encoder)
    for rows in batches:
        await asyncio.wait_for(await writer.submit(writer.prepare(Page(rows, KeyPosition((0,))))), 30)
    await sink.close()


async def test_confluents_deserializer_gives_every_value_back(
    kafka_bootstrap: str, registry_url: str, unique: str
) -> None:
    key_prefix, value_prefix = await register(registry_url, unique)
    encoder = RecordEncoder(
        AvroEncoder(derive_key_schema(dataset()), SCHEMA, prefix=key_prefix),
        AvroEncoder(derive_value_schema(dataset()), SCHEMA, prefix=value_prefix),
    )
    await write(kafka_bootstrap, unique, encoder, batch(ROWS))

    records = await read_topic(kafka_bootstrap, unique)

    def decoded() -> list[tuple[Any, Any]]:
        with SchemaRegistryClient({"url": registry_url}) as client:
            read = AvroDeserializer(client)
            key, value = (SerializationContext(unique, field) for field in (MessageField.KEY, MessageField.VALUE))
            return [(read(r.key, key), read(r.value, value)) for r in records]

    found = {row["region"]: (key, row) for key, row in await asyncio.to_thread(decoded)}
    assert len(records) == len(found) == len(ROWS)
    for row in ROWS:
        key, value = found[row["region"]]
        assert key == {"id": row["id"], "region": row["region"]}
        expected = as_decoded(row)
        if isinstance(row.get("ratio"), float) and math.isnan(row["ratio"]):
            assert math.isnan(value.pop("ratio"))
            expected.pop("ratio")
        assert value == expected
        assert value["amount"] is None or value["amount"].as_tuple().exponent == -2


@pytest.mark.parametrize("prefixed", [True, False])
async def test_a_keys_partition_is_the_one_of_the_default_partitioner(
    kafka_bootstrap: str, registry_url: str, unique: str, prefixed: bool
) -> None:
    key_prefix, value_prefix = await register(registry_url, unique) if prefixed else (b"", b"")
    encoder = RecordEncoder(
        AvroEncoder(derive_key_schema(dataset()), SCHEMA, prefix=key_prefix),
        AvroEncoder(derive_value_schema(dataset()), SCHEMA, prefix=value_prefix),
    )
    await write(
        kafka_bootstrap, unique, encoder, batch([{"id": i * 7919 - 5000, "region": "x" * (i % 9)} for i in range(2000)])
    )

    records = await read_topic(kafka_bootstrap, unique)

    partitioner = DefaultPartitioner()
    assert len(records) == 2000
    assert all(r.partition == partitioner(r.key, range(5), range(5)) for r in records)
    assert {r.partition for r in records} == set(range(5))


async def test_without_a_registry_the_fingerprint_leads_to_the_schema(kafka_bootstrap: str, unique: str) -> None:
    import io
    import json

    import fastavro

    schema = derive_value_schema(dataset())
    fingerprint = crc64_fingerprint(schema)
    sink = KafkaSink(KafkaConfig(bootstrap_servers=kafka_bootstrap, headers=False), unique, "run")
    await sink.publish_schema(fingerprint.hex(), schema)
    await sink.ensure_topic(unique, 1)
    encoder = RecordEncoder(AvroEncoder(derive_key_schema(dataset()), SCHEMA), AvroEncoder(schema, SCHEMA))
    writer = sink.writer(
        StreamConfig(name="odd", source="shop", table="odd", topic=unique), encoder, fingerprint=fingerprint
    )
    await (await writer.submit(writer.prepare(Page(batch(ROWS[1:2]), KeyPosition((0,))))))
    await sink.close()

    (record,) = await read_topic(kafka_bootstrap, unique)
    schemas = {r.key: json.loads(r.value) for r in await read_topic(kafka_bootstrap, sink.state_topic)}
    found = schemas[b"schema/" + dict(record.headers)["avro.fingerprint"].hex().encode()]
    assert fastavro.schemaless_reader(io.BytesIO(record.value), found, None) == as_decoded(ROWS[1])
