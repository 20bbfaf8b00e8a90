"""A scan of PostgreSQL: one COPY in one REPEATABLE READ transaction, on a connection with settings of its own.

The settings that decide how values are written as text are stated here once more, apart from those of the page readers,
so that a value which those readers get in another form shows as a difference. Values are decoded by the ADBC driver,
also those that page readers decode by the compiled COPY reader.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from datetime import date
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from adbc_driver_manager import Error

from producer.errors import ProducerError, SourceUnavailableError
from producer.model import KeyScalar
from producer.sources.sql.adbc import Connection, Result
from producer.sources.sql.names import bind_named
from producer.sources.sql.table import Query, Rows
from producer.sources.sql.threads import in_thread

T = TypeVar("T")

#: A page of a scan; the first one waits for the server to find the order.
WAIT_S = 3600.0
_BATCH_BYTES = 4 * 2**20

#: Every setting that decides how a value reads, and the limits that would end a long scan. In one statement, which sets
#: those that the server knows.
_SETTINGS: Mapping[str, str] = {
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "bytea_output": "hex",
    "datestyle": "ISO, YMD",
    "extra_float_digits": "3",
    "gin_fuzzy_search_limit": "0",  # above it an index gives only some of the rows
    "intervalstyle": "postgres",
    "lc_numeric": "C",
    "lc_time": "C",
    "quote_all_identifiers": "off",
    "row_security": "on",
    "standard_conforming_strings": "on",
    "timezone": "UTC",
    "timezone_abbreviations": "Default",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
    "xmloption": "content",
    "statement_timeout": "0",
    "lock_timeout": "60000",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "enable_sort": "off",  # along an index where there is one: rows come at once, and no disk is filled
    "jit": "off",
}
_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class PostgresScan:
    """See `producer.sources.sql.table.Scan`. `page` makes rows of the driver's result, `translate` errors of its."""

    def __init__(
        self,
        executor: Executor,
        connection: Connection,
        page: Callable[[Result, Query], Rows],
        translate: Callable[[Any], ProducerError],
    ) -> None:
        self._executor = executor
        self._connection = connection
        self._page = page
        self._translate = translate

    async def first(self, query: Query) -> tuple[KeyScalar, ...] | None:
        found: tuple[KeyScalar, ...] | None = None
        async for rows in self.rows(query):  # to the end: a result that is broken off ends the transaction
            found = rows.key_at(0)
        return found

    async def rows(self, query: Query) -> AsyncGenerator[Rows]:
        sql = bind_named(
            query.sql, lambda name: literal(query.params[name], query.types.get(name, "")), lexis="postgres"
        )
        batches = self._connection.batches(sql, {"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)})
        ended = False
        try:
            while not ended:
                batch = await self._run(lambda: next(batches, None))
                ended = batch is None
                if batch is not None and batch.num_rows:
                    yield await self._run(partial(self._rows, query, batch))
        finally:
            if not ended:
                await self._run(lambda: self._stop(batches))
            batches.close()

    def _rows(self, query: Query, batch: pa.RecordBatch) -> Rows:
        return self._page(Result(pa.Table.from_batches([batch]), False), query)

    def _stop(self, batches: Iterator[pa.RecordBatch]) -> None:
        """Ends the statement: the driver reads a result to its end before it lets go."""
        self._connection.cancel()
        with contextlib.suppress(Error):
            for _ in batches:
                pass

    async def _run(self, work: Callable[[], T]) -> T:
        return await run(self._executor, work, self._translate, stop=self._connection.cancel)


async def run(
    executor: Executor,
    work: Callable[[], T],
    translate: Callable[[Any], ProducerError],
    *,
    stop: Callable[[], None] | None = None,
    wait_s: float = WAIT_S,
) -> T:
    """`work()` in a thread, within `wait_s`; the driver's errors as ours."""

    def job() -> T:
        try:
            return work()
        except Error as error:
            raise translate(error) from None

    try:
        return await in_thread(executor, job, deadline_s=wait_s, stop=stop)
    except TimeoutError:
        raise SourceUnavailableError(f"the database did not answer within {wait_s:g} s") from None


@contextlib.asynccontextmanager
async def open_scan(
    executor: Executor,
    connect: Callable[[], Connection],
    page: Callable[[Result, Query], Rows],
    translate: Callable[[Any], ProducerError],
    connect_timeout_s: float,
) -> AsyncIterator[PostgresScan]:
    """A scan on a new connection that `connect` makes; it is closed at the end."""
    connection = await run(executor, lambda: _prepared(connect()), translate, wait_s=2 * connect_timeout_s)
    try:
        yield PostgresScan(executor, connection, page, translate)
    finally:
        await run(executor, connection.close, translate, wait_s=connect_timeout_s)


def _prepared(connection: Connection) -> Connection:
    try:
        plain = {"adbc.postgresql.use_copy": "false"}
        connection.read(_SNAPSHOT, (), plain)
        connection.read(_pins(), (), plain)
    except BaseException:
        connection.close()
        raise
    return connection


def _pins() -> str:
    """Sets `_SETTINGS`, and what depends on the server, until the transaction's end: behind a pooler the session is
    somebody else's after it. It is read under the role's search path, so that it qualifies
    all functions and operators.

    Names are looked up in pg_catalog first, and then along that path, where a condition may need them. Text of a
    database without an encoding comes as it is stored. Money keeps a locale in which it has not two decimals.
    """
    values = ", ".join(f"('{name}', '{value}')" for name, value in _SETTINGS.items())
    equal = "OPERATOR(pg_catalog.=)"
    path = "pg_catalog.current_setting('search_path')"
    return (
        "SELECT pg_catalog.set_config(s.name, v.value, true) FROM pg_catalog.pg_settings s "
        f"JOIN (VALUES {values}) v(name, value) ON pg_catalog.lower(s.name) {equal} v.name "
        "UNION ALL SELECT pg_catalog.set_config('lc_monetary', 'C', true) "
        f"WHERE pg_catalog.scale('1'::pg_catalog.money::pg_catalog.numeric) {equal} 2 "
        "UNION ALL SELECT pg_catalog.set_config('client_encoding', CASE WHEN "
        f"pg_catalog.current_setting('server_encoding') {equal} 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, true) "
        "UNION ALL SELECT pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', 'pg_catalog', "
        f"CASE WHEN {path} {equal} '' THEN NULL ELSE {path} END, 'pg_temp'), true)"
    )


def literal(value: Any, sql_type: str) -> str:
    """A value as SQL that reads the same under any setting: its text in hexadecimal digits, cast to the type.

    It has no collation of its own, as a parameter, so that a comparison is by the column's: 'UTF8' alone would be a
    name, whose collation "C" goes over to the text.
    """
    if value is None:
        return f"CAST(NULL AS {sql_type})" if sql_type else "NULL"
    if isinstance(value, bytes):
        return f"decode('{value.hex()}', 'hex')"
    text = f"convert_from(decode('{_text(value).encode().hex()}', 'hex'), 'UTF8'::text::name)"
    return f"CAST({text} AS {sql_type})" if sql_type else text


def _text(value: Any) -> str:
    """What PostgreSQL's input function of the value's type reads."""
    match value:
        case bool():
            return "true" if value else "false"
        case bytes():
            return "\\x" + value.hex()
        case list() | tuple():
            return "{" + ",".join("NULL" if item is None else _quoted(_text(item)) for item in value) + "}"
        case date():
            return value.isoformat()
        case float():
            return repr(value)
    return str(value)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
