"""Key columns of PostgreSQL: how their values are compared, and how they travel to a position and back.

A page begins after a key. The comparison must be the one by which ORDER BY sorts, so its operators are those of the
type's default btree operator class, with their schema: the search path could find others. The value must come back as
the very same one. Where its form in pages does not (a composite type is JSON there), the position is PostgreSQL's own
text of it, under pinned settings, cast back to the type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from producer.errors import ConfigError, EncodeError
from producer.model import KeyScalar
from producer.sources.sql.names import quote
from producer.sources.sql.postgres_types import DAY_MICROS, INFINITE_DAYS, INFINITE_MICROS
from producer.sources.sql.scalars import key_scalar
from producer.sources.sql.table import Column, Unfit

_YEAR_1 = -719162  # its first day, counted from 1970
_SIGNS = ("<", "<=", "=", ">=", ">")  # by btree's strategy numbers, from 1
#: Types of extensions whose text is exact. Others outside of pg_catalog are tested value by value.
_EXACT = frozenset(
    ("citext", "hstore", "ltree", "cube", "lo", "ean13", "isbn", "isbn13", "ismn", "ismn13", "issn", "issn13", "upc")
)
#: Types whose text is the name of an object, which may find another one or none: their values are its identifiers.
_NAMED = "reg"


@dataclass(frozen=True, slots=True)
class KeyType:
    """What pg_catalog says of a type: its operators by btree's strategy number (none where it has no default operator
    class) with their `family`, and the types that its own order and text are made of: of a domain, an array, a range, a
    composite type."""

    name: str
    builtin: bool
    kind: str
    operators: tuple[str, ...]
    family: int
    parts: tuple[int, ...]


def as_key(column: Column, declared: int, base: int, types: Mapping[int, KeyType], *, is_collated: bool) -> Column:
    """`column` with what it needs as a key; it is declared with one type, which may be a domain over the other.
    `is_collated`: it has a collation, where its type has any."""
    oid, kind = base, types[base]
    if not is_collated or not column.sortable or not _has_order(oid, types):
        return replace(column, sortable=False)
    ref = f"t.{quote(column.name)}"
    operators = dict(zip(_SIGNS, kind.operators, strict=True))
    if declared != base:  # the operators of all enums, say, take no domain
        column = replace(column, operand="{}::" + column.sql_type.replace("{", "{{").replace("}", "}}"))
    if kind.builtin and kind.name.startswith(_NAMED):
        number = "{}::pg_catalog.oid"  # text of digits would be taken for a name by the cast to regclass
        position = f"{number.format(ref)}::pg_catalog.text"
        return replace(column, operators=operators, operand=number, position=position, cast="pg_catalog.oid")
    text = f"{ref}::pg_catalog.text"
    if _is_exact(oid, types):
        position = "" if _comes_back(column, ref) else text
        return replace(column, operators=operators, position=position, unfit=_unfit(column, ref))
    same = f"{column.operand.format(ref)} {operators['=']} {text}::{column.sql_type}"
    unfit = Unfit(
        f"{ref} IS NOT NULL AND ({same}) IS NOT TRUE", "does not come back from its text form", rejected=False
    )
    return replace(column, operators=operators, position=f"CASE WHEN {same} THEN {text} END", unfit=unfit)


def _has_order(oid: int, types: Mapping[int, KeyType]) -> bool:
    kind = types[oid]
    return (kind.kind == "d" or bool(kind.operators)) and all(_has_order(part, types) for part in kind.parts)


def _is_exact(oid: int, types: Mapping[int, KeyType]) -> bool:
    """Whether the type's text, cast back, is the same value."""
    kind = types[oid]
    if kind.parts:
        return all(_is_exact(part, types) for part in kind.parts)
    if not kind.builtin:
        return kind.kind in "ec" or (kind.kind == "b" and kind.name in _EXACT)
    return not kind.name.startswith(_NAMED)


