"""Values of SQLite: times in every form, alone in a page and among others, and texts of files in UTF-16."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from producer.errors import EncodeError
from tests.integration.sql_reading import open_source, read, stream

_NOON = dt.datetime(2024, 1, 1, 12)


def make(path: Path, *statements: str) -> str:
    """A file after `statements`; its URL."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return f"sqlite:///{path}"


@pytest.mark.parametrize("beside", ["", "'2024-01-01T12:00:00+00:00'"], ids=["alone", "beside"])
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("datetime", "'2024-01-01 12:00:00'", _NOON),
        ("datetime", "'2024-01-01T12:00:00.000000000'", _NOON),
        ("datetime", "'2024-01-01 14:00:00+02:00'", _NOON),
        ("datetime", "'2024-01-01 12:00:00.1234567'", None),
        ("datetime", "'2024-01-01 14:00:00.1234567+02:00'", None),
        ("datetime", "'2024-01-01 12:00:00,0000001'", None),
        ("timestamp", "1704110400", _NOON),
        ("timestamp", "1704110400.5", _NOON.replace(microsecond=500_000)),
        ("timestamp", "julianday('2024-01-01 12:00')", None),
        ("timestamp", "2460311", None),
        ("timestamp", "1721425.5", None),
        ("timestamp", "5373484", None),
        ("timestamp", "1721425", dt.datetime(1970, 1, 20, 22, 10, 25)),
        ("timestamp", "5373485", dt.datetime(1970, 3, 4, 4, 38, 5)),
        ("timestamptz", "julianday('0001-01-01')", None),
        ("timestamptz", "julianday('9999-12-31 23:59')", None),
        ("timestamptz", "'2024-01-01 12:00:00.0000001Z'", None),
    ],
)
async def test_a_time_is_exact_or_refused(tmp_path: Path, beside: str, kind: str, value: str, expected: Any) -> None:
    """Beside a value of another form the page is read value by value."""
    rows = f"insert into t values (1, {value})" + (f", (2, {beside})" if beside else "")
    url = make(tmp_path / "t.db", f"create table t (id integer primary key, v {kind})", rows)
    if expected is None:
        with pytest.raises(EncodeError, match="column 'v', row with key 1: holds"):
            await read(url, stream("t"))
        return
    table = await read(url, stream("t"))
    assert table.column("v")[0].as_py().replace(tzinfo=None) == expected


@pytest.mark.parametrize("beside", ["", "'T12:00'"], ids=["alone", "beside"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12:00:00.000001", dt.time(12, 0, 0, 1)),
        ("12:00", dt.time(12)),
        ("12:00:00.1234560", dt.time(12, 0, 0, 123456)),
        ("12:00:00.1234567", None),
        ("12:00:00+02:00", None),
        ("12:00:00Z", None),
        ("24:00:00", None),
        ("-01:00:00", None),
    ],
)
async def test_a_time_of_the_day_has_no_offset_and_no_digits_beyond_microseconds(
    tmp_path: Path, beside: str, value: str, expected: dt.time | None
) -> None:
    rows = f"insert into t values (1, '{value}')" + (f", (2, {beside})" if beside else "")
    url = make(tmp_path / "t.db", "create table t (id integer primary key, v time)", rows)
    if expected is None:
        with pytest.raises(EncodeError, match="column 'v', row with key 1: holds a text"):
            await read(url, stream("t"))
        return
    assert (await read(url, stream("t"))).column("v")[0].as_py() == expected


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
async def test_texts_are_the_same_in_a_file_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    """Also in a page that is read value by value, as one with a number in a column without a type is."""
    texts = ["a", "ä", "😀", "it's", "a\0b", ""]
    url = make(
        tmp_path / "t.db",
        f"pragma encoding = '{encoding}'",
        "create table t (id integer primary key, v text, w)",
        "insert into t values (0, 'x', 1.5)",
        *(f"insert into t values ({n}, cast(x'{text.encode(encoding.lower()).hex()}' as text), '{n}x')"
          for n, text in enumerate(texts, start=1)),
    )  # fmt: skip
    table = await read(url, stream("t"))
    assert table.column("v").to_pylist() == ["x", *texts]
    assert table.column("w").to_pylist() == ["1.5", *(f"{n}x" for n in range(1, 7))]


@pytest.mark.parametrize(
    ("declared", "nullable"),
    [
        ("k integer primary key", False),
        ("k integer primary key desc", True),
        ("k int primary key", True),
        ("k text primary key", True),
        ("k int primary key not null", False),
    ],
)
async def test_only_an_alias_of_the_rowid_is_never_null(tmp_path: Path, declared: str, nullable: bool) -> None:
    url = make(tmp_path / "t.db", f"create table t ({declared})")
    async with open_source(url) as source:
        assert (await source.describe(stream("t"))).schema.field("k").nullable is nullable
