"""Owns the example of one more database for the SQL source: it runs, and holds to the source's contract."""

from __future__ import annotations

import asyncio
from pathlib import Path

import duckdb
import pytest

import examples.duckdb_source as example
from producer.errors import ConfigError
from tests.integration.sql_reading import open_source, read, stream


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(example.main(1000))
    lines = capsys.readouterr().out.splitlines()
    assert sum(int(line.split(": ")[1].split()[0]) for line in lines) == 1000
    assert {line.split(":")[0] for line in lines} == {"split 0", "split 1", "split 2"}


async def test_a_composite_key_is_paged_and_a_missing_table_named(tmp_path: Path) -> None:
    url = f"duckdb:////{str(tmp_path / 'x.db').lstrip('/')}"
    with duckdb.connect(str(tmp_path / "x.db")) as connection:
        connection.execute('CREATE TABLE "t one" (a VARCHAR, b INT, v DECIMAL(5, 1), PRIMARY KEY (a, b))')
        connection.execute('INSERT INTO "t one" SELECT chr((97 + i % 3)::int), i, i / 10 FROM range(100) r(i)')
    for traversal in ("ID_RANGE", "OFFSET"):
        table = await read(url, stream('"t one"', page_size=7, traversal=traversal, where="b > :b", params={"b": 4}))
        rows = list(zip(table.column("a").to_pylist(), table.column("b").to_pylist(), strict=True))
        assert rows == sorted((chr(97 + i % 3), i) for i in range(5, 100))
    async with open_source(url) as source:
        with pytest.raises(ConfigError, match="did you mean 't one'"):
            await source.describe(stream('"t ome"'))
