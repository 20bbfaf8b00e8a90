"""Rows with NULL in a column of the key or order: counted, named, and never passed over in silence."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from producer import nullkeys
from producer.errors import ConfigError
from producer.model import Page, Position
from producer.sources.sql import SqlReader, nulls
from tests.integration.null_keys import Runs
from tests.integration.sql_reading import open_source, stream
from tests.sql import TABLES, Databank, databank

LONG_AGO = "2020-01-01 00:00:00"


@dataclass(frozen=True)
class Kind:
    """A kind of key: its table and stream; rows with a key, one without, and what the error says of that."""

    columns: str
    settings: dict[str, Any]
    rows: tuple[tuple[Any, ...], ...]
    lacking: tuple[Any, ...]
    column: str
    named: str
    modes: tuple[str, ...] = ("snapshot", "tail", "snapshot_then_tail")
    view: bool = False


CODES = ((1, "a"), (2, "b"), (3, "c"))
TIMED = ("snapshot", "tail", "snapshot_then_tail", "timestamp")
EVERYWHERE = {
    "uniquely": Kind("id int, code varchar(9) unique", {"key": ["code"]}, CODES, (4, None), "code", "code=NULL, id=4"),
    "no_index": Kind("id int, code varchar(9)", {"key": ["code"]}, CODES, (4, None), "code", "code=NULL, id=4"),
    "first_part": Kind("a int, b int", {"key": ["a", "b"]}, ((1, 1), (2, 2)), (None, 3), "a", "a=NULL, b=3"),
    "second_part": Kind("a int, b int", {"key": ["a", "b"]}, ((1, 1), (2, 2)), (3, None), "b", "a=3, b=NULL"),
    "whole_number": Kind("id int, v int", {"key": ["id"]}, ((1, 1), (2, 2)), (None, 3), "id", "id=NULL, v=3"),
    "selected": Kind(
        "id int, code varchar(9)",
        {"key": ["code"], "where": "id > :least", "params": {"least": 0}},
        (*CODES, (-1, None)),
        (4, None),
        "code",
        "code=NULL, id=4",
    ),
    "counted": Kind(
        "id int, code varchar(9)",
        {"key": ["code"], "traversal": "OFFSET"},
        CODES,
        (4, None),
        "code",
        "code=NULL, id=4",
        modes=("snapshot",),
    ),
    "view": Kind("id int, code varchar(9)", {"key": ["code"]}, CODES, (4, None), "code", "code=NULL, id=4", view=True),
    "time": Kind(
        "id int not null primary key, changed MOMENT",
        {"order_by": ["changed"]},
        ((1, LONG_AGO), (2, LONG_AGO)),
        (3, None),
        "changed",
        "changed=NULL, id=3",
        modes=TIMED,
    ),
    "time_of_a_view": Kind(
        "id int not null primary key, changed MOMENT",
        {"key": ["id"], "order_by": ["changed"]},
        ((1, LONG_AGO), (2, LONG_AGO)),
        (3, None),
        "changed",
        "changed=NULL, id=3",
        modes=TIMED,
        view=True,
    ),
}
IN_SQLITE = {
    "text_primary": Kind("k text primary key, v int", {}, (("a", 1), ("b", 2)), (None, 3), "k", "k=NULL, v=3"),
    "int_primary": Kind("k int primary key, v int", {}, ((1, 1), (2, 2)), (None, 3), "k", "k=NULL, v=3"),
    "descending": Kind("k integer primary key desc, v int", {}, ((1, 1), (2, 2)), (None, 3), "k", "k=NULL, v=3"),
    "composite_primary": Kind(
        "a int, b text, v int, primary key (a, b)", {}, ((1, "a", 1), (2, "b", 2)), (3, None, 3), "b", "a=3, b=NULL"
    ),
}
MOMENTS = {"postgres": "timestamptz", "sqlite": "timestamp", "mariadb": "datetime(6)"}
EXPECTED = [(mode, bad) for mode in TIMED for bad in ("fail", "dead_letter")]


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    made = databank(request.param, request)
    yield made
    made.close()


@pytest.fixture
def kinds(bank: Databank, request: pytest.FixtureRequest) -> Iterator[dict[str, Kind]]:
    """The kinds of keys of the database; their tables, with the rows that have a key, are there."""
    dialect = request.node.callspec.params["bank"]
    found = EVERYWHERE | (IN_SQLITE if dialect == "sqlite" else {})
    for name, kind in found.items():
        base = f"{name}_base" if kind.view else name
        bank.run(f"create table {base} ({kind.columns.replace('MOMENT', MOMENTS[dialect])})")
        bank.insert(base, kind.rows)
        if kind.view:
            bank.run(f"create view {name} as select * from {base}")
    yield found
    for name, kind in found.items():
        if kind.view:
            bank.run(f"drop view {name}")
        bank.run(f"drop table {name}_base" if kind.view else f"drop table {name}")


def insert(bank: Databank, name: str, kind: Kind, *rows: tuple[Any, ...]) -> None:
    bank.insert(f"{name}_base" if kind.view else name, rows)


def insert_apart(bank: Databank, kinds: Mapping[str, Kind]) -> None:
    """Inserts the rows without a key while others read. Into SQLite's file by another process: of two copies of SQLite
    in one process each takes the other's locks away."""
    if not bank.url.startswith("sqlite"):
        for name, kind in kinds.items():
            insert(bank, name, kind, kind.lacking)
        return
    rows = [(f"{name}_base" if kind.view else name, kind.lacking) for name, kind in kinds.items()]
    script = """
import json, sqlite3, sys
with sqlite3.connect(sys.argv[1]) as connection:
    for table, row in json.loads(sys.argv[2]):
        connection.execute(f"insert into {table} values ({','.join('?' * len(row))})", row)
"""
    subprocess.run([sys.executable, "-c", script, bank.url.removeprefix("sqlite:///"), json.dumps(rows)], check=True)


