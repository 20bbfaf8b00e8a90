"""Owns the claim that rows deleted while a stream follows their table become tombstones: what is left on the topic, the
last record of each key, is the table."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest

from producer.config import KafkaConfig
from producer.kafka import client_options
from producer.proof import published_schemas
from tests.faults.killing import start, write_config
from tests.integration.kafka_rows import read_topic
from tests.sql import TABLES, Databank, databank

ROWS = 400


@pytest.fixture(params=[*((dialect, "at_least_once") for dialect in TABLES), ("postgres", "exactly_once")])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Databank, str]]:
    dialect, delivery = request.param
    found = databank(dialect, request)
    yield found, delivery
    found.close()


async def compacted(bootstrap: str, state_topic: str, topic: str) -> dict[int, str]:
    """Names by id, of the keys whose last record is no tombstone."""
    schemas = await published_schemas(client_options(KafkaConfig(bootstrap_servers=bootstrap)), state_topic)
    left: dict[int, str] = {}
    if len(schemas) < 2:
        return left  # it has only just started
    (key_schema,) = [schema for schema in schemas.values() if schema["name"].endswith("_key")]
    (value_schema,) = [schema for schema in schemas.values() if not schema["name"].endswith("_key")]
    for record in await read_topic(bootstrap, topic):
        key: Any = fastavro.schemaless_reader(io.BytesIO(record.key), key_schema, None)
        if record.value is None:
            left.pop(key["id"], None)
        else:
            value: Any = fastavro.schemaless_reader(io.BytesIO(record.value), value_schema, None)
            left[key["id"]] = value["name"]
    return left


@pytest.mark.timeout(120)
async def test_rows_deleted_at_random_while_a_tail_runs_are_gone_from_the_compacted_topic(
    case: tuple[Databank, str], kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    chance = random.Random(8)
    bank, delivery = case
    bank.run("drop table if exists t")
    bank.run("create table t (id bigint primary key, name varchar(20))")
    bank.insert("t", [(n, f"n{n}") for n in range(1, ROWS // 2 + 1)])
    table = {n: f"n{n}" for n in range(1, ROWS // 2 + 1)}
    path = write_config(
        tmp_path,
        {
            "app": unique,
            "kafka": {"bootstrap_servers": kafka_bootstrap},
            "checkpoints": {"type": "kafka"} if delivery == "exactly_once" else {"type": "file", "path": str(tmp_path)},
            "delivery": delivery,
            "http": {"port": 0},
            "sources": {"db": {"type": "sql", "url": bank.url}},
            "streams": [
                {
                    "source": "db", "table": "t", "topic": unique, "partitions": 3, "page_size": 50,
                    "mode": "snapshot_then_tail", "poll_interval_s": 0.02, "deletes": {"every_s": 0.2},
                }
            ],
        },
    )  # fmt: skip
    # In a process of its own: two copies of SQLite in one do not see each other's locks.
    process = start(path)
    try:
        for n in range(ROWS // 2 + 1, ROWS + 1):
            bank.insert("t", [(n, f"n{n}")])
            table[n] = f"n{n}"
            if chance.random() < 0.5:
                gone = chance.choice(list(table))
                bank.run(f"delete from t where id = {gone}")
                del table[gone]
            await asyncio.sleep(0.005)
        async with asyncio.timeout(60):
            while await compacted(kafka_bootstrap, f"{unique}.state", unique) != table:
                assert process.poll() is None
                await asyncio.sleep(0.2)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert len(table) < ROWS
