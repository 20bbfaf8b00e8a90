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
import yaml

from producer.config import KafkaConfig, load_config
from producer.kafka import client_options
from producer.metrics import Metrics
from producer.proof import published_schemas
from producer.service import Service
from tests.integration.kafka_rows import read_topic
from tests.sql import TABLES, Databank, databank

ROWS = 400


@pytest.fixture(params=TABLES)
def bank(request: pytest.FixtureRequest) -> Iterator[Databank]:
    found = databank(request.param, request)
    yield found
    found.close()


async def compacted(bootstrap: str, state_topic: str, topic: str) -> dict[int, str]:
    """Names by id, of the keys whose last record is no tombstone."""
    schemas = await published_schemas(client_options(KafkaConfig(bootstrap_servers=bootstrap)), state_topic)
    (key_schema,) = [schema for schema in schemas.values() if schema["name"].endswith("_key")]
    (value_schema,) = [schema for schema in schemas.values() if not schema["name"].endswith("_key")]
    left: dict[int, str] = {}
    for record in await read_topic(bootstrap, topic):
        key: Any = fastavro.schemaless_reader(io.BytesIO(record.key), key_schema, None)
        if record.value is None:
            left.pop(key["id"], None)
        else:
            value: Any = fastavro.schemaless_reader(io.BytesIO(record.value), value_schema, None)
            left[key["id"]] = value["name"]
    return left


async def test_rows_deleted_at_random_while_a_tail_runs_are_gone_from_the_compacted_topic(
    bank: Databank, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    chance = random.Random(8)
    bank.run("drop table if exists t")
    bank.run("create table t (id bigint primary key, name varchar(20))")
    bank.insert("t", [(n, f"n{n}") for n in range(1, ROWS // 2 + 1)])
    table = {n: f"n{n}" for n in range(1, ROWS // 2 + 1)}
    path = tmp_path / "producer.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "app": unique,
                "kafka": {"bootstrap_servers": kafka_bootstrap},
                "checkpoints": {"type": "file", "path": str(tmp_path / "checkpoints")},
                "sources": {"db": {"type": "sql", "url": bank.url}},
                "streams": [
                    {
                        "source": "db", "table": "t", "topic": unique, "partitions": 3, "page_size": 50,
                        "mode": "snapshot_then_tail", "poll_interval_s": 0.02, "deletes": {"every_s": 0.2},
                    }
                ],
            }
        )
    )  # fmt: skip
    config = load_config(path)
    service, stop = Service(config, metrics=Metrics(), run_id="test"), asyncio.Event()
    task = asyncio.create_task(service.run(once=False, stop=stop))
    try:
        for n in range(ROWS // 2 + 1, ROWS + 1):
            bank.insert("t", [(n, f"n{n}")])
            table[n] = f"n{n}"
            if chance.random() < 0.5:
                gone = chance.choice(list(table))
                bank.run(f"delete from t where id = {gone}")
                del table[gone]
            await asyncio.sleep(0.005)
        async with asyncio.timeout(30):
            while await compacted(kafka_bootstrap, config.state_topic, unique) != table:
                assert not task.done()
                await asyncio.sleep(0.2)
    finally:
        stop.set()
        (summary,) = await asyncio.wait_for(task, 30)
    assert summary.error is None
    assert len(table) < ROWS
