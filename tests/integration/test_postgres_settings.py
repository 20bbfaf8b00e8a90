"""No setting that a server lets a role or a database carry changes what is read, or keeps checkpoints from being kept.

The settings are those of the running server's pg_settings. A table without arrays is read by COPY, page by page over a
key of several types, and one with arrays by the driver.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from producer.checkpoints.postgres import PostgresCheckpointStore
from producer.config import Config
from producer.model import Checkpoint, KeyPosition, Split, StreamState
from producer.postgres import SETTINGS
from tests.integration.sql_reading import open_source, read_split, stream

STATED = tomllib.loads((Path(__file__).resolve().parents[2] / "docs" / "types.toml").read_text("utf-8"))["postgres"]
#: Beside the documented types: values that are made of others, whose text is that of all their parts.
MORE = {
    "parts": "row(0.1::float8 + 0.2, '\\x00ff'::bytea, '1 mon -2 days 3.5'::interval, '-1234.5'::money, now())::parts",
    "float8range": "'[0.1,0.30000000000000004)'::float8range",
    "daterange": "'[0044-03-15 BC,infinity)'::daterange",
    "float8[][]": "array[[0.1::float8 + 0.2, 1e-300], ['NaN'::float8, '-Infinity'::float8]]",
    "interval[]": "array['1 year -3 days 0.1'::interval, '-1 mon']",
    "parts[]": "array[row(1e22, '\\x5c27', '1 day', 0, '2024-03-31 02:30+03')::parts]",
    "real[]": "array[0.1::real, 16777217]",
    "point[]": "array['(0.1,0.30000000000000004)'::point]",
    "circle": "'<(0.1,0.2),0.30000000000000004>'::circle",
    "xml": "'<?xml version=\"1.0\"?><a/>'::xml",
    "bytea[][]": "array[['\\x00'::bytea], ['\\xff'::bytea]]",
    "regclass": "'data.listed'::regclass",
}
#: Settings that change values or the meaning of SQL, besides those that are pinned to one value.
MORE_THAT_MATTER = (
    *("lc_monetary", "search_path", "default_transaction_isolation", "default_transaction_read_only"),
    *("default_transaction_deferrable", "synchronous_commit", "statement_timeout", "session_replication_role"),
)
#: What strings may be set to.
STRINGS: dict[str, Sequence[str]] = {
    "DateStyle": ("SQL, DMY", "German", "Postgres, YMD", "ISO, DMY"),
    "TimeZone": ("Asia/Kathmandu", "America/St_Johns", "<-13>13"),
    "timezone_abbreviations": ("India", "Australia"),
    "client_encoding": ("LATIN1", "SQL_ASCII", "WIN1251"),
    "lc_monetary": ("C", "POSIX", "C.UTF-8"),
    "lc_numeric": ("C", "POSIX"),
    "lc_time": ("C", "POSIX"),
    "lc_messages": ("C", "POSIX"),
    "search_path": ("", '"$user"', "pg_catalog", "evil, pg_catalog, public", "nowhere", "public, pg_catalog"),
    "application_name": ("'; --",),
    "default_text_search_config": ("pg_catalog.simple",),
    "default_tablespace": ("pg_default",),
    "temp_tablespaces": ("pg_default",),
    "default_table_access_method": ("heap",),
    "restrict_nonsystem_relation_kind": ("view, foreign-table",),
    "local_preload_libraries": (),
    "session_preload_libraries": ("auto_explain",),
    "dynamic_library_path": ("$libdir:/tmp",),
    "extension_destdir": ("/tmp",),
    "backtrace_functions": ("int4in",),
    "wal_consistency_checking": ("all",),
    "log_statement": ("all",),
}
#: Numbers whose extremes end every session, or take the server's memory.
NUMBERS: dict[str, Sequence[str]] = {
    "statement_timeout": ("5s",),
    "lock_timeout": ("5s",),
    "idle_in_transaction_session_timeout": ("5s",),
    "idle_session_timeout": ("5s",),
    "temp_buffers": ("100",),
    "work_mem": ("64", "1GB"),
    **dict.fromkeys(("jit_above_cost", "jit_inline_above_cost", "jit_optimize_above_cost"), ("-1",)),
    "max_stack_depth": ("200", "4MB"),
    "client_connection_check_interval": ("10s",),
    "debug_discard_caches": ("0",),
    "temp_file_limit": ("1GB",),
    "tcp_user_timeout": ("60s",),
    "tcp_keepalives_idle": ("30",),
    "tcp_keepalives_interval": ("30",),
    "tcp_keepalives_count": ("3",),
    "deadlock_timeout": ("1", "1min"),
}
#: Settings of one transaction, which follow from the defaults of their names.
OF_A_TRANSACTION = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")
SETUP = f"""
create schema data; create schema evil;
create type parts as (f float8, b bytea, i interval, m money, t timestamptz);
create type float8range as range (subtype = float8);
{";".join(STATED["setup"])};
create function evil.now() returns timestamptz language sql as $$select 'infinity'::timestamptz$$;
create function evil.to_json(parts) returns json language sql as $$select '0'::json$$;
create function evil.never(mood, mood) returns bool language sql as 'select false';
create operator evil.> (function = evil.never, leftarg = mood, rightarg = mood);
create operator evil.<= (function = evil.never, leftarg = mood, rightarg = mood);
grant usage on schema data, evil to carrier; grant create, usage on schema public to carrier;
alter default privileges in schema data grant select on tables to carrier;
"""
WHERE = "(note = null) is null and note <> 'a\\b' and noted <= date '02/03/2024' and kind <> 'glad'"


def _columns(*, arrays: bool) -> list[tuple[str, str]]:
    """The documented types and `MORE`, each with a value as an expression."""
    stated = [
        (example["sql"], example["literal"])
        for row in STATED["types"]
        for example in row.get("examples", ())
        if "literal" in example and "generated" not in example["sql"]
    ]
    return [(kind, value) for kind, value in (*stated, *MORE.items()) if ("[]" in kind or kind == "codes") is arrays]


def _table(name: str, *, arrays: bool) -> str:
    columns = _columns(arrays=arrays)
    declared = ", ".join(f"c{number} {kind}" for number, (kind, _) in enumerate(columns))
    values = ", ".join(value for _, value in columns)
    rows = ", ".join(f"({_key(n)}, {values})" for n in range(1, 5))
    return f"""
    create table data.{name} (moment timestamptz, span interval, raw bytea, ratio float8, price money, kind mood,
      duo pair, note text, noted date, {declared}, primary key (moment, span, raw, ratio, price, kind, duo));
    insert into data.{name} values {rows};
    """


def _key(n: int) -> str:
    moment, kind = f"timestamptz '2024-03-31 00:30+00' + {n} * interval '1 hour'", "glad" if n == 3 else "sad"
    numbers = f"{n} * (0.1::float8 + 0.2), {n}::numeric::money"
    return (
        f"{moment}, {n} * interval '1 day -3:00', '\\x5c0{n}', {numbers}, '{kind}', row({n}, null), 'a', '2024-02-03'"
    )


#: A policy that hides a row, which must stay hidden, and must not become an error.
POLICY = """
alter table data.plain enable row level security;
create policy early on data.plain to carrier using (moment < '2024-03-31 03:00+00');
"""


async def _run(dsn: str, *scripts: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for script in scripts:
            await connection.execute(script)
    finally:
        await connection.close()


def _name(dsn: str) -> str:
    return dsn.rpartition("/")[2]


def _beside(dsn: str) -> str:
    """Of another database, which does not carry the settings itself."""
    return dsn.removesuffix(_name(dsn)) + "postgres"


@pytest.fixture(scope="module")
def urls(postgres_dsn: str) -> Iterator[tuple[str, str]]:
    """Of the superuser, and of the role that carries the settings."""
    asyncio.run(_run(postgres_dsn, "create role carrier login"))
    try:
        asyncio.run(_run(postgres_dsn, SETUP, _table("listed", arrays=True), _table("plain", arrays=False), POLICY))
        yield postgres_dsn, postgres_dsn.replace("postgres@", "carrier@")
    finally:
        asyncio.run(_run(_beside(postgres_dsn), f"alter database {_name(postgres_dsn)} reset all"))
        asyncio.run(_run(postgres_dsn, "drop owned by carrier", "drop role carrier"))


async def read_all(url: str) -> list[str]:
    """The schemas and rows of both tables, as text: NaN is no more equal to itself in Arrow."""
    found = []
    async with open_source(url) as source:
        for table in ("data.plain", "data.listed"):
            config = stream(table, page_size=1, max_parallel=1, where=WHERE)
            dataset = await source.describe(config)
            (split,) = await source.plan(config, dataset)
            for batch in await read_split(source, config, dataset, split):
                found.append(f"{batch.schema.to_string()} {batch.to_pylist()}")
    return found


async def keep_checkpoints(url: str) -> StreamState | None:
    """What a store has of a stream after a commit, in the times and numbers that it was given."""
    document = {
        "app": "settings",
        "checkpoints": {"type": "postgres", "url": url},
        "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
        "streams": [{"name": "t", "source": "s", "table": "t"}],
    }
    store = PostgresCheckpointStore(Config.model_validate(document))
    try:
        await store.start()
        epoch = await store.claim("t")
        checkpoint = Checkpoint(Split("0", None, KeyPosition(("\\ä", 0.1 + 0.2))))
        await store.begin(StreamState("t", "f", epoch, (checkpoint,)))
        await store.commit("t", epoch, [Checkpoint(checkpoint.split, KeyPosition(("\\", 0.1)), rows=3)])
        found = await store.load("t")
        await store.reset("t")
    finally:
        await store.close()
    return None if found is None else StreamState("t", found.fingerprint, 0, found.checkpoints)


async def values_of(dsn: str) -> dict[str, list[str]]:
    """Every setting that a role can carry, with the values that it may get here."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        "select name, vartype, boot_val, min_val, max_val, enumvals from pg_settings "
        "where context in ('user', 'superuser') order by name"
    )
    await connection.close()
    found: dict[str, list[str]] = {}
    for name, kind, default, least, most, labels in rows:
        if name in OF_A_TRANSACTION:
            continue
        if kind == "bool":
            found[name] = ["off", "on"] if default == "on" else ["on", "off"]
        elif kind == "enum":
            found[name] = sorted(labels, key=lambda label: label == default)
        elif kind == "string":
            found[name] = list(STRINGS[name])
        else:
            some = str(min(float(most), 10 * abs(float(default)) + 10)).removesuffix(".0")
            found[name] = list(NUMBERS.get(name, (least, some, *([most] if name in SETTINGS else []))))
    return found


