"""Owns the Avro schemas that are derived from a table, and the fingerprints of schemas.

========================  ====================================================================
Arrow                     Avro
========================  ====================================================================
bool                      boolean
int8..int32, uint8/16     int
int64, uint32             long
uint64                    bytes, decimal(20, 0)
float16/32, float64       float, double
decimal32..256(p, s)      bytes, decimal(p, s)
date32, date64            int, date
time32, time64            long, time-micros
timestamp with zone       long, timestamp-micros
timestamp without         long, local-timestamp-micros
duration                  long of microseconds (property ``unit``)
string, large, view       string; with ``avro.logical`` a uuid or json string; with ``avro.enum`` an enum
binary, large, view       bytes
fixed_size_binary(n)      fixed(n); of the extension type arrow.uuid: a uuid string
list, large, fixed, view  array
struct, map               record, map
dictionary                its values' type
null                      null
========================  ====================================================================

A nullable column is a union of null and its type, null first and the default. Whatever else there is (intervals,
unions) is refused by name before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import fastavro
import fastavro.schema
import pyarrow as pa

from producer.encoding.names import (
    KnownNames,
    NamedColumn,
    NameTakenError,
    Path,
    field_names,
    free_name,
    is_valid_name,
    valid_name,
)
from producer.encoding.plan import Names, NotCovered, check_type, kind_of, source_column
from producer.errors import SchemaIncompatibleError
from producer.model import Dataset

AvroSchema = dict[str, Any]

NO_NAMES = KnownNames()


def derive_value_schema(dataset: Dataset, known: KnownNames = NO_NAMES) -> AvroSchema:
    """The record of all columns that are not hidden; the source's own schema where it has one.

    `known` are the names in the versions before: SchemaIncompatibleError where a transform gives one to another column.
    """
    if dataset.value_schema is not None:
        return dict(dataset.value_schema)
    fields = [field for field in dataset.schema if field.name not in dataset.hidden]
    return _Deriver(dataset, known).record(valid_name(dataset.name), fields, dataset.comment)


def derive_key_schema(dataset: Dataset, known: KnownNames = NO_NAMES) -> AvroSchema | None:
    """The record ``<name>_key`` of the key columns, none of them nullable; None for a table without a key."""
    if dataset.key_schema is not None:
        return dict(dataset.key_schema)
    if not dataset.key:
        return None
    fields = [dataset.schema.field(name).with_nullable(False) for name in dataset.key]
    return _Deriver(dataset, known).record(f"{valid_name(dataset.name)}_key", fields, "")


def canonical_form(schema: Any) -> str:
    """Avro's Parsing Canonical Form: the schema without what readers do not need."""
    return str(fastavro.schema.to_parsing_canonical_form(schema))


def crc64_fingerprint(schema: Any) -> bytes:
    """The 8 bytes of CRC-64-AVRO over the canonical form, little-endian as single-object encoding has them.

    https://avro.apache.org/docs/1.12.0/specification/#schema-fingerprints
    """
    return bytes.fromhex(fastavro.schema.fingerprint(canonical_form(schema), "CRC-64-AVRO"))


def sha256_fingerprint(schema: Any) -> str:
    """SHA-256 over the canonical form, in hex."""
    return str(fastavro.schema.fingerprint(canonical_form(schema), "sha256"))


TAKEN_HINT = (
    "give the field another name, or write to another topic; where the field is meant to hold both, list the former "
    "column in its property former_columns, in a schema file"
)

# --- a schema given by the user -------------------------------------------------------------------------------------


