"""Owns key values between Arrow, positions and text: what a column's value is in a position, and how it is shown."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from producer.errors import EncodeError
from producer.model import KeyScalar


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


def bool_as_int(value: Any) -> KeyScalar:
    """Booleans are no positions (`producer.model`); as 0 and 1 they order in the same way."""
    return int(value) if isinstance(value, bool) else value


def last_key(batch: pa.RecordBatch, names: Sequence[str]) -> tuple[KeyScalar, ...] | None:
    """The key of the last row; None for an empty page."""
    if not batch.num_rows or not names:
        return None
    return tuple(key_scalar(batch.schema.field(name), batch.column(name)[batch.num_rows - 1]) for name in names)
