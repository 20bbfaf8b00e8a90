"""Owns the comparison of a stream's topic with its source: what must be there, what is, and the keys that differ.

The topic is read by a plain consumer (read_committed, from the beginning to where it ended at the start), the source
by its own readers, split by split, up to the checkpoint; rows after it may be on the topic or not yet. Both sides are
compared by the bytes of key and value, without the registry's prefix; a record written with another version of the
schema is decoded and written again in the current one. The last record of a key counts, and a tombstone deletes it.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import structlog

from producer.config import Config, StreamConfig
from producer.coordination.units import whole_state
from producer.encoding.arrow_avro import AvroEncoder, EncodedColumn
from producer.encoding.schema import crc64_fingerprint
from producer.errors import ConfigError, ProducerError, TransientError
from producer.model import Checkpoint, Dataset, KeyPosition, OffsetPosition, Page, Position, Split
from producer.ownership import refuse_other_query
from producer.parts import identity_of, make_registry, make_source, make_store, schemas_of, transform_of
from producer.protocols import PageReader, Source
from producer.reconcile import Hashes, Places, Side, compare
from producer.retry import attempts
from producer.verified import NAMED, Range, Verified

log = structlog.get_logger("producer")

PREFIX_BYTES = 5  # of the registry's framing
PAGE_ROWS = 20_000
PARTITIONS_AT_ONCE = 3

#: A record's value in the current schema; None where it cannot be read.
_Convert = Callable[[bytes], bytes | None]


@dataclass(slots=True)
class Counts:
    """How far a verification is; live."""

    rows: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of the source: the `split` from `position` on. `needed`: all of them must be on the topic."""

    split: Split
    position: Position | None
    needed: bool


async def verify(config: Config, stream: StreamConfig, counts: Counts) -> Verified:
    """Reads both sides and compares them. ProducerError where one of them cannot be read."""
    from producer.kafka import cluster_id, topic_partitions

    started = time.monotonic()
    async with AsyncExitStack() as stack:
        source, store, registry = make_source(config, stream.source), make_store(config), make_registry(config)
        parts: list[Any] = [source, store, *([registry] if registry else [])]
        for part in parts:
            stack.push_async_callback(part.close)
            await part.start()
        partitions = await topic_partitions(config.kafka, stream.topic)
        if partitions is None:
            raise ConfigError(f"topic {stream.topic!r} does not exist", hint=f"run stream {stream.name!r} first")
        dataset = await source.describe(stream)
        state = await whole_state(store, stream.name)
        if state is not None:
            identity = identity_of(config, stream, dataset, await cluster_id(config.kafka))
            refuse_other_query(state, stream, dataset, identity)
            pieces = [piece for checkpoint in state.checkpoints for piece in _pieces(checkpoint)]
        else:  # nothing says how far a run has come: all of it is expected
            plain = stream.model_copy(update={"mode": "snapshot"})
            pieces = [_Piece(split, None, True) for split in await source.plan(plain, dataset)]
        rows = _Rows(config, source, stream, dataset, pieces, counts)
        records = _Records(config, stream, dataset, rows, registry, partitions, counts)
        ours, theirs = stack.enter_context(Side()), stack.enter_context(Side())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(rows.hash_into(ours))
                group.create_task(records.hash_into(theirs))
        except BaseExceptionGroup as errors:
            raise min(_leaves(errors), key=lambda error: not isinstance(error, ProducerError)) from None
        comparison = await asyncio.to_thread(compare, ours, theirs, NAMED, len(pieces))
        found = Verified(stream.name, stream.topic, comparison, _ranges(pieces, comparison.places))
        if not comparison.agrees:
            await _name(found, rows, records)
        found.seconds = time.monotonic() - started
        return found


