"""A field of a schema keeps its column, over every change of the table that there may be between two versions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.config import StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.names import KnownNames, NamedColumn, NameTakenError, field_names
from producer.encoding.schema import check_schema, derive_key_schema, derive_value_schema
from producer.errors import SchemaIncompatibleError
from producer.model import Dataset
from producer.transforms import compile_transforms

ID = pa.field("id", pa.int64(), nullable=False)


def table(*columns: str | pa.Field) -> Dataset:
    fields = [pa.field(column, pa.string()) if isinstance(column, str) else column for column in columns]
    return Dataset("t", pa.schema([ID, *fields]), ("id",), ("id",), {})


def fields_of(schema: Any) -> dict[str, str]:
    """The column of each field."""
    return {field["name"]: field.get("column", field["name"]) for field in schema["fields"] if field["name"] != "id"}


class History:
    """The versions of a table's value schema, each derived with what the ones before say."""

    def __init__(self) -> None:
        self.known = KnownNames()
        self.versions: list[Any] = []

    def derive(self, dataset: Dataset) -> dict[str, str]:
        schema = derive_value_schema(dataset, self.known)
        assert derive_value_schema(dataset, self.known.then([schema])) == schema, "a second run has another schema"
        self.known = KnownNames.from_json(json.loads(json.dumps(self.known.then([schema]).to_json())))
        self.versions.append(schema)
        assert self.known == KnownNames().then(self.versions)
        return fields_of(schema)


@pytest.mark.parametrize(
    ("tables", "last"),
    [
        ([["a-b"], ["a-b", "a_b"]], {"a_b": "a-b", "a_b_2": "a_b"}),
        ([["a-b"], ["a_b"]], {"a_b_2": "a_b"}),
        ([["a-b"], [], ["a_b"], ["a_b", "a-b"]], {"a_b": "a-b", "a_b_2": "a_b"}),
        ([["net$", "net#"], ["net#"]], {"net__2": "net#"}),
        ([["net$", "net#"], ["net#", "net$"]], {"net_": "net$", "net__2": "net#"}),
        ([["net$", "net#"], ["net#"], ["net#", "net$"]], {"net_": "net$", "net__2": "net#"}),
        ([["net$", "net#"], ["net!"]], {"net__3": "net!"}),
        ([["net$"], ["net$", "net__2", "net#"]], {"net_": "net$", "net__2": "net__2", "net__3": "net#"}),
        ([["net$", "net#"], ["net$", "net#", "net__2"]], {"net_": "net$", "net__2": "net#", "net__2_2": "net__2"}),
        ([["1a"], ["_1a"]], {"_1a_2": "_1a"}),
        ([["é"], ["ü"], ["é", "ü", "_"]], {"_": "é", "__2": "ü", "__3": "_"}),
        ([[""], ["-"]], {"__2": "-"}),
        ([["Net$"], ["net$", "NET$"]], {"net_": "net$", "NET_": "NET$"}),
        ([["a"], ["b"], ["a"]], {"a": "a"}),
    ],
    ids=str,
)
def test_a_field_keeps_its_column(tables: list[list[str]], last: dict[str, str]) -> None:
    history = History()
    found: dict[str, str] = {}
    for columns in tables:
        found = history.derive(table(*columns))
    assert found == last


def test_the_fields_of_a_struct_and_of_a_key_keep_their_columns() -> None:
    history = History()
    inside = [pa.field(name, pa.string()) for name in ("x-y", "x_y")]
    for children in (inside[:1], inside, inside[1:]):
        history.derive(table(pa.field("s", pa.list_(pa.struct(children)))))
    (_, column) = history.versions[-1]["fields"]
    record = column["type"][1]["items"][1]
    assert fields_of(record) == {"x_y_2": "x_y"}
    first, second = (
        Dataset("t", pa.schema([pa.field(name, pa.int64(), nullable=False)]), (name,), (name,), {})
        for name in ("k-1", "k_1")
    )
    known = KnownNames().then([derive_key_schema(first)])
    key = derive_key_schema(second, known)
    assert key is not None
    assert fields_of(key) == {"k_1_2": "k_1"}


def test_the_name_of_a_type_stays_with_its_column() -> None:
    enum = {"avro.enum": json.dumps(["x", "y"])}
    inner = pa.field("a", pa.struct([pa.field("b", pa.string(), metadata=enum)]))
    outer = pa.field("a_b", pa.string(), metadata=enum)
    history = History()
    history.derive(table(inner, outer))
    assert history.versions[-1]["fields"][2]["type"][1]["name"] == "t_a_b_2"
    history.derive(table(outer))
    assert history.versions[-1]["fields"][1]["type"][1]["name"] == "t_a_b_2"


def test_labels_that_are_no_symbols_stay_texts() -> None:
    """An enum has each label as its symbol, unchanged, or is no enum."""
    for labels, is_enum in ((["a", "b_1"], True), (["a-b", "a_b"], False), (["1"], False), (["a", "a"], False)):
        column = pa.field("e", pa.string(), metadata={"avro.enum": json.dumps(labels)})
        avro = derive_value_schema(table(column))["fields"][1]["type"][1]
        assert (avro["type"], avro["symbols"]) == ("enum" if is_enum else "string", labels)


# --- transforms and schema files ------------------------------------------------------------------------------------


def renamed(dataset: Dataset, **names: str) -> Dataset:
    stream = StreamConfig.model_validate({"source": "s", "table": "t", "transforms": [{"rename": names}]})
    found = compile_transforms(stream.transforms, dataset, stream="t")
    assert found is not None
    return found.dataset


