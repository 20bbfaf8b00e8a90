"""Owns the reading of a followed split: the pages after its position, and what commits late below it.

What may still appear below the position stands in a `producer.holes.Ledger`, in the checkpoint beside the position. At
each poll the missing ids are asked for again, and ranges of keys are looked through by transaction number, where the
database has these, when all transactions of their time have ended, and some times more. Rows found so may come a second
time; none is lost before `late_commit_s` have passed.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import structlog

from producer import holes
from producer.config import StreamConfig
from producer.config.zone import find_zone
from producer.errors import ConfigError
from producer.holes import GREATEST_ID, LEAST_ID, Hole, Ledger, Passage, Snapshot
from producer.model import Json, KeyPosition, Page, Position, Split
from producer.protocols import PageReader
from producer.sources.sql import keyset, watched
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column, Database, Query, Rows, Session, WriterZone
from producer.traversal import key_values, start_of
from producer.zones import lowest_offsets

log = structlog.get_logger("producer")

#: The newest so many holes are kept: about 60 kB of a checkpoint.
MOST_HOLES = 2000
HOLES_A_QUERY = 500
#: So many of the greatest ids are looked at for holes when a stream is planned.
PLANNED_IDS = 100_000
#: Rows of the index that one look for late commits passes.
STEP_ROWS = 100_000
#: Passages of so many seconds may be one; who was given a key in them has begun a transaction so many seconds later.
PASSAGE_S = 10.0
#: So many passages are kept apart: about 25 kB of a checkpoint.
MOST_PASSAGES = 200


def numbered(selection: Selection) -> bool:
    """Whether the key is one integer, so that missing ones can be told."""
    columns = selection.order_columns
    return len(columns) == 1 and pa.types.is_integer(columns[0].field.type)


def is_time(column: Column) -> bool:
    return bool(pa.types.is_timestamp(column.field.type))


def is_local_time(column: Column) -> bool:
    """Whether the column's times are without a zone."""
    return is_time(column) and column.field.type.tz is None


async def assumed_zone(selection: Selection, database: Database, stream: StreamConfig) -> str:
    """The zone in which the times that order a followed stream are taken to be written; '' where that is known.
    ConfigError for a stream with a zone and without such times."""
    column = selection.order_columns[0]
    if stream.mode == "snapshot":
        return ""
    if stream.zone is not None and not is_local_time(column):
        raise ConfigError(
            f"stream {stream.name!r}: zone is for times without a zone, and column {column.name!r} of type "
            f"{column.sql_type} has none of these",
            hint="leave zone out",
        )
    return await database.time_zone() if stream.zone is None and is_local_time(column) else ""


async def followed(selection: Selection, database: Database, stream: StreamConfig) -> Selection:
    """What a followed split reads: of a key that begins with a time, the rows that are older than ``delay_s``.

    The younger ones may still get neighbours: those of transactions that have not committed, and of the same moment.
    ConfigError where mode timestamp has no such key.
    """
    column = selection.order_columns[0]
    assumed = await assumed_zone(selection, database, stream)
    if is_time(column):
        zone = WriterZone(assumed) if assumed else None
        if stream.zone is not None:
            zone = WriterZone(stream.zone, lowest_offsets(find_zone(stream.zone), dt.datetime.now(dt.UTC)))
        return keyset.also(selection, database.older_than(column, stream.delay_s, zone))
    if stream.mode == "timestamp":
        raise ConfigError(
            f"stream {stream.name!r}: mode timestamp, and column {column.name!r} of type {column.sql_type} is no time",
            hint="name the column with the time of the last change first in order_by",
        )
    return selection


def growing(selection: Selection, database: Database) -> Selection:
    """Of a key of ids, the rows that new ones may follow: not those whose keys are no ids and stand above all ids."""
    return _beside(selection, database, "<=") if _may_stray(selection) else selection


def _strays(selection: Selection, database: Database) -> Selection:
    """Those that `growing` leaves out."""
    return _beside(selection, database, ">")


def _beside(selection: Selection, database: Database, side: str) -> Selection:
    return keyset.also(selection, f"t.{quote(selection.order_names[0], database.mark)} {side} {GREATEST_ID:d}")


def _may_stray(selection: Selection) -> bool:
    return numbered(selection) and bool(selection.order_columns[0].whole)


def _with_ids(selection: Selection) -> Selection:
    """The rows whose keys are ids, of a key of ids; otherwise all."""
    return keyset.also(selection, selection.order_columns[0].whole) if _may_stray(selection) else selection


