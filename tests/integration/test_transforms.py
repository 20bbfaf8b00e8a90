"""Owns the claim that a stream's transforms arrive on its topic, in key, value and schema."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import sqlite3
from pathlib import Path
from typing import Any

import fastavro
import pytest
import yaml

from producer.config import load_config
from producer.metrics import Metrics
from producer.service import Service
from tests.integration.kafka_rows import read_topic

SALT = "pepper and salt"
ROWS = [(i, f"{i % 7}@x", f"{i}.25", "2024-07-01 12:00:00") for i in range(1, 501)]


@pytest.fixture
def config_file(tmp_path: Path, kafka_bootstrap: str, unique: str) -> Path:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT, amount TEXT, created TIMESTAMP)")
        connection.executemany("INSERT INTO people VALUES (?, ?, ?, ?)", ROWS)
    connection.close()
    path = tmp_path / "producer.yaml"
    stream = {
        "source": "shop",
        "table": "people",
        "topic": unique,
        "page_size": 100,
        "transforms": [
            {"rename": {"id": "person"}},
            {"mask": ["person", "email"], "salt": "${SALT}"},
            {"cast": {"amount": "decimal(12,2)"}},
            {"to_utc": ["created"], "zone": "Europe/Paris"},
            {"constant": {"region": "eu"}},
        ],
    }
    config = {
        "app": unique,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
        "streams": [stream],
    }
    path.write_text(yaml.safe_dump(config))
    return path


def hashed(text: str) -> str:
    return hmac.new(SALT.encode(), text.encode(), hashlib.sha256).hexdigest()


async def test_transformed_rows_arrive_with_the_schema_that_says_so(
    config_file: Path, kafka_bootstrap: str, unique: str
) -> None:
    config = load_config(config_file, {"SALT": SALT})
    (summary,) = await Service(config, metrics=Metrics(), run_id="r").run(once=True, stop=asyncio.Event())
    assert (summary.state, summary.acked) == ("complete", 500)
    schemas = {
        record.key.decode(): fastavro.parse_schema(yaml.safe_load(record.value))
        for record in await read_topic(kafka_bootstrap, f"{unique}.state")
        if record.key.startswith(b"schema/")
    }
    found: dict[Any, Any] = {}
    for record in await read_topic(kafka_bootstrap, unique):
        headers = dict(record.headers)
        schema = schemas[f"schema/{headers['avro.fingerprint'].hex()}"]
        value: Any = fastavro.schemaless_reader(io.BytesIO(record.value), schema, None)
        assert value["person"].encode() in record.key
        assert "position" not in headers
        assert str(value["amount"]).endswith(".25")
        assert (value["region"], value["created"].isoformat()) == ("eu", "2024-07-01T10:00:00+00:00")
        found[value["person"]] = value["email"]
    assert found == {hashed(str(row[0])): hashed(row[1]) for row in ROWS}
