"""Owns MySQL and MariaDB: reflection from information_schema, and pages through SQLAlchemy and an async driver.

The driver is told to leave values as the server's text, and whole columns of them are cast in Arrow: no Decimal or
datetime object is made for any value.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from producer.errors import (
    AuthenticationError,
    ConfigError,
    PermanentError,
    ProducerError,
    SourceUnavailableError,
    TransientError,
)
from producer.identity import Identity
from producer.model import KeyScalar
from producer.sources.sql import mysql_scan, mysql_session, mysql_types
from producer.sources.sql.arrow import read_rows
from producer.sources.sql.lexis import Lexis
from producer.sources.sql.mysql_session import literal
from producer.sources.sql.names import bind_named, nearest_table, quote, split_name
from producer.sources.sql.origin import MYSQL_VARIABLES, mysql_origin
from producer.sources.sql.table import (
    MAX_RESULT_BYTES,
    PUT_BACK_HOURS,
    Column,
    Options,
    Query,
    Rows,
    Scan,
    Table,
    WriterZone,
)
from producer.sources.sql.threads import STOP_GRACE_S

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")


#: Rows between two looks at how much memory they hold.
_ROWS_AT_ONCE = 64

_TABLES = """
SELECT TABLE_NAME, TABLE_TYPE, TABLE_COMMENT, AVG_ROW_LENGTH FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s
"""
_COLUMNS = """
SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, IS_NULLABLE, NUMERIC_PRECISION, NUMERIC_SCALE, COLUMN_COMMENT,
  CHARACTER_SET_NAME, COLLATION_NAME
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s ORDER BY ORDINAL_POSITION
"""
_UNIQUE = """
SELECT INDEX_NAME, COLUMN_NAME, NULLABLE, SUB_PART FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0
ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX
"""
_GENERATION = """
SELECT CONCAT_WS('/', COALESCE(CREATE_TIME, ''), COALESCE(AUTO_INCREMENT, ''))
FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s
"""
#: InnoDB's numbers of the table and its partitions, which TRUNCATE changes too; only with PROCESS are they to be seen.
_STORAGE = """
SELECT CONCAT(COUNT(*), '.', COALESCE(SUM(TABLE_ID), 0)) FROM information_schema.INNODB_SYS_TABLES
WHERE BINARY SUBSTRING_INDEX(NAME, '#P#', 1) = %s
"""
_STORED_TABLES = "SELECT COUNT(*) FROM information_schema.INNODB_SYS_TABLES"
#: Each look goes through all of the server's tables, which takes about a millisecond for so many.
_MOST_STORED_TABLES = 1000
_PLAIN_NAME = re.compile(r"\w+", re.ASCII)  # InnoDB writes other characters in an encoding of its own
_COUNTER = """
SELECT COLUMN_NAME FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND EXTRA LIKE '%%auto_increment%%'
"""
_SHAPE = f"""
SELECT CONCAT(COUNT(*), '/', COALESCE(SUM(CRC32(
  CONCAT_WS('/', ORDINAL_POSITION, COLUMN_NAME, COLUMN_TYPE, IS_NULLABLE, CHARACTER_SET_NAME))), 0)),
  {mysql_session.STATE}
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s
"""
_SHAPE_FROM = "\nFROM information_schema.COLUMNS"
_WATCHED = _SHAPE.replace(_SHAPE_FROM, f",\n  ({_GENERATION}){_SHAPE_FROM}")
_WATCHED_STORAGE = _WATCHED.replace(_SHAPE_FROM, f",\n  ({_STORAGE}){_SHAPE_FROM}")
_CHECKS = """
SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS WHERE CONSTRAINT_SCHEMA = %s AND TABLE_NAME = %s
"""
#: What the server's clock shows at a moment in UTC.
_SERVERS_ZONE = "CONVERT_TZ({}, '+00:00', @@global.time_zone)"


class MysqlDatabase:
    """See `producer.sources.sql.table.Database`."""

    mark = "`"
    lexis: Lexis = "mysql"
    row_values = False
    has_planner = False  # its guess for a range of more than half of the rows is half of the rows

    def __init__(self, options: Options, executor: Executor) -> None:
        url = make_url(options.url)
        url = url.set(drivername=f"{url.get_backend_name().lower()}+asyncmy")  # whichever driver is named: it is ours
        self._url = url
        self._options = options
        self._executor = executor
        self._engine = _engine(url, options)
        self._meta = self.session()
        self._sees_storage = True

    async def start(self) -> None:
        await self._meta.rows("SELECT 1")

    async def close(self) -> None:
        await self._meta.close()
        await self._engine.dispose()

    def open_scan(self) -> AbstractAsyncContextManager[Scan]:
        url, timeout_s = self._url, self._options.connect_timeout_s
        return mysql_scan.open_scan(self._executor, url, _page, lambda error: _translate(error, url), timeout_s)

    def session(self) -> MysqlSession:
        return MysqlSession(self._engine, self._url, self._options)

    async def table(self, name: str, *, decimal: str | None) -> Table:
        path = split_name(name, fold=str)
        schema = path[0] if len(path) == 2 else self._url.database
        if schema is None or len(path) > 2:
            raise ConfigError(
                f"table {name!r} is not there", hint="write it as database.table, or put /database in url"
            )
        tables = {row[0]: row for row in await self._meta.rows(_TABLES, schema)}
        real = path[-1] if path[-1] in tables else next((t for t in tables if t.lower() == path[-1].lower()), None)
        if real is None:
            raise ConfigError(f"table {name!r} is not there", hint=nearest_table(path[-1], tables))
        _, kind, comment, row_bytes = tables[real]
        ((shape, _),) = await self._meta.rows(_SHAPE, schema, real)  # first: what changes from here on is another one
        checks = await self._checks(schema, real)
        declared = await self._meta.rows(_COLUMNS, schema, real)
        columns = tuple(
            mysql_types.column(
                mysql_types.Declared(
                    column,
                    data_type,
                    full,
                    nullable == "YES",
                    int(precision or 0),
                    int(scale or 0),
                    remark,
                    f"json_valid({quote(column, '`')})" in checks,
                    charset or "",
                    collation or "",
                )
            )
            for column, data_type, full, nullable, precision, scale, remark, charset, collation in declared
        )
        return Table(
            (schema, real),
            f"{quote(schema, '`')}.{quote(real, '`')}",
            columns,
            await self._unique(schema, real),
            "" if comment == "VIEW" else comment,
            is_view="VIEW" in kind,
            row_bytes_estimate=int(row_bytes or 0) or None,
            shape=shape,
            generation=next((row[0] for row in await self._meta.rows(_COUNTER, schema, real)), ""),
            storage="" if "VIEW" in kind else await self._storage(schema, real),
        )

    async def _storage(self, schema: str, table: str) -> str:
        """InnoDB's name of the table; '' where this user may not see its storage."""
        if not self._sees_storage or not (_PLAIN_NAME.fullmatch(schema) and _PLAIN_NAME.fullmatch(table)):
            return ""
        try:
            ((tables,),) = await self._meta.rows(_STORED_TABLES)
            ((found,),) = await self._meta.rows(_STORAGE, f"{schema}/{table}")
        except (AuthenticationError, ConfigError, PermanentError):  # no privilege, or a server without this view
            self._sees_storage = False
            return ""
        few = int(tables) <= _MOST_STORED_TABLES
        return f"{schema}/{table}" if few and not str(found).startswith("0.") else ""

    async def origin(self, table: Table) -> Identity:
        listed = ", ".join(f"'{name}'" for name in MYSQL_VARIABLES)
        found = await self._meta.query(f"SHOW VARIABLES WHERE Variable_name IN ({listed})")
        variables = {str(name): str(value) for name, value in found}
        return mysql_origin(self._options.url, table.path[0], variables)

    async def _checks(self, schema: str, table: str) -> frozenset[str]:
        """The table's check clauses; MySQL's own view of them has no TABLE_NAME, nor does it need one to tell JSON."""
        if "mariadb" not in (await self._meta.rows("SELECT VERSION()"))[0][0].lower():
            return frozenset()
        return frozenset(row[0] for row in await self._meta.rows(_CHECKS, schema, table))

    async def _unique(self, schema: str, table: str) -> tuple[tuple[str, ...], ...]:
        found: dict[str, list[str]] = {}
        unfit: set[str] = set()
        for index, column, nullable, prefix in await self._meta.rows(_UNIQUE, schema, table):
            found.setdefault(index, []).append(column)
            if nullable == "YES" or prefix is not None or column is None:
                unfit.add(index)
        return tuple(tuple(columns) for index, columns in found.items() if index not in unfit)

    async def parameter_types(self, sql: str, names: tuple[str, ...]) -> Mapping[str, str]:
        # Without a row, and not EXPLAIN: that needs more than SELECT where the table is a view.
        await self._meta.query(bind_named(sql, lambda name: "NULL", lexis=self.lexis) + " LIMIT 0")
        return {}

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        raise ConfigError("notify: only PostgreSQL can notify", hint="leave notify out: the table is polled")

    def inserted_since(self, table: Table, least: int) -> str | None:
        return None

    def kept(self, part: str, since: int, *, rewritten: bool) -> str | None:
        return None

    def checksum(self, columns: tuple[Column, ...]) -> str | None:
        if any(pa.types.is_floating(column.field.type) for column in columns):
            return None  # as text they have fewer digits than they have
        texts = ", ".join(f"HEX(CAST(t.{quote(column.name, self.mark)} AS BINARY))" for column in columns)
        return f"CAST(CONV(LEFT(MD5(CONCAT_WS(',', {texts})), 15), 16, 10) AS UNSIGNED)"

    async def time_zone(self) -> str:
        """The global one; ``SYSTEM`` with what the server's machine calls it."""
        ((name, system, known),) = await self._meta.query(
            f"SELECT @@global.time_zone, @@system_time_zone, {_SERVERS_ZONE.format('UTC_TIMESTAMP(6)')} IS NOT NULL"
        )
        if str(known) != "1":
            raise ConfigError(
                f"{_where(self._url)}: the server has no table of time zones, and its own is {name}",
                hint="set zone on the stream, or load the tables by mariadb-tzinfo-to-sql",
            )
        return f"SYSTEM ({system})" if name == "SYSTEM" else str(name)

    def older_than(self, column: Column, seconds: float, zone: WriterZone | None) -> str:
        name, delay = f"t.{quote(column.name, self.mark)}", round(seconds * 1_000_000)
        moment = f"UTC_TIMESTAMP(6) - INTERVAL {delay:d} MICROSECOND"
        if zone is None:
            return f"{name} < {moment}"
        if zone.offsets is not None:
            offset = zone.offset(f"UNIX_TIMESTAMP() - {round(seconds):d}")
            return f"{name} < {moment} + INTERVAL ({offset}) SECOND"
        # By its variable, and not by the name: only the server knows what SYSTEM is, and it may be set while we read.
        ahead = f"INTERVAL {PUT_BACK_HOURS:d} HOUR"
        local, later = (_SERVERS_ZONE.format(f"{moment}{more}") for more in ("", f" + {ahead}"))
        return f"{name} < LEAST({local}, {later} - {ahead})"

    def sample(self, table: Table, rows: int | None) -> str | None:
        return None


