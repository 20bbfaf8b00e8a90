"""Owns SQLite: reflection by pragmas, and pages as Arrow (ADBC).

ADBC steps through a page in C without the interpreter's lock: three times the rate of the standard library's driver,
which gives the lock back and takes it again for each row (more than twenty times, while another thread computes). It
merges the kinds of a column's values into one type, though; pages where that may hide something are read again with the
kinds apart.

The standard library's driver is not used beside it: it is another copy of SQLite, and when one copy closes a file, the
operating system drops the locks of the whole process on it, those of the other copy too.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import decimal
import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote as percent
from urllib.parse import unquote

import adbc_driver_sqlite
import pyarrow as pa
from adbc_driver_manager import Error

from producer.errors import (
    ConfigError,
    EncodeError,
    ProducerError,
    SourceUnavailableError,
    TransientError,
)
from producer.identity import Identity
from producer.model import KeyScalar
from producer.sources.sql import sqlite_keys, sqlite_scan, sqlite_types
from producer.sources.sql.adbc import Connection, tuples
from producer.sources.sql.arrow import read_rows
from producer.sources.sql.lexis import Lexis
from producer.sources.sql.names import bind_named, nearest_table, quote, split_name
from producer.sources.sql.origin import sqlite_origin
from producer.sources.sql.sqlite_file import file_number
from producer.sources.sql.table import Column, Options, Query, Rows, Scan, Table, WriterZone
from producer.sources.sql.threads import in_thread

T = TypeVar("T")

_HAS_OFFSET = "({0} GLOB '*[zZ]' OR {0} GLOB '*[+-][0-9][0-9]:[0-9][0-9]')"
_BATCH_ROWS = "adbc.sqlite.query.batch_rows"
_LIMIT = re.compile(r" LIMIT \d+((?: OFFSET \d+)?)$")


class SqliteDatabase:
    """See `producer.sources.sql.table.Database`."""

    mark = '"'
    lexis: Lexis = "sqlite"
    row_values = True
    has_planner = False

    def __init__(self, options: Options, executor: Executor) -> None:
        name = unquote(options.url.partition("://")[2].removeprefix("/").partition("?")[0])
        if name in ("", ":memory:"):
            raise ConfigError("an SQLite source needs a file", hint="sqlite:///relative.db or sqlite:////absolute.db")
        self._path = Path(name)
        self._timeout_s = options.statement_timeout_s
        self._executor = executor
        self._meta = self.session()

    async def start(self) -> None:
        await self._meta.run(lambda connection: _rows(connection, "SELECT count(*) FROM sqlite_master", {}))

    async def close(self) -> None:
        await self._meta.close()

    def open_scan(self) -> AbstractAsyncContextManager[Scan]:
        return sqlite_scan.open_scan(self._executor, self._path, lambda error: _translate(error, self._path))

    def session(self) -> SqliteSession:
        return SqliteSession(self._path, self._timeout_s, self._executor)

    async def table(self, name: str, *, decimal: str | None) -> Table:
        path = split_name(name, fold=str)
        if len(path) > 2 or (len(path) == 2 and path[0].lower() != "main"):
            raise ConfigError(f"table {name!r} is not there", hint="an SQLite file has tables, and no schemas but main")
        return await self._meta.run(lambda connection: _reflect(connection, path[-1], decimal))

    async def origin(self, table: Table) -> Identity:
        return await asyncio.to_thread(sqlite_origin, self._path)

    async def parameter_types(self, sql: str, names: tuple[str, ...]) -> Mapping[str, str]:
        await self._meta.run(lambda connection: _rows(connection, "EXPLAIN " + sql, dict.fromkeys(names)))
        return {}

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        raise ConfigError("notify: only PostgreSQL can notify", hint="leave notify out: the table is polled")

    def inserted_since(self, table: Table, least: int) -> str | None:
        return None

    def kept(self, part: str, since: int, *, rewritten: bool) -> str | None:
        return None

    def checksum(self, columns: tuple[Column, ...]) -> str | None:
        return None

    async def time_zone(self) -> str:
        """A file has none; what CURRENT_TIMESTAMP gives is in UTC."""
        return "UTC"

    def older_than(self, column: Column, seconds: float, zone: WriterZone | None) -> str:
        """Numbers are moments, and so are texts that end with their offset."""
        name = f"t.{quote(column.name)}"
        moment = f"(unixepoch('now', 'subsec') - {seconds:f})"
        text = f"julianday({name}) < julianday('now') - {seconds / 86400:.12f}"
        if zone is not None and zone.offsets is not None:
            local = f"{text} + ({zone.offset(moment)}) / 86400.0"
            text = f"CASE WHEN {_HAS_OFFSET.format(name)} THEN {text} ELSE {local} END"
        return f"CASE typeof({name}) WHEN 'text' THEN {text} ELSE {name} < {moment} END"

    def sample(self, table: Table, rows: int | None) -> str | None:
        return None


class SqliteSession:
    """See `producer.sources.sql.table.Session`."""

    def __init__(self, path: Path, timeout_s: float, executor: Executor) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._executor = executor
        self._connection: Connection | None = None
        self._file = ""  # the number on the disk of the file that is open
        self._closed = False
        self._has_read = False

    async def fetch(self, query: Query) -> Rows:
        def work(connection: Connection) -> Rows:
            if query.watched is not None:
                keys = [column for name in query.key for column in query.columns if column.name == name]
                # The first one in each page, which an index answers; the others may need the whole table.
                sqlite_keys.refuse_mixed(connection, query.watched.path[0], keys[:1] if self._has_read else keys)
                self._has_read = True
            rows = _page(connection, query)
            if query.watched is None:
                return rows
            return replace(rows, generation=_generation(connection, query.watched, self._file))

        return await self.run(work)

    async def keys(self, query: Query) -> list[tuple[KeyScalar, ...]]:
        def work(connection: Connection) -> list[tuple[KeyScalar, ...]]:
            return [row[: len(query.columns)] for row in _rows(connection, query.sql, query.params)]

        return await self.run(work)

    async def estimate(self, query: Query) -> tuple[int, int] | None:
        """Counted, which takes 30 ms a million rows; the bytes are those of the whole file, shared out."""

        def work(connection: Connection) -> tuple[int, int]:
            ((rows,),) = _rows(connection, "SELECT count(*) FROM (" + query.sql + ")", query.params)
            return int(rows), self._path.stat().st_size // max(int(rows), 1)

        return await self.run(work)

    async def snapshot(self) -> None:
        return None

    async def close(self) -> None:
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await in_thread(self._executor, connection.close, deadline_s=self._timeout_s)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work` with the session's connection, in a thread."""

        def job() -> T:
            with _translated(self._path):
                connection, self._connection = self._connection, None
                if connection is not None and file_number(self._path) != self._file:
                    connection.close()  # another file has been put in its place
                    connection = None
                if connection is None:
                    connection, self._file = _open_numbered(self._path)
                current.append(connection)
                try:
                    result = work(connection)
                finally:  # also after an error: a read leaves nothing behind once its transaction has ended
                    connection.rollback()
                    if self._closed or self._connection is not None:  # this call was given up, and is late
                        connection.close()
                    else:
                        self._connection = connection
                return result

        def stop() -> None:
            for connection in current:
                connection.cancel()

        current: list[Connection] = []
        try:
            return await in_thread(self._executor, job, deadline_s=self._timeout_s, stop=stop)
        except TimeoutError:
            raise TransientError(
                f"SQLite {str(self._path)!r}: a query took longer than {self._timeout_s:g} s",
                hint="a smaller page_size or a longer statement_timeout_s may help",
            ) from None


