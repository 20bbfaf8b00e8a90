"""Owns databases for tests of the SQL source: statements and rows into PostgreSQL, SQLite and MariaDB, one way."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

TABLES = ("postgres", "sqlite", "mariadb")


@dataclass(frozen=True)
class Databank:
    """A database: `run` executes a statement, `insert` puts rows into a table (a quoted name)."""

    url: str
    mark: str
    run: Callable[[str], None]
    insert: Callable[[str, Sequence[tuple[Any, ...]]], None]
    close: Callable[[], None]

    def quote(self, name: str) -> str:
        return f"{self.mark}{name}{self.mark}"


def databank(dialect: str, request: pytest.FixtureRequest, folder: Path | None = None) -> Databank:
    """The module's database of `dialect`; for SQLite a file in `folder`, or of the test's own."""
    match dialect:
        case "postgres":
            return postgres(request.getfixturevalue("postgres_dsn"))
        case "sqlite":
            return sqlite((folder or request.getfixturevalue("tmp_path")) / "test.db")
        case "mariadb":
            return mariadb(request.getfixturevalue("mariadb_url"))
    raise AssertionError(dialect)


def postgres(dsn: str) -> Databank:
    from adbc_driver_postgresql import dbapi

    connection = dbapi.connect(dsn, autocommit=True)

    def run(statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    def insert(table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        values = ", ".join("(" + ", ".join(_literal(value) for value in row) + ")" for row in rows)
        run(f"insert into {table} values {values}")

    return Databank(dsn, '"', run, insert, connection.close)


def sqlite(path: Path) -> Databank:
    connection = sqlite3.connect(path, isolation_level=None)

    def run(statement: str) -> None:
        connection.execute(statement)

    def insert(table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        marks = ", ".join("?" * len(rows[0]))
        stored = [tuple(v.isoformat(" ") if hasattr(v, "isoformat") else v for v in row) for row in rows]
        connection.execute("begin")  # one transaction: each waits for the disk
        connection.executemany(f"insert into {table} values ({marks})", stored)
        connection.execute("commit")

    return Databank(f"sqlite:////{str(path).lstrip('/')}", '"', run, insert, connection.close)


def mariadb(url: str) -> Databank:
    import pymysql

    parts = urlsplit(url)
    connection = pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.lstrip("/"),
        charset="utf8mb4",
        init_command="set time_zone = '+00:00'",
        autocommit=True,
    )

    def run(statement: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    def insert(table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        marks = ", ".join(["%s"] * len(rows[0]))
        with connection.cursor() as cursor:
            cursor.executemany(f"insert into {table} values ({marks})", rows)

    return Databank(url, "`", run, insert, connection.close)


def _literal(value: Any) -> str:
    if value is None or isinstance(value, int | float):
        return "null" if value is None else str(value)
    return "'" + str(value).replace("'", "''") + "'"
