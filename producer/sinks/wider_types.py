"""Reads rows back from the files of a dump, and converts them to wider types of the same columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import pyarrow as pa

from producer.errors import EncodeError


def parquet_rows(path: Path) -> pa.RecordBatch:
    """All rows of a file of one chunk."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        table = file.read().combine_chunks()
    return table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)


def avro_rows(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of an object container file, block by block; `schema` is the one they were written with."""
    import fastavro

    with path.open("rb") as file:
        for block in fastavro.block_reader(file):
            rows = [{name: record[name] for name in schema.names} for record in block if isinstance(record, dict)]
            yield pa.RecordBatch.from_pylist(rows, schema)


def with_types(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows with the wider types of `schema`. EncodeError where a value would not stay what it is."""
    arrays = [_cast(rows.column(field.name), rows.schema.field(field.name), field) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cast(values: pa.Array, before: pa.Field, field: pa.Field) -> pa.Array:
    if _is_json(field) and pa.types.is_string(before.type):
        if _is_json(before):
            return values
        return pa.array([None if v is None else orjson.dumps(v).decode() for v in values.to_pylist()], field.type)
    try:
        return values.cast(field.type)
    except pa.ArrowInvalid as error:
        raise EncodeError(
            f"column {field.name!r}: the rows written so far have no form as {field.type}: {error}",
            field=field.name,
            hint="give the column its type in a schema file, and start over with resume=False (--no-resume)",
        ) from None


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"avro.logical") == b"json"