def _open_numbered(path: Path) -> tuple[Connection, str]:
    """A connection, and the number of its file: that of another one, put in its place meanwhile, would hide that."""
    while True:
        number = file_number(path)
        connection = _open(path)
        if file_number(path) == number:
            return connection, number
        connection.close()


def _open(path: Path) -> Connection:
    connection = Connection(adbc_driver_sqlite.connect(f"file:{percent(str(path))}?mode=ro"))
    _rows(connection, "PRAGMA busy_timeout = 2000", {})
    connection.rollback()
    return connection


def _page(connection: Connection, query: Query) -> Rows:
    table, query, cut = _bounded(connection, query)
    names = [column.name for column in query.columns]
    guards = iter(table.columns[len(names) :])
    fast: dict[str, pa.Array | None] = {}
    for i, column in enumerate(query.columns):
        kinds = _whole(next(guards)) if column.guard else None
        fast[column.name] = sqlite_types.fast(column, _whole(table.column(i)), kinds)
    stored = _stored(connection, query) if None in fast.values() else None

    def value(name: str, row: int) -> Any:
        """As it is stored, for that is what comparisons see."""
        i = names.index(name)
        return table.column(i)[row].as_py() if stored is None else stored[i][row]

    def convert(column: Column, start: int, stop: int) -> pa.Array:
        if (values := fast[column.name]) is not None:
            return values.slice(start, stop - start)
        assert stored is not None
        return sqlite_types.exact(column, stored[names.index(column.name)][start:stop])

    if stored is not None:
        _refuse_broken(query, stored)
    rows = read_rows(
        query,
        table.num_rows,
        convert,
        lambda column, row: str(value(column.name, row)),
        cut=cut,
        key_at=lambda row: tuple(value(name, row) for name in query.key),
    )
    return rows if query.watched is None else replace(rows, shape=_shape(connection, query.watched.path[0]))


