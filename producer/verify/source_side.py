"""The source's side: all rows of a stream, read once by a scan, as hashes of the Avro that a run would send."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from producer.config import Config, StreamConfig
from producer.encoding.arrow_avro import AvroEncoder, EncodedColumn
from producer.encoding.shown import shown
from producer.errors import EncodeError, TransientError
from producer.model import Dataset, Page, Position, RejectedRow, ScannedPage
from producer.parts import Schemas, transform_of
from producer.protocols import NullKeySource, PageReader, ScanningSource, Source
from producer.retry import attempts
from producer.salvage import RowError, other_rows, salvage
from producer.verify.compare import Comparison, Hashes, Kind, Places, Side
from producer.verify.letters import DeadLetterKeys
from producer.verify.ranges import KNOWN, Piece, ReadRanges, ScanRanges
from producer.verify.report import NAMED

log = structlog.get_logger("producer")

PAGE_ROWS = 20_000
#: After so many broken scans the time for retries is no longer counted from the last rows that came.
MOST_BREAKS = 5

T = TypeVar("T")
_PlaceNumbers = npt.NDArray[np.uint32]


@dataclass(slots=True)
class Counts:
    """How far a verification is; live."""

    rows: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of the source with their places; those that the source cannot give apart."""

    batch: pa.RecordBatch
    places: _PlaceNumbers
    rejected: Sequence[tuple[int, RejectedRow]] = ()


