"""Record batches as JSON text: a column at a time, in Arrow's own kernels, without a Python object per value.

The forms: numbers as they are (a decimal keeps all its digits), NaN and infinities as null, timestamps as ISO 8601
(``T`` between date and time, ``Z`` where there is a zone), bytes in base64, ``json`` columns as the JSON they hold.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import re
import uuid
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

_TEXT = pa.large_string()
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|\{\}|\[\]|[{}\[\],:]|[^\s{}\[\],:"]+')
_SPECIAL = r'[\x00-\x1f"\\]'


def json_rows(batch: pa.RecordBatch, terminator: str) -> memoryview:
    """The batch's rows as JSON objects, each followed by `terminator`."""
    if batch.num_rows == 0:
        return memoryview(b"")
    parts: list[Any] = []
    literal = "{"
    for index, field in enumerate(batch.schema):
        literal += ("," if index else "") + orjson.dumps(field.name).decode() + ":"
        column = batch.column(index)
        plain = _storage(column)
        if _is_text(plain.type) and plain.null_count == 0 and not _is_json(field):
            parts += [pa.scalar(literal + '"', _TEXT), _escaped(plain.cast(_TEXT))]
            literal = '"'
        else:
            parts += [pa.scalar(literal, _TEXT), json_column(column, field)]
            literal = ""
    parts.append(pa.scalar(literal + "}" + terminator, _TEXT))
    if len(parts) == 1:  # a table without columns
        return memoryview(("{}" + terminator).encode() * batch.num_rows)
    joined = pc.binary_join_element_wise(*parts, pa.scalar("", _TEXT))
    offsets = np.frombuffer(joined.buffers()[1], np.int64)[joined.offset : joined.offset + len(joined) + 1]
    return memoryview(joined.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


def json_column(column: pa.Array, field: pa.Field) -> pa.Array:
    """A column's values as JSON texts (large_string, no nulls)."""
    plain = _storage(column)
    kind = plain.type
    if _is_json(field) and _is_text(kind):
        # A line break can only stand between JSON's tokens, where a space means the same.
        texts = pc.replace_substring(pc.replace_substring(plain.cast(_TEXT), "\n", " "), "\r", " ")
    elif _is_text(kind):
        texts = _joined('"', _escaped(plain.cast(_TEXT)), '"')
    elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        texts = plain.cast(_TEXT)
    elif pa.types.is_floating(kind):
        texts = _floats(plain)
    elif pa.types.is_timestamp(kind):
        utc = plain.cast(pa.timestamp(kind.unit, "UTC")) if kind.tz else plain
        texts = _joined('"', pc.replace_substring(utc.cast(_TEXT), " ", "T", max_replacements=1), '"')
    elif pa.types.is_date(kind) or pa.types.is_time(kind):
        texts = _joined('"', plain.cast(_TEXT), '"')
    else:
        texts = pa.array([None if v is None else _dumps(v) for v in plain.to_pylist()], _TEXT)
    return pc.fill_null(texts, "null") if texts.null_count else texts


def indented(row: bytes, spaces: int) -> bytes:
    """One row of `json_rows` over several lines, itself one level deep. Tokens stay as they are, digits included."""
    parts, depth = [b" " * spaces], 1
    for token in _TOKEN.findall(row):
        if token in (b"{", b"["):
            depth += 1
            parts += [token, b"\n", b" " * spaces * depth]
        elif token in (b"}", b"]"):
            depth -= 1
            parts += [b"\n", b" " * spaces * depth, token]
        elif token == b",":
            parts += [token, b"\n", b" " * spaces * depth]
        else:
            parts.append(b": " if token == b":" else token)
    return b"".join(parts)


def _storage(column: pa.Array) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"avro.logical") == b"json"


def _joined(before: str, texts: pa.Array, after: str) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(before, _TEXT), texts, pa.scalar(after, _TEXT), pa.scalar("", _TEXT))


def _escaped(texts: pa.Array) -> pa.Array:
    """The texts as they stand between JSON's quotes; only those that need it cost more than one look at the bytes."""
    data = texts.buffers()[2]
    if data is None:
        return texts
    raw = np.frombuffer(data, np.uint8)
    if not ((raw < 0x20) | (raw == ord('"')) | (raw == ord("\\"))).any():
        return texts
    special = pc.fill_null(pc.match_substring_regex(texts, _SPECIAL), False)
    escaped = [orjson.dumps(text)[1:-1].decode() for text in texts.filter(special).to_pylist()]
    return pc.replace_with_mask(texts, special, pa.array(escaped, _TEXT))


def _floats(column: pa.Array) -> pa.Array:
    numbers = column.cast(pa.float64()) if pa.types.is_float16(column.type) else column
    filled = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
    if len(filled) == 0:
        return pa.array([], _TEXT)
    texts = pa.array(orjson.dumps(filled, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(","), _TEXT)
    return pc.if_else(numbers.is_null(), pa.scalar(None, _TEXT), texts) if numbers.null_count else texts


def _dumps(value: object) -> str:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: object) -> object:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case decimal.Decimal() | uuid.UUID():
            return str(value)
        case dt.timedelta():
            return value.total_seconds()
        case tuple():
            return list(value)
    return str(value)
