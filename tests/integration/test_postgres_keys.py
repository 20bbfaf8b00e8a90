"""Every type of PostgreSQL as a key: each row is delivered once, or the key is refused by name before the first record.

The types are those of pg_type, the extensions of Debian's package among them. A second role has its names looked up in
a schema of false operators and functions first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import asyncpg
import pytest

from producer.config import StreamConfig
from producer.errors import ConfigError, RepeatedKeyError
from producer.model import Checkpoint, Dataset, KeyPosition, checkpoint_from_json, checkpoint_to_json
from producer.sources import sql
from producer.sources.sql import SqlSource, keyset
from tests.integration.sql_reading import open_source, stream

EXTENSIONS = ("citext", "hstore", "ltree", "cube", "seg", "isn", "lo")
#: Pages' sizes and numbers of splits, for the ordinary role and for the one with a hostile search path.
CASES = ([(pages, splits) for pages in (1, 2, 7) for splits in (1, 3)], [(1, 3), (2, 1), (7, 3)])
_WORDS = ("", "a", "A", "b", "ä", "a b", "a-b", "Z", "\\", "'", '"', "NULL", "😀", "\n")
_WHOLE = ("0", "-1", "1", "2", "7", "-32768", "32767", "10", "9")
_NUMBERS = ("0", "1", "-1", "1.10", "0.1", "1e-7", "123456789.123456789", "NaN", "Infinity", "-Infinity", "1e300")
_FLOATS = ("0", "1", "-1", "0.1", "1e-7", "0.30000001", "NaN", "Infinity", "-Infinity", "1e37", "1.1754944e-38")
_DATES = ("0001-01-01", "1969-12-31", "1970-01-01", "2024-02-29", "9999-12-31")
_TIMES = ("0001-01-01 00:00:00.000001", "1969-12-31 23:59:59.999999", "2024-02-29 12:00:00.1", "9999-12-31 23:59:59")
_OIDS = ("0", "1", "23", "1259", "4294967295")
_NETS = ("0.0.0.0", "10.0.0.1", "10.0.0.0/8", "10.0.0.1/8", "::1", "fe80::/16", "255.255.255.255")
_CIDRS = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.1", "::/0", "::1", "fe80::/16")
_BITS = ("", "0", "1", "00", "01", "10", "0000000000", "11111111")

#: Values of each type, as text. Those that its order takes for equal to an earlier one are left out.
VALUES: dict[str, Sequence[str]] = {
    "bool": ("f", "t"),
    "int2": _WHOLE,
    "int4": (*_WHOLE, "-2147483648", "2147483647"),
    "int8": (*_WHOLE, "-9223372036854775808", "9223372036854775807"),
    "float4": _FLOATS,
    "float8": (*_FLOATS, "0.30000000000000004", "0.3", "1e308", "5e-324"),
    "numeric": _NUMBERS,
    "numeric(9,3)": ("0", "-1.001", "1.001", "999999.999"),
    "money": ("-92233720368547758.08", "-0.01", "0", "0.01", "1", "1234567.89"),
    "text": _WORDS,
    "varchar": _WORDS,
    "char(3)": ("", "a", "a b", "B", "ä", "z"),
    "bpchar": ("", "a", "a b", "B"),
    "name": _WORDS,
    '"char"': ("", "a", "A", "\\377", "\\200", "~"),
    "bytea": ("\\x", "\\x00", "\\x5c", "\\x27", "\\x0000", "\\xff", "\\x5c5c"),
    "date": _DATES,
    "time": ("00:00", "00:00:00.000001", "12:00", "23:59:59.999999"),
    "timetz": ("00:00+00", "00:00-15", "12:00+01", "24:00+00", "11:00+00:30"),
    "timestamp": _TIMES,
    "timestamptz": [f"{time}+00" for time in _TIMES],
    "interval": (
        "0",
        "1 day",
        "-1 day",
        "25:00",
        "1 mon",
        "1 mon -1 day",
        "0.000001",
        "-178000000 years",
        "1 year 3 days 1.5",
    ),
    "uuid": (
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "7f000000-0000-0000-0000-000000000000",
    ),
    "inet": _NETS,
    "cidr": _CIDRS,
    "macaddr": ("00:00:00:00:00:00", "08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"),
    "macaddr8": ("00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05", "ff:ff:ff:ff:ff:ff:ff:ff"),
    "bit(3)": ("000", "001", "010", "111"),
    "bit": ("0", "1"),
    "varbit": _BITS,
    "oid": _OIDS,
    "tid": ("(0,0)", "(0,1)", "(1,0)", "(4294967295,65535)"),
    "xid8": ("0", "1", "18446744073709551615"),
    "pg_lsn": ("0/0", "0/1", "16/B374D848", "FFFFFFFF/FFFFFFFF"),
    "jsonb": (
        "null",
        '""',
        '"a"',
        "1",
        "1.5",
        "-1",
        "[]",
        "[1]",
        "{}",
        '{"a": 1}',
        '{"b": null}',
        "true",
        "false",
        '"\\n\\""',
    ),
    "tsvector": ("", "'a'", "'a':1", "'a':1A 'b':2", "'''':1"),
    "tsquery": ("'a'", "'a' & 'b'", "'a':*", "!'b'"),
    "oidvector": ("", "1", "1 2", "2"),
    "int2vector": ("", "1", "1 2", "2"),
    "regclass": ("pg_class", "pg_type", "4000000000", "evil.shadow"),
    "regtype": ("int4", "text", "ext.citext"),
    "regproc": ("pg_catalog.now", "pg_catalog.int4in", "evil.never_bool"),
    "regprocedure": ("lower(text)", "lower(anyrange)"),
    "regoper": ("||/", "|/"),
    "regoperator": ("+(int4,int4)", "-(int4,int4)"),
    "regrole": ("postgres", "4000000000"),
    "regnamespace": ("pg_catalog", "public"),
    "regcollation": ('"C"', '"POSIX"'),
    "regconfig": ("simple", "english"),
    "regdictionary": ("simple", "english_stem"),
    "int4range": ("empty", "(,)", "[1,2)", "[1,3)", "(,5)", "[7,)"),
    "int8range": ("empty", "(,)", "[1,2)", "[9223372036854775806,)"),
    "numrange": ("empty", "(,)", "[1,1]", "(1.0,2)", "[1,2]", "[-Infinity,0)", "[0,NaN]"),
    "daterange": ("empty", "(,)", "[2024-01-01,infinity)", "[2024-01-01,2024-02-01)", "[0044-03-15 BC,)"),
    "tsrange": ("empty", '("2024-01-01 00:00","2024-01-02 00:00:00.1"]', "[-infinity,infinity]"),
    "tstzrange": ("empty", '("2024-01-01 00:00+00","2024-01-02 00:00:00.1+00"]', "[-infinity,infinity]"),
    "int4multirange": ("{}", "{[1,2)}", "{[1,2),[5,6)}", "{(,)}"),
    "int8multirange": ("{}", "{[1,2)}", "{(,)}"),
    "nummultirange": ("{}", "{[1,1.5)}", "{(,)}"),
    "datemultirange": ("{}", "{[2024-01-01,infinity)}"),
    "tsmultirange": ("{}", '{["2024-01-01 00:00","2024-01-02 00:00:00.1")}'),
    "tstzmultirange": ("{}", '{["2024-01-01 00:00+00","2024-01-02 00:00:00.1+00")}'),
    "ext.citext": ("", "a", "B", "c", "Ä", "z\\"),
    "ext.hstore": ("", "a=>1", "a=>NULL", 'a=>"NULL"', '"a b"=>"\\"", c=>2', "b=>1"),
    "ext.ltree": ("", "a", "a.b", "a.B", "b", "A"),
    "ext.cube": ("(0)", "(0.1)", "(0.30000000000000004)", "(1,2),(3,4)", "(-Infinity)", "(1,2)"),
    "ext.seg": ("1", "1.0 .. 2.0", "~1.50", "2 .. ", "0.25"),
    "ext.lo": _OIDS,
    "ext.ean13": ("978-0-11-000533-1", "978-0-393-04002-9"),
    "ext.isbn13": ("978-0-11-000533-1", "978-0-393-04002-9"),
    "ext.isbn": ("0-11-000533-3", "0-393-04002-X"),
    "ext.ismn13": ("979-0-060-11561-5", "979-0-2306-7118-7"),
    "ext.ismn": ("M-060-11561-5", "M-2306-7118-7"),
    "ext.issn13": ("977-1436-452-00-8", "977-2056-655-00-8"),
    "ext.issn": ("1436-4522", "2056-6557"),
    "ext.upc": ("1-23456-78901-2", "0-12345-67890-5"),
    # domains, enums, composite types and collations of one's own
    "mood": ("sad", "so so", "a'b", "\\", "glad"),
    "odd": ("9999-01-01 00:00", "0001-01-01 00:00", "2024-01-01 00:00"),
    "mooded": ("sad", "glad"),
    "pair": ("(1,)", "(1,a)", '(1,"a b")', '(2,"\\"\\\\")', "(,)", "(,a)", '(-1,"(1,2)")'),
    "nest": ('("(1,a)",sad,{1},"\\\\x00",0.1,"1 day")', '("(1,b)",glad,"{1,NULL}","\\\\xff",NaN,-1)', "(,,,,,)"),
    "floats": ("[0.1,0.30000000000000004)", "[0.1,0.3)", "empty", "(,)"),
    "floats_multirange": ("{}", "{[0.1,0.3)}", "{[0.1,0.30000000000000004)}", "{(,)}"),
    'text collate "de"': _WORDS,
    'text collate "und-x-icu"': _WORDS,
    "text collate ci": ("a", "B", "c", "ä", "Z"),
    'varchar(9) collate "POSIX"': _WORDS[:-1],
    "folded": ("a", "B", "c", "ä", "Z"),
    "weekday": ("mon", "tue", "fri"),
    "information_schema.cardinal_number": ("0", "1", "2147483647"),
    "information_schema.sql_identifier": ("", "a", "A"),
    "information_schema.character_data": ("", "a", "A"),
    "information_schema.yes_or_no": ("YES", "NO"),
    "information_schema.time_stamp": [f"{time}+00" for time in _TIMES],
}
#: Values that have no form in Avro, or do not come back from their text: the key is refused, and names the value.
REFUSED_VALUES = {
    "date": ("infinity", "-infinity", "0001-12-31 BC", "0044-03-15 BC", "10000-01-01"),
    "timestamp": ("infinity", "-infinity", "0044-03-15 BC", "294276-12-31 23:59:59.999999"),
    "timestamptz": ("infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "10000-01-01 00:00:00+00"),
    "time": ("24:00:00",),
    "numeric(9,3)": ("NaN",),
    "odd": ("infinity", "-infinity"),
    "ext.seg": ("1.23456789",),
    "segs": ("(1.23456789)",),
}
#: Of each type a value that is in order.
_GOOD = {"date": "2024-01-01", "time": "12:00", "numeric(9,3)": "1", "ext.seg": "1", "segs": "(1)"}
#: Types that have no order.
UNORDERED = (
    *("json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "xid", "cid", "jsonpath", "aclitem"),
    *("txid_snapshot", "pg_snapshot", "refcursor", "ext.lquery", "ext.ltxtquery", "weird"),
)
#: Types of pg_type whose values no user can make.
UNUSED = (
    *("gtsvector", "ext.ghstore", "ext.ltree_gist", "pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list"),
    *("pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"),
)
#: A type of one's own, whose operators have other names and another order than its text.
WEEKDAY = """
create function weekday_place(weekday) returns int language sql immutable as
$$select array_position('{fri,mon,tue}', $1::text)$$;
create function weekday_cmp(weekday, weekday) returns int language sql immutable as
$$select public.weekday_place($1) - public.weekday_place($2)$$;
create operator class weekday_ops default for type weekday using btree as
function 1 weekday_cmp(weekday, weekday),
"""
SETUP = f"""
{"".join(f"create extension {name} schema ext;" for name in EXTENSIONS)}
create type mood as enum ('sad', 'so so', 'a''b', E'\\\\', 'glad');
create domain mooded as mood; create domain odd as timestamp check (value is not null);
create type pair as (a int, b text); create type weird as (a int, p point); create type segs as (s ext.seg);
create type nest as (p pair, m mood, a int[], b bytea, f float8, i interval);
create type floats as range (subtype = float8);
create collation "de" (provider = icu, locale = 'de');
create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create domain folded as text collate ci;
create table evil.shadow (id int);
create type amount as (n numeric);
create table finer (k amount not null, c ext.citext not null, v int);
insert into finer values ('(1.0)', 'a', 0), ('(1.00)', 'A', 1), ('(2)', 'b', 2);
create unique index on finer (k record_image_ops); create unique index on finer (c text_ops);
create table patterns (k text not null, v int); insert into patterns values ('a', 0), ('A', 1), ('b', 2);
create unique index on patterns (k text_pattern_ops);
create function evil.never_bool() returns bool language sql as 'select false';
create function evil.count() returns bigint language sql as 'select 0::bigint';
create function evil.now() returns timestamptz language sql as $$select 'infinity'::timestamptz$$;
create function evil.concat(text, text, text) returns text language sql as $$select 'x'$$;
create function evil.to_regclass(text) returns regclass language sql as $$select 'evil.shadow'::regclass$$;
create function evil.set_config(text, text, bool) returns text language sql as $$select 'x'$$;
create function evil.current_setting(text) returns text language sql as $$select 'x'$$;
create type weekday;
create function weekday_in(cstring) returns weekday as 'textin' language internal immutable strict;
create function weekday_out(weekday) returns cstring as 'textout' language internal immutable strict;
create type weekday (input = weekday_in, output = weekday_out, like = text);
"""
SIGNS = {"<": "lt", "<=": "le", "=": "eq", ">=": "ge", ">": "gt"}
#: Keys of several columns: their types, and the values of each row.
COMPOSITE = {
    ("int8", "text"): (("1", "a"), ("1", "b"), ("2", ""), ("2", "\\"), ("-1", "z")),
    ("ext.citext", "int4"): (("a", "1"), ("A", "2"), ("b", "-1"), ("B", "7")),
    ("mood", "date", "float8"): (
        ("sad", "2024-01-01", "NaN"),
        ("sad", "2024-01-01", "0.1"),
        ("glad", "1970-01-01", "-1"),
    ),
    ("pair", "interval", "bytea"): (("(1,a)", "1 day", "\\x5c"), ("(1,a)", "25:00", "\\x"), ("(1,b)", "0", "\\x27")),
    ("weekday", "ext.hstore", "inet"): (("mon", "a=>1", "::1"), ("mon", "a=>NULL", "10.0.0.1"), ("fri", "", "::1")),
    ('text collate "de"', "text", "numeric"): (("a", "B", "1"), ("a", "b", "NaN"), ("B", "", "1e300"), ("ä", "", "0")),
}


#: Every type that a column can have, but those of tables' rows.
EVERY_TYPE = """
select t.oid::regtype::text, t.typcategory = 'A' and t.typlen = -1 and t.typelem <> 0 and t.typtype = 'b'
from pg_type t left join pg_class c on c.oid = t.typrelid left join pg_type e on e.oid = t.typelem
  left join pg_class d on d.oid = e.typrelid
