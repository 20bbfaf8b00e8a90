"""Owns SQLite: reflection by pragmas, and pages as Arrow (ADBC), with the standard library's driver for the rest.

ADBC steps through a page in C without the interpreter's lock: three times the rate of `sqlite3`, which gives it back
and takes it again for each row. It merges the kinds of a column's values into one type, though; pages where that may
hide something are read again value by value (`sqlite_types`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote as percent
from urllib.parse import unquote

import adbc_driver_sqlite.dbapi as adbc
import pyarrow as pa

from producer.errors import (
    ConfigError,
    EncodeError,
    PermanentError,
    ProducerError,
    SourceUnavailableError,
    TransientError,
)
from producer.model import KeyScalar
from producer.sources.sql import sqlite_types
from producer.sources.sql.arrow import Unreadable
from producer.sources.sql.names import bind_named, nearest, quote, split_name
from producer.sources.sql.table import Options, Query, Rows, Table
from producer.sources.sql.threads import in_thread

if TYPE_CHECKING:
    from adbc_driver_manager.dbapi import Connection

T = TypeVar("T")


class SqliteDatabase:
    """See `producer.sources.sql.table.Database`."""

    mark = '"'
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
        await self._meta.run(lambda connection: connection.execute("SELECT count(*) FROM sqlite_master").fetchall())

    async def close(self) -> None:
        await self._meta.close()

    def session(self) -> SqliteSession:
        return SqliteSession(self._path, self._timeout_s, self._executor)

    async def table(self, name: str, *, decimal: str | None) -> Table:
        path = split_name(name, fold=str)
        if len(path) > 2 or (len(path) == 2 and path[0].lower() != "main"):
            raise ConfigError(f"table {name!r} is not there", hint="an SQLite file has tables, and no schemas but main")
        return await self._meta.run(lambda connection: _reflect(connection, path[-1], decimal))

    async def parameter_types(self, sql: str, names: tuple[str, ...]) -> Mapping[str, str]:
        await self._meta.run(lambda connection: connection.execute("EXPLAIN " + sql, dict.fromkeys(names)).fetchall())
        return {}

    def sample(self, table: Table, rows: int | None) -> str | None:
        return None


class SqliteSession:
    """See `producer.sources.sql.table.Session`."""

    def __init__(self, path: Path, timeout_s: float, executor: Executor) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._executor = executor
        self._plain: sqlite3.Connection | None = None
        self._arrow: Connection | None = None

    async def fetch(self, query: Query) -> Rows:
        return await self.run(lambda connection: self._page(connection, query))

    async def keys(self, query: Query) -> list[tuple[KeyScalar, ...]]:
        def work(connection: sqlite3.Connection) -> list[tuple[KeyScalar, ...]]:
            rows = connection.execute(query.sql, _values(query)).fetchall()
            return [row[: len(query.columns)] for row in rows]  # without the guards

        return await self.run(work)

    async def estimate(self, query: Query) -> tuple[int, int] | None:
        """Counted, which takes 30 ms a million rows; the bytes are those of the whole file, shared out."""

        def work(connection: sqlite3.Connection) -> tuple[int, int]:
            counted = "SELECT count(*) FROM (" + query.sql + ")"
            ((rows,),) = connection.execute(counted, _values(query)).fetchall()
            return int(rows), self._path.stat().st_size // max(int(rows), 1)

        return await self.run(work)

    async def close(self) -> None:
        plain, self._plain, arrow, self._arrow = self._plain, None, self._arrow, None
        if plain is not None:
            plain.close()
        if arrow is not None:
            arrow.close()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` with the session's plain connection, in a thread."""

        def job() -> T:
            with _translated(self._path):
                if self._plain is None:
                    self._plain = sqlite3.connect(_uri(self._path), uri=True, check_same_thread=False, timeout=5.0)
                return work(self._plain)

        def stop() -> None:
            if self._plain is not None:
                self._plain.interrupt()
            if self._arrow is not None:
                self._arrow.adbc_cancel()

        try:
            return await in_thread(self._executor, job, deadline_s=self._timeout_s, stop=stop)
        except TimeoutError:
            raise TransientError(
                f"SQLite {str(self._path)!r}: a query took longer than {self._timeout_s:g} s",
                hint="a smaller page_size or a longer statement_timeout_s may help",
            ) from None

    def _page(self, connection: sqlite3.Connection, query: Query) -> Rows:
        table = self._read(query)
        names = [column.name for column in query.columns]
        guards = iter(table.columns[len(names) :])
        stored: list[tuple[Any, ...]] | None = None
        arrays: list[pa.Array] = []
        for i, column in enumerate(query.columns):
            kinds = _whole(next(guards)) if column.guard else None
            values = sqlite_types.fast(column, _whole(table.column(i)), kinds)
            if values is None:
                if stored is None:
                    stored = connection.execute(query.sql, _values(query)).fetchall()
                try:
                    values = sqlite_types.exact(column, [row[i] for row in stored])
                except Unreadable as error:
                    key = [str(stored[error.row][names.index(name)]) for name in query.key]
                    raise error.error(column.name, ", ".join(key)) from None
            arrays.append(values)
        batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema([column.field for column in query.columns]))

        def key_at(row: int) -> tuple[KeyScalar, ...]:
            """As it is stored, for that is what comparisons see."""
            places = [names.index(name) for name in query.key]
            return tuple(table.column(i)[row].as_py() if stored is None else stored[row][i] for i in places)

        return Rows(batch, key_at)

    def _read(self, query: Query) -> pa.Table:
        """The page as ADBC sees it."""
        if self._arrow is None:
            self._arrow = adbc.connect(_uri(self._path))
        names = list(query.params)
        sql = bind_named(query.sql, lambda name: f"?{names.index(name) + 1}")
        values = tuple(_plain_value(value) for value in query.params.values())
        # One batch: the driver derives the types from a page's first batch.
        with self._arrow.cursor(adbc_stmt_kwargs={"adbc.sqlite.query.batch_rows": "1000000"}) as cursor:
            cursor.execute(sql, parameters=values or None)
            table = cursor.fetch_arrow_table()
        self._arrow.commit()
        return table


