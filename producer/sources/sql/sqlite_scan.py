"""A scan of SQLite: one SELECT in one read transaction, on a connection of its own.

The driver makes an Arrow type of the values of a result's first batch, and fails at a later value of another kind. So
the result begins with a row of prototypes, where a column's type allows only one kind. Where that does not help, the
rest is read with the kinds apart: four columns for each one, as integer, real, blob and text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent

import adbc_driver_sqlite
import pyarrow as pa
from adbc_driver_manager import Error

from producer.errors import ConfigError, ProducerError, SourceUnavailableError
from producer.model import KeyScalar
from producer.sources.sql import sqlite_keys, sqlite_types
from producer.sources.sql.adbc import Connection
from producer.sources.sql.arrow import read_rows
from producer.sources.sql.names import bind_named
from producer.sources.sql.table import Column, Query, Rows
from producer.sources.sql.threads import in_thread

#: A page of a scan; the first one waits for the sorting, where no index has the order.
WAIT_S = 3600.0
_BATCH_ROWS = "512"
_PAGE_ROWS, _PAGE_BYTES = 20_000, 8 * 2**20
_PROTOTYPES = {pa.int64(): "0", pa.float64(): "0.5", pa.string(): "''", pa.binary(): "x'00'", pa.bool_(): "0"}
#: How each storage class is read; text as its bytes, because it need not be UTF-8. With a prototype of each.
_KINDS = {"integer": ("{}", "0"), "real": ("{}", "0.5"), "blob": ("{}", "x'00'"), "text": ("CAST({} AS BLOB)", "x'00'")}


_LIMITED = re.compile(r" LIMIT \d+$")


class _OtherKinds(Exception):
    """A page has values that the driver's type of their column does not tell."""


class SqliteScan:
    """See `producer.sources.sql.table.Scan`."""

    def __init__(
        self, executor: Executor, connection: Connection, translate: Callable[[Exception], ProducerError]
    ) -> None:
        self._executor = executor
        self._connection = connection
        self._translate = translate

    async def first(self, query: Query) -> tuple[KeyScalar, ...] | None:
        found: tuple[KeyScalar, ...] | None = None
        async for rows in self.rows(query):
            key = rows.key_at(0)
            found = None if None in key else key
        return found

    async def rows(self, query: Query) -> AsyncGenerator[Rows]:
        pages = self._pages(query)
        try:
            while (rows := await self._run(lambda: next(pages, None))) is not None:
                yield rows
        finally:
            await self._run(pages.close)

    def _pages(self, query: Query) -> Generator[Rows]:
        sql = bind_named(query.sql, lambda name: literal(query.params[name]), lexis="sqlite")
        read = 0
        try:
            for table in self._tables(_with_prototypes(query, sql)):
                yield _fast_page(query, table)
                read += table.num_rows
            return
        except _OtherKinds:
            pass
        except (Error, OSError) as error:
            if "Type mismatch" not in str(error):
                raise
        encoding = sqlite_keys.encoding(self._connection)
        for table in self._tables(_by_kinds(query, sql, skip=read)):
            yield _exact_page(query, table, encoding)

    def _tables(self, sql: str) -> Generator[pa.Table]:
        """The result without its first row, in tables of bounded size."""
        batches: list[pa.RecordBatch] = []
        rows = size = 0
        first = True
        with contextlib.closing(self._connection.batches(sql, {"adbc.sqlite.query.batch_rows": _BATCH_ROWS})) as found:
            for batch in found:
                batches.append(batch.slice(1) if first else batch)
                first = False
                rows, size = rows + batches[-1].num_rows, size + batch.nbytes
                if rows >= _PAGE_ROWS or size >= _PAGE_BYTES:
                    yield pa.Table.from_batches(batches).combine_chunks()
                    batches, rows, size = [], 0, 0
        if rows:
            yield pa.Table.from_batches(batches).combine_chunks()

    async def _run(self, work: Callable[[], Any]) -> Any:
        def job() -> Any:
            try:
                return work()
            except Error as error:
                raise self._translate(error) from None

        try:
            return await in_thread(self._executor, job, deadline_s=WAIT_S, stop=self._connection.cancel)
        except TimeoutError:
            raise SourceUnavailableError(f"the database did not answer within {WAIT_S:g} s") from None


@contextlib.asynccontextmanager
async def open_scan(
    executor: Executor, path: Path, translate: Callable[[Exception], ProducerError]
) -> AsyncIterator[SqliteScan]:
    """A scan on a new connection, which is closed at the end."""
    connection = Connection(adbc_driver_sqlite.connect(f"file:{percent(str(path))}?mode=ro"))
    scan = SqliteScan(executor, connection, translate)
    try:
        await scan._run(lambda: connection.read("PRAGMA busy_timeout = 10000"))
        yield scan
    finally:
        await scan._run(connection.close)