where t.typtype in ('b', 'c', 'd', 'e', 'm', 'r') and coalesce(e.typtype, 'b') <> 'p'
  and coalesce(c.relkind, 'c') = 'c' and coalesce(d.relkind, 'c') = 'c'
  and t.typname not like E'\\\\_pg\\\\_%'
"""


@dataclass(frozen=True)
class Tables:
    """URLs of an ordinary role and of one with a hostile search path; tables by the type of their key."""

    urls: tuple[str, str]
    by_type: dict[str, str]


async def _run(dsn: str, script: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(script)
    finally:
        await connection.close()


def _hostile(number: int, kind: str) -> str:
    """Operators and functions of a type that are found first, and are wrong."""
    arguments = f"({kind}, {kind})"
    made = [f"create function evil.to_json({kind}) returns json language sql as $$select '0'::json$$;"]
    for sign, name in SIGNS.items():
        function = f"evil.{name}_{number}"
        made.append(f"create function {function}{arguments} returns bool language sql as 'select false';")
        made.append(f"create operator evil.{sign} (function = {function}, leftarg = {kind}, rightarg = {kind});")
    return "".join(made)


def _weekday() -> str:
    made, items = [WEEKDAY.partition("create operator class")[0]], []
    for place, (sign, name) in enumerate(SIGNS.items(), start=1):
        made.append(
            f"create function weekday_{name}(weekday, weekday) returns bool language sql immutable as "
            f"$$select public.weekday_cmp($1, $2) {sign} 0$$;"
            f"create operator #{sign}# (function = weekday_{name}, leftarg = weekday, rightarg = weekday);"
        )
        items.append(f"operator {place} #{sign}#")
    return (
        "".join(made) + "create operator class" + WEEKDAY.partition("create operator class")[2] + ", ".join(items) + ";"
    )


def _table(name: str, kinds: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = ", ".join(f"k{i} {kind}" for i, kind in enumerate(kinds))
    keys = ", ".join(f"k{i}" for i in range(len(kinds)))
    values = ", ".join(f"({', '.join(_literal(value) for value in row)}, {number})" for number, row in enumerate(rows))
    create = f"create table {name} ({columns}, v int, primary key ({keys}));"
    return f"{create} insert into {name} values {values} on conflict do nothing;"


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _plain(kind: str) -> str:
    """Without modifier and collation."""
    return kind.partition(" collate ")[0].partition("(")[0]


def _refused_values() -> list[tuple[str, str]]:
    return [(kind, value) for kind, values in REFUSED_VALUES.items() for value in values]


def _script() -> list[str]:
    plain = sorted({_plain(kind) for kind in VALUES} - {"char", "bit"})
    return [
        "create schema ext; create schema evil;",
        SETUP,
        _weekday(),
        *(_table(f"t{number}", [kind], [(value,) for value in VALUES[kind]]) for number, kind in enumerate(VALUES)),
        *(_table(f"m{number}", kinds, rows) for number, (kinds, rows) in enumerate(COMPOSITE.items())),
        *(
            _table(f"r{number}", [kind, "int"], [(_GOOD.get(kind, "2024-01-01"), "1"), (value, "2")])
            for number, (kind, value) in enumerate(_refused_values())
        ),
        *(_hostile(number, kind) for number, kind in enumerate(plain)),
    ]


@pytest.fixture(scope="module")
def tables(postgres_dsn: str) -> Iterator[Tables]:
    role = "create role hostile superuser login; alter role hostile set search_path = evil, pg_catalog, public;"
    asyncio.run(_run(postgres_dsn, role))
    try:
        asyncio.run(_run(postgres_dsn, "".join(_script())))
        asyncio.run(_run(postgres_dsn, "analyze"))
        kinds = {kind: f"t{number}" for number, kind in enumerate(VALUES)}
        yield Tables((postgres_dsn, postgres_dsn.replace("postgres@", "hostile@")), kinds)
    finally:
        asyncio.run(_run(postgres_dsn, "drop role hostile"))


def through_json(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint_from_json(json.loads(json.dumps(checkpoint_to_json(checkpoint))))


async def deliver(source: SqlSource, config: StreamConfig, dataset: Dataset) -> list[int]:
    """The numbers of all rows, the rejected ones included, page by page; each position is stored in between."""
    found: list[int] = []
    for split in await source.plan(config, dataset):
        checkpoint = through_json(Checkpoint(split))
        reader = await source.reader(config, dataset, checkpoint.split)
        while True:
            page = await reader.fetch(checkpoint.position, config.page_size)
            batches = (page.batch, *(row.columns for row in page.rejected))
            found += [v for batch in batches for v in batch.column("v").to_pylist()]
            checkpoint = through_json(replace(checkpoint, position=page.position))
            if page.last:
                break
        await reader.close()
    return found


async def in_order(dsn: str, table: str, order: str) -> list[int]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(f"select v from {table} order by {order}")]
    finally:
        await connection.close()


async def check(source: SqlSource, role: int, table: str, expected: list[int], keys: Sequence[str]) -> None:
    dataset = await source.describe(stream(table))
    for pages, splits in CASES[role]:
        config = stream(table, page_size=pages, max_parallel=splits)
        found = await deliver(source, config, replace(dataset, rows_estimate=None))
        assert found == expected, (table, keys, pages, splits)


@pytest.mark.parametrize("role", [0, 1], ids=["default path", "hostile path"])
async def test_every_type_delivers_each_row_once(tables: Tables, role: int) -> None:
    async with open_source(tables.urls[role]) as source:
        for kind, table in tables.by_type.items():
            expected = await in_order(tables.urls[0], table, "k0")
            assert len(expected) > 1, kind
            await check(source, role, f"public.{table}", expected, [kind])


@pytest.mark.parametrize("role", [0, 1], ids=["default path", "hostile path"])
async def test_keys_of_several_types_deliver_each_row_once(tables: Tables, role: int) -> None:
    async with open_source(tables.urls[role]) as source:
        for number, kinds in enumerate(COMPOSITE):
            order = ", ".join(f"k{i}" for i in range(len(kinds)))
            await check(source, role, f"public.m{number}", await in_order(tables.urls[0], f"m{number}", order), kinds)


async def test_a_scan_finds_the_position_of_each_key_of_every_type(tables: Tables) -> None:
    """Also where its row is gone: at the row before it. Names are looked up in a hostile schema."""
    composite = {" ".join(kinds): (f"m{number}", len(kinds)) for number, kinds in enumerate(COMPOSITE)}
    async with open_source(tables.urls[1]) as source:
        for kind, (table, width) in [
            *((kind, (table, 1)) for kind, table in tables.by_type.items()),
            *composite.items(),
        ]:
            config = stream(f"public.{table}", page_size=1)
            positions = await positions_of(source, config)
            order = await in_order(tables.urls[0], table, ", ".join(f"k{i}" for i in range(width)))
            some = config.model_copy(update={"name": "some", "where": "v % 2 = 0"})
            scanned = source.scan(some, await source.describe(some), positions, [])
            assert scanned is not None
            marks = [mark for page in [page async for page in scanned] for mark in page.marks]
            there = {place: sum(v % 2 == 0 for v in order[: place + 1]) - 1 for place in range(len(order))}
            for place, position in enumerate(positions):
                if any(value != value for value in position.values):  # NaN: it is after all rows
                    del there[place]
            assert {mark.position: mark.row for mark in marks if not mark.exact} == there, kind
            exact = {place: row for place, row in there.items() if order[place] % 2 == 0}
            assert {mark.position: mark.row for mark in marks if mark.exact} == exact, kind


async def positions_of(source: SqlSource, config: StreamConfig) -> list[KeyPosition]:
    """The position after each row, as a checkpoint keeps it."""
    (split,) = await source.plan(config.model_copy(update={"max_parallel": 1}), await source.describe(config))
    reader = await source.reader(config, await source.describe(config), split)
    found: list[KeyPosition] = []
    checkpoint = Checkpoint(split)
    while not checkpoint.done:
        page = await reader.fetch(checkpoint.position, 1)
        checkpoint = through_json(replace(checkpoint, position=page.position, done=page.last))
        assert isinstance(checkpoint.position, KeyPosition)
        found += [checkpoint.position] * page.rows
    await reader.close()
    return found


async def test_offset_delivers_each_row_of_every_type_once(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the keys of a page are found first, as on deep pages, and names are looked up in a hostile schema."""
    monkeypatch.setattr(sql, "DEFERRED_FROM_ROWS", 4)
    async with open_source(tables.urls[1]) as source:
        for kind, table in tables.by_type.items():
            config = stream(f"public.{table}", traversal="OFFSET", page_size=4)
            found = await deliver(source, config, await source.describe(config))
            assert found == await in_order(tables.urls[0], table, "k0"), kind


