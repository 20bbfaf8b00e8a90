"""The shared services are what the fixtures say they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pymysql
import pytest
import redis
from adbc_driver_postgresql import dbapi

from tests.services.databases import Postgres


def _one(dsn: str, query: str) -> object:
    with dbapi.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        assert row is not None
        return row[0]


def test_postgres_decodes_logically_and_the_database_is_empty(postgres_dsn: str) -> None:
    assert _one(postgres_dsn, "SELECT current_setting('wal_level')") == "logical"
    assert _one(postgres_dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0


def test_postgres_keeps_committed_rows_through_a_crash(own_postgres: Callable[..., Postgres]) -> None:
    server = own_postgres("max_connections=20")
    with dbapi.connect(server.dsn(), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t AS SELECT 7 AS n")
    server.kill()
    server.start()
    assert _one(server.dsn(), "SELECT n FROM t") == 7
    assert _one(server.dsn(), "SELECT current_setting('max_connections')") == "20"


def test_mariadb_gives_an_empty_database_with_all_rights(mariadb_url: str) -> None:
    url = urlsplit(mariadb_url)
    assert url.hostname is not None
    connection = pymysql.connect(
        host=url.hostname, port=url.port or 0, user=url.username, password=url.password or "", database=url.path[1:]
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW TABLES")
        assert cursor.fetchall() == ()
        cursor.execute("CREATE TABLE t (id bigint unsigned PRIMARY KEY)")


def test_redis_answers(redis_url: str, unique: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.set(unique, "1", nx=True, px=1000)


def test_the_registry_refuses_what_is_not_backward_compatible(registry_url: str, unique: str) -> None:
    def register(schema: str) -> httpx.Response:
        return httpx.post(f"{registry_url}/subjects/{unique}/versions", json={"schema": schema}, timeout=10)

    record = '{"type": "record", "name": "R", "fields": [%s]}'
    assert register(record % '{"name": "a", "type": "int"}').status_code == 200
    assert register(record % '{"name": "b", "type": "int"}').status_code == 409


def test_a_missing_server_ends_the_run_with_the_command_that_gets_it() -> None:
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{__file__}::test_redis_answers"]
    done = subprocess.run(
        run, env={**os.environ, "PATH": os.devnull}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "apt-get install -y --no-install-recommends redis-server" in done.stderr
