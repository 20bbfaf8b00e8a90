"""Owns PostgreSQL: reflection from pg_catalog, and pages as Arrow by binary COPY (ADBC).

A page is one short READ ONLY transaction of two statements. The first sets, by bound parameters and for this
transaction only, the statement timeout and one setting for each value of the query; the second reads the page and
takes its values by ``current_setting``, which is stable, so the planner uses them for index ranges and estimates. It
has no bound parameters itself, because the driver reads a query that has some without COPY, at two thirds of the rate.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from adbc_driver_manager import Error

from producer import postgres_urls
from producer.errors import ConfigError, EncodeError, SchemaChangedError, SourceUnavailableError
from producer.holes import Snapshot
from producer.identity import Identity
from producer.model import KeyScalar
from producer.postgres import pin
from producer.postgres_urls import PostgresUrl
from producer.sources.sql import libpq, postgres_scan, postgres_types, postgres_values
from producer.sources.sql.adbc import Connection, Result, tuples
from producer.sources.sql.arrow import Unreadable, part, read_rows
from producer.sources.sql.lexis import Lexis
from producer.sources.sql.libpq import CopyConnection, LibpqError
from producer.sources.sql.names import bind_named, quote, split_name
from producer.sources.sql.origin import postgres_origin
from producer.sources.sql.pool import C, Lease, Pool
from producer.sources.sql.postgres_catalog import Run, parameter_types, reflect, shape_query
from producer.sources.sql.postgres_driver import Driver
from producer.sources.sql.postgres_errors import translate
from producer.sources.sql.postgres_keys import key_at, key_value, position_text, shown
from producer.sources.sql.postgres_notify import listening
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
from producer.sources.sql.threads import STOP_GRACE_S, in_thread

T = TypeVar("T")

_DATABASE = """
SELECT pg_catalog.current_database()::pg_catalog.text,
       pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
