"""Any source of the project is dumped: tables of SQL databases with every kind of column, and chats."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from producer.dump import DumpConfig, DumpService
from producer.errors import CheckpointConflictError
from producer.sources.sql import SqlConfig, SqlSource
from producer.sources.telegram import TelegramConfig, TelegramSource
from tests.dump import read_back
from tests.mtproto import Chat, World
from tests.mtproto.running import serving

FORMATS = ("jsonl", "csv", "parquet", "json", "avro")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_a_sql_table_with_a_key_of_its_own_is_dumped_and_continued(
    tmp_path: Path, form: Any, strategy: Any
) -> None:
    path = tmp_path / "shop.db"
    database = sqlite3.connect(path)
    with database:
        database.execute(
            'CREATE TABLE "Odd Names" (code TEXT PRIMARY KEY, price REAL, raw BLOB, note TEXT) WITHOUT ROWID'
        )
        rows = [(f"c{i:03}", i / 4, bytes([i]), None if i % 3 else 'x,"y"\nz') for i in range(100)]
        database.executemany('INSERT INTO "Odd Names" VALUES (?, ?, ?, ?)', rows)
    source = SqlSource(SqlConfig(url=SecretStr(f"sqlite:///{path}")))
    config = DumpConfig(
        table='"Odd Names"', output_dir=tmp_path / "dumps", format=form, strategy=strategy, chunk_size=30
    )
    try:
        await DumpService(source).dump(config)
        with database:
            database.execute("INSERT INTO \"Odd Names\" VALUES ('c999', 1.0, NULL, NULL)")
        stats = await DumpService(source).dump(config)
    finally:
        await source.close()
        database.close()
    assert stats.files[0].name.startswith("Odd Names")
    assert sorted(row["code"] for row in read_back(list(stats.files))) == [*(row[0] for row in rows), "c999"]


@pytest.mark.parametrize("strategy", ["offset", "id_range"])
async def test_a_chat_is_dumped_and_continued(tmp_path: Path, strategy: Any) -> None:
    chat = Chat(1001, ids=list(range(1, 200)), kind="channel", username="demo")
    with serving(World([chat]), []) as server:
        source = TelegramSource(
            TelegramConfig(
                api_id=1, api_hash=SecretStr("h"), session=SecretStr(server.session()), min_delay_s=0, adaptive=False
            )
        )
        try:
            config = DumpConfig(table="@demo", chat="@demo", output_dir=tmp_path, strategy=strategy)
            stats = await DumpService(source).dump(config)
            assert len(read_back(list(stats.files))) == 199
            chat.append(40)
            chat.delete([*range(10, 20), 199])
            stats = await DumpService(source).dump(config)
        finally:
            await source.close()
    assert [row["id"] for row in read_back(list(stats.files))] == list(range(1, 240))


async def test_two_tables_whose_files_would_have_one_name_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    database = sqlite3.connect(path)
    with database:
        for name in ("a/b", "a_b"):
            database.execute(f'CREATE TABLE "{name}" (id INTEGER PRIMARY KEY)')
    database.close()
    source = SqlSource(SqlConfig(url=SecretStr(f"sqlite:///{path}")))
    try:
        await DumpService(source).dump(DumpConfig(table='"a/b"', output_dir=tmp_path))
        with pytest.raises(CheckpointConflictError, match="is the state of table"):
            await DumpService(source).dump(DumpConfig(table="a_b", output_dir=tmp_path))
    finally:
        await source.close()