class SourceSide:
    """Reads the rows of `pieces`, and of no piece. A row that has no Avro form is set aside, and named."""

    def __init__(
        self,
        config: Config,
        source: Source,
        stream: StreamConfig,
        dataset: Dataset,
        pieces: Sequence[Piece],
        letters: DeadLetterKeys,
        schemas: Schemas,
        counts: Counts,
    ) -> None:
        self._source = source
        self._on_bad_record = stream.on_bad_record
        # Plain pages: a bound on young rows and a watch for late ones are of no use here, and bad rows are set aside.
        self._stream = stream.model_copy(update={"mode": "snapshot", "on_bad_record": "dead_letter"})
        self._dataset = dataset
        self._letters = letters
        self._counts = counts
        self._give_up_after_s = config.retry_timeout_s
        self._progress = time.monotonic()
        self._pieces = pieces
        self._scanned = ScanRanges(pieces)
        self.unscannable = ""  # why the rows were read by the source's page readers after all
        self.ranges: ScanRanges | ReadRanges = self._scanned if self._scan() is not None else ReadRanges(pieces)
        self._transform = transform_of(stream, dataset)
        columns = dataset.schema if self._transform is None else self._transform.dataset.schema
        self.schemas = schemas
        self.value = AvroEncoder(self.schemas.value, columns)
        self.key = AvroEncoder(self.schemas.key, columns) if self.schemas.key is not None else None
        counted = stream.traversal == "OFFSET"
        self._never_null = tuple(dict.fromkeys(dataset.key if counted else (*dataset.key, *dataset.order)))
        self._begin()

    def _begin(self) -> None:
        self._scanned.begin()
        self._counts.rows = 0
        self._null_keys: Counter[str] = Counter()
        self._bad: Counter[int] = Counter()  # by place
        self._bad_in_letters: Counter[int] = Counter()
        self._bad_names: defaultdict[int, list[str]] = defaultdict(list)

    # --- reading ---------------------------------------------------------------------------------------------------

    async def hash_into(self, side: Side) -> None:
        """Reads all rows. A scan that breaks is started again."""
        breaks = 0

        def told(error: TransientError, wait_s: float) -> None:
            nonlocal breaks
            breaks += 1
            log.warning("retrying", error=str(error), wait_s=round(wait_s, 1))

        def progressed() -> float:
            return self._progress if breaks < MOST_BREAKS else 0.0

        async for attempt in attempts(give_up_after_s=self._give_up_after_s, before_sleep=told, progressed=progressed):
            with attempt:
                try:
                    await self._read(side)
                except EncodeError as error:  # the database cannot compute a row, and tells nothing of the rest
                    if self.unscannable:
                        raise
                    self.unscannable = error.message
                    self.ranges = ReadRanges(self._pieces)
                    await self._read(side)

    async def _read(self, side: Side) -> None:
        side.clear()
        self._begin()
        async with aclosing(_ahead(self._chunks())) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(self._take, side, chunk)
                self._progress = time.monotonic()

    def _chunks(self) -> AsyncGenerator[_Chunk]:
        return self._scanned_chunks() if self.ranges is self._scanned else self._read_chunks()

    def _scan(self) -> AsyncGenerator[ScannedPage] | None:
        if not isinstance(self._source, ScanningSource):
            return None
        ranges = self._scanned
        return self._source.scan(self._stream, self._dataset, ranges.positions, ranges.replays)

    async def _scanned_chunks(self) -> AsyncGenerator[_Chunk]:
        pages = self._scan()
        assert pages is not None
        async with aclosing(pages):
            async for page in pages:
                count = page.batch.num_rows + len(page.rejected)
                places = self._scanned.number(count, page.marks)
                good = places[other_rows(count, [row for row, _ in page.rejected])]
                if page.replayed is not None:
                    good += page.replayed.to_numpy(zero_copy_only=False)
                yield _Chunk(page.batch, good, [(int(places[row]), one) for row, one in page.rejected])

    async def _read_chunks(self) -> AsyncGenerator[_Chunk]:
        """By the source's page readers, for one that cannot scan."""
        # The last row of a key counts: what a replay has yet to read says nothing of what was sent before.
        numbered = sorted(enumerate(self.ranges.pieces), key=lambda item: not item[1].split.is_replay)
        for number, piece in numbered:
            reader = await self._source.reader(self._stream, self._dataset, piece.split)
            try:
                position = piece.position
                while True:
                    page = await self._fetch(reader, position)
                    places = np.full(page.batch.num_rows, 1 + number, np.uint32)
                    yield _Chunk(page.batch, places, [(1 + number, row) for row in page.rejected])
                    if page.last or (page.position == position and not page.rows):
                        break
                    position = page.position if page.position is not None else position
            finally:
                await reader.close()
        if isinstance(self._source, NullKeySource):  # no page has rows with NULL in their key
            self._null_keys.update((await self._source.null_keys(self._stream, 0)).columns)

    async def _fetch(self, reader: PageReader, position: Position | None) -> Page:
        async for attempt in attempts(give_up_after_s=self._give_up_after_s, before_sleep=_retried):
            with attempt:
                return await reader.fetch(position, PAGE_ROWS)
        raise AssertionError("attempts end with a result or an error")

    # --- hashing ---------------------------------------------------------------------------------------------------

    def _take(self, side: Side, chunk: _Chunk) -> None:
        """Adds the rows of a chunk to the side, or notes why they are not sent."""
        batch, places = self._without_null_keys(side, chunk)
        flags = self._letters.flags(self._dataset, batch)
        found, bad = salvage(batch.num_rows, lambda start, stop: self._hashes(batch.slice(start, stop - start)))
        rows = other_rows(batch.num_rows, [row for row, _ in bad])
        keys, values = (np.concatenate([np.empty(0, np.int64), *(piece[part] for piece in found)]) for part in range(2))
        side.add(keys, values, flags if isinstance(flags, bool) else flags[rows], places[rows])
        for row, error in bad:
            in_letters = bool(flags[row]) if isinstance(flags, np.ndarray) else False
            self._set_aside(int(places[row]), self._name(batch.slice(row, 1), error), in_letters=in_letters)
            self._know(side, batch.slice(row, 1))
        for place, rejected in chunk.rejected:
            self._take_rejected(side, place, rejected)
        self._counts.rows += len(chunk.places) + len(chunk.rejected)

    def _without_null_keys(self, side: Side, chunk: _Chunk) -> tuple[pa.RecordBatch, _PlaceNumbers]:
        """The rows that have values in all columns of the key and order; counts the others, which no run sends."""
        batch, places = chunk.batch, chunk.places
        for name in self._never_null:
            column = batch.column(name)
            if column.null_count:
                null = column.is_null()
                self._null_keys[name] += column.null_count
                self._know(side, batch.filter(null))
                batch, places = batch.filter(column.is_valid()), places[~null.to_numpy(zero_copy_only=False)]
        return batch, places

    def _take_rejected(self, side: Side, place: int, rejected: RejectedRow) -> None:
        columns = rejected.columns
        null = next((n for n in self._never_null if n in columns.schema.names and columns.column(n).null_count), None)
        if null is not None:
            self._null_keys[null] += 1
            return
        name = self._rejected_name(rejected)
        self._set_aside(place, name, in_letters=self._letters.has(self._dataset, rejected))
        self._know(side, columns)

    def _set_aside(self, place: int, name: str, *, in_letters: bool) -> None:
        if in_letters:
            self._bad_in_letters[place] += 1
            return
        self._bad[place] += 1
        if len(self._bad_names[place]) < NAMED:
            self._bad_names[place].append(name)

    def _know(self, side: Side, batch: pa.RecordBatch) -> None:
        """Adds the keys of rows that are not sent as they are: an older value on the topic is not without a row."""
        if self.key is None or not set(self._dataset.key) <= set(batch.schema.names):
            return
        keys = batch.select(list(self._dataset.key))
        if self._transform is not None:
            nothing = pa.RecordBatch.from_pylist([], self._dataset.schema)
            with suppress(EncodeError):
                keys = self._transform.page(Page(nothing, None, tombstones=keys)).tombstones
        encoder = AvroEncoder(self.schemas.key, keys.schema)
        found, _ = salvage(
            keys.num_rows, lambda start, stop: _hash_column(encoder.encode(keys.slice(start, stop - start)))
        )
        for hashes in found:
            side.add(hashes, np.zeros(len(hashes), np.int64), False, KNOWN)

    def _hashes(self, batch: pa.RecordBatch) -> tuple[Hashes, Hashes]:
        leaving = self._leaving(batch)
        values = _hash_column(self.value.encode(leaving))
        return (values if self.key is None else _hash_column(self.key.encode(leaving))), values

    def _leaving(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch if self._transform is None else self._transform.page(Page(batch, None)).batch

    # --- naming ----------------------------------------------------------------------------------------------------

    def _name(self, row: pa.RecordBatch, error: RowError) -> str:
        """A row that has no Avro form, by its key, with the field and the reason."""
        field = error.field if isinstance(error, EncodeError) else ""
        reason = error.message.removeprefix(f"the record with key {error.key}: ").removeprefix(f"row {error.row}: ")
        return f"{self._key_name(row)} ({reason if field in reason else f'field {field}: {reason}'})"

    def _rejected_name(self, rejected: RejectedRow) -> str:
        """The same for a row that the source cannot give. Its words may quote a value, which is masked or dropped."""
        error = rejected.error
        reason = error.message.removeprefix(f"column {error.field!r}, row with key {error.key}: ")
        if error.field in self._concealed or not self._concealed.isdisjoint(self._dataset.key):
            reason = "a value that is not of its type"
        return f"{self._key_name(rejected.columns, rejected.others)} (field {error.field}: {reason})"

    def _key_name(self, row: pa.RecordBatch, others: Mapping[str, str] | None = None) -> str:
        if not self._concealed.isdisjoint(self._dataset.key):
            return "(masked key)"
        values = dict(others or {}) | {name: shown(row.column(name)[0]) for name in row.schema.names}
        names = self._dataset.key or self._dataset.order
        return ", ".join(f"{name}={values[name]}" for name in names if name in values)

    @property
    def _concealed(self) -> frozenset[str]:
        return frozenset() if self._transform is None else self._transform.concealed

    def settle(self, found: Comparison, places: Places) -> list[str]:
        """Adds the rows that were set aside to what was found, and names those that are missing.

        With dead letters such a row may still be on its way to them. Otherwise no run sends it, however far it comes.
        """
        found.null_keys = dict(self._null_keys)
        names: list[str] = []
        for place, count in self._bad_in_letters.items():
            found.dead_lettered += count if places.kinds[place] != Kind.KNOWN else 0
        for place, count in self._bad.items():
            kind, number = places.kinds[place], places.range_of[place]
            if kind == Kind.PENDING and self._on_bad_record == "dead_letter":
                found.pending += count
            elif kind != Kind.KNOWN:
                found.missing += count
                found.ranges.rows[number] += count
                found.ranges.missing[number] += count
                names += self._bad_names[place]
        return sorted(names)

    async def find(self, wanted: set[int]) -> dict[int, tuple[str, bytes]]:
        """The names and values of the rows with these hashes of their keys."""
        found: dict[int, tuple[str, bytes]] = {}
        if not wanted:
            return found
        async for attempt in attempts(give_up_after_s=self._give_up_after_s, before_sleep=_retried):
            with attempt:
                self._scanned.begin()
                async with aclosing(_ahead(self._chunks())) as chunks:
                    async for chunk in chunks:
                        found |= await asyncio.to_thread(self._found, chunk.batch, wanted)
                        if len(found) == len(wanted):
                            break
        return found

    def _found(self, batch: pa.RecordBatch, wanted: set[int]) -> dict[int, tuple[str, bytes]]:
        found, bad = salvage(batch.num_rows, lambda start, stop: self._hashes(batch.slice(start, stop - start)))
        keys = np.concatenate([np.empty(0, np.int64), *(piece[0] for piece in found)])
        rows = other_rows(batch.num_rows, [row for row, _ in bad])
        hits: dict[int, tuple[str, bytes]] = {}
        for hit in np.flatnonzero(np.isin(keys, list(wanted))):
            leaving = self._leaving(batch.slice(int(rows[hit]), 1))
            name = self.key.key_text(leaving, 0) if self.key else ""
            hits[int(keys[hit])] = (name, self.value.encode(leaving).row(0))
        return hits


def _hash_column(column: EncodedColumn) -> Hashes:
    data, ends = bytes(column.data), column.offsets.tolist()
    return np.fromiter((hash(data[start:end]) for start, end in itertools.pairwise(ends)), np.int64, len(column))


def _retried(error: TransientError, wait_s: float) -> None:
    log.warning("retrying", error=str(error), wait_s=round(wait_s, 1))


async def _ahead(items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The items, each of them fetched while the one before it is used."""

    async def fetch() -> T | None:
        return await anext(items, None)

    async with aclosing(items):
        coming = asyncio.create_task(fetch())
        try:
            while (item := await coming) is not None:
                coming = asyncio.create_task(fetch())
                yield item
        finally:
            coming.cancel()
            await asyncio.wait({coming})