"""
_SYSTEM = "SELECT system_identifier::pg_catalog.text FROM pg_catalog.pg_control_system()"
_TIME_ZONE = "SELECT reset_val FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) 'TimeZone'"
_SNAPSHOT = """
SELECT pg_catalog.pg_snapshot_xmin(s)::pg_catalog.text, pg_catalog.pg_snapshot_xmax(s)::pg_catalog.text
FROM pg_catalog.pg_current_snapshot() s
"""

_SAMPLE_ROWS = 20_000
_SAMPLE_FROM_ROWS = 200_000  # below this many rows all keys are looked at
#: Idle connections that are kept: of those that read pages, as many as there may be.
_KEPT, _KEPT_ASIDE = 512, 2
#: The search for a bad row may take so many times the time of a page.
_ATTEMPTS = 10


class PostgresDatabase:
    """See `producer.sources.sql.table.Database`."""

    mark = '"'
    lexis: Lexis = "postgres"
    row_values = True
    has_planner = True

    def __init__(self, options: Options, executor: Executor) -> None:
        self._options = options
        self._executor = executor
        self._url = postgres_urls.read(options.url, "the source's url")
        uri = _libpq_uri(self._url, options)
        found = libpq.load()
        self._copies = None if found is None else Pool(lambda: CopyConnection(found, uri), LibpqError, keep=_KEPT)
        # Where pages are read by COPY, the driver's connections are for what is asked now and then.
        keep = _KEPT if found is None else _KEPT_ASIDE
        self._driver = Driver(uri)
        self._pool = Pool(self._driver.connect, Error, keep=keep)
        self._meta = self.session()
        self._seed = random.getrandbits(62)

    async def start(self) -> None:
        await self._meta.run(lambda connection: None)

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            await in_thread(self._executor, self._pool.close, deadline_s=self._options.connect_timeout_s)
        if self._copies is not None:
            with contextlib.suppress(TimeoutError):
                await in_thread(self._executor, self._copies.close, deadline_s=self._options.connect_timeout_s)

    def open_scan(self) -> AbstractAsyncContextManager[Scan]:
        timeout_s = self._options.connect_timeout_s
        translated = partial(translate, url=self._url)
        return postgres_scan.open_scan(self._executor, self._driver.connect, _page, translated, timeout_s)

    def session(self) -> PostgresSession:
        return PostgresSession(self._options, self._url, self._executor, self._driver, self._pool, self._copies)

    async def table(self, name: str, *, decimal: str | None) -> Table:
        path = split_name(name, fold=str.lower)
        if len(path) > 2:
            raise ConfigError(f"table {name!r} has more parts than schema and table")
        try:
            return await self._meta.run(lambda connection: reflect(partial(_rows, connection), name, path, decimal))
        except EncodeError as error:
            what = f"table {name!r}: a name, a comment or a label of an enum cannot be read"
            raise ConfigError(f"{what}: {error.message}", hint="rename it in the database") from None

    async def origin(self, table: Table) -> Identity:
        def work(connection: Connection) -> Identity:
            ((database, readable),) = _rows(connection, _DATABASE)
            system = _rows(connection, _SYSTEM)[0][0] if readable else None
            return postgres_origin(self._options.url, database, system)

        return await self._meta.run(work)

    async def parameter_types(self, sql: str, names: tuple[str, ...]) -> Mapping[str, str]:
        if not names:
            return {}
        numbered = bind_named(sql, lambda name: f"${names.index(name) + 1}", lexis=self.lexis)
        try:
            return await self._meta.run(lambda connection: parameter_types(partial(_rows, connection), numbered, names))
        except EncodeError as error:
            raise ConfigError(f"where: {error.message}") from None

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        await listening(self._options, channel, wake)

    def inserted_since(self, table: Table, least: int) -> str | None:
        """A row keeps 32 bits of its transaction's number: the newest of these that is not in the future. A
        subtransaction's number lies above its transaction's, so a comparison sees it, which a look into the snapshot's
        list of running transactions would not."""
        if table.is_view or table.untracked:
            return None
        now = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        return f"{now} - (({now} - t.xmin::text::bigint) & 4294967295) >= {least:d}"

    def kept(self, part: str, since: int, *, rewritten: bool) -> str | None:
        """VACUUM FULL, CLUSTER and another tablespace leave each row its transaction. ALTER TABLE writes all rows by
        its own one, which has written a column's entry in the catalogue as well, or that of the table itself."""
        now = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        old = f"{now} - (({now} - t.xmin::text::bigint) & 4294967295) < {since:d}"
        catalogues = [f"SELECT a.xmin FROM pg_catalog.pg_attribute a WHERE a.attrelid = {part}::oid AND a.attnum > 0"]
        if rewritten:
            catalogues.append(f"SELECT c.xmin FROM pg_catalog.pg_class c WHERE c.oid = {part}::oid")
        return f"({old} OR t.xmin IN ({' UNION ALL '.join(catalogues)}))"

    def checksum(self, columns: tuple[Column, ...]) -> str | None:
        names = ", ".join(f"t.{quote(column.name)}" for column in columns)
        values = names if len(columns) == 1 else f"ROW({names})"
        return f'hashtextextended(({values})::text COLLATE "C", {self._seed:d})'

    async def time_zone(self) -> str:
        """Of the server, the database or the role: what the session had before its own transactions set another."""
        ((zone,),) = await self._meta.run(lambda connection: _rows(connection, _TIME_ZONE))
        return str(zone)

    def older_than(self, column: Column, seconds: float, zone: WriterZone | None) -> str:
        moment = f"(now() - pg_catalog.make_interval(secs => {seconds:f}))"
        before = f"{column.operand.format('t.' + quote(column.name))} {column.operator('<')}"
        if zone is None:
            return f"{before} {moment}"
        if zone.offsets is not None:
            offset = zone.offset(f"extract(epoch FROM {moment})")
            return f"{before} {moment} AT TIME ZONE 'UTC' + pg_catalog.make_interval(secs => {offset})"
        name, ahead = quote(zone.name, "'"), f"interval '{PUT_BACK_HOURS:d} hours'"
        later = f"({moment} + {ahead}) AT TIME ZONE {name} - {ahead}"
        return f"{before} LEAST({moment} AT TIME ZONE {name}, {later})"

    def sample(self, table: Table, rows: int | None) -> str | None:
        whole = f"{table.source} t"
        if table.is_view or rows is None or rows < _SAMPLE_FROM_ROWS:
            return whole
        percent = max(100.0 * _SAMPLE_ROWS / rows, 0.01)
        return f"{whole} TABLESAMPLE SYSTEM ({percent:.4f}) REPEATABLE (7)"


