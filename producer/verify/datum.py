"""Reads Avro data by fastavro, for names and for records of older schemas: not by the encoder that wrote them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

#: A record's value in the current schema; None where it cannot be read.
Convert = Callable[[bytes], bytes | None]


def read_datum(writer: Any, reader: Any, data: bytes) -> dict[str, Any] | None:
    """The record; None where its bytes are not such a record."""
    import fastavro

    try:
        found: Any = fastavro.schemaless_reader(io.BytesIO(data), writer, reader)
    except (ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, ArithmeticError):
        return None
    except fastavro.schema.SchemaParseException:
        return None
    return found if isinstance(found, dict) else None


def converter(writer: Any, reader: Any) -> Convert:
    """Reads data of the schema `writer` and writes them in the schema `reader`."""
    import fastavro
    from fastavro.read import SchemaResolutionError

    def convert(value: bytes) -> bytes | None:
        try:
            record = read_datum(writer, reader, value)
            if record is None:
                return None
            out = io.BytesIO()
            fastavro.schemaless_writer(out, reader, record)
        except (SchemaResolutionError, ValueError, TypeError):
            return None
        return out.getvalue()

    return convert


def differing_fields(schema: Any, ours: bytes, theirs: bytes | None) -> str:
    """Which fields differ (never their values), as `` (name, price)``."""
    left, right = read_datum(schema, schema, ours), read_datum(schema, schema, theirs or b"")
    if left is None or right is None:
        return " (not readable)"
    return f" ({', '.join(name for name in left if repr(left[name]) != repr(right.get(name)))})"
