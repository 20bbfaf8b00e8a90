"""The columns of an IPTVPortal table: their types, how they are configured or inferred, and rows into Arrow.

The API tells neither names nor types: its rows are lists of JSON values in the order that was asked for.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from producer.errors import ConfigError, EncodeError, SchemaIncompatibleError
from producer.model import AS_WRITTEN, RejectedRow
from producer.salvage import salvage
from producer.sources.iptvportal.query import nearest

Json = Any
ID = "id"  # every table that can be read by ranges has it; it is never null

_TYPES: dict[str, pa.DataType] = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),  # before the other texts: `column_of` takes the first
    "json": pa.string(),
    "uuid": pa.string(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}
_ALIASES = {
    "int": "integer",
    "int4": "integer",
    "int8": "integer",
    "smallint": "integer",
    "bigint": "integer",
    "long": "integer",
    "serial": "integer",
    "double": "float",
    "double precision": "float",
    "real": "float",
    "bool": "boolean",
    "string": "text",
    "str": "text",
    "varchar": "text",
    "jsonb": "json",
    "datetime": "timestamp",
}
_NUMBERS: dict[str, set[type]] = {"integer": {int, type(None)}, "float": {int, float, type(None)}}
_DECIMAL = re.compile(r"(?:numeric|decimal)\((\d+),\s*(\d+)\)")


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its name in the API, its type's name, and the Arrow field its values go to."""

    name: str
    type: str
    field: pa.Field


def column(name: str, type_name: str) -> Column:
    """The column of a configured type; ConfigError names an unknown one. ``numeric(12,2)`` is a decimal."""
    kind = " ".join(type_name.strip().lower().split())
    kind = _ALIASES.get(kind, kind)
    if match := _DECIMAL.fullmatch(kind):
        precision, scale = int(match[1]), int(match[2])
        if not 1 <= precision <= 38 or scale > precision:
            raise ConfigError(f"iptvportal: column {name!r}: {type_name} is not a precision of 1 to 38 and its scale")
        return Column(name, kind, pa.field(name, pa.decimal128(precision, scale), nullable=name != ID))
    if kind not in _TYPES:
        raise ConfigError(
            f"iptvportal: column {name!r}: unknown type {type_name!r}",
            hint=nearest(kind, [*_TYPES, *_ALIASES, "numeric(P,S)"]),
        )
    metadata = {"avro.logical": kind} if kind in ("json", "uuid") else None
    return Column(name, kind, pa.field(name, _TYPES[kind], nullable=name != ID, metadata=metadata))


def column_of(field: pa.Field) -> Column:
    """The column whose values a field of a page has."""
    kind, metadata = field.type, field.metadata or {}
    if pa.types.is_decimal(kind):
        return Column(field.name, f"numeric({kind.precision},{kind.scale})", field)
    logical = metadata.get(b"avro.logical", b"").decode()
    return Column(field.name, logical or next(name for name, arrow in _TYPES.items() if arrow == kind), field)


def inferred(name: str, values: Sequence[Json]) -> Column:
    """The column of a page's values: the narrowest type that has all of them, ``json`` (exact, as text) at worst."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {bool}:
        return column(name, "boolean")
    if kinds == {int}:
        widest = max(abs(v) for v in values if v is not None)
        return column(name, "integer" if widest < 2**63 else "numeric(38,0)" if widest < 10**38 else "json")
    if kinds and kinds <= {int, float}:
        exact = all(float(v) == v for v in values if type(v) is int)
        return column(name, "float" if exact else "json")
    return column(name, "text" if kinds <= {str} else "json")


def widened(old: Column, values: Sequence[Json]) -> Column:
    """The column that has what `old`, which was inferred, has had so far, and `values` as well."""
    new = inferred(old.name, values)
    kinds = {old.type, new.type}
    if all(value is None for value in values) or len(kinds) == 1:
        return old
    for wider, narrower in (("float", {"integer"}), ("numeric(38,0)", {"integer"})):
        if kinds == {wider, *narrower}:
            return column(old.name, wider)
    return column(old.name, "json")


def as_written(name: str) -> Column:
    """A column whose values stay the JSON that the API has written, whatever their types."""
    found = column(name, "json")
    metadata = {**(found.field.metadata or {}), AS_WRITTEN: "true"}
    return replace(found, field=found.field.with_metadata(metadata))


def read_schema_file(path: str) -> dict[str, tuple[Column, ...]]:
    """The tables of a schema file (YAML or JSON)::

        tables:
          terminal:
            columns:
              - {position: 0, name: id, type: integer}

    ConfigError names the file and what is wrong in it.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"iptvportal: schema_file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"iptvportal: schema_file {path}: {' '.join(str(error).split())}") from None
    tables = document.get("tables") if isinstance(document, dict) else None
    if not isinstance(tables, dict):
        raise ConfigError(f"iptvportal: schema_file {path} has no 'tables' object")
    return {str(name): _table_columns(f"{path}: table {name}", entry) for name, entry in tables.items()}


def _table_columns(subject: str, entry: Json) -> tuple[Column, ...]:
    entries = entry.get("columns") if isinstance(entry, dict) else entry
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"iptvportal: schema_file {subject} has no list of columns")
    placed: dict[int, Column] = {}
    for index, item in enumerate(entries):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ConfigError(f"iptvportal: schema_file {subject}: column {index} has no name")
        position = item.get("position", index)
        if not isinstance(position, int) or position in placed:
            raise ConfigError(
                f"iptvportal: schema_file {subject}: column {item['name']}: position {position!r} is taken"
            )
        placed[position] = column(item["name"], str(item.get("type", "text")))
    columns = tuple(placed[position] for position in sorted(placed))
    names = [c.name for c in columns]
    if len(set(names)) != len(names):
        raise ConfigError(f"iptvportal: schema_file {subject}: a column is named twice")
    return columns


