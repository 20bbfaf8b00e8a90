"""The file formats: how a batch becomes bytes, and what stands before, between and after the chunks of a file.

A format's chunks can be concatenated, so that a file can be cut after any of them and continued; with gzip each
piece is a member of its own.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from producer.errors import ConfigError
from producer.model import AS_WRITTEN
from producer.sinks.json_text import indented, json_column, json_rows
from producer.sinks.row_ends import Ends, avro_ends, csv_ends, gzip_ends, json_ends, line_ends

Json = Any
_GZIP_LEVEL = 6


@dataclass(frozen=True, slots=True)
class FileFormat:
    """``suffix`` of the file's name; ``chunked``: each chunk is a whole file (header and footer included);
    ``may_chunk``: there are both ways for this format. ``ends`` finds where a file can be cut; None for Parquet, whose
    files are cut only between one another."""

    suffix: str
    encode: Callable[[pa.RecordBatch], bytes | memoryview]
    header: bytes = b""
    separator: bytes = b""
    footer: bytes = b""
    chunked: bool = False
    may_chunk: bool = False
    ends: Ends | None = None


def file_format(
    name: str,
    schema: pa.Schema,
    *,
    compress: bool = False,
    indent: int | None = None,
    avro_schema: Mapping[str, Json] | None = None,
) -> FileFormat:
    """The format `name` (jsonl, csv, json, parquet, avro) of rows with this schema.

    `compress` is gzip for the text formats and deflate inside an Avro file; Parquet is always compressed (zstd).
    Avro needs the schema of its records. `indent` is how many spaces a level of a JSON array has; None: a row a line.
    """
    match name:
        case "jsonl":
            made = FileFormat(".jsonl", lambda batch: json_rows(batch, "\n"), ends=line_ends)
        case "json":
            encode = partial(_array_items, indent=indent)
            made = FileFormat(".json", encode, header=b"[\n", separator=b",\n", footer=b"\n]\n", ends=json_ends)
        case "csv":
            header = _csv(schema.empty_table(), header=True)
            made = FileFormat(".csv", lambda batch: _csv(batch, header=False), header=header, may_chunk=True)
            made = dataclasses.replace(made, ends=csv_ends)
        case "parquet":
            return FileFormat(".parquet", _parquet, chunked=True)
        case "avro":
            if avro_schema is None:
                raise ConfigError("avro needs a schema")
            return _avro(schema, avro_schema, deflate=compress)
        case _:
            raise ConfigError(f"unknown format {name!r}", hint="jsonl, csv, json, parquet or avro")
    return _gzipped(made) if compress else made


def chunk_per_file(made: FileFormat) -> FileFormat:
    """The same format with every chunk in a file of its own."""
    return dataclasses.replace(made, chunked=True)


def _gzipped(made: FileFormat) -> FileFormat:
    def member(data: bytes | memoryview) -> bytes:
        return gzip.compress(data, compresslevel=_GZIP_LEVEL, mtime=0) if data else b""

    return dataclasses.replace(
        made,
        suffix=made.suffix + ".gz",
        ends=made.ends and gzip_ends(made.ends),
        encode=lambda batch: member(made.encode(batch)),
        header=member(made.header),
        separator=member(made.separator),
        footer=member(made.footer),
    )


def _array_items(batch: pa.RecordBatch, *, indent: int | None) -> bytes | memoryview:
    """The rows as they stand in a JSON array, without a separator after the last one."""
    if indent is None:
        return json_rows(batch, ",\n")[:-2]
    rows = bytes(json_rows(batch, "\n")).splitlines()
    return b",\n".join(indented(row, indent) for row in rows)


def _csv(batch: pa.RecordBatch | pa.Table, *, header: bool) -> bytes | Any:
    import pyarrow.csv

    columns, fields = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if _fits_csv(field.type) and AS_WRITTEN.encode() not in (field.metadata or {}):
            columns.append(column)
            fields.append(field)
        else:
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            texts = pa.chunked_array([_csv_texts(chunk, field) for chunk in chunks], pa.large_string())
            columns.append(texts if isinstance(batch, pa.Table) else texts.combine_chunks())
            fields.append(pa.field(field.name, pa.large_string()))
    plain = type(batch).from_arrays(columns, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(plain, sink, pyarrow.csv.WriteOptions(include_header=header))
    return sink.getvalue().to_pybytes()


def _fits_csv(kind: pa.DataType) -> bool:
    checks = (
        "boolean",
        "integer",
        "floating",
        "decimal",
        "string",
        "large_string",
        "date",
        "time",
        "timestamp",
        "null",
    )
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


def _csv_texts(column: pa.Array, field: pa.Field) -> pa.Array:
    """What CSV has no form for as JSON text; a plain JSON string without its quotes."""
    texts = json_column(column, field)
    unquoted = [orjson.loads(t) if t.startswith('"') else t for t in texts.to_pylist()]
    return pc.if_else(column.is_null(), pa.scalar(None, pa.large_string()), pa.array(unquoted, pa.large_string()))


def _parquet(batch: pa.RecordBatch) -> bytes:
    import pyarrow.parquet

    sink = pa.BufferOutputStream()
    with pyarrow.parquet.ParquetWriter(sink, batch.schema, compression="zstd") as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def _avro(schema: pa.Schema, avro_schema: Mapping[str, Json], *, deflate: bool) -> FileFormat:
    """An Avro object container file (specification 1.11): one block a chunk. The sync marker comes from the schema,
    so that the same rows give the same bytes."""
    from producer.encoding.arrow_avro import AvroEncoder

    encoder = AvroEncoder(avro_schema, schema)
    text = orjson.dumps(avro_schema)
    sync = hashlib.sha256(text).digest()[:16]
    header = io.BytesIO()
    header.write(b"Obj\x01" + _long(2))
    for key, value in ((b"avro.schema", text), (b"avro.codec", b"deflate" if deflate else b"null")):
        header.write(_long(len(key)) + key + _long(len(value)) + value)
    header.write(_long(0) + sync)

    def block(batch: pa.RecordBatch) -> bytes:
        if batch.num_rows == 0:
            return b""
        data: Any = encoder.encode(batch).data
        if deflate:
            data = zlib.compress(data, _GZIP_LEVEL, wbits=-15)
        return b"".join((_long(batch.num_rows), _long(len(data)), data, sync))

    return FileFormat(".avro", block, header=header.getvalue(), ends=avro_ends(len(header.getvalue())))


def _long(value: int) -> bytes:
    """Avro's zig-zag variable-length integer."""
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)