@pytest.mark.parametrize("key", [["k0"], ["k1", "k0"]], ids=["first", "second"])
async def test_a_value_that_cannot_be_a_key_is_refused_by_name(tables: Tables, key: list[str]) -> None:
    """In the plan, which comes before the first record."""
    async with open_source(tables.urls[0]) as source:
        for number, (kind, value) in enumerate(_refused_values()):
            config = stream(f"r{number}", key=key)
            dataset = await source.describe(config)
            with pytest.raises(ConfigError, match="key column 'k0' has the value") as error:
                await source.plan(config, dataset)
            assert value.strip("()").partition(" ")[0].partition(".")[0] in error.value.message, kind


async def test_rows_whose_keys_have_no_form_are_bad_records(tables: Tables) -> None:
    """With dead letters all rows are read, page by page, and the position passes the ones that are rejected."""
    async with open_source(tables.urls[0]) as source:
        for number, (kind, value) in enumerate(_refused_values()):
            config = stream(f"r{number}", key=["k0"], page_size=1, on_bad_record="dead_letter")
            dataset = await source.describe(config)
            if "seg" in kind:
                with pytest.raises(ConfigError, match="does not come back from its text form"):
                    await source.plan(config, dataset)
            else:
                assert sorted(await deliver(source, config, dataset)) == [0, 1], (kind, value)


