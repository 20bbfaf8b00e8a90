"""Owns the claims about `producer verify`: it agrees where topic and source do, and names each kind of difference."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from aiokafka import AIOKafkaProducer

from producer.cli import main
from producer.config import Config, load_config
from producer.errors import CheckpointConflictError, ConfigError
from producer.metrics import Metrics
from producer.model import KeyPosition
from producer.parts import make_store
from producer.service import Service
from producer.verify import Counts, verify
from producer.verify.report import Verified
from tests.integration.kafka_rows import read_topic

ROWS = 300


class Shop:
    """A table of rows 2, 4, 6 ... and the topic that it is streamed to."""

    def __init__(self, folder: Path, bootstrap: str, app: str, registry: str | None, **stream: Any) -> None:
        self.database = folder / "shop.db"
        self.bootstrap = bootstrap
        self.topic = app
        self.sql("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT, price REAL NOT NULL, at TIMESTAMP)")
        with sqlite3.connect(self.database) as connection:
            rows = [
                (n * 2, None if n % 5 == 0 else f"n{n}", n / 4, "2024-02-29 12:00:00.5") for n in range(1, ROWS + 1)
            ]
            connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
        document = {
            "app": app,
            "kafka": {"bootstrap_servers": bootstrap},
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": f"sqlite:///{self.database}"}},
            "streams": [
                {"source": "shop", "table": "events", "topic": app, "partitions": 3, "page_size": 50, **stream}
            ],
            **({"schema_registry": {"url": registry}} if registry else {}),
        }
        self.path = folder / "shop.yaml"
        self.path.write_text(yaml.safe_dump(document))

    @property
    def config(self) -> Config:
        return load_config(self.path)

    def sql(self, *statements: str) -> None:
        with sqlite3.connect(self.database) as connection:
            for statement in statements:
                connection.execute(statement)

    async def run(self) -> None:
        (summary,) = await Service(self.config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
        assert summary.state == "complete", summary.error

    async def reset(self) -> None:
        store = make_store(self.config)
        await store.start()
        assert await store.reset("events")
        await store.close()

    async def verify(self) -> Verified:
        config = self.config
        return await verify(config, config.streams[0], Counts())

    async def send(self, records: Sequence[Any], *, value: bytes | None = None, keep_value: bool = True) -> None:
        """Writes records again, where they stand, or others with their keys."""
        async with AIOKafkaProducer(bootstrap_servers=self.bootstrap) as producer:
            for r in records:
                content = r.value if keep_value else value
                await producer.send_and_wait(self.topic, content, r.key, partition=r.partition, headers=list(r.headers))

    async def records(self) -> list[Any]:
        return list(await read_topic(self.bootstrap, self.topic))


@pytest.fixture(params=["registry", "no registry"])
def make_shop(request: pytest.FixtureRequest, tmp_path: Path, kafka_bootstrap: str, unique: str) -> Callable[..., Shop]:
    registry = request.getfixturevalue("registry_url") if request.param == "registry" else None

    def make(**stream: Any) -> Shop:
        return Shop(tmp_path, kafka_bootstrap, unique, registry, **stream)

    return make


@pytest.fixture
async def shop(make_shop: Callable[..., Shop]) -> Shop:
    """A table that has been streamed once."""
    made = make_shop()
    await made.run()
    return made


@pytest.mark.parametrize("traversal", ["ID_RANGE", "OFFSET"])
async def test_what_was_streamed_agrees(make_shop: Callable[..., Shop], traversal: str) -> None:
    shop = make_shop(traversal=traversal)
    await shop.run()
    found = await shop.verify()
    c = found.comparison
    assert c.agrees
    assert (c.source_rows, c.topic_records, c.topic_keys) == (ROWS, ROWS, ROWS)
    assert (c.duplicates, c.updates, c.deleted, c.pending) == (0, 0, 0, 0)


async def test_counts_and_checksums_are_told_of_each_range_of_the_source(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(max_parallel=3)
    await shop.run()
    whole = await shop.verify()
    assert len(whole.ranges) == 3
    assert sum(part.rows for part in whole.ranges) == ROWS
    assert all(part.agrees and part.source_checksum for part in whole.ranges)
    assert [part.after for part in whole.ranges] == [None, *(part.through for part in whole.ranges[:-1])]
    shop.sql("INSERT INTO events VALUES (3, 'late', 1, NULL)", "UPDATE events SET price = -1 WHERE id = 600")
    found = await shop.verify()
    assert [part.agrees for part in found.ranges] == [False, True, False]
    first, _, last = found.ranges
    assert isinstance(first.through, KeyPosition)
    assert (first.missing, first.differing, last.missing, last.differing) == (1, 0, 0, 1)
    assert first.rows == whole.ranges[0].rows + 1
    shown = found.to_json()["ranges"]
    assert shown[0]["after"] is None
    assert shown[0]["through"] == shown[1]["after"] == {"key": [first.through.values[0]]}
    assert shown[1]["source_checksum"] == shown[1]["topic_checksum"]


async def test_a_row_that_is_not_on_the_topic_is_named(shop: Shop) -> None:
    shop.sql("INSERT INTO events VALUES (101, 'late', 1, NULL)")  # as one that was committed after it was passed
    found = await shop.verify()
    assert not found.comparison.agrees
    assert found.missing == ["id=101"]
    assert (found.unexpected, found.differing) == ([], [])


async def test_a_record_without_a_row_is_named(shop: Shop) -> None:
    shop.sql("DELETE FROM events WHERE id IN (8, 10)")
    found = await shop.verify()
    assert not found.comparison.agrees
    assert found.unexpected == ["id=10", "id=8"]
    assert (found.missing, found.differing) == ([], [])


async def test_another_value_is_named_with_its_fields_and_not_shown(shop: Shop) -> None:
    shop.sql("UPDATE events SET name = 'hunter2', price = -1 WHERE id = 12")
    found = await shop.verify()
    assert not found.comparison.agrees
    assert found.differing == ["id=12 (name, price)"]
    assert "hunter2" not in json.dumps(found.to_json())


async def test_many_differences_are_counted_and_ten_are_named(shop: Shop) -> None:
    shop.sql("UPDATE events SET price = price + 1")
    found = await shop.verify()
    assert found.comparison.differing == ROWS
    assert len(found.differing) == 10


async def test_duplicates_are_counted_and_agree(shop: Shop) -> None:
    records = await shop.records()
    await shop.send(records[5:30])
    found = await shop.verify()
    assert found.comparison.agrees
    assert (found.comparison.duplicates, found.comparison.topic_records) == (25, ROWS + 25)


async def test_an_update_counts_and_what_was_before_it_does_not(shop: Shop) -> None:
    before = await shop.records()
    shop.sql("UPDATE events SET price = -5 WHERE id = 20")
    await shop.reset()
    await shop.run()
    found = await shop.verify()
    assert found.comparison.agrees
    assert (found.comparison.updates, found.comparison.duplicates) == (1, ROWS - 1)
    await shop.send(before)  # an old value after the new one
    assert (await shop.verify()).differing == ["id=20 (price)"]


async def test_a_tombstone_deletes(shop: Shop) -> None:
    records = await shop.records()
    await shop.send(records[:1], keep_value=False)
    lost = await shop.verify()
    assert not lost.comparison.agrees
    assert lost.comparison.deleted == 1
    (name,) = lost.missing
    shop.sql(f"DELETE FROM events WHERE {name}")
    agreed = await shop.verify()
    assert agreed.comparison.agrees
    assert agreed.comparison.deleted == 1


async def test_bytes_that_are_no_record_differ(shop: Shop) -> None:
    records = await shop.records()
    await shop.send(records[:1], value=b"\x00\xff\xff\xff\xf0nonsense", keep_value=False)
    found = await shop.verify()
    assert not found.comparison.agrees
    assert [name.partition(" ")[2] for name in found.differing] == ["(not readable)"]


async def test_rows_after_the_checkpoint_may_be_there_or_not(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(mode="snapshot_then_tail", max_parallel=1)
    await shop.run()
    shop.sql("INSERT INTO events VALUES (10001, 'new', 1, NULL), (10002, 'new', 1, NULL)")
    found = await shop.verify()
    assert found.comparison.agrees
    assert found.comparison.pending == 2


async def test_an_aborted_transaction_does_not_count(shop: Shop, unique: str) -> None:
    record = (await shop.records())[0]
    producer = AIOKafkaProducer(bootstrap_servers=shop.bootstrap, transactional_id=unique)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(shop.topic, b"nonsense", record.key, partition=record.partition)
    await producer.abort_transaction()
    await producer.stop()
    found = await shop.verify()
    assert found.comparison.agrees
    assert found.comparison.topic_records == ROWS


async def test_records_of_an_older_schema_are_compared_by_value(shop: Shop) -> None:
    shop.sql("ALTER TABLE events ADD COLUMN note TEXT")
    await shop.reset()
    found = await shop.verify()  # nothing has been written in the new schema
    assert found.comparison.agrees
    shop.sql("UPDATE events SET note = 'x' WHERE id = 40")
    assert (await shop.verify()).differing == ["id=40 (note)"]
    await shop.run()
    assert (await shop.verify()).comparison.agrees  # both versions on one topic


async def test_a_checkpoint_of_another_query_is_refused(shop: Shop) -> None:
    shop.path.write_text(shop.path.read_text() + "  where: id > 10\n")
    with pytest.raises(CheckpointConflictError, match="another query"):
        await shop.verify()


async def test_a_topic_that_is_not_there_is_said_and_not_made(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop()
    for _ in range(2):
        with pytest.raises(ConfigError, match="does not exist"):
            await shop.verify()


async def test_transforms_are_done_before_comparing(make_shop: Callable[..., Shop]) -> None:
    shop = make_shop(transforms=[{"drop": ["price"]}, {"mask": ["name"], "salt": "0123456789abcdef"}])
    await shop.run()
    assert (await shop.verify()).comparison.agrees


def verified(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "producer", "--debug", "verify", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_the_exit_code_says_whether_they_agree(shop: Shop) -> None:
    agreed = await asyncio.to_thread(verified, shop.path, "events", "--json")
    assert agreed.returncode == 0, agreed.stderr
    answer = json.loads(agreed.stdout)
    assert answer["agrees"] is True
    assert answer["source_checksum"] == answer["topic_checksum"]
    assert [part["agrees"] for part in answer["ranges"]] == [True] * len(answer["ranges"])
    shop.sql("DELETE FROM events WHERE id = 8", "UPDATE events SET price = -1 WHERE id = 6")
    differed = await asyncio.to_thread(verified, shop.path, "events", "--progress")
    assert differed.returncode == 1
    assert "1 on the topic and not in the source (any more): id=8" in differed.stdout
    assert re.search(r"split \S+, from the start up to \d+: \d+ rows, 0 missing, 1 with another value", differed.stdout)
    assert "DIFFER" in differed.stdout
    assert "records of the topic" in differed.stderr
    wrong = await asyncio.to_thread(verified, shop.path, "evnts")
    assert wrong.returncode == 2
    assert "events" in wrong.stderr


def with_streams(shop: Shop, *more: dict[str, Any]) -> Path:
    """The shop's configuration with other streams before its own."""
    document = yaml.safe_load(shop.path.read_text())
    document["streams"] = [*({"source": "shop", "topic": shop.topic} | stream for stream in more), *document["streams"]]
    path = shop.path.with_name("more.yaml")
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
async def plain_shop(tmp_path: Path, kafka_bootstrap: str, unique: str) -> Shop:
    """A table that has been streamed once, without a registry."""
    made = Shop(tmp_path, kafka_bootstrap, unique, None, partitions=1)
    await made.run()
    return made