@pytest.mark.parametrize(
    ("first", "then", "problem"),
    [
        (table("a", "b"), renamed(table("a", "b"), a="b", b="a"), "field 'b' has held column 'b', and would hold 'a'"),
        (renamed(table("a", "b"), a="x"), renamed(table("a", "b"), b="x"), "field 'x' has held column 'a'"),
        (renamed(table("a", "b"), a="x"), renamed(table("a", "b"), a="x"), ""),
        (table("a-b"), renamed(table("c"), c="a_b"), "field 'a_b' has held column 'a-b', and would hold 'c'"),
        (table("a-b"), renamed(table("a-b"), **{"a-b": "a_b"}), ""),
        (table("email"), renamed(table("email"), email="mail"), ""),
        (renamed(table("email"), email="mail"), table("email"), ""),
    ],
)
def test_a_renamed_column_gets_no_name_that_another_one_had(first: Dataset, then: Dataset, problem: str) -> None:
    known = KnownNames().then([derive_value_schema(first)])
    if problem:
        with pytest.raises(SchemaIncompatibleError, match=problem) as caught:
            derive_value_schema(then, known)
        assert "former_columns" in caught.value.hint
    else:
        assert list(fields_of(derive_value_schema(then, known))) == list(fields_of(derive_value_schema(then)))


def test_a_column_does_not_get_the_name_that_another_one_was_given() -> None:
    known = KnownNames().then([derive_value_schema(renamed(table("a"), a="x"))])
    assert fields_of(derive_value_schema(table("x"), known)) == {"x_2": "x"}
    with pytest.raises(NameTakenError):
        field_names([NamedColumn("x", "b")], known.fields[()])


def avsc(*fields: Mapping[str, Any]) -> dict[str, Any]:
    columns = [{"type": ["null", "string"], "default": None} | dict(field) for field in fields]
    return {"type": "record", "name": "t", "fields": [{"name": "id", "type": "long"}, *columns]}


OLD = avsc({"name": "n", "column": "net$"}, {"name": "plain"})


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (avsc({"name": "n", "column": "net#"}), "field 'n' has held column 'net\\$', and would hold 'net#'"),
        (avsc({"name": "n"}), "field 'n' has held column 'net\\$', and would hold 'n'"),
        (avsc({"name": "plain", "column": "n"}), "field 'plain' has held column 'plain', and would hold 'n'"),
        (avsc({"name": "n", "column": "net#", "former_columns": ["net$"]}), ""),
        (avsc({"name": "m", "column": "net$"}), ""),
        (OLD, ""),
    ],
)
def test_a_schema_file_gives_no_field_to_another_column(new: Any, problem: str) -> None:
    dataset, known = table("net$", "net#", "n", "plain"), KnownNames().then([OLD])
    if not problem:
        check_schema(new, dataset, known)
        return
    with pytest.raises(SchemaIncompatibleError, match=problem):
        check_schema(new, dataset, known)


def test_a_schema_files_field_that_names_a_column_takes_no_other_when_that_is_gone() -> None:
    schema = avsc({"name": "n", "column": "net$"})
    batch = pa.record_batch({"id": [1], "n": ["another"]})
    value = AvroEncoder(schema, batch.schema).encode(batch).row(0)
    assert fastavro.schemaless_reader(io.BytesIO(value), schema, None) == {"id": 1, "n": None}


def test_a_schema_file_for_columns_that_transforms_have_renamed_stays() -> None:
    dataset = renamed(table("net$"), **{"net$": "net"})
    for before in (avsc({"name": "net"}), derive_value_schema(dataset)):
        check_schema(avsc({"name": "net"}), dataset, KnownNames().then([before]))
    with pytest.raises(SchemaIncompatibleError):
        check_schema(
            avsc({"name": "net"}), renamed(table("b"), b="net"), KnownNames().then([derive_value_schema(dataset)])
        )


# --- any sequence of changes ----------------------------------------------------------------------------------------

COLUMNS = ["a-b", "a_b", "a b", "a_b_2", "A-b", "net$", "net#", "net_", "1", "_1", "é", "ü", "_", "x"]
TABLES = st.lists(st.lists(st.sampled_from(COLUMNS), unique=True, max_size=6), min_size=2, max_size=8)


def written(versions: Sequence[tuple[Any, Dataset]]) -> Iterator[tuple[Any, bytes]]:
    """A record of each version, whose values are the names of their columns."""
    for schema, dataset in versions:
        row = {field.name: 1 if field.name == "id" else field.name for field in dataset.schema}
        batch = pa.RecordBatch.from_pylist([row], dataset.schema)
        yield schema, AvroEncoder(schema, dataset.schema).encode(batch).row(0)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_no_field_ever_gives_a_value_of_another_column(tables: list[list[str]]) -> None:
    """Read with the schema that it was written with, and with the newest one."""
    history, versions = History(), []
    for columns in tables:
        history.derive(dataset := table(*columns))
        versions.append((history.versions[-1], dataset))
    newest = history.versions[-1]
    owners: dict[str, str] = {}
    for schema, value in written(versions):
        own: Any = fastavro.schemaless_reader(io.BytesIO(value), schema, None)
        for name, column in fields_of(schema).items():
            assert own[name] == column
            assert owners.setdefault(name, column) == column
        seen: Any = fastavro.schemaless_reader(io.BytesIO(value), schema, newest)
        for name, column in fields_of(newest).items():
            assert seen[name] in (None, column)
