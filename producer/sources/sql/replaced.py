"""Whether a table is still the one that was read: not made anew, emptied and filled again, or restarted in its numbers.

A sign alone (another storage, a sequence that went back) is no loss. It becomes one where rows stand at or below the
position, which a stream never reads again. Where there are none yet, their range is watched.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa
import structlog

from producer.config import StreamConfig
from producer.errors import ConfigError, EncodeError, TableReplacedError, TransientError
from producer.model import Checkpoint, Json, KeyPosition, OffsetPosition, Page, Position, Split
from producer.protocols import PageReader, RememberingReader
from producer.sources.sql import keyset
from producer.sources.sql.generation import (
    TABLE,
    Generation,
    Record,
    Sample,
    Watch,
    generation_of,
    record_from_json,
    record_to_json,
    row_checksums,
    sample_of,
)
from producer.sources.sql.keyset import Selection
from producer.sources.sql.splits import count
from producer.sources.sql.table import Column, Database, Query, Session

log = structlog.get_logger("producer")

#: So many keys next to the position, and at the beginning, are looked at.
_KEYS = 200
#: So many rows are asked how old they are, next to the position and at the beginning.
_AGES = 1000
_AGE = Column("kept", pa.field("kept", pa.int64(), nullable=False), "", "bigint")


@dataclass(frozen=True, slots=True)
class Place:
    """Up to where a split has been read, or is planned to be. `upper` is None where rows are counted.

    `lower` is where the split begins, `read` the key of its last row that was read. `holes` are the ids below, which
    may still appear: first and last.
    """

    lower: KeyPosition | None
    upper: KeyPosition | None
    read: KeyPosition | None
    follows: bool
    holes: Sequence[tuple[int, int]] = ()


def place_of(split: Split, position: Position | None, follows: bool, detail: Mapping[str, Json] | None) -> Place | None:
    """None where nothing has been read, so that nothing can be missed."""
    if isinstance(position, OffsetPosition):
        return Place(None, None, None, False) if position.rows else None
    upper = position or split.lower if follows and split.is_open else split.upper or position
    if not isinstance(upper, KeyPosition) or (position is None and split.upper is None and split.lower is None):
        return None
    holes = [(int(first), int(last)) for first, last, *_ in (detail or {}).get("holes", ())]
    lower = split.lower if isinstance(split.lower, KeyPosition) else None
    read = position if isinstance(position, KeyPosition) else None
    return Place(lower, upper, read, follows and split.is_open, holes)


class Judge:
    """Compares generations of one stream's table. It asks the database only where there is a sign."""

    def __init__(self, stream: StreamConfig, selection: Selection, database: Database, session: Session) -> None:
        self._stream = stream
        self._selection = selection
        self._database = database
        self._session = session

    async def compare(self, record: Record, now: Generation, place: Place | None) -> Record:
        """The record to go on with. TableReplacedError where rows would be left out."""
        if place is None:
            return Record(now, record.rows)
        known = await self._compare_parts(record, now, place)
        return await self._compare_numbers(known, record.generation.last, now, place)

    async def close(self) -> None:
        await self._session.close()

    async def compare_rows(self, record: Record, place: Place | None) -> None:
        """Where there is no sign: a file that was overwritten, or a table that was emptied without a trace, has other
        rows. TableReplacedError where there are more of them than were read; else the log says it, since an update of
        all rows looks the same."""
        if place is None or self.tells_ages or await self._has_samples(record.samples):
            return
        if await self._has_more(record.rows, place):
            raise self._replaced("it has other rows than those that were read, and more of them")
        log.warning(
            "the rows that were read are not there as they were: was the table replaced?",
            stream=self._stream.name,
            hint="producer verify tells which rows are not on the topic",
        )

    async def first(self, now: Generation) -> Record:
        """Of a table that is about to be read: with its first and last row, where the database knows no ages."""
        record = Record(now)
        for newest in () if self.tells_ages else (False, True):
            query = self._query("", self._selection.columns, None, None, 1, newest=newest)
            with contextlib.suppress(ConfigError, EncodeError):  # what cannot be read is refused elsewhere
                rows = await self._session.fetch(replace(query, salvage=True))
                if rows.batch.num_rows:
                    checksums = row_checksums(rows.batch, 0, self._selection.order_names)
                    record = record.read(now, 0, Sample(KeyPosition(rows.key_at(0)), checksums))
        return record

    async def look(self, record: Record) -> None:
        """TableReplacedError where a row has appeared in a range that was empty after a sign."""
        for watch in record.watches:
            keys = await self._keys(watch.part, watch.lower, watch.upper, ())
            if keys:
                raise self._replaced("it was emptied or restarted, and has rows at or below the position again")

    # --- storages --------------------------------------------------------------------------------------------------

    async def _compare_parts(self, record: Record, now: Generation, place: Place) -> Record:
        before = record.generation.parts
        if before == now.parts:
            return record
        other = not set(before) & set(now.parts)
        for part in (part for part in now.parts if before.get(part) != now.parts[part]):
            asked = part if len(now.parts) > 1 else ""
            if part in before and await self._is_kept(record, part, asked, before[part], now.parts[part], place):
                continue
            if await self._keys(asked, None, place.upper, place.holes):
                raise self._replaced(_what(other, part in before, len(now.parts)))
            if other or part in before:
                log.warning(
                    "the table was emptied or made anew: it has no rows up to the position, which stays",
                    stream=self._stream.name,
                )
                record = record.watching(Watch(asked, None, place.upper))
        gone = set(before) - set(now.parts)
        if gone and not other:
            log.info("partitions are gone from the table", stream=self._stream.name, partitions=len(gone))
        return replace(record, generation=now)

    async def _is_kept(self, record: Record, part: str, asked: str, before: str, now: str, place: Place) -> bool:
        """Whether the same rows are there in another storage."""
        kept = None
        if self.tells_ages:
            kept = self._database.kept(part, record.generation.horizon, rewritten=_form(before) != _form(now))
        if kept is not None:
            return await self._has_kept(asked, kept, place)
        return await self._has_samples(record.samples) and not await self._has_more(record.rows, place)

    @property
    def tells_ages(self) -> bool:
        """Whether the database knows by which transaction a row was written: samples are not needed then."""
        return self._database.inserted_since(self._selection.table, 0) is not None

    async def _has_kept(self, part: str, condition: str, place: Place) -> bool:
        column = replace(_AGE, select=f"(CASE WHEN {condition} THEN 1 ELSE 0 END)::bigint")
        for newest in (True, False):
            query = self._query(part, (column,), None, place.upper, _AGES, newest=newest)
            if any(age for (age,) in await self._session.keys(query)):
                return True
        return False

    async def _has_more(self, rows: int | None, place: Place) -> bool:
        """Whether there are more rows now than were read; False where they are too many to be counted in time."""
        if rows is None or place.read is None:
            return False
        ends = (None if place.lower is None else place.lower.values, place.read.values)
        try:
            return await count(self._session, self._database, self._selection, *ends) > rows
        except TransientError as error:
            log.warning("the rows of an altered table cannot be counted", stream=self._stream.name, reason=str(error))
            return False

    async def _has_samples(self, samples: Sequence[Sample]) -> bool:
        """Whether a row that was read is there as it was; True where none was remembered, so that nothing is known."""
        order = self._selection.order_names
        for sample in reversed(samples):
            query = self._query("", self._selection.columns, None, sample.key, 1, newest=True)
            rows = await self._session.fetch(replace(query, salvage=True))
            if rows.count != 1 or rows.key_at(0) != sample.key.values or not rows.batch.num_rows:
                continue
            if sample.matches(row_checksums(rows.batch, 0, order)):
                return True
        return not samples

    # --- numbers ---------------------------------------------------------------------------------------------------

    async def _compare_numbers(self, record: Record, last: Mapping[str, int], now: Generation, place: Place) -> Record:
        back = [column for column, before in last.items() if now.last.get(column, before) < before]
        reached = None if place.upper is None else place.upper.values[0]
        if place.follows and len(self._selection.order) == 1 and isinstance(reached, int):
            column = self._selection.order_names[0]
            if column in back and now.last[column] < reached:
                raise self._replaced(
                    f"its numbers have been set back: the next {column} is after {now.last[column]}, "
                    f"below the position {reached}"
                )
            greatest = now.greatest.get(column, reached)
            if greatest < reached and not _covers(record.watches, greatest):
                return self._watch_gap(record, greatest, place.upper)
        if back and record.samples and not self.tells_ages and not await self._has_samples(record.samples):
            if await self._keys("", None, place.upper, ()):
                raise self._replaced("it was emptied and filled again")
            return record.watching(Watch("", None, place.upper))
        return record

    def _watch_gap(self, record: Record, greatest: int, upper: Position | None) -> Record:
        log.warning(
            "the newest rows are gone, and their numbers are used again: rows that get them are not read",
            stream=self._stream.name,
            greatest=greatest,
            hint="declare the column AUTOINCREMENT",
        )
        return record.watching(Watch("", KeyPosition((greatest,)), upper))

    # --- queries ---------------------------------------------------------------------------------------------------

    async def _keys(
        self, part: str, lower: Position | None, upper: Position | None, holes: Sequence[tuple[int, int]]
    ) -> bool:
        """Whether there are rows with `lower` < key <= `upper`, other than those that come late to a hole."""
        columns = self._selection.order_columns
        if not holes:
            return bool(await self._session.keys(self._query(part, columns, lower, upper, 1, newest=True)))
        for newest in (True, False):
            for (key,) in await self._session.keys(self._query(part, columns, lower, upper, _KEYS, newest=newest)):
                if not any(first <= int(str(key)) <= last for first, last in holes):
                    return True
        return False

    def _query(
        self,
        part: str,
        columns: tuple[Column, ...],
        lower: Position | None,
        upper: Position | None,
        limit: int,
        *,
        newest: bool,
    ) -> Query:
        selection = self._selection
        if part:
            selection = keyset.also(selection, f"t.tableoid = {int(part):d}")
        return keyset.nearest_query(
            selection,
            columns,
            lower.values if isinstance(lower, KeyPosition) else None,
            upper.values if isinstance(upper, KeyPosition) else None,
            limit,
            newest=newest,
            mark=self._database.mark,
            row_values=self._database.row_values,
        )

    def _replaced(self, what: str) -> TableReplacedError:
        name, table = self._stream.name, ".".join(self._selection.table.path)
        return TableReplacedError(
            f"stream {name!r}: table {table!r} has been replaced: {what}; rows up to the position would never be sent",
            hint=f"to send all rows: producer checkpoint reset CONFIG {name} (or on_replaced: restart); to continue "
            f"after the position: producer checkpoint adopt CONFIG {name} (or on_replaced: continue)",
        )


