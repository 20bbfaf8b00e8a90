"""Owns connections to PostgreSQL by libpq: statements, a SELECT's result by binary COPY as Arrow, and cancelling.

libpq is the library that the package psycopg-binary ships, or the system's; it is called through ctypes, and its COPY
data are read by ``_pgcopy``, which is optional like all that is compiled here. Where one of the two is not there,
`load` says so, and pages are read by ADBC. See https://www.postgresql.org/docs/current/libpq.html.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

_OK, _COPY_OUT = 0, 3
_COMMAND_OK, _TUPLES_OK = 1, 2
_SQLSTATE = ord("C")

#: How a value comes and what becomes of it, as ``_pgcopy.c`` numbers it, by PostgreSQL's type and Arrow's.
_FORMS = {
    ("bool", pa.bool_()): 0,
    ("int2", pa.int16()): 1,
    ("int4", pa.int32()): 2,
    ("float4", pa.float32()): 2,
    ("int8", pa.int64()): 3,
    ("float8", pa.float64()): 3,
    ("date", pa.date32()): 4,
    ("timestamp", pa.timestamp("us")): 5,
    ("timestamptz", pa.timestamp("us", tz="UTC")): 5,
    ("time", pa.time64("us")): 6,
    ("bytea", pa.binary()): 7,
    **{(name, pa.string()): 7 for name in ("text", "varchar", "bpchar", "name", "json")},
    ("jsonb", pa.string()): 8,
    ("numeric", pa.string()): 10,
}
_DECIMAL = 9
_ALL, _CUT, _REFUSED = 0, 1, 2


#: Whatever defaults the role has: a serializable transaction may wait, or fail on a replica.
#: Row security is set here since a page's first statement, which sets the rest, names the table.
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL row_security = on"


class LibpqError(Exception):
    """What libpq or the server says; `sqlstate` is '' where the server did not speak."""

    def __init__(self, text: str, sqlstate: str = "") -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@dataclass(frozen=True, slots=True)
class Libpq:
    """The library, typed, and what reads its COPY data; the addresses are those of two of its functions."""

    functions: Any
    reader: Any
    get_copy_data: int
    free_mem: int


@functools.cache
def load() -> Libpq | None:
    """The library, or None where it or its reader is not there."""
    try:
        reader = import_module("producer.sources.sql._pgcopy")
    except ImportError:
        return None
    for place in _places():
        with contextlib.suppress(OSError, AttributeError):
            return _typed(ctypes.CDLL(place), reader)
    return None


def _places() -> list[str]:
    """Where a libpq may be: beside psycopg's binary package (its parent is not imported), or in the system."""
    found: list[str] = []
    spec = find_spec("psycopg_binary")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for pattern in ("../psycopg_binary.libs/libpq-*", ".dylibs/libpq*", "../psycopg_binary.libs/libpq*.dll"):
            found += sorted(str(path) for path in Path(folder).glob(pattern))
    system = ctypes.util.find_library("pq") if not found else None
    return [*found, system] if system else found


