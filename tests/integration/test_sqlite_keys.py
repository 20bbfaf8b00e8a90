"""Keys of SQLite: whatever a key column declares and holds, pages by key give each row exactly once, or the column is
refused by name before anything is read."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from producer.errors import ConfigError, ProducerError
from producer.model import Position
from producer.sources.sql import SqlSource
from tests.integration.sql_reading import open_source, stream

_INTEGERS = ("-9223372036854775808", "-1", "0", "1", "9007199254740993", "9223372036854775806", "9223372036854775807")
_REALS = ("-9e999", "-1.5", "-1e-300", "0.1", "0.1+0.2", "0.3", "1e15+0.5", "1.7976931348623157e308", "9e999")
_TEXTS = (
    *(
        "''",
        "' '",
        "'a'",
        "'A'",
        "'a '",
        "'a  b'",
        "'a'||char(0)",
        "'a'||char(0)||'b'",
        "char(0)",
        "'it''s'",
        "'\"'",
        "'\\'",
    ),
    *("'%'", "':x'", "'?1'", "'10'", "'9'", "'1.0'", "'ä'", "'Ä'", "'ß'", "'😀'", "char(65535)", "'z'", "'nan'"),
)
_BLOBS = ("x''", "x'00'", "x'0000'", "x'27'", "x'41'", "x'61'", "x'80'", "x'ff'", "x'ff00'")


@dataclass(frozen=True)
class Case:
    """A column of the `declared` type and constraint, and its values as SQL; `refused` is a part of the error."""

    declared: str
    values: tuple[str, ...]
    refused: str = ""
    after: str = ""
    before: str = ""


CASES = (
    *(Case(f"{kind} primary key", _INTEGERS) for kind in ("integer", "int", "bigint", "unsigned big int", "int desc")),
    Case("integer primary key desc", _INTEGERS),
    Case("integer primary key", _INTEGERS, after=" without rowid"),
    Case("integer primary key", _INTEGERS, after=" strict"),
    Case("int primary key", (*_INTEGERS, "1e19", "-1e19", "1.5", "9e999", "'x'", "'1x'", "x'31'")),
    Case("int not null unique", (*_INTEGERS, "9223372036854775808", "0.5", "'abc'")),
    *(Case(f"{kind} primary key", (*_REALS, *_INTEGERS)) for kind in ("real", "double", "float")),
    Case("real primary key", _REALS, after=" strict"),
    Case("numeric primary key", (*_REALS, *_INTEGERS, "'x'", "'1e5000'", "'0x10'", "x'00'")),
    Case("decimal(30,10) primary key", ("0", "1", "0.5", "1.1", "12345678901", "'12345678901234567890.5'", "'x'")),
    Case("string primary key", (*_INTEGERS, "'0123'", "'x'", "'1x'", "0.5")),
    Case("boolean primary key", ("0", "1")),
    *(Case(f"text primary key{rest}", _TEXTS) for rest in ("", " collate binary", " collate Binary", " desc")),
    *(Case(f"text primary key collate {name}", _TEXTS) for name in ("nocase", "NOCASE", "NoCase", "rtrim", "RTRIM")),
    Case("text collate nocase primary key", _TEXTS, after=" without rowid"),
    Case("text not null unique collate nocase", _TEXTS),
    Case("varchar(9) primary key", (*_TEXTS, "1", "1.5", "x'31'")),
    Case("text primary key", _TEXTS, after=" strict"),
    Case("text primary key", _TEXTS, before="pragma encoding = 'UTF-16le'"),
    Case("text primary key collate nocase", (*_TEXTS, "x'6100'"), before="pragma encoding = 'UTF-16be'"),
    *(Case(f"{kind} primary key", _BLOBS) for kind in ("blob", "varbinary(9)", "binary")),
    Case("blob primary key", (*_BLOBS, "1", "1.5", "'1'", "'a'", "'a'||char(0)")),
    Case("date primary key", ("'0001-01-01'", "'1969-12-31'", "'2024-02-29'", "'9999-12-31'", "1", "'x'")),
    Case("datetime primary key", ("'1969-12-31 23:59:59.999999'", "'2024-01-01 00:00:00'", "'2024-01-01 00:00:00.5'")),
    Case("datetime primary key", ("-1", "0", "1700000000", "1700000000.25", "1700000000000", "2460310.5")),
    Case("time primary key", ("'00:00:00'", "'12:34:56.000001'", "'23:59:59'", "'24:00:00'", "'12:00+01:00'", "1")),
    Case(
        "uuid primary key", ("'6f9619ff-8b86-d011-b42d-00c04fc964ff'", "'00000000-0000-0000-0000-000000000000'", "'no'")
    ),
    Case("uuid primary key", ("x'6F9619FF8B86D011B42D00C04FC964FF'", "x'00000000000000000000000000000000'", "x'00'")),
    Case("json primary key", ("'[1]'", "'{}'", "5", "1.5", "x'00'")),
    Case("primary key", _INTEGERS),
    Case("primary key", (*_TEXTS, *_BLOBS)),
    Case("any primary key", (*_INTEGERS, "0.5"), after=" strict"),
    Case("any primary key", _TEXTS, after=" strict"),
    *(
        Case(kind, ("1", "'1'", "2", "'x'", "1.5", "'1.5'"), "column 'k' holds numbers and texts", after=after)
        for kind, after in (("primary key", ""), ("any primary key", " strict"), ("not null unique", " "))
    ),
    Case(
        "uuid primary key",
        ("'6f9619ff-8b86-d011-b42d-00c04fc964ff'", "x'6F9619FF8B86D011B42D00C04FC964FF'"),
        "'k' holds",
    ),
    Case("datetime primary key", ("'2023-11-14 22:13:20'", "1700000000"), "column 'k' holds numbers and texts"),
    *(
        Case(f"text {rest}", ("'a'",), "column 'k' of type TEXT with a collation of the application cannot order rows")
        for rest in ("primary key collate mine", "collate mine not null unique", "collate mine unique not null")
    ),
)


def make(path: Path, case: Case) -> list[int]:
    """The table ``one`` with the key k, ``two`` with (k, i) and ``loose``, a view; the values i of ``one``."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_collation("mine", lambda a, b: (a > b) - (a < b))
        if case.before:
            connection.execute(case.before)
        connection.execute(f"create table one (k {case.declared}, i int not null){case.after}")
        for number, value in enumerate(case.values):
            connection.execute(f"insert or ignore into one values ({value}, {number})")
        kind = re.sub("primary key|not null|unique|desc", "", case.declared)
        strict = ", strict" if "strict" in case.after else ""
        connection.execute(f"create table two (i int not null, k {kind}, primary key (k, i)) without rowid{strict}")
        connection.execute("insert into two select i * 3 + value, k from one, json_each('[0, 1, 2]')")
        connection.execute("create view loose as select * from one")
        return [row[0] for row in connection.execute("select i from one order by i")]


