"""Owns the mapping of SQLite's declared types to Arrow, and the check that values are what their column declares.

SQLite stores any kind of value in any column. What a column declares decides its Arrow type; a value of another kind
raises EncodeError with the column, the row's key and the value's kind.

===========================================  =========================  =======================================
declared                                     Arrow                      stored as
===========================================  =========================  =======================================
...INT...                                    int64                      integer
BOOL, BOOLEAN                                bool                       integer 0 or 1
REAL, FLOAT, DOUBLE                          float64                    real or integer
DECIMAL(p, s), NUMERIC(p, s)                 decimal128 or decimal256   integer, real or text, without a rounding
CHAR, VARCHAR, TEXT, CLOB                    text                       text
BLOB, BINARY, VARBINARY                      binary                     blob
DATE                                         date32                     text YYYY-MM-DD
DATETIME, TIMESTAMP                          timestamp[us]              ISO 8601 text (an offset is applied), or
                                                                        seconds since 1970, as integer or real, but
                                                                        none that may be a Julian day
TIMESTAMPTZ, TIMESTAMP WITH TIME ZONE        timestamp[us, UTC]         the same
TIME                                         time64[us]                 text HH:MM:SS[.ffffff]
JSON                                         text, avro.logical=json    text or number
UUID, GUID                                   text, avro.logical=uuid    text, or blob of 16 bytes
anything else                                text                       text or number
===========================================  =========================  =======================================

A time with digits beyond microseconds (other than zeros), or a TIME with an offset, has no form.

There are two ways from a page to Arrow: `fast` takes the driver's columns as they are, whole, when that is certainly
right; where it is not, `exact` looks at each stored value.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from producer.sources.sql.arrow import Unreadable, configured_decimal, decimal_type
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column

_TWO_ARGUMENTS = re.compile(r"\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_MAX_SECONDS = 253_402_300_799  # the end of the year 9999
_MIN_SECONDS = -62_135_596_800  # the beginning of the year 1
#: The Julian days of the years 1 to 9999: as seconds they would be a moment between January and March 1970.
_JULIAN_DAYS = (1_721_425.5, 5_373_484.5)
_FINER = re.compile(r"[.,]\d{6}0*[1-9]")
_EXACT_FLOAT_INTS = 2**53
_DAY_MICROS = 86_400_000_000


def column(name: str, declared: str, *, nullable: bool, wish: str | None) -> Column:
    """The column `name` declared as `declared`; `wish` is the stream's ``decimal`` for one without precision."""
    arrow, logical = arrow_type(declared, wish)
    metadata = {"sql_type": declared or "ANY"} | ({"avro.logical": logical} if logical else {})
    select = f"t.{quote(name)}"
    field = pa.field(name, arrow, nullable=nullable, metadata=metadata)
    guard = f"typeof({select})" if _is_dynamic(arrow, declared.upper(), logical) else ""
    whole = f"typeof({select}) = 'integer'" if pa.types.is_int64(arrow) else ""
    return Column(name, field, select, declared.upper(), guard, compared=_compared(select, field), whole=whole)


def _compared(ref: str, field: pa.Field) -> tuple[str, str]:
    """Times, as text or numbers, by their milliseconds; UUIDs, as text or blob, by their digits."""
    if pa.types.is_timestamp(field.type):
        return (
            f"CASE typeof({ref}) WHEN 'text' THEN julianday({ref}) ELSE julianday({ref}, 'unixepoch') END",
            "julianday({})",
        )
    if field.metadata.get(b"avro.logical") == b"uuid":
        digits = "lower(replace({}, '-', ''))"
        return digits.format(f"CASE typeof({ref}) WHEN 'blob' THEN hex({ref}) ELSE {ref} END"), digits
    return "", "{}"


def arrow_type(declared: str, wish: str | None) -> tuple[pa.DataType, str]:
    """(Arrow type, ``avro.logical`` or '') of a declared type."""
    text = declared.upper()
    name = text.partition("(")[0].strip()
    if name in ("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"):
        return pa.timestamp("us", tz="UTC"), ""
    if name in ("DATETIME", "TIMESTAMP"):
        return pa.timestamp("us"), ""
    if name in ("BOOL", "BOOLEAN"):
        return pa.bool_(), ""
    if name in ("DECIMAL", "NUMERIC"):
        return _decimal(text, wish), ""
    exact = {"DATE": pa.date32(), "TIME": pa.time64("us"), "BINARY": pa.binary(), "VARBINARY": pa.binary()}
    if name in exact:
        return exact[name], ""
    if name in ("JSON", "UUID", "GUID"):
        return pa.string(), "json" if name == "JSON" else "uuid"
    for part, arrow in (("INT", pa.int64()), ("CHAR", pa.string()), ("CLOB", pa.string()), ("TEXT", pa.string()),
                        ("BLOB", pa.binary()), ("REAL", pa.float64()), ("FLOA", pa.float64()),
                        ("DOUB", pa.float64())):  # fmt: skip
        if part in name:
            return arrow, ""
    return pa.string(), ""


