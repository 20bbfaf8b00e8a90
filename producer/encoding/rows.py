"""Owns the row by row form of the encoder, on fastavro: for pairings that have no plan, such as wide unions."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.compute as pc

from producer.encoding.plan import AvroType, Names, kind_of, source_column


def encode_rows(names: Names, batch: pa.RecordBatch) -> Iterator[bytes]:
    """Each row's datum; raises what fastavro and pyarrow raise for values that do not fit."""
    for row in python_rows(names, batch):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, names.schema, row)
        yield out.getvalue()


def python_rows(names: Names, batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as fastavro takes them, keyed by Avro field; a field without a column is left to its default."""
    by_name = {name: index for index, name in enumerate(batch.schema.names)}
    columns: dict[str, list[Any]] = {}
    for field in names.resolve(names.schema)["fields"]:
        index = source_column(field, by_name)
        if index is not None:
            columns[field["name"]] = _values(names, field["type"], batch.column(index))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(names: Names, avro: AvroType, array: pa.Array) -> list[Any]:
    avro = names.resolve(avro)
    if isinstance(avro, list):
        branches = [branch for branch in avro if names.resolve(branch) != "null"]
        avro = names.resolve(branches[0]) if len(branches) == 1 else "null"  # of several, fastavro finds the one
    kind, logical, properties = kind_of(avro)
    t = array.type
    if isinstance(t, pa.BaseExtensionType):
        array, t = array.storage, t.storage_type
    if pa.types.is_dictionary(t):
        return _values(names, avro, array.dictionary_decode())
    if pa.types.is_run_end_encoded(t):
        return _values(names, avro, pc.run_end_decode(array))
    if pa.types.is_timestamp(t):
        return _timestamps(array, local=logical.startswith("local") or (kind == "null" and t.tz is None))
    if pa.types.is_time(t):
        return array.cast(pa.time64("us"), safe=False).to_pylist()
    if pa.types.is_duration(t):
        return array.cast(pa.duration("us"), safe=False).cast(pa.int64()).to_pylist()
    values = array.to_pylist()
    match kind:
        case "record":
            return [None if value is None else _struct(names, properties, t, value) for value in values]
        case "array" if pa.types.is_nested(t):
            return [
                None if v is None else _values(names, properties["items"], pa.array(v, t.value_type)) for v in values
            ]
        case "map" if pa.types.is_map(t):
            return [None if v is None else _map(names, properties, t, v) for v in values]
        case "string" if logical == "uuid" and pa.types.is_fixed_size_binary(t):
            return [None if v is None else str(uuid.UUID(bytes=v)) for v in values]
        case "string" | "enum" if pa.types.is_binary(t) or pa.types.is_large_binary(t):
            return [None if v is None else v.decode() for v in values]
        case "bytes" | "fixed" if logical == "decimal" and pa.types.is_integer(t):
            return [None if v is None else decimal.Decimal(v) for v in values]
    if pa.types.is_map(t):
        return [None if v is None else dict(v) for v in values]
    return values


def _timestamps(array: pa.Array, *, local: bool) -> list[Any]:
    """Microseconds; one without a zone is taken as UTC where an instant is wanted, never as local time."""
    micros = pc.cast(array, pa.timestamp("us", array.type.tz), safe=False)
    micros = micros.cast(pa.timestamp("us")) if local else micros.cast(pa.int64()).cast(pa.timestamp("us", "UTC"))
    return [value if value is None or local else value.astimezone(dt.UTC) for value in micros.to_pylist()]


def _struct(names: Names, record: Mapping[str, Any], arrow: pa.StructType, value: dict[str, Any]) -> dict[str, Any]:
    by_name = {arrow.field(i).name: i for i in range(arrow.num_fields)}
    out = {}
    for field in record["fields"]:
        index = source_column(field, by_name)
        if index is not None:
            child = arrow.field(index)
            out[field["name"]] = _values(names, field["type"], pa.array([value[child.name]], child.type))[0]
    return out


def _map(names: Names, avro: Mapping[str, Any], arrow: pa.MapType, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = _values(names, avro["values"], pa.array([value for _, value in pairs], arrow.item_type))
    return dict(zip((key for key, _ in pairs), values, strict=True))