async def beginning(
    session: Session, database: Database, selection: Selection, stream: StreamConfig, now: float
) -> tuple[KeyPosition | None, Ledger]:
    """The greatest key that there is, and what may still appear below it."""
    snapshot = await _snapshot(session, database, selection)  # before anything is read
    ledger = await _ledger(session, database, selection, stream)
    greatest = await session.keys(keyset.edge_query(_with_ids(selection), database.mark, greatest=True))
    if not greatest:
        return None, ledger
    end = KeyPosition(greatest[0])
    if numbered(selection):
        newest = keyset.newest_query(selection, PLANNED_IDS, database.mark)
        ids = sorted(int(str(key)) for (key,) in await session.keys(newest))
        since = snapshot.least if snapshot else 0
        found, _ = holes.crowded_out(Ledger(tuple(holes.gaps(ids[0] - 1, ids, now, since))), MOST_HOLES)
        ledger = replace(ledger, holes=found.holes, floor=ids[-1])
    if snapshot is not None and (
        numbered(selection) or stream.mode == "snapshot_then_tail" or stream.start == "latest"
    ):
        whole = Passage(None, end, now, snapshot.least, looks=holes.WIDE)
        ledger = holes.passed(ledger, whole, PASSAGE_S, MOST_PASSAGES)
    if snapshot is None and not numbered(selection):  # of a key of ids the missing ones are asked for
        timed = is_time(selection.order_columns[0])
        log.warning(
            "a row that commits after one with a higher key was read is not seen",
            stream=stream.name,
            key=", ".join(selection.order_names),
            hint="delay_s must be longer than any transaction"
            if timed
            else "use a key of one integer column, or mode timestamp",
        )
    return end, ledger


async def _ledger(session: Session, database: Database, selection: Selection, stream: StreamConfig) -> Ledger:
    """An empty one, behind what a stream from the latest row on leaves out."""
    if stream.start != "latest" or not _may_stray(selection):
        return Ledger()
    query = keyset.edge_query(_strays(selection, database), database.mark, greatest=True)
    return Ledger(beyond=next((KeyPosition(key) for key in await session.keys(query)), None))


async def _snapshot(session: Session, database: Database, selection: Selection) -> Snapshot | None:
    if database.inserted_since(selection.table, 0) is None:
        return None
    return await session.snapshot()


@dataclass(frozen=True, slots=True)
class _Look:
    """Through all passages that are due at a time; `snapshot` is of before it."""

    snapshot: Snapshot
    at: float