def _decimal(text: str, wish: str | None) -> pa.DataType:
    found = _TWO_ARGUMENTS.search(text)
    if found is not None:
        return decimal_type(int(found.group(1)), int(found.group(2) or 0))
    return pa.string() if wish is None or wish.lower() == "string" else configured_decimal(wish)


def _is_dynamic(arrow: pa.DataType, declared: str, logical: str) -> bool:
    """Whether the driver's Arrow type cannot tell what kinds of values a page holds (it merges them into one)."""
    text_affinity = any(part in declared for part in ("CHAR", "CLOB", "TEXT"))
    return pa.types.is_binary(arrow) or (pa.types.is_string(arrow) and not text_affinity and logical != "uuid")


def _logical(column: Column) -> str:
    return str((column.field.metadata or {}).get(b"avro.logical", b"").decode())


def fast(column: Column, values: pa.Array, kinds: pa.Array | None) -> pa.Array | None:
    """The driver's `values` as the column's type, or None where each value must be looked at.

    `kinds` are the values' storage classes, for a dynamic column.
    """
    wanted = column.field.type
    if values.null_count == len(values):
        return pa.nulls(len(values), wanted)
    if kinds is not None and set(kinds.unique().to_pylist()) - {"null", "blob" if wanted == pa.binary() else "text"}:
        return None
    try:
        return _fast(wanted, _logical(column), values)
    except pa.ArrowInvalid:
        return None


def _fast(wanted: pa.DataType, logical: str, values: pa.Array) -> pa.Array | None:
    given = values.type
    if pa.types.is_string(given):
        if pa.types.is_string(wanted):
            values.validate(full=True)  # a TEXT value need not be UTF-8
            if logical == "uuid" and not pc.all(pc.match_substring_regex(values, _UUID)).as_py():
                return None
            return values
        if pa.types.is_timestamp(wanted):
            return _timestamps(wanted, values)
        if pa.types.is_date32(wanted):
            return values.cast(wanted)
        if pa.types.is_time64(wanted):
            micros = pc.binary_join_element_wise("1970-01-01T", values, "").cast(pa.timestamp("us")).view(pa.int64())
            return micros.view(wanted) if pc.max(micros).as_py() < _DAY_MICROS else None
        return None
    if given == wanted:
        return values
    if pa.types.is_int64(given):
        if pa.types.is_boolean(wanted):
            low_high = pc.min_max(values)
            return values.cast(wanted) if low_high["min"].as_py() >= 0 and low_high["max"].as_py() <= 1 else None
        if pa.types.is_float64(wanted):
            return values.cast(wanted)
        if pa.types.is_decimal(wanted):
            return values.cast(pa.decimal256(19 + wanted.scale, wanted.scale)).cast(wanted)
        if pa.types.is_timestamp(wanted):
            low_high = pc.min_max(values)
            days = pc.and_(pc.greater_equal(values, _JULIAN_DAYS[0]), pc.less(values, _JULIAN_DAYS[1]))
            if (
                low_high["min"].as_py() >= _MIN_SECONDS
                and low_high["max"].as_py() <= _MAX_SECONDS
                and not pc.any(days).as_py()
            ):
                return values.cast(pa.timestamp("s")).cast(pa.timestamp("us")).view(wanted)
        return None
    if pa.types.is_float64(given) and pa.types.is_decimal128(wanted):
        return _decimals_of_floats(wanted, values)
    return None


def _decimals_of_floats(wanted: pa.DataType, values: pa.Array) -> pa.Array | None:
    """The decimals that floats were written as: n / 10**scale, where that division gives the very same float.

    Both are exact (n below 2**53, the power below 10**22), so the division is rounded correctly, as reading the
    decimal's text was. None where one float is no such quotient.
    """
    power = 10.0**wanted.scale
    floats = values.fill_null(0.0).to_numpy(zero_copy_only=False)
    scaled = np.rint(floats * power)
    limit = float(min(_EXACT_FLOAT_INTS, 10**wanted.precision))
    if wanted.scale > 22 or not (np.abs(scaled) < limit).all() or not (scaled / power == floats).all():
        return None
    words = np.empty((len(values), 2), np.int64)
    words[:, 0] = scaled
    words[:, 1] = words[:, 0] >> 63
    unscaled = pa.Array.from_buffers(wanted, len(values), [None, pa.py_buffer(words)])
    return pc.if_else(values.is_valid(), unscaled, pa.scalar(None, wanted)) if values.null_count else unscaled