def _whole(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else pa.concat_arrays(values.chunks or [pa.array([], values.type)])


def _values(query: Query) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in query.params.items()}


def _plain_value(value: Any) -> Any:
    """A parameter as SQLite stores such values: dates as ISO text, booleans as 0 and 1."""
    match value:
        case bool():
            return int(value)
        case dt.datetime():
            return value.isoformat(sep=" ")
        case dt.date():
            return value.isoformat()
        case None | int() | float() | str() | bytes():
            return value
    raise ConfigError(f"params: SQLite takes no {type(value).__name__}")


def _uri(path: Path) -> str:
    return f"file:{percent(str(path))}?mode=ro"


def _reflect(connection: sqlite3.Connection, name: str, decimal: str | None) -> Table:
    tables = connection.execute(
        "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    ).fetchall()
    kinds = dict(tables)
    real = next((table for table in kinds if table == name or table.lower() == name.lower()), None)
    if real is None:
        raise ConfigError(f"table {name!r} is not there", hint=nearest(name, kinds))
    infos = connection.execute(
        'SELECT name, type, "notnull", pk FROM pragma_table_xinfo(?) WHERE hidden <> 1', (real,)
    ).fetchall()
    primary = [(place, column) for column, _, _, place in infos if place]
    declared = {column: kind.upper() for column, kind, _, _ in infos}
    rowid = len(primary) == 1 and declared[primary[0][1]] == "INTEGER"  # an alias of the rowid: never null
    not_null = {column for column, _, flag, place in infos if flag or (place and rowid)}
    columns = tuple(
        sqlite_types.column(column, kind, nullable=column not in not_null, wish=decimal) for column, kind, _, _ in infos
    )
    unique = [tuple(column for _, column in sorted(primary))] if primary else []
    for (index,) in connection.execute(
        "SELECT name FROM pragma_index_list(?) WHERE \"unique\" AND NOT partial AND origin <> 'pk' ORDER BY seq",
        (real,),
    ).fetchall():
        names = [row[0] for row in connection.execute("SELECT name FROM pragma_index_info(?) ORDER BY seqno", (index,))]
        if all(column in not_null for column in names):
            unique.append(tuple(names))
    return Table((real,), quote(real), columns, tuple(unique), is_view=kinds[real] == "view")


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, adbc.Error) as error:
        raise _translate(error, path) from None


def _translate(error: Exception, path: Path) -> ProducerError:
    text = str(error).strip().splitlines()[0]
    where = f"SQLite {str(path)!r}"
    if not path.is_file():
        return ConfigError(f"{where}: there is no such file", hint="sqlite:///relative.db or sqlite:////absolute.db")
    if "locked" in text or "busy" in text:
        return SourceUnavailableError(f"{where}: {text}")
    if "interrupt" in text.lower():
        return TransientError(f"{where}: the query was stopped")
    if "Could not decode to UTF-8" in text:
        return EncodeError(f"{where}: a text value is not UTF-8: {text}")
    if "not a database" in text or "unable to open" in text:
        return ConfigError(f"{where}: {text}")
    if isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError):
        return ConfigError(f"{where}: {text}")
    return PermanentError(f"{where}: {text}")