def streams(kinds: dict[str, Kind], mode: str, bad: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"table": name, "mode": mode, "on_bad_record": bad, "page_size": 1, "max_parallel": 2, **kind.settings, **more}
        for name, kind in kinds.items()
        if mode in kind.modes
    ]


def fits(kind: Kind, name: str, error: str | None) -> bool:
    what = f"stream {name!r}: 1 row has NULL in column {kind.column!r} of the key or order"
    return error is not None and what in error and kind.named in error


@pytest.mark.parametrize(("mode", "bad"), EXPECTED)
async def test_every_run_finds_a_row_that_came_after_planning(
    bank: Databank, kinds: dict[str, Kind], mode: str, bad: str
) -> None:
    runs = Runs(bank.url, streams(kinds, mode, bad))
    names = [str(one["table"]) for one in runs.streams]
    first = await runs.once()
    assert {name: first[name].error for name in names} == dict.fromkeys(names)
    assert {name: len(runs.rows(name)) for name in names} == {
        name: sum(None not in row for row in kinds[name].rows) for name in names
    }
    for name in names:
        insert(bank, name, kinds[name], kinds[name].lacking)
    letters: dict[str, int] = dict.fromkeys(names, 0)
    for _ in range(2):  # the second run goes on from the checkpoint of the first
        again = await runs.once()
        for name in names:
            if bad == "fail":
                assert fits(kinds[name], name, again[name].error), (name, again[name].error)
            else:
                assert (again[name].error, again[name].state) == (None, "complete")
            letters[name] += len(runs.letters(name))
            assert runs.rows(name) == []
    assert letters == dict.fromkeys(names, 0 if bad == "fail" else 1)


