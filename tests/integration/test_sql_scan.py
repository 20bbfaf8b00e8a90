"""A scan gives what the page readers give, and finds the positions of a checkpoint without comparing keys."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest

from producer.config import StreamConfig
from producer.model import (
    Between,
    KeyPosition,
    Mark,
    Position,
    ScannedPage,
    Split,
    position_from_json,
    position_to_json,
)
from producer.sources.sql import SqlSource, postgres_scan, sqlite_scan
from tests.contract.cases import SourceCase
from tests.contract.cases.sql import CASES
from tests.integration.sql_reading import open_source, read, stream
from tests.sql import TABLES, Databank, databank

STATED = tomllib.loads((Path(__file__).resolve().parents[2] / "docs" / "types.toml").read_text("utf-8"))


@pytest.fixture(params=sorted(name for name in CASES if name.endswith("ID_RANGE")))
def case(request: pytest.FixtureRequest) -> Any:
    with CASES[request.param](request) as case:
        yield case


@pytest.fixture
async def source(case: SourceCase) -> AsyncIterator[SqlSource]:
    source = case.open_source()
    assert isinstance(source, SqlSource)
    await source.start()
    yield source
    await source.close()


@pytest.fixture
def bank(request: pytest.FixtureRequest) -> Any:
    found = databank(request.param, request)
    yield found
    found.close()


async def scanned(
    source: SqlSource, stream: StreamConfig, positions: Sequence[KeyPosition] = (), replays: Sequence[Split] = ()
) -> list[ScannedPage]:
    pages = source.scan(stream, await source.describe(stream), positions, replays)
    assert pages is not None
    return [page async for page in pages]


def rows_of(pages: Sequence[ScannedPage]) -> list[dict[str, Any]]:
    return [row for page in pages for row in page.batch.to_pylist()]


async def positions_of(source: SqlSource, stream: StreamConfig) -> list[KeyPosition]:
    """The position after each row, as a checkpoint keeps it."""
    dataset = await source.describe(stream)
    reader = await source.reader(stream, dataset, Split("0"))
    found: list[KeyPosition] = []
    position: Position | None = None
    while not (page := await reader.fetch(position, 1)).last or page.rows:
        position = position_from_json(position_to_json(page.position))
        assert isinstance(position, KeyPosition)
        found.append(position)
    await reader.close()
    return found


async def test_a_scan_gives_every_row_once_in_order_and_finds_each_position(
    case: SourceCase, source: SqlSource
) -> None:
    positions = await positions_of(source, case.stream)
    (page,) = await scanned(source, case.stream, positions)
    names = (await source.describe(case.stream)).key
    assert [tuple(row[name] for name in names) for row in page.batch.to_pylist()] == list(case.keys)
    assert [mark for mark in page.marks if mark.exact] == [Mark(i, i, True) for i in range(len(positions))]


async def test_an_empty_table_has_no_pages(case: SourceCase, source: SqlSource) -> None:
    assert rows_of(await scanned(source, case.empty)) == []


@pytest.mark.parametrize("bank", TABLES, indirect=True)
async def test_the_position_of_a_row_that_is_gone_is_at_the_row_before_it(bank: Databank) -> None:
    bank.run("create table gone (a varchar(20), b int, v int, primary key (a, b))")
    try:
        bank.insert("gone", [(a, b, 1) for a in ("a", "b", "c") for b in range(10, 40, 10)])
        async with open_source(bank.url) as source:
            config = stream("gone")
            wanted = [("a", 5), ("a", 25), ("b", 10), ("b", 99), ("c", 30), ("d", 1)]
            (page,) = await scanned(source, config, [KeyPosition(key) for key in wanted])
    finally:
        bank.run("drop table gone")
    exact = {mark.position: mark.row for mark in page.marks if mark.exact}
    nearest = {mark.position: mark.row for mark in page.marks if not mark.exact}
    assert nearest == {0: -1, 1: 1, 2: 3, 3: 5, 4: 8, 5: 8}
    assert exact == {2: 3, 4: 8}


@pytest.mark.parametrize("bank", TABLES, indirect=True)
async def test_a_condition_with_parameters_of_every_kind_selects_the_same_rows(bank: Databank) -> None:
    bank.run("create table chosen (id int primary key, t varchar(40), d date, at timestamp, n numeric(9, 2))")
    try:
        bank.run("insert into chosen values (1, 'it''s \\%s :x 50%', '2024-02-29', '2024-02-29 12:00:00', 1.50)")
        bank.run("insert into chosen values (2, 'other', '2024-03-01', '2024-03-01 12:00:00', 2.50)")
        params: dict[str, Any] = {"t": "it's \\%s :x 50%", "n": 2.5, "many": [1, 2], "d": "2024-02-29", "none": None}
        listed = "id = any(:many)" if bank.mark == '"' and "postgres" in bank.url else "id in (:many)"
        conditions = ["t = :t", "n = :n", "d = :d", "id = :none", "t like '%it%' and t = :t"]
        if "sqlite" not in bank.url:
            conditions.append(listed)
        async with open_source(bank.url) as source:
            for where in conditions:
                used = {name: value for name, value in params.items() if name in re.findall(r":(\w+)", where)}
                config = stream("chosen", where=where, params=used)
                expected = (await read(bank.url, config)).to_pylist()
                assert rows_of(await scanned(source, config)) == expected, where
                source._selections.clear()
    finally:
        bank.run("drop table chosen")


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_a_parameter_of_postgresql_has_no_collation_of_its_own(bank: Databank) -> None:
    """A comparison with it is by the column's, which may be the database's own."""
    bank.run('create table sorted (id int primary key, t text, u text collate "en-x-icu")')
    try:
        bank.run("insert into sorted values (1, 'a', 'a'), (2, 'B', 'B')")
        async with open_source(bank.url) as source:
            for where in ("u < :p", "pg_collation_for(coalesce(t, :p)) = '\"default\"' and t <> :p"):
                config = stream("sorted", where=where, params={"p": "b"})
                expected = (await read(bank.url, config)).to_pylist()
                assert rows_of(await scanned(source, config)) == expected
                assert expected
    finally:
        bank.run("drop table sorted")


@pytest.mark.parametrize("bank", TABLES, indirect=True)
async def test_rows_of_replays_are_told_apart(bank: Databank) -> None:
    bank.run("create table again (id int primary key, day date)")
    try:
        bank.insert("again", [(i, f"2024-01-{i:02}") for i in range(1, 21)])
        async with open_source(bank.url) as source:
            replays = [
                Split("replay-1", None, KeyPosition((6,)), Between("id", 3, 8)),
                Split("replay-2", None, None, Between("day", "2024-01-12", None)),
            ]
            (page,) = await scanned(source, stream("again"), [], replays)
    finally:
        bank.run("drop table again")
    assert page.replayed is not None
    assert [i + 1 for i, flag in enumerate(page.replayed.to_pylist()) if flag] == [3, 4, 5, 6, *range(12, 21)]
    assert page.batch.schema.names == ["id", "day"]


@pytest.mark.parametrize("bank", TABLES, indirect=True)
async def test_a_value_of_every_type_is_scanned_as_it_is_read(bank: Databank, request: pytest.FixtureRequest) -> None:
    """With one row beside it that has none; each example of the documentation is a column."""
    dialect = request.node.callspec.params["bank"]
    examples = [e for row in STATED[dialect]["types"] for e in row.get("examples", ()) if "literal" in e]
    for statement in STATED[dialect].get("setup", ()):
        bank.run(statement)
    columns = ", ".join(f"c{number} {example['sql']}" for number, example in enumerate(examples))
    bank.run(f"create table every_type (id int primary key, {columns})")
    filled = {f"c{number}": str(e["literal"]) for number, e in enumerate(examples)}
    bank.run(f"insert into every_type (id, {', '.join(filled)}) values (1, {', '.join(filled.values())})")
    bank.run("insert into every_type (id) values (2)")
    config = stream("every_type")
    expected = await read(bank.url, config)
    async with open_source(bank.url) as source:
        pages = await scanned(source, config)
    assert pages[0].batch.schema == expected.schema
    assert repr(rows_of(pages)) == repr(expected.to_pylist())  # NaN is not equal to itself
    bank.run("drop table every_type")


#: Settings that change what PostgreSQL writes, as those of a role or a database.
HOSTILE = {
    "extra_float_digits": "-15",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "timezone": "Asia/Tokyo",
    "xmlbinary": "hex",
    "xmloption": "document",
    "transform_null_equals": "on",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "enable_indexscan": "off",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "2000",
    "search_path": "nowhere",
    "row_security": "off",
}
ODD_TYPES = {
    "point": "(0.12345678901234568, 1e-7)",
    "circle": "<(1, 2), 0.30000000000000004>",
    "float8[]": "{0.30000000000000004}",
    "float8[][]": "{{0.30000000000000004,1},{2,3}}",
    "interval": "1 year 2 mons -3 days 04:05:06.789",
    "tstzrange": "[2024-02-01 00:00:00+09, 2024-03-02)",
    "daterange": "[2024-02-01, 2024-03-02)",
    "bytea[]": '{"\\\\x00ff5c27"}',
    "odd_row": '(0.30000000000000004,"\\\\x5c","1 day")',
    "odd_row[]": '{"(0.1,\\\\\\\\x5c,1 day)"}',
    "money": "1.25",
    "regclass": "pg_class",
}


@pytest.mark.parametrize("bank", ["postgres"], indirect=True)
async def test_settings_of_a_database_do_not_change_what_a_scan_reads(bank: Databank) -> None:
    database = bank.quote(bank.url.rpartition("/")[2])
    bank.run("create type odd_row as (f float8, b bytea, i interval)")
    columns = ", ".join(f"c{number} {sql}" for number, sql in enumerate(ODD_TYPES))
    bank.run(f"create table odd (id int primary key, n int, {columns})")
    bank.run("insert into odd values (1, null, " + ", ".join(f"'{text}'" for text in ODD_TYPES.values()) + ")")
    config = stream("odd", where="n = :n or c1 is not null", params={"n": None})
    try:
        async with open_source(bank.url) as source:
            expected = rows_of(await scanned(source, config))
            dataset = await source.describe(config)
            for name, value in HOSTILE.items():
                bank.run(f"alter database {database} set {name} = '{value}'")
            pages = source.scan(config, dataset, [KeyPosition((1,)), KeyPosition((2,))], [])
            assert pages is not None
            found = [page async for page in pages]
    finally:
        for name in HOSTILE:
            bank.run(f"alter database {database} reset {name}")
        bank.run("drop table odd")
        bank.run("drop type odd_row")
    assert len(expected) == 1
    assert rows_of(found) == expected
    assert found[0].marks == (Mark(0, 0, True), Mark(0, 0, False), Mark(0, 1, False))


#: The same for MariaDB.
HOSTILE_GLOBALS = {
    "sql_mode": "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,EMPTY_STRING_IS_NULL,"
    "REAL_AS_FLOAT,HIGH_NOT_PRECEDENCE",
    "time_zone": "-05:00",
    "sql_select_limit": 1,
    "max_sort_length": 8,
    "sql_auto_is_null": 1,
    "max_statement_time": 2,
    "character_set_results": "latin1",
}


def global_value(url: str, name: str) -> Any:
    parts = urlsplit(url)
    with (
        contextlib.closing(
            pymysql.connect(
                host=parts.hostname, port=parts.port or 3306, user=parts.username, password=parts.password or ""
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"select @@global.{name}")
        return cursor.fetchall()[0][0]


@pytest.mark.parametrize("bank", ["mariadb"], indirect=True)
async def test_global_settings_do_not_change_what_a_scan_reads(bank: Databank) -> None:
    bank.run("create table odd (k varbinary(30) primary key, c char(10), at timestamp, t varchar(40), u varchar(9))")
    keys = [bytes.fromhex(key) for key in ("00", "10", "20", "27", "41", "5c", "5c27", "5c41", "61")]
    bank.insert(
        "odd", [(key, "c", "2024-01-01 12:00:00", "long " * 7 + str(9 - i), "ü€") for i, key in enumerate(keys)]
    )
    config = stream("odd", where="t <> :t", params={"t": "\\'"}, key=["t"])
    old: dict[str, Any] = {}
    try:
        async with open_source(bank.url) as source:
            expected = rows_of(await scanned(source, config))
            dataset = await source.describe(config)
            for name, value in HOSTILE_GLOBALS.items():
                old[name] = global_value(bank.url, name)
                bank.run(f"set global {name} = {value!r}")
            positions = [KeyPosition((row["t"], row["k"])) for row in expected]
            pages = source.scan(config, dataset, positions, [])
            assert pages is not None
            found = [page async for page in pages]
    finally:
        for name, before in old.items():
            bank.run(f"set global {name} = {before!r}")
        bank.run("drop table odd")
    assert [row["k"] for row in expected] == keys[::-1]
    assert rows_of(found) == expected
    assert [mark for mark in found[0].marks if mark.exact] == [Mark(i, i, True) for i in range(len(keys))]


def test_a_sqlite_column_whose_kind_shows_late_is_read_to_the_end(tmp_path: Path) -> None:
    """Beyond the first batch, by which the driver chooses a column's type."""
    import asyncio

    bank = databank("sqlite", None, tmp_path)  # type: ignore[arg-type]  # it has no server
    bank.run("create table mixed (id integer primary key, t text, b blob, n numeric(9, 2), at timestamp, x)")
    late = 1500
    plain = [(i, None, None, None, None, None) for i in range(late)]
    kinds = [(late, "t", b"b", 1.5, "2024-01-01", "x"), (late + 1, "", b"", 2, 1700000000, 7), (late + 2, *[None] * 5)]
    bank.insert("mixed", [*plain, *kinds])
    bank.close()
    config = stream("mixed", page_size=100)

    async def both() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        async with open_source(bank.url) as source:
            return rows_of(await scanned(source, config)), (await read(bank.url, config)).to_pylist()

    found, expected = asyncio.run(both())
    assert found == expected
    assert len(found) == late + len(kinds)


@pytest.mark.parametrize(
    ("value", "sql_type", "sql"),
    [
        (None, "int", "CAST(NULL AS int)"),
        ("it's", "text", "CAST(convert_from(decode('69742773', 'hex'), 'UTF8'::text::name) AS text)"),
        (b"\\'", "bytea", "decode('5c27', 'hex')"),
        (
            ["a,b", None],
            "text[]",
            "CAST(convert_from(decode('7b22612c62222c4e554c4c7d', 'hex'), 'UTF8'::text::name) AS text[])",
        ),
    ],
)
def test_a_literal_of_postgresql_needs_no_escaping(value: Any, sql_type: str, sql: str) -> None:
    assert postgres_scan.literal(value, sql_type) == sql


@pytest.mark.parametrize(("value", "sql"), [("a'b", "(+CAST(x'612762' AS TEXT))"), (b"'", "x'27'"), (True, "1")])
def test_a_literal_of_sqlite_needs_no_escaping(value: Any, sql: str) -> None:
    assert sqlite_scan.literal(value) == sql
