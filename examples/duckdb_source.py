"""Owns an example of one more database for the SQL source: DuckDB, which answers in Arrow by itself.

A dialect is one class that does what `producer.sources.sql.table.Database` says, and one entry in `DIALECTS`;
traversals, splits, checkpoints and everything after them come with the source. Run it as it stands: it makes a small
database, plans three splits over it and reads them page by page.

    python examples/duckdb_source.py [rows]
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from producer.config import StreamConfig
from producer.errors import ConfigError, SourceUnavailableError
from producer.identity import Identity
from producer.model import KeyScalar
from producer.sources.sql import SqlConfig, SqlSource
from producer.sources.sql.dialects import DIALECTS
from producer.sources.sql.lexis import Lexis
from producer.sources.sql.names import bind_named, nearest, quote, split_name
from producer.sources.sql.scalars import key_of
from producer.sources.sql.table import Column, Options, Query, Rows, Table, WriterZone
from producer.sources.sql.threads import in_thread

T = TypeVar("T")


class DuckDatabase:
    """``duckdb:///relative.db`` or ``duckdb:////absolute.db``, opened for reading only."""

    mark = '"'
    lexis: Lexis = "postgres"
    row_values = False  # rows between two rows are more than its optimizer takes
    has_planner = False

    def __init__(self, options: Options, executor: Executor) -> None:
        self._path = options.url.partition("://")[2].removeprefix("/")
        self._file = os.path.abspath(self._path)
        self._timeout_s = options.statement_timeout_s
        self._executor = executor
        self._meta = self.session()

    async def start(self) -> None:
        await self._meta.run(lambda connection: connection.execute("SELECT 1"))

    async def close(self) -> None:
        await self._meta.close()

    async def origin(self, table: Table) -> Identity:
        return Identity({"source": "duckdb"}, names=(f"file {self._file}",))

    def session(self) -> DuckSession:
        return DuckSession(self._path, self._timeout_s, self._executor)

    async def table(self, name: str, *, decimal: str | None) -> Table:
        path = split_name(name, fold=str)
        source = ".".join(quote(part) for part in path)

        def work(connection: duckdb.DuckDBPyConnection) -> Table:
            names = [row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            if path[-1] not in names:
                raise ConfigError(f"table {name!r} is not there", hint=nearest(path[-1], names))
            schema = _arrow(connection, f"SELECT * FROM {source} LIMIT 0", {}).schema
            described = {row[0]: row for row in connection.execute(f"DESCRIBE {source}").fetchall()}
            columns = tuple(
                Column(
                    field.name,
                    field.with_nullable(described[field.name][2] == "YES").with_metadata(
                        {"sql_type": described[field.name][1]}
                    ),
                    f"t.{quote(field.name)}",
                    described[field.name][1],
                )
                for field in schema
            )
            primary = tuple(row[0] for row in described.values() if row[3] == "PRI")
            return Table(path, source, columns, (primary,) if primary else ())

        return await self._meta.run(work)

    async def parameter_types(self, sql: str, names: tuple[str, ...]) -> Mapping[str, str]:
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
        return "UTC"

    def older_than(self, column: Column, seconds: float, zone: WriterZone | None) -> str:
        moment = f"now() - INTERVAL ({seconds:f}) SECOND"
        if zone is None:
            return f"t.{quote(column.name)} < {moment}"
        offset = zone.offset(f"epoch({moment})") if zone.offsets else "0"
        return f"t.{quote(column.name)} < ({moment}) AT TIME ZONE 'UTC' + INTERVAL ({offset}) SECOND"

    def sample(self, table: Table, rows: int | None) -> str | None:
        return f"{table.source} t"  # a window over a whole column is what it does best


class DuckSession:
    """One connection; see `producer.sources.sql.table.Session`."""

    def __init__(self, path: str, timeout_s: float, executor: Executor) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._executor = executor
        self._connection: duckdb.DuckDBPyConnection | None = None

    async def fetch(self, query: Query) -> Rows:
        def work(connection: duckdb.DuckDBPyConnection) -> Rows:
            sql = bind_named(query.sql, lambda name: f"${name}", lexis="postgres")
            table = _arrow(connection, sql, query.params).combine_chunks()
            arrays = [
                values.chunk(0) if values.num_chunks else pa.array([], values.type) for values in table.itercolumns()
            ]
            schema = pa.schema([column.field for column in query.columns])
            batch = pa.RecordBatch.from_arrays(
                [a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema
            )
            return Rows(batch, lambda row: key_of(batch, query.key, row))

        return await self.run(work)

    async def keys(self, query: Query) -> list[tuple[KeyScalar, ...]]:
        batch = (await self.fetch(query)).batch
        return [key_of(batch, batch.schema.names, row) for row in range(batch.num_rows)]

    async def estimate(self, query: Query) -> tuple[int, int] | None:
        def work(connection: duckdb.DuckDBPyConnection) -> int:
            sql = bind_named(f"SELECT count(*) FROM ({query.sql})", lambda name: f"${name}", lexis="postgres")
            found = connection.execute(sql, dict(query.params) or None).fetchone()
            return int(found[0]) if found else 0

        return await self.run(work), 0

    async def snapshot(self) -> None:
        return None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def run(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """`work` in a thread, DuckDB's errors as the product's."""

        def job() -> T:
            try:
                if self._connection is None:
                    self._connection = duckdb.connect(self._path, read_only=True)
                return work(self._connection)
            except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException) as error:
                raise ConfigError(f"DuckDB: {str(error).splitlines()[0]}") from None
            except duckdb.Error as error:
                raise SourceUnavailableError(f"DuckDB: {str(error).splitlines()[0]}") from None

        def stop() -> None:
            if self._connection is not None:
                self._connection.interrupt()

        try:
            return await in_thread(self._executor, job, deadline_s=self._timeout_s, stop=stop)
        except TimeoutError:
            raise SourceUnavailableError(f"DuckDB did not answer within {self._timeout_s:g} s") from None


def _arrow(connection: duckdb.DuckDBPyConnection, sql: str, params: Mapping[str, Any]) -> pa.Table:
    """The fetch seam: a query's result as DuckDB makes it."""
    return connection.sql(sql, params=dict(params)).to_arrow_table()


DIALECTS["duckdb"] = (__name__, "DuckDatabase", "duckdb")


async def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.duckdb"
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE orders (id BIGINT PRIMARY KEY, price DECIMAL(10, 2), placed TIMESTAMP)")
            connection.execute(
                f"INSERT INTO orders SELECT i, i / 7, TIMESTAMP '2024-01-01' + to_seconds(i) FROM range({rows}) r(i)"
            )
        source = SqlSource(SqlConfig.model_validate({"url": f"duckdb:////{str(path).lstrip('/')}"}))
        stream = StreamConfig(name="orders", source="shop", table="orders", page_size=rows // 10 or 1)
        await source.start()
        dataset = await source.describe(stream)
        for split in await source.plan(stream, dataset):
            reader = await source.reader(stream, dataset, split)
            position = None
            while True:
                page = await reader.fetch(position, stream.page_size)
                position = page.position
                print(f"split {split.id}: {page.rows} rows, then {position}")
                if page.last:
                    break
            await reader.close()
        await source.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