class TailReader:
    """See `producer.protocols.RememberingReader`. `pages` reads on after the position."""

    def __init__(
        self, stream: StreamConfig, pages: PageReader, selection: Selection, split: Split, database: Database
    ) -> None:
        self._stream = stream
        self._pages = pages
        self._selection = selection
        self._split = split
        self._database = database
        self._session = database.session()
        self._numbered = numbered(selection)
        self._may_stray = _may_stray(selection)
        self._ledger = Ledger()
        self._written = (self._ledger, holes.to_json(self._ledger))
        self._asking: int | None = None  # holes from this id on are still to be asked for in this round
        self._next_round = 0.0  # on the monotonic clock
        self._look: _Look | None = None  # through passages, page by page in turn with new rows
        self._forward = False

    def restore(self, detail: Mapping[str, Json] | None) -> None:
        self._ledger = Ledger() if detail is None else holes.from_json(detail)
        self._asking, self._next_round, self._look = None, 0.0, None

    async def close(self) -> None:
        try:
            await self._pages.close()
        finally:
            await self._session.close()

    async def fetch(self, position: Position | None, limit: int) -> Page:
        late = await self._late(limit, start_of(self._split, position))
        if late is not None:
            rejected = tuple(row for _, row in late.rejected)
            return Page(late.batch, position, detail=self._detail(), rejected=rejected)
        page = await self._next_page(position, limit)
        return replace(page, last=page.last and self._look is None, detail=self._detail())

    def _detail(self) -> Mapping[str, Json]:
        """The ledger for the checkpoint: the same object as long as nothing has changed."""
        if self._ledger is not self._written[0]:
            self._written = (self._ledger, holes.to_json(self._ledger))
        return self._written[1]

    # --- new rows --------------------------------------------------------------------------------------------------

    async def _next_page(self, position: Position | None, limit: int) -> Page:
        snapshot = await _snapshot(self._session, self._database, self._selection)
        page = await self._pages.fetch(position, limit)
        if page.rows:
            await self._passed(page, start_of(self._split, position), snapshot)
        return page

    async def _passed(self, page: Page, start: Position | None, snapshot: Snapshot | None) -> None:
        """Notes what may still appear within the page's keys."""
        now = time.time()
        least = 0 if snapshot is None else snapshot.least
        if not self._numbered:
            if snapshot is not None:
                assert isinstance(page.position, KeyPosition)
                lower = start if isinstance(start, KeyPosition) else None
                self._ledger = holes.passed(
                    self._ledger, Passage(lower, page.position, now, least), PASSAGE_S, MOST_PASSAGES
                )
            return
        ((name, _),) = self._selection.order
        column = page.batch.column(page.batch.schema.get_field_index(name))
        bad = [row.columns.column(name)[0].as_py() for row in page.rejected if name not in row.others]
        after, last = _id(start), _id(page.position)
        read = len(column) + len(bad)
        # Up to here all has been noted before, also for who was set back to a lower position.
        noted = max([self._ledger.floor, *(hole.last for hole in self._ledger.holes[-1:])])
        if after >= noted and last - after == read:
            return
        ids = sorted([*column.to_pylist(), *bad])
        if after < noted:
            self._ledger = holes.filled(self._ledger, ids)
        found = holes.opened(Ledger(floor=noted), holes.gaps(after, [*ids, last + 1], now, least))
        if self._selection.where and found.holes:
            found = await self._without_unselected(found)
        ledger = replace(self._ledger, holes=(*self._ledger.holes, *found.holes))
        self._ledger = self._crowded_out(ledger, now)

    async def _without_unselected(self, found: Ledger) -> Ledger:
        """Without the ids whose rows are there, and are not the stream's."""
        for at in range(0, len(found.holes), HOLES_A_QUERY):
            query = keyset.unselected_query(
                self._selection, _ranges(found.holes[at : at + HOLES_A_QUERY]), PLANNED_IDS, self._database.mark
            )
            found = holes.filled(found, _ids(await self._rows(query)))
        return found

    def _crowded_out(self, ledger: Ledger, now: float) -> Ledger:
        """At most `MOST_HOLES`; more become a passage where the database has transaction numbers."""
        ledger, out = holes.crowded_out(ledger, MOST_HOLES)
        if not out:
            return ledger
        if out[0].least:
            lower = None if out[0].first == LEAST_ID else KeyPosition((out[0].first - 1,))
            passage = Passage(lower, KeyPosition((out[-1].last,)), now, min(hole.least for hole in out))
            return holes.passed(ledger, passage, PASSAGE_S, MOST_PASSAGES)
        self._tell_expired(out, "too many ids are missing: the oldest are no longer asked for")
        return replace(ledger, expired=ledger.expired + len(out))

    # --- late rows -------------------------------------------------------------------------------------------------

    async def _late(self, limit: int, start: Position | None) -> Rows | None:
        """Rows that have appeared up to `start`; None when it is the new rows' turn."""
        reached = _id(start) if self._numbered else 0
        if self._asking is None and self._look is None and time.monotonic() < self._next_round:
            return None
        if self._asking is None and self._look is None:
            if self._may_stray and (strays := await self._stray(limit)).count:
                return strays
            self._asking = LEAST_ID
        while self._asking is not None:
            rows = await self._ask(self._asking, reached, limit)
            if rows is not None and rows.count:
                return rows
        if self._look is None:
            await self._end_round(reached)
        if self._look is not None and not self._forward:
            self._forward = True
            return await self._search(self._look, reached, limit)
        self._forward = False
        return None

    async def _stray(self, limit: int) -> Rows:
        """The next rows whose keys are no ids, and stand above all ids."""
        beyond = None if self._ledger.beyond is None else self._ledger.beyond.values
        query = keyset.key_query(
            _strays(self._selection, self._database),
            beyond,
            None,
            limit,
            mark=self._database.mark,
            row_values=self._database.row_values,
        )
        rows = await self._rows(query)
        if rows.count:
            self._ledger = replace(self._ledger, beyond=KeyPosition(rows.key_at(rows.count - 1)))
        return rows

    async def _ask(self, asking: int, reached: int, limit: int) -> Rows | None:
        """Asks for some of the holes from the id `asking` on; what lies above `reached` is still to be read anyway."""
        some = [
            replace(hole, first=max(hole.first, asking), last=min(hole.last, reached))
            for hole in self._ledger.holes
            if min(hole.last, reached) >= asking and hole.first <= reached
        ][:HOLES_A_QUERY]
        if not some:
            self._asking = None
            return None
        query = keyset.ranges_query(_with_ids(self._selection), _ranges(some), limit, self._database.mark)
        rows = await self._rows(query)
        ids = _ids(rows)
        whole = len(ids) < limit and not rows.cut
        self._asking = some[-1].last + 1 if whole else ids[-1] + 1
        self._ledger = holes.filled(self._ledger, ids)
        return rows

    async def _end_round(self, reached: int) -> None:
        """All holes have been asked for: gives up the old ones, and sees which passage can be looked through."""
        now = time.time()
        self._next_round = time.monotonic() + self._stream.poll_interval_s
        self._ledger, old = holes.expire(self._ledger, now - self._stream.late_commit_s)
        if old:
            self._tell_expired(old, "missing ids are given up after late_commit_s")
        ledger = self._ledger
        if not ledger.passages and not any(self._due_again(passage, now) for passage in ledger.looked):
            return
        if self._database.inserted_since(self._selection.table, 0) is None:
            raise _unreadable_numbers(self._selection)
        if (snapshot := await self._session.snapshot()) is not None:
            self._ledger = holes.closed(ledger, now - 2 * PASSAGE_S, snapshot)
            self._look_on(_Look(snapshot, now), reached)
            waiting = [one for one in self._ledger.passages if not one.settled(snapshot)]
            if self._look is not None and any(self._overdue(one, now) for one in waiting):
                log.warning(
                    "a transaction is open for longer than late_commit_s: what it commits is not waited for",
                    stream=self._stream.name,
                )

    def _look_on(self, look: _Look, reached: int) -> None:
        """The look goes on as long as a passage is due in it."""
        self._look = None if self._due(look, reached) is None else look

    def _due(self, look: _Look, reached: int) -> Passage | None:
        """What is to be looked through next; not above `reached`, which is still to be read anyway."""
        passages = self._ledger.passages
        first = [one for one in passages if one.settled(look.snapshot) or self._overdue(one, look.at)]
        again = [one for one in self._ledger.looked if self._due_again(one, look.at)]
        return next((one for one in (*first, *again) if not self._numbered or _id(one.upper) <= reached), None)

    def _due_again(self, passage: Passage, at: float) -> bool:
        return passage.due_again(at, 2 * PASSAGE_S) or self._overdue(passage, at)

    def _overdue(self, passage: Passage, at: float) -> bool:
        """Whether a look at that time is its last one. Keys were passed up to `PASSAGE_S` after `since`."""
        return passage.since + PASSAGE_S < at - self._stream.late_commit_s

    async def _search(self, look: _Look, reached: int, limit: int) -> Rows:
        """One step through a passage: its rows by transactions that had not ended when it was last read."""
        passage = self._due(look, reached)
        assert passage is not None
        rows, upto = await self._step(passage, limit)
        seen = replace(passage, upper=upto, least=look.snapshot.least, looks=passage.looks + 1, looked=look.at)
        part = None if self._overdue(passage, look.at) else seen
        self._ledger = holes.merged(holes.looked_through(self._ledger, passage, upto, part), PASSAGE_S)
        self._look_on(look, reached)
        if self._numbered:
            self._ledger = holes.filled(self._ledger, _ids(rows))
        return rows

    async def _step(self, passage: Passage, limit: int) -> tuple[Rows, KeyPosition]:
        """The late rows at the beginning of a passage, and up to which key these are."""
        database, selection = self._database, self._selection
        width = len(selection.order)
        step = keyset.step_query(
            selection,
            key_values(passage.lower, width),
            STEP_ROWS,
            mark=database.mark,
            row_values=database.row_values,
            upper=key_values(passage.upper, width),
        )
        reached = await self._rows(step)
        end = KeyPosition(reached.key_at(0)) if reached.count else passage.upper
        condition = database.inserted_since(selection.table, passage.least)
        assert condition is not None
        query = keyset.key_query(
            keyset.also(selection, condition),
            key_values(passage.lower, width),
            key_values(end, width),
            limit,
            mark=database.mark,
            row_values=database.row_values,
        )
        rows = await self._rows(query)
        if rows.cut or rows.count == limit:
            end = KeyPosition(rows.key_at(rows.count - 1))
        return rows, end

    async def _rows(self, query: Query) -> Rows:
        return await watched.read(self._session, query, self._selection.table, self._stream)

    def _tell_expired(self, old: Sequence[Hole], event: str) -> None:
        log.warning(event, stream=self._stream.name, ranges=len(old), first=old[0].first, last=old[-1].last)


def _unreadable_numbers(selection: Selection) -> ConfigError:
    """For a checkpoint of a time when the transactions that wrote the rows could be seen."""
    hint = selection.table.untracked or "read again from the start after: producer checkpoint reset"
    return ConfigError(
        f"table {'.'.join(selection.table.path)!r}: late commits below the position are to be looked for by xmin, "
        "which cannot be read any more",
        hint=hint,
    )


def _id(position: Position | None) -> int:
    """The id of a position, or the one below it where it is none; less than any id at the beginning."""
    if not isinstance(position, KeyPosition):
        return LEAST_ID - 1
    (value,) = position.values
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value < GREATEST_ID:
        return math.floor(value)
    raise ConfigError(
        f"the stream's position is the key {value!r}, which stands above all integers: no new row would be seen",
        hint="mend or leave out such rows, and read again from the start after: producer checkpoint reset",
    )


def _ids(rows: Rows) -> list[int]:
    """The integers among the keys."""
    return [key for row in range(rows.count) for key in rows.key_at(row)[:1] if isinstance(key, int)]


def _ranges(some: Sequence[Hole]) -> list[tuple[int, int]]:
    return [(hole.first, hole.last) for hole in some]