class MysqlSession:
    """See `producer.sources.sql.table.Session`."""

    def __init__(self, engine: AsyncEngine, url: URL, options: Options) -> None:
        self._engine = engine
        self._url = url
        self._options = options
        self._connection: AsyncConnection | None = None
        self._closed = False

    async def fetch(self, query: Query) -> Rows:
        found, cut = await self._read(_bound(query))
        page = asyncio.to_thread(_page, query, found, cut)
        if query.watched is None:
            return await page
        # After the rows, and beside their conversion: a change that they do not show yet is one too many at worst.
        converting = asyncio.ensure_future(page)
        converting.add_done_callback(lambda done: done.cancelled() or done.exception())  # never "not retrieved"
        shape, state, generation, storage = await self._watched(query.watched)
        if state != mysql_session.STATE_SET:
            await self._forget()
            raise SourceUnavailableError(
                f"{_where(self._url)}: the connection's settings were reset after it was made: they are now {state}",
                hint="a proxy in between must keep a session's variables, or not share connections",
            )
        told = _generation(query.watched, str(generation or "/"), storage)
        return replace(await converting, shape=str(shape), generation=told)

    async def _watched(self, table: Table) -> tuple[str, str, str | None, str]:
        """The table's shape, the connection's settings, and what tells the table from another one of its name."""
        if not table.storage:
            ((shape, state, generation),) = await self.rows(_WATCHED, *table.path, *table.path)
            return shape, state, generation, ""
        ((shape, state, generation, storage),) = await self.rows(
            _WATCHED_STORAGE, *table.path, table.storage, *table.path
        )
        return shape, state, generation, storage

    async def keys(self, query: Query) -> list[tuple[KeyScalar, ...]]:
        found, _ = await self._read(_bound(query))
        values, guards = _by_name(query, found)
        columns = [mysql_types.key_values(c, values[c.name], guards.get(c.name)) for c in query.columns]
        return list(zip(*columns, strict=True))

    async def estimate(self, query: Query) -> tuple[int, int] | None:
        """Of a view PermanentError where the server does not show its definition to the user."""
        async with self._using() as connection:
            result = await connection.exec_driver_sql(_escaped("EXPLAIN " + _bound(query)))
            row = result.mappings().first()
        return None if row is None or row.get("rows") is None else (int(row["rows"]), 0)

    async def rows(self, sql: str, *values: str) -> list[Any]:
        """All rows of a query with ``%s`` in the place of each of `values`; each value as text, bytes or None."""
        return await self.query(sql % tuple(map(literal, values)))

    async def query(self, sql: str) -> list[Any]:
        """All rows, each value as text, bytes or None."""
        async with self._using() as connection:
            result = await connection.exec_driver_sql(_escaped(sql))
            return list(result.fetchall())

    async def _read(self, sql: str) -> tuple[list[Any], bool]:
        """The rows as `rows` gives them, but no more than hold `MAX_RESULT_BYTES`, give or take `_ROWS_AT_ONCE`; and
        whether more were to come, which end with their connection."""

        def some(connection: Connection) -> tuple[list[Any], bool]:
            result = connection.exec_driver_sql(_escaped(sql), execution_options={"stream_results": True})
            found: list[Any] = []
            size = 0
            while size < MAX_RESULT_BYTES or len(found) < 2:
                rows = result.fetchmany(_ROWS_AT_ONCE)
                found += rows
                if len(rows) < _ROWS_AT_ONCE:
                    result.close()
                    return found, False
                size += sum(len(value) for row in rows for value in row if value is not None)
            connection.invalidate()
            return found, True

        async with self._using() as connection:
            found, cut = await connection.run_sync(some)
            if cut:
                await connection.close()
        return found, cut

    async def snapshot(self) -> None:
        return None

    async def close(self) -> None:
        self._closed = True  # a call that is under way keeps its connection no longer
        await self._forget()

    async def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _discard(connection)

    @contextlib.asynccontextmanager
    async def _using(self) -> AsyncIterator[AsyncConnection]:
        """The session's connection, under a deadline; after any failure the next call connects anew."""
        connection, self._connection = self._connection, None
        deadline_s = self._options.connect_timeout_s + self._options.statement_timeout_s
        try:
            async with asyncio.timeout(deadline_s):
                if connection is None:
                    connection = await self._open()
                yield connection
            if connection.closed:
                connection = None
            elif self._connection is None and not self._closed:  # else another call beside this one has kept its own
                self._connection, connection = connection, None
        except TimeoutError:
            raise SourceUnavailableError(f"{_where(self._url)} did not answer within {deadline_s:g} s") from None
        except (SQLAlchemyError, OSError) as error:
            raise _translate(error, self._url) from None
        finally:
            if connection is not None:
                await _discard(connection)

    async def _open(self) -> AsyncConnection:
        """A new connection. A cancellation waits for it, for a short while: SQLAlchemy, cut in the middle of making
        one, leaves it to the garbage collector."""
        opening = asyncio.create_task(self._opened())
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait({opening}, timeout=STOP_GRACE_S)
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await _discard(opening.result())
            opening.cancel()
            raise

    async def _opened(self) -> AsyncConnection:
        connection = await self._engine.connect()
        try:
            await self._prepare(connection)
        except BaseException:
            await _discard(connection)
            raise
        return connection

    async def _prepare(self, connection: AsyncConnection) -> None:
        found = (await connection.exec_driver_sql(mysql_session.VARIABLES)).fetchall()
        variables = {str(row._mapping["Variable_name"]): str(row._mapping["Value"]) for row in found}
        await connection.exec_driver_sql(mysql_session.preparation(variables, self._options.statement_timeout_s))


