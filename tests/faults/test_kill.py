"""Owns the claim that a run killed at any moment loses nothing, repeats little, and goes on at once."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from producer.unit import WINDOW_PAGES
from tests.audit import TopicAudit
from tests.faults.killing import kill_until_done, write_config
from tests.faults.workers import verified

ROWS = 300_000
FEWER_ROWS = 150_000  # still more than four kills let be read
KEY_SCHEMA = {"type": "record", "name": "k", "fields": [{"name": "id", "type": "long"}]}
REGIONS = ("north", "south", "west")
COMPOSITE_KEY_SCHEMA = {
    "type": "record",
    "name": "k",
    "fields": [{"name": "region", "type": "string"}, {"name": "id", "type": "long"}],
}


def sqlite_table(folder: Path) -> str:
    path = folder / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, amount DECIMAL(12,2))")
        rows = ((n * 3, f"kind {n % 7}", f"{n}.25") for n in range(1, ROWS + 1))
        connection.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
    return f"sqlite:///{path}"


def postgres_table(dsn: str) -> str:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE events AS SELECT g * 3::bigint AS id, 'kind ' || g % 7 AS kind, (g + 0.25)::numeric(12,2) "
            f"AS amount FROM generate_series(1, {ROWS}) g"
        )
        cursor.execute("ALTER TABLE events ADD PRIMARY KEY (id)")
        cursor.execute("ANALYZE events")
    return dsn


def composite_keys() -> list[tuple[str, int]]:
    return sorted((REGIONS[n % len(REGIONS)], n) for n in range(1, FEWER_ROWS + 1))


def composite_table(dsn: str) -> str:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        region = f"(ARRAY[{', '.join(map(repr, REGIONS))}])[g % {len(REGIONS)} + 1]"
        cursor.execute(
            f"CREATE TABLE regional AS SELECT {region} AS region, g::bigint AS id, (g + 0.25)::numeric(12,2) AS amount "
            f"FROM generate_series(1, {FEWER_ROWS}) g"
        )
        cursor.execute("ALTER TABLE regional ADD PRIMARY KEY (region, id)")
        cursor.execute("ANALYZE regional")
    return dsn


def mariadb_table(url: str) -> str:
    import pymysql

    parts = urlsplit(url)
    with (
        contextlib.closing(
            pymysql.connect(
                host=parts.hostname,
                port=parts.port or 3306,
                user=parts.username,
                password=parts.password or "",
                database=parts.path.lstrip("/"),
                autocommit=True,
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "CREATE TABLE events (PRIMARY KEY (id)) SELECT CAST(seq * 3 AS SIGNED) AS id, CONCAT('kind ', seq % 7) AS "
            f"kind, CAST(seq + 0.25 AS DECIMAL(12,2)) AS amount FROM seq_1_to_{FEWER_ROWS}"
        )
        cursor.execute("ANALYZE TABLE events")
    return url


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sqlite_table(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(scope="module")
def postgresql(postgres_dsn: str) -> str:
    return postgres_table(postgres_dsn)


@pytest.fixture(scope="module")
def composite(postgres_dsn: str) -> str:
    return composite_table(postgres_dsn)


@pytest.fixture(scope="module")
def mariadb(mariadb_url: str) -> str:
    return mariadb_table(mariadb_url)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("database", "guarantee", "traversal"),
    [
        ("postgresql", "file", "ID_RANGE"),
        ("postgresql", "kafka", "ID_RANGE"),
        ("postgresql", "exactly_once", "ID_RANGE"),
        ("composite", "file", "ID_RANGE"),
        ("mariadb", "file", "ID_RANGE"),
        ("sqlite", "file", "OFFSET"),
        ("sqlite", "exactly_once", "ID_RANGE"),
    ],
)
def test_kills_at_random_moments_lose_nothing_and_repeat_at_most_a_window(
    guarantee: str,
    traversal: str,
    database: str,
    kafka_bootstrap: str,
    unique: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    exactly_once = guarantee == "exactly_once"
    table = "regional" if database == "composite" else "events"
    rows = FEWER_ROWS if database in ("composite", "mariadb") else ROWS
    splits, page_size = (3, 2000) if traversal == "ID_RANGE" else (1, 5000)
    stream: dict[str, Any] = {
        "source": "shop",
        "table": table,
        "topic": unique,
        "partitions": 4,
        "traversal": traversal,
        "page_size": page_size,
        "max_parallel": splits,
        "max_rows_per_s": 25_000,  # so that the run is long enough to be killed in its midst, on any machine
    }
    config = write_config(
        tmp_path,
        {
            "app": unique,
            "kafka": {"bootstrap_servers": kafka_bootstrap},
            "checkpoints": {"type": "file", "path": "state"} if guarantee == "file" else {"type": "kafka"},
            "delivery": "exactly_once" if exactly_once else "at_least_once",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": request.getfixturevalue(database)}},
            "streams": [stream],
        },
    )
    keys: list[tuple[Any, ...]] = [(n * 3,) for n in range(1, rows + 1)]
    key_schema = KEY_SCHEMA
    if database == "composite":
        keys, key_schema = list(composite_keys()), COMPOSITE_KEY_SCHEMA
    isolation = "read_committed" if exactly_once else "read_uncommitted"
    audit = TopicAudit(kafka_bootstrap, unique, key_schema, isolation=isolation)
    window = 0 if exactly_once else splits * WINDOW_PAGES * page_size
    try:
        killed = kill_until_done(config, table, keys, audit, kills=4, window=window, seed=len(traversal))
    finally:
        audit.close()
    assert killed.kills == 4
    assert killed.seconds_to_first_record  # the kills struck runs that had sent something
    assert verified(config, table)["source_rows"] == rows
