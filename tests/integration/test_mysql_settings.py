"""A server's settings must not change what is read from MySQL or MariaDB: each is changed for all new sessions, and a
table of every type and one of awkward keys arrive exactly as before."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa
import pymysql
import pytest

from producer.errors import ProducerError, SourceUnavailableError
from producer.model import Position
from producer.sources.sql import SqlSource, mysql_session
from tests.integration.sql_reading import open_source, read_split, stream

STATED = tomllib.loads((Path(__file__).resolve().parents[2] / "docs" / "types.toml").read_text("utf-8"))["mariadb"]

KEYS = ("00", "10", "20", "27", "2727", "41", "5c", "5c27", "5c41", "61", "25", "2573", "22", "0a")

#: What a user may write, where a flag of sql_mode would read it in another way.
WHERE = (
    "note <> 'it\\'s :no' and note <> \"x\" and not v between 100 and 200 and (note || 1) and note <> :odd"
    " and cast(99 as unsigned) - v >= 0 and v / 3 >= 0 and v not in (:many) and coalesce('', 'no') = ''"
)
PARAMS = {"odd": 'it\'s \\ "odd"\n%s :x', "many": [77, 78]}

#: Computed columns whose values depend on the session.
COMPUTED = """
    1 / 3 third, week('2024-12-31') week_, date_format('2024-03-01', '%W %M') day_, '' empty_, cast('x' as char) padded,
    concat(cast(0.1 as double), '') number_, 'a' = 'A' same, 'ab' regexp 'a b' found, year(from_unixtime(86400)) year_,
    from_unixtime(1711850400) moment, time('10:00:00.7777777') time_, format(1234567.891, 2) formatted
"""

#: Such of a server's settings refuse work, as they should, and are told: they change no value.
REFUSING = frozenset(
    {"MAX_ALLOWED_PACKET", "MAX_SESSION_MEM_USED", "MAX_USER_CONNECTIONS", "TMP_DISK_TABLE_SIZE", "MAX_TMP_TABLES"}
)
#: Others are not of sessions that read, or would change the server for other tests.
ELSEWHERE = frozenset(
    {"SERVER_ID", "SQL_LOG_BIN", "WSREP_ON", "SQL_SLAVE_SKIP_COUNTER", "OPTIMIZER_TRACE", "PROFILING"}
)

#: Settings that MySQL has and MariaDB has not, or not yet.
OF_MYSQL = frozenset(
    {
        *("character_set_collations", "explain_format", "information_schema_stats_expiry"),
        *("transaction_isolation", "transaction_read_only"),
    }
)

Server: TypeAlias = "pymysql.Connection[Any]"


def run(server: Server, sql: str) -> list[tuple[Any, ...]]:
    with server.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


@pytest.fixture(scope="module")
def server(mariadb_url: str) -> Iterator[Server]:
    """A connection that may change the server; the module's database has the tables, and the user ``reader``."""
    parts = urlsplit(mariadb_url)
    with closing(
        pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=parts.username,
            password=parts.password or "",
            database=parts.path.lstrip("/"),
            charset="utf8mb4",
            init_command="set sql_mode = 'NO_UNSIGNED_SUBTRACTION', time_zone = '+00:00'",
            autocommit=True,
        )
    ) as found:
        examples = [example for row in STATED["types"] for example in row.get("examples", ())]
        columns = ", ".join(f"c{number} {example['sql']}" for number, example in enumerate(examples))
        given = [(f"c{number}", example["literal"]) for number, example in enumerate(examples) if "literal" in example]
        run(
            found, f"create table plain (id int primary key, {columns}, pad char(5), gen char(9) as (concat(pad, '|')))"
        )
        names = ", ".join(name for name, _ in given)
        run(found, f"insert into plain (id, pad, {names}) values (1, 'x', {', '.join(text for _, text in given)})")
        run(found, "insert into plain (id, pad) values (2, '')")
        run(found, f"create view every as select plain.*, {COMPUTED} from plain")
        run(found, "create table shaped (k varbinary(30) primary key, v int, note varchar(20) not null)")
        run(found, "insert into shaped values " + ", ".join(f"(x'{key}', {n}, '1')" for n, key in enumerate(KEYS)))
        run(found, "create or replace user reader@'%' identified by 'reads-only'")
        run(found, f"grant select, show view on `{parts.path.lstrip('/')}`.* to reader@'%'")
        yield found
        run(found, "drop user reader@'%'")


