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

Zero dates (0000-00-00, 2024-00-00) have no form: they raise EncodeError with the column and the row's key. So do texts
with bytes that are no character of their character set: the server would give question marks instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from producer.errors import ConfigError
from producer.model import KeyScalar
from producer.sources.sql.arrow import Unreadable, decimal_type
from producer.sources.sql.names import quote
from producer.sources.sql.scalars import key_scalar
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
_TEXTS = frozenset(
    ["char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set", "json", "uuid", "inet4", "inet6"]
)
_SYMBOL = re.compile(r"'((?:[^']|'')*)'")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_DAY_MICROS = 86_400_000_000
#: Character sets whose every text is the same after a way to Unicode and back.
_WHOLE = frozenset(
    [
        "utf8mb4",
        "utf8mb3",
        "utf8",
        "utf16",
        "utf16le",
        "utf32",
        "latin1",
        "latin2",
        "latin5",
        "latin7",
        "cp850",
        "cp852",
        "cp866",
        "koi8r",
        "koi8u",
        "keybcs2",
        "macce",
        "macroman",
    ]
)
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r", "t": "\t", "Z": "\x1a"}


@dataclass(frozen=True, slots=True)
class Declared:
    """A column as information_schema has it: `kind` is DATA_TYPE, `full` COLUMN_TYPE, `json` that a check says so,
    `charset` and `collation` are a text's."""

    name: str
    kind: str
    full: str
    nullable: bool
    precision: int
    scale: int
    comment: str
    json: bool
    charset: str = ""
    collation: str = ""


def column(declared: Declared) -> Column:
    """The column as it stands in pages."""
    ref = f"t.{quote(declared.name, '`')}"
    kind, select, extra, guard, full = declared.kind.lower(), ref, {}, "", declared.full
    unsigned = "unsigned" in declared.full
    if kind in _INTEGERS:
        arrow = _INTEGERS[kind][unsigned]
    elif kind == "decimal":
        arrow = decimal_type(declared.precision, declared.scale)
    elif kind == "bit":
        arrow = pa.bool_() if declared.precision == 1 else pa.binary()
    elif kind in _OTHERS:
        arrow = _OTHERS[kind]
        if kind in ("float", "double"):
            # As a double without a fixed number of digits: the server would write a float with six, and m,d with d.
            select = f"({ref} + 0e0)" if kind == "float" or "(" in declared.full else ref
    else:
        arrow = pa.string()
        if kind in ("enum", "set"):
            guard = "" if _are_plain(declared.full) else f"CAST({ref} AS UNSIGNED)"
            extra = {"avro.enum": json.dumps(_symbols(declared.full))} if kind == "enum" else {}
        elif declared.charset and declared.charset not in _WHOLE:
            guard = _as_stored(ref, declared.charset)
            full += f" character set {declared.charset}"
        if kind == "char" and "nopad" in declared.collation:
            full += f" collate {declared.collation}"
        if kind == "json" or declared.json:
            extra = {"avro.logical": "json"}
        elif kind == "uuid":
            extra = {"avro.logical": "uuid"}
        elif kind in _SHAPES:
            select = f"ST_AsText({ref})"
    metadata = {"sql_type": full, **extra} | ({"comment": declared.comment} if declared.comment else {})
    field = pa.field(declared.name, arrow, nullable=declared.nullable, metadata=metadata)
    known = kind in {*_INTEGERS, *_OTHERS, *_TEXTS, *_SHAPES, "decimal", "bit"}
    return Column(
        declared.name,
        field,
        select,
        full,
        guard,
        refused="" if known else f"is of type {declared.full}, which has no form",
        sortable=_is_sortable(declared),
        # Of a column that is NOT NULL (in a view's table) the server takes a zero date for NULL.
        absent=f"{ref} <=> NULL" if kind in ("date", "datetime") and not declared.nullable else "",
    )


def _is_sortable(declared: Declared) -> bool:
    """Whether comparisons find a value where ORDER BY has put it.

    A CHAR of a collation without padding is sorted with its blanks, and compared without them. The 64th bit of a SET is
    a sign in comparisons alone.
    """
    kind = declared.kind.lower()
    if kind == "char":
        return "nopad" not in declared.collation
    return kind not in {*_SHAPES, "json", "time"} and not (kind == "set" and len(_symbols(declared.full)) == 64)


