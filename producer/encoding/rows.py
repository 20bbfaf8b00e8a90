"""Owns the row by row form of the encoder, on fastavro: for pairings that have no plan, such as wide unions."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
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
    return [{name: column[row] for name, column in columns.items()} for row in range(batch.num_rows)]


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
        return list(array.cast(pa.time64("us"), safe=False).to_pylist())
    if pa.types.is_duration(t):
        return list(array.cast(pa.duration("us"), safe=False).cast(pa.int64()).to_pylist())
    if pa.types.is_struct(t):
        return _structs(names, properties.get("fields", ()), array)
    if pa.types.is_map(t):
        return _maps(names, properties.get("values", "null"), array)
    if pa.types.is_nested(t):
        return _lists(names, properties.get("items", "null"), array)
    values: list[Any] = array.to_pylist()
    match kind:
        case "string" if logical == "uuid" and pa.types.is_fixed_size_binary(t):
            return [None if v is None else str(uuid.UUID(bytes=v)) for v in values]
        case "string" | "enum" if pa.types.is_binary(t) or pa.types.is_large_binary(t):
            return [None if v is None else v.decode() for v in values]
        case "bytes" | "fixed" if logical == "decimal" and pa.types.is_integer(t):
            return [None if v is None else decimal.Decimal(v) for v in values]
    return values


def _timestamps(array: pa.Array, *, local: bool) -> list[Any]:
    """Microseconds; one without a zone is taken as UTC where an instant is wanted, never as local time."""
    micros = pc.cast(array, pa.timestamp("us", array.type.tz), safe=False)
    micros = micros.cast(pa.timestamp("us")) if local else micros.cast(pa.int64()).cast(pa.timestamp("us", "UTC"))
    return [value if value is None or local else value.astimezone(dt.UTC) for value in micros.to_pylist()]


def _structs(names: Names, fields: Sequence[Mapping[str, Any]], array: pa.Array) -> list[Any]:
    """Dicts by Avro field; by the struct's own names where the schema is a union that leaves the choice open."""
    by_name = {array.type.field(i).name: i for i in range(array.type.num_fields)}
    wanted = fields or [{"name": name, "type": "null"} for name in by_name]
    columns = {}
    for field in wanted:
        index = source_column(field, by_name)
        if index is not None:
            columns[field["name"]] = _values(names, field["type"], pc.struct_field(array, [index]))
    return [
        {name: column[row] for name, column in columns.items()} if valid else None
        for row, valid in enumerate(array.is_valid().to_pylist())
    ]


def _maps(names: Names, avro: AvroType, array: pa.Array) -> list[Any]:
    keys = _values(names, "string", array.keys)
    values = _values(names, avro, array.items)
    starts = array.offsets.to_pylist()
    return [
        dict(zip(keys[start:end], values[start:end], strict=True)) if valid else None
        for start, end, valid in zip(starts, starts[1:], array.is_valid().to_pylist(), strict=False)
    ]


def _lists(names: Names, avro: AvroType, array: pa.Array) -> list[Any]:
    items = iter(_values(names, avro, array.flatten()))
    sizes = pc.list_value_length(array).to_pylist()
    return [None if size is None else list(itertools.islice(items, size)) for size in sizes]