class GenerationReader(PageReader, Protocol):
    """A reader of plain pages that knows of which generation the last one was."""

    generation: str


class GuardedReader:
    """Reads by another reader, and compares the table's generation with each page; see `RememberingReader`."""

    def __init__(
        self,
        reader: PageReader,
        pages: GenerationReader,
        order: Sequence[str],
        split: Split,
        judge: Judge,
        *,
        follows: bool,
    ) -> None:
        self._reader = reader
        self._pages = pages
        self._order = order
        self._split = split
        self._judge = judge
        self._follows = follows
        self._record: Record | None = None
        self._written: tuple[Record | None, Json] = (None, None)

    def restore(self, detail: Mapping[str, Json] | None) -> None:
        record, rest = split_detail(detail)
        self._record = record
        self._written = (None, None)
        if isinstance(self._reader, RememberingReader):
            self._reader.restore(rest)

    async def close(self) -> None:
        try:
            await self._reader.close()
        finally:
            await self._judge.close()

    async def fetch(self, position: Position | None, limit: int) -> Page:
        page = await self._reader.fetch(position, limit)
        now = generation_of(self._pages.generation)
        if now is not None and page.rows and self._may_be_older(now):
            page = await self._reader.fetch(position, limit)
            now = generation_of(self._pages.generation)
        if now is not None:
            await self._compare(page, position, now)
        if self._record is None:
            return page
        if self._written[0] is not self._record:
            self._written = (self._record, record_to_json(self._record))
        return replace(page, detail={**(page.detail or {}), TABLE: self._written[1]})

    def _may_be_older(self, now: Generation) -> bool:
        """Whether a page's rows may be of the table before this one: MariaDB is asked for the generation after them."""
        if self._record is None or self._judge.tells_ages:
            return False
        return self._record.generation.parts != now.parts

    async def _compare(self, page: Page, position: Position | None, now: Generation) -> None:
        """Nothing of a page is given out before."""
        record = self._record or Record(now, None if position is not None else 0)
        now = now.knowing(record.generation)
        if differs(record.generation, now):
            place = place_of(self._split, position, self._follows, page.detail)
            record = await self._judge.compare(record, now, place)
        if record.watches and page.last:
            await self._judge.look(record)
        if page.rows:
            sample = None if self._judge.tells_ages else sample_of(page.batch, page.position, self._order)
            record = record.read(now, page.rows, sample)
        if record != self._record:
            self._record = record


