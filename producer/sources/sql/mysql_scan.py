"""A scan of MySQL or MariaDB: one unbuffered SELECT on a connection with settings of its own.

The settings and the form of literals are stated here once more, apart from those of the page readers. Literals are
written in hexadecimal digits: no mode of the server escapes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import socket
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

import asyncmy
from asyncmy.cursors import SSCursor
from asyncmy.errors import MySQLError

from producer.errors import ConfigError, ProducerError, SourceUnavailableError
from producer.model import KeyScalar
from producer.sources.sql import mysql_types
from producer.sources.sql.names import bind_named
from producer.sources.sql.table import Query, Rows
from producer.sources.sql.threads import in_thread

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

T = TypeVar("T")

#: A page of a scan; the first one waits for the server to sort, where no index has the order.
WAIT_S = 3600.0
_PAGE_ROWS, _PAGE_BYTES, _FETCH_ROWS = 8_000, 8 * 2**20, 128
_RECEIVE_BYTES = 2**18  # what the system may hold for us: the driver reads it at once

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


class _PausingLoop(asyncio.SelectorEventLoop):
    """An event loop that can stop reading from its sockets. The driver by itself reads whatever comes, without a bound,
    while a page is worked on."""

    def __init__(self) -> None:
        super().__init__()
        self._newest: list[Any] = []

    async def create_connection(self, *arguments: Any, **options: Any) -> Any:
        found = await super().create_connection(*arguments, **options)
        self._note(found[0])
        return found

    async def create_unix_connection(self, *arguments: Any, **options: Any) -> Any:
        found = await super().create_unix_connection(*arguments, **options)
        self._note(found[0])
        return found

    async def start_tls(self, *arguments: Any, **options: Any) -> Any:
        found = await super().start_tls(*arguments, **options)
        self._note(found)
        return found

    def _note(self, transport: Any) -> None:
        """The newest transport is the one that is used: one over TLS has the one before it inside."""
        self._newest = [transport]
        if (connected := transport.get_extra_info("socket")) is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)

    def pause(self) -> None:
        for transport in self._newest:
            transport.pause_reading()

    def resume(self) -> None:
        for transport in self._newest:
            transport.resume_reading()


class _Runner:
    """Runs coroutines of the driver in threads, in an event loop of their own."""

    def __init__(self, executor: Executor, translate: Callable[[Exception], ProducerError]) -> None:
        self._executor = executor
        self._translate = translate
        self.loop = _PausingLoop()

    async def run(self, work: Coroutine[Any, Any, T], wait_s: float = WAIT_S) -> T:
        """`work`, within `wait_s`; the driver's errors as ours."""
        task = self.loop.create_task(work)

        def job() -> T:
            try:
                return self.loop.run_until_complete(task)
            except (MySQLError, OSError) as error:
                raise self._translate(error) from None

        def stop() -> None:
            self.loop.call_soon_threadsafe(task.cancel)

        try:
            return await in_thread(self._executor, job, deadline_s=wait_s, stop=stop)
        except TimeoutError:
            raise SourceUnavailableError(f"the database did not answer within {wait_s:g} s") from None

    def close(self) -> None:
        if not self.loop.is_running():  # else a thread still hangs in it
            self.loop.close()


class MysqlScan:
    """See `producer.sources.sql.table.Scan`. `page` makes rows of the driver's."""

    def __init__(self, runner: _Runner, connection: Any, page: Callable[[Query, list[Any], bool], Rows]) -> None:
        self._runner = runner
        self._connection = connection
        self._page = page

    async def first(self, query: Query) -> tuple[KeyScalar, ...] | None:
        found: tuple[KeyScalar, ...] | None = None
        async for rows in self.rows(query):
            found = rows.key_at(0)
        return found

    async def rows(self, query: Query) -> AsyncGenerator[Rows]:
        sql = bind_named(
            query.sql, lambda name: _literals(query.params[name], query.types.get(name, "")), lexis="mysql"
        )
        cursor = self._connection.cursor(SSCursor)
        await self._runner.run(cursor.execute(sql))
        ended = False
        while not ended:
            found, ended = await self._runner.run(_some(self._runner.loop, cursor))
            if found:
                yield await asyncio.to_thread(self._page, query, found, False)
        await self._runner.run(cursor.close())


async def _some(loop: _PausingLoop, cursor: Any) -> tuple[list[Any], bool]:
    """The next rows, as many as make a page, and whether they are the last ones. Nothing is read after them."""
    loop.resume()
    found: list[Any] = []
    size = 0
    while len(found) < _PAGE_ROWS and size < _PAGE_BYTES:
        rows = await cursor.fetchmany(_FETCH_ROWS)
        found += rows
        if len(rows) < _FETCH_ROWS:
            return found, True
        size += sum(len(value) for row in rows for value in row if value is not None)
    loop.pause()
    return found, False


@contextlib.asynccontextmanager
async def open_scan(
    executor: Executor,
    url: URL,
    page: Callable[[Query, list[Any], bool], Rows],
    translate: Callable[[Exception], ProducerError],
    connect_timeout_s: float,
) -> AsyncIterator[MysqlScan]:
    """A scan on a new connection. It is broken off at the end: what is left of a result is not read."""
    runner = _Runner(executor, translate)
    try:
        connection = await runner.run(_connected(url, connect_timeout_s), 2 * connect_timeout_s)
        try:
            yield MysqlScan(runner, connection, page)
        finally:
            connection.close()
            await runner.run(asyncio.sleep(0), connect_timeout_s)  # lets the socket go
    finally:
        runner.close()


async def _connected(url: URL, connect_timeout_s: float) -> Any:
    _, arguments = url.get_dialect()().create_connect_args(url)
    given: dict[str, Any] = dict(arguments)
    connection = await asyncmy.connect(
        **given
        | {
            "conv": {},  # values stay the server's text
            "charset": "utf8mb4",
            "init_command": _FIRST,
            "autocommit": True,
            "connect_timeout": max(1, round(connect_timeout_s)),
        }
    )
    try:
        await _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


async def _prepare(connection: Any) -> None:
    names = ", ".join(f"'{name}'" for name in _SETTINGS)
    async with connection.cursor() as cursor:
        await cursor.execute(f"SHOW SESSION VARIABLES WHERE Variable_name IN ({names})")
        known = {str(row[0]).lower() for row in await cursor.fetchall()}
        listed = ", ".join(f"SESSION {name} = {value}" for name, value in _SETTINGS.items() if name in known)
        for statement in (f"SET {listed}", _NAMES, *_SNAPSHOT):
            await cursor.execute(statement)


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