def check_schema(avsc: Any, dataset: Dataset, known: KnownNames = NO_NAMES) -> None:
    """SchemaIncompatibleError, naming each field that is wrong, unless every row of the table can be written as `avsc`.

    A field takes its values from the column that its property ``column`` names, or without that from the one of its
    name or an alias; without one it needs a default. It may not hold another column than in the versions before, whose
    names are `known`. Integers may be narrowed and items of arrays may turn out null: those are checked row by row.
    """
    try:
        names = Names(avsc)
    except (
        fastavro.schema.SchemaParseException,
        fastavro.schema.UnknownType,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise SchemaIncompatibleError(f"{dataset.name}: the schema is not valid Avro: {error}") from None
    record = names.resolve(names.schema)
    if kind_of(record)[0] != "record":
        raise SchemaIncompatibleError(f"{dataset.name}: the schema must be a record, not {kind_of(record)[0]}")
    by_name = {name: index for index, name in enumerate(dataset.schema.names)}
    problems = []
    columns: dict[str, frozenset[str]] = {}
    for field in record["fields"]:
        index = source_column(field, by_name)
        if index is not None:
            column = dataset.schema.field(index)
            columns[field["name"]] = frozenset([column.name, _metadata(column, "source_column") or column.name])
            problem = _field_problem(names, field, dataset.schema.field(index))
        elif "default" not in field:
            near = get_close_matches(field["name"], by_name, 1)
            problem = "there is no column for it and it has no default" + (f" (is it {near[0]!r}?)" if near else "")
        else:
            problem = ""
        if problem:
            problems.append(f"field {field['name']}: {problem}")
    if problems:
        raise SchemaIncompatibleError(
            f"{dataset.name}: the schema does not fit the table: {'; '.join(problems)}",
            hint="`producer schema show` prints the schema that fits",
        )
    if taken := known.problems(record, columns):
        raise SchemaIncompatibleError(f"{dataset.name}: {'; '.join(taken)}", hint=TAKEN_HINT)


def _field_problem(names: Names, field: Mapping[str, Any], column: pa.Field) -> str:
    """What is wrong with taking `field` from `column`; '' where nothing is."""
    avro = names.resolve(field["type"])
    branches = [names.resolve(branch) for branch in avro] if isinstance(avro, list) else [avro]
    if column.nullable and "null" not in branches:
        return f"column {column.name} may be null, the field may not (use a union with null, or declare it NOT NULL)"
    values = [branch for branch in branches if branch != "null"] or ["null"]
    problems = [_type_problem(names, branch, column) for branch in values]
    return "" if "" in problems else problems[0]


def _type_problem(names: Names, avro: Any, column: pa.Field) -> str:
    kind, logical, properties = kind_of(avro)
    arrow = column.type
    if kind == "enum" and (known := _metadata(column, "avro.enum")):
        unknown = sorted(set(json.loads(known)) - set(properties["symbols"]))
        if unknown:
            return f"the enum lacks the symbols {', '.join(unknown)}"
    if logical == "decimal" and (room := _digits(arrow)) is not None:
        scale = properties.get("scale", 0)
        if scale < room[1] or properties["precision"] - scale < room[0] - room[1]:
            return f"column {column.name} is decimal({room[0]}, {room[1]}), more than the field holds"
    if logical.startswith("local-timestamp") and pa.types.is_timestamp(arrow) and arrow.tz:
        return f"column {column.name} is an instant (with time zone), {logical} is not"
    try:
        check_type(names, avro, arrow)
    except NotCovered:
        return f"column {column.name} of type {arrow} has no form as {logical or kind}"
    return ""


def _digits(arrow: pa.DataType) -> tuple[int, int] | None:
    """(precision, scale) that every value of the type fits."""
    if pa.types.is_decimal(arrow):
        return arrow.precision, arrow.scale
    if pa.types.is_integer(arrow):
        return {8: 3, 16: 5, 32: 10, 64: 20 if pa.types.is_uint64(arrow) else 19}[arrow.bit_width], 0
    return None


# --- names ----------------------------------------------------------------------------------------------------------


def _namespace(text: str) -> str:
    return ".".join(valid_name(part) for part in text.split(".") if part)


# --- types ----------------------------------------------------------------------------------------------------------


def _metadata(field: pa.Field, name: str) -> str:
    value = (field.metadata or {}).get(name.encode())
    return "" if value is None else value.decode()


class _Deriver:
    """One schema in the making: remembers the names of types already taken, and those that there were before."""

    def __init__(self, dataset: Dataset, known: KnownNames) -> None:
        self.table = dataset.name
        self.namespace = _namespace(dataset.namespace)
        self.known = known
        self.taken: set[str] = set()

    def record(self, name: str, columns: Iterable[pa.Field], comment: str) -> AvroSchema:
        """The outermost record."""
        self.taken.add(name)
        schema: AvroSchema = {"type": "record", "name": name}
        if self.namespace:
            schema["namespace"] = self.namespace
        if comment:
            schema["doc"] = comment
        schema["fields"] = self.fields(columns, name, "", ())
        return schema

    def fields(self, columns: Iterable[pa.Field], record: str, prefix: str, path: Path) -> list[AvroSchema]:
        columns = list(columns)
        if len({column.name for column in columns}) < len(columns):
            raise SchemaIncompatibleError(f"{self.table}: {prefix or 'the table'} has two columns of one name")
        sources = {column.name: _metadata(column, "source_column") or column.name for column in columns}
        try:
            wanted = [NamedColumn(name, source) for name, source in sources.items()]
            names = field_names(wanted, self.known.fields.get(path, {}))
        except NameTakenError as error:
            raise SchemaIncompatibleError(f"{self.table}: transforms: {error}", hint=TAKEN_HINT) from None
        out = []
        for column in columns:
            name = names[column.name]
            avro = self.type(column, f"{record}_{name}", prefix + column.name, (*path, sources[column.name]))
            field: AvroSchema = {"name": name, "type": avro}
            if column.nullable and avro != "null":
                field["type"] = ["null", avro]
            if column.nullable or avro == "null":
                field["default"] = None
            if comment := _metadata(column, "comment"):
                field["doc"] = comment
            if name != column.name:
                field["column"] = column.name
            if sources[column.name] != column.name:
                field["source_column"] = sources[column.name]
            out.append(field)
        return out

    def named(self, kind: str, wanted: str, at: Path, properties: Mapping[str, Any]) -> AvroSchema:
        name = self.known.types.get(at)
        if name is None or name in self.taken:
            others = {name for path, name in self.known.types.items() if path != at}
            name = free_name(wanted, self.taken | others)
        self.taken.add(name)
        return {"type": kind, "name": name, **properties}

    def item(self, field: pa.Field, name: str, path: str, at: Path) -> Any:
        avro = self.type(field, name, path, at)
        return ["null", avro] if field.nullable and avro != "null" else avro

    def type(self, field: pa.Field, name: str, path: str, at: Path) -> Any:
        """The Avro type of a column's values, null aside. `name` is for a type that must have one, `path` for errors,
        `at` for the names that there were."""
        arrow, t = field.type, pa.types
        if isinstance(arrow, pa.BaseExtensionType):
            if arrow.extension_name == "arrow.uuid":
                return {"type": "string", "logicalType": "uuid"}
            logical = {b"avro.logical": b"json"} if arrow.extension_name == "arrow.json" else {}
            return self.type(
                pa.field(field.name, arrow.storage_type, metadata=logical | (field.metadata or {})), name, path, at
            )
        if t.is_dictionary(arrow) or t.is_run_end_encoded(arrow):
            return self.type(pa.field(field.name, arrow.value_type, metadata=field.metadata), name, path, at)
        if t.is_string(arrow) or t.is_large_string(arrow) or t.is_string_view(arrow):
            return self.text(field, name, at)
        if t.is_fixed_size_binary(arrow):
            if _metadata(field, "avro.logical") == "uuid" and arrow.byte_width == 16:
                return {"type": "string", "logicalType": "uuid"}
            return self.named("fixed", name, at, {"size": arrow.byte_width})
        if t.is_decimal(arrow):
            return decimal_type(arrow.precision, arrow.scale)
        if t.is_timestamp(arrow):
            return {"type": "long", "logicalType": "timestamp-micros" if arrow.tz else "local-timestamp-micros"}
        if t.is_struct(arrow):
            columns = [arrow.field(i) for i in range(arrow.num_fields)]
            record = self.named("record", name, at, {})
            return {**record, "fields": self.fields(columns, record["name"], f"{path}.", at)}
        if t.is_map(arrow):
            key = arrow.key_type
            if not (t.is_string(key) or t.is_large_string(key)):
                raise self.refusal(path, arrow, "the keys of an Avro map are text")
            return {"type": "map", "values": self.item(arrow.item_field, name, f"{path}{{}}", at)}
        if _is_list(arrow):
            return {"type": "array", "items": self.item(arrow.value_field, name, f"{path}[]", at)}
        for matches, avro in _SIMPLE:
            if matches(arrow):
                return avro
        raise self.refusal(path, arrow, "there is no Avro type for it")

    def text(self, field: pa.Field, name: str, at: Path) -> Any:
        if logical := _metadata(field, "avro.logical"):
            return {"type": "string", "logicalType": logical}
        if symbols := _metadata(field, "avro.enum"):
            values = json.loads(symbols)
            if values and all(map(is_valid_name, values)) and len(set(values)) == len(values):
                return self.named("enum", name, at, {"symbols": values})
            return {"type": "string", "symbols": values}
        return "string"

    def refusal(self, path: str, arrow: pa.DataType, reason: str) -> SchemaIncompatibleError:
        return SchemaIncompatibleError(
            f"{self.table}: column {path} is of type {arrow}: {reason}",
            hint="leave it out with `exclude`, or cast it in a view",
        )


def decimal_type(precision: int, scale: int) -> AvroSchema:
    """Avro wants 0 <= scale <= precision, which Arrow and SQL do not."""
    if scale < 0:
        precision, scale = precision - scale, 0
    return {"type": "bytes", "logicalType": "decimal", "precision": max(precision, scale), "scale": scale}


def _is_list(arrow: pa.DataType) -> bool:
    t = pa.types
    plain = t.is_list(arrow) or t.is_large_list(arrow) or t.is_fixed_size_list(arrow)
    return bool(plain or t.is_list_view(arrow) or t.is_large_list_view(arrow))


_INTS = frozenset([pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()])

_SIMPLE: tuple[tuple[Any, Any], ...] = (
    (pa.types.is_null, "null"),
    (pa.types.is_boolean, "boolean"),
    (_INTS.__contains__, "int"),
    (pa.types.is_uint64, decimal_type(20, 0)),
    (pa.types.is_integer, "long"),
    (pa.types.is_float64, "double"),
    (pa.types.is_floating, "float"),
    (pa.types.is_date, {"type": "int", "logicalType": "date"}),
    (pa.types.is_time, {"type": "long", "logicalType": "time-micros"}),
    (pa.types.is_duration, {"type": "long", "unit": "microsecond"}),
    (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_binary_view(t), "bytes"),
)
