"""Owns ADBC connections: results as Arrow through the driver manager's low-level interface, of bounded size.

The manager's DB-API module would import pandas and pyarrow.dataset where they are installed: half a second to a second
before the first row. Nothing of what these are for is used here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcDatabase, AdbcStatement, Error

# The only reader that gives errors with their SQLSTATE when they come in the middle of a result.
from adbc_driver_manager._reader import AdbcRecordBatchReader

from producer.sources.sql.table import MAX_RESULT_BYTES


@dataclass(frozen=True, slots=True)
class Result:
    """What was read; `cut` where it was no further read than `MAX_RESULT_BYTES`."""

    table: pa.Table
    cut: bool


class Connection:
    """A connection without autocommit. Every statement is closed before it returns, and before the connection is."""

    def __init__(self, database: AdbcDatabase, *, shared: bool = False) -> None:
        """Connects; `database` belongs to the connection from now on, unless it is `shared`."""
        self._owned = None if shared else database
        try:
            self._connection = AdbcConnection(database)
        except BaseException:
            if self._owned is not None:
                self._owned.close()
            raise
        try:
            self._connection.set_autocommit(False)
        except BaseException:
            self.close()
            raise

    def read(self, sql: str, values: Sequence[Any] = (), options: Mapping[str, str] | None = None) -> pa.Table:
        """The whole result of one statement, in the driver's own types."""
        with self._reader(sql, values, options or {}) as reader:
            return reader.read_all()

    def read_bounded(self, sql: str, values: Sequence[Any], options: Mapping[str, str], *, drains: bool) -> Result:
        """A result batch by batch, until it is at its end or large enough: then the transaction is over.

        `drains` is for a driver that would read to the end before it lets go: the server is told to stop sending.
        """
        with self._reader(sql, values, options) as reader:
            batches: list[pa.RecordBatch] = []
            size = rows = 0
            cut = False
            with contextlib.suppress(StopIteration):
                while not cut:
                    batches.append(reader.read_next_batch())
                    size, rows = size + batches[-1].nbytes, rows + batches[-1].num_rows
                    cut = size >= MAX_RESULT_BYTES and rows > 1
            table = pa.Table.from_batches(batches, reader.schema)
            if cut and drains:
                self.cancel()
                with contextlib.suppress(Error, StopIteration):
                    while True:
                        reader.read_next_batch()
        if cut:
            self.rollback()
        return Result(table, cut)

    def batches(self, sql: str, options: Mapping[str, str]) -> Generator[pa.RecordBatch]:
        """A result batch by batch, however long it is."""
        with self._reader(sql, (), options) as reader, contextlib.suppress(StopIteration):
            while True:
                yield reader.read_next_batch()

    @contextlib.contextmanager
    def _reader(self, sql: str, values: Sequence[Any], options: Mapping[str, str]) -> Iterator[Any]:
        with AdbcStatement(self._connection) as statement:
            if options:
                statement.set_options(**options)
            statement.set_sql_query(sql)
            if values:
                names = [str(i) for i in range(len(values))]
                statement.bind(pa.record_batch([pa.array([value]) for value in values], names=names))
            stream, _ = statement.execute_query()
            reader = AdbcRecordBatchReader._import_from_c(stream.address)
            try:
                yield reader
            finally:
                reader.close()

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def cancel(self) -> None:
        """From any thread: the statement that runs ends with an error."""
        self._connection.cancel()

    def close(self) -> None:
        try:
            self._connection.close()
        finally:
            if self._owned is not None:
                self._owned.close()


def tuples(table: pa.Table) -> list[tuple[Any, ...]]:
    """A small result row by row."""
    columns = [column.to_pylist() for column in table.columns]
    return list(zip(*columns, strict=True))
