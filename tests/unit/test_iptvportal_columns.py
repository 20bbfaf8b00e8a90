"""Columns of IPTVPortal tables: configured and inferred types, rows into Arrow, and what is refused by name."""

from __future__ import annotations

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from producer.errors import ConfigError, EncodeError, SchemaIncompatibleError
from producer.sources.iptvportal.columns import (
    column,
    inferred,
    read_schema_file,
    to_arrow,
    to_arrow_without_bad,
    transposed,
)


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("integer", [1, None, 2**62], [1, None, 2**62]),
        ("float", [1, 2.5, None], [1.0, 2.5, None]),
        ("boolean", [True, False, None], [True, False, None]),
        ("text", ["a", "", None], ["a", "", None]),
        ("json", [{"a": [1]}, "x", None], ['{"a":[1]}', '"x"', None]),
        ("numeric(12,2)", [1.1, "2.25", 3], [decimal.Decimal(n) for n in ("1.10", "2.25", "3.00")]),
        ("date", ["2025-12-15", None], [dt.date(2025, 12, 15), None]),
        ("time", ["20:30:00.5"], [dt.time(20, 30, 0, 500000)]),
        (
            "timestamp",
            ["2025-12-15 20:30:00", "1969-12-31T23:59:59.999999"],
            [dt.datetime(2025, 12, 15, 20, 30), dt.datetime(1969, 12, 31, 23, 59, 59, 999999)],
        ),
        ("timestamptz", ["2025-12-15T20:30:00+03:00"], [dt.datetime(2025, 12, 15, 17, 30, tzinfo=dt.UTC)]),
        ("timestamptz", ["2025-12-15 20:30:00"], [dt.datetime(2025, 12, 15, 20, 30, tzinfo=dt.UTC)]),
    ],
)
def test_values_of_each_type_arrive_as_they_are(kind: str, values: list[Any], found: list[Any]) -> None:
    batch = to_arrow("t", [column("c", kind)], [values])
    assert batch.column(0).to_pylist() == found


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("integer", "1"),
        ("integer", 1.5),
        ("integer", True),
        ("integer", 2**63),
        ("boolean", 1),
        ("text", 1),
        ("timestamp", "yesterday"),
        ("numeric(4,2)", "123.45"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_column_and_row(kind: str, value: Any) -> None:
    with pytest.raises(EncodeError, match=r"terminal\.c: row 1 of the page has a .* not of type"):
        to_arrow("terminal", [column("c", kind)], [[None, value]])


def test_a_null_id_is_refused() -> None:
    with pytest.raises(EncodeError, match=r"terminal\.id has a null"):
        to_arrow("terminal", [column("id", "integer")], [[1, None]])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], "integer"),
        ([1, 2.5], "float"),
        ([True], "boolean"),
        (["a"], "text"),
        ([None], "text"),
        ([[1], {}], "json"),
        ([1, "a"], "json"),
        ([True, 1], "json"),
    ],
)
def test_types_are_inferred_from_what_all_values_are(values: list[Any], kind: str) -> None:
    assert inferred("c", values).type == kind


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([[1, 2], [1]], "row 1 of the page has 1 values where 2"),
        ([[1, 2], "ab"], "row 1 of the page is a str"),
        ([{"a": 1, "b": 2}], "row 0 of the page is a dict"),
        ([[1, 2], None], "row 1 of the page is a NoneType"),
    ],
)
def test_a_malformed_row_is_named(rows: list[Any], text: str) -> None:
    with pytest.raises(SchemaIncompatibleError, match=text):
        transposed("t", rows, 2)


def test_an_unknown_type_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'integer'"):
        column("a", "integr")


def test_json_and_uuid_keep_their_meaning_in_the_field() -> None:
    assert column("a", "jsonb").field == pa.field("a", pa.string())
    assert column("a", "jsonb").field.metadata == {b"avro.logical": b"json"}
    assert column("a", "uuid").field.metadata == {b"avro.logical": b"uuid"}


def test_a_schema_file_gives_the_columns_by_their_positions(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("tables: {t: {columns: [{position: 1, name: b, type: text}, {position: 0, name: a, type: int}]}}")
    assert [(c.name, c.type) for c in read_schema_file(str(path))["t"]] == [("a", "integer"), ("b", "text")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "schema_file"),
        ("x: 1", "no 'tables'"),
        ("tables: {t: {columns: []}}", "table t has no list of columns"),
        ("tables: {t: {columns: [{type: int}]}}", "column 0 has no name"),
        ("tables: {t: {columns: [{name: a}, {name: a}]}}", "named twice"),
        ("tables: {t: {columns: [{name: a, position: 0}, {name: b, position: 0}]}}", "position 0 is taken"),
    ],
)
def test_a_wrong_schema_file_is_refused_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_schema_file(str(path))


def test_a_schema_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_schema_file(str(tmp_path / "none.yaml"))


def test_rows_with_a_value_of_another_type_are_put_aside_one_by_one() -> None:
    ids = list(range(100))
    numbers = ["x" if i in (0, 50, 51, 99) else i for i in ids]
    columns = [column("id", "integer"), column("n", "integer")]
    batch, rejected = to_arrow_without_bad("t", columns, [ids, numbers])
    assert batch.column("n").to_pylist() == [i for i in ids if i not in (0, 50, 51, 99)]
    assert [row.columns.column("id").to_pylist() for row in rejected] == [[0], [50], [51], [99]]
    assert {str(row.others) for row in rejected} == {"{'n': '\"x\"'}"}
    assert {row.error.field for row in rejected} == {"n"}


def test_a_page_of_nothing_but_bad_rows_is_empty() -> None:
    batch, rejected = to_arrow_without_bad("t", [column("n", "integer")], [["x", "y"]])
    assert (batch.num_rows, len(rejected)) == (0, 2)