def cases_of(values: dict[str, list[str]]) -> list[dict[str, str]]:
    """All settings at once, in as many cases as one of them has values; a search path, and what matters, by itself."""
    found = {name: some for name, some in values.items() if some}
    paths = [{"search_path": path} for path in found.pop("search_path")]
    most = max(len(some) for some in found.values())
    together = [{name: some[number % len(some)] for name, some in found.items()} for number in range(most)]
    matter = [name for name in found if name in SETTINGS or name in MORE_THAT_MATTER]
    return [*together, *paths, *({name: found[name][0]} for name in matter)]


async def carry(dsn: str, target: str, settings: dict[str, str]) -> None:
    quoted = {name: "'" + value.replace("'", "''") + "'" for name, value in settings.items()}
    if "search_path" in settings:
        quoted["search_path"] = settings["search_path"] or "''"
    await _run(dsn, "".join(f"alter {target} set {name} = {value};" for name, value in quoted.items()))


async def test_no_setting_changes_what_is_read_or_kept(urls: tuple[str, str]) -> None:
    admin, url = urls
    expected, kept = await read_all(url), await keep_checkpoints(url)
    assert len(expected) == 5, "two rows of one table and three of the other, of which no policy hides one"
    values = await values_of(admin)
    cases = cases_of(values)
    for number, settings in enumerate(cases):
        target = f"database {_name(admin)}" if number % 2 else "role carrier"
        await carry(_beside(admin), target, settings)
        assert await read_all(url) == expected, settings
        if "public" in settings.get("search_path", "public"):
            assert await keep_checkpoints(url) == kept, settings
        await _run(_beside(admin), f"alter {target} reset all")
    covered = {item for settings in cases for item in settings.items()}
    assert covered == {(name, value) for name, some in values.items() for value in some}
