"""Owns the SQL source: one configured database, its streams' queries, their splits and page readers.

The traversals' SQL is built in `keyset`, the quantiles of splits in `splits`; what differs between databases is in a
module each (`postgres`, `sqlite`, `mysql`, `generic`), behind the seam of `table`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pyarrow as pa
import structlog
from pydantic import Field, SecretStr

from producer.config import Model, StreamConfig
from producer.errors import ConfigError, ProducerError, TransientError
from producer.model import (
    Between,
    Checkpoint,
    Dataset,
    KeyPosition,
    KeyScalar,
    NullKeys,
    NullRows,
    OffsetPosition,
    Page,
    Position,
    RejectedRow,
    ScannedPage,
    Split,
)
from producer.protocols import PageReader
from producer.sources.sql import keyset, nulls, splits, tail, ties, unfit, watched
from producer.sources.sql import scan as scanning
from producer.sources.sql.dialects import open_database
from producer.sources.sql.generation import TABLE, Generation, Record, generation_of, record_to_json
from producer.sources.sql.keys import SqlKeys
from producer.sources.sql.keyset import Selection
from producer.sources.sql.names import find_column, parameter_names
from producer.sources.sql.replaced import GuardedReader, Judge, refuse_replaced
from producer.sources.sql.scalars import first_repeat, scalar_of
from producer.sources.sql.table import Database, Options, Query, Rows, ScanningDatabase, Session, Table
from producer.sources.sql.tail import TailReader
from producer.traversal import is_last, key_values, offset_rows, offset_split, offset_window, start_of

log = structlog.get_logger("producer")

#: From this many skipped rows on, an OFFSET page finds its keys in the index first. Measured with rows of 150 bytes: it
#: pays from 80,000 (MariaDB) or 200,000 (PostgreSQL) rows on, by a third at 300,000; it never does for SQLite's rowid.
DEFERRED_FROM_ROWS = 100_000


class SqlConfig(Model):
    """A database. `url` is as SQLAlchemy writes it: postgresql://, sqlite:///path, mysql://, mariadb://, others."""

    type: Literal["sql"] = "sql"
    url: SecretStr = Field(
        description="postgresql://, mysql://, mariadb://, sqlite:///; the password, from ${ENV}, percent-encoded"
    )
    statement_timeout_s: float = Field(60.0, gt=0, description="for one page")
    connect_timeout_s: float = Field(10.0, gt=0, description="for a new connection")
    max_connections: int = Field(32, ge=1, le=512, description="queries at the same time")


