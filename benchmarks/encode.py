"""Owns the measurement of the encoder alone: fastavro, numpy and the C kernel on the same pages, in one run.

    python -m benchmarks.encode [--rows N] [--page-rows N] [--rounds N]

Values: Avro of the nine-column table of the comparison. Records: key, murmur2 partition of 4, value, Kafka framing.
Rates are one thread's, the best of the rounds, interleaved; the ratio is to fastavro's in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa

from producer.encoding import native
from producer.encoding.arrow_avro import AvroEncoder, Kernel
from producer.encoding.checksums import crc32c
from producer.encoding.records import RecordEncoder
from producer.encoding.schema import derive_key_schema, derive_value_schema
from producer.model import Dataset

_FASTAVRO_SHARE = 20  # it is so much slower that it gets a part of the rows only


def table(rows: int) -> pa.RecordBatch:
    """id, account_id, kind (8 bytes), amount, ratio, active, created_at, payload (80 bytes), tags; tags 20 % null."""
    random = np.random.default_rng(7)
    cents = random.integers(-(10**9), 10**9, rows)
    halves = np.stack([cents, cents >> 63], axis=1)  # decimal128 is 128 bits, the low half first
    amount = pa.Array.from_buffers(pa.decimal128(12, 2), rows, [None, pa.py_buffer(halves.tobytes())])
    return pa.record_batch(
        {
            "id": pa.array(np.arange(1, rows + 1)),
            "account_id": pa.array(random.integers(0, 100_000, rows).astype(np.int32)),
            "kind": pa.array([f"kind{number:04d}" for number in random.integers(0, 50, rows)]),
            "amount": amount,
            "ratio": pa.array(random.random(rows)),
            "active": pa.array(random.random(rows) < 0.5),
            "created_at": pa.array(random.integers(1_500_000_000_000_000, 1_700_000_000_000_000, rows)).cast(
                pa.timestamp("us", "UTC")
            ),
            "payload": pa.array([f"{number:080x}" for number in range(rows)]),
            "tags": pa.array(
                [None if number % 5 == 0 else f"tag{number % 7},tag{number % 11}" for number in range(rows)]
            ),
        }
    )


def rate(work: Callable[[pa.RecordBatch], object], pages: list[pa.RecordBatch]) -> float:
    """Rows a second."""
    start = time.perf_counter()
    for page in pages:
        work(page)
    return sum(len(page) for page in pages) / (time.perf_counter() - start)


def main() -> None:
    arguments = argparse.ArgumentParser(description="rows a second of the encoders")
    arguments.add_argument("--rows", type=int, default=500_000)
    arguments.add_argument("--page-rows", type=int, default=5000)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    batch = table(options.rows)
    pages = [batch.slice(at, options.page_rows) for at in range(0, options.rows, options.page_rows)]
    dataset = Dataset("events", batch.schema, ("id",), ("id",), {})
    kernels: list[Kernel] = ["fastavro", "numpy"] if native.kernel is None else ["fastavro", "numpy", "c"]
    best: dict[tuple[str, str], float] = {}
    for _ in range(options.rounds):
        for kernel in kernels:
            value = AvroEncoder(derive_value_schema(dataset), batch.schema, prefix=b"\0\0\0\0\1", kernel=kernel)
            key = AvroEncoder(derive_key_schema(dataset), batch.schema, prefix=b"\0\0\0\0\2", kernel=kernel)
            records = RecordEncoder(key, value)
            share = pages[: max(1, len(pages) // _FASTAVRO_SHARE)] if kernel == "fastavro" else pages
            framed = partial(
                records.encode,
                partitions=4,
                max_block_bytes=1_000_000,
                timestamp_ms=0,
                headers=[("source", b"shop.events")],
            )
            jobs: dict[str, Callable[[pa.RecordBatch], object]] = {"values": value.encode, "records": framed}
            for job, work in jobs.items():
                work(share[0])
                best[job, kernel] = max(best.get((job, kernel), 0.0), rate(work, share))
    print(f"{'':10}" + "".join(f"{kernel:>24}" for kernel in kernels))
    for job in ("values", "records"):
        cells = [f"{best[job, k]:,.0f}/s ({best[job, k] / best[job, 'fastavro']:.1f}x)" for k in kernels]
        print(f"{job:10}" + "".join(f"{cell:>24}" for cell in cells))
    block = bytes(100_000_000)
    start = time.perf_counter()
    crc32c(block)
    print(f"crc32c    {len(block) / (time.perf_counter() - start) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
