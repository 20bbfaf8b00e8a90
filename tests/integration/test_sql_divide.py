"""Owns the claims about dividing a split of which less is left than was thought."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from producer.model import Checkpoint, KeyPosition, Split
from tests.integration.sql_reading import open_source, stream


async def test_a_split_without_rows_to_come_is_not_divided_into_the_next_ones_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table plain (id integer primary key, v integer)")
        connection.executemany(
            "insert into plain values (?, ?)", [(n, 2 if 100 < n <= 1000 else 1) for n in range(1, 1101)]
        )
    connection.close()
    config = stream("plain", page_size=5, max_parallel=4, where="v = 1")
    async with open_source(f"sqlite:///{path}") as source:
        dataset = await source.describe(config)
        split = Split("0", None, KeyPosition((1000,)))
        assert await source.divide(config, dataset, Checkpoint(split, KeyPosition((100,)), 100)) is None
        middle = await source.divide(config, dataset, Checkpoint(split, KeyPosition((50,)), 50))
        assert isinstance(middle, KeyPosition)
        assert abs(int(str(middle.values[0])) - 75) <= 3
