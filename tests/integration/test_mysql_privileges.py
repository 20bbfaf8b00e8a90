"""MySQL and MariaDB: what a user who may see little can read, and the types that a table's checks tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from producer.errors import ConfigError, SourceUnavailableError
from producer.sources.sql import SqlSource
from tests.integration.sql_reading import open_source, read, stream
from tests.sql import Databank, mariadb


@pytest.fixture(scope="module")
def bank(mariadb_url: str) -> Iterator[Databank]:
    """Tables and a view; the user ``little`` may read the view, and two columns of one table."""
    found = mariadb(mariadb_url)
    name = urlsplit(mariadb_url).path.lstrip("/")
    found.run("create table full (id int primary key, pub int, secret int, doc json)")
    found.insert("full", [(n, n * 10, 7, json.dumps({"n": n})) for n in range(1, 8)])
    found.run("create table other (id int primary key)")
    found.run("create view seen as select id, pub from full where id > 1")
    found.run("create or replace user little@'%' identified by 'sees-little'")
    found.run(f"grant select on `{name}`.seen to little@'%'")
    found.run(f"grant select (id, pub) on `{name}`.full to little@'%'")
    yield found
    found.run("drop user little@'%'")
    found.close()


@pytest.fixture
def little_url(bank: Databank) -> str:
    parts = urlsplit(bank.url)
    return parts._replace(netloc=f"little:sees-little@{parts.hostname}:{parts.port}").geturl()


async def test_a_view_whose_definition_the_user_may_not_see_is_read(little_url: str) -> None:
    for settings in ({}, {"where": "pub > :least", "params": {"least": 10}}, {"traversal": "OFFSET"}):
        found = await read(little_url, stream("seen", key=["id"], page_size=2, max_parallel=3, **settings))
        assert sorted(found.column("id").to_pylist()) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("mode", ["snapshot", "snapshot_then_tail", "tail"])
@pytest.mark.parametrize("settings", [{}, {"where": "pub <> :odd", "params": {"odd": 20}}], ids=["all", "where"])
async def test_the_columns_that_a_user_may_read_are_enough(
    little_url: str, mode: str, settings: dict[str, Any]
) -> None:
    config = stream("full", columns=["id", "pub"], key=["id"], page_size=2, max_parallel=3, mode=mode, **settings)
    async with open_source(little_url) as source:
        dataset = await source.describe(config)
        found: list[int] = []
        for split in await source.plan(config, dataset):
            found += await ids(source, config, dataset, split)
        keys = await source.keys(config)
        assert (await keys.fetch(None, None, 100)).batch.num_rows == (6 if settings else 7)
        await keys.aclose()
    assert sorted(found) == [n for n in range(1, 8) if not settings or n != 2]


async def ids(source: SqlSource, config: Any, dataset: Any, split: Any) -> list[int]:
    """Those of a split, until there is nothing more for now."""
    reader = await source.reader(config, dataset, split)
    position, found = None, list[int]()
    try:
        while True:
            page = await reader.fetch(position, config.page_size)
            found += page.batch.column("id").to_pylist()
            if page.last or not page.batch.num_rows:
                return found
            position = page.position
    finally:
        await reader.close()


async def test_a_column_that_the_user_may_not_read_is_named(little_url: str) -> None:
    with pytest.raises(ConfigError, match="there is no column 'secret'") as caught:
        await read(little_url, stream("full", columns=["id", "secret"], key=["id"]))
    assert "id, pub" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["doc", "Doc", "DOC", "größe", "Straße", "we`ird", "with blank", "json_valid(`x`)", "ДАТА"]
)
async def test_a_json_column_is_json_whatever_its_name(bank: Databank, name: str) -> None:
    quoted = "`" + name.replace("`", "``") + "`"
    bank.run("drop table if exists named")
    bank.run(f"create table named (id int primary key, {quoted} json, `{name[:1]}x` longtext)")
    bank.insert("named", [(1, "[1]", "[1]")])
    table = await read(bank.url, stream("named"))
    kinds = [(field.metadata or {}).get(b"avro.logical") for field in table.schema]
    assert kinds == [None, b"json", None]


async def test_a_column_with_other_checks_is_json_where_one_of_them_says_so(bank: Databank) -> None:
    bank.run("drop table if exists named")
    bank.run(
        "create table named (id int primary key, A longtext check (json_valid(A)), B text check (B <> 'json_valid'))"
    )
    table = await read(bank.url, stream("named"))
    kinds = [(field.metadata or {}).get(b"avro.logical") for field in table.schema]
    assert kinds == [None, b"json", None]


async def test_a_server_that_answers_is_not_said_to_be_down(bank: Databank, little_url: str) -> None:
    bank.run("alter user little@'%' with max_queries_per_hour 3")
    try:
        with pytest.raises(SourceUnavailableError, match="max_queries_per_hour") as caught:
            for _ in range(4):
                await read(little_url, stream("seen", key=["id"]))
        assert caught.value.hint == ""
    finally:
        bank.run("alter user little@'%' with max_queries_per_hour 0")
    parts = urlsplit(bank.url)
    with pytest.raises(SourceUnavailableError) as caught:
        await read(parts._replace(netloc="p:p@127.0.0.1:1").geturl(), stream("seen"))
    assert "is the server up" in caught.value.hint


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+asyncmy"])
@pytest.mark.parametrize(
    "password",
    ["S3C@RET", "S3C/RET", "S3C?RET", "S3C#RET", "S3C:RET", "12/34@RET", "S3C%RET", "@RET", "[RET", "S3C@RET/x"],
)
async def test_no_part_of_a_password_that_is_not_percent_encoded_is_told(scheme: str, password: str) -> None:
    with pytest.raises((ConfigError, SourceUnavailableError)) as caught:
        await read(f"{scheme}://u:{password}@127.0.0.1:1/shop", stream("t"))
    told = str(caught.value) + repr(caught.value.__cause__)
    assert "RET" not in told
    assert "S3C" not in told
    assert "12" not in told.replace("127.0.0.1", "")