def _generation(table: Table, found: str, storage: str) -> str:
    """ALTER TABLE changes the CREATE_TIME as well. `Table.generation` names the column that counts by itself."""
    made, _, following = found.partition("/")
    made = f"{made} {storage}" if storage else made
    last = {table.generation: int(following or 1) - 1} if table.generation else {}
    return "" if table.is_view else json.dumps({"parts": {"": made}, "last": last})


def _engine(url: URL, options: Options) -> AsyncEngine:
    return create_async_engine(
        url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={
            "conv": {},  # values stay the server's text
            "charset": "utf8mb4",
            "init_command": mysql_session.FIRST,
            "connect_timeout": max(1, round(options.connect_timeout_s)),
        },
    )


async def _discard(connection: AsyncConnection) -> None:
    """Closes a connection that may be in the middle of anything; goes on by itself where the caller is cancelled."""
    await asyncio.shield(asyncio.create_task(_invalidate(connection)))


async def _invalidate(connection: AsyncConnection) -> None:
    with contextlib.suppress(SQLAlchemyError, OSError):
        await connection.invalidate()
        await connection.close()


def _bound(query: Query) -> str:
    """The query with the literal of each value in its place."""

    def one(name: str) -> str:
        sql_type = query.types.get(name, "")
        value = mysql_types.ordinal(sql_type, query.params[name])
        items = value if isinstance(value, list | tuple) else [value]
        return ", ".join(literal(item, sql_type) for item in items) or "NULL"  # a list is for IN (:name)

    return bind_named(query.sql, one, lexis="mysql")