@pytest.mark.parametrize("mode", ["snapshot", "snapshot_then_tail"])
async def test_a_run_finds_a_row_that_comes_while_it_reads(
    bank: Databank, kinds: dict[str, Kind], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [*streams(kinds, mode, "fail"), *streams(kinds, mode, "dead_letter")]
    runs = Runs(bank.url, [{**one, "name": f"{one['table']}_{one['on_bad_record']}"} for one in both])
    waiting = {str(one["table"]) for one in both}

    fetch = SqlReader.fetch

    async def insert_first(reader: SqlReader, position: Position | None, limit: int) -> Page:
        if waiting:  # all streams have been planned, and none is at its end
            insert_apart(bank, {name: kinds[name] for name in waiting})
            waiting.clear()
        return await fetch(reader, position, limit)

    monkeypatch.setattr(SqlReader, "fetch", insert_first)
    found = await runs.once()
    for name, kind in kinds.items():
        if mode in kind.modes:
            assert fits(kind, f"{name}_fail", found[f"{name}_fail"].error)
            assert found[f"{name}_dead_letter"].error is None
            assert len(runs.letters(f"{name}_dead_letter")) == 1
            assert len(runs.rows(f"{name}_fail")) == sum(None not in row for row in kind.rows)


@pytest.mark.parametrize("bad", ["fail", "dead_letter"])
async def test_a_followed_stream_finds_a_row_that_comes_between_two_polls(
    bank: Databank, kinds: dict[str, Kind], bad: str
) -> None:
    followed = [(n, kinds[n], mode) for n in ("uniquely", "second_part", "time") for mode in kinds[n].modes[1:]]
    settings = {"on_bad_record": bad, "page_size": 1}
    tables = [{"name": f"{n}_{mode}", "table": n, "mode": mode, **settings, **k.settings} for n, k, mode in followed]
    runs = Runs(bank.url, tables)
    stop, service = asyncio.Event(), runs.service()
    running = asyncio.create_task(service.run(once=False, stop=stop))

    async def wait_until(done: Callable[[str, Kind], bool]) -> None:
        async with asyncio.timeout(60):
            while not all(done(f"{n}_{mode}", kind) for n, kind, mode in followed):
                assert bad == "fail" or not running.done()
                await asyncio.sleep(0.01)

    await wait_until(lambda name, kind: len(runs.rows(name)) == len(kind.rows))
    insert_apart(bank, {name: kind for name, kind, _ in followed})
    if bad == "fail":
        await wait_until(lambda name, kind: service.streams[name].state == "failed")
        stop.set()
        await running
        assert all(fits(kind, f"{n}_{mode}", service.streams[f"{n}_{mode}"].error) for n, kind, mode in followed)
        return
    await wait_until(lambda name, kind: len(runs.letters(name)) == 1)
    more = {"uniquely": ((9, "z"), (9, None)), "second_part": ((9, 9), (9, None)), "time": ((9, LONG_AGO), (8, None))}
    for n in range(2):
        insert_apart(bank, {name: replace(kinds[name], lacking=rows[n]) for name, rows in more.items()})
    await wait_until(lambda name, kind: len(runs.letters(name)) == 2 and len(runs.rows(name)) == len(kind.rows) + 1)
    counted = [line for line in runs.metrics.text().decode().splitlines() if "producer_dead_letters_total{" in line]
    assert [line.rpartition(" ")[2] for line in counted if "NullKeyError" in line] == ["2.0"] * len(followed)
    stop.set()
    await running
    await runs.once()  # what has been sent is known from the checkpoint
    assert {name: runs.letters(name) for name in runs.received} == {f"{n}_{mode}": [] for n, _, mode in followed}


async def test_a_row_that_got_a_value_is_sent_and_a_letter_again_when_it_lost_it(bank: Databank) -> None:
    bank.run("create table mended (id int, code varchar(9) unique)")
    bank.insert("mended", [(1, "a"), (2, None), (3, None)])
    failing = Runs(bank.url, [{"table": "mended", "key": ["code"], "mode": "tail"}])
    lettered = Runs(bank.url, [{**failing.streams[0], "on_bad_record": "dead_letter"}])
    try:
        with pytest.raises(ConfigError, match="2 rows have NULL in column 'code'"):  # before the first record
            await failing.once()
        assert (await lettered.once())["mended"].error is None
        assert sorted(row["id"] for row in lettered.letters("mended")) == [2, 3]
        bank.run("update mended set code = 'b' where id = 2")
        bank.run("delete from mended where id = 3")
        for runs, rows in ((failing, [1, 2]), (lettered, [2])):
            assert (await runs.once())["mended"].error is None
            assert [row["id"] for row in runs.rows("mended")] == rows
        bank.run("update mended set code = null where id = 2")
        await lettered.once()
        assert [row["id"] for row in lettered.letters("mended")] == [2]
    finally:
        bank.run("drop table mended")


async def test_equal_rows_are_letters_of_their_own(bank: Databank) -> None:
    bank.run("create table equals_ (id int, code varchar(9))")
    runs = Runs(bank.url, [{"table": "equals_", "key": ["code"], "mode": "tail", "on_bad_record": "dead_letter"}])
    try:
        bank.insert("equals_", [(1, None), (1, None)])
        for expected in (2, 0, 1, 0):
            await runs.once()
            assert len(runs.letters("equals_")) == expected
            if expected == 0:
                bank.insert("equals_", [(1, None)])
    finally:
        bank.run("drop table equals_")


@pytest.mark.parametrize("identified", [True, False])
async def test_many_rows_are_letters_once_and_too_many_are_refused(
    bank: Databank, identified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nullkeys, "MOST_ROWS", 30)
    monkeypatch.setattr(nullkeys, "LETTERS_A_PAGE", 7)
    bank.run(f"create table many_nulls (id int {'primary key' if identified else 'not null'}, code varchar(9))")
    settings = {"table": "many_nulls", "key": ["code"], "mode": "tail", "on_bad_record": "dead_letter"}
    runs = Runs(bank.url, [settings])
    try:
        bank.insert("many_nulls", [(n, None if n % 3 else f"c{n}") for n in range(40)])
        assert (await runs.once())["many_nulls"].error is None
        assert sorted(row["id"] for row in runs.letters("many_nulls")) == [n for n in range(40) if n % 3]
        bank.insert("many_nulls", [(n, None) for n in range(40, 44)])
        await runs.once()
        assert sorted(row["id"] for row in runs.letters("many_nulls")) == [40, 41, 42, 43]
        bank.insert("many_nulls", [(44, None)])
        error = (await runs.once())["many_nulls"].error
        assert error is not None
        assert "more than 30 rows have NULL in column 'code'" in error
    finally:
        bank.run("drop table many_nulls")


POSSIBLE: dict[str, list[tuple[str, list[str]]]] = {
    "postgres": [
        ("create table t (k int primary key, v int)", []),
        ("create table t (k int not null, v int)", []),
        ("create table t (k int unique, v int)", ["k"]),
        ("create table t (k solid, v int)", ["k"]),
        ("create table t (k solid not null, v int)", []),
        ("create table t (k int check (k is not null), v int)", ["k"]),
        ("create table t (k int primary key, v int) partition by range (k)", []),
        ("create view t as select 1 as k, 2 as v", ["k"]),
        ("create materialized view t as select 1 as k, 2 as v", ["k"]),
    ],
    "sqlite": [
        ("create table t (k integer primary key, v int)", []),
        ("create table t (k INTEGER PRIMARY KEY AUTOINCREMENT, v int)", []),
        ("create table t (k integer, v int, primary key (k desc))", []),
        ("create table t (k integer primary key desc, v int)", ["k"]),
        ("create table t (k int primary key, v int)", ["k"]),
        ("create table t (k text primary key, v int)", ["k"]),
        ("create table t (k text primary key not null, v int)", []),
        ("create table t (k text primary key, v int) without rowid", []),
        ("create table t (k text primary key, v int) strict", []),
        ("create table t (k integer primary key desc, v int) strict", []),
        ("create table t (k int, v int, primary key (k, v))", ["k", "v"]),
        ("create table t (k int not null, v int, primary key (k, v))", ["v"]),
        ("create table t (k int, v int, primary key (k, v)) without rowid", []),
        ("create table t (k int unique, v int)", ["k"]),
        ("create view t as select 1 as k, 2 as v", ["k"]),
        ("create virtual table t using fts5(k, v)", ["k"]),
    ],
    "mariadb": [
        ("create table t (k int primary key, v int)", []),
        ("create table t (k int not null, v int)", []),
        ("create table t (k int unique, v int)", ["k"]),
        ("create table t (k timestamp, v int)", ["k"]),
        ("create table t (k timestamp null, v int)", ["k"]),
        ("create view t as select 1 as k, 2 as v", ["k"]),
    ],
}


async def test_the_catalogue_says_where_a_null_is_possible(bank: Databank, request: pytest.FixtureRequest) -> None:
    dialect = request.node.callspec.params["bank"]
    if dialect == "postgres":
        bank.run("create domain solid as int not null")
    found: dict[str, list[str]] = {}
    for statement, _ in POSSIBLE[dialect]:
        bank.run(statement)
        async with open_source(bank.url) as source:
            config = stream("t") if "primary key" in statement.lower() else stream("t", key=["k"])
            await source.describe(config)
            found[statement] = list(await source.null_columns(config))
            assert (await source.null_keys(config)).rows == 0
        kind = "materialized view" if "materialized" in statement else "view" if "view" in statement else "table"
        bank.run(f"drop {kind} t")
    if dialect == "postgres":
        bank.run("drop domain solid")
    assert found == dict(POSSIBLE[dialect])


@pytest.mark.parametrize("mode", ["snapshot", "snapshot_then_tail"])
async def test_where_no_null_is_possible_none_is_looked_for(
    bank: Databank, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.run("create table solid (id integer primary key, v int)")
    bank.insert("solid", [(1, 1), (2, None)])

    searched: list[object] = []

    monkeypatch.setattr(nulls, "count", lambda *arguments: searched.append(arguments))
    monkeypatch.setattr(nulls, "find_new", lambda *arguments, **named: searched.append(arguments))
    try:
        for bad in ("fail", "dead_letter"):
            runs = Runs(bank.url, [{"table": "solid", "mode": mode, "on_bad_record": bad}])
            assert (await runs.once())["solid"].error is None
            assert len(runs.rows("solid")) == 2
        assert searched == []
    finally:
        bank.run("drop table solid")


COUNTED: dict[str, tuple[dict[str, Any], list[tuple[Any, ...]], dict[str, int], list[str]]] = {
    "none": ({"key": ["code"]}, [(1, "a", 1)], {}, []),
    "one column": (
        {"key": ["code"]},
        [(1, "a", 1), (2, None, 2), (3, None, 3)],
        {"code": 2},
        ["code=NULL, id=2, v=2", "code=NULL, id=3, v=3"],
    ),
    "parts of a key": (
        {"key": ["id", "code"]},
        [(1, "a", 1), (2, None, 2), (None, "b", 3), (None, None, 4)],
        {"id": 2, "code": 1},
        ["id=2, code=NULL", "id=NULL, code=NULL, v=4", "id=NULL, code=b"],
    ),
    "a condition": (
        {"key": ["code"], "where": "v > 2"},
        [(2, None, 2), (3, None, 3)],
        {"code": 1},
        ["code=NULL, id=3, v=3"],
    ),
    "the order": ({"key": ["id"], "order_by": ["v"]}, [(1, "a", None), (2, "b", 1)], {"v": 1}, ["v=NULL, id=1"]),
    "the order of OFFSET": ({"key": ["id"], "order_by": ["v"], "traversal": "OFFSET"}, [(1, "a", None)], {}, []),
    "masked": ({"key": ["code"], "transforms": [{"drop": ["v"]}]}, [(1, None, 1)], {"code": 1}, []),
}


async def test_rows_are_counted_and_named(bank: Databank) -> None:
    bank.run("create table counted_rows (id int, code varchar(20) unique, v int)")
    try:
        for kind, (settings, rows, columns, named) in COUNTED.items():
            bank.run("delete from counted_rows")
            bank.insert("counted_rows", rows)
            config = stream("counted_rows", **settings)
            async with open_source(bank.url) as source:
                await source.describe(config)
                found = await source.null_keys(config)
            assert (kind, found.columns, sorted(found.named)) == (kind, columns, sorted(named))
    finally:
        bank.run("drop table counted_rows")


async def test_a_zero_date_is_not_null(request: pytest.FixtureRequest) -> None:
    bank = databank("mariadb", request)
    bank.run("set session sql_mode = ''")
    bank.run("create table dated (id int not null, day date not null)")
    bank.insert("dated", [(1, "0000-00-00"), (2, "2020-01-01")])
    bank.run(
        "create view days as select t.*, o.day as other from dated t left join dated o on o.id = t.id and o.id = 2"
    )
    try:
        async with open_source(bank.url) as source:
            for column, nulls_in in (("day", {}), ("other", {"other": 1})):
                config = stream("days", key=[column])
                await source.describe(config)
                assert (await source.null_keys(config)).columns == nulls_in
    finally:
        bank.run("drop view days")
        bank.run("drop table dated")
        bank.close()


IDENTITIES = {
    "uuid": "'00000000-0000-0000-0000-00000000000{}'",
    "numeric": "{}.50",
    "float8": "{}.25",
    "timestamptz": "'2020-01-0{} 00:00:00+00'",
    "date": "'2020-01-0{}'",
    "bytea": r"'\x0{}'",
    "text": "'it''s {}'",
    "inet": "'10.0.0.{}'",
    "letters": "'{}'",
}


async def test_rows_are_told_apart_by_a_key_of_any_type(request: pytest.FixtureRequest) -> None:
    bank = databank("postgres", request)
    bank.run("create type letters as enum ('3', '1', '2')")
    found: dict[str, list[int]] = {}
    for kind, value in IDENTITIES.items():
        bank.run(f"create table identified (k {kind} primary key, changed timestamptz)")
        for n in (1, 2, 3):
            bank.run(f"insert into identified values ({value.format(n)}, null)")
        config = stream("identified", order_by=["changed"])
        async with open_source(bank.url) as source:
            await source.describe(config)
            known: frozenset[bytes] = frozenset()
            counts: list[int] = []
            for _ in range(3):
                rows = await source.null_rows(config, known, limit=2, most=10)
                known |= {digest for digest, _ in rows.new}
                counts += [len(rows.new), len(rows.digests)]
            found[kind] = counts
        bank.run("drop table identified")
    bank.run("drop type letters")
    bank.close()
    assert found == {kind: [2, 3, 1, 3, 0, 3] for kind in IDENTITIES}