async def read(source: SqlSource, **settings: Any) -> list[int]:
    """The values of i that arrived, those of bad records among them, in ascending order."""
    config = stream(**settings)
    dataset = await source.describe(config)
    found: list[int] = []
    for split in await source.plan(config, dataset):
        reader = await source.reader(config, dataset, split)
        position: Position | None = None
        try:
            async with asyncio.timeout(30):
                while True:
                    page = await reader.fetch(position, config.page_size)
                    found += page.batch.column("i").to_pylist()
                    found += [row.columns.column("i")[0].as_py() for row in page.rejected]
                    position = page.position
                    if page.last:
                        break
        finally:
            await reader.close()
    return sorted(found)


_WAYS: tuple[dict[str, Any], ...] = (
    {"table": "one", "page_size": 1, "max_parallel": 1},
    {"table": "one", "page_size": 2, "max_parallel": 3},
    {"table": "one", "page_size": 7, "max_parallel": 1},
    {"table": "one", "page_size": 2, "traversal": "OFFSET"},
    {"table": "two", "page_size": 7, "max_parallel": 3, "key": ["k", "i"]},
    {"table": "loose", "page_size": 2, "max_parallel": 3, "key": ["k"]},
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.declared}{case.after} {len(case.values)}")
async def test_every_row_of_every_kind_of_key_arrives_once(tmp_path: Path, case: Case) -> None:
    rows = make(tmp_path / "keys.db", case)
    assert rows
    async with open_source(f"sqlite:///{tmp_path}/keys.db") as source:
        for way in _WAYS:
            expected = rows if way["table"] != "two" else [row * 3 + part for row in rows for part in range(3)]
            if case.refused and way["table"] == "loose":
                continue  # a view's columns are compared in another way
            if case.refused:
                with pytest.raises(ProducerError, match=case.refused):
                    await read(source, on_bad_record="dead_letter", **way)
            else:
                assert await read(source, on_bad_record="dead_letter", **way) == expected, way


@pytest.mark.parametrize(
    "index",
    ["(k) where i > 0", "(k + 0)", "(i, k + 0)", "(k collate nocase)"],
    ids=["partial", "sum", "second", "nocase"],
)
async def test_an_index_that_does_not_tell_all_rows_apart_is_no_key(tmp_path: Path, index: str) -> None:
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        connection.execute("create table one (k text not null collate binary, i int not null)")
        connection.execute(f"create unique index told on one {index}")
    async with open_source(f"sqlite:///{tmp_path}/keys.db") as source:
        if index.endswith("nocase)"):  # it tells even more apart
            assert (await source.describe(stream("one"))).key == ("k",)
            return
        with pytest.raises(ConfigError, match="has no primary key"):
            await source.describe(stream("one"))


@pytest.mark.parametrize("traversal", ["ID_RANGE", "OFFSET"])
async def test_a_column_without_an_index_in_a_collation_of_the_application_is_read_but_no_key(
    tmp_path: Path, traversal: str
) -> None:
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        connection.create_collation("mine", lambda a, b: (a > b) - (a < b))
        connection.execute("create table one (i integer primary key, k text collate mine)")
        connection.execute("insert into one values (1, 'b'), (2, 'a')")
        connection.commit()
    async with open_source(f"sqlite:///{tmp_path}/keys.db") as source:
        assert await read(source, table="one", traversal=traversal) == [1, 2]
        with pytest.raises(ConfigError, match="column 'k' of type TEXT with a collation of the application"):
            await read(source, table="one", key=["k"], traversal=traversal)


async def test_a_key_whose_text_is_not_utf_8_stops_the_stream(tmp_path: Path) -> None:
    """Its place among the others cannot be kept: as bytes it would be behind all texts."""
    make(tmp_path / "keys.db", Case("text primary key", ("'a'", "cast(x'62ff' as text)", "'c'", "'d'")))
    async with open_source(f"sqlite:///{tmp_path}/keys.db") as source:
        for size in (1, 2, 7):
            with pytest.raises(ProducerError, match=r"column 'k'.* not UTF-8"):
                await read(source, table="one", page_size=size, max_parallel=1, on_bad_record="dead_letter")