class _Rows:
    """The source's side."""

    def __init__(
        self,
        config: Config,
        source: Source,
        stream: StreamConfig,
        dataset: Dataset,
        pieces: Sequence[_Piece],
        counts: Counts,
    ) -> None:
        self._source = source
        # Plain pages: neither a bound on what is young nor a watch for what comes late is of use here.
        self._stream = stream.model_copy(update={"mode": "snapshot"})
        self._dataset = dataset
        self._pieces = pieces
        self._counts = counts
        self._give_up_after_s = config.retry_timeout_s
        self._transform = transform_of(stream, dataset)
        self.columns = dataset.schema if self._transform is None else self._transform.dataset.schema
        self.schemas = schemas_of(stream, dataset)
        self.value = AvroEncoder(self.schemas.value, self.columns)
        self.key = AvroEncoder(self.schemas.key, self.columns) if self.schemas.key is not None else None

    async def hash_into(self, side: Side) -> None:
        """All rows, `max_parallel` pieces side by side."""
        places = asyncio.Semaphore(self._stream.max_parallel)

        async def read(place: int, piece: _Piece) -> None:
            async with places:
                async for page in self._pages(piece):
                    keys, values = await asyncio.to_thread(self._hashes, page)
                    side.add(keys, values, piece.needed, place)
                    self._counts.rows += len(keys)

        # The last that is said of a key counts: what a replay has yet to read says nothing of what was sent before.
        for replays in (True, False):
            async with asyncio.TaskGroup() as group:
                for place, piece in enumerate(self._pieces):
                    if piece.split.is_replay == replays:
                        group.create_task(read(place, piece))

    async def find(self, wanted: set[int]) -> dict[int, tuple[str, bytes]]:
        """The names and values of the rows with these hashes of their keys."""
        found: dict[int, tuple[str, bytes]] = {}
        for piece in self._pieces:
            if not piece.needed:
                continue
            async for page in self._pages(piece):
                if len(found) == len(wanted):
                    return found
                found |= await asyncio.to_thread(self._found, page, wanted)
        return found

    def _found(self, page: Page, wanted: set[int]) -> dict[int, tuple[str, bytes]]:
        keys, _ = self._hashes(page)
        rows = np.flatnonzero(np.isin(keys, list(wanted)))
        values = self.value.encode(page.batch) if len(rows) else None
        return {
            int(keys[row]): (self.key.key_text(page.batch, int(row)) if self.key else "", values.row(int(row)))
            for row in rows
            if values is not None
        }

    async def _pages(self, piece: _Piece) -> AsyncIterator[Page]:
        reader = await self._source.reader(self._stream, self._dataset, piece.split)
        try:
            position = piece.position
            while True:
                page = await self._fetch(reader, position)
                if page.rows:
                    yield page if self._transform is None else self._transform.page(page)
                if page.last or (page.position == position and not page.rows):
                    return
                position = page.position if page.position is not None else position
        finally:
            await reader.close()

    async def _fetch(self, reader: PageReader, position: Position | None) -> Page:
        async for attempt in attempts(give_up_after_s=self._give_up_after_s, before_sleep=_retried):
            with attempt:
                return await reader.fetch(position, PAGE_ROWS)
        raise AssertionError("attempts end with a result or an error")

    def _hashes(self, page: Page) -> tuple[Hashes, Hashes]:
        values = _hash_column(self.value.encode(page.batch))
        return (values if self.key is None else _hash_column(self.key.encode(page.batch))), values


def _pieces(checkpoint: Checkpoint) -> list[_Piece]:
    """What the checkpoint says is on the topic, and the rest of the split."""
    split, position = checkpoint.split, checkpoint.position
    if checkpoint.done and split.upper is not None:
        return [_Piece(split, None, True)]
    rest = _Piece(split, position, False)
    match position:
        case KeyPosition() | OffsetPosition():
            return [_Piece(replace(split, upper=position), None, True), rest]
    return [rest]


def _ranges(pieces: Sequence[_Piece], places: Places) -> list[Range]:
    """A replay's rows are counted where they were read first, so that it has none of its own."""
    return [
        Range(
            piece.split.id,
            piece.position if piece.position is not None else piece.split.lower,
            piece.split.upper,
            int(places.rows[place]),
            int(places.missing[place]),
            int(places.differing[place]),
            int(places.source_checksum[place]),
            int(places.topic_checksum[place]),
        )
        for place, piece in enumerate(pieces)
        if piece.needed and (places.rows[place] or not piece.split.is_replay)
    ]


