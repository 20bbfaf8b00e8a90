"""Owns the claim that the example configurations and converted ones work: their tables go from real databases to a real
broker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymysql
import pytest
import yaml
from adbc_driver_postgresql import dbapi

ROOT = Path(__file__).resolve().parents[2]
ROWS = 40


def _run(dsn: str, *statements: str) -> None:
    with dbapi.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture(scope="module")
def shop(postgres_dsn: str) -> str:
    _run(
        postgres_dsn,
        "CREATE TABLE customers (id bigint PRIMARY KEY, name text, email text, created_at timestamptz)",
        f"INSERT INTO customers SELECT i, 'n' || i, 'e', now() FROM generate_series(1, {ROWS}) i",
        "CREATE TABLE events (id bigint PRIMARY KEY, kind text)",
        f"INSERT INTO events SELECT i, 'k' FROM generate_series(1, {ROWS}) i",
    )
    return postgres_dsn


@pytest.fixture(scope="module")
def crm(postgres_dsn: str) -> Iterator[str]:
    name = postgres_dsn.rpartition("/")[2] + "_crm"
    dsn = f"{postgres_dsn.rpartition('/')[0]}/{name}"
    _run(postgres_dsn, f'CREATE DATABASE "{name}"')
    _run(
        dsn,
        "CREATE TABLE customers (id bigint PRIMARY KEY, cust_name text, internal_note text, email text, phone text, "
        "balance text, active int, created_at timestamp)",
        "INSERT INTO customers SELECT i, 'n' || i, 'secret', 'e', '1', i || '.5', i % 2, now() "
        f"FROM generate_series(1, {ROWS}) i",
    )
    yield dsn
    _run(postgres_dsn, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def sales(mariadb_url: str) -> str:
    url = urlsplit(mariadb_url)
    with (
        contextlib.closing(
            pymysql.connect(
                host=url.hostname,
                port=url.port or 3306,
                user=url.username,
                password=url.password or "",
                database=url.path[1:],
                autocommit=True,
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE TABLE orders (id bigint PRIMARY KEY, amount decimal(12,2))")
        cursor.execute(
            "CREATE TABLE products (id bigint PRIMARY KEY, name text, updated_at timestamp(6) NOT NULL, "
            "KEY changed (updated_at, id))"
        )
        cursor.executemany("INSERT INTO orders VALUES (%s, 1.5)", [(i,) for i in range(1, ROWS + 1)])
        cursor.executemany(
            "INSERT INTO products VALUES (%s, 'p', now(6) - INTERVAL 1 HOUR)", [(i,) for i in range(1, ROWS + 1)]
        )
    return mariadb_url


@pytest.mark.parametrize(
    "name", ["quickstart", "postgres", "transforms", "exactly_once", "workers", "standby", "mariadb"]
)
def test_an_example_streams_every_row_of_its_tables(
    name: str,
    shop: str,
    crm: str,
    sales: str,
    kafka_bootstrap: str,
    registry_url: str,
    redis_url: str,
    unique: str,
    tmp_path: Path,
) -> None:
    document: dict[str, Any] = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    document |= {"app": unique, "http": {"port": 0}}  # nothing else of it is changed but where its topics are
    for stream in document["streams"]:
        stream["topic"] = f"{unique}.{stream['table']}"
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "producer", "run", "--once", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={
            **os.environ,
            "KAFKA_BOOTSTRAP": kafka_bootstrap,
            "SCHEMA_REGISTRY_URL": registry_url,
            "SHOP_URL": shop,
            "CRM_URL": crm,
            "SALES_URL": sales,
            "STATE_URL": shop,
            "REDIS_URL": redis_url,
            "MASK_SALT": "a salt of some length",
        },
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["acked"], line["state"]) for line in told] == [(ROWS, "complete")] * len(document["streams"])


@pytest.mark.parametrize("mode", ["bulk", "incrementing", "timestamp+incrementing"])
def test_a_converted_connector_streams_every_row_of_its_tables(
    mode: str, shop: str, kafka_bootstrap: str, registry_url: str, unique: str, tmp_path: Path
) -> None:
    url = urlsplit(shop)
    connector = {
        "connector.class": "io.confluent.connect.jdbc.JdbcSourceConnector",
        "connection.url": f"jdbc:postgresql://{url.hostname}:{url.port}{url.path}",
        "connection.user": url.username,
        "connection.password": url.password or "",
        "table.whitelist": "public.customers" if "timestamp" in mode else "public.customers,events",
        "mode": mode,
        "incrementing.column.name": "id",
        "timestamp.column.name": "created_at",
        "timestamp.delay.interval.ms": 0,
        "topic.prefix": f"{unique}.",
        "value.converter": "io.confluent.connect.avro.AvroConverter",
        "value.converter.schema.registry.url": registry_url,
    }
    source, path = tmp_path / "connector.json", tmp_path / "converted.yaml"
    source.write_text(json.dumps({"name": unique, "config": connector}), encoding="utf-8")
    environment = {**os.environ, "KAFKA_BOOTSTRAP": kafka_bootstrap, "DATABASE_PASSWORD": url.password or "none"}

    def producer(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "producer", *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    path.write_text(producer("import", "connect-config", str(source)) + "http: {port: 0}\n", encoding="utf-8")
    told = [json.loads(line) for line in producer("run", "--once", "--json", str(path)).splitlines()]
    assert [line["acked"] for line in told] == [ROWS] * len(str(connector["table.whitelist"]).split(","))
