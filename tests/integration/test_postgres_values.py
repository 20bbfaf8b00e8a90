"""PostgreSQL's types in all the ways they can be made of one another, and values that cannot be read: each arrives, or
is named with its row and column, and holds up nobody where bad records go to the dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from producer.concealment import tellable
from producer.config import StreamConfig
from producer.errors import ConfigError, EncodeError, PermanentError, SchemaChangedError, TransientError
from producer.model import Page, Position
from producer.sources.sql import SqlSource, postgres_values
from tests.integration.sql_reading import open_source, read, stream
from tests.sql import Databank, postgres

SETUP = """
create extension citext; create extension hstore; create extension ltree; create schema other;
create type mood as enum ('sad', 'glad'); create type "odd Mood" as enum ('so so');
create type other.color as enum ('red'); create type other."Odd,[]" as enum ('q');
create type my_vector as enum ('v'); create type "text" as enum ('tt'); create type "int4" as enum ('ii');
create type "uuid" as enum ('uu'); create type "json" as enum ('jj'); create type "point" as enum ('pp');
create type "name" as enum ('x', 'y');
create type pair as (a pg_catalog.int4, b pg_catalog.text); create type span as range (subtype = float8);
create domain feeling as mood; create domain feeling2 as feeling; create domain couple as pair;
create type holder as (a pg_catalog.int4, b pg_catalog.int4[]);
create type outer_holder as (many holder[], one holder);
create domain codes as pg_catalog.int4[]; create domain codes2 as codes; create domain moods as mood[];
create domain grid as pg_catalog.int4[][]; create domain spand as int4range; create domain mspand as int4multirange;
create domain price as numeric(8,3); create domain named as public."name";
create domain strict as pg_catalog.int4 not null;
"""

#: A type, a value as SQL, and what is read.
MADE: list[tuple[str, str, Any]] = [
    ("feeling", "'sad'", "sad"),
    ("feeling2", "'glad'", "glad"),
    ("couple", "'(1,b)'", '{"a":1,"b":"b"}'),
    ("codes", "'{1,2}'", [1, 2]),
    ("holder", """'(1,"{7,8}")'""", '{"a":1,"b":[7,8]}'),
    ("outer_holder", """row('{"(1,{})"}', NULL)""", '{"many":[{"a":1,"b":[]}],"one":null}'),
    ("holder[]", """'{"(1,[3:3]={7})"}'""", ["(1,[3:3]={7})"]),
    ("codes2", "'{1,NULL}'", [1, None]),
    ("moods", "'{sad,glad}'", ["sad", "glad"]),
    ("grid", "'{{1,2},{3,4}}'", "[[1,2],[3,4]]"),
    ("spand", "'[1,2)'", "[1,2)"),
    ("mspand", "'{[1,2)}'", "{[1,2)}"),
    ("price", "'1.5'", Decimal("1.500")),
    ("strict", "7", 7),
    ("named", "'x'", "x"),
    ("feeling[]", "'{sad,NULL}'", ["sad", None]),
    ("feeling2[]", "'{sad}'", ["sad"]),
    ("couple[]", "array[row(1,'b')]::couple[]", ["(1,b)"]),
    ("codes[]", "array['{1,2}']::codes[]", ["{1,2}"]),
    ("spand[]", """'{"[1,2)"}'""", ["[1,2)"]),
    ("price[]", "'{1.5}'", [Decimal("1.500")]),
    ("named[]", "'{y}'", ["y"]),
    ('public."name"', "'x'", "x"),
    ('public."name"[]', "'{x}'", ["x"]),
    ('"odd Mood"[]', "'{so so}'", ["so so"]),
    ("other.color", "'red'", "red"),
    ("other.color[]", "'{red}'", ["red"]),
    ('other."Odd,[]"[]', "'{q}'", ["q"]),
    ("my_vector[]", "'{v}'", ["v"]),
    ('public."text"', "'tt'", "tt"),
    ('public."text"[]', "'{tt}'", ["tt"]),
    ('public."int4"[]', "'{ii}'", ["ii"]),
    ('public."uuid"', "'uu'", "uu"),
    ('public."json"[]', "'{jj}'", ["jj"]),
    ('public."point"[]', "'{pp}'", ["pp"]),
    ("citext[]", "'{Ab}'", ["Ab"]),
    ("hstore[]", "array['a=>1'::hstore]", ['"a"=>"1"']),
    ("ltree[]", "'{a.b}'", ["a.b"]),
    ("pair[]", "array[row(1,'b')::pair]", ["(1,b)"]),
    ("span[]", """'{"[1,2)"}'""", ["[1,2)"]),
    ("int4multirange[]", """'{"{[1,2)}"}'""", ["{[1,2)}"]),
    ("tsvector[]", "'{a}'", ["'a'"]),
    ("int2vector", "'1 2'", "1 2"),
    ("oidvector", "'1 2'", "1 2"),
    ("bit(3)[]", "'{101}'", ["101"]),
    ("char(3)[]", "'{abc}'", ["abc"]),
    ('"char"[]', "'{a}'", ["a"]),
    ("box[]", "'{(1,1),(0,0)}'", ["(1,1),(0,0)"]),
    ("money[]", "'{1.5}'", [Decimal("1.50")]),
    ("oid[]", "'{1}'", [1]),
    ("jsonb[]", """array['{"a": 1}'::jsonb]""", ['{"a": 1}']),
    ("bytea[]", "array['a'::bytea]", [b"a"]),
    ("numeric[]", "'{1.5,NaN}'", ["1.5", "NaN"]),
    ("pg_catalog.int4[]", "'{}'", []),
    ("pg_catalog.int4[]", "'{NULL}'", [None]),
    ("pg_catalog.int4[3]", "'{1}'", [1]),
    ("pg_catalog.int4[][]", "'{{1},{2}}'", "[[1],[2]]"),
]

#: A type, a value of it that has no form, and the words that say why.
REFUSED = [
    ("pg_catalog.int4[]", "'[3:3]={7}'", "bounds [3:3]"),
    ("pg_catalog.int4[]", "'[0:1]={7,8}'", "bounds [0:1]"),
    ("pg_catalog.int4[]", "'[-2:-2]={7}'", "bounds [-2:-2]"),
    ("pg_catalog.text[]", "'[3:3]={a}'", "bounds [3:3]"),
    ("moods", "'[3:3]={sad}'", "bounds [3:3]"),
    ("pair[]", """'[3:3]={"(1,b)"}'""", "bounds [3:3]"),
    ("pg_catalog.int4[][]", "'[0:0][1:2]={{1,2}}'", "bounds [0:0][1:2]"),
    ("holder", """'(1,"[3:4]={7,8}")'""", "bounds [3:4]"),
    ("holder", "row(1, '[0:0]={7}')", "bounds [0:0]"),
    ("outer_holder", """row('{"(1,[3:3]={7})"}', row(1, '[5:5]={7}'))""", "bounds [3:3]"),
    ("holder[][]", "array[[row(1, '[3:3]={7}')::holder]]", "bounds [3:3]"),
    ("pg_catalog.int4[]", "'{{1},{2}}'", "several dimensions"),
    ("date[]", "'{2020-01-01,infinity}'", "an infinite date"),
    ("numeric(5,2)[]", "'{1.5,NaN}'", "the numeric nan"),
    ("time[]", "'{24:00}'", "the time 24:00:00"),
]


@pytest.fixture(scope="module")
def bank(postgres_dsn: str) -> Iterator[Databank]:
    made = postgres(postgres_dsn)
    for statement in filter(str.strip, SETUP.split(";")):
        made.run(statement)
    yield made
    made.close()


def make(bank: Databank, kind: str, *values: str) -> None:
    bank.run("drop table if exists x cascade")
    bank.run(f"create table x (id pg_catalog.int4 primary key, c {kind})")
    for number, value in enumerate(values, 1):
        bank.run(f"insert into x values ({number}, {value})")


async def pages(url: str, config: StreamConfig) -> list[Page]:
    async with open_source(url) as source:
        return await read_pages(source, config)


async def read_pages(source: SqlSource, config: StreamConfig) -> list[Page]:
    """All pages of the stream, split after split."""
    found: list[Page] = []
    dataset = await source.describe(config)
    for split in await source.plan(config, dataset):
        reader = await source.reader(config, dataset, split)
        position: Position | None = None
        last = False
        while not last:
            page = await reader.fetch(position, config.page_size)
            found.append(page)
            position, last = page.position, page.last
        await reader.close()
    return found


def ids(found: list[Page]) -> tuple[list[Any], list[Any]]:
    """The keys of the rows that were read, and those of the rows that were rejected."""
    good = [value for page in found for value in page.batch.column("id").to_pylist()]
    return good, [row.columns.column("id")[0].as_py() for page in found for row in page.rejected]


async def test_a_type_made_of_others_is_read_as_what_it_is_made_of(bank: Databank) -> None:
    """Each alone in a table: of another one's enum the table's shape would be known."""
    found = {}
    async with open_source(bank.url) as source:
        for kind, value, _ in MADE:
            make(bank, kind, value)
            batches = [page.batch for page in await read_pages(source, stream("x"))]
            found[kind, value] = [item for batch in batches for item in batch.column("c").to_pylist()]
    assert found == {(kind, value): [expected] for kind, value, expected in MADE}


async def test_a_value_without_a_form_is_named_with_its_row_and_column(bank: Databank) -> None:
    async with open_source(bank.url) as source:
        for kind, value, reason in REFUSED:
            make(bank, kind, "NULL", value, "NULL")
            with pytest.raises(EncodeError) as caught:
                await read_pages(source, stream("x"))
            assert reason in caught.value.message
            assert (caught.value.field, caught.value.key) == ("c", "2")
            found = await read_pages(source, stream("x", on_bad_record="dead_letter"))
            assert ids(found) == ([1, 3], [2])
            if "bounds" in reason:  # as PostgreSQL shows it
                assert reason.removeprefix("bounds ") in found[0].rejected[0].others["c"]


async def test_a_label_added_to_an_enum_beneath_a_domain_is_a_change_of_the_table(bank: Databank) -> None:
    bank.run("create type grade as enum ('a')")
    bank.run("create domain marks as grade[]")
    make(bank, "marks", "'{a}'")
    config = stream("x")
    async with open_source(bank.url) as source:
        dataset = await source.describe(config)
        reader = await source.reader(config, dataset, (await source.plan(config, dataset))[0])
        assert (await reader.fetch(None, 10)).rows == 1
        bank.run("alter type grade add value 'b'")
        with pytest.raises(SchemaChangedError):
            await reader.fetch(None, 10)
        again = (await source.describe(config)).schema.field("c").type.value_field.metadata[b"avro.enum"]
        await reader.close()
    assert json.loads(again) == ["a", "b"]


# --- NOT NULL where it is not enforced --------------------------------------------------------------------------------

LOOSE = {
    "a view over an outer join with a domain that forbids nulls": (
        "create table l (id int4 primary key); insert into l values (1);"
        "create table r (id int4 primary key, c strict);"
        "create view x as select l.id, r.c from l left join r on l.id = r.id",
        [None],
    ),
    "a domain that forbids nulls, after an empty subquery": (
        "create table x (id int4 primary key, c strict); insert into x values (1, (select c from x where false))",
        [None],
    ),
    "a foreign table": (
        "create extension if not exists file_fdw; create server files foreign data wrapper file_fdw;"
        "create foreign table x (id int4, c text not null) server files"
        " options (program 'printf ''1,\\n2,b\\n''', format 'csv')",
        [None, "b"],
    ),
    "a partition that is a foreign table": (
        "create table x (id int4 not null, c text not null) partition by range (id);"
        "create table x1 partition of x for values from (0) to (10); insert into x values (0, 'a');"
        "create extension if not exists file_fdw; create server files foreign data wrapper file_fdw;"
        "create foreign table x2 partition of x for values from (10) to (20) server files"
        " options (program 'printf ''11,\\n''', format 'csv')",
        ["a", None],
    ),
    "a child of INHERITS without the constraint": (
        "create table x (id int4 primary key, c text not null); insert into x values (1, 'a');"
        "create table child () inherits (x); alter table child alter c drop not null;"
        "insert into child values (2, NULL)",
        ["a", None],
    ),
    "a check that is not valid": (
        "create table x (id int4 primary key, c text); insert into x values (1, NULL);"
        "alter table x add check (c is not null) not valid",
        [None],
    ),
    "a materialized view": (
        "create table l (id int4 primary key, c text not null); insert into l values (1, 'a');"
        "create materialized view x as select l.id, n.c from l left join l n on n.id = l.id + 1",
        [None],
    ),
}


@pytest.mark.parametrize("case", LOOSE)
async def test_not_null_that_is_not_enforced_is_no_promise(bank: Databank, case: str) -> None:
    statements, expected = LOOSE[case]
    bank.run("create schema loose")
    try:
        for statement in statements.split(";"):
            bank.run("set search_path = loose, public")
            bank.run(statement)
        found = await read(bank.url, stream("loose.x", key=["id"]))
        assert found.schema.field("c").nullable
        assert found.sort_by("id").column("c").to_pylist() == expected
    finally:
        bank.run("reset search_path")
        bank.run("drop schema loose cascade")
        bank.run("drop server if exists files cascade")


async def test_not_null_that_is_enforced_everywhere_is_kept(bank: Databank) -> None:
    bank.run("drop table if exists x cascade")
    bank.run("create table x (id pg_catalog.int4 not null, c pg_catalog.text not null) partition by range (id)")
    bank.run("create table x1 partition of x for values from (0) to (10)")
    found = await read(bank.url, stream("x", key=["id"]))
    assert [field.nullable for field in found.schema] == [False, False]


# --- values that end the whole query ----------------------------------------------------------------------------------

#: An encoding, and bytes of it that UTF-8 has no character for.
ENCODED = [("SQL_ASCII", "e9"), ("EUC_JP", "f5a1"), ("WIN1252", "81")]


@pytest.fixture(scope="module", params=ENCODED, ids=lambda case: case[0])
def foreign(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[tuple[Databank, str, str]]:
    """A database of another encoding, an expression for a text that cannot be read, and how such a text is shown."""
    encoding, code = request.param
    admin = postgres(postgres_dsn)
    name = f"foreign_{encoding.lower()}"
    admin.run(f"create database {name} encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'")
    made = postgres(f"{postgres_dsn.rpartition('/')[0]}/{name}")
    shown = "".join(f"\\{byte:o}" for byte in bytes.fromhex(code))
    yield made, f"convert_from('\\x{code}', '{encoding}')", shown
    made.close()
    admin.run(f"drop database {name} with (force)")
    admin.close()


TEXT_LIKE = [
    ("text", "{}", "{}"),
    ("varchar(10)", "'x' || {}", "x{}"),
    ("char(4)", "{}", "{}"),
    ("text[]", "array['x', {}]", "{{x,{}}}"),
    ("text[][]", "array[[{}]]", '[["{}"]]'),
    ("json", "to_json({}::text)", '"{}"'),
    ("pair", "row(1, {})::pair", '{{"a":1,"b":"{}"}}'),
]


async def test_text_that_is_not_utf8_is_named_and_goes_to_the_dead_letters(foreign: tuple[Databank, str, str]) -> None:
    bank, bad, escaped = foreign
    bank.run("create type pair as (a int, b text)")
    async with open_source(bank.url) as source:
        for number, (kind, value, shown) in enumerate(TEXT_LIKE):
            table, page_size = f"x{number}", (3, 100)[number % 2]
            bank.run(f"create table {table} (id int primary key, c {kind}, d text)")
            bank.run(f"insert into {table} (id) select generate_series(1, 20)")
            bank.run(f"update {table} set c = {value.format(bad)} where id in (4, 5, 11, 20)")
            with pytest.raises(EncodeError) as caught:
                await read_pages(source, stream(table, page_size=page_size))
            assert (caught.value.field, caught.value.key) == ("c", "4")
            assert "row with key 4: " in caught.value.message
            config = stream(table, page_size=page_size, on_bad_record="dead_letter", max_parallel=2)
            found = await read_pages(source, config)
            assert ids(found) == ([n for n in range(1, 21) if n not in (4, 5, 11, 20)], [4, 5, 11, 20])
            assert all("table" in (page.detail or {}) for page in found), "pages do not tell which table they are of"
            first = next(row for page in found for row in page.rejected)
            assert first.others["c"].rstrip() == shown.format(escaped)


async def test_a_key_that_is_not_utf8_is_named(foreign: tuple[Databank, str, str]) -> None:
    bank, bad, escaped = foreign
    bank.run("drop table if exists x")
    bank.run("create table x (id text primary key)")
    bank.run(f"insert into x values ('a'), ('b' || {bad}), ('c')")
    with pytest.raises(EncodeError) as caught:
        await pages(bank.url, stream("x", on_bad_record="dead_letter"))
    assert (caught.value.field, caught.value.key) == ("id", f"b{escaped}")
    assert "where" in caught.value.hint


async def test_a_label_that_is_not_utf8_is_refused_with_the_tables_name(foreign: tuple[Databank, str, str]) -> None:
    bank, bad, _ = foreign
    bank.run("drop table if exists x")
    bank.run("create table x (id int primary key)")
    bank.run(f"do $$ begin execute 'comment on column x.id is ' || quote_literal({bad}); end $$")
    with pytest.raises(ConfigError, match="table 'x': a name, a comment or a label"):
        await read(bank.url, stream("x"))


async def test_a_database_whose_encoding_cannot_be_read_is_refused(bank: Databank) -> None:
    bank.run("create database mule encoding 'MULE_INTERNAL' template template0 lc_collate 'C' lc_ctype 'C'")
    with pytest.raises(ConfigError, match="encoding cannot be read"):
        await read(f"{bank.url.rpartition('/')[0]}/mule", stream("x"))
    bank.run("drop database mule")


#: A view's column that fails for one row, and what is said of it.
FAILING = [
    ("1 / (b.id - 3)", "division by zero"),
    ("sqrt((b.id - 3) * (b.id - 3) - 0.5)", "cannot take square root of a negative number"),
    ("case when b.id = 3 then 'x'::pg_catalog.text else '1' end::pg_catalog.int4", "invalid input syntax"),
    ("fail(b.id)", "three is not allowed"),
    ("(select n from generate_series(1, case when b.id = 3 then 2 else 1 end) n)", "more than one row returned"),
    ("b.id::smallint * case when b.id = 3 then 30000 else 1 end::smallint", "smallint out of range"),
    ("('2020-01-01'::date + case when b.id = 3 then 2147483647 else 1 end)", "date out of range"),
]


@pytest.fixture(scope="module")
def ten(bank: Databank) -> Databank:
    """With a table of the numbers 1 to 10."""
    bank.run("create table b (id pg_catalog.int4 primary key)")
    bank.run("insert into b select generate_series(1, 10)")
    bank.run(
        "create function fail(n pg_catalog.int4) returns pg_catalog.int4 stable language plpgsql as"
        " 'begin if n = 3 then raise exception ''three is not allowed''; end if; return n; end'"
    )
    return bank


@pytest.mark.parametrize(("expression", "reason"), FAILING)
async def test_a_computed_value_that_fails_is_named_and_goes_to_the_dead_letters(
    ten: Databank, expression: str, reason: str
) -> None:
    ten.run("drop table if exists x cascade")
    ten.run("drop view if exists v")
    ten.run(f"create view v as select b.id, {expression} as c from b")
    with pytest.raises(EncodeError) as caught:
        await read(ten.url, stream("v", key=["id"]))
    assert reason in caught.value.message
    assert (caught.value.field, caught.value.key) == ("c", "3")
    async with open_source(ten.url) as source:
        for page_size in (1, 3, 100):
            config = stream("v", key=["id"], page_size=page_size, on_bad_record="dead_letter")
            assert ids(await read_pages(source, config)) == ([1, 2, 4, 5, 6, 7, 8, 9, 10], [3])


async def test_rows_that_offset_skips_are_not_taken_for_bad(ten: Databank) -> None:
    ten.run("create or replace view computed as select b.id, 1 / (b.id - 3) as c from b")
    config = stream("computed", key=["id"], page_size=4, traversal="OFFSET", on_bad_record="dead_letter")
    with pytest.raises(EncodeError, match="before the position") as caught:
        await pages(ten.url, config)
    assert "ID_RANGE" in caught.value.hint


@pytest.mark.parametrize(
    "settings",
    [{"where": "1 / (id - 3) > -1"}, {"where": "id > :a", "params": {"a": "no number"}}, {"where": "id > 1/0"}],
)
async def test_a_condition_that_fails_is_no_bad_record(ten: Databank, settings: dict[str, Any]) -> None:
    with pytest.raises(EncodeError, match="rows cannot be read") as caught:
        await pages(ten.url, stream("b", on_bad_record="dead_letter", **settings))
    assert "where" in caught.value.hint
    async with open_source(ten.url) as source:  # no column is named, so the words may quote any
        masked = stream("named_b", key=["id"], transforms=[{"drop": ["n"]}])
        ten.run("create or replace view named_b as select id, id as n from b")
        assert "rows cannot be read" not in tellable(caught.value, masked, await source.describe(masked)).message


async def test_a_bad_row_does_not_hide_that_keys_repeat(ten: Databank) -> None:
    """Of a key that no index proves, the row after a bad one may have the same."""
    ten.run("create or replace view computed as select b.id, 1 / (b.id - 3) as c from b")
    config = stream("computed", key=["id"], page_size=1, on_bad_record="dead_letter")
    assert ids(await pages(ten.url, config)) == ([1, 2, 4, 5, 6, 7, 8, 9, 10], [3])
    for same in ("b.id / 2", "case b.id when 3 then 4 else b.id end"):  # before the bad row, and beside it
        ten.run(f"create or replace view computed as select {same} as id, 1 / (b.id - 3) as c from b")
        for page_size in (1, 2, 3, 100):
            with pytest.raises(PermanentError, match="several rows have the key"):
                await pages(ten.url, config.model_copy(update={"page_size": page_size}))


@pytest.mark.parametrize("step", ["_good_rows", "_find_row", "_Row._shown"])
async def test_a_row_that_changes_while_it_is_looked_for_is_looked_for_again(
    ten: Databank, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row after it, which can be read, must not go to the dead letters in its stead."""
    ten.run("drop view if exists computed")
    ten.run("create view computed as select 1 / (b.id - 3) as c, b.id from b")
    owner = postgres_values._Row if "." in step else postgres_values
    name = step.rpartition(".")[2]
    original = getattr(owner, name)

    def change(*arguments: Any) -> Any:
        found = original(*arguments)
        ten.run("delete from b where id = 3")
        return found

    config = stream("computed", key=["id"], on_bad_record="dead_letter")
    monkeypatch.setattr(owner, name, change)
    try:
        with pytest.raises(TransientError, match="rows have changed"):
            await pages(ten.url, config)
        assert ids(await pages(ten.url, config)) == ([1, 2, 4, 5, 6, 7, 8, 9, 10], [])
    finally:
        ten.run("insert into b values (3)")
        ten.run("drop view computed")
