"""Owns the claims about schema resolution; fastavro reads what it is said to read."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest

from producer.encoding.compatibility import full_name, misreadings, reading_problems


def record(*fields: Any, name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": f[0], "type": f[1], **f[2]} for f in fields]}


def field(name: str, kind: Any, **more: Any) -> tuple[str, Any, dict[str, Any]]:
    return (name, kind, more)


DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}
WIDER = {"type": "bytes", "logicalType": "decimal", "precision": 14, "scale": 3}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}

READABLE = [
    (record(field("a", "long")), record(field("a", "int")), {"a": 1}),
    (record(field("a", ["null", "long"])), record(field("a", "long")), {"a": 1}),
    (record(field("a", ["null", "double"])), record(field("a", ["null", "int"])), {"a": None}),
    (record(field("a", "long"), field("b", "string", default="")), record(field("a", "long")), {"a": 1}),
    (record(field("a", "long")), record(field("a", "long"), field("b", "string")), {"a": 1, "b": ""}),
    (record(field("b", "long", aliases=["a"])), record(field("a", "long")), {"a": 1}),
    (record(field("a", {"type": "array", "items": "long"})), record(field("a", {"type": "array", "items": "int"})),
     {"a": [1]}),
    (record(field("a", {"type": "map", "values": "long"})), record(field("a", {"type": "map", "values": "int"})),
     {"a": {"x": 1}}),
    (record(field("a", {"type": "enum", "name": "E", "symbols": ["X", "Y"]})),
     record(field("a", {"type": "enum", "name": "E", "symbols": ["X"]})), {"a": "X"}),
    (record(field("a", record(field("x", "long"), name="S")), field("b", "S")),
     record(field("a", record(field("x", "int"), name="S")), field("b", "S")), {"a": {"x": 1}, "b": {"x": 2}}),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "writer", "row"), READABLE)
def test_what_fastavro_reads_is_found_readable(reader: Any, writer: Any, row: Any) -> None:
    data = io.BytesIO()
    fastavro.schemaless_writer(data, fastavro.parse_schema(writer), row)
    data.seek(0)
    fastavro.schemaless_reader(data, fastavro.parse_schema(writer), fastavro.parse_schema(reader))

    assert reading_problems(reader, writer) == []


@pytest.mark.parametrize(
    ("reader", "writer", "problem"),
    [
        (record(field("a", "string")), record(field("a", "long")), "field 'a' was long and is now string"),
        (record(field("a", "int")), record(field("a", "long")), "field 'a' was long and is now int"),
        (record(field("a", "long"), field("b", "string")), record(field("a", "long")),
         "field 'b' has no counterpart and no default"),
        (record(field("a", "long")), record(field("a", ["null", "long"])),
         "field 'a' was null or long and is now long"),
        (record(field("a", WIDER)), record(field("a", DECIMAL)),
         "field 'a' was decimal(12, 2) and is now decimal(14, 3)"),
        (record(field("a", MICROS)), record(field("a", "long")), "field 'a' was long and is now timestamp-micros"),
        (record(field("a", {"type": "array", "items": "string"})),
         record(field("a", {"type": "array", "items": "long"})), "field 'a[]' was long and is now string"),
        (record(field("a", {"type": "enum", "name": "E", "symbols": ["X"]})),
         record(field("a", {"type": "enum", "name": "E", "symbols": ["X", "Y"]})),
         "field 'a' has lost the symbol 'Y' and has no default"),
        (record(field("a", {"type": "fixed", "name": "F", "size": 4})),
         record(field("a", {"type": "fixed", "name": "F", "size": 8})),
         "field 'a' has changed its size from 8 to 4"),
        (record(field("a", ["null", record(field("x", "string"), name="S")])),
         record(field("a", ["null", record(field("x", "long"), name="S")])),
         "field 'a.x' was long and is now string"),
        ("string", "long", "the schema itself was long and is now string"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_by_its_field(reader: Any, writer: Any, problem: str) -> None:
    assert reading_problems(reader, writer) == [problem]


def test_what_would_be_taken_for_another_value_is_told_from_what_cannot_be_read() -> None:
    old = record(field("a", ["null", DECIMAL]), field("b", MICROS), field("c", "long"), field("d", MICROS))
    new = record(field("a", ["null", WIDER]), field("b", "long"), field("c", "string"), field("d", "string"),
                 field("e", "int"))  # fmt: skip

    assert misreadings(new, old) == [
        "field 'a' was null or decimal(12, 2) and is now null or decimal(14, 3)",
        "field 'b' was timestamp-micros and is now long",
    ]
    assert misreadings(old, old) == []


def test_a_record_that_holds_itself_ends() -> None:
    tree = record(field("v", "long"), field("left", ["null", "R"]))
    assert reading_problems(tree, tree) == []


def test_a_full_name_joins_the_namespace() -> None:
    assert full_name({"type": "record", "name": "R", "namespace": "a.b"}) == "a.b.R"
    assert full_name({"type": "record", "name": "c.R", "namespace": "a.b"}) == "c.R"
    assert full_name("long") == ""