def transposed(table: str, rows: Sequence[Json], width: int) -> list[Sequence[Json]]:
    """The columns of the API's rows; SchemaIncompatibleError names the first row that is not a list of `width`."""
    if not rows:
        return [()] * width
    try:
        # All in C for well-formed rows; which row is wrong is looked for only when one is.
        if set(map(type, rows)) == {list} and set(map(len, rows)) == {width}:
            flat = list(itertools.chain.from_iterable(rows))
            return [flat[i::width] for i in range(width)]
    except TypeError:
        pass
    for index, row in enumerate(rows):
        if not isinstance(row, list):
            raise SchemaIncompatibleError(f"iptvportal: {table}: row {index} of the page is a {type(row).__name__}")
        if len(row) != width:
            raise SchemaIncompatibleError(
                f"iptvportal: {table}: row {index} of the page has {len(row)} values where {width} were asked for",
                hint="has the table changed? give its columns in a schema file",
            )
    raise AssertionError("unreachable: every row is a list of the right width")


def to_arrow(table: str, columns: Sequence[Column], values: Sequence[Sequence[Json]]) -> pa.RecordBatch:
    """A page's columns in Arrow. EncodeError names the column and the first value that is not of its type."""
    arrays = []
    for c, column_values in zip(columns, values, strict=True):
        try:
            array = _array(c, column_values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            raise _refusal(table, c, column_values) from None
        if array.null_count and not c.field.nullable:
            row = array.is_null().index(True).as_py()
            raise EncodeError(f"iptvportal: {table}.{c.name} has a null", stream=table, field=c.name, row=row)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([c.field for c in columns]))


def to_arrow_without_bad(
    table: str, columns: Sequence[Column], values: Sequence[Sequence[Json]]
) -> tuple[pa.RecordBatch, tuple[RejectedRow, ...]]:
    """The rows of a page whose values are all of their types, and the others."""
    rows = len(values[0]) if values else 0
    pieces, bad = salvage(rows, lambda start, stop: to_arrow(table, columns, [v[start:stop] for v in values]))
    if not bad:
        return pieces[0], ()

    def rejected(row: int, error: EncodeError) -> RejectedRow:
        readable, others = [], {}
        for c, column_values in zip(columns, values, strict=True):
            try:
                readable.append((c.field, to_arrow(table, [c], [column_values[row : row + 1]]).column(0)))
            except EncodeError:
                others[c.name] = orjson.dumps(column_values[row]).decode()
        schema = pa.schema([field for field, _ in readable])
        return RejectedRow(pa.RecordBatch.from_arrays([array for _, array in readable], schema=schema), others, error)

    put_aside = tuple(rejected(row, error) for row, error in bad if isinstance(error, EncodeError))
    joined = pa.Table.from_batches(pieces, pa.schema([c.field for c in columns])).combine_chunks()
    batch = joined.to_batches()[0] if joined.num_rows else pa.RecordBatch.from_pylist([], joined.schema)
    return batch, put_aside


def _array(c: Column, values: Sequence[Json]) -> pa.Array:
    target = c.field.type
    if c.type == "json":
        return pa.array([None if v is None else _json_text(v) for v in values], pa.string())
    if pa.types.is_decimal(target):
        # str() of a float is its shortest form: what the API wrote, for as many digits as a double carries.
        return pa.array([None if v is None else str(v) for v in values], pa.string()).cast(target)
    if c.type in _NUMBERS:
        if set(map(type, values)) - _NUMBERS[c.type]:  # Arrow would cut 1.5 to 1, and take True for 1
            raise TypeError(c.type)
        return pa.array(values, target)
    if target in (pa.string(), pa.bool_()):
        return pa.array(values, target)
    texts = pa.array(values, pa.string())
    if c.type == "timestamptz":  # texts with an offset, or taken as UTC
        return _utc(texts)
    if c.type == "time":  # as part of a timestamp, since only there Arrow reads any number of digits
        day = pc.binary_join_element_wise(pa.scalar("1970-01-01"), texts, pa.scalar(" "))
        return day.cast(pa.timestamp("us")).cast(target)
    return texts.cast(target)


def _json_text(value: Json) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # numbers beyond orjson's: whole ones of more than 64 bits, and decimals
        match value:
            case dict():
                return "{" + ",".join(f"{_json_text(key)}:{_json_text(item)}" for key, item in value.items()) + "}"
            case list():
                return "[" + ",".join(map(_json_text, value)) + "]"
        return str(value)


def _utc(texts: pa.Array) -> pa.Array:
    try:
        return texts.cast(pa.timestamp("us", tz="UTC"))
    except pa.ArrowInvalid:
        return texts.cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))


def _refusal(table: str, c: Column, values: Sequence[Json]) -> EncodeError:
    for index, value in enumerate(values):
        try:
            _array(c, [value])
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
            return EncodeError(
                f"iptvportal: {table}.{c.name}: row {index} of the page has a {kind} that is not of type {c.type}",
                stream=table,
                field=c.name,
                row=index,
                hint="give the column another type in the schema file",
            )
    return EncodeError(f"iptvportal: {table}.{c.name}: the page's values are not of type {c.type}", field=c.name)
