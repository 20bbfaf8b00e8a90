"""Owns the search for rows that have been deleted: keys that are on the topic and no longer in the source.

The topic is read first, then the source: a key found on the topic had been in the source before, so one that the source
then does not have has been deleted. What one search cannot see yet, the next one does.

What was read is kept in a `producer.keyspool.KeySpool`. The next search reads the topic from where the last one ended,
and asks the source for the count and checksum of each range of about `RANGE_KEYS` keys; the keys are read where these
are not what they were when the range's keys were read last. A range's keys and its checksum come from one statement, so
they are of the same set; a source without checksums is read whole. A search that fails, and every new process, begins
anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import fastavro
import pyarrow as pa

from producer.config import Config, StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.schema import derive_key_schema
from producer.errors import SinkUnavailableError, TransientError
from producer.keyspool import KeySpool
from producer.model import Dataset, KeyDigest, Position
from producer.protocols import KeyedSource, KeyReader, Source

T = TypeVar("T")
P = ParamSpec("P")

RANGE_KEYS = 10_000
#: Tombstones that one search sends at most; the next one goes on.
MOST = 100_000
_PREFIX_BYTES = 5  # of the registry's framing
_FETCH_TIMEOUT_S = 30.0
_POLL_MS = 1000
_BATCH_RECORDS = 10_000


@dataclass(frozen=True, slots=True)
class _Range:
    """The source's keys after `lower` and up to `upper`, as they were read last; no digest: not yet."""

    number: int
    lower: Position | None = None
    upper: Position | None = None
    digest: KeyDigest | None = None


