"""Owns the tables that are measured: their columns, and how each database makes the same rows from numbers."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pymysql

_BEGIN = datetime.fromisoformat("2020-01-01")


@dataclass(frozen=True, slots=True)
class Column:
    """Its name, type and value of the row number ``i`` in PostgreSQL, MariaDB and SQLite."""

    name: str
    types: tuple[str, str, str]
    values: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` rows with ids 1 to `rows`, which are the key."""

    name: str
    rows: int
    columns: Sequence[Column]

    def columns_sql(self, dialect: int) -> str:
        listed = ", ".join(f"{c.name} {c.types[dialect]}" for c in self.columns)
        return f"id bigint PRIMARY KEY, {listed}" if self.columns else "id bigint PRIMARY KEY"

    def values_sql(self, dialect: int) -> str:
        return ", ".join(["i", *(c.values[dialect] for c in self.columns)])


def _integer(name: str, value: str) -> Column:
    return Column(name, ("integer", "int", "integer"), (value, value, value))


def _text(name: str, value: str) -> Column:
    return Column(name, ("text", "text", "text"), (value, value, value))


def _real(name: str, value: str) -> Column:
    return Column(name, ("double precision", "double", "double"), (value, value, value))


def _md5(what: str = "i") -> str:
    return f"md5(cast({what} as char(20)))"


def _long_text(name: str, length: int) -> Column:
    """Hexadecimal digits that do not repeat: as hard to compress as they look."""
    digests = f"array(SELECT md5((i * 1000 + n)::text) FROM generate_series(1, {length // 32 + 1}) AS n)"
    return Column(name, ("text", "", ""), (f"left(array_to_string({digests}, ''), {length})", "", ""))


def events(rows: int, name: str = "events") -> Table:
    """Nine columns of about 200 bytes, a fifth of the tags null."""
    cents = "i * 7919 % 100000000"
    tags = f"CASE WHEN i % 5 = 0 THEN NULL ELSE substr({_md5('i + 1')}, 1, 12) END"
    moment = ("timestamptz '2020-01-01 UTC' + i * interval '1.245026 s'", "moment")
    columns = (
        _integer("account_id", "i * 131003 % 1000000"),
        _text("kind", f"substr({_md5()}, 1, 8)"),
        Column(
            "amount", ("numeric(12,2)", "decimal(12,2)", "DECIMAL(12,2)"), (f"({cents}) / 100.0",) * 2 + ("money(i)",)
        ),
        _real("ratio", "i * 104729 % 1000003 / 1000003e0"),
        Column("active", ("boolean", "boolean", "BOOLEAN"), ("i % 2 = 0",) * 3),
        Column(
            "created_at",
            ("timestamptz", "datetime(6)", "TIMESTAMP"),
            (moment[0], "timestampadd(microsecond, i * 1245026, '2020-01-01')", "moment(i)"),
        ),
        _text("payload", f"substr(concat({_md5()}, {_md5()}, {_md5()}), 1, 80)"),
        _text("tags", tags),
    )
    return Table(name, rows, columns)


def wide(count: int, rows: int) -> Table:
    """`count` columns: the id, then integers, doubles and texts of 8 bytes in turn."""
    made = []
    for n in range(1, count):
        match n % 3:
            case 0:
                made.append(_real(f"c{n}", f"(i * {n} % 1000003) / 1000003e0"))
            case 1:
                made.append(_integer(f"c{n}", f"i * {n} % 1000000"))
            case _:
                made.append(_text(f"c{n}", f"substr({_md5(f'i + {n}')}, 1, 8)"))
    return Table(f"columns_{count}", rows, tuple(made))


def heavy(row_bytes: int, rows: int) -> Table:
    """Two columns, a row being about `row_bytes` of Avro."""
    return Table(f"bytes_{row_bytes}", rows, (_long_text("body", row_bytes - 8),))


async def fill_postgres(dsn: str, table: Table, few: int = 10) -> None:
    """Makes the table, and one of its first `few` rows beside it (``<name>_few``), unless they are there."""
    connection = await asyncpg.connect(dsn)
    try:
        if await connection.fetchval("SELECT to_regclass($1)", table.name) is not None:
            return
        for name, rows in ((table.name, table.rows), (f"{table.name}_few", few)):
            await connection.execute(f"CREATE TABLE {name} ({table.columns_sql(0)})")
            numbers = f"generate_series(1::bigint, {rows}) AS i"
            await connection.execute(f"INSERT INTO {name} SELECT {table.values_sql(0)} FROM {numbers}")
            await connection.execute(f"VACUUM ANALYZE {name}")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def drop_postgres(dsn: str, table: Table) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"DROP TABLE IF EXISTS {table.name}, {table.name}_few")
    finally:
        await connection.close()


def fill_mariadb(port: int, database: str, table: Table) -> None:
    connection = pymysql.connect(host="127.0.0.1", port=port, user="p", password="p", autocommit=True)
    with connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS {database}")
        cursor.execute(f"USE {database}")
        cursor.execute(f"CREATE TABLE {table.name} ({table.columns_sql(1)})")
        numbers = f"(SELECT seq AS i FROM seq_1_to_{table.rows}) AS n"
        cursor.execute(f"INSERT INTO {table.name} SELECT {table.values_sql(1)} FROM {numbers}")
        cursor.execute(f"ANALYZE TABLE {table.name}")


def fill_sqlite(path: Path, table: Table) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.create_function("md5", 1, lambda x: hashlib.md5(str(x).encode()).hexdigest(), deterministic=True)
        connection.create_function("concat", -1, lambda *texts: "".join(texts), deterministic=True)
        connection.create_function("money", 1, _money, deterministic=True)
        connection.create_function("moment", 1, _moment, deterministic=True)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE {table.name} ({table.columns_sql(2).replace('bigint', 'INTEGER')})")
        numbers = f"WITH n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {table.rows})"
        connection.execute(f"{numbers} INSERT INTO {table.name} SELECT {table.values_sql(2)} FROM n")
        connection.commit()
    finally:
        connection.close()


def _money(i: int) -> str:
    units, cents = divmod(i * 7919 % 100_000_000, 100)
    return f"{units}.{cents:02d}"


def _moment(i: int) -> str:
    return str(_BEGIN + timedelta(microseconds=i * 1_245_026))
