"""Owns rows of a PostgreSQL database as JSON lists, fast enough not to be what a benchmark of a client measures."""

from __future__ import annotations

import queue

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as postgresql
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from producer.sinks.json_text import json_column
from tests.jsonsql.compile import JsonSqlError

CONNECTIONS = 4


class Postgres:
    """A few connections; `rows` may be called in several threads at once."""

    def __init__(self, dsn: str) -> None:
        self._free: queue.SimpleQueue[postgresql.Connection] = queue.SimpleQueue()
        for _ in range(CONNECTIONS):
            self._free.put(postgresql.connect(dsn, autocommit=True))

    def rows(self, sql: str, most: int | None) -> orjson.Fragment:
        """The JSON text of a list of rows; JsonSqlError with the server's own text."""
        connection = self._free.get(timeout=60)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                table = cursor.fetch_arrow_table()
        except adbc_driver_manager.Error as error:
            raise JsonSqlError(str(error).split("\n", 1)[0]) from None
        finally:
            self._free.put(connection)
        texts = [_texts(row) for row in table.slice(0, most).combine_chunks().to_batches()]
        return orjson.Fragment("[" + ",".join(text for text in texts if text) + "]")

    def close(self) -> None:
        while not self._free.empty():
            self._free.get().close()


def _texts(batch: pa.RecordBatch) -> str:
    columns = [json_column(column, field) for column, field in zip(batch.columns, batch.schema, strict=True)]
    comma = pa.scalar(",", pa.large_string())
    rows = columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, comma)
    listed = pa.LargeListArray.from_arrays([0, len(rows)], rows)
    joined: str = pc.binary_join(listed, pa.scalar("],[", pa.large_string()))[0].as_py()
    return f"[{joined}]" if len(rows) else ""