def _comes_back(column: Column, ref: str) -> bool:
    """Whether the column's value in pages is one that its type reads."""
    form = column.select.removeprefix(ref).removeprefix("::").removeprefix("pg_catalog.")
    return form in ("", "text", "int8") and not pa.types.is_list(column.field.type)


def _unfit(column: Column, ref: str) -> Unfit | None:
    kind = column.field.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        outside = f"({_than(ref, '<', '0001-01-01')} OR {_than(ref, '>=', '10000-01-01')})"
        return Unfit(outside, "is outside of the years 1 to 9999 and has no form in Avro", rejected=True)
    if pa.types.is_time(kind):
        return Unfit(_than(ref, "=", "24:00"), "has no form in Avro", rejected=True)
    if pa.types.is_decimal(kind) and column.select == ref:  # of numeric: NaN and the infinities
        return Unfit(
            f"({_than(ref, '<', '-1e999')} OR {_than(ref, '>', '1e999')})", "has no form in Avro", rejected=True
        )
    return None


def _than(ref: str, sign: str, value: str) -> str:
    return f"{ref} OPERATOR(pg_catalog.{sign}) '{value}'"


# --- values of positions -------------------------------------------------------------------------------------------


def key_at(
    batch: pa.RecordBatch, positions: Mapping[str, pa.Array], names: Sequence[str], row: int
) -> tuple[KeyScalar, ...]:
    """The key in `row`: of columns in `positions` their text from there, of the others the value from `batch`."""
    return tuple(
        position_text(name, positions[name], row)
        if name in positions
        else key_value(batch.schema.field(name), batch.column(name)[row])
        for name in names
    )


def position_text(name: str, texts: pa.Array, row: int) -> str:
    """ConfigError where there is none."""
    text = texts[row].as_py()
    if text is None:
        raise ConfigError(
            f"key column {name!r}: a value is null or does not come back from its text form",
            hint="choose another key, or leave such rows out by where",
        )
    return str(text)


def key_value(field: pa.Field, value: pa.Scalar[Any]) -> KeyScalar:
    """`key_scalar`, and text for dates and times that Python's own types do not reach."""
    try:
        return key_scalar(field, value)
    except EncodeError:
        if value.is_valid and pa.types.is_temporal(value.type):
            return shown(value)
        raise


def shown(value: pa.Scalar[Any]) -> str:
    """One value of the driver's as the text that PostgreSQL reads."""
    if value.is_valid and (pa.types.is_timestamp(value.type) or pa.types.is_date32(value.type)):
        return _moment(value)
    if value.is_valid and pa.types.is_time64(value.type) and value.cast(pa.int64()).as_py() == DAY_MICROS:
        return "24:00:00"
    if isinstance(value, pa.ListScalar) and value.is_valid:
        return f"[{', '.join(shown(item) for item in value.values)}]"
    return str(value)


def _moment(value: pa.Scalar[Any]) -> str:
    """A date or timestamp of any year, or infinite."""
    is_date = pa.types.is_date32(value.type)
    number = value.cast(pa.int32() if is_date else pa.int64()).as_py()
    least = INFINITE_DAYS if is_date else INFINITE_MICROS
    if number in (least, least - 1):
        return "-infinity" if number == least else "infinity"
    if number < least:  # the last years do not fit when counted from 1970
        number += 2**64
    days, micros = (number, 0) if is_date else divmod(number, DAY_MICROS)
    day, is_before = str(np.datetime64(days, "D")), False
    if day.startswith("-"):  # the year 0 is 1 BC
        year, _, rest = day[1:].partition("-")
        day, is_before = f"{int(year) + 1:04d}-{rest}", True
    elif days < _YEAR_1:
        day, is_before = f"0001{day[4:]}", True
    if not is_date:
        seconds, micros = divmod(micros, 1_000_000)
        zone = "+00" if value.type.tz else ""
        day += f" {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{micros:06d}{zone}"
    return f"{day} BC" if is_before else day