class PostgresSession:
    """See `producer.sources.sql.table.Session`."""

    def __init__(
        self,
        options: Options,
        url: PostgresUrl,
        executor: Executor,
        driver: Driver,
        pool: Pool[Connection],
        copies: Pool[CopyConnection] | None,
    ) -> None:
        self._options = options
        self._url = url
        self._executor = executor
        self._driver = driver
        self._pool = pool
        self._copies = copies

    async def fetch(self, query: Query) -> Rows:
        try:
            return await self._fetch(query)
        except EncodeError as error:
            if error.row is not None:  # it is known which
                raise
            found = error
        work = partial(_isolated, self._options, self._url, self._driver, query, found)
        return await self._run(self._pool, work, statements=_ATTEMPTS)

    async def _fetch(self, query: Query) -> Rows:
        form = None
        if self._copies is not None and not any(column.guard for column in query.columns):
            wires = [(column.wire, column.field.type) for column in query.columns]
            form = libpq.columns_form([*wires, *(("text", field.type) for field in _position_fields(query))])
        if self._copies is not None and form is not None:
            found = await self._run(self._copies, partial(_copied, self._options, query, form))
            if found is not None:
                return found
        return await self.run(partial(_fetched, self._options, query))

    async def keys(self, query: Query) -> list[tuple[KeyScalar, ...]]:
        """Also those whose rows have no form in Avro."""
        names = tuple(column.name for column in query.columns)
        rows = await self.fetch(replace(query, key=names, salvage=True))
        return [rows.key_at(row) for row in range(rows.count)]

    async def estimate(self, query: Query) -> tuple[int, int] | None:
        def work(connection: Connection) -> tuple[int, int]:
            with _transaction(partial(_rows, connection), self._options, query) as (sql, *_):
                plan = json.loads(_rows(connection, "EXPLAIN (FORMAT JSON) " + sql)[0][0])[0]["Plan"]
            return int(plan["Plan Rows"]), int(plan["Plan Width"])

        return await self.run(work)

    async def snapshot(self) -> Snapshot | None:
        ((least, end),) = await self.run(lambda connection: _rows(connection, _SNAPSHOT))
        return Snapshot(int(least), int(end))

    async def close(self) -> None:
        """A session holds nothing between two calls."""

    async def run(self, work: Callable[[Connection], T]) -> T:
        """`work` with a connection of the driver, in a thread, as one transaction."""

        def begun(connection: Connection) -> T:
            self._driver.begin(connection)
            return work(connection)

        return await self._run(self._pool, begun)

    async def _run(self, pool: Pool[C], work: Callable[[C], T], *, statements: int = 1) -> T:
        """`statements` is how many of them may need all of their time."""
        options, lease = self._options, Lease(pool)

        def job() -> T:
            with _translated(self._url), lease as connection:
                result = work(connection)
                connection.commit()
                return result

        deadline_s = options.connect_timeout_s + statements * options.statement_timeout_s + STOP_GRACE_S
        try:
            return await in_thread(self._executor, job, deadline_s=deadline_s, stop=lease.stop)
        except TimeoutError:
            raise SourceUnavailableError(f"PostgreSQL did not answer within {deadline_s:g} s") from None


