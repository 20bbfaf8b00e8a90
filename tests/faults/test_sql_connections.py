"""Owns what goes wrong between the SQL source and its databases: each failure is told by its kind, and mended."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from producer.errors import (
    AuthenticationError,
    ConfigError,
    ProducerError,
    SourceUnavailableError,
    TransientError,
)
from producer.model import KeyPosition, Split
from producer.protocols import PageReader
from producer.sources.sql import SqlSource
from tests.integration.sql_reading import open_source, stream
from tests.services.proxy import Proxy
from tests.sql import Databank, databank

SERVERS = ("postgres", "mariadb")


@pytest.fixture(params=SERVERS)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    """A server's database with a table of ten rows."""
    found = databank(request.param, request)
    found.run("create table numbers (id int primary key)")
    found.insert("numbers", [(n,) for n in range(10)])
    yield found
    found.run("drop table numbers")
    found.close()


def through(proxy: Proxy, url: str) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@{proxy.address}").geturl()


@contextlib.asynccontextmanager
async def reader_of(source: SqlSource, table: str) -> AsyncIterator[PageReader]:
    config = stream(table)
    dataset = await source.describe(config)
    reader = await source.reader(config, dataset, Split("0"))
    try:
        yield reader
    finally:
        await reader.close()


async def test_a_connection_that_broke_is_told_and_the_same_reader_goes_on(
    bank: Databank, make_proxy: Callable[[int], Proxy]
) -> None:
    proxy = make_proxy(urlsplit(bank.url).port or 0)
    async with open_source(through(proxy, bank.url)) as source, reader_of(source, "numbers") as reader:
        first = await reader.fetch(None, 4)
        proxy.reset()
        with pytest.raises(SourceUnavailableError):
            await reader.fetch(first.position, 4)
        second = await reader.fetch(first.position, 4)
    assert second.batch.column("id").to_pylist() == [4, 5, 6, 7]


async def test_a_line_gone_silent_ends_by_a_deadline(bank: Databank, make_proxy: Callable[[int], Proxy]) -> None:
    proxy = make_proxy(urlsplit(bank.url).port or 0)
    url = through(proxy, bank.url)
    async with (
        open_source(url, statement_timeout_s=1.0, connect_timeout_s=1.0) as source,
        reader_of(source, "numbers") as reader,
    ):
        first = await reader.fetch(None, 4)
        proxy.silent = True
        with pytest.raises(TransientError):
            await asyncio.wait_for(reader.fetch(first.position, 4), 30)
        proxy.reset()
        proxy.silent = False
        second = await reader.fetch(first.position, 4)
    assert second.batch.column("id").to_pylist() == [4, 5, 6, 7]


async def test_a_query_over_its_time_is_transient_and_the_reader_goes_on(bank: Databank) -> None:
    slow = (
        "select id, case when id = 5 then pg_sleep(30)::text end as v from numbers"
        if bank.mark == '"'
        else "select id, case when id = 5 then sleep(30) end as v from numbers"
    )
    bank.run(f"create view slow as {slow}")
    try:
        async with open_source(bank.url, statement_timeout_s=0.5, connect_timeout_s=5.0) as source:
            config = stream("slow", key=["id"])
            reader = await source.reader(config, await source.describe(config), Split("0"))
            with pytest.raises(TransientError, match="statement_timeout_s"):
                await reader.fetch(None, 10)
            page = await reader.fetch(KeyPosition((5,)), 10)
            await reader.close()
    finally:
        bank.run("drop view slow")
    assert page.batch.column("id").to_pylist() == [6, 7, 8, 9]


async def test_a_cancelled_query_is_stopped_on_the_server_too(
    postgres_dsn: str, request: pytest.FixtureRequest
) -> None:
    bank = databank("postgres", request)
    bank.run("create view sleepy as select 1 as id, pg_sleep(60)::text as v")
    try:
        async with open_source(postgres_dsn) as source:
            config = stream("sleepy", key=["id"])
            reader = await source.reader(config, await source.describe(config), Split("0"))
            task = asyncio.ensure_future(reader.fetch(None, 10))
            async with open_source(postgres_dsn) as watcher, reader_of_sleepers(watcher) as sleepers:
                while not (await sleepers.fetch(None, 10)).rows:
                    await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                while (await sleepers.fetch(None, 10)).rows:
                    await asyncio.sleep(0.02)
            await reader.close()
    finally:
        bank.run("drop view sleepy")
        bank.close()


