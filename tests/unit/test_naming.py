"""Owns the claims about the names of datasets: those of OpenLineage's naming specification, and nothing secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from producer.config import StreamConfig, source_model
from producer.naming import source_dataset, topic_dataset

SECRET = "hunter2"


def source(kind: str, **settings: object) -> object:
    return source_model(kind).model_validate({"type": kind, **settings})


def named(url: str, table: str, known: str | None = None) -> tuple[str, str]:
    return source_dataset(source("sql", url=url), StreamConfig(source="shop", table=table), known)


@pytest.mark.parametrize(
    ("url", "table", "expected"),
    [
        ("postgresql://reader:hunter2@db:6543/shop", "sales.events", ("postgres://db:6543", "shop.sales.events")),
        ("postgres://db/shop?sslmode=require", "events", ("postgres://db:5432", "shop.public.events")),
        ("postgresql://u:hunter2@db/shop", '"Odd".Events', ("postgres://db:5432", "shop.Odd.events")),
        ("postgresql://u:hunter2@[::1]:5432/shop", "a.b", ("postgres://[::1]:5432", "shop.a.b")),
        ("postgresql:///shop?host=db1,db2&port=6543", "a.b", ("postgres://db1:6543", "shop.a.b")),
        ("postgresql://u:hunter2@db1:6543,db2:5432/shop", "a.b", ("postgres://db1:6543", "shop.a.b")),
        ("postgresql://u:hunter2@db1,db2:5432/shop", "a.b", ("postgres://db1:5432", "shop.a.b")),
        ("postgresql:///shop?host=/run/postgresql", "a.b", ("postgres://localhost:5432", "shop.a.b")),
        ("mysql://reader:hunter2@db/shop", "events", ("mysql://db:3306", "shop.events")),
        ("mysql+asyncmy://db:3307/shop", "sales.Events", ("mysql://db:3307", "sales.Events")),
        ("mariadb://u:hunter2@db/shop", "events", ("mariadb://db:3306", "shop.events")),
        ("sqlite:////data/shop.db", "events", ("sqlite", "/data/shop.db.events")),
        ("sqlite:////data/shop.db", "main.events", ("sqlite", "/data/shop.db.events")),
        ("other://u:hunter2@db/shop", "events", ("other://db", "shop.events")),
    ],
)
def test_a_table_is_named_by_where_its_database_is(url: str, table: str, expected: tuple[str, str]) -> None:
    assert named(url, table) == expected


def test_what_the_database_calls_the_table_counts_once_it_is_known() -> None:
    assert named("postgresql://db/shop", "events", "sales.events") == ("postgres://db:5432", "shop.sales.events")
    assert named("mysql://db/shop", "EVENTS", "shop.events") == ("mysql://db:3306", "shop.events")


def test_a_file_is_named_with_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("sqlite:///shop.db", "events") == ("sqlite", f"{tmp_path}/shop.db.events")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://reader:hunter2@db/shop?password=hunter2&options=-c%20x%3Dhunter2",
        "postgresql://reader:12/hunter2@db/shop",
        "postgresql://reader:12#hunter2@db/shop",
        "postgresql://reader:12?hunter2@db/shop",
        "mysql://reader:12/hunter2@db/shop",
        "sqlite:////data/shop.db?key=hunter2",
    ],
)
def test_no_part_of_a_password_is_in_a_name(url: str) -> None:
    assert SECRET not in str(named(url, "events"))


def test_a_table_that_is_no_name_does_not_end_the_telling() -> None:
    assert named("postgresql://db/shop", "a..b") == ("postgres://db:5432", "shop.public.a..b")


@pytest.mark.parametrize(
    ("servers", "namespace"),
    [
        ("kafka1:9093, kafka2:9093", "kafka://kafka1:9093"),
        ("kafka1", "kafka://kafka1:9092"),
        ("[::1]:9093", "kafka://[::1]:9093"),
        ("[::1]", "kafka://[::1]:9092"),
    ],
)
def test_a_topic_is_named_by_the_first_server(servers: str, namespace: str) -> None:
    assert topic_dataset(servers, "shop.events") == (namespace, "shop.events")


def test_other_sources_are_named_by_their_kind_and_where_they_are() -> None:
    table, chat = StreamConfig(source="s", table="terminal"), StreamConfig(source="s", chat="@news")
    operator = source("iptvportal", username="api", password=SECRET, domain="acme")
    host = source("iptvportal", username="api", password=SECRET, url=f"https://api:{SECRET}@portal.example/x")
    chats = source("telegram", api_id=1, api_hash="h" * 32, session="chats")
    assert source_dataset(operator, table, None) == ("iptvportal://acme", "terminal")
    assert source_dataset(host, table, None) == ("iptvportal://portal.example", "terminal")
    assert source_dataset(chats, chat, None) == ("telegram", "@news")