def _as_stored(ref: str, charset: str) -> str:
    """A text's bytes where its way to Unicode and back makes other ones of them, else null."""
    stored = f"CAST({ref} AS BINARY)"
    return f"IF(CAST(CONVERT(CONVERT({ref} USING utf8mb4) USING {charset}) AS BINARY) = {stored}, NULL, {stored})"


def ordinal(sql_type: str, value: Any) -> Any:
    """A key's value as the number by which the server orders it, where that is another than its text's or bytes' order:
    ENUM by the place of the symbol (0 for none), SET and BIT by their bits. Any other value is as it was. ConfigError
    for a text that is no label."""
    if isinstance(value, str) and sql_type.startswith(("enum(", "set(")):
        places = {symbol: place for place, symbol in enumerate(_symbols(sql_type), start=1)}
        names = [value] if sql_type.startswith("enum(") else value.split(",")
        if not value and value not in places:
            return 0
        if not places.keys() >= set(names):
            raise ConfigError(f"{value!r} is no value of {sql_type}")
        return places[value] if sql_type.startswith("enum(") else sum(1 << (places[name] - 1) for name in names)
    if isinstance(value, bytes) and sql_type.startswith("bit("):
        return int.from_bytes(value, "big")
    return value


def _symbols(sql_type: str) -> list[str]:
    """The labels of an ENUM or SET, which the server writes with backslashes before what is special in a string."""
    symbols = (symbol.replace("''", "'") for symbol in _SYMBOL.findall(sql_type))
    return [_ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]), symbol) for symbol in symbols]


def _are_plain(sql_type: str) -> bool:
    """Whether a value's text tells its number: not where '' is a label, for that is also how a value without one reads;
    nor where the server had no way to write a label, which then has question marks; nor where it escaped it."""
    return "" not in _symbols(sql_type) and "?" not in sql_type and "\\" not in sql_type


def refuse_lost(column: Column, texts: Sequence[Any], stored: Sequence[Any]) -> None:
    """`Unreadable` at the first text with question marks for characters that Unicode does not have. `stored` are the
    values of the column's guard: the bytes of a text that is not whole, else None."""
    for row, (text, raw) in enumerate(zip(texts, stored, strict=True)):
        if isinstance(raw, bytes) and text.count("?") > raw.count(b"?"):
            raise Unreadable(row, f"0x{raw.hex()} of type {column.sql_type} has bytes that are no character")


def refuse_ambiguous(column: Column, numbers: Sequence[Any]) -> None:
    """`Unreadable` at the first key of an ENUM or SET with the label '' that reads as another key: in an ENUM one
    without a label, in a SET one with that label."""
    symbols = _symbols(column.sql_type) if column.sql_type.startswith(("enum(", "set(")) else []
    if "" not in symbols:
        return
    bit = 1 << symbols.index("")
    for row, number in enumerate(numbers):
        if number is not None and (int(number) & bit if column.sql_type.startswith("set(") else not int(number)):
            raise Unreadable(row, f"the value {number} of {column.sql_type} reads as another one does")


def longest(values: pa.Array) -> int:
    """The length of the longest text or blob; 0 for a column of another type."""
    if pa.types.is_string(values.type):
        return int(pc.max(pc.utf8_length(values)).as_py() or 0)
    return int(pc.max(pc.binary_length(values)).as_py() or 0) if pa.types.is_binary(values.type) else 0


def key_values(column: Column, values: Sequence[Any], guards: Sequence[Any] | None) -> list[KeyScalar]:
    """A key column's values as positions have them: by what the server finds their place in its order again.

    That is a number for ENUM and SET with `guards`, the bytes of a text that is not whole in Unicode, and the server's
    text of a date that has no other form (0000-00-00). EncodeError for a null.
    """
    if guards is not None:
        pairs = zip(values, guards, strict=True)
        numbered = column.sql_type.startswith(("enum(", "set("))
        return [
            int(guard) if numbered and guard is not None else _key_value(column, value if guard is None else guard)
            for value, guard in pairs
        ]
    try:
        return [key_scalar(column.field, value) for value in convert(column, values)]
    except Unreadable:
        return [_key_value(column, value) for value in values]


def _key_value(column: Column, value: Any) -> KeyScalar:
    if isinstance(value, bytes) and pa.types.is_string(column.field.type):
        return value
    try:
        return key_scalar(column.field, convert(column, [value])[0])
    except Unreadable:
        return str(value)


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
