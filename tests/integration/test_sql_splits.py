"""Owns the plans of the SQL source against real databases: equal rows, whatever the keys, read from indexes."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi

from producer.errors import ConfigError, PermanentError
from producer.model import Between, Checkpoint, KeyPosition, OffsetPosition, Split, position_from_json, position_to_json
from producer.sources.sql import keyset
from producer.sources.sql.names import bind_named
from producer.sources.sql.table import MAX_RESULT_BYTES
from tests.integration.sql_reading import open_source, read, read_split, stream
from tests.sql import TABLES, Databank, databank, postgres

ROWS = 30_000


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    found = databank(request.param, request)
    yield found
    found.run("drop view if exists seen")
    for table in ("skewed", "pairs", "plain", "nulls"):
        found.run(f"drop table if exists {table}")
    found.close()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each step of a walk, as they are asked for."""
    found: list[int] = []
    step_query = keyset.step_query

    def noted(selection: Any, after: Any, step: int, **bounds: Any) -> Any:
        found.append(step)
        return step_query(selection, after, step, **bounds)

    monkeypatch.setattr(keyset, "step_query", noted)
    return found


def skewed(bank: Databank, rows: int = ROWS) -> None:
    """Nine rows of ten in one hundredth of the range of ids, negative ones among them."""
    bank.run("create table skewed (id bigint primary key, v varchar(10))")
    dense = [(n - 1000, "x") for n in range(rows * 9 // 10)]
    sparse = [(rows + n * 900, None) for n in range(1, rows // 10 + 1)]
    for start in range(0, len(dense), 10_000):
        bank.insert("skewed", dense[start : start + 10_000])
    bank.insert("skewed", sparse)


def pairs(bank: Databank) -> None:
    """A composite key whose first column has few values, one of them most of the rows."""
    bank.run("create table pairs (a int, b varchar(20), v int, primary key (a, b))")
    rows = [(1 if n % 10 else n % 7, f"k{n:06}", n) for n in range(ROWS)]
    for start in range(0, len(rows), 10_000):
        bank.insert("pairs", rows[start : start + 10_000])


@pytest.mark.parametrize("table", ["skewed", "pairs"])
async def test_splits_are_within_twice_of_equal_rows_and_disjoint_and_whole(bank: Databank, table: str) -> None:
    (skewed if table == "skewed" else pairs)(bank)
    config = stream(table, page_size=500, max_parallel=8)
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        splits = await source.plan(config, dataset)
        found: list[list[Any]] = []
        for split in splits:
            batches = await read_split(source, config, dataset, split)
            found.append(
                [row for b in batches for row in zip(*(b.column(k).to_pylist() for k in dataset.key), strict=True)]
            )
    assert len(splits) == 8
    assert max(map(len, found)) < 2 * ROWS / 8
    assert min(map(len, found)) > ROWS / 8 / 2
    assert len({key for part in found for key in part}) == sum(map(len, found)) == ROWS


@pytest.mark.parametrize("table", ["skewed", "pairs"])
async def test_what_is_left_of_a_split_is_divided_in_its_middle(bank: Databank, table: str) -> None:
    (skewed if table == "skewed" else pairs)(bank)
    config = stream(table, page_size=500, max_parallel=1)
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        reader = await source.reader(config, dataset, split)
        read = await reader.fetch(None, 2000)
        await reader.close()
        middle = await source.divide(config, dataset, Checkpoint(split, read.position))
        assert middle is not None
        before, after = Split("0", read.position, middle), Split("1", middle, split.upper)
        parts = [sum(b.num_rows for b in await read_split(source, config, dataset, part)) for part in (before, after)]
        assert await source.divide(config, dataset, Checkpoint(split, done=True)) is None
        assert await source.divide(config, dataset, Checkpoint(split, split.upper)) is None
    assert sum(parts) == ROWS - 2000
    assert min(parts) > (ROWS - 2000) / 3


@pytest.mark.parametrize("bank", [table for table in TABLES if table != "postgres"], indirect=True)  # that samples
@pytest.mark.parametrize("guess", [None, ROWS // 20, ROWS * 20])
async def test_a_wrong_guess_of_the_rows_makes_no_worse_splits_and_few_steps(
    bank: Databank, guess: int | None, steps: list[int]
) -> None:
    skewed(bank)
    config = stream("skewed", page_size=500, max_parallel=8)
    async with open_source(bank.url) as source:
        dataset = replace(await source.describe(config), rows_estimate=guess)
        sizes = [
            sum(batch.num_rows for batch in await read_split(source, config, dataset, split))
            for split in await source.plan(config, dataset)
        ]
    pieces = 2 if guess == ROWS // 20 else 8
    assert (len(sizes), sum(sizes)) == (pieces, ROWS)
    assert len(steps) < 150
    assert ROWS / pieces / 2 < min(sizes) <= max(sizes) < 2 * ROWS / pieces


@pytest.mark.parametrize("bank", [table for table in TABLES if table != "postgres"], indirect=True)  # that samples
async def test_a_view_is_walked_in_few_steps_since_each_may_sort_it(bank: Databank, steps: list[int]) -> None:
    skewed(bank)
    bank.run("create view seen as select * from skewed")
    config = stream("seen", page_size=500, max_parallel=8, key=["id"])
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        splits = await source.plan(config, dataset)
        sizes = [sum(b.num_rows for b in await read_split(source, config, dataset, split)) for split in splits]
    assert (sizes, len(steps)) == ([ROWS // 8] * 8, 9)


async def test_rows_that_come_while_it_is_planned_are_no_part_of_a_plan(
    bank: Databank, monkeypatch: pytest.MonkeyPatch
) -> None:
    skewed(bank)
    queries: dict[str, Callable[..., Any]] = {
        "quantile_query": keyset.quantile_query,
        "step_query": keyset.step_query,
    }
    late = [(10**9 + n, None) for n in range(ROWS)]

    def after_more_rows(name: str, *args: Any, **bounds: Any) -> Any:
        while late:
            bank.insert("skewed", [late.pop() for _ in range(10_000)])
        return queries[name](*args, **bounds)

    for name in queries:
        monkeypatch.setattr(keyset, name, functools.partial(after_more_rows, name))
    config = stream("skewed", page_size=500, max_parallel=8)
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        splits = await source.plan(config, dataset)
        sizes = [sum(b.num_rows for b in await read_split(source, config, dataset, split)) for split in splits]
    assert not late
    assert (len(sizes), sum(sizes)) == (8, ROWS)
    assert ROWS / 8 / 2 < min(sizes) <= max(sizes) < 2 * ROWS / 8


async def test_a_small_table_is_not_cut(bank: Databank) -> None:
    bank.run("create table plain (id int primary key)")
    bank.insert("plain", [(n,) for n in range(50)])
    if bank.mark == '"' and bank.url.startswith("postgres"):
        bank.run("analyze plain")
    config = stream("plain", page_size=5000, max_parallel=8)
    async with open_source(bank.url) as source:
        assert len(await source.plan(config, await source.describe(config))) == 1


async def test_a_snapshot_ends_at_the_greatest_key_there_was_and_a_tail_does_not_end(bank: Databank) -> None:
    bank.run("create table plain (id int primary key)")
    bank.insert("plain", [(n,) for n in range(10)])
    config, tail = stream("plain"), stream("plain", mode="tail")
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        (open_split,) = await source.plan(tail, dataset)
        bank.insert("plain", [(100,)])
        inside = await read_split(source, config, dataset, split)
        tailed = await read_split(source, tail, dataset, open_split)
    assert split.upper == KeyPosition((9,))
    assert [row for b in inside for row in b.column("id").to_pylist()] == list(range(10))
    assert open_split.upper is None
    assert tailed[-1].column("id").to_pylist()[-1] == 100


async def test_offset_counts_up_front_and_reads_no_more(bank: Databank) -> None:
    bank.run("create table plain (id int primary key, v int)")
    bank.insert("plain", [(n, n % 3) for n in range(10)])
    config = stream("plain", traversal="OFFSET", order_by=["v desc"], page_size=4, where="id > :low", params={"low": 0})
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        bank.insert("plain", [(n, -1) for n in range(100, 110)])
        batches = await read_split(source, config, dataset, split)
        left = await source.remaining(config, dataset, Checkpoint(split, OffsetPosition(4)))
    assert split.upper == OffsetPosition(9)
    assert dataset.order == ("v", "id")
    ids = [row for b in batches for row in b.column("id").to_pylist()]
    assert ids == sorted(range(1, 10), key=lambda n: (-(n % 3), n))
    assert left == 5


async def test_a_deep_offset_reads_the_same_rows_by_a_join_on_the_key(
    bank: Databank, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(bank)
    config = stream(
        "pairs", traversal="OFFSET", order_by=["v"], columns=["v"], where="v >= :low", params={"low": 5}, page_size=700
    )
    plain = await read(bank.url, config)
    monkeypatch.setattr("producer.sources.sql.DEFERRED_FROM_ROWS", 1)
    joined = await read(bank.url, config)
    assert plain.equals(joined)
    assert plain.num_rows == ROWS - 5
    assert plain.column_names == ["v", "a", "b"]


async def test_a_deep_offset_reads_rows_whose_order_by_is_null_too(
    bank: Databank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.run("create table plain (id int primary key not null, v int)")
    bank.run("create view seen as select id, v from plain")
    bank.insert("plain", [(n, n if n % 5 else None) for n in range(500)])
    monkeypatch.setattr("producer.sources.sql.DEFERRED_FROM_ROWS", 1)
    for settings in ({"table": "plain"}, {"table": "seen", "key": ["id"]}):
        config = stream(**settings, traversal="OFFSET", order_by=["v"], page_size=70)
        assert sorted((await read(bank.url, config)).column("id").to_pylist()) == list(range(500))


async def test_a_deep_offsets_page_of_wide_rows_ends_at_what_memory_has_room_for(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = databank("sqlite", request)
    bank.run("create table plain (id integer primary key, v text)")
    bank.insert("plain", [(n, "x" * 10_000) for n in range(2500)])
    monkeypatch.setattr("producer.sources.sql.DEFERRED_FROM_ROWS", 0)
    config = stream("plain", traversal="OFFSET", page_size=2500)
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        batches = await read_split(source, config, dataset, split)
    assert [row for b in batches for row in b.column("id").to_pylist()] == list(range(2500))
    assert max(b.nbytes for b in batches) < 2 * MAX_RESULT_BYTES
    bank.close()


async def test_a_key_with_nulls_is_refused_before_the_first_row(bank: Databank) -> None:
    bank.run("create table nulls (id int, v int)")
    bank.insert("nulls", [(1, 1), (None, 2)])
    config = stream("nulls", key=["id"])
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        with pytest.raises(ConfigError, match="1 row has NULL in column 'id' of the key or order"):
            await source.plan(config, dataset)


@pytest.mark.parametrize("traversal", ["ID_RANGE", "OFFSET"])
async def test_a_view_needs_a_key_and_one_that_repeats_is_found_at_a_pages_edge_too(
    bank: Databank, traversal: str
) -> None:
    bank.run("create table plain (id int not null, v int)")
    bank.run("create view seen as select id, v from plain")
    bank.insert("plain", [(1, 1), (2, 2), (3, 3), (4, 4)])
    with pytest.raises(ConfigError, match=r"view .*seen' has no primary key.*key"):
        await read(bank.url, stream("seen", traversal=traversal))
    config = stream("seen", key=["id"], traversal=traversal, page_size=2)
    assert (await read(bank.url, config)).column("id").to_pylist() == [1, 2, 3, 4]
    bank.insert("plain", [(2, 5)])
    with pytest.raises(PermanentError, match=r"several rows have the key \(id\) = \(2\)"):
        await read(bank.url, config)


#: Keys of which the database takes the second and the third for the same.
ALIKE: dict[str, dict[str, list[str]]] = {
    "postgres": {
        "numeric": ["1", "2.0", "2.00", "3"],
        "double precision": ["1", "NaN", "NaN"],
        "text collate caseless": ["a", "B", "b", "c"],
    },
    "sqlite": {"text collate nocase": ["a", "B", "b", "c"], "text collate rtrim": ["a", "b", "b ", "c"]},
    "mariadb": {
        "varchar(9) collate utf8mb4_general_ci": ["a", "B", "b", "c"],
        "varchar(10) collate utf8mb4_general_ci": ["a", "é", "e", "f"],
        "varchar(9) collate utf8mb4_bin": ["a", "b", "b ", "c"],
    },
}


@pytest.mark.parametrize("traversal", ["ID_RANGE", "OFFSET"])
@pytest.mark.parametrize(("dialect", "kind"), [(dialect, kind) for dialect in ALIKE for kind in ALIKE[dialect]])
async def test_keys_that_are_the_same_to_the_database_alone_are_found_at_a_pages_edge(
    request: pytest.FixtureRequest, dialect: str, kind: str, traversal: str
) -> None:
    bank = databank(dialect, request)
    try:
        if dialect == "postgres":
            bank.run("create collation caseless (provider=icu, locale='und-u-ks-level2', deterministic=false)")
        bank.run(f"create table plain (k {kind}, v int)")
        keys = ALIKE[dialect][kind]
        bank.insert("plain", [(key, n) for n, key in enumerate(keys)])
        whole = stream("plain", key=["k"], traversal=traversal, page_size=2, max_parallel=1)
        with pytest.raises(PermanentError, match=r"rows (2 and 3 )?have the (same )?key \(k\)"):
            await read(bank.url, whole)
        async with open_source(bank.url) as source:
            keyed = await source.keys(whole)
            with pytest.raises(PermanentError, match=r"several rows have the key \(k\)"):
                await keyed.fetch(None, None, 2)
            await keyed.aclose()
        bank.run("delete from plain where v = 2")
        assert sorted((await read(bank.url, whole)).column("v").to_pylist()) == [0, 1, 3][: len(keys) - 1]
    finally:
        bank.run("drop table if exists plain")
        if dialect == "postgres":
            bank.run("drop collation caseless")
        bank.close()


@pytest.mark.parametrize("traversal", ["ID_RANGE", "OFFSET"])
@pytest.mark.parametrize("dialect", ["postgres", "sqlite"])
async def test_an_index_of_another_collation_than_the_columns_proves_nothing(
    request: pytest.FixtureRequest, dialect: str, traversal: str
) -> None:
    bank = databank(dialect, request)
    own, other = ("caseless", '"C"') if dialect == "postgres" else ("nocase", "binary")
    try:
        if dialect == "postgres":
            bank.run("create collation caseless (provider=icu, locale='und-u-ks-level2', deterministic=false)")
        bank.run(f"create table plain (k text collate {own} not null)")
        bank.run(f"create unique index told on plain (k collate {other})")
        bank.insert("plain", [("a",), ("B",), ("b",), ("c",)])
        with pytest.raises(PermanentError, match=r"rows (2 and 3 )?have the (same )?key \(k\)"):
            await read(bank.url, stream("plain", key=["k"], traversal=traversal, page_size=2, max_parallel=1))
    finally:
        bank.run("drop table if exists plain")
        if dialect == "postgres":
            bank.run("drop collation caseless")
        bank.close()


async def test_nulls_in_sqlites_primary_key_are_refused_by_either_traversal(request: pytest.FixtureRequest) -> None:
    bank = databank("sqlite", request)
    bank.run("create table plain (k text primary key, v int)")
    bank.insert("plain", [(None, 1), (None, 2), (None, 3), ("a", 4)])
    for traversal in ("ID_RANGE", "OFFSET"):
        with pytest.raises(ConfigError, match="3 rows have NULL in column 'k' of the key or order"):
            await read(bank.url, stream("plain", traversal=traversal, page_size=2))
    bank.close()


@pytest.mark.parametrize("traversal", ["ID_RANGE", "OFFSET"])
async def test_a_primary_key_does_not_prove_that_rows_of_inheriting_tables_differ(
    postgres_dsn: str, traversal: str
) -> None:
    bank = postgres(postgres_dsn)
    try:
        bank.run("create table plain (id int primary key, v int)")
        bank.run("create table child (more int) inherits (plain)")
        bank.insert("plain", [(1, 1), (2, 2), (4, 4)])
        bank.insert("child", [(3, 3, 3)])
        config = stream("plain", traversal=traversal, page_size=2)
        assert (await read(bank.url, config)).column("id").to_pylist() == [1, 2, 3, 4]
        bank.insert("child", [(2, 5, 5)])
        with pytest.raises(PermanentError, match=r"several rows have the key \(id\) = \(2\)"):
            await read(bank.url, config)
    finally:
        bank.run("drop table plain cascade")
        bank.close()


async def test_a_key_that_is_not_unique_is_made_total_by_the_primary_key(bank: Databank) -> None:
    bank.run("create table plain (id int primary key, grp int not null)")
    bank.insert("plain", [(n, n % 3) for n in range(30)])
    config = stream("plain", key=["grp"], columns=["grp"], page_size=4)
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        assert (dataset.key, dataset.order, set(dataset.hidden)) == (("grp",), ("grp", "id"), {"id"})
    assert (await read(bank.url, config)).num_rows == 30


async def test_where_takes_bound_parameters_of_every_kind(bank: Databank) -> None:
    bank.run(
        "create table plain (id int primary key, t varchar(30), d decimal(10,2), f double precision, at timestamp null)"
    )
    bank.run("insert into plain values (1, 'it''s %s :x', 1.50, 0.5, '2024-01-01 00:00:00'), (2, 'b', 2, 1, null)")
    bank.run("insert into plain values (3, 'c', 3, 2, '2024-06-01 00:00:00')")
    where = "t <> ':none 100%%' and (t = :t or d > :d) and f < :f and (at >= :at or :nothing is null)"
    params = {"t": "it's %s :x", "d": 1, "f": 1.5, "at": "2024-01-01", "nothing": None}
    if bank.url.startswith("postgres"):
        where = where.replace(":nothing", ":nothing::int")
    table = await read(bank.url, stream("plain", where=where, params=params))
    assert table.column("id").to_pylist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": ["id", "knd"]}, "no column 'knd'.*did you mean 'kind'"),
        ({"exclude": ["id", "kind"]}, "no columns are left"),
        ({"key": ["idd"]}, "no column 'idd'.*did you mean 'id'"),
        ({"order_by": ["kind up"]}, "no column 'kind up'"),
        ({"order_by": ["kind desc"]}, "traversal OFFSET"),
        ({"where": "id > :low"}, ":low has no value"),
        ({"where": "id > 1", "params": {"low": 1}}, "no :low"),
        ({"where": "idd > 1"}, "idd"),
        ({"where": "id >"}, "plain|syntax|incomplete"),
        ({"table": "plane"}, "'plane' is not there.*did you mean"),
        ({"table": "a.b.c.d"}, "a.b.c.d"),
    ],
)
async def test_what_does_not_fit_the_table_is_one_clear_error(
    bank: Databank, settings: dict[str, Any], message: str
) -> None:
    bank.run("create table plain (id int primary key, kind varchar(10))")
    async with open_source(bank.url) as source:
        with pytest.raises(ConfigError, match=message) as caught:
            await source.describe(stream(**{"table": "plain", **settings}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", ["skewed", "pairs"])
async def test_postgres_reads_each_page_from_the_keys_index(postgres_dsn: str, table: str, request: Any) -> None:
    bank = databank("postgres", request)
    try:
        (skewed if table == "skewed" else pairs)(bank)
        bank.run(f"analyze {table}")
        config = stream(table)
        async with open_source(bank.url) as source:
            selection = (await source.describe(config), source._selections["s"])[1]
            low, high = ((5,), (20_000,)) if table == "skewed" else ((1, "k000100"), (1, "k020000"))
            query = keyset.key_query(selection, low, high, 500, mark='"', row_values=True)
        values = iter(range(len(query.params)))
        settings = {name: f"current_setting('p.p{next(values)}')::{query.types[name]}" for name in query.params}
        sql = bind_named(query.sql, settings.__getitem__, lexis="postgres")
        plainly = {"adbc.postgresql.use_copy": "false"}
        with dbapi.connect(bank.url) as connection, connection.cursor(adbc_stmt_kwargs=plainly) as cursor:
            for i, value in enumerate(query.params.values()):
                cursor.execute(f"set local p.p{i} = '{value!s}'")
            cursor.execute("explain (format json) " + sql)
            (text,) = cursor.fetchone() or ("",)
        plan = json.loads(text)[0]["Plan"]
        assert plan["Node Type"] == "Limit"
        (scan,) = plan["Plans"]
        assert scan["Node Type"] == "Index Scan"
        assert re.search(">.*<=", scan["Index Cond"])
        assert "Filter" not in scan
    finally:
        bank.run(f"drop table {table}")
        bank.close()


@pytest.mark.parametrize(("kind", "value"), [("char(12)", "k{0}"), ("bit(16)", "{0:016b}")])
async def test_a_key_of_fixed_width_is_compared_at_its_full_width(bank: Databank, kind: str, value: str) -> None:
    if kind.startswith("bit") and not bank.url.startswith("postgres"):
        kind = "varchar(16)"
    bank.run(f"create table plain (k {kind} primary key, v int)")
    bank.insert("plain", [(value.format(n), n) for n in range(300)])
    config = stream("plain", page_size=20, max_parallel=3)
    assert sorted((await read(bank.url, config)).column("v").to_pylist()) == list(range(300))
    config = stream("plain", where="k > :low", params={"low": value.format(150)})
    expected = sorted(n for n in range(300) if value.format(n) > value.format(150))
    assert sorted((await read(bank.url, config)).column("v").to_pylist()) == expected


async def test_a_time_of_day_is_a_key_that_can_be_gone_on_from(bank: Databank) -> None:
    bank.run("create table plain (at time primary key, v int)")
    bank.insert("plain", [(dt.time(n // 60, n % 60, 0, 500_000).isoformat(), n) for n in range(300)])
    config = stream("plain", page_size=20, max_parallel=3)
    if "mysql" in bank.url:  # its times are durations, of any sign
        with pytest.raises(ConfigError, match="column 'at' of type time cannot order rows"):
            await read(bank.url, config)
        return
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        (split, *_) = await source.plan(config, dataset)
        reader = await source.reader(config, dataset, split)
        page = await reader.fetch(None, 20)
        again = position_from_json(json.loads(json.dumps(position_to_json(page.position))))
        assert again == page.position
        assert (await reader.fetch(again, 20)).batch.column("v").to_pylist() == list(range(20, 40))
        await reader.close()
    assert sorted((await read(bank.url, config)).column("v").to_pylist()) == list(range(300))


#: Ten values of a type in their order.
TEN: dict[str, list[Any]] = {
    "decimal(12,3)": [f"{n - 4}.5" for n in range(10)],
    "date": [f"2024-01-{n + 10}" for n in range(10)],
    "timestamp": [f"2024-01-01 00:00:{n:02}.5" for n in range(10)],
    "uuid": [f"0000000{n}-00aa-4000-8000-000000000000" for n in range(10)],
}
#: Others of SQLite, which has several forms of some types.
STORED: list[tuple[str, list[Any]]] = [
    ("uuid", [value.upper() for value in TEN["uuid"]]),
    ("uuid", [uuid.UUID(value).bytes for value in TEN["uuid"]]),
    ("timestamp", [value.replace(" ", "T") + "+00:00" for value in TEN["timestamp"]]),
    ("timestamp", [1_704_067_200.5 + n for n in range(10)]),
    ("timestamptz", [1_704_067_200.5 + n for n in range(10)]),
    ("timestamptz", TEN["timestamp"]),
    ("time", [f"00:00:0{n}" for n in range(10)]),
]


@pytest.mark.parametrize(
    ("dialect", "kind", "stored"),
    [(dialect, kind, values) for dialect in TABLES for kind, values in TEN.items()]
    + [("sqlite", kind, values) for kind, values in STORED],
)
async def test_a_replays_range_is_compared_as_values_of_the_columns_type(
    request: pytest.FixtureRequest, dialect: str, kind: str, stored: list[Any]
) -> None:
    bank = databank(dialect, request)
    try:
        bank.run(f"create table plain (id int primary key, v {'timestamp(6)' if kind == 'timestamp' else kind})")
        bank.insert("plain", list(enumerate(stored)))
        config = stream("plain", page_size=3)
        async with open_source(bank.url) as source:
            dataset = await source.describe(config)
            if kind == "time":
                with pytest.raises(ConfigError, match="values of its type cannot be written as text"):
                    await source.replay(config, dataset, "replay-1", Between("v", "00:00:03", None))
                return
            written = TEN[kind.removesuffix("tz")]
            for first, last, ids in ((3, 6, [3, 4, 5, 6]), (None, 1, [0, 1]), (8, None, [8, 9])):
                ends = [None if end is None else written[end].replace(" ", "T") for end in (first, last)]
                split = await source.replay(config, dataset, "replay-1", Between("v", *ends))
                batches = await read_split(source, config, dataset, split)
                assert [row for b in batches for row in b.column("id").to_pylist()] == ids
    finally:
        bank.run("drop table if exists plain")
        bank.close()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("enum('z','a','m, it''s')", ["z", "a", "m, it's"]),
        ("set('z','a','m')", ["", "z", "a", "z,a", "m", "z,m", "a,m", "z,a,m"]),
        ("enum('z','','a')", ["z", "", "a"]),
        ("enum('z','a')", ["z", "a", "none"]),
        ("set('z','','a')", [0, 1, 4, 5]),
        ("bit(20)", [b"\0\0\1", b"\0\1\0", b"\x0f\xff\xff", b"\0\0\x22"]),
    ],
)
async def test_mysqls_keys_are_compared_in_the_order_in_which_it_sorts_them(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, values: list[Any]
) -> None:
    bank = databank("mariadb", request)
    monkeypatch.setattr("producer.sources.sql.DEFERRED_FROM_ROWS", 100)
    try:
        bank.run("set sql_mode = ''")  # a value that is no symbol is stored as the number 0
        bank.run(f"create table plain (k {kind}, i int, primary key (k, i))")
        bank.insert("plain", [(values[n % len(values)], n) for n in range(300)])
        for settings in ({"max_parallel": 3}, {"max_parallel": 1}, {"traversal": "OFFSET"}, {"mode": "tail"}):
            async with asyncio.timeout(30):  # the same page for ever is what a wrong order may come to
                found = (await read(bank.url, stream("plain", page_size=7, **settings))).column("i").to_pylist()
            assert sorted(found) == list(range(300))
    finally:
        bank.run("drop table if exists plain")
        bank.close()