def _hash_column(column: EncodedColumn) -> Hashes:
    data, ends = bytes(column.data), column.offsets.tolist()
    return np.fromiter((hash(data[start:end]) for start, end in itertools.pairwise(ends)), np.int64, len(column))


class _Records:
    """The topic's side."""

    def __init__(
        self,
        config: Config,
        stream: StreamConfig,
        dataset: Dataset,
        rows: _Rows,
        registry: Any,
        partitions: int,
        counts: Counts,
    ) -> None:
        self._config = config
        self._topic = stream.topic
        self._schemas = rows.schemas
        self._registry = registry
        self._partitions = partitions
        self._counts = counts
        self._prefix = PREFIX_BYTES if registry is not None else 0
        self._fingerprint = crc64_fingerprint(rows.schemas.value)
        #: by a value's prefix or its header's fingerprint; None: it is in the current schema
        self._versions: dict[bytes, _Convert | None] = {}
        self._published: dict[bytes, Any] | None = None

    async def hash_into(self, side: Side) -> None:
        """All records, some partitions side by side; those of one partition in their order."""

        async def take(batch: Sequence[Any]) -> None:
            values = await self._values(batch)
            count = len(batch)
            hashes = np.fromiter((hash(value) for value in values), np.int64, count)
            keys = hashes if self._schemas.key is None else np.fromiter(self._key_hashes(batch), np.int64, count)
            tombstones = np.fromiter((value is None for value in values), np.bool_, count)
            hashes[tombstones] = 0
            side.add(keys, hashes, tombstones)
            self._counts.records += count

        await self._read(take)

    async def find(self, wanted: set[int]) -> dict[int, tuple[str, bytes | None]]:
        """The names and last values of the keys with these hashes."""
        found: dict[int, tuple[str, bytes | None]] = {}

        async def take(batch: Sequence[Any]) -> None:
            hits = [index for index, key in enumerate(self._key_hashes(batch)) if key in wanted]
            if hits:
                values = await self._values(batch)
                for index in hits:
                    key = batch[index].key
                    found[hash(key[self._prefix :])] = (self._key_text(key), values[index])

        if self._schemas.key is not None:
            await self._read(take)
        return found

    async def _read(self, take: Callable[[Sequence[Any]], Coroutine[Any, Any, None]]) -> None:
        from aiokafka.errors import KafkaError

        from producer.kafka import client_options, translate
        from producer.proof import committed_records

        places = asyncio.Semaphore(PARTITIONS_AT_ONCE)

        async def read(partition: int) -> None:
            async with places:
                async for batch in committed_records(client_options(self._config.kafka), self._topic, partition):
                    await take(batch)

        try:
            async with asyncio.TaskGroup() as group:
                for partition in range(self._partitions):
                    group.create_task(read(partition))
        except BaseExceptionGroup as errors:
            first = next(_leaves(errors))
            if isinstance(first, KafkaError | OSError):  # TimeoutError is an OSError
                raise translate(first, self._config.kafka, topic=self._topic, doing="read") from None
            raise first from None

    def _key_hashes(self, batch: Iterable[Any]) -> Iterable[int]:
        start = self._prefix
        return (hash((record.key or b"")[start:]) for record in batch)

    async def _values(self, batch: Sequence[Any]) -> list[bytes | None]:
        """The values in the current schema; as they are where that cannot be had, so that they differ."""
        versions = [self._version(record) for record in batch]
        for version in set(versions) - self._versions.keys():
            self._versions[version] = await self._learn(version)
        if all(convert is None for convert in self._versions.values()):
            start = self._prefix
            return [None if record.value is None else record.value[start:] for record in batch]
        return [self._current(record.value, version) for record, version in zip(batch, versions, strict=True)]

    def _version(self, record: Any) -> bytes:
        if record.value is None:
            return self._fingerprint
        if self._prefix:
            return bytes(record.value[:PREFIX_BYTES])
        for name, value in record.headers:
            if name == "avro.fingerprint":
                return bytes(value)
        return self._fingerprint

    def _current(self, value: bytes | None, version: bytes) -> bytes | None:
        if value is None:
            return None
        convert = self._versions[version]
        if convert is None:
            return value[self._prefix :]
        converted = convert(value[self._prefix :])
        return value if converted is None else converted

    async def _learn(self, version: bytes) -> _Convert | None:
        if version == self._fingerprint:
            return None
        schema: Any = None
        if self._prefix:
            if version[:1] == b"\0" and len(version) == PREFIX_BYTES:
                schema = await self._registry.schema(int.from_bytes(version[1:], "big"))
        else:
            schema = (await self._schemas_published()).get(version)
        if schema is None:
            return lambda value: None
        if crc64_fingerprint(schema) == self._fingerprint:
            return None
        return _converter(schema, self._schemas.value)

    async def _schemas_published(self) -> dict[bytes, Any]:
        if self._published is None:
            from producer.kafka import client_options, topic_partitions
            from producer.proof import published_schemas

            topic = self._config.state_topic
            there = await topic_partitions(self._config.kafka, topic)
            self._published = await published_schemas(client_options(self._config.kafka), topic) if there else {}
        return self._published

    def _key_text(self, key: bytes | None) -> str:
        values = _read_datum(self._schemas.key, self._schemas.key, (key or b"")[self._prefix :])
        if values is None:
            return f"(not readable: {(key or b'').hex()[:60]})"
        return ", ".join(f"{name}={value}" for name, value in values.items())


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _retried(error: TransientError, wait_s: float) -> None:
    log.warning("retrying", error=str(error), wait_s=round(wait_s, 1))