def _escaped(sql: str) -> str:
    """For the driver, which reads ``%s`` and ``%%`` also where there are no values."""
    return sql.replace("%", "%%")


def _page(query: Query, found: list[Any], cut: bool) -> Rows:
    values, guards = _by_name(query, found)

    def convert(column: Column, start: int, stop: int) -> pa.Array:
        if column.guard:
            found = guards[column.name][start:stop]
            mysql_types.refuse_lost(column, values[column.name][start:stop], found)
            if column.name in query.key:
                mysql_types.refuse_ambiguous(column, found)
        return mysql_types.convert(column, values[column.name][start:stop])

    def key_at(row: int) -> tuple[KeyScalar, ...]:
        keys = [column for name in query.key for column in query.columns if column.name == name]
        this = slice(row, row + 1)
        return tuple(
            mysql_types.key_values(c, values[c.name][this], guards[c.name][this] if c.guard else None)[0] for c in keys
        )

    rows = read_rows(
        query, len(found), convert, lambda column, row: str(values[column.name][row]), cut=cut, key_at=key_at
    )
    for name in query.key:
        if mysql_types.longest(rows.batch.column(name)) > mysql_session.MAX_KEY_LENGTH:
            raise PermanentError(
                f"column {name!r}: a key is longer than the {mysql_session.MAX_KEY_LENGTH} that are surely sorted",
                hint="name shorter columns in key",
            )
    return rows


