"""Owns the claim that a failure of a stream tells no value that its transforms mask or drop."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from producer.concealment import tellable
from producer.config import StreamConfig, load_config
from producer.errors import EncodeError, PermanentError, RepeatedKeyError
from producer.metrics import Metrics
from producer.service import Service

MASKED = {"mask": ["email"], "salt": "pepper and salt"}
BAD_VALUE = "insert into people values ('eve@x', 'private')"
TWICE = "insert into people values ('eve@x', 1), ('EVE@x', 2)"


@pytest.mark.parametrize(
    ("rows", "settings", "kept"),
    [
        (BAD_VALUE, {"transforms": [MASKED]}, []),
        (BAD_VALUE, {"transforms": [{"rename": {"email": "who"}}, {**MASKED, "mask": ["who"]}]}, []),
        (BAD_VALUE, {"transforms": [{"drop": ["age"]}]}, []),
        (BAD_VALUE, {"transforms": [{"drop": ["note"]}]}, ["eve@x"]),
        (TWICE, {"transforms": [MASKED]}, []),
        (TWICE, {"transforms": [{"drop": ["note"]}]}, ["eve@x"]),
    ],
)
async def test_what_is_masked_or_dropped_shows_in_no_failure(
    kafka_bootstrap: str, unique: str, tmp_path: Path, rows: str, settings: dict[str, Any], kept: list[str]
) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table people (email text collate nocase not null, age int, note text default '')")
        connection.execute(rows.replace("people", "people (email, age)"))
    connection.close()
    stream = {"source": "shop", "table": "people", "topic": unique, "key": ["email"], "page_size": 1, **settings}
    document = {
        "app": unique,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "checkpoints": {"type": "file", "path": str(tmp_path / "state")},
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
        "streams": [stream],
    }
    (tmp_path / "producer.yaml").write_text(yaml.safe_dump(document))
    config = load_config(tmp_path / "producer.yaml", {})
    service = Service(config, metrics=Metrics(), run_id="r")
    with structlog.testing.capture_logs() as logged:
        (summary,) = await service.run(once=True, stop=asyncio.Event())
    (status,) = service.streams.values()
    assert summary.state == "failed"
    told = json.dumps([logged, repr(summary), status.error, status.hint], default=repr).lower()
    assert [value for value in ("eve@x", "private") if value in told and value not in kept] == []
    assert all(value in told for value in kept)
    assert "'people'" in told


def test_where_the_columns_are_not_known_yet_no_value_is_told() -> None:
    def told(error: PermanentError, *transforms: dict[str, Any]) -> str:
        config = StreamConfig.model_validate(
            {"name": "people", "source": "shop", "table": "people", "transforms": transforms}
        )
        return tellable(error, config, None).message

    quoting = EncodeError("column 'age', row with key eve@x: holds 'private'", key="eve@x", field="age")
    assert told(quoting) == quoting.message
    assert told(quoting, MASKED) == "stream 'people': column 'age' holds a value that is not of its type"
    assert (
        told(RepeatedKeyError("the key (email) = (eve@x)"), MASKED) == "stream 'people': several rows have the same key"
    )
    encoders = EncodeError("the record with key email=9f2e: row 1: field age is null", stream="people", field="age")
    assert told(encoders, MASKED) == encoders.message
    assert told(PermanentError("the table is gone"), MASKED) == "the table is gone"