def differs(before: Generation, now: Generation) -> bool:
    """Whether there is any sign, or a number that needs a look."""
    if before.parts != now.parts or now.greatest:
        return True
    return any(now.last.get(column, last) < last for column, last in before.last.items())


def split_detail(detail: Mapping[str, Json] | None) -> tuple[Record | None, Mapping[str, Json] | None]:
    """The record of the table in a checkpoint's detail, and what else is in that (None: nothing)."""
    if detail is None or TABLE not in detail:
        return None, detail or None
    rest = {name: value for name, value in detail.items() if name != TABLE}
    return record_from_json(detail[TABLE]), rest or None


async def refuse_replaced(judge: Judge, now: Generation, follows: bool, checkpoints: Sequence[Checkpoint]) -> None:
    """TableReplacedError where the table is no longer the one of any of the checkpoints."""
    for checkpoint in checkpoints:
        record, rest = split_detail(checkpoint.detail)
        if record is None or checkpoint.split.is_replay:
            continue
        position = checkpoint.position
        if record.watches:
            await judge.look(record)
        place = place_of(checkpoint.split, position, follows, rest)
        if differs(record.generation, now):
            await judge.compare(record, now, place)
        if record.generation.parts == now.parts:
            await judge.compare_rows(record, place)


def _covers(watches: Sequence[Watch], greatest: int) -> bool:
    """Whether a watch begins at or below it."""
    return any(isinstance(w.lower, KeyPosition) and int(str(w.lower.values[0])) <= greatest for w in watches)


def _form(stored: str) -> str:
    """What kind of storage it is, without its number."""
    return re.sub(r"^\d+", "", stored)


def _what(other: bool, known: bool, parts: int) -> str:
    if other:
        return "it was dropped and made anew, or another one has got its name"
    if known:
        return "a partition was emptied and filled again" if parts > 1 else "it was emptied and filled again"
    return "a partition was attached that has rows at or below the position"
