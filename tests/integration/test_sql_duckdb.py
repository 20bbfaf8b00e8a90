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


async def test_rows_with_null_in_the_key_are_found(tmp_path: Path) -> None:
    url = f"duckdb:////{str(tmp_path / 'x.db').lstrip('/')}"
    with duckdb.connect(str(tmp_path / "x.db")) as connection:
        connection.execute("CREATE TABLE x (id INT, code VARCHAR UNIQUE)")
        connection.execute("INSERT INTO x VALUES (1, 'a'), (2, NULL), (3, NULL), (4, 'b')")
        connection.execute("CREATE TABLE solid (id INT PRIMARY KEY)")
    config = stream("x", key=["code"], page_size=1, on_bad_record="dead_letter")
    assert (await read(url, config)).column("id").to_pylist() == [1, 4]
    with pytest.raises(ConfigError, match="2 rows have NULL in column 'code'"):
        await read(url, stream("x", key=["code"]))
    async with open_source(url) as source:
        await source.describe(config)
        assert await source.null_columns(config) == ["code"]
        assert (await source.null_keys(config)).named == ("code=NULL, id=2", "code=NULL, id=3")
        first = await source.null_rows(config, frozenset(), limit=1, most=10)
        rest = await source.null_rows(config, frozenset(digest for digest, _ in first.new), limit=9, most=10)
        assert [row.columns.to_pylist()[0]["id"] for _, row in (*first.new, *rest.new)] == [2, 3]
    async with open_source(url) as source:
        solid = stream("solid")
        await source.describe(solid)
        assert await source.null_columns(solid) == []
