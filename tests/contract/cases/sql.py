"""Owns the contract cases of the SQL source: every dialect, both traversals, every kind of key."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from producer.config import StreamConfig
from producer.sources.sql import SqlConfig, SqlSource
from tests.contract.cases import Build, SourceCase
from tests.sql import TABLES, databank

# Keys in ascending order, as Arrow gives them back.
INTEGERS = [(n,) for n in (-(2**63), -5, -1, 0, 1, 2, 3, *range(100, 400, 7), 2**31, 2**63 - 1)]
PAIRS = [(a, b) for a in ("", "a", "b") for b in (-1, 0, *range(10, 20))]
UUIDS = sorted((str(uuid.UUID(int=n * 0x0123456789ABCDEF0123456789ABC % 2**128)),) for n in range(1, 40))
TEXTS = [
    (text,)
    for text in ("", "A", "Ab", "B", "a", "a b", "a'b", "a\\b", "b", "z", *(f"za{n:02}" for n in range(20)), "ü")
]
MOMENTS = [(dt.datetime(1969, 12, 31, 23, 59, 59, 999990) + dt.timedelta(microseconds=n),) for n in range(30)]

KEYS: dict[str, tuple[dict[str, Sequence[str]], list[tuple[Any, ...]]]] = {
    "integer": ({"id": ("bigint", "integer", "bigint")}, INTEGERS),
    "composite": ({"a": ("text", "text", "varchar(20)"), "b": ("int", "integer", "int")}, PAIRS),
    "uuid": ({"u": ("uuid", "uuid", "char(36) collate utf8mb4_bin")}, UUIDS),
    "text": ({"t": ('text collate "C"', "text", "varchar(20) collate utf8mb4_bin")}, TEXTS),
    "timestamp": ({"at": ("timestamp", "timestamp", "datetime(6)")}, MOMENTS),
}


@contextmanager
def case(dialect: str, key: str, traversal: str, request: pytest.FixtureRequest) -> Iterator[SourceCase]:
    """A table with one kind of key, and a null and a text beside it, and an empty table like it."""
    columns, keys = KEYS[key]
    place = TABLES.index(dialect)
    bank = databank(dialect, request)
    key_sql = ", ".join(f"{bank.quote(name)} {types[place]} not null" for name, types in columns.items())
    primary = ", ".join(bank.quote(name) for name in columns)
    try:
        for table in ("Full one", "empty"):
            bank.run(f"create table {bank.quote(table)} ({key_sql}, v varchar(100), primary key ({primary}))")
        shuffled = random.Random(7).sample(keys, len(keys))
        bank.insert(bank.quote("Full one"), [(*row, f"v{i}" if i % 3 else None) for i, row in enumerate(shuffled)])
        yield SourceCase(
            open_source=partial(SqlSource, SqlConfig(url=SecretStr(bank.url))),
            stream=_stream(bank.quote("Full one"), traversal),
            keys=keys,
            empty=_stream("empty", traversal),
        )
    finally:
        for table in ("Full one", "empty"):
            bank.run(f"drop table if exists {bank.quote(table)}")
        bank.close()


def _stream(table: str, traversal: str) -> StreamConfig:
    return StreamConfig.model_validate(
        {"name": "s", "source": "db", "table": table, "traversal": traversal, "page_size": 5, "max_parallel": 3}
    )


CASES: dict[str, Build] = {
    f"{dialect}-{key}-{traversal}": partial(case, dialect, key, traversal)
    for dialect in TABLES
    for key in KEYS
    for traversal in ("ID_RANGE", "OFFSET")
    if traversal == "ID_RANGE" or key in ("integer", "composite")
}
