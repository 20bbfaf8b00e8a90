"""Owns the measurement of the Kafka sink alone: the same rows, encoded beforehand, by three ways to one broker.

    python -m benchmarks.sink [--bootstrap HOST:PORT] [--rows N] [--partitions N] [--compression CODEC]

- sink: `producer.sinks.kafka`: pages framed by the C kernel, compressed in threads, ready batches through aiokafka;
- sink, framed beforehand: the same from compression on;
- aiokafka: `create_batch`, `append`, `send_batch`, key and value ready;
- librdkafka: `confluent_kafka.Producer.produce`, key, value and partition ready.

Rates are rows over the time from the first row to the last acknowledgement; the CPU is that of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import decimal
import resource
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from producer.config import KafkaConfig, StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.records import RecordBlock, RecordEncoder
from producer.encoding.schema import derive_key_schema, derive_value_schema
from producer.model import Dataset, KeyPosition, Page
from producer.sinks.kafka import KafkaSink

DISTINCT_PAGES = 20


def make_pages(page_rows: int) -> tuple[Dataset, list[Page]]:
    """Rows as in the comparison of whole systems: nine columns, about 200 bytes, a fifth null."""
    rng = np.random.default_rng(1)
    words = np.array(["alpha", "beta", "gamma", "delta", "order", "item", "price", "late", "paid", "sent", "north"])
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("account_id", pa.int32()),
            pa.field("kind", pa.string()),
            pa.field("amount", pa.decimal128(12, 2)),
            pa.field("ratio", pa.float64()),
            pa.field("active", pa.bool_()),
            pa.field("created_at", pa.timestamp("us", "UTC")),
            pa.field("payload", pa.string()),
            pa.field("tags", pa.string()),
        ]
    )
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    pages = []
    for number in range(DISTINCT_PAGES):
        n, first = page_rows, number * page_rows
        columns = [
            pa.array(range(first, first + n), pa.int64()),
            pa.array(rng.integers(0, 1_000_000, n), pa.int32()),
            pa.array([f"kind{k:04d}" for k in rng.integers(0, 50, n)]),
            pa.array([decimal.Decimal(int(v)).scaleb(-2) for v in rng.integers(0, 10**9, n)], pa.decimal128(12, 2)),
            pa.array(rng.random(n)),
            pa.array(rng.random(n) < 0.5),
            pa.array([start + dt.timedelta(seconds=first + i) for i in range(n)], pa.timestamp("us", "UTC")),
            pa.array([" ".join(w)[:80].ljust(80, "x") for w in rng.choice(words, (n, 14))]),
            pa.array([None if r < 0.2 else f"tag{int(r * 1000)}" for r in rng.random(n)]),
        ]
        pages.append(Page(pa.RecordBatch.from_arrays(columns, schema=schema), KeyPosition((first + n - 1,))))
    return Dataset("events", schema, ("id",), ("id",), {"table": "events"}), pages


async def measured(name: str, rows: int, run: Callable[[], Awaitable[None]]) -> float:
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    await run()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(f"{name:24} {rows / seconds:10,.0f} rows/s {used / rows * 1e6:6.2f} CPU s per 1M rows")
    return rows / seconds


class Framed:
    """An encoder whose work has been done: gives the blocks of a page that it has seen before."""

    def __init__(self, encoder: RecordEncoder) -> None:
        self._encoder = encoder
        self._blocks: dict[int, Sequence[RecordBlock]] = {}

    def encode(self, batch: pa.RecordBatch, **form: Any) -> Sequence[RecordBlock]:
        if id(batch) not in self._blocks:
            self._blocks[id(batch)] = self._encoder.encode(batch, **form)
        return self._blocks[id(batch)]

    def tombstones(self, key_batch: pa.RecordBatch, **form: Any) -> Sequence[RecordBlock]:
        return self._encoder.tombstones(key_batch, **form)


async def by_sink(
    config: KafkaConfig, topic: str, partitions: int, encoder: Any, pages: Sequence[Page], repeat: int
) -> None:
    sink = KafkaSink(config, "bench", "run")
    await sink.ensure_topic(topic, partitions)
    writer = sink.writer(StreamConfig(name="events", source="bench", table="events", topic=topic), encoder)
    loop = asyncio.get_running_loop()
    window: asyncio.Queue[Awaitable[Any] | None] = asyncio.Queue(6)
    unacknowledged: asyncio.Queue[asyncio.Future[None] | None] = asyncio.Queue(12)

    async def submit() -> None:
        while (prepared := await window.get()) is not None:
            await unacknowledged.put(await writer.submit(await prepared))
        await unacknowledged.put(None)

    async def acknowledge() -> None:
        while (future := await unacknowledged.get()) is not None:
            await future

    with ThreadPoolExecutor(2) as threads:
        tasks = [asyncio.create_task(submit()), asyncio.create_task(acknowledge())]
        for _ in range(repeat):
            for page in pages:
                await window.put(loop.run_in_executor(threads, writer.prepare, page))
        await window.put(None)
        await asyncio.gather(*tasks)
    await sink.close()


Row = tuple[bytes, bytes, int]


async def by_aiokafka(config: KafkaConfig, topic: str, pages: Sequence[Sequence[Row]], repeat: int) -> None:
    from aiokafka import AIOKafkaProducer

    codec = None if config.compression == "none" else config.compression
    futures = []
    async with AIOKafkaProducer(
        bootstrap_servers=config.bootstrap_servers,
        enable_idempotence=True,
        acks="all",
        compression_type=codec,
        max_batch_size=2**20,
    ) as producer:
        for _ in range(repeat):
            for page in pages:
                now = time.time_ns() // 1_000_000
                batches: dict[int, Any] = {}
                for key, value, partition in page:
                    batch = batches.get(partition)
                    if batch is None:
                        batch = batches[partition] = producer.create_batch()
                    if batch.append(key=key, value=value, timestamp=now) is None:
                        futures.append(await producer.send_batch(batch, topic, partition=partition))
                        batch = batches[partition] = producer.create_batch()
                        batch.append(key=key, value=value, timestamp=now)
                for partition, batch in batches.items():
                    futures.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*futures)


async def by_librdkafka(config: KafkaConfig, topic: str, pages: Sequence[Sequence[Row]], repeat: int) -> None:
    from confluent_kafka import Producer

    def run() -> None:
        producer = Producer(
            {
                "bootstrap.servers": config.bootstrap_servers,
                "enable.idempotence": True,
                "compression.type": config.compression,
                "linger.ms": 20,
                "batch.size": 2**20,
                "queue.buffering.max.messages": 500_000,
                "queue.buffering.max.kbytes": 256 * 1024,
            }
        )
        for _ in range(repeat):
            for page in pages:
                for key, value, partition in page:
                    while True:
                        try:
                            producer.produce(topic, value, key, partition)
                            break
                        except BufferError:
                            producer.poll(0.01)
                producer.poll(0)
        if producer.flush(120):
            raise RuntimeError("not all was acknowledged")

    await asyncio.to_thread(run)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bootstrap", default="localhost:9092")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--page-rows", type=int, default=5000)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--compression", default="zstd", choices=["none", "gzip", "snappy", "lz4", "zstd"])
    args = parser.parse_args()
    dataset, pages = make_pages(args.page_rows)
    encoder = RecordEncoder(
        AvroEncoder(derive_key_schema(dataset), dataset.schema),
        AvroEncoder(derive_value_schema(dataset), dataset.schema),
    )
    config = KafkaConfig(bootstrap_servers=args.bootstrap, compression=args.compression, headers=False)
    repeat = max(1, args.rows // (DISTINCT_PAGES * args.page_rows))
    rows = repeat * DISTINCT_PAGES * args.page_rows
    ready: list[list[Row]] = []
    size = 0
    for page in pages:
        encoded = encoder.encoded_page(page.batch, args.partitions)
        assert encoded.keys is not None
        assert encoded.values is not None
        ready.append([(encoded.keys.row(i), encoded.values.row(i), int(p)) for i, p in enumerate(encoded.partitions)])
        size += sum(len(key) + len(value) for key, value, _ in ready[-1])
    print(f"{rows:,} rows of {size * repeat / rows:.0f} bytes, {args.partitions} partitions, {args.compression}")

    def topic() -> str:
        return f"bench-{uuid.uuid4().hex[:8]}"

    made = KafkaSink(config, "bench", "run")
    names = [topic() for _ in range(2)]
    for name in names:
        await made.ensure_topic(name, args.partitions)
    framed = Framed(encoder)
    await by_sink(config, topic(), args.partitions, framed, pages, 1)  # warm
    ours = await measured("sink", rows, lambda: by_sink(config, topic(), args.partitions, encoder, pages, repeat))
    await measured(
        "sink, framed beforehand", rows, lambda: by_sink(config, topic(), args.partitions, framed, pages, repeat)
    )
    theirs = await measured("aiokafka", rows, lambda: by_aiokafka(config, names[0], ready, repeat))
    rdkafka = await measured("librdkafka", rows, lambda: by_librdkafka(config, names[1], ready, repeat))
    print(f"sink against aiokafka {ours / theirs:.1f}x, against librdkafka {ours / rdkafka:.1f}x")


if __name__ == "__main__":
    asyncio.run(main())
