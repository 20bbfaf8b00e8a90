"""A scan of MySQL or MariaDB: one unbuffered SELECT on a connection with settings of its own.

The settings and the form of literals are stated here once more, apart from those of the page readers. Literals are
written in hexadecimal digits: no mode of the server escapes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from producer.errors import ConfigError, EncodeError, ProducerError, SourceUnavailableError
from producer.model import KeyScalar
from producer.sources.sql import mysql_types
from producer.sources.sql.names import bind_named
from producer.sources.sql.table import Query, Rows

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection, CursorResult
    from sqlalchemy.ext.asyncio import AsyncConnection

#: A page of a scan; the first one waits for the server to sort, where no index has the order.
WAIT_S = 3600.0
_PAGE_ROWS, _PAGE_BYTES, _FETCH_ROWS = 8_000, 8 * 2**20, 128

#: Every setting that decides which rows there are, how they sort and how a value reads, and the limits that would end a
#: long scan. Those that the server does not know are left out.
_SETTINGS: Mapping[str, str] = {
    "sql_mode": "'ALLOW_INVALID_DATES'",
    "time_zone": "'+00:00'",
    "character_set_collations": "''",
    "div_precision_increment": "4",
    "lc_time_names": "'en_US'",
    "max_join_size": "18446744073709551615",
    "max_sort_length": "524288",
    "sort_buffer_size": "GREATEST(@@sort_buffer_size, 8388608)",  # with less the server refuses to sort such texts
    "max_statement_time": "0",
    "max_execution_time": "0",
    "net_write_timeout": "3600",
    "old_mode": "'UTF8_IS_UTF8MB3'",
    "sql_auto_is_null": "0",
    "sql_big_selects": "1",
    "sql_select_limit": "18446744073709551615",
    "system_versioning_asof": "DEFAULT",
}
#: Before anything else, as the driver and SQLAlchemy have queries of their own.
_FIRST = f"SET SESSION sql_mode = {_SETTINGS['sql_mode']}, SESSION sql_select_limit = {_SETTINGS['sql_select_limit']}"
_NAMES = "SET NAMES utf8mb4 COLLATE utf8mb4_general_ci"
_SNAPSHOT = (
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT",
)


class MysqlScan:
    """See `producer.sources.sql.table.Scan`. `page` makes rows of the driver's, `translate` errors of its."""

    def __init__(
        self,
        connection: AsyncConnection,
        page: Callable[[Query, list[Any], bool], Rows],
        translate: Callable[[Exception], ProducerError],
    ) -> None:
        self._connection = connection
        self._page = page
        self._translate = translate

    async def first(self, query: Query) -> tuple[KeyScalar, ...] | None:
        found: tuple[KeyScalar, ...] | None = None
        async for rows in self.rows(query):
            with contextlib.suppress(EncodeError):
                found = rows.key_at(0)
        return found

    async def rows(self, query: Query) -> AsyncGenerator[Rows]:
        sql = bind_named(
            query.sql, lambda name: _literals(query.params[name], query.types.get(name, "")), lexis="mysql"
        )
        result = await self._run(lambda connection: _execute(connection, sql))
        ended = False
        try:
            while not ended:
                found, ended = await self._run(lambda connection: _some(result))
                if found:
                    yield await asyncio.to_thread(self._page, query, found, False)
        finally:
            if ended:
                await self._run(lambda connection: result.close())

    async def _run(self, work: Callable[[Connection], Any]) -> Any:
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._connection.run_sync(work)
        except TimeoutError:
            raise SourceUnavailableError(f"the database did not answer within {WAIT_S:g} s") from None
        except (SQLAlchemyError, OSError) as error:
            raise self._translate(error) from None


def _execute(connection: Connection, sql: str) -> CursorResult[Any]:
    return connection.exec_driver_sql(sql.replace("%", "%%"), (), execution_options={"stream_results": True})


def _some(result: CursorResult[Any]) -> tuple[list[Any], bool]:
    """The next rows, as many as make a page, and whether they are the last ones."""
    found: list[Any] = []
    size = 0
    while len(found) < _PAGE_ROWS and size < _PAGE_BYTES:
        rows = result.fetchmany(_FETCH_ROWS)
        found += rows
        if len(rows) < _FETCH_ROWS:
            return found, True
        size += sum(len(value) for row in rows for value in row if value is not None)
    return found, False


@contextlib.asynccontextmanager
async def open_scan(
    url: URL,
    page: Callable[[Query, list[Any], bool], Rows],
    translate: Callable[[Exception], ProducerError],
    connect_timeout_s: float,
) -> AsyncIterator[MysqlScan]:
    """A scan on a new connection. It is broken off at the end: what is left of a result is not read."""
    engine = create_async_engine(
        url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={
            "conv": {},  # values stay the server's text
            "charset": "utf8mb4",
            "init_command": _FIRST,
            "connect_timeout": max(1, round(connect_timeout_s)),
        },
    )
    connection: AsyncConnection | None = None
    try:
        try:
            async with asyncio.timeout(2 * connect_timeout_s):
                connection = await engine.connect()
                await _prepare(connection)
        except TimeoutError:
            raise SourceUnavailableError(f"the database did not answer within {2 * connect_timeout_s:g} s") from None
        except (SQLAlchemyError, OSError) as error:
            raise translate(error) from None
        yield MysqlScan(connection, page, translate)
    finally:
        with contextlib.suppress(SQLAlchemyError, OSError):
            if connection is not None:
                await connection.invalidate()
                await connection.close()
        await engine.dispose()


async def _prepare(connection: AsyncConnection) -> None:
    names = ", ".join(f"'{name}'" for name in _SETTINGS)
    there = await connection.exec_driver_sql(f"SHOW SESSION VARIABLES WHERE Variable_name IN ({names})")
    known = {str(row[0]).lower() for row in there.fetchall()}
    listed = ", ".join(f"SESSION {name} = {value}" for name, value in _SETTINGS.items() if name in known)
    for statement in (f"SET {listed}", _NAMES, *_SNAPSHOT):
        await connection.exec_driver_sql(statement)


def _literals(value: Any, sql_type: str) -> str:
    """A parameter's value as SQL; of a list, with commas between, for ``IN (:name)``."""
    if isinstance(value, list | tuple):
        return ", ".join(literal(item, sql_type) for item in value) or "NULL"
    return literal(mysql_types.ordinal(sql_type, value), sql_type)


def literal(value: Any, sql_type: str = "") -> str:
    """A value as SQL that reads the same in every mode of the server. Bytes compared with a text are of its set."""
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(int(value))
        case float():
            return f"{value!r}e0" if "e" not in repr(value) else repr(value)
        case decimal.Decimal():
            return format(value, "f")
        case str() | uuid.UUID():
            return f"_utf8mb4 x'{str(value).encode().hex()}'"
        case bytes():
            charset = sql_type.partition(" character set ")[2].partition(" ")[0]
            return f"_{charset or 'binary'} x'{value.hex()}'"
        case dt.datetime() if value.tzinfo is not None:
            return f"TIMESTAMP'{value.astimezone(dt.UTC).replace(tzinfo=None).isoformat(sep=' ')}'"
        case dt.datetime():
            return f"TIMESTAMP'{value.isoformat(sep=' ')}'"
        case dt.date() | dt.time():
            return f"'{value.isoformat()}'"
    raise ConfigError(f"params: MySQL takes no {type(value).__name__}")