class DeleteSearch:
    """The searches of one run of a stream. `find` one at a time; `close` at the end."""

    def __init__(self, config: Config, stream: StreamConfig, source: Source, dataset: Dataset) -> None:
        self._config = config
        self._stream = stream
        self._source = source
        self._dataset = dataset
        self._schema = pa.schema([dataset.schema.field(name).with_nullable(False) for name in dataset.key])
        self._key_schema = derive_key_schema(dataset) or {}
        self._encoder = AvroEncoder(self._key_schema, self._schema)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deletes")  # what is in the spool has one order
        self._numbers = itertools.count(1)
        self._spool: KeySpool | None = None
        self._read: dict[int, int] = {}  # the offset after the last record that was read, by partition
        self._ranges: list[_Range] = []

    async def find(self) -> pa.RecordBatch | None:
        """The keys to delete, as columns of the key; None where there are none. ProducerError where a side is not
        there."""
        try:
            await self._read_topic()
            await self._read_source()
            keys = await self._do(KeySpool.deleted, MOST)
        except sqlite3.Error as error:
            self._forget()
            raise TransientError(
                f"stream {self._stream.name!r}: the keys for deletes cannot be kept in a temporary file: {error}",
                hint="SQLITE_TMPDIR names the folder for it",
            ) from None
        except BaseException:
            self._forget()  # what was half noted is not believed
            raise
        return await asyncio.to_thread(self._decoded, keys) if keys else None

    async def close(self) -> None:
        self._forget()
        await asyncio.to_thread(self._thread.shutdown)

    def _forget(self) -> None:
        spool, self._spool = self._spool, None
        self._read, self._ranges = {}, []
        if spool is not None:
            self._thread.submit(spool.close)

    async def _do(self, work: Callable[Concatenate[KeySpool, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._spool is None:
            self._spool = KeySpool()
        job = partial(work, self._spool, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _decoded(self, keys: Sequence[bytes]) -> pa.RecordBatch:
        parsed = fastavro.parse_schema(dict(self._key_schema))
        rows: list[Any] = [fastavro.schemaless_reader(io.BytesIO(key), parsed, None) for key in keys]
        columns = [
            pa.array([_stored(row[avro["name"]], field) for row in rows], field.type)
            for field, avro in zip(self._schema, self._key_schema["fields"], strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    # --- the topic -------------------------------------------------------------------------------------------------

    async def _read_topic(self) -> None:
        """What has been written since the last search, up to the topic's present end."""
        from aiokafka import AIOKafkaConsumer, TopicPartition
        from aiokafka.errors import KafkaError

        from producer.kafka import client_options, topic_partitions, translate

        kafka, topic = self._config.kafka, self._stream.topic
        try:
            count = await topic_partitions(kafka, topic) or 0
            consumer = AIOKafkaConsumer(
                **client_options(kafka),
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                check_crcs=False,
                max_partition_fetch_bytes=4 * 2**20,
            )
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                await consumer.start()
            try:
                places = [TopicPartition(topic, number) for number in range(count)]
                if places:
                    consumer.assign(places)
                    ends = await consumer.end_offsets(places)
                    if any(end < self._read.get(place.partition, 0) for place, end in ends.items()):
                        self._forget()  # another topic of the same name
                    for place, end in ends.items():
                        if 0 < (start := self._read.get(place.partition, 0)) <= end:
                            consumer.seek(place, start)
                    await self._consume(consumer, ends)
            finally:
                async with asyncio.timeout(_FETCH_TIMEOUT_S):
                    await consumer.stop()
        except (KafkaError, OSError) as error:  # TimeoutError is an OSError
            raise translate(error, kafka, topic=topic, doing="read") from None
        await self._do(KeySpool.recorded)

    async def _consume(self, consumer: Any, ends: dict[Any, int]) -> None:
        skip = _PREFIX_BYTES if self._config.schema_registry is not None else 0
        deadline = time.monotonic() + _FETCH_TIMEOUT_S
        waiting = set(ends)
        while True:
            for place in list(waiting):
                position = await consumer.position(place)  # markers of transactions count too
                if position >= ends[place]:
                    waiting.remove(place)
                    self._read[place.partition] = position
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise SinkUnavailableError(
                    f"reading topic {self._stream.topic!r} back: no record for {_FETCH_TIMEOUT_S:.0f} s"
                )
            found = await consumer.getmany(*waiting, timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS)
            for records in found.values():
                keys = [(record.key[skip:], record.value is None) for record in records if record.key is not None]
                await self._do(KeySpool.record, keys)
                deadline = time.monotonic() + _FETCH_TIMEOUT_S

    # --- the source ------------------------------------------------------------------------------------------------

    async def _read_source(self) -> None:
        """The keys of the ranges that have changed since the last search."""
        stream, dataset = self._stream, self._dataset
        plain = stream.model_copy(
            update={
                "name": f"{stream.name} keys", "mode": "snapshot", "columns": dataset.key, "exclude": (),
                "key": dataset.key, "order_by": None,
            }
        )  # fmt: skip
        if not isinstance(self._source, KeyedSource):
            await self._do(KeySpool.forget, 0)
            async for batch in _all_keys(plain, self._source):
                keys = await asyncio.to_thread(self._encoded, batch)
                await self._do(KeySpool.add, 0, keys)
            return
        async with contextlib.aclosing(await self._source.keys(plain)) as reader:
            ranges: list[_Range] = []
            for known in self._ranges or [_Range(0)]:
                # One that has become empty goes: the next one begins where it did.
                known = replace(known, lower=ranges[-1].upper if ranges else None)
                for piece in await self._renewed(reader, known):
                    if piece.upper is None or piece.digest != (0, 0):
                        ranges.append(piece)
            self._ranges = ranges

    async def _renewed(self, reader: KeyReader, known: _Range) -> list[_Range]:
        """The range as it is now: itself where nothing has changed, else what its keys have been put into."""
        if known.digest is not None and await reader.digest(known.lower, known.upper) == known.digest:
            return [known]
        pieces: list[_Range] = []
        lower, last = known.lower, False
        while not last:
            page = await reader.fetch(lower, known.upper, RANGE_KEYS)
            keys = await asyncio.to_thread(self._encoded, page.batch)
            digest = page.digest if page.digest is not None else (len(keys), sum(map(hash, keys)))
            last = page.last
            if not pieces:
                if last and digest == known.digest:
                    return [known]
                await self._do(KeySpool.forget, known.number)
            piece = _Range(next(self._numbers), lower, known.upper if last else page.position, digest)
            await self._do(KeySpool.add, piece.number, keys)
            pieces.append(piece)
            lower = page.position
        return pieces

    def _encoded(self, batch: pa.RecordBatch) -> list[bytes]:
        column = self._encoder.encode(batch.select(self._schema.names).cast(self._schema))
        data, ends = bytes(column.data), column.offsets.tolist()
        return [data[start:end] for start, end in itertools.pairwise(ends)]


def _stored(value: Any, field: pa.Field) -> Any:
    return str(value) if pa.types.is_string(field.type) else value


async def _all_keys(plain: StreamConfig, source: Source) -> AsyncIterator[pa.RecordBatch]:
    """All keys of a source that cannot be asked for some of them."""
    described = await source.describe(plain)
    for split in await source.plan(plain, described):
        reader = await source.reader(plain, described, split)
        position: Position | None = None
        try:
            last = False
            while not last:
                page = await reader.fetch(position, RANGE_KEYS)
                yield page.batch
                position, last = page.position, page.last
        finally:
            await reader.close()