@pytest.fixture(scope="module")
def reader_url(mariadb_url: str) -> str:
    parts = urlsplit(mariadb_url)
    return parts._replace(netloc=f"reader:reads-only@{parts.hostname}:{parts.port}").geturl()


@contextmanager
def set_globally(server: Server, name: str, value: str) -> Iterator[None]:
    """A setting of all sessions that begin now; `pymysql.MySQLError` where the server lets nobody set that."""
    ((before,),) = run(server, f"select @@global.{name}")
    run(server, f"set global {name} = {value}")
    try:
        yield
    finally:
        if before == "DEFAULT":  # no word in quotes means that
            run(server, f"set global {name} = default")
        else:
            with server.cursor() as cursor:
                cursor.execute(f"set global {name} = %s", (before,))


async def whole(source: SqlSource, table: str, **settings: Any) -> pa.Table:
    config = stream(table, **settings)
    dataset = await source.describe(config)
    batches: list[pa.RecordBatch] = []
    async with asyncio.timeout(30):
        for split in await source.plan(config, dataset):
            batches += await read_split(source, config, dataset, split)
    return pa.Table.from_batches(batches, dataset.schema)


async def arriving(url: str) -> tuple[pa.Table, pa.Table]:
    """The two tables as a source of its own reads them."""
    async with open_source(url) as source:
        every = await whole(source, "every", key=["id"])
        keyed = await whole(source, "shaped", page_size=1, max_parallel=1, where=WHERE, params=PARAMS)
    return every.combine_chunks(), keyed.combine_chunks()


def settings(server: Server) -> Iterator[tuple[str, str]]:
    """Each session variable that can be set, and values that differ from its own: each flag of a set alone, and all at
    once, the least number, every word. Of long lists (character sets, locales) some."""
    rows = run(
        server,
        "select variable_name, variable_type, global_value, numeric_min_value, enum_value_list"
        " from information_schema.system_variables where variable_scope = 'SESSION' and read_only = 'NO'"
        " and global_value is not null order by variable_name",
    )
    for name, kind, value, least, listed in rows:
        choices = (listed or "").split(",")
        match kind:
            case "BOOLEAN":
                yield name, "0" if value == "ON" else "1"
            case "ENUM" if listed:
                yield from ((name, f"'{choice}'") for choice in choices if choice != value)
            case "SET":
                single = choices if name == "SQL_MODE" else choices[:1]
                yield from ((name, f"'{choice}'") for choice in (*single, listed, ""))
            case "FLAGSET":
                yield name, "'" + ",".join(f"{flag}=off" for flag in choices if flag != "default") + "'"
            case "DOUBLE" | "INT" | "INT UNSIGNED" | "BIGINT" | "BIGINT UNSIGNED" if least != value:
                yield name, least
    yield from (("time_zone", f"'{zone}'") for zone in ("-05:00", "+13:30"))
    yield from (("character_set_client", f"'{name}'") for name in ("latin1", "utf8mb3"))
    yield from (("character_set_results", f"'{name}'") for name in ("latin1", "utf16", "binary"))
    yield from (("character_set_connection", f"'{name}'") for name in ("latin1", "utf32"))
    yield from (("character_set_server", f"'{name}'") for name in ("latin1", "ucs2"))
    yield from (("collation_connection", f"'{name}'") for name in ("utf8mb4_bin", "latin1_bin"))
    yield from (("lc_time_names", f"'{name}'") for name in ("de_DE", "ja_JP"))
    yield "lc_messages", "'de_DE'"
    yield "system_versioning_asof", "'2001-01-01'"
    yield "div_precision_increment", "30"
    yield "default_week_format", "3"
    yield "init_connect", "\"set sql_mode = 'ANSI,NO_BACKSLASH_ESCAPES', time_zone = '-05:00', timestamp = 1\""