def _read_datum(writer: Any, reader: Any, data: bytes) -> dict[str, Any] | None:
    """The record, by fastavro; None where its bytes are not such a record."""
    import fastavro

    try:
        found: Any = fastavro.schemaless_reader(io.BytesIO(data), writer, reader)
    except (ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, ArithmeticError):
        return None
    except fastavro.schema.SchemaParseException:
        return None
    return found if isinstance(found, dict) else None


def _converter(writer: Any, reader: Any) -> _Convert:
    import fastavro
    from fastavro.read import SchemaResolutionError

    def convert(value: bytes) -> bytes | None:
        try:
            record = _read_datum(writer, reader, value)
            if record is None:
                return None
            out = io.BytesIO()
            fastavro.schemaless_writer(out, reader, record)
        except (SchemaResolutionError, ValueError, TypeError):
            return None
        return out.getvalue()

    return convert


# --- naming --------------------------------------------------------------------------------------------------------


async def _name(found: Verified, rows: _Rows, records: _Records) -> None:
    """Reads both sides once more for the keys that differ: a hash does not tell what it was made of."""
    comparison = found.comparison
    ours = await rows.find(comparison.missing_keys | comparison.differing_keys)
    theirs = await records.find(comparison.unexpected_keys | comparison.differing_keys)
    found.missing = sorted(ours[key][0] for key in comparison.missing_keys & ours.keys())
    found.unexpected = sorted(theirs[key][0] for key in comparison.unexpected_keys & theirs.keys())
    found.differing = sorted(
        f"{ours[key][0]}{_fields(rows.schemas.value, ours[key][1], theirs[key][1])}"
        for key in comparison.differing_keys & ours.keys() & theirs.keys()
    )


def _fields(schema: Any, ours: bytes, theirs: bytes | None) -> str:
    """Which fields differ (never their values), as `` (name, price)``."""
    left, right = _read_datum(schema, schema, ours), _read_datum(schema, schema, theirs or b"")
    if left is None or right is None:
        return " (not readable)"
    names: Mapping[str, Any] = {name: None for name in left if repr(left[name]) != repr(right.get(name))}
    return f" ({', '.join(names)})"
