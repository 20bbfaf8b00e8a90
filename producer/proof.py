"""Owns the demo's proof: what is in its table and what is on its topic, computed apart from each other.

The table is read by sqlite3 alone, the topic by a plain consumer and fastavro with the schemas that stand in the state
topic: nothing of the streaming engine is used. Both sides are cut into parts that separate processes work on. Each
part gives a `Digest`, and digests add up in any order.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producer.errors import SinkUnavailableError

CHECKSUM_BITS = 64
_FETCH_TIMEOUT_S = 30.0
_POLL_MS = 1000
_BATCH_RECORDS = 10_000

Row = Mapping[str, Any]
Canonical = Callable[[Row], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Digest:
    """``count`` rows, their ``keys``, and the sum of their hashes, which no order changes and every value does."""

    count: int = 0
    checksum: int = 0
    keys: frozenset[int] = field(default_factory=frozenset)

    def __add__(self, other: Digest) -> Digest:
        return Digest(
            self.count + other.count, (self.checksum + other.checksum) % 2**CHECKSUM_BITS, self.keys | other.keys
        )


@dataclass(frozen=True, slots=True)
class Schemas:
    """The key's schema, and the value schemas by the fingerprint that the records' headers name."""

    key: Mapping[str, Any]
    values: Mapping[bytes, Mapping[str, Any]]


def digest(rows: Iterable[tuple[int, tuple[Any, ...]]]) -> Digest:
    """The digest of (key, values) pairs; the values' ``repr`` is what is hashed."""
    count = checksum = 0
    keys = set()
    for key, values in rows:
        count += 1
        keys.add(key)
        text = repr((key, values)).encode()
        checksum += int.from_bytes(hashlib.blake2b(text, digest_size=CHECKSUM_BITS // 8).digest(), "big")
    return Digest(count, checksum % 2**CHECKSUM_BITS, frozenset(keys))


def digest_table(database: Path, table: str, after: int, up_to: int, canonical: Canonical) -> Digest:
    """The rows whose id is in ``(after, up_to]``, as sqlite3 gives them."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        rows = connection.execute(f'SELECT * FROM "{table}" WHERE id > ? AND id <= ?', (after, up_to))
        return digest((row["id"], canonical(row)) for row in rows)
    finally:
        connection.close()


def digest_partition(
    options: Mapping[str, Any], topic: str, partition: int, schemas: Schemas, canonical: Canonical
) -> Digest:
    """All committed records of one partition, each decoded by fastavro."""
    from fastavro import parse_schema, schemaless_reader

    key_schema = parse_schema(dict(schemas.key))
    values = {fingerprint: parse_schema(dict(schema)) for fingerprint, schema in schemas.values.items()}

    def decoded(records: Iterable[Any]) -> Iterable[tuple[int, tuple[Any, ...]]]:
        for record in records:
            key: Any = schemaless_reader(io.BytesIO(record.key), key_schema, None)
            schema = values[dict(record.headers)["avro.fingerprint"]]
            value: Any = schemaless_reader(io.BytesIO(record.value), schema, None)
            yield key["id"], canonical(value)

    async def read() -> Digest:
        found = Digest()
        async for batch in committed_records(options, topic, partition):
            found += digest(decoded(batch))
        return found

    return asyncio.run(read())


async def read_schemas(options: Mapping[str, Any], state_topic: str, topic: str) -> Schemas:
    """What the state topic says under ``schema/<fingerprint>``."""
    found = await published_schemas(options, state_topic)
    keys = [schema for schema in found.values() if [f["name"] for f in schema.get("fields", ())] == ["id"]]
    if not keys:
        raise SinkUnavailableError(f"the state topic {state_topic!r} has no key schema for topic {topic!r}")
    return Schemas(keys[0], found)


async def published_schemas(options: Mapping[str, Any], state_topic: str) -> dict[bytes, Any]:
    """The schemas that stand in the state topic, by their fingerprints."""
    found = {}
    async for batch in committed_records(options, state_topic, 0):
        for record in batch:
            if record.key is not None and record.key.startswith(b"schema/") and record.value is not None:
                found[bytes.fromhex(record.key.removeprefix(b"schema/").decode())] = json.loads(record.value)
    return found


async def committed_records(options: Mapping[str, Any], topic: str, partition: int) -> Any:
    """Lists of a partition's records, from its beginning to where it ends now."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    consumer = AIOKafkaConsumer(
        **options,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        check_crcs=False,
        max_partition_fetch_bytes=4 * 2**20,
    )
    where = TopicPartition(topic, partition)
    async with asyncio.timeout(_FETCH_TIMEOUT_S):
        await consumer.start()
    try:
        consumer.assign([where])
        end = (await consumer.end_offsets([where]))[where]
        deadline = time.monotonic() + _FETCH_TIMEOUT_S
        while await consumer.position(where) < end:  # markers of transactions count too
            found = await consumer.getmany(where, timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS)
            if batch := found.get(where):
                deadline = time.monotonic() + _FETCH_TIMEOUT_S
                yield batch
            elif time.monotonic() > deadline:
                raise SinkUnavailableError(f"reading topic {topic!r} back: no record for {_FETCH_TIMEOUT_S:.0f} s")
    finally:
        async with asyncio.timeout(_FETCH_TIMEOUT_S):
            await consumer.stop()


# --- processes -----------------------------------------------------------------------------------------------------


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle, and a worker does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


async def add_up(
    jobs: Sequence[tuple[str, Callable[..., Digest], tuple[Any, ...]]], processes: int
) -> dict[str, Digest]:
    """Runs (name, function, arguments) in processes, and adds the digests of each name; cancelling ends them all."""
    loop = asyncio.get_running_loop()
    pool: AbstractContextManager[Any] = multiprocessing.get_context("spawn").Pool(processes, _begin_worker)
    with pool as workers:  # leaving it terminates them

        def result(function: Callable[..., Digest], arguments: tuple[Any, ...]) -> asyncio.Future[Digest]:
            future: asyncio.Future[Digest] = loop.create_future()

            def settle(how: Callable[[Any], None], value: Any) -> None:
                if not future.done():
                    how(value)

            workers.apply_async(
                function,
                arguments,
                callback=lambda found: loop.call_soon_threadsafe(settle, future.set_result, found),
                error_callback=lambda error: loop.call_soon_threadsafe(settle, future.set_exception, error),
            )
            return future

        futures = [(name, result(function, arguments)) for name, function, arguments in jobs]
        await asyncio.gather(*(future for _, future in futures))
    totals: dict[str, Digest] = {}
    for name, future in futures:
        totals[name] = totals.get(name, Digest()) + future.result()
    return totals