def _by_name(query: Query, found: list[Any]) -> tuple[dict[str, Sequence[Any]], dict[str, Sequence[Any]]]:
    """The values of each column, and of each guard."""
    columns = [column.name for column in query.columns]
    guarded = [column.name for column in query.columns if column.guard]
    values = list(zip(*found, strict=True)) if found else [()] * (len(columns) + len(guarded))
    return dict(zip(columns, values, strict=False)), dict(zip(guarded, values[len(columns) :], strict=True))


def _where(url: URL) -> str:
    return f"{url.get_backend_name()} at {url.host or 'localhost'}:{url.port or 3306}"


_REFUSED = frozenset({1044, 1045, 1142, 1143, 1227, 1698, 1820, 3118})
_MISCONFIGURED = frozenset({1049, 1054, 1064, 1109, 1146, 1149, 1305})
_UNREACHABLE = frozenset({2002, 2003, 2005})
_TURNED_AWAY = frozenset({1040, 1053, 1203, 1226, 1927})
_OUT_OF_SORT_MEMORY = 1038
_PASSING = frozenset({1205, 1213, 1317, 1969, 3024})


def _translate(error: Exception, url: URL) -> ProducerError:
    """The driver's error as ours, by the server's error number."""
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = next((arg for arg in origin.args if isinstance(arg, int)), None)
    code = code if code is not None else _code_in(str(origin))
    text = str(origin.args[-1] if origin.args else origin)
    if url.password:
        text = text.replace(str(url.password), "***")
    text = f"{_where(url)}: {text}"
    if code in _REFUSED:
        return AuthenticationError(text, hint="check url in the source, and the user's grants")
    if code in _MISCONFIGURED:
        return ConfigError(text)
    if code == _OUT_OF_SORT_MEMORY:
        return PermanentError(text, hint="name shorter columns in key, such as ones with an index")
    if code in _PASSING:
        return TransientError(text, hint="a smaller page_size or a longer statement_timeout_s may help")
    if code in _UNREACHABLE:
        return SourceUnavailableError(text, hint="is the server up, and host and port in the source's url right?")
    if code is None or 2000 <= code < 3000 or code in _TURNED_AWAY:
        return SourceUnavailableError(text)
    return PermanentError(text)


def _code_in(text: str) -> int | None:
    digits = text.lstrip("(").partition(",")[0]
    return int(digits) if digits.isdigit() else None
