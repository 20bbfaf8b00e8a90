"""Owns the mapping of PostgreSQL's types to Arrow: what a column selects, and how what arrives becomes its Arrow type.

===================================================  ===============================================================
PostgreSQL                                           Arrow
===================================================  ===============================================================
boolean, int2/4/8, float4/8, text kinds, bytea       the same
oid                                                  int64
numeric(p, s)                                        decimal128 to 38 digits, decimal256 to 76, text beyond
numeric                                              text (every digit kept), or decimal as ``decimal: "p,s"`` says
money                                                decimal128(19, 2)
date, time, timestamp, timestamptz                   date32, time64[us], timestamp[us], timestamp[us, UTC]
uuid                                                 text in canonical form, ``avro.logical=uuid``
json, jsonb, composite types, hstore                 text, ``avro.logical=json``
enum                                                 text, ``avro.enum`` with its labels
arrays                                               list<item> with the item mapped as above (see `_array`)
domains                                              as the type beneath
everything else (ranges, inet, interval, xml, ...)   PostgreSQL's own text form
===================================================  ===============================================================

Infinite dates and timestamps, and the NaN of numeric, have no form in these types: they are found in each page and
raise EncodeError with the column and the row's key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from producer.sources.sql.arrow import Unreadable, configured_decimal, decimal_type
from producer.sources.sql.names import quote
from producer.sources.sql.table import Column

_PLAIN: Mapping[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
    "bpchar": pa.string(),
    "name": pa.string(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}
_JSON_NAMES = frozenset({"json", "jsonb"})
_MONEY = pa.decimal128(19, 2)

# What the driver makes of +infinity and -infinity: the wire's extremes moved from 2000 to 1970 (wrapped around).
INFINITE_MICROS = -9222425352054775808
INFINITE_DAYS = -2147472691
DAY_MICROS = 86_400_000_000


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """One row of pg_type, with domains followed down to their base: `modifier` is the column's or the domain's.

    `kind` is pg_type.typtype (b base, c composite, e enum, r range, m multirange, p pseudo); `item` is the element type
    of a true array. `nests` says that a composite type has an array in it.
    """

    name: str
    sql: str
    kind: str
    modifier: int = -1
    builtin: bool = True
    labels: tuple[str, ...] = ()
    item: TypeInfo | None = None
    dimensions: int = 0
    nests: bool = False


def column(name: str, info: TypeInfo, shown: str, *, nullable: bool, comment: str, decimal: str | None) -> Column:
    """The column `name` of type `info`; `shown` is the type as the table declares it (a domain's name, say), `decimal`
    the stream's wish for numerics without precision."""
    ref = f"t.{quote(name)}"
    arrow, select, extra = _array(ref, info, decimal) if info.item else _scalar(ref, info, decimal)
    odd = _odd(ref, info)
    guard = f"CASE WHEN {odd} THEN {ref}::text END" if odd else ""
    if odd:  # the driver refuses a whole page for the one, and to_json loses the bounds
        select = f"CASE WHEN {odd} THEN NULL ELSE {select} END"
    metadata = {"sql_type": shown, **extra} | ({"comment": comment} if comment else {})
    return Column(
        name,
        pa.field(name, arrow, nullable=nullable, metadata=metadata),
        select,
        info.sql,
        guard,
        refused=f"has the pseudo-type {info.sql}, which has no values to read" if info.kind == "p" else "",
        sortable=info.item is None,
        wire="" if odd else _wire(ref, select, info),
    )


def _wire(ref: str, select: str, info: TypeInfo) -> str:
    """The type of what is selected: the column's own, or the one that it is cast to."""
    return (info.name if info.builtin else "") if select == ref else select.rpartition("::")[2]


def _scalar(ref: str, info: TypeInfo, decimal: str | None) -> tuple[pa.DataType, str, dict[str, str]]:
    if info.kind == "e":
        return pa.string(), f"{ref}::text", {"avro.enum": json.dumps(info.labels)}
    if info.kind == "c" or (info.kind == "b" and info.name == "hstore"):
        return pa.string(), f"pg_catalog.to_json({ref})::text", {"avro.logical": "json"}
    if info.builtin:
        if info.name in _PLAIN:
            return _PLAIN[info.name], ref, {}
        if info.name == "numeric":
            arrow = _numeric(info.modifier, decimal)
            # The driver's own text has another form of NaN and the infinities.
            return arrow, f"{ref}::text" if pa.types.is_string(arrow) else ref, {}
        if info.name == "money":
            return _MONEY, f"{ref}::numeric", {}
        if info.name == "oid":
            return pa.int64(), f"{ref}::int8", {}
        if info.name == "uuid":
            return pa.string(), f"{ref}::text", {"avro.logical": "uuid"}
        if info.name in _JSON_NAMES:
            return pa.string(), ref, {"avro.logical": "json"}
    return pa.string(), f"{ref}::text", {}


def _array(ref: str, info: TypeInfo, decimal: str | None) -> tuple[pa.DataType, str, dict[str, str]]:
    """An array of one dimension becomes a list; one declared with more its JSON text, as Avro has no such shape.

    PostgreSQL does not hold a column to its declared dimensions, and the driver gives every array as one flat list: see
    `refuse_odd_arrays`.
    """
    assert info.item is not None
    if info.dimensions > 1:
        return pa.string(), f"pg_catalog.to_json({ref})::text", {"avro.logical": "json"}
    arrow, item_sql, extra = _scalar("x", info.item, decimal)
    cast = item_sql.removeprefix("x")
    if cast.startswith("pg_catalog.to_json"):
        cast = "::text"
        extra = {}
    select = f"{ref}{cast}[]" if cast else ref
    item = pa.field("item", arrow, nullable=True, metadata=extra or None)
    return pa.list_(item), select, {}


def _numeric(modifier: int, decimal: str | None) -> pa.DataType:
    if modifier >= 4:
        precision = ((modifier - 4) >> 16) & 0xFFFF
        scale = ((modifier - 4) & 0x7FF ^ 0x400) - 0x400  # eleven bits, signed since PostgreSQL 15
        return decimal_type(max(precision, scale) if scale >= 0 else precision - scale, max(scale, 0))
    if decimal is None or decimal.strip().lower() == "string":
        return pa.string()
    return configured_decimal(decimal)


def _odd(ref: str, info: TypeInfo) -> str:
    """Whether a value has an array without a form as a list of the declared dimensions, as SQL: PostgreSQL shows bounds
    as ``[3:3]={7}`` where one does not begin with 1. '' for a type without arrays."""
    nested = rf"""{ref}::text ~ '[(,"](\[-?[0-9]+:-?[0-9]+\])+=\{{'"""
    if info.item is None:
        return nested if info.nests else ""
    if info.dimensions <= 1:
        return f"pg_catalog.array_ndims({ref}) > 1 OR pg_catalog.array_lower({ref}, 1) <> 1"
    bounds = f"replace(pg_catalog.array_dims({ref}), '[1:', '') LIKE '%[%'"
    return f"{bounds} OR {nested}" if info.item.nests else bounds


def refuse_odd_arrays(texts: pa.Array) -> None:
    """`Unreadable` at the first value that is there as text: an array in it has no form in the type of its column."""
    for row in np.flatnonzero(texts.is_valid()).tolist():
        text = texts[row].as_py()
        if match := re.search(r"(?:\[-?\d+:-?\d+\])+(?==\{)", text):
            reason = f"an array with the bounds {match[0]}, which a list has not (c[:] of it begins with 1)"
            raise Unreadable(row, reason)
        raise Unreadable(row, "an array of several dimensions, which the column does not declare")


def convert(column: Column, values: pa.Array) -> pa.Array:
    """What the driver gave for `column`, as the column's type. `Unreadable` at the first value without such a form."""
    return _convert(column.field.type, values)


def _convert(wanted: pa.DataType, values: pa.Array) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_list(wanted):
        return _convert_list(wanted, values)
    if pa.types.is_decimal(wanted):
        return _to_decimal(wanted, values)
    if pa.types.is_timestamp(wanted):
        _refuse_outside(values.view(pa.int64()), "an infinite timestamp", above=INFINITE_MICROS)
    elif pa.types.is_date32(wanted):
        _refuse_outside(values.view(pa.int32()), "an infinite date", above=INFINITE_DAYS)
    elif pa.types.is_time64(wanted):
        _refuse_outside(values.view(pa.int64()), "the time 24:00:00", below=DAY_MICROS)
    return values if values.type == wanted else values.cast(wanted)


def _convert_list(wanted: pa.DataType, values: pa.Array) -> pa.Array:
    inner = values.values
    try:
        items = _convert(wanted.value_type, inner)
    except Unreadable as error:
        row = int(np.searchsorted(values.offsets.to_numpy(), error.row, side="right")) - 1
        raise Unreadable(max(row, 0), error.reason) from None
    nulls = values.is_null() if values.null_count else None
    return pa.ListArray.from_arrays(values.offsets, items, type=wanted, mask=nulls)


def _to_decimal(wanted: pa.DataType, values: pa.Array) -> pa.Array:
    try:
        return values.cast(wanted)
    except pa.ArrowInvalid:
        for row, value in enumerate(values):
            try:
                value.cast(wanted)
            except pa.ArrowInvalid:
                kind = (
                    "the numeric " + value.as_py() if not value.as_py()[-1:].isdigit() else "a number with more digits"
                )
                raise Unreadable(row, f"{kind} does not fit {wanted}") from None
        raise


def _refuse_outside(values: pa.Array, what: str, *, above: int | None = None, below: int | None = None) -> None:
    """`Unreadable` at the first value that is not greater than `above`, or not less than `below`."""
    kind = np.dtype(values.type.to_pandas_dtype())
    data = values.buffers()[1]
    numbers = np.frombuffer(data, kind)[values.offset : values.offset + len(values)] if data else np.empty(0, kind)
    outside = numbers <= above if above is not None else numbers >= below
    if outside.any():  # what lies under a null is no value
        for row in np.flatnonzero(outside).tolist():
            if values[row].is_valid:
                raise Unreadable(row, f"{what} has no form in Avro")