def _refuse_broken(query: Query, stored: list[list[Any]]) -> None:
    """EncodeError for a key that is no text to Python: its place among the texts could not be kept."""
    for column, values in zip(query.columns, stored, strict=True):
        broken = next((value for value in values if isinstance(value, sqlite_types.BrokenText)), None)
        if column.name in query.key and broken is not None:
            key = f"0x{broken.hex()}"
            message = f"column {column.name!r}, row with key {key}: a key's text is not UTF-8"
            raise EncodeError(message, key=key, field=column.name)


def _bounded(connection: Connection, query: Query) -> tuple[pa.Table, Query, bool]:
    """The page in one reading where its rows are not too much for the memory; else the query of as many as are not."""
    numbered, values = _numbered(query.sql, query.params)
    try:
        result = connection.read_bounded(numbered, values, {_BATCH_ROWS: "512"}, drains=False)
    except (Error, OSError) as error:
        if "Type mismatch" not in str(error):
            raise
        connection.rollback()
        return _read(connection, query.sql, query.params), query, False
    if result.cut:
        limit = f" LIMIT {result.table.num_rows:d}"
        query = dataclasses.replace(query, sql=_LIMIT.sub(lambda found: limit + found[1], query.sql))
        return _read(connection, query.sql, query.params), query, True
    return result.table, query, False


def _stored(connection: Connection, query: Query) -> list[list[Any]]:
    """The columns of the page as Python values of the very kinds that are stored.

    Each column is read as four, one for each storage class, so that none is of two kinds. In the transaction of the
    first reading, so it is the same page.
    """
    listed = ", ".join(
        f"CASE typeof({column.select}) WHEN '{kind}' THEN {read.format(column.select)} END"
        for column in query.columns
        for kind, read in _KINDS.items()
    )
    plain = ", ".join(column.select for column in query.columns)
    assert query.sql.startswith("SELECT " + plain)
    table = _read(connection, "SELECT " + listed + query.sql[len("SELECT " + plain) :], query.params)
    encoding = sqlite_keys.encoding(connection)
    columns = []
    for i in range(len(query.columns)):
        kinds = [table.column(len(_KINDS) * i + n).to_pylist() for n in range(len(_KINDS))]
        kinds[-1] = [None if value is None else sqlite_types.decoded(value, encoding) for value in kinds[-1]]
        columns.append([next((value for value in row if value is not None), None) for row in zip(*kinds, strict=True)])
    return columns


# Text as its bytes, because it need not be UTF-8.
_KINDS = {"integer": "{}", "real": "{}", "blob": "{}", "text": "CAST({} AS BLOB)"}


def _read(connection: Connection, sql: str, params: Mapping[str, Any]) -> pa.Table:
    """The fetch seam: a SELECT's result in the driver's own Arrow types."""
    numbered, values = _numbered(sql, params)
    # One batch: the driver derives the types from a page's first batch.
    return connection.read(numbered, values, {_BATCH_ROWS: "1000000"})