@contextlib.asynccontextmanager
async def reader_of_sleepers(source: SqlSource) -> AsyncIterator[PageReader]:
    """Reads the sessions that sleep in a query of this file."""
    where = "query like 'COPY%sleepy%' and state = 'active' and wait_event = 'PgSleep'"
    config = stream("pg_catalog.pg_stat_activity", key=["pid"], columns=["pid"], where=where)
    reader = await source.reader(config, await source.describe(config), Split("0"))
    try:
        yield reader
    finally:
        await reader.close()


async def refusal(url: str, table: str = "numbers") -> ProducerError:
    with pytest.raises(ProducerError) as caught:
        async with open_source(url, connect_timeout_s=3.0) as source:
            await source.describe(stream(table))
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    return caught.value


async def test_an_unknown_user_or_wrong_password_is_an_authentication_error(bank: Databank) -> None:
    parts = urlsplit(bank.url)
    wrong = parts._replace(netloc=f"nobody:hunter2@{parts.hostname}:{parts.port}").geturl()
    assert type(await refusal(wrong)) is AuthenticationError


async def test_a_user_without_rights_is_an_authentication_error(bank: Databank) -> None:
    parts = urlsplit(bank.url)
    if bank.mark == '"':
        bank.run("create role poor login password 'hunter2'")
    else:
        bank.run("create user poor identified by 'hunter2'; ".rstrip("; "))
        bank.run(f"grant create on {parts.path[1:]}.* to poor")
    try:
        poor = parts._replace(netloc=f"poor:hunter2@{parts.hostname}:{parts.port}").geturl()
        with pytest.raises((AuthenticationError, ConfigError)) as caught:
            async with open_source(poor) as source, reader_of(source, "numbers") as reader:
                await reader.fetch(None, 1)
        assert "hunter2" not in str(caught.value)
    finally:
        bank.run("drop role poor" if bank.mark == '"' else "drop user poor")


async def test_a_database_that_is_not_there_is_a_configuration_error(bank: Databank) -> None:
    assert type(await refusal(urlsplit(bank.url)._replace(path="/nowhere").geturl())) is ConfigError


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
async def test_a_server_that_is_not_there_is_unavailable(scheme: str, unused_tcp_port: int) -> None:
    error = await refusal(f"{scheme}://someone:hunter2@127.0.0.1:{unused_tcp_port}/db")
    assert type(error) is SourceUnavailableError
    assert str(unused_tcp_port) in str(error)


@pytest.mark.parametrize("url", ["", "nothing", "oracle://x/y", "sqlite://", "sqlite:///:memory:"])
def test_a_url_of_no_known_database_is_a_configuration_error(url: str) -> None:
    from pydantic import SecretStr

    from producer.sources.sql import SqlConfig

    with pytest.raises(ConfigError):
        SqlSource(SqlConfig(url=SecretStr(url)))


async def test_sqlite_files_that_are_not_there_or_no_database_are_configuration_errors(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    for name, reason in (("none.db", "no such file"), ("text.db", "not a database"), (".", "no such file")):
        error = await refusal(f"sqlite:////{str(tmp_path / name).lstrip('/')}")
        assert type(error) is ConfigError
        assert reason in str(error)


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin exclusive")
print("locked", flush=True)
sys.stdin.read()
"""


async def test_a_locked_sqlite_file_is_unavailable_until_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("create table numbers (id integer primary key); insert into numbers values (1), (2);")
    async with (
        open_source(f"sqlite:////{str(path).lstrip('/')}", statement_timeout_s=0.5) as source,
        reader_of(source, "numbers") as reader,
    ):
        command = [sys.executable, "-c", LOCK, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            with pytest.raises(TransientError):
                await reader.fetch(None, 5)
            writer.communicate()
        assert (await reader.fetch(None, 5)).rows == 2
