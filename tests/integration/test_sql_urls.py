"""Owns the claims about what a source's url may say, against the servers that it names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import pytest
from adbc_driver_postgresql import dbapi

from tests.integration.sql_reading import open_source, read, stream
from tests.sql import Databank, databank, postgres


@pytest.fixture
def bank(postgres_dsn: str) -> Iterator[Databank]:
    made = postgres(postgres_dsn)
    made.run('create schema "a shop"')
    made.run('create table "a shop".plain (id int primary key)')
    made.run('insert into "a shop".plain values (1)')
    yield made
    made.run('drop schema "a shop" cascade')
    made.close()


async def test_options_with_spaces_reach_postgresql_as_they_are_written(bank: Databank) -> None:
    options = quote('-c search_path="a\\ shop" -c application_name=a+b', safe="+")
    url = f"{bank.url}?options={options}&application_name=mine"
    assert (await read(url, stream("plain"))).column("id").to_pylist() == [1]


async def test_a_socket_may_be_named_in_the_query_of_a_url_without_a_host(bank: Databank) -> None:
    with dbapi.connect(bank.url) as connection, connection.cursor() as cursor:
        cursor.execute("select current_setting('unix_socket_directories')")
        (folder,) = cursor.fetchone() or ("",)
    parts = urlsplit(bank.url)
    url = f"postgresql+asyncpg://{parts.path}?host={quote(folder)}&port={parts.port}&user={parts.username}"
    assert (await read(url, stream('"a shop".plain'))).column("id").to_pylist() == [1]
    async with open_source(url) as source:
        heard = asyncio.Event()
        listening = asyncio.create_task(source.listen(stream("plain", notify="rows"), heard.set))
        async with asyncio.timeout(10):
            await heard.wait()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "MySQL+nothing", "mariadb+asyncmy"])
async def test_mysql_is_read_by_the_driver_that_is_shipped_whichever_is_named(
    request: pytest.FixtureRequest, scheme: str
) -> None:
    bank = databank("mariadb", request)
    try:
        bank.run("create table plain (id int primary key)")
        bank.insert("plain", [(1,)])
        url = scheme + bank.url[bank.url.index("://") :]
        assert (await read(url, stream("plain"))).column("id").to_pylist() == [1]
    finally:
        bank.run("drop table plain")
        bank.close()