def _typed(library: Any, reader: Any) -> Libpq:
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    texts = ctypes.POINTER(ctypes.c_char_p)
    for name, result, arguments in (
        ("PQconnectdb", pointer, [text]),
        ("PQstatus", number, [pointer]),
        ("PQerrorMessage", text, [pointer]),
        ("PQfinish", None, [pointer]),
        ("PQexec", pointer, [pointer, text]),
        ("PQexecParams", pointer, [pointer, text, number, pointer, texts, pointer, pointer, number]),
        ("PQgetResult", pointer, [pointer]),
        ("PQresultStatus", number, [pointer]),
        ("PQresultErrorMessage", text, [pointer]),
        ("PQresultErrorField", text, [pointer, number]),
        ("PQntuples", number, [pointer]),
        ("PQnfields", number, [pointer]),
        ("PQgetisnull", number, [pointer, number, number]),
        ("PQgetvalue", text, [pointer, number, number]),
        ("PQclear", None, [pointer]),
        ("PQgetCancel", pointer, [pointer]),
        ("PQcancel", number, [pointer, text, number]),
        ("PQfreeCancel", None, [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    get, free = (ctypes.cast(getattr(library, name), pointer).value for name in ("PQgetCopyData", "PQfreemem"))
    assert get is not None and free is not None
    return Libpq(library, reader, get, free)


def columns_form(columns: Sequence[tuple[str, pa.DataType]]) -> bytes | None:
    """The columns (PostgreSQL's type, and Arrow's) as the reader wants them; None where it cannot read one."""
    words: list[int] = []
    for name, arrow in columns:
        if name == "numeric" and pa.types.is_decimal128(arrow):
            words += (_DECIMAL, arrow.precision, arrow.scale)
        elif (form := _FORMS.get((name, arrow))) is not None:
            words += (form, 0, 0)
        else:
            return None
    return struct.pack(f"={len(words)}q", *words)


@dataclass(frozen=True, slots=True)
class Copied:
    """A result; `cut` where it goes on after these rows."""

    batch: pa.RecordBatch
    cut: bool


@dataclass(frozen=True, slots=True)
class _Struct:
    """A schema and its data for pyarrow; see Arrow's PyCapsule interface."""

    schema: pa.Schema
    array: object

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self.schema.__arrow_c_schema__(), self.array


class CopyConnection:
    """A connection whose statements are one transaction until `commit` or `rollback`. For one thread at a time, but for
    `cancel`."""

    def __init__(self, libpq: Libpq, uri: str) -> None:
        self._libpq = libpq
        self._pq = libpq.functions
        self._begun = False
        self._connection: int | None = self._pq.PQconnectdb(uri.encode())
        if self._pq.PQstatus(self._connection) != _OK:
            error = LibpqError(self._pq.PQerrorMessage(self._connection).decode(errors="replace"))
            self._pq.PQfinish(self._connection)
            raise error
        self._cancel: int | None = self._pq.PQgetCancel(self._connection)

    def rows(self, sql: str, values: Sequence[str] = ()) -> list[tuple[str | None, ...]]:
        """A small result as text, with bound parameters."""
        self._begin()
        bound = (ctypes.c_char_p * len(values))(*(value.encode() for value in values))
        result = self._pq.PQexecParams(self._connection, sql.encode(), len(values), None, bound, None, None, 0)
        try:
            self._check(result, _TUPLES_OK)
            fields = range(self._pq.PQnfields(result))
            return [tuple(self._text(result, r, f) for f in fields) for r in range(self._pq.PQntuples(result))]
        finally:
            self._pq.PQclear(result)

    def _text(self, result: int, row: int, column: int) -> str | None:
        if self._pq.PQgetisnull(result, row, column):
            return None
        return str(self._pq.PQgetvalue(result, row, column).decode())

    def copy(self, sql: str, schema: pa.Schema, form: bytes, max_bytes: int) -> Copied | None:
        """The result of a SELECT without parameters, or as much of it as holds `max_bytes` (and two rows): then the
        server is told to stop, and the transaction is over. None, and the transaction over, where a value has no form
        in its column's type."""
        self._begin()
        result = self._pq.PQexec(self._connection, f"COPY ({sql}) TO STDOUT (FORMAT binary)".encode())
        try:
            self._check(result, _COPY_OUT)
        finally:
            self._pq.PQclear(result)
        copying = (self._libpq.get_copy_data, self._libpq.free_mem, self._connection)
        status, array = self._libpq.reader.read(*copying, form, max_bytes)
        if status in (_CUT, _REFUSED):
            self.cancel()
        self._libpq.reader.skip(*copying)
        try:
            self._finish_copy()
        except LibpqError:
            if status not in (_CUT, _REFUSED):
                raise
        if status in (_CUT, _REFUSED):
            self.rollback()
        elif status != _ALL:
            raise LibpqError("the server ended the result early")
        return None if status == _REFUSED else Copied(pa.record_batch(_Struct(schema, array)), status == _CUT)

    def _finish_copy(self) -> None:
        """Takes all that the server says at the end, and raises the first error of it."""
        error: LibpqError | None = None
        while result := self._pq.PQgetResult(self._connection):
            try:
                self._check(result, _COMMAND_OK)
            except LibpqError as found:
                error = error or found
            finally:
                self._pq.PQclear(result)
        if error is not None:
            raise error

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True  # also where it fails: the rollback then finds that the connection is broken
            self._run(BEGIN)

    def commit(self) -> None:
        if self._begun:
            self._run("COMMIT")
            self._begun = False

    def rollback(self) -> None:
        if self._begun:
            self._run("ROLLBACK")
            self._begun = False

    def _run(self, sql: str) -> None:
        result = self._pq.PQexec(self._connection, sql.encode())
        try:
            self._check(result, _COMMAND_OK)
        finally:
            self._pq.PQclear(result)

    def _check(self, result: int | None, wanted: int) -> None:
        """LibpqError unless the result is of the wanted kind; no result: the connection is gone."""
        if result is not None and self._pq.PQresultStatus(result) == wanted:
            return
        state = self._pq.PQresultErrorField(result, _SQLSTATE) if result is not None else None
        text = self._pq.PQresultErrorMessage(result) if result is not None else b""
        text = text or self._pq.PQerrorMessage(self._connection)
        raise LibpqError(text.decode(errors="replace"), (state or b"").decode())

    def cancel(self) -> None:
        """From any thread: the statement that runs ends with an error."""
        if self._cancel is not None:
            self._pq.PQcancel(self._cancel, ctypes.create_string_buffer(256), 256)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            self._pq.PQfreeCancel(cancel)
        if connection is not None:
            self._pq.PQfinish(connection)