def rounds(server: Server) -> Iterator[list[tuple[str, str]]]:
    """Every setting that the source sets alone, and the others, which it leaves, all at once: first each with the first
    of its values, then with the second, and so on."""
    others: dict[str, list[tuple[str, str]]] = {}
    for name, value in settings(server):
        if name.lower() in mysql_session.SETTINGS or name == "init_connect":
            yield [(name, value)]
        elif name not in REFUSING | ELSEWHERE:
            others.setdefault(name, []).append((name, value))
    for number in range(max(map(len, others.values()))):
        yield [values[number] for values in others.values() if number < len(values)]


async def test_no_setting_of_the_server_changes_what_arrives(server: Server, reader_url: str) -> None:
    every, keyed = await arriving(reader_url)
    assert keyed.column("k").to_pylist() == sorted(map(bytes.fromhex, KEYS))
    changed: set[str] = set()
    differing: list[tuple[object, str]] = []
    for at_once in rounds(server):
        with ExitStack() as stack:
            for name, value in at_once:
                with suppress(pymysql.MySQLError):  # some cannot be set while the server runs
                    stack.enter_context(set_globally(server, name, value))
                    changed.add(name.lower())
            try:
                found = await arriving(reader_url)
            except ProducerError as error:
                differing.append((at_once, str(error)))
                continue
        if not all(one.equals(other, check_metadata=True) for one, other in zip(found, (every, keyed), strict=True)):
            differing.append((at_once, "another table"))
    assert differing == []
    assert len(changed) > 130
    assert set(mysql_session.SETTINGS) - changed - OF_MYSQL == set()


async def test_a_new_connection_is_set_up_like_the_first(server: Server, reader_url: str) -> None:
    config = stream("shaped", page_size=1, max_parallel=1)
    with set_globally(server, "sql_mode", "'NO_BACKSLASH_ESCAPES'"):
        async with open_source(reader_url) as source:
            dataset = await source.describe(config)
            (split,) = await source.plan(config, dataset)
            reader = await source.reader(config, dataset, split)
            position: Position | None = None
            found: list[bytes] = []
            for _ in KEYS:
                page = await reader.fetch(position, 1)
                position, found = page.position, [*found, *page.batch.column("k").to_pylist()]
                for number, user in run(server, "select id, user from information_schema.processlist"):
                    if user == "reader":
                        with suppress(pymysql.MySQLError):  # it may have ended by itself
                            run(server, f"kill {number}")
                with suppress(SourceUnavailableError):
                    await reader.fetch(position, 1)  # on the connection that has ended
            await reader.close()
    assert found == sorted(map(bytes.fromhex, KEYS))


async def test_a_page_is_not_given_where_somebody_has_reset_the_session(server: Server, reader_url: str) -> None:
    """As a proxy does that gives one connection of its own to several clients in turn."""
    config = stream("shaped", page_size=2, max_parallel=1)
    async with open_source(reader_url) as source:
        dataset = await source.describe(config)
        (split,) = await source.plan(config, dataset)
        for change in ("sql_mode = 'ANSI'", "time_zone = '-05:00'", "sql_select_limit = 1", "max_sort_length = 100"):
            reader = await source.reader(config, dataset, split)
            first = await reader.fetch(None, 2)
            await reader._pages._session._connection.exec_driver_sql(f"SET SESSION {change}")  # type: ignore[attr-defined]
            with pytest.raises(SourceUnavailableError, match="settings were reset"):
                await reader.fetch(first.position, 2)
            assert (await reader.fetch(first.position, 2)).batch.column("k").to_pylist() == [b"\x10", b" "]
            await reader.close()
