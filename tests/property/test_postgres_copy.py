"""PostgreSQL's binary COPY, read by the kernel: any bytes are rows as they stand, or refused, and never a crash."""

from __future__ import annotations

import ctypes
import datetime as dt
import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.sources.sql import libpq

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_ALL, _CUT, _REFUSED, _BROKEN = range(4)
_COLUMNS = {
    "int8": pa.int64(),
    "bool": pa.bool_(),
    "text": pa.string(),
    "jsonb": pa.string(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "numeric": pa.decimal128(20, 4),
    "bytea": pa.binary(),
}
_GET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)
_FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def read(messages: Sequence[bytes], columns: dict[str, pa.DataType], max_bytes: int = 2**23) -> tuple[int, Any]:
    """What the kernel makes of these messages of a server, after which the connection is at its end."""
    found = libpq.load()
    assert found is not None, "libpq or its reader is missing: make setup"
    left, kept = list(messages), []

    def get(_: int, place: Any, __: int) -> int:
        if not left:
            return -1
        message = left.pop(0)
        kept.append(ctypes.create_string_buffer(message, len(message)))  # of just that size, for what looks beyond
        place[0] = ctypes.cast(kept[-1], ctypes.c_void_p).value
        return len(message)

    get_c, free_c = _GET(get), _FREE(lambda _: None)
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in (get_c, free_c)]
    form = libpq.columns_form(list(columns.items()))
    status, array = found.reader.read(*addresses, 0, form, max_bytes)
    schema = pa.schema([pa.field(name, arrow) for name, arrow in columns.items()])
    batch = None if array is None else pa.record_batch(libpq._Struct(schema, array))
    if batch is not None:
        batch.validate()
    return status, batch


def field(value: bytes | None) -> bytes:
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


def row(values: Sequence[bytes | None]) -> bytes:
    return struct.pack(">h", len(values)) + b"".join(field(value) for value in values)


def numeric(value: Decimal) -> bytes:
    """As numeric_send writes it: digits to the base of 10,000."""
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)) + "0" * max(exponent, 0)
    scale = max(-exponent, 0)
    text = text.rjust(scale, "0")
    whole, part = text[: len(text) - scale] or "0", text[len(text) - scale :] if scale else ""
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    part = part.ljust(-(-len(part) // 4) * 4, "0")
    groups = [int((whole + part)[i : i + 4]) for i in range(0, len(whole + part), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups.pop(0)
        weight -= 1
    while groups and groups[-1] == 0:
        groups.pop()
    head = struct.pack(">HhHH", len(groups), weight, 0x4000 if sign else 0, scale)
    return head + b"".join(struct.pack(">H", group) for group in groups)


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int8": st.integers(-(2**63), 2**63 - 1),
    "bool": st.booleans(),
    "text": st.text(),
    "jsonb": st.text(),
    "date": st.dates(),
    "timestamp": st.datetimes(),
    "numeric": st.decimals(-(10**16) + 1, 10**16 - 1, places=4),
    "bytea": st.binary(),
}


def sent(name: str, value: Any) -> bytes | None:
    if value is None:
        return None
    match name:
        case "int8":
            return struct.pack(">q", value)
        case "bool":
            return bytes([value])
        case "text":
            return str(value).encode()
        case "jsonb":
            return b"\1" + str(value).encode()
        case "date":
            return struct.pack(">i", (value - dt.date(2000, 1, 1)).days)
        case "timestamp":
            return struct.pack(">q", (value - dt.datetime(2000, 1, 1)) // dt.timedelta(microseconds=1))
        case "numeric":
            return numeric(value)
    return bytes(value)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in _VALUES.items()}), max_size=20),
    st.integers(1, 7),
)
def test_rows_come_out_as_they_were_sent(rows: list[dict[str, Any]], together: int) -> None:
    sentences = [row([sent(name, r[name]) for name in _COLUMNS]) for r in rows] + [_END]
    messages = [b"".join(sentences[i : i + together]) for i in range(0, len(sentences), together)]
    messages[0] = _HEADER + messages[0]
    status, batch = read(messages, _COLUMNS)
    assert status == _ALL
    batch.validate(full=True)
    assert batch.to_pylist() == rows


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_any_bytes_are_refused_or_read(messages: list[bytes], begun: bool) -> None:
    status, _ = read([_HEADER, *messages] if begun else messages, _COLUMNS)
    assert status in (_ALL, _REFUSED, _BROKEN)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_row_is_refused_or_read(data: st.DataObject) -> None:
    whole = row([sent(name, data.draw(values)) for name, values in _VALUES.items()])
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:place] + data.draw(st.binary(max_size=8)) + whole[place + data.draw(st.integers(0, 8)) :]
    assert read([_HEADER + damaged, _END], _COLUMNS)[0] in (_ALL, _REFUSED, _BROKEN)


def test_a_result_ends_early_when_it_is_large_enough_but_not_before_two_rows() -> None:
    messages = [_HEADER + row([b"x" * 100]), *[row([b"y" * 100])] * 5, _END]
    status, batch = read(messages, {"text": pa.string()}, max_bytes=10)
    assert (status, batch.num_rows) == (_CUT, 2)


def test_what_has_no_form_is_refused() -> None:
    for name, value in {
        "date": struct.pack(">i", 2**31 - 1),
        "timestamp": struct.pack(">q", -(2**63)),
        "numeric": struct.pack(">HhHH", 0, 0, 0xC000, 0),
        "jsonb": b"\2{}",
        "int8": b"\0",
    }.items():
        assert read([_HEADER + row([value]), _END], {name: _COLUMNS[name]})[0] == _REFUSED
    too_fine, too_large = numeric(Decimal("0.00001")), numeric(Decimal(10**16))
    for value in (too_fine, too_large):
        assert read([_HEADER + row([value]), _END], {"numeric": pa.decimal128(20, 4)})[0] == _REFUSED
