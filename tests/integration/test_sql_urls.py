"""Owns the claims about what a source's url may say, against the servers that it names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from adbc_driver_postgresql import dbapi

from producer.checkpoints.postgres import PostgresCheckpointStore
from producer.config import Config
from producer.errors import SourceUnavailableError
from tests.integration.sql_reading import open_source, read, stream
from tests.sql import Databank, databank, postgres


@pytest.fixture
def bank(postgres_dsn: str) -> Iterator[Databank]:
    made = postgres(postgres_dsn)
    made.run('create schema "a shop"')
    made.run('create table "a shop".plain (id int primary key)')
    made.run('insert into "a shop".plain values (1)')
    made.run("create view sockets as select current_setting('unix_socket_directories') as place")
    yield made
    made.run('drop schema "a shop" cascade')
    made.run("drop view sockets")
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


FORMS = [
    "postgresql://{user}@127.0.0.1:1,{host}:{port}{path}?target_session_attrs=read-write",
    "postgres://{host}:1,{host}:{port},127.0.0.1:1{path}?user={user}&connect_timeout=5",
    "postgresql://{user}@%2Fnowhere,{host}:{port}{path}",
    "postgresql://{user}:s%40cret@{folder}:{port}{path}?sslmode=disable&gssencmode=prefer",
    "postgresql://{path}?host=127.0.0.1,{host}&port=1,{port}&user={user}",
    "postgresql://{user}@{path}?host={folder}&port={port}&application_name=a%20b&keepalives=1",
    "postgresql://?service=shop",
    "postgresql://{user}@{host}:{port}{path}?passfile={passwords}&sslmode=prefer&client_encoding=utf-8",
]


@pytest.mark.parametrize("form", FORMS)
async def test_one_url_is_for_the_source_for_notify_and_for_the_checkpoints(
    bank: Databank, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = urlsplit(bank.url)
    (folder,) = (await read(bank.url, stream("sockets", key=["place"]))).column("place").to_pylist()
    service = tmp_path / "services.conf"
    service.write_text(
        f"[shop]\nhost={parts.hostname}\nport={parts.port}\nuser={parts.username}\ndbname={parts.path[1:]}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    passwords = tmp_path / "pass words"
    passwords.write_text("*:*:*:*:secret\n")
    passwords.chmod(0o600)
    url = form.format(
        user=parts.username,
        host=parts.hostname,
        port=parts.port,
        path=parts.path,
        folder=quote(folder, safe=""),
        passwords=quote(str(passwords), safe=""),
    )
    async with open_source(url) as source:
        config = stream('"a shop".plain', notify="rows")
        assert (await source.describe(config)).key == ("id",)
        heard = asyncio.Event()
        listening = asyncio.create_task(source.listen(config, heard.set))
        async with asyncio.timeout(10):
            await heard.wait()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
    document = {"sources": {"db": {"type": "sql", "url": url}}, "checkpoints": {"type": "postgres", "url": url}}
    store = PostgresCheckpointStore(
        Config.model_validate(document | {"streams": [{"source": "db", "table": "t", "topic": "t"}]})
    )
    await store.start()
    assert await store.load("t") is None
    await store.close()


async def test_servers_that_are_none_of_those_asked_for_are_told(bank: Databank) -> None:
    parts = urlsplit(bank.url)
    url = f"postgresql://{parts.username}@127.0.0.1:1,{parts.hostname}:{parts.port}{parts.path}"
    with pytest.raises(SourceUnavailableError, match="session is not read-only") as caught:
        await read(f"{url}?target_session_attrs=read-only", stream("plain"))
    assert "Connection refused" in caught.value.message
    assert "target_session_attrs" in caught.value.hint


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
