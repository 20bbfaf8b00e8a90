"""Rows with NULL in their key, from command to topic: plan, validate, run, the dead letters, verify and dump."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from producer.cli import main
from producer.config import load_config
from producer.dump import DumpConfig, DumpService
from producer.errors import NullKeyError
from producer.metrics import Metrics
from producer.model import Page, Position
from producer.service import Service
from producer.sources.sql import SqlConfig, SqlReader, SqlSource
from producer.verify import Counts, verify
from tests.integration.kafka_rows import read_topic

TABLE = "CREATE TABLE x (id int, code text UNIQUE, v int)"


def fill(path: Path, rows: list[tuple[Any, ...]], statement: str = "SELECT 1") -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
        connection.executemany("INSERT INTO x VALUES (?, ?, ?)", rows)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    out = capsys.readouterr()
    return code, out.out + out.err


async def test_a_row_without_a_key_is_told_everywhere(
    tmp_path: Path,
    kafka_bootstrap: str,
    unique: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database, path = tmp_path / "shop.db", tmp_path / "producer.yaml"
    stream = {"source": "shop", "table": "x", "topic": unique, "partitions": 1, "key": ["code"]}
    document: dict[str, Any] = {
        "app": unique,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "checkpoints": {"type": "file", "path": str(tmp_path / "state")},
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{database}"}},
        "streams": [stream | {"mode": "snapshot_then_tail", "on_bad_record": "dead_letter"}],
    }

    def write(**more: Any) -> str:
        document["streams"][0] |= more
        path.write_text(yaml.safe_dump(document))
        return str(path)

    async def run() -> None:
        service = Service(load_config(path), metrics=Metrics(), run_id="r")
        (summary,) = await service.run(once=True, stop=asyncio.Event())
        assert (summary.error, summary.state) == (None, "complete")

    fill(database, [(1, "a", 1), (2, "b", 2)], TABLE)
    write()
    await run()
    fill(database, [(3, None, 3), (4, None, 4)])
    for _ in range(2):
        await run()
    letters = await read_topic(kafka_bootstrap, f"{unique}.dlq")
    assert len({letter.key for letter in letters}) == len(letters) == 2
    code, listed = await asyncio.to_thread(told, capsys, "dead-letters", "list", str(path), "x", "--json")
    (shown,) = [line for line in listed.splitlines() if line.startswith("[")]  # log lines may stand around it
    found = sorted(json.loads(shown), key=lambda one: str(one["row"]))
    assert [(one["reason"], one["field"], one["key"], json.loads(one["row"])) for one in found] == [
        ("NullKeyError", "code", None, {"id": n, "code": None, "v": n}) for n in (3, 4)
    ]
    expected = "2 rows have NULL in column 'code' of the key or order, and cannot be sent: code=NULL, id=3, v=3; "
    for command in ("plan", "validate"):
        code, said = await asyncio.to_thread(told, capsys, command, str(path))
        assert code == 0
        assert expected in said
        code, said = await asyncio.to_thread(told, capsys, command, write(on_bad_record="fail"))
        assert code == 2
        assert expected in said
        write(on_bad_record="dead_letter")

    config = load_config(path)
    assert (await verify(config, config.streams[0], Counts())).comparison.null_keys == {"code": 2}
    monkeypatch.setattr(SqlSource, "scan", lambda *_: None)  # as of a database that cannot be scanned
    assert (await verify(config, config.streams[0], Counts())).comparison.null_keys == {"code": 2}


async def test_a_dump_fails_at_a_row_without_a_key_that_came_while_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "shop.db"
    fill(database, [(1, "a", 1), (2, "b", 2)], TABLE.replace("UNIQUE", "PRIMARY KEY"))
    fetch = SqlReader.fetch
    coming = [(3, None, 3)]

    async def insert_after(reader: SqlReader, position: Position | None, limit: int) -> Page:
        page = await fetch(reader, position, limit)
        fill(database, coming)
        coming.clear()
        return page

    monkeypatch.setattr(SqlReader, "fetch", insert_after)
    source = SqlSource(SqlConfig(url=SecretStr(f"sqlite:///{database}")))
    config = DumpConfig(table="x", output_dir=tmp_path / "out")
    try:
        with pytest.raises(NullKeyError, match="code=NULL, id=3"):
            await DumpService(source).dump(config)
    finally:
        await source.close()