@contextlib.contextmanager
def _transaction(run: Run, options: Options, query: Query) -> Iterator[tuple[str, str, str]]:
    """Makes the transaction read-only, pins its settings, sets its timeout and the query's values; yields the SQL that
    reads them, and the shape and generation of the table it watches, which is locked against changes from then on until
    the transaction's end."""
    names = _given(query)
    settings = [pin(), "pg_catalog.set_config('transaction_read_only', 'on', true)"]
    settings.append("pg_catalog.set_config('statement_timeout', $1, true)")
    settings += [f"pg_catalog.set_config('producer.p{i}', ${i + 2}, true)" for i in range(len(names))]
    values = [f"{round(options.statement_timeout_s * 1000)}", *(_setting(query.params[name]) for name in names)]
    shape = generation = "''"
    if query.watched is not None:  # the locks of a statement are there before it sees anything
        settings.append(f"(SELECT true FROM {query.watched.source} WHERE false)")
        values.append(query.watched.source)
        shape = shape_query(query.watched).replace("$1", f"${len(values)}")
        generation = query.watched.generation.replace("$1", f"${len(values)}") or generation
    found = run(f"SELECT {', '.join(settings)}, {shape}, {generation}", values)

    yield _bound(query), found[0][-2], found[0][-1] or ""


def _bound(query: Query) -> str:
    """The query's SQL, with its values taken from the transaction's settings."""
    names = _given(query)

    def value(name: str) -> str:
        source = f"current_setting('producer.p{names.index(name)}')" if name in names else "NULL"
        return f"({source}::{query.types[name]})"

    return bind_named(query.sql, value, lexis="postgres")


def _given(query: Query) -> list[str]:
    """The parameters that are settings: a null is written as such."""
    return [name for name, value in query.params.items() if value is not None]


def _setting(value: Any) -> str:
    """A parameter's value as the text that PostgreSQL's input function of its type reads."""
    match value:
        case bool():
            return "true" if value else "false"
        case bytes():
            return "\\x" + value.hex()
        case list() | tuple():
            return "{" + ",".join(_array_item(item) for item in value) + "}"
        case date():
            return value.isoformat()
        case float():
            return repr(value)
    return str(value)