def _timestamps(wanted: pa.DataType, values: pa.Array) -> pa.Array:
    try:
        return values.cast(pa.timestamp("us")).view(wanted)
    except pa.ArrowInvalid:
        return values.cast(pa.timestamp("us", tz="UTC")).view(wanted)


def exact(column: Column, values: Sequence[Any]) -> pa.Array:
    """Stored `values` as the column's type, one by one. `Unreadable` at the first that contradicts it."""
    read = _reader(column)
    out = []
    for row, value in enumerate(values):
        try:
            out.append(None if value is None else read(value))
        except (ValueError, OverflowError, decimal.DecimalException):
            text = isinstance(value, str) and (pa.types.is_temporal(column.field.type))
            shown = f" {value!r}" if text or not isinstance(value, str | bytes) else ""
            kind = _KINDS[type(value)]
            raise Unreadable(row, f"holds {kind}{shown}, which is no {column.sql_type or 'TEXT'}") from None
    return pa.array(out, column.field.type)


class BrokenText(bytes):
    """The bytes of a text that is not UTF-8."""


def decoded(text: bytes, encoding: str) -> str | BrokenText:
    """A stored text; `encoding` is that of the file."""
    try:
        return text.decode(encoding)
    except UnicodeDecodeError:
        return BrokenText(text)


_KINDS: Mapping[type, str] = {
    int: "an integer",
    float: "a real",
    str: "a text",
    bytes: "a blob",
    BrokenText: "a text that is not UTF-8",
}


def _reader(column: Column) -> Callable[[Any], Any]:
    wanted = column.field.type
    logical = _logical(column)
    if logical == "uuid":
        return _uuid
    if pa.types.is_decimal(wanted):
        return lambda value: _to_decimal(value, wanted)
    if pa.types.is_timestamp(wanted):
        return _to_timestamp
    if pa.types.is_string(wanted):
        return _to_text
    for test, read in (
        (pa.types.is_int64, lambda value: _of(value, int)),
        (pa.types.is_float64, lambda value: float(_of(value, float, int))),
        (pa.types.is_binary, lambda value: _of(value, bytes)),
        (pa.types.is_boolean, lambda value: bool([0, 1].index(_of(value, int)))),
        (pa.types.is_date32, lambda value: dt.date.fromisoformat(_of(value, str))),
        (pa.types.is_time64, _to_time),
    ):
        if test(wanted):
            return read
    raise AssertionError(wanted)


def _of(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise ValueError(value)
    return value


def _to_text(value: Any) -> str:
    return str(_of(value, str, int, float))


def _uuid(value: Any) -> str:
    return str(uuid.UUID(bytes=value) if isinstance(value, bytes) else uuid.UUID(_of(value, str)))


def _to_decimal(value: Any, wanted: pa.DataType) -> decimal.Decimal:
    with decimal.localcontext(decimal.Context(prec=80, traps=[decimal.InvalidOperation])):
        number = decimal.Decimal(repr(value) if isinstance(value, float) else _of(value, int, str))
        fixed = number.quantize(decimal.Decimal(1).scaleb(-wanted.scale))
        if fixed != number or abs(fixed) >= decimal.Decimal(10) ** (wanted.precision - wanted.scale):
            raise ValueError(value)
    return fixed


def _to_time(value: Any) -> dt.time:
    time = dt.time.fromisoformat(_whole_micros(value))
    if time.tzinfo is not None:
        raise ValueError(value)
    return time


def _whole_micros(value: Any) -> str:
    """The text of a time; ValueError where it has digits that microseconds have not."""
    text = str(_of(value, str))
    if _FINER.search(text):
        raise ValueError(value)
    return text


def _to_timestamp(value: Any) -> dt.datetime:
    if isinstance(value, int | float):
        if not _MIN_SECONDS <= value <= _MAX_SECONDS or _JULIAN_DAYS[0] <= value < _JULIAN_DAYS[1]:
            raise ValueError(value)
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=round(value * 1_000_000))
    moment = dt.datetime.fromisoformat(_whole_micros(value))
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