async def test_types_without_an_order_and_arrays_are_refused_by_name(tables: Tables) -> None:
    connection = await asyncpg.connect(tables.urls[0])
    types = await connection.fetch(EVERY_TYPE)
    delivered = {await connection.fetchval(f"select '{_plain(kind)}'::regtype::text") for kind in VALUES}
    refused = [await connection.fetchval("select $1::regtype::text", kind) for kind in UNORDERED]
    refused += [name for name, is_array in types if is_array and name not in delivered]
    missing = {name for name, _ in types} - delivered - {*refused, *UNUSED, "segs", "amount"}
    assert not missing
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(refused))
    await connection.execute(f"create table refused ({columns})")
    await connection.close()
    async with open_source(tables.urls[1]) as source:
        await source.describe(stream("public.t0"))
        table = await source._database.table("public.refused", decimal=None)
    for number, kind in enumerate(refused):
        with pytest.raises(ConfigError, match=f"column 'c{number}' of type .* cannot order rows"):
            keyset.select(table, stream("refused", key=[f"c{number}"]), "postgres")
            pytest.fail(kind)


@pytest.mark.parametrize("key", ["k", "c"])
async def test_an_index_of_another_operator_class_proves_no_key(tables: Tables, key: str) -> None:
    """It tells values apart that the order takes for equal: of two of them one would be left out."""
    async with open_source(tables.urls[0]) as source:
        with pytest.raises(ConfigError, match="no unique index"):
            await source.describe(stream("finer"))
        config = stream("finer", key=[key], page_size=1)
        with pytest.raises(RepeatedKeyError, match="several rows have the key"):
            await deliver(source, config, await source.describe(config))


async def test_an_index_for_patterns_proves_a_key(tables: Tables) -> None:
    async with open_source(tables.urls[0]) as source:
        config = stream("patterns", page_size=1)
        found = await deliver(source, config, await source.describe(config))
        assert found == await in_order(tables.urls[0], "patterns", "k")


async def test_the_keys_alone_are_read_page_by_page(tables: Tables) -> None:
    """As the search for deleted rows does."""
    async with open_source(tables.urls[1]) as source:
        for number, kinds in enumerate(COMPOSITE):
            keys = await source.keys(stream(f"public.m{number}"))
            position, count, last = None, 0, False
            while not last:
                page = await keys.fetch(position, None, 2)
                position, last, count = page.position, page.last, count + page.batch.num_rows
            await keys.aclose()
            assert count == len(await in_order(tables.urls[0], f"m{number}", "v")), kinds