def _with_prototypes(query: Query, sql: str) -> str:
    """The query's result after a row of prototypes."""
    prototypes = ["NULL" if column.guard else _PROTOTYPES.get(column.field.type, "NULL") for column in query.columns]
    guards = ["NULL" for column in query.columns if column.guard]
    return f"SELECT {', '.join([*prototypes, *guards])} UNION ALL SELECT * FROM ({_ordered(sql, 0)})"


def _by_kinds(query: Query, sql: str, *, skip: int) -> str:
    """The same with four columns for each of the query's, without its first `skip` rows."""
    listed = ", ".join([*(column.select for column in query.columns), *(c.guard for c in query.columns if c.guard)])
    assert sql.startswith("SELECT " + listed)
    apart = ", ".join(
        f"CASE typeof({column.select}) WHEN '{kind}' THEN {read.format(column.select)} END"
        for column in query.columns
        for kind, (read, _) in _KINDS.items()
    )
    prototypes = ", ".join(prototype for _ in query.columns for _, prototype in _KINDS.values())
    rest = sql.removeprefix("SELECT " + listed)
    return f"SELECT {prototypes} UNION ALL SELECT * FROM ({_ordered('SELECT ' + apart + rest, skip)})"


def _ordered(sql: str, skip: int) -> str:
    """A subquery that keeps its order: without a limit SQLite need not."""
    return sql if _LIMITED.search(sql) else f"{sql} LIMIT -1 OFFSET {skip:d}"


def _fast_page(query: Query, table: pa.Table) -> Rows:
    """The driver's columns as they are. `_OtherKinds` where that is not certainly right."""
    names = [column.name for column in query.columns]
    guards = iter(table.columns[len(names) :])
    columns: dict[str, pa.Array] = {}
    for i, column in enumerate(query.columns):
        kinds = _whole(next(guards)) if column.guard else None
        values = sqlite_types.fast(column, _whole(table.column(i)), kinds)
        if values is None:
            raise _OtherKinds
        columns[column.name] = values
    stored = [table.column(names.index(name)) for name in query.key]
    return _rows(
        query,
        table.num_rows,
        lambda column, start, stop: columns[column.name].slice(start, stop - start),
        lambda name, row: table.column(names.index(name))[row].as_py(),
        lambda row: tuple(column[row].as_py() for column in stored),
    )


def _exact_page(query: Query, table: pa.Table, encoding: str) -> Rows:
    """Each stored value as its column's type; texts are stored in `encoding`."""
    stored: dict[str, list[Any]] = {}
    for i, column in enumerate(query.columns):
        kinds = [table.column(len(_KINDS) * i + n).to_pylist() for n in range(len(_KINDS))]
        kinds[-1] = [None if value is None else sqlite_types.decoded(value, encoding) for value in kinds[-1]]
        stored[column.name] = [
            next((value for value in row if value is not None), None) for row in zip(*kinds, strict=True)
        ]
    return _rows(
        query,
        table.num_rows,
        lambda column, start, stop: sqlite_types.exact(column, stored[column.name][start:stop]),
        lambda name, row: stored[name][row],
        lambda row: tuple(stored[name][row] for name in query.key),
    )


def _rows(
    query: Query,
    count: int,
    convert: Callable[[Column, int, int], pa.Array],
    value: Callable[[str, int], Any],
    key_at: Callable[[int], tuple[KeyScalar, ...]],
) -> Rows:
    return read_rows(query, count, convert, lambda column, row: str(value(column.name, row)), key_at=key_at)


def _whole(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks)


def literal(value: Any) -> str:
    """A value as SQL: text and bytes by their hexadecimal digits, dates and numbers as SQLite stores such values."""
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(int(value))
        case float() if value - value != 0:
            return "NULL" if value != value else "9e999" if value > 0 else "-9e999"
        case float():
            return repr(value)
        case bytes():
            return f"x'{value.hex()}'"
        case dt.datetime():
            return literal(value.isoformat(sep=" "))
        case dt.date():
            return literal(value.isoformat())
        case str() | decimal.Decimal() | uuid.UUID():
            return f"(+CAST(x'{str(value).encode().hex()}' AS TEXT))"  # by the plus it has no affinity, as a parameter
    raise ConfigError(f"params: SQLite takes no {type(value).__name__}")