def _numbered(sql: str, params: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
    """The statement with numbers for names, and their values."""
    names = list(params)
    numbered = bind_named(sql, lambda name: f"?{names.index(name) + 1}", lexis="sqlite")
    return numbered, tuple(_plain_value(value) for value in params.values())


def _rows(connection: Connection, sql: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """A small result as tuples; a column's values are of one kind."""
    return tuples(_read(connection, sql, params))


def _whole(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks or [pa.array([], values.type)])


def _plain_value(value: Any) -> Any:
    """A parameter as SQLite stores such values: dates as ISO text, booleans as 0 and 1."""
    match value:
        case bool():
            return int(value)
        case dt.datetime():
            return value.isoformat(sep=" ")
        case dt.date():
            return value.isoformat()
        case decimal.Decimal() | uuid.UUID():  # the affinity of a decimal column makes a number of it
            return str(value)
        case None | int() | float() | str() | bytes():
            return value
    raise ConfigError(f"params: SQLite takes no {type(value).__name__}")


def _reflect(connection: Connection, name: str, decimal: str | None) -> Table:
    tables = _rows(
        connection,
        "SELECT name, CASE WHEN sql LIKE 'CREATE VIRTUAL %' THEN 'virtual' ELSE type END FROM sqlite_master "
        "WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
        {},
    )
    kinds: dict[str, str] = dict(tables)
    real = next((table for table in kinds if table == name), None) or next(
        (table for table in kinds if table.lower() == name.lower()), None
    )
    if real is None:
        written = [table if table.isidentifier() else quote(table) for table in kinds]
        raise ConfigError(f"table {name!r} is not there", hint=nearest_table(name, written))
    this = {"table": real}
    infos = _rows(
        connection, 'SELECT name, type, "notnull", pk FROM pragma_table_xinfo(:table) WHERE hidden <> 1', this
    )
    primary = [(place, column) for column, _, _, place in infos if place]
    sql = 'SELECT name, origin, "unique" AND NOT partial FROM pragma_index_list(:table) ORDER BY seq'
    indices = _rows(connection, sql, this)
    # A primary key without an index is another name of the rowid. Any other one may be null, unless the pragma says so:
    # it does for STRICT and WITHOUT ROWID. A virtual table's module keeps to no constraint.
    rowid = len(primary) == 1 and all(origin != "pk" for _, origin, _ in indices)
    enforced = kinds[real] == "table"
    not_null = {column for column, _, flag, place in infos if enforced and (flag or (place and rowid))}
    columns = tuple(
        sqlite_types.column(column, kind, nullable=column not in not_null, wish=decimal) for column, kind, _, _ in infos
    )
    unique = [tuple(column for _, column in sorted(primary))] if primary else []
    indexes = [(name, origin) for name, origin, complete in indices if complete]
    sql = "SELECT name, coll FROM pragma_index_xinfo(:index) WHERE key ORDER BY seqno"
    parts = {index: _rows(connection, sql, {"index": index}) for index, _ in indexes}
    unsorted = {column for listed in parts.values() for column, name in listed if name.upper() not in sqlite_keys.KNOWN}
    unsorted = unsorted or sqlite_keys.unsorted(connection, real, [column.name for column in columns])
    for index, origin in indexes:
        names = tuple(column for column, _ in parts[index])
        # An index tells values apart by its own collation, comparisons by the column's; the binary one tells all apart.
        # One that is not known here proves it too: that the column cannot order rows is said to whom it is the key.
        proves = None not in names and all(
            column in unsorted or sqlite_keys.collation(connection, real, column) in (name.upper(), "BINARY")
            for column, name in parts[index]
        )
        if origin == "pk" and not proves:
            unique.remove(names)
        elif origin != "pk" and proves and not_null.issuperset(names):
            unique.append(names)
    columns = tuple(_unsorted(column) if column.name in unsorted else column for column in columns)
    shape = _shape(connection, real)
    return Table(
        (real,),
        quote(real),
        columns,
        tuple(unique),
        is_view=kinds[real] == "view",
        shape=shape,
        generation=primary[0][1] if rowid else "",
    )


def _unsorted(column: Column) -> Column:
    """A column that only the application compares."""
    return replace(column, sql_type=f"{column.sql_type} with a collation of the application", sortable=False)


def _shape(connection: Connection, table: str) -> str:
    """In the transaction of what was read before, so the table had it then."""
    column = "name || ':' || type || ':' || \"notnull\" || ':' || pk || ':' || hidden"
    sql = f"SELECT group_concat({column}, '/') FROM pragma_table_xinfo(:table)"
    return str(_rows(connection, sql, {"table": table})[0][0])


def _generation(connection: Connection, table: Table, file: str) -> str:
    """Each change of the schema counts, and VACUUM too. `Table.generation` is the column of a rowid: its numbers are
    used again, unless the table is AUTOINCREMENT."""
    if table.is_view:
        return ""
    name = {"table": table.path[0]}
    ((changes, counts),) = _rows(
        connection,
        "SELECT schema_version, sql LIKE '%autoincrement%' FROM sqlite_master, pragma_schema_version "
        "WHERE type = 'table' AND name = :table",
        name,
    ) or [(0, 0)]
    told: dict[str, Any] = {"parts": {"": f"{file}/{changes}"}}
    if table.generation and counts:
        found = _rows(connection, "SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = :table", name)
        told["last"] = {table.generation: found[0][0] if found else None}
    elif table.generation:
        sql = f"SELECT coalesce(max({quote(table.generation)}), 0) FROM {table.source}"
        told["greatest"] = {table.generation: _rows(connection, sql, {})[0][0]}
    return json.dumps(told)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except Error as error:
        raise _translate(error, path) from None
    except UnicodeDecodeError:
        raise EncodeError(f"SQLite {str(path)!r}: a key's text is not UTF-8") from None


_DRIVER = re.compile(r"^[A-Z_]+: \[SQLite\] (Failed to [a-z ]+: )?")  # what the driver says before SQLite's own words


def _translate(error: Exception, path: Path) -> ProducerError:
    text = _DRIVER.sub("", str(error).strip().splitlines()[0])
    where = f"SQLite {str(path)!r}"
    if not path.is_file():
        return ConfigError(f"{where}: there is no such file", hint="sqlite:///relative.db or sqlite:////absolute.db")
    if "locked" in text or "busy" in text:
        return SourceUnavailableError(f"{where}: {text}")
    if "interrupt" in text.lower():
        return TransientError(f"{where}: the query was stopped")
    if "not a database" in text or "unable to open" in text:
        return ConfigError(f"{where}: {text}")
    return ConfigError(f"{where}: {text}")
