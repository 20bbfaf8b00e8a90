"""Schemas derived from tables, and schemas of the user against tables."""

from __future__ import annotations

import json
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.names import NamedColumn, field_names
from producer.encoding.schema import (
    canonical_form,
    check_schema,
    crc64_fingerprint,
    derive_key_schema,
    derive_value_schema,
    sha256_fingerprint,
)
from producer.errors import SchemaIncompatibleError
from producer.model import Dataset


def dataset(*fields: pa.Field, key: tuple[str, ...] = (), **more: Any) -> Dataset:
    return Dataset(more.pop("name", "events"), pa.schema(fields), key, key, {}, **more)


def field_of(column: pa.Field) -> Any:
    (field,) = derive_value_schema(dataset(column))["fields"]
    return field


def type_of(arrow: pa.DataType, **metadata: str) -> Any:
    return field_of(
        pa.field("c", arrow, nullable=False, metadata={k.replace("_", "."): v for k, v in metadata.items()})
    )["type"]


@pytest.mark.parametrize(
    ("arrow", "avro"),
    [
        (pa.bool_(), "boolean"),
        (pa.int8(), "int"),
        (pa.uint16(), "int"),
        (pa.int32(), "int"),
        (pa.uint32(), "long"),
        (pa.int64(), "long"),
        (pa.uint64(), {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 0}),
        (pa.float16(), "float"),
        (pa.float32(), "float"),
        (pa.float64(), "double"),
        (pa.decimal128(12, 2), {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}),
        (pa.decimal256(76, 10), {"type": "bytes", "logicalType": "decimal", "precision": 76, "scale": 10}),
        (pa.decimal128(3, -2), {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 0}),
        (pa.decimal128(2, 5), {"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 5}),
        (pa.date32(), {"type": "int", "logicalType": "date"}),
        (pa.time64("ns"), {"type": "long", "logicalType": "time-micros"}),
        (pa.timestamp("ns", "UTC"), {"type": "long", "logicalType": "timestamp-micros"}),
        (pa.timestamp("s"), {"type": "long", "logicalType": "local-timestamp-micros"}),
        (pa.duration("s"), {"type": "long", "unit": "microsecond"}),
        (pa.large_string(), "string"),
        (pa.string_view(), "string"),
        (pa.binary(), "bytes"),
        (pa.binary(4), {"type": "fixed", "name": "events_c", "size": 4}),
        (pa.uuid(), {"type": "string", "logicalType": "uuid"}),
        (pa.json_(), {"type": "string", "logicalType": "json"}),
        (pa.dictionary(pa.int8(), pa.string()), "string"),
        (pa.list_(pa.int64()), {"type": "array", "items": ["null", "long"]}),
        (pa.list_(pa.field("item", pa.int64(), nullable=False)), {"type": "array", "items": "long"}),
        (pa.map_(pa.string(), pa.float32()), {"type": "map", "values": ["null", "float"]}),
    ],
)
def test_each_arrow_type_has_its_avro_type(arrow: pa.DataType, avro: Any) -> None:
    assert type_of(arrow) == avro


def test_a_nullable_column_is_a_union_with_null_first_and_the_default() -> None:
    assert field_of(pa.field("c", pa.int64())) == {"name": "c", "type": ["null", "long"], "default": None}
    assert field_of(pa.field("c", pa.int64(), nullable=False)) == {"name": "c", "type": "long"}


def test_a_column_of_nothing_but_null_is_of_the_type_null() -> None:
    assert field_of(pa.field("c", pa.null())) == {"name": "c", "type": "null", "default": None}


def test_a_struct_becomes_a_record_of_its_own_name_inside_its_table() -> None:
    inner = pa.struct([pa.field("street", pa.string(), nullable=False, metadata={"comment": "no number"})])
    assert type_of(pa.struct([("home", inner), ("work", inner)])) == {
        "type": "record",
        "name": "events_c",
        "fields": [
            {
                "name": name,
                "type": [
                    "null",
                    {
                        "type": "record",
                        "name": f"events_c_{name}",
                        "fields": [{"name": "street", "type": "string", "doc": "no number"}],
                    },
                ],
                "default": None,
            }
            for name in ("home", "work")
        ],
    }


def test_metadata_makes_uuids_json_and_enums() -> None:
    assert type_of(pa.string(), avro_logical="uuid") == {"type": "string", "logicalType": "uuid"}
    assert type_of(pa.string(), avro_logical="json") == {"type": "string", "logicalType": "json"}
    assert type_of(pa.binary(16), avro_logical="uuid") == {"type": "string", "logicalType": "uuid"}
    symbols = json.dumps(["new", "paid"])
    assert type_of(pa.string(), avro_enum=symbols) == {"type": "enum", "name": "events_c", "symbols": ["new", "paid"]}
    odd = json.dumps(["new", "not paid"])
    assert type_of(pa.string(), avro_enum=odd) == {"type": "string", "symbols": ["new", "not paid"]}


def test_names_are_made_valid_and_different_with_the_column_kept() -> None:
    columns = ["a b", "a_b", "a-b", "1st", "größe", "ok"]
    names = field_names([NamedColumn(name, name) for name in columns], {})
    assert names == {"a b": "a_b_2", "a_b": "a_b", "a-b": "a_b_3", "1st": "_1st", "größe": "gr__e", "ok": "ok"}
    schema = derive_value_schema(dataset(pa.field("Odd Name", pa.int64()), name='public."t-1"', namespace="my-shop.1"))
    assert (schema["name"], schema["namespace"]) == ("public__t_1_", "my_shop._1")
    assert schema["fields"][0]["name"] == "Odd_Name"
    assert schema["fields"][0]["column"] == "Odd Name"


def test_a_made_name_is_still_filled_from_its_column() -> None:
    batch = pa.record_batch({"a b": [1], "a_b": [2], "a-b": [3]})
    schema = derive_value_schema(Dataset("t", batch.schema, (), (), {}))
    encoded = AvroEncoder(schema, batch.schema).encode(batch)
    assert encoded.row(0) == bytes([2, 2, 2, 4, 2, 6])


def test_comments_become_doc_and_hidden_columns_stay_out() -> None:
    table = dataset(
        pa.field("id", pa.int64(), nullable=False, metadata={"comment": "the order"}),
        pa.field("cursor", pa.int64()),
        key=("id",),
        hidden=frozenset({"cursor"}),
        comment="all orders",
    )
    assert derive_value_schema(table) == {
        "type": "record",
        "name": "events",
        "doc": "all orders",
        "fields": [{"name": "id", "type": "long", "doc": "the order"}],
    }


def test_the_key_schema_has_the_key_columns_and_no_nulls() -> None:
    table = dataset(
        pa.field("id", pa.int64()), pa.field("day", pa.date32()), pa.field("x", pa.string()), key=("day", "id")
    )
    assert derive_key_schema(table) == {
        "type": "record",
        "name": "events_key",
        "fields": [{"name": "day", "type": {"type": "int", "logicalType": "date"}}, {"name": "id", "type": "long"}],
    }
    assert derive_key_schema(dataset(pa.field("id", pa.int64()))) is None


@pytest.mark.parametrize(
    ("arrow", "path"),
    [
        (pa.month_day_nano_interval(), "c"),
        (pa.dense_union([pa.field("a", pa.int64())]), "c"),
        (pa.list_(pa.month_day_nano_interval()), r"c\[\]"),
        (pa.struct([("part", pa.month_day_nano_interval())]), r"c\.part"),
        (pa.map_(pa.int64(), pa.int64()), "c"),
    ],
)
def test_what_has_no_avro_form_is_refused_by_column_and_type(arrow: pa.DataType, path: str) -> None:
    with pytest.raises(SchemaIncompatibleError, match=rf"events: column {path} is of type .*exclude"):
        type_of(arrow)


def test_fingerprints_are_those_of_the_specification() -> None:
    assert crc64_fingerprint("int") == bytes.fromhex("8f5c393f1ad57572")
    assert sha256_fingerprint("int") == "3f2b87a9fe7cc9b13835598c3981cd45e3e355309e5090aa0933d7becb6fba45"
    with_doc = {
        "type": "record",
        "name": "r",
        "doc": "x",
        "fields": [{"name": "a", "type": {"type": "int"}, "default": 1}],
    }
    assert canonical_form(with_doc) == '{"name":"r","type":"record","fields":[{"name":"a","type":"int"}]}'


# --- a schema given by the user -------------------------------------------------------------------------------------

TABLE = dataset(
    pa.field("id", pa.int64(), nullable=False),
    pa.field("note", pa.string()),
    pa.field("amount", pa.decimal128(12, 2), nullable=False),
    pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("colour", pa.string(), nullable=False, metadata={"avro.enum": '["red", "green"]'}),
    pa.field("tags", pa.list_(pa.string()), nullable=False),
    key=("id",),
)


def avsc(**fields: Any) -> dict[str, Any]:
    whole = [isinstance(avro, dict) and "name" in avro and "symbols" not in avro for avro in fields.values()]
    made = [avro if given else {"type": avro} for avro, given in zip(fields.values(), whole, strict=True)]
    return {
        "type": "record",
        "name": "mine",
        "fields": [{"name": name, **field} for name, field in zip(fields, made, strict=True)],
    }


def decimal(precision: int, scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "long"},
        {"id": "double"},
        {"id": ["null", "long"]},
        {"id": ["string", "long"]},
        {"note": ["null", "string"]},
        {"note": ["string", "null"]},
        {"note": ["null", {"type": "string", "logicalType": "uuid"}]},
        {"note": ["null", {"type": "enum", "name": "e", "symbols": ["a"]}]},
        {"amount": decimal(12, 2)},
        {"amount": decimal(20, 4)},
        {"id": decimal(19, 0)},
        {"at": {"type": "long", "logicalType": "timestamp-millis"}},
        {"at": {"type": "long", "logicalType": "timestamp-micros"}},
        {"colour": {"type": "enum", "name": "e", "symbols": ["green", "blue", "red"]}},
        {"colour": "string"},
        {"tags": {"type": "array", "items": "string"}},
        {"number": {"name": "number", "type": "long", "aliases": ["id"]}},
        {"number": {"name": "number", "type": "long", "column": "id"}},
        {"extra": {"name": "extra", "type": "string", "default": "none"}},
    ],
)
def test_a_schema_that_fits_the_table_is_taken_and_can_be_encoded(fields: dict[str, Any]) -> None:
    schema = avsc(**fields)
    check_schema(schema, TABLE)
    AvroEncoder(schema, TABLE.schema)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"note": "string"}, "field note: column note may be null"),
        (
            {"nots": ["null", "string"]},
            r"field nots: there is no column for it and it has no default \(is it 'note'\?\)",
        ),
        ({"id": "string"}, "field id: column id of type int64 has no form as string"),
        ({"id": "boolean"}, "field id: .* no form as boolean"),
        ({"amount": decimal(12, 1)}, r"field amount: column amount is decimal\(12, 2\)"),
        ({"amount": decimal(11, 2)}, r"field amount: column amount is decimal\(12, 2\)"),
        ({"id": decimal(18, 0)}, r"field id: column id is decimal\(19, 0\)"),
        ({"amount": "double"}, "field amount: .* no form as double"),
        ({"at": "long"}, "field at: .* no form as long"),
        ({"at": {"type": "long", "logicalType": "local-timestamp-micros"}}, "field at: .* is an instant"),
        ({"id": {"type": "long", "logicalType": "timestamp-micros"}}, "field id: .* no form as timestamp-micros"),
        (
            {"colour": {"type": "enum", "name": "e", "symbols": ["green"]}},
            "field colour: the enum lacks the symbols red",
        ),
        ({"tags": {"type": "array", "items": "long"}}, "field tags: .* no form as array"),
        ({"id": ["string", "boolean"]}, "field id: .* no form as string"),
    ],
)
def test_a_schema_that_does_not_fit_names_the_field(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(SchemaIncompatibleError, match=problem):
        check_schema(avsc(**fields), TABLE)


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(SchemaIncompatibleError, match=r"field note: .*; field id: "):
        check_schema(avsc(note="string", id="string"), TABLE)


@pytest.mark.parametrize(
    "broken", [{"type": "nonsense"}, {"type": "record"}, "long", {"type": "record", "name": "r", "fields": 1}]
)
def test_what_is_not_an_avro_record_is_refused_in_one_line(broken: Any) -> None:
    with pytest.raises(SchemaIncompatibleError, match=r"events: the schema (is not valid Avro|must be a record)"):
        check_schema(broken, TABLE)


def test_a_derived_schema_fits_its_own_table() -> None:
    schema = derive_value_schema(TABLE)
    fastavro.parse_schema(schema)
    check_schema(schema, TABLE)