class SqlSource:
    """See `producer.protocols.Source`."""

    def __init__(self, config: SqlConfig) -> None:
        self._executor = ThreadPoolExecutor(config.max_connections, thread_name_prefix="sql")
        options = Options(config.url.get_secret_value(), config.statement_timeout_s, config.connect_timeout_s)
        self._database = open_database(options, self._executor)
        self._selections: dict[str, Selection] = {}
        self._warned: set[str] = set()

    async def start(self) -> None:
        await self._database.start()

    async def close(self) -> None:
        try:
            await self._database.close()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def describe(self, stream: StreamConfig) -> Dataset:
        """The table's columns as Arrow, its key and order, and the planner's estimate of its size."""
        if stream.table is None:
            raise ConfigError(f"stream {stream.name!r}: a stream of an SQL source needs a table")
        selection = await self._select(stream, stream.table)
        session = self._database.session()
        try:
            rows, row_bytes = await _estimate(session, selection, stream) or (None, None)
            zone = await tail.assumed_zone(selection, self._database, stream)
        finally:
            await session.close()
        table = selection.table
        _warn(table, stream)
        return Dataset(
            name=table.path[-1],
            schema=pa.schema([column.field for column in selection.columns]),
            key=selection.key,
            order=selection.order_names,
            identity={
                "table": list(table.path),
                "columns": None if stream.columns is None else list(stream.columns),  # None: all there will ever be
                "exclude": sorted(stream.exclude),
                "key": list(selection.key),
                "order": [[name, "desc" if down else "asc"] for name, down in selection.order],
                "where": selection.where,
                "params": dict(selection.params),
            },
            hidden=selection.hidden,
            rows_estimate=rows,
            row_bytes_estimate=row_bytes or table.row_bytes_estimate,
            namespace=".".join(table.path[:-1]),
            comment=table.comment,
            origin=(await self._database.origin(table)).also(table=".".join(table.path)),
            remarks=(f"{selection.order_names[0]} is taken to be written in time zone {zone}: `zone` sets it",)
            if zone
            else (),
        )

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        selection = await self._selection(stream)
        record = await self._record(stream, selection)  # first: what replaces the table from here on is seen
        if stream.on_bad_record == "fail":
            await self._refuse_null_keys(stream)
        session = self._database.session()
        try:
            if stream.traversal == "OFFSET":
                rows = await splits.count(session, self._database, selection) if stream.mode == "snapshot" else None
                return (_of_table(offset_split(rows), record),)
            await unfit.refuse_unfit_keys(session, self._database, selection, stream, dataset.rows_estimate)
            planned = await splits.plan(session, self._database, selection, stream, dataset.rows_estimate)
            return tuple(_of_table(split, record) for split in planned)
        finally:
            await session.close()

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> PageReader:
        selection = keyset.within(await self._selection(stream), split.between, self._database.mark)
        if split.is_replay:
            return SqlReader(stream, selection, split, self._database)
        judge = self._judge(stream, selection)
        follows = stream.mode != "snapshot" and split.is_open
        pages = SqlReader(stream, selection, split, self._database)
        reader: PageReader = pages
        if follows:
            await self._warn_of_assumption(stream, selection)
            selection = await tail.followed(selection, self._database, stream)
            reader = pages = SqlReader(stream, tail.growing(selection, self._database), split, self._database)
            if stream.late_commit_s:
                reader = TailReader(stream, pages, selection, split, self._database)
        return GuardedReader(reader, pages, selection.order_names, split, judge, follows=follows)

    def _judge(self, stream: StreamConfig, selection: Selection) -> Judge:
        return Judge(stream, selection, self._database, self._database.session())

    async def refuse_replaced(self, stream: StreamConfig, checkpoints: Sequence[Checkpoint]) -> None:
        """See `producer.protocols.ReplaceableSource`."""
        selection = await self._selection(stream)
        judge = self._judge(stream, selection)
        try:
            now = await self._generation(selection)
            if now is not None:
                await refuse_replaced(judge, now, stream.mode != "snapshot", checkpoints)
        finally:
            await judge.close()

    async def _record(self, stream: StreamConfig, selection: Selection) -> Record | None:
        judge = self._judge(stream, selection)
        try:
            now = await self._generation(selection)
            return None if now is None else await judge.first(now)
        finally:
            await judge.close()

    async def _generation(self, selection: Selection) -> Generation | None:
        session = self._database.session()
        try:
            query = keyset.rows_query(selection, selection.order_columns, [], " LIMIT 0")
            return generation_of((await session.fetch(dataclasses.replace(query, watched=selection.table))).generation)
        except ConfigError:  # its columns have changed since it was described, which the first page tells
            return None
        finally:
            await session.close()

    def scan(
        self, stream: StreamConfig, dataset: Dataset, positions: Sequence[KeyPosition], replays: Sequence[Split]
    ) -> AsyncGenerator[ScannedPage] | None:
        """See `producer.protocols.ScanningSource`; None where the dialect cannot scan."""
        if not isinstance(self._database, ScanningDatabase):
            return None
        return self._scan(self._database, stream, positions, replays)

    async def _scan(
        self,
        database: ScanningDatabase,
        stream: StreamConfig,
        positions: Sequence[KeyPosition],
        replays: Sequence[Split],
    ) -> AsyncGenerator[ScannedPage]:
        selection = await self._selection(stream)
        pages = scanning.scan(database, selection, self._database.mark, positions, replays)
        async with contextlib.aclosing(pages):
            async for page in pages:
                yield page

    async def _warn_of_assumption(self, stream: StreamConfig, selection: Selection) -> None:
        if stream.name not in self._warned and (zone := await tail.assumed_zone(selection, self._database, stream)):
            log.warning(
                "times without a zone are taken to be written in the database's own",
                stream=stream.name,
                column=selection.order_names[0],
                zone=zone,
                hint="zone on the stream sets it",
            )
        self._warned.add(stream.name)

    async def keys(self, stream: StreamConfig) -> SqlKeys:
        selection = await self._select(stream, stream.table or "")
        return SqlKeys(selection, self._database, salvage=stream.on_bad_record == "dead_letter")

    async def _refuse_null_keys(self, stream: StreamConfig) -> None:
        found = await self.null_keys(stream)
        if found.rows:
            raise ConfigError(found.message(stream.name), hint=found.hint)

    async def null_columns(self, stream: StreamConfig) -> Sequence[str]:
        selection = await self._selection(stream)
        return [column.name for column in nulls.nullable_columns(selection, stream.traversal)]

    async def null_keys(self, stream: StreamConfig, named: int = 10) -> NullKeys:
        selection = await self._selection(stream)
        if not nulls.nullable_columns(selection, stream.traversal):
            return NullKeys({})
        async with self._searching(selection, stream) as session:
            return await nulls.count(session, self._database, selection, stream, named)

    async def null_rows(self, stream: StreamConfig, known: frozenset[bytes], *, limit: int, most: int) -> NullRows:
        selection = await self._selection(stream)
        async with self._searching(selection, stream) as session:
            return await nulls.find_new(session, self._database, selection, stream, known, limit=limit, most=most)

    @contextlib.asynccontextmanager
    async def _searching(self, selection: Selection, stream: StreamConfig) -> AsyncIterator[Session]:
        """A session for a search that may read the whole table; says what it was for where that takes too long."""
        session = self._database.session()
        try:
            yield session
        except TransientError as error:
            if type(error) is not TransientError:
                raise
            names = ", ".join(column.name for column in nulls.nullable_columns(selection, stream.traversal))
            raise TransientError(
                f"stream {stream.name!r}, looking for NULL in {names}: {error.message}",
                hint="NOT NULL on the column or an index on it makes this quick; else a longer statement_timeout_s",
            ) from None
        finally:
            await session.close()

    async def divide(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> Position | None:
        if checkpoint.done or stream.traversal == "OFFSET" or (stream.mode != "snapshot" and checkpoint.split.is_open):
            return None
        selection = await self._selection(stream)
        session = self._database.session()
        try:
            return await splits.divide(
                session, self._database, selection, dataset, checkpoint.split, checkpoint.position
            )
        finally:
            await session.close()

    async def replay(self, stream: StreamConfig, dataset: Dataset, split_id: str, wanted: Between) -> Split:
        """Bounded by the greatest key that is in the range now."""
        what = f"stream {stream.name!r}, replay"
        if stream.traversal == "OFFSET":
            raise ConfigError(f"{what}: an OFFSET stream cannot read a range of rows", hint="use ID_RANGE")
        selection = await self._selection(stream)
        names = tuple(column.name for column in selection.table.columns)
        name = find_column(wanted.column or selection.order_names[0], names, where=what)
        column = selection.table.column(name)
        if not column.sortable:
            raise ConfigError(f"{what}: column {name!r} of type {column.sql_type} has no order")

        def value(text: KeyScalar | None) -> KeyScalar | None:
            try:
                return None if text is None else scalar_of(column.field, str(text))
            except ValueError as error:
                raise ConfigError(f"{what}: {text!r} is not a value of column {name!r}: {error}") from None

        between = Between(name, value(wanted.first), value(wanted.last))
        session = self._database.session()
        try:
            inside = keyset.within(selection, between, self._database.mark)
            greatest = await session.keys(keyset.edge_query(inside, self._database.mark, greatest=True))
        finally:
            await session.close()
        return Split(split_id, None, KeyPosition(greatest[0]) if greatest else None, between)

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        if checkpoint.done:
            return 0
        split = checkpoint.split
        if stream.traversal == "OFFSET":
            read = 0 if checkpoint.position is None else offset_rows(checkpoint.position)
            whole = dataset.rows_estimate if split.upper is None else offset_rows(split.upper)
            return None if whole is None else max(0, whole - read)
        selection = keyset.within(await self._selection(stream), split.between, self._database.mark)
        session = self._database.session()
        try:
            return await splits.remaining(session, self._database, selection, split, checkpoint.position, dataset)
        finally:
            await session.close()

    async def listen(self, stream: StreamConfig, wake: Callable[[], None]) -> None:
        if stream.notify is not None:
            await self._database.listen(stream.notify, wake)

    async def _selection(self, stream: StreamConfig) -> Selection:
        found = self._selections.get(stream.name)
        if found is None:
            found = await self._select(stream, stream.table or "")
        return found

    async def _select(self, stream: StreamConfig, name: str) -> Selection:
        table = await self._database.table(name, decimal=stream.decimal)
        selection = keyset.select(table, stream, self._database.lexis)
        if selection.where:
            probe = keyset.rows_query(selection, selection.columns[:1], []).sql
            types = await self._database.parameter_types(
                probe, parameter_names(selection.where, lexis=self._database.lexis)
            )
            selection = dataclasses.replace(selection, types=types)
        selection = nulls.without_null_keys(selection, stream.traversal, self._database.mark)
        self._selections[stream.name] = selection
        return selection


def _of_table(split: Split, record: Record | None) -> Split:
    if record is None:
        return split
    return dataclasses.replace(split, detail={**(split.detail or {}), TABLE: record_to_json(record)})


async def _estimate(session: Session, selection: Selection, stream: StreamConfig) -> tuple[int, int] | None:
    """The planner's; None where it has none to give, and the rows can be read all the same."""
    try:
        return await session.estimate(keyset.rows_query(selection, selection.columns, []))
    except ProducerError as error:
        await session.fetch(keyset.rows_query(selection, selection.columns, [], " LIMIT 0"))
        log.warning("the number of rows cannot be estimated", stream=stream.name, reason=error.message)
        return None


def _warn(table: Table, stream: StreamConfig) -> None:
    """Of what the user may not see."""
    if table.filtered:
        log.warning("row-level security may hide rows of the table from this user", stream=stream.name)
    if table.untracked and stream.mode != "snapshot":
        log.warning(
            "late commits are looked for by missing ids alone: this user may not read xmin",
            stream=stream.name,
            hint=table.untracked,
        )


class SqlReader:
    """See `producer.protocols.PageReader`."""

    def __init__(self, stream: StreamConfig, selection: Selection, split: Split, database: Database) -> None:
        self._stream = stream
        self._selection = selection
        self._split = split
        self._database = database
        self._session: Session = database.session()
        self.generation = ""  # of the table, at the last page

    async def fetch(self, position: Position | None, limit: int) -> Page:
        if self._stream.traversal == "OFFSET":
            return await self._fetch_offset(position, limit)
        return await self._fetch_key(position, limit)

    async def close(self) -> None:
        await self._session.close()

    async def _fetch_key(self, position: Position | None, limit: int) -> Page:
        selection, split, database = self._selection, self._split, self._database
        width = len(selection.order)
        start = start_of(split, position)
        query = keyset.key_query(
            selection,
            key_values(start, width),
            key_values(split.upper, width),
            limit + (not selection.proven),
            mark=database.mark,
            row_values=database.row_values,
        )
        rows = await self._rows(query)
        batch, rejected = self._distinct(rows, limit)
        count = batch.num_rows + len(rejected)
        reached = KeyPosition(rows.key_at(count - 1)) if count else start
        if self._edge_is_doubtful(rows, count):
            await ties.refuse(self._session, database, selection, key=key_values(reached, width))
        last = not rows.cut and is_last(count, limit, reached, split.upper)
        return Page(batch, reached, last, rejected=rejected)

    async def _fetch_offset(self, position: Position | None, limit: int) -> Page:
        selection = self._selection
        skip, count = offset_window(self._split, position, limit)
        query = keyset.offset_query(
            selection,
            skip,
            count + (count > 0 and not selection.proven),
            mark=self._database.mark,
            deferred=skip >= DEFERRED_FROM_ROWS,
        )
        rows = await self._rows(query)
        batch, rejected = self._distinct(rows, count)
        read = batch.num_rows + len(rejected)
        reached = OffsetPosition(skip + read)
        if self._edge_is_doubtful(rows, read):
            await ties.refuse(self._session, self._database, selection, skip=skip + read - 1)
        last = not rows.cut and is_last(read, limit, reached, self._split.upper)
        return Page(batch, reached, last, rejected=rejected)

    async def _rows(self, query: Query) -> Rows:
        rows = await watched.read(self._session, query, self._selection.table, self._stream)
        self.generation = rows.generation
        return rows

    def _distinct(self, rows: Rows, limit: int) -> tuple[pa.RecordBatch, tuple[RejectedRow, ...]]:
        """The page without the row that was read beyond it to prove, where no index does, that no two rows have the
        same key: of such, those after a page's edge would be lost."""
        batch, rejected = rows.batch, rows.rejected
        if self._selection.proven:
            return batch, tuple(row for _, row in rejected)
        row = first_repeat(batch, self._selection.order_names)
        if row is not None:
            raise ties.repeated(self._selection, rows.key_at(row))
        count = rows.count
        keep = count - 1 if rows.cut and not _ends_with_bad(rows) else min(limit, count)
        kept = tuple(row for number, row in rejected if number < keep)
        return batch.slice(0, keep - len(kept)), kept

    def _edge_is_doubtful(self, rows: Rows, kept: int) -> bool:
        """Whether the row beyond the `kept` ones may have the key of the last, and only the database can tell."""
        if not kept or self._selection.proven:
            return False
        if kept == rows.count:  # nothing was read beyond it
            return _ends_with_bad(rows)
        return bool(rows.rejected) or not ties.seen_in_arrow(self._selection)


def _ends_with_bad(rows: Rows) -> bool:
    """Whether the rows end with one that cannot be read, and others may follow."""
    return rows.cut and bool(rows.rejected) and rows.rejected[-1][0] == rows.count - 1


__all__ = ["SqlConfig", "SqlReader", "SqlSource"]