def _array_item(value: Any) -> str:
    if value is None:
        return "NULL"
    return '"' + _setting(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _rows(connection: Connection, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """A small result as tuples, with bound parameters."""
    return tuples(connection.read(sql, values, {"adbc.postgresql.use_copy": "false"}))


def _copied(options: Options, query: Query, form: bytes, connection: CopyConnection) -> Rows | None:
    """A page straight from the wire; None where a value has no form in its column's type: `_fetched` names it."""
    schema = pa.schema([*(column.field for column in query.columns), *_position_fields(query)])
    with _transaction(connection.rows, options, query) as (sql, shape, generation):
        if _has_changed(query, shape):
            return _no_rows(query, shape, generation)
        found = connection.copy(sql, schema, form, MAX_RESULT_BYTES)
    if found is None:
        return None
    count = len(query.columns)
    batch = found.batch.select(range(count)) if len(schema) > count else found.batch
    positions = dict(zip(_positioned(query), found.batch.columns[count:], strict=True))
    return Rows(batch, partial(key_at, batch, positions, query.key), found.cut, shape=shape, generation=generation)


def _positioned(query: Query) -> list[str]:
    """The columns whose texts for positions come at the end of a row."""
    return [column.name for column in query.columns if column.position]


def _position_fields(query: Query) -> list[pa.Field]:
    return [pa.field(f"position of {name}", pa.string()) for name in _positioned(query)]


def _fetched(options: Options, query: Query, connection: Connection) -> Rows:
    """A page by way of the driver's own Arrow types."""
    with _transaction(partial(_rows, connection), options, query) as (sql, shape, generation):
        if _has_changed(query, shape):
            return _no_rows(query, shape, generation)
        result = _read(connection, sql)
    return replace(_page(result, query), shape=shape, generation=generation)


def _isolated(
    options: Options, url: PostgresUrl, driver: Driver, query: Query, error: EncodeError, connection: Connection
) -> Rows:
    """A page with a value that cannot be read: see `postgres_values.isolate`."""
    generation = ""  # of the first reading: a later change is seen at the next page

    def read(sql: str) -> Result:
        nonlocal generation
        try:
            driver.begin(connection)
            with _translated(url), _transaction(partial(_rows, connection), options, query) as (_, shape, now):
                generation = generation or now
                if _has_changed(query, shape):
                    raise SchemaChangedError("the table has changed while a value of it was looked for")
                result = _read(connection, sql)
                connection.commit()
            return result
        except EncodeError:
            connection.rollback()
            raise

    found = postgres_values.isolate(query, _bound(query), error, read, _page, _values)
    return replace(found, shape="" if query.watched is None else query.watched.shape, generation=generation)


def _values(column: Column, result: Result) -> pa.Array:
    """The one column of a result, and its guard."""
    if column.guard:
        postgres_types.refuse_odd_arrays(_whole(result.table.column(1)))
    return postgres_types.convert(column, _whole(result.table.column(0)))


def _has_changed(query: Query, shape: str) -> bool:
    return query.watched is not None and shape != query.watched.shape


def _no_rows(query: Query, shape: str, generation: str) -> Rows:
    """For a table that has changed: its rows are not of the known types."""
    return Rows(
        pa.RecordBatch.from_pylist([], pa.schema([c.field for c in query.columns])),
        lambda row: (),
        shape=shape,
        generation=generation,
    )


def _read(connection: Connection, sql: str) -> Result:
    """A SELECT's result from the wire, in the driver's own Arrow types."""
    return connection.read_bounded(
        sql, (), {"adbc.postgresql.batch_size_hint_bytes": str(MAX_RESULT_BYTES)}, drains=True
    )


def _page(result: Result, query: Query) -> Rows:
    """The driver's columns as the query's: one record batch of the declared types."""
    table = result.table
    found = {column.name: _whole(table.column(i)) for i, column in enumerate(query.columns)}
    guarded = [column.name for column in query.columns if column.guard]
    more = [_whole(values) for values in table.columns[len(query.columns) :]]
    guards = dict(zip(guarded, more, strict=False))  # and after them the positions
    positions = dict(zip(_positioned(query), more[len(guarded) :], strict=True))
    keys = {column.name: column for column in query.columns if column.name in query.key}

    def show(column: Column, row: int) -> str:
        odd = guards[column.name][row] if column.guard else None
        return shown(odd if odd is not None and odd.is_valid else found[column.name][row])

    def convert(column: Column, start: int, stop: int) -> pa.Array:
        if column.guard:
            postgres_types.refuse_odd_arrays(guards[column.name].slice(start, stop - start))
        return postgres_types.convert(column, part(found[column.name], start, stop))

    def key_of_row(row: int) -> tuple[KeyScalar, ...]:
        return tuple(
            position_text(name, positions[name], row)
            if name in positions
            else _key_value(keys[name], found[name].slice(row, 1))
            for name in query.key
        )

    return read_rows(query, table.num_rows, convert, show, cut=result.cut, key_at=key_of_row)


def _key_value(column: Column, found: pa.Array) -> KeyScalar:
    """Of an array of one value: the value, or what the driver has of it where it has no form in the column's type."""
    try:
        return key_value(column.field, postgres_types.convert(column, found)[0])
    except Unreadable:
        return shown(found[0])


def _whole(values: pa.ChunkedArray) -> pa.Array:
    if values.num_chunks == 1:
        return values.chunk(0)
    return pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)


def _libpq_uri(url: PostgresUrl, options: Options) -> str:
    """The configured URL for libpq: SQLAlchemy's driver suffix dropped, time limits on every wait of the socket."""
    limits = {
        "connect_timeout": str(max(2, round(options.connect_timeout_s))),
        "tcp_user_timeout": str(round(options.statement_timeout_s * 1000)),
        "keepalives_idle": "15",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "application_name": "producer",
        "client_encoding": "UTF8",
        "gssencmode": "disable",  # else libpq looks for a Kerberos ticket first
    }
    return postgres_urls.for_libpq(url, limits)


@contextlib.contextmanager
def _translated(url: PostgresUrl) -> Iterator[None]:
    try:
        yield
    except (Error, LibpqError) as error:
        raise translate(error, url) from None
