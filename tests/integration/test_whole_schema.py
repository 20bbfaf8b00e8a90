"""Owns the claim that whole schemas as people have them arrive, each of their tables, and that `verify` agrees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.kafka_rows import read_topic
from tests.sql import Databank, mariadb, postgres

SCHEMAS = Path(__file__).resolve().parents[1] / "sql" / "schemas"

#: What is streamed, with the rows it has; a view has no key of its own.
TABLES: dict[str, dict[str, int]] = {
    "postgres": {
        "language": 6, "country": 149, "city": 600, "address": 603, "category": 16, "actor": 200, "film": 1000,
        "film_actor": 5406, "film_category": 1000, "staff": 5, "store": 2, "customer": 599, "inventory": 4581,
        "rental": 14810, "payment": 14596, '"Price List"': 300, "member": 40, "nothing_yet": 0, "customer_list": 599,
        "takings": 18,
    },
    "mariadb": {
        "country": 109, "film": 1000, "film_actor": 5406, "address": 603, "`Price List`": 300, "payment": 14596,
        "session": 500, "nothing_yet": 0, "takings": 18,
    },
}  # fmt: skip
KEYS = {"customer_list": ["id"], "takings": ["month"]}


def producer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "producer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(params=["postgres", "mariadb"])
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[str, Databank]]:
    dialect: str = request.param
    if dialect == "postgres":
        bank = postgres(request.getfixturevalue("postgres_dsn"))
    else:
        bank = mariadb(request.getfixturevalue("mariadb_url"))
    text = (SCHEMAS / f"rental.{dialect}.sql").read_text("utf-8").partition("\n")[2]
    for statement in text.split(";\n"):
        if statement.strip():
            bank.run(statement)
    yield dialect, bank
    bank.close()


async def test_each_table_of_a_schema_arrives_and_verify_agrees(
    filled: tuple[str, Databank], tmp_path: Path, kafka_bootstrap: str, registry_url: str, unique: str
) -> None:
    dialect, bank = filled
    tables = TABLES[dialect]
    streams: list[dict[str, Any]] = [
        {"source": "shop", "table": table, "page_size": 700, "max_parallel": 2} for table in tables
    ]
    for stream in streams:
        if stream["table"] in KEYS:
            stream["key"] = KEYS[stream["table"]]
    path = tmp_path / "rental.yaml"
    document = {
        "app": unique,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "schema_registry": {"url": registry_url},
        "checkpoints": {"type": "file", "path": str(tmp_path / "state")},
        "http": {"port": 0},
        "sources": {"shop": {"type": "sql", "url": bank.url}},
        "streams": [{**stream, "topic": f"{unique}.{number}"} for number, stream in enumerate(streams)],
    }
    path.write_text(yaml.safe_dump(document, allow_unicode=True), "utf-8")

    ran = producer("run", str(path), "--once", "--json")
    assert ran.returncode == 0, ran.stderr
    summaries = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [s["acked"] for s in summaries] == list(tables.values())

    verified = producer("verify", str(path), "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert [json.loads(line)["source_rows"] for line in verified.stdout.splitlines()] == list(tables.values())

    for number, (table, rows) in enumerate(tables.items()):
        found = await read_topic(kafka_bootstrap, f"{unique}.{number}")
        assert len({record.key for record in found}) == len(found) == rows, table
