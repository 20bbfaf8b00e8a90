"""Owns what the Kafka tests share: a plain record encoder, streams, pages, and reading a topic back."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.partitioner import murmur2

from producer.config import KafkaConfig, StreamConfig
from producer.errors import RecordTooLargeError
from producer.kafka import client_options
from producer.model import KeyPosition, Page


def varint(value: int) -> bytes:
    """A zig-zag varint, as in Kafka's records and in Avro."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value & ~0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def framed(offset: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """One record of a version 2 batch."""
    body = b"\x00\x00" + varint(offset)
    for part in (key, value):
        body += varint(-1) if part is None else varint(len(part)) + part
    body += varint(len(headers))
    for name, content in headers:
        body += varint(len(name)) + name.encode() + varint(len(content)) + content
    return varint(len(body)) + body


@dataclass(frozen=True)
class Block:
    partition: int
    count: int
    records: bytes


@dataclass(frozen=True)
class TextEncoder:
    """Key: the id as text; value: the text column. One record at a time, to compare the real encoder with."""

    def encode(
        self,
        batch: pa.RecordBatch,
        *,
        partitions: int,
        headers: Sequence[tuple[str, bytes]],
        max_block_bytes: int,
        timestamp_ms: int,
    ) -> list[Block]:
        done: list[Block] = []
        open_blocks: dict[int, tuple[int, bytes]] = {}
        for row in batch.to_pylist():
            key = str(row["id"]).encode()
            partition = (murmur2(key) & 0x7FFFFFFF) % partitions
            count, records = open_blocks.get(partition, (0, b""))
            record = framed(count, key, row["text"].encode(), headers)
            if len(record) > max_block_bytes:
                raise RecordTooLargeError(f"the record with key {key.decode()} is too large", size=len(record))
            if count and len(records) + len(record) > max_block_bytes:
                done.append(Block(partition, count, records))
                count, records, record = 0, b"", framed(0, key, row["text"].encode(), headers)
            open_blocks[partition] = (count + 1, records + record)
        return done + [Block(p, count, records) for p, (count, records) in open_blocks.items()]

    def tombstones(
        self,
        key_batch: pa.RecordBatch,
        *,
        partitions: int,
        headers: Sequence[tuple[str, bytes]],
        max_block_bytes: int,
        timestamp_ms: int,
    ) -> list[Block]:
        rows: dict[int, list[bytes]] = {}
        for key in (str(row["id"]).encode() for row in key_batch.to_pylist()):
            records = rows.setdefault((murmur2(key) & 0x7FFFFFFF) % partitions, [])
            records.append(framed(len(records), key, None, headers))
        return [Block(p, len(records), b"".join(records)) for p, records in rows.items()]


def page(first: int, last: int, *, text: str = "text {}") -> Page:
    """A page with the ids first to last, both in it."""
    ids = range(first, last + 1)
    batch = pa.RecordBatch.from_pydict({"id": list(ids), "text": [text.format(i) for i in ids]})
    return Page(batch, KeyPosition((last,)))


def stream(topic: str = "", **more: Any) -> StreamConfig:
    topic = topic or f"sink-{uuid.uuid4().hex[:12]}"
    return StreamConfig(name="rows", source="shop", table="rows", topic=topic, **more)


async def read_topic(
    bootstrap: str, topic: str, *, isolation_level: str = "read_uncommitted", timeout_s: float = 20
) -> list[ConsumerRecord]:
    """All records of a topic as of now, by partition and offset."""
    options = client_options(KafkaConfig(bootstrap_servers=bootstrap))
    consumer = AIOKafkaConsumer(
        **options, isolation_level=isolation_level, auto_offset_reset="earliest", enable_auto_commit=False
    )
    # The end for a read_committed consumer lags: a commit is answered before its markers are everywhere.
    watermarks = AIOKafkaConsumer(**options, enable_auto_commit=False)
    await consumer.start()
    await watermarks.start()
    records: list[ConsumerRecord] = []
    try:
        async with asyncio.timeout(timeout_s):
            await consumer._client.set_topics([topic])
            while not (numbers := consumer.partitions_for_topic(topic)):  # the broker may not know a new topic yet
                await asyncio.sleep(0.1)
                await consumer._client.force_metadata_update()
            parts = [TopicPartition(topic, p) for p in numbers]
            consumer.assign(parts)
            await consumer.seek_to_beginning()
            watermarks.assign(parts)
            ends = await watermarks.end_offsets(parts)
            while any([await consumer.position(p) < ends[p] for p in parts]):
                for found in (await consumer.getmany(timeout_ms=100)).values():
                    records.extend(found)
    finally:
        await consumer.stop()
        await watermarks.stop()
    return sorted(records, key=lambda r: (r.partition, r.offset))
