"""Owns the mapping of MySQL's and MariaDB's types to Arrow. Values arrive as the server writes them, as text or bytes.

========================================  ==================================================================
MySQL, MariaDB                            Arrow
========================================  ==================================================================
TINYINT ... BIGINT, with UNSIGNED         int8 ... int64, uint8 ... uint64 (TINYINT(1) is a number like any)
YEAR                                      int32
DECIMAL(p, s)                             decimal128, decimal256
FLOAT, DOUBLE                             float32, float64, all digits
BIT(1), BIT(n)                            bool, binary (big-endian)
DATE                                      date32
DATETIME(n), TIMESTAMP(n)                 timestamp[us], timestamp[us, UTC]
TIME(n)                                   time64[us]; durations below zero or from 24 h on are refused
CHAR, VARCHAR, TEXT kinds                 text
BINARY, VARBINARY, BLOB kinds             binary
ENUM                                      text, ``avro.enum`` with its symbols
SET                                       text, the members with commas between
JSON (MariaDB: a text checked to be)      text, ``avro.logical=json``
UUID, INET4, INET6                        text, ``avro.logical=uuid`` for the first
GEOMETRY and its kinds                    text, as WKT
========================================  ==================================================================

Zero dates (0000-00-00, 2024-00-00) have no form: they raise EncodeError with the column and the row's key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from producer.sources.sql.arrow import Unreadable, decimal_type
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column

_INTEGERS = {
    "tinyint": (pa.int8(), pa.uint8()),
    "smallint": (pa.int16(), pa.uint16()),
    "mediumint": (pa.int32(), pa.uint32()),
    "int": (pa.int32(), pa.uint32()),
    "bigint": (pa.int64(), pa.uint64()),
}
_OTHERS = {
    "year": pa.int32(),
    "double": pa.float64(),
    "float": pa.float32(),
    "date": pa.date32(),
    "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "time": pa.time64("us"),
} | dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"), pa.binary())
_SHAPES = frozenset({"geometry", "geometrycollection"}) | {
    many + shape for many in ("", "multi") for shape in ("point", "linestring", "polygon")
}
_SYMBOL = re.compile(r"'((?:[^']|'')*)'")
_DAY_MICROS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Declared:
    """A column as information_schema has it: `kind` is DATA_TYPE, `full` COLUMN_TYPE, `json` that a check says so."""

    name: str
    kind: str
    full: str
    nullable: bool
    precision: int
    scale: int
    comment: str
    json: bool


def column(declared: Declared) -> Column:
    """The column as it stands in pages."""
    ref = f"t.{quote(declared.name, '`')}"
    kind, select, extra = declared.kind.lower(), ref, {}
    unsigned = "unsigned" in declared.full
    if kind in _INTEGERS:
        arrow = _INTEGERS[kind][unsigned]
    elif kind == "decimal":
        arrow = decimal_type(declared.precision, declared.scale)
    elif kind == "bit":
        arrow = pa.bool_() if declared.precision == 1 else pa.binary()
    elif kind in _OTHERS:
        arrow = _OTHERS[kind]
        if kind == "float":
            select = f"({ref} + 0e0)"  # as a double: a float itself is written with six digits
    else:
        arrow = pa.string()
        if kind == "enum":
            extra = {"avro.enum": json.dumps(_symbols(declared.full))}
        elif kind == "json" or declared.json:
            extra = {"avro.logical": "json"}
        elif kind == "uuid":
            extra = {"avro.logical": "uuid"}
        elif kind in _SHAPES:
            select = f"ST_AsText({ref})"
    # Where '' is a symbol it is also how a value without one reads: their numbers are apart.
    guard = f"CAST({ref} AS UNSIGNED)" if kind in ("enum", "set") and "" in _symbols(declared.full) else ""
    metadata = {"sql_type": declared.full, **extra} | ({"comment": declared.comment} if declared.comment else {})
    field = pa.field(declared.name, arrow, nullable=declared.nullable, metadata=metadata)
    return Column(declared.name, field, select, declared.full, guard, sortable=kind not in {*_SHAPES, "json", "time"})


def ordinal(sql_type: str, value: Any) -> Any:
    """A key's value as the number by which the server orders it, where that is another than its text's or bytes' order:
    ENUM by the place of the symbol (0 for none), SET and BIT by their bits. Any other value is as it was."""
    if isinstance(value, str) and sql_type.startswith(("enum(", "set(")):
        places = {symbol: place for place, symbol in enumerate(_symbols(sql_type), start=1)}
        if sql_type.startswith("enum("):
            return places.get(value, 0) if value in places or not value else value
        names = value.split(",") if value else []
        if all(name in places for name in names):
            return sum(1 << (places[name] - 1) for name in names)
    if isinstance(value, bytes) and sql_type.startswith("bit("):
        return int.from_bytes(value, "big")
    return value


def _symbols(sql_type: str) -> list[str]:
    return [symbol.replace("''", "'") for symbol in _SYMBOL.findall(sql_type)]


def convert(column: Column, values: Sequence[Any]) -> pa.Array:
    """A column of texts (bytes for binary kinds) as its Arrow type; `Unreadable` at the first that has no such form."""
    wanted = column.field.type
    if pa.types.is_binary(wanted):
        return pa.array(values, wanted)
    if pa.types.is_boolean(wanted):
        return pa.array([None if value is None else value != b"\0" for value in values], wanted)
    texts = pa.array(values, pa.string())
    if pa.types.is_string(wanted):
        return texts
    try:
        return _cast(texts, wanted)
    except pa.ArrowInvalid:
        for row in range(len(texts)):
            try:
                _cast(texts.slice(row, 1), wanted)
            except pa.ArrowInvalid:
                reason = f"{texts[row].as_py()!r} of type {column.sql_type} has no form as {wanted}"
                raise Unreadable(row, reason) from None
        raise


def _cast(texts: pa.Array, wanted: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(wanted):
        return texts.cast(pa.timestamp("us")).view(wanted)
    if pa.types.is_time64(wanted):
        micros = pc.binary_join_element_wise("1970-01-01T", texts, "").cast(pa.timestamp("us")).view(pa.int64())
        if (pc.max(micros).as_py() or 0) >= _DAY_MICROS:
            raise pa.ArrowInvalid("not within a day")
        return micros.view(wanted)
    return texts.cast(wanted)
