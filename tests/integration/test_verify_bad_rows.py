"""`producer verify` names rows whose values have no Avro form, and finds those that are in the dead letters."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaProducer

from producer.config import Config, load_config
from producer.metrics import Metrics
from producer.service import Service
from producer.verify import Counts, verify
from producer.verify.report import Verified
from tests.integration.kafka_rows import read_topic
from tests.sql import Databank, postgres


@dataclass
class Stream:
    """The table ``x``, whose rows with an even id are good."""

    url: str
    folder: Path
    bootstrap: str
    name: str

    def config(self, on_bad_record: str, **settings: Any) -> Config:
        document = {
            "app": self.name,
            "kafka": {"bootstrap_servers": self.bootstrap, "max_request_size": 100_000},
            "checkpoints": {"type": "file", "path": str(self.folder / "state")},
            "sources": {"s": {"type": "sql", "url": self.url}},
            "streams": [
                {"source": "s", "table": "x", "topic": self.name, "partitions": 1, "on_bad_record": on_bad_record}
                | settings
            ],
        }
        path = self.folder / "producer.yaml"
        path.write_text(yaml.safe_dump(document))
        return load_config(path)

    async def run(self, **settings: Any) -> None:
        config = self.config("dead_letter", **settings)
        (summary,) = await Service(config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
        assert summary.error is None, summary.error

    async def verify(self, on_bad_record: str = "dead_letter", **settings: Any) -> Verified:
        config = self.config(on_bad_record, **settings)
        return await verify(config, config.streams[0], Counts())

    async def take_letters_back(self, row_key: str) -> None:
        """Removes the letters of the rows whose key has this text."""
        topic = f"{self.name}.dlq"
        letters = [r for r in await read_topic(self.bootstrap, topic) if row_key.encode() in (r.key or b"")]
        assert letters
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap) as producer:
            for letter in letters:
                await producer.send_and_wait(topic, None, letter.key, partition=letter.partition)


@pytest.fixture
def bank(postgres_dsn: str) -> Iterator[Databank]:
    found = postgres(postgres_dsn)
    found.run("drop table if exists x")
    yield found
    found.run("drop table if exists x")
    found.close()


#: A column of each kind, and a value that has no form there; the field that is named, and the reason.
BAD: Sequence[tuple[str, str, str]] = [
    ("date", "'0044-03-15 BC'", "outside the years 1 to 9999"),
    ("date", "'infinity'", "infinite"),
    ("date", "'-infinity'", "infinite"),
    ("date", "'12345-01-01'", "outside the years 1 to 9999"),
    ("timestamp", "'0044-03-15 12:00 BC'", "outside the years 1 to 9999"),
    ("timestamp", "'infinity'", "infinite"),
    ("timestamptz", "'10000-01-01 00:00Z'", "outside the years 1 to 9999"),
    ("time", "'24:00:00'", "24:00:00"),
    ("numeric", "'NaN'", "does not fit"),
    ("numeric", "123456789.125", "does not fit"),
    ("numeric", "'Infinity'", "does not fit"),
    ("date[]", "'{0044-03-15 BC}'", "outside the years 1 to 9999"),
    ("date[]", "'{infinity}'", "infinite"),
    ("int[]", "'{{1,2},{3,4}}'", "several dimensions"),
]


async def test_each_row_without_a_form_is_named_or_found_in_the_dead_letters(
    bank: Databank, postgres_dsn: str, tmp_path: Path, kafka_bootstrap: str, unique: str, monkeypatch: Any
) -> None:
    columns = ", ".join(f"c{n} {kind}" for n, (kind, _, _) in enumerate(BAD))
    bank.run(f"create table x (id int primary key, {columns})")
    for n, (_, value, _) in enumerate(BAD):
        bank.run(f"insert into x (id, c{n}) values ({2 * n + 1}, {value})")
        bank.run(f"insert into x (id) values ({2 * n})")
    monkeypatch.setattr("producer.verify.source_side.NAMED", len(BAD))
    monkeypatch.setattr("producer.verify.run.NAMED", len(BAD))
    stream = Stream(postgres_dsn, tmp_path, kafka_bootstrap, unique)
    settings = {"decimal": "9,2"}
    await stream.run(**settings)
    agreed = await stream.verify(**settings)
    assert agreed.agrees
    assert (agreed.comparison.dead_lettered, agreed.comparison.topic_keys) == (len(BAD), len(BAD))
    assert agreed.to_json()["dead_lettered"] == len(BAD)

    failing = await stream.verify("fail", **settings)
    assert failing.comparison.missing == len(BAD)
    for n, (_, value, reason) in enumerate(BAD):
        (name,) = [name for name in failing.missing if name.startswith(f"id={2 * n + 1} ")]
        assert f"field c{n}" in name, value
        assert reason in name, value

    await stream.take_letters_back('{"id":1}')
    lost = await stream.verify(**settings)
    assert (lost.comparison.missing, lost.comparison.dead_lettered) == (1, len(BAD) - 1)
    assert [name.partition(" ")[0] for name in lost.missing] == ["id=1"]
    (whole,) = lost.ranges
    assert (whole.missing, whole.agrees) == (1, False)

    bank.run("insert into x (id, c0) values (1001, '0044-03-15 BC')")  # after the snapshot: no part of it
    assert (await stream.verify(**settings)).comparison.missing == 1


async def test_a_bad_row_after_the_checkpoint_is_pending_where_it_may_become_a_dead_letter(
    bank: Databank, postgres_dsn: str, tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    bank.run("create table x (id int primary key, d date)")
    bank.run("insert into x values (2, '2024-01-01')")
    stream = Stream(postgres_dsn, tmp_path, kafka_bootstrap, unique)
    await stream.run(mode="tail")
    bank.run("insert into x values (3, '0044-03-15 BC')")
    waiting = await stream.verify(mode="tail")
    assert waiting.agrees
    assert waiting.comparison.pending == 1
    assert (await stream.verify("fail", mode="tail")).missing == [
        "id=3 (field d is infinite or outside the years 1 to 9999)"
    ]


async def test_a_row_that_was_sent_and_has_become_bad_is_not_without_a_row(
    bank: Databank, postgres_dsn: str, tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    bank.run("create table x (id int primary key, d date)")
    bank.run("insert into x values (1, '2024-01-01'), (2, '2024-01-01')")
    stream = Stream(postgres_dsn, tmp_path, kafka_bootstrap, unique)
    await stream.run()
    bank.run("update x set d = '0044-03-15 BC' where id = 1")
    found = await stream.verify()
    assert (found.comparison.missing, found.comparison.unexpected) == (1, 0)


async def test_a_key_without_a_form_is_shown(
    bank: Databank, postgres_dsn: str, tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    bank.run("create table x (d date primary key, v int)")
    bank.run("insert into x values ('0044-03-15 BC', 1), ('2024-01-01', 2)")
    stream = Stream(postgres_dsn, tmp_path, kafka_bootstrap, unique)
    await stream.run()
    assert (await stream.verify()).comparison.dead_lettered == 1
    (name,) = (await stream.verify("fail")).missing
    assert name == "d=-0043-03-15 (field d is infinite or outside the years 1 to 9999)"


MASK = {"mask": ["c"], "salt": "0123456789abcdef"}
TRANSFORMED: Sequence[tuple[Mapping[str, Any], int, list[str]]] = [
    ({}, 2, ["id=1 (field c: ", "id=3 (field t: "]),
    ({"transforms": [{"cast": {"n": "int"}}]}, 3, ["id=1 (field c: ", "id=3 (field t: ", "id=5 (column 'n': "]),
    ({"transforms": [MASK]}, 2, ["id=1 (field c: a value that is not of its type)", "id=3 (field t: "]),
    ({"transforms": [{"drop": ["t"]}]}, 2, ["id=1 (field c: ", "id=3 (field t: a value that is not of its type)"]),
]


@pytest.mark.parametrize(("settings", "bad", "names"), TRANSFORMED)
async def test_no_value_that_is_masked_or_dropped_is_shown(
    settings: Mapping[str, Any], bad: int, names: list[str], tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("create table x (id integer primary key, c integer, t text, n bigint)")
        rows = [(1, "hunter2", "t", 1), (2, 2, "t", 2), (3, 3, b"hunter2", 3), (4, 4, "t", 4), (5, 5, "t", 2**40)]
        connection.executemany("insert into x values (?, ?, ?, ?)", rows)
    stream = Stream(f"sqlite:///{tmp_path / 'x.db'}", tmp_path, kafka_bootstrap, unique)
    await stream.run(**settings)
    agreed = await stream.verify(**settings)
    assert agreed.agrees, agreed.missing
    assert agreed.comparison.dead_lettered == bad
    failing = await stream.verify("fail", **settings)
    assert [name[: len(start)] for name, start in zip(failing.missing, names, strict=True)] == names
    if "transforms" in settings:
        concealed = [name for name in failing.missing if "not of its type" in name]
        assert "hunter2" not in json.dumps(concealed)


async def test_a_record_that_is_too_large_is_found_in_the_dead_letters(
    tmp_path: Path, kafka_bootstrap: str, unique: str
) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("create table x (k text primary key not null, c blob)")
        rows = [("a", b"x"), ('it"s \\ü', random.Random(7).randbytes(2_000_000)), ("z", b"x")]
        connection.executemany("insert into x values (?, ?)", rows)
    stream = Stream(f"sqlite:///{tmp_path / 'x.db'}", tmp_path, kafka_bootstrap, unique)
    await stream.run()
    agreed = await stream.verify()
    assert agreed.agrees
    assert agreed.comparison.dead_lettered == 1
    assert (await stream.verify("fail")).missing == ['k=it"s \\ü']
