"""Owns key values between Arrow, positions and text: what a column's value is in a position, and how it is shown."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from producer.errors import EncodeError
from producer.model import KeyScalar

if TYPE_CHECKING:
    import numpy.typing as npt


def key_scalar(field: pa.Field, value: pa.Scalar[Any]) -> KeyScalar:
    """One value of a key column as a position holds it; EncodeError for a null or one without a Python form."""
    try:
        found = value.as_py()
    except (ValueError, OverflowError):
        raise EncodeError(
            f"column {field.name!r}: a key value is outside of the years 1 to 9999", field=field.name
        ) from None
    if found is None:
        raise EncodeError(f"column {field.name!r}: a key value is null", field=field.name)
    if (field.metadata or {}).get(b"avro.logical") == b"uuid":
        return uuid.UUID(found)
    return bool_as_int(found)


def scalar_of(field: pa.Field, text: str) -> KeyScalar:
    """What somebody wrote as a value of the column, to compare it with; ValueError where it is none.

    A time without a zone stays text: it is compared as the database keeps it.
    """
    kind = field.type
    if (field.metadata or {}).get(b"avro.logical") == b"uuid":
        return uuid.UUID(text)
    if pa.types.is_integer(kind):
        return int(text)
    if pa.types.is_decimal(kind):
        return _finite(text)
    if pa.types.is_floating(kind):
        return float(_finite(text))
    if pa.types.is_date(kind):
        return dt.date.fromisoformat(text)
    if pa.types.is_timestamp(kind):
        moment = dt.datetime.fromisoformat(text)
        if kind.tz is None and moment.tzinfo is None:
            return moment.isoformat(sep=" ")  # there are more ways to write one than databases read
        if kind.tz is None:
            raise ValueError("the column's times have no zone; leave the offset out")
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return text
    raise ValueError("values of its type cannot be written as text")


def _finite(text: str) -> decimal.Decimal:
    try:
        value = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError("not a number") from None
    if not value.is_finite():
        raise ValueError("not a finite number")
    return value


def bool_as_int(value: Any) -> KeyScalar:
    """Booleans are no positions (`producer.model`); as 0 and 1 they order in the same way."""
    return int(value) if isinstance(value, bool) else value


def key_of(batch: pa.RecordBatch, names: Sequence[str], row: int) -> tuple[KeyScalar, ...]:
    """The values of the columns `names` in `row`."""
    return tuple(key_scalar(batch.schema.field(name), batch.column(name)[row]) for name in names)


def first_repeat(batch: pa.RecordBatch, names: Sequence[str]) -> int | None:
    """The first row whose key is that of the row before it; None where all differ. Nulls are equal here."""
    if batch.num_rows < 2:
        return None
    same = functools.reduce(np.logical_and, (_as_before(batch.column(name)) for name in names))
    row = int(np.argmax(same))
    return row + 1 if same[row] else None


def _as_before(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Of each value but the first whether it is that of the row before it."""
    if pa.types.is_integer(column.type) and not column.null_count:
        numbers = column.to_numpy()
        return cast("npt.NDArray[np.bool_]", numbers[1:] == numbers[:-1])
    import pyarrow.compute as pc  # here, since it takes 60 ms of the start

    before, after = column.slice(0, len(column) - 1), column.slice(1)
    both_null = pc.and_(before.is_null(), after.is_null())
    found = pc.or_(pc.fill_null(pc.equal(before, after), False), both_null)
    return cast("npt.NDArray[np.bool_]", found.to_numpy(zero_copy_only=False))