async def test_a_stream_that_cannot_be_compared_does_not_keep_the_others_from_it(
    plain_shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = plain_shop
    path = with_streams(shop, {"name": "first", "table": "nowhere"}, {"table": "evnts", "topic": f"{shop.topic}.not"})
    assert await asyncio.to_thread(main, ["verify", str(path), "--json"]) == 2  # only the configuration is wrong
    told = capsys.readouterr()
    first, second, third = (json.loads(line) for line in told.out.splitlines())
    assert [line["stream"] for line in (first, second, third)] == ["first", "evnts", "events"]
    assert [line["agrees"] for line in (first, second, third)] == [False, False, True]
    assert "'nowhere' is not there" in first["error"]
    assert "does not exist" in second["error"]
    assert (first["kind"], second["kind"]) == ("ConfigError", "ConfigError")
    assert "error: stream 'first' was not compared: table 'nowhere'" in told.err
    shop.sql("DELETE FROM events WHERE id = 8")
    assert await asyncio.to_thread(main, ["verify", str(path)]) == 1
    assert "1 on the topic and not in the source (any more): id=8" in capsys.readouterr().out


async def test_an_unforeseen_failure_of_one_stream_does_not_keep_the_others_from_being_compared(
    plain_shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole = with_streams(plain_shop, {"name": "first", "table": "events"}), verify

    async def failing(config: Config, stream: Any, counts: Counts) -> Verified:
        if stream.name == "first":
            raise RuntimeError("a text with a password")
        return await whole(config, stream, counts)

    monkeypatch.setattr("producer.verify.verify", failing)
    assert await asyncio.to_thread(main, ["verify", str(path)]) == 1
    told = capsys.readouterr()
    assert "stream 'first' was not compared: unexpected RuntimeError" in told.err
    assert "password" not in told.err
    assert "AGREE" in told.out


async def test_what_is_not_sent_is_told(
    tmp_path: Path, kafka_bootstrap: str, unique: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {"key": ["name"], "on_bad_record": "dead_letter", "where": "id > 590 AND id < 600"}
    shop = Shop(tmp_path, kafka_bootstrap, unique, None, partitions=1, **chosen)
    shop.sql("UPDATE events SET price = 'text' WHERE id = 594")
    await shop.run()
    shop.sql("UPDATE events SET name = NULL WHERE id = 592")
    assert await asyncio.to_thread(main, ["verify", str(shop.path)]) == 1
    told = capsys.readouterr().out
    assert "1 row with NULL in column name is not sent" in told
    assert "1 row is in the dead letters" in told
    assert "DIFFER" in told


@pytest.fixture
async def postgres(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()


@pytest.mark.parametrize("mode", ["snapshot", "tail", "timestamp"])
async def test_a_postgresql_table_of_many_types_and_a_composite_key_agrees(
    mode: str,
    postgres: asyncpg.Connection,
    postgres_dsn: str,
    tmp_path: Path,
    kafka_bootstrap: str,
    unique: str,
) -> None:
    connection = postgres
    await connection.execute("DROP TABLE IF EXISTS sales")
    await connection.execute(
        "CREATE TABLE sales AS SELECT md5(g::text) AS shop, g AS number, gen_random_uuid() AS code, "
        "(g / 7.0)::float8 AS weight, (g * 1.01)::numeric(12,2) AS price, jsonb_build_object('g', g) AS note, "
        "now() - interval '1 day' + g * interval '1 second' AS changed, ARRAY[g, NULL] AS parts "
        "FROM generate_series(1, 500) g"
    )
    await connection.execute("ALTER TABLE sales ADD PRIMARY KEY (shop, number)")
    order = {"order_by": ["changed"]} if mode == "timestamp" else {}
    path = tmp_path / "shop.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "app": unique,
                "kafka": {"bootstrap_servers": kafka_bootstrap},
                "sources": {"shop": {"type": "sql", "url": postgres_dsn}},
                "streams": [
                    {"source": "shop", "table": "sales", "topic": unique, "decimal": "20,6", "mode": mode, **order}
                ],
            }
        )
    )
    config = load_config(path)
    await Service(config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
    agreed = await verify(config, config.streams[0], Counts())
    assert agreed.comparison.agrees
    assert agreed.comparison.topic_keys == 500
    await connection.execute("UPDATE sales SET price = price + 1 WHERE number = 250")
    differing = await verify(config, config.streams[0], Counts())
    shop = await connection.fetchval("SELECT shop FROM sales WHERE number = 250")
    assert differing.differing == [f"shop={shop}, number=250 (price)"]


async def test_without_a_name_streams_whose_session_a_run_may_be_using_are_left_out(shop: Shop) -> None:
    document = yaml.safe_load(shop.path.read_text())
    document["sources"]["chats"] = {"type": "telegram", "api_id": 1, "api_hash": "h", "session": "s"}
    document["streams"].append({"name": "talk", "source": "chats", "chat": "@demo"})
    shop.path.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "producer", "verify", str(shop.path), "--json"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["stream"] for line in done.stdout.splitlines()] == ["events"]
    assert "talk: left out" in done.stderr
