"""Owns the claims about pause, resume and replay of a real run: by command and HTTP, over Kafka, with real tables."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import pytest
import yaml

from producer.embedded import free_port
from tests.integration.kafka_rows import read_topic

DEADLINE_S = 40.0
ROWS = 300
TOKEN = "correct horse battery"


@dataclass
class Run:
    """A configuration, and what one asks of its run."""

    path: Path
    url: str
    topic: str
    bootstrap: str
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "producer", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **self.environment},
        )

    def answer(self, *arguments: str | Path) -> Any:
        done = self.command(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stream(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/streams/events", timeout=10) as response:
            return dict(json.load(response))

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if condition(found := self.stream()):
                    return found
            time.sleep(0.05)
        pytest.fail(f"never came to be: {self.stream()}")

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """`producer run`, until SIGTERM at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "producer", "run", str(self.path)], stderr=subprocess.PIPE, text=True
        )
        try:
            yield
            process.terminate()
            assert process.wait(DEADLINE_S) == 143
        finally:
            process.kill()
            process.communicate()

    async def keys(self) -> Counter[int]:
        """How often each key is on the topic."""
        records = await read_topic(self.bootstrap, self.topic)
        return Counter(_key(record.key) for record in records)


def _key(data: bytes) -> int:
    """A key of one long, without a registry: the raw datum."""
    key = fastavro.schemaless_reader(io.BytesIO(data), "long", None)  # a record of one field is that field
    assert isinstance(key, int)
    return key


def document(run: Run, source: str, **stream: Any) -> None:
    run.path.write_text(
        yaml.safe_dump(
            {
                "app": run.topic,
                "kafka": {"bootstrap_servers": run.bootstrap},
                "http": {"port": int(run.url.rpartition(":")[2]), "token": TOKEN},
                "sources": {"shop": {"type": "sql", "url": source}},
                "streams": [
                    {
                        "source": "shop",
                        "table": "events",
                        "topic": run.topic,
                        "mode": "snapshot_then_tail",
                        "poll_interval_s": 0.2,
                        "page_size": 20,
                        "max_parallel": 2,
                        **stream,
                    }
                ],
            }
        )
    )


@pytest.fixture
def run(tmp_path: Path, kafka_bootstrap: str, unique: str) -> Run:
    return Run(tmp_path / "shop.yaml", f"http://127.0.0.1:{free_port()}", unique, kafka_bootstrap)


@pytest.fixture
def sqlite(run: Run, tmp_path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, at DATETIME NOT NULL)")
    insert(database, 1, ROWS)
    document(run, f"sqlite:///{tmp_path / 'shop.db'}")
    return database


def insert(database: sqlite3.Connection, first: int, last: int) -> None:
    rows = [(i, f"2026-01-01 {i // 3600:02}:{i // 60 % 60:02}:{i % 60:02}") for i in range(first, last + 1)]
    database.executemany("INSERT INTO events VALUES (?, ?)", rows)
    database.commit()


def replayed(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [split for split in found["splits"] if split["id"].startswith("replay-")]


async def test_a_range_of_keys_is_read_once_more_while_the_tail_goes_on(run: Run, sqlite: sqlite3.Connection) -> None:
    with run.going():
        run.until(lambda found: found["rows_acked"] == ROWS)
        told = run.answer("replay", run.path, "events", "--from", "101", "--to", "150")
        assert told == {"stream": "events", "split": "replay-1"}
        insert(sqlite, ROWS + 1, ROWS + 10)
        found = run.until(lambda found: found["rows_acked"] == ROWS + 60 and all(s["done"] for s in replayed(found)))
        assert found["state"] == "running"
        (split,) = replayed(found)
        assert split["replays"] == {"column": "id", "from": "101", "to": "150"}
        assert split["rows"] == 50
    counts = await run.keys()
    assert counts == Counter({i: 2 if 101 <= i <= 150 else 1 for i in range(1, ROWS + 11)})


async def test_a_range_of_time_is_read_once_more_from_sqlite(run: Run, sqlite: sqlite3.Connection) -> None:
    with run.going():
        run.until(lambda found: found["rows_acked"] == ROWS)
        window = ("--column", "at", "--from", "2026-01-01 00:01:00", "--to", "2026-01-01 00:01:59")
        run.answer("replay", run.path, "events", *window)
        run.until(lambda found: found["rows_acked"] == ROWS + 60)
    assert {key for key, count in (await run.keys()).items() if count == 2} == set(range(60, 120))


async def test_a_replay_goes_on_after_a_restart_where_it_was(
    run: Run, sqlite: sqlite3.Connection, tmp_path: Path
) -> None:
    document(run, f"sqlite:///{tmp_path / 'shop.db'}", max_rows_per_s=200)
    with run.going():
        run.until(lambda found: found["rows_acked"] == ROWS)
        run.answer("replay", run.path, "events", "--from", "1")
        (split,) = replayed(run.until(lambda found: any(0 < s["rows"] < ROWS for s in replayed(found))))
    with run.going():
        (split,) = replayed(run.until(lambda found: all(s["done"] for s in replayed(found))))
        assert split["rows"] == ROWS
    assert set((await run.keys()).values()) == {2}


async def test_a_range_of_time_is_read_once_more_from_postgresql(run: Run, postgres_dsn: str) -> None:
    import asyncpg

    database = await asyncpg.connect(postgres_dsn)
    await database.execute("CREATE TABLE events (id bigint PRIMARY KEY, at timestamptz NOT NULL, day date NOT NULL)")
    await database.execute(
        "INSERT INTO events SELECT i, '2026-01-01 00:00Z'::timestamptz + i * interval '1 hour', "
        "date '2026-01-01' + i / 24 FROM generate_series(1, 300) i"
    )
    await database.close()
    document(run, postgres_dsn)
    with run.going():
        run.until(lambda found: found["rows_acked"] == ROWS)
        run.answer(
            "replay",
            run.path,
            "events",
            "--column",
            "at",
            "--from",
            "2026-01-01T12:00:00+02:00",
            "--to",
            "2026-01-01T20:00:00Z",
        )
        run.until(lambda found: found["rows_acked"] == ROWS + 11)
        run.answer("replay", run.path, "events", "--column", "day", "--to", "2026-01-01")
        run.until(lambda found: found["rows_acked"] == ROWS + 11 + 23)
        run.environment["PRODUCER_TOKEN"] = TOKEN
        refused = run.command("replay", run.path, "events", "--column", "att", "--to", "5")
        assert refused.returncode == 2
        assert "there is no column 'att' (did you mean 'at'?)" in refused.stderr
        refused = run.command("replay", run.path, "events", "--column", "day", "--to", "soon")
        assert refused.returncode == 2
        assert "'soon' is not a value of column 'day'" in refused.stderr
        for target in (run.path, run.url):  # known from the configuration, or from the run
            refused = run.command("replay", target, "evens", "--to", "5")
            assert refused.returncode == 2
            assert "no stream is named 'evens'" in refused.stderr
    counts = await run.keys()
    assert counts == Counter({i: 1 + (10 <= i <= 20) + (i < 24) for i in range(1, ROWS + 1)})


def test_a_pause_by_command_holds_over_a_restart_until_the_resume(run: Run, sqlite: sqlite3.Connection) -> None:
    with run.going():
        run.until(lambda found: found["rows_acked"] == ROWS)
        assert run.answer("pause", run.path, "events")["state"] == "paused"
    assert run.answer("status", run.path)["streams"][0]["state"] == "paused"
    insert(sqlite, ROWS + 1, ROWS + 5)
    run.environment["PRODUCER_TOKEN"] = TOKEN
    with run.going():
        run.until(lambda found: found["state"] == "paused")
        assert run.answer("status", run.url)["streams"][0]["rows_read"] == 0
        assert run.answer("resume", run.url, "events")["state"] == "running"
        run.until(lambda found: found["rows_acked"] == 5)
        run.environment["PRODUCER_TOKEN"] = "another token, wrong"
        refused = run.command("pause", run.url, "events")
        assert refused.returncode == 1
        assert "the token is missing or wrong" in refused.stderr
    assert run.command("pause", run.path, "events").returncode == 1
    assert f"no producer answers at {run.url}" in run.command("pause", run.path, "events").stderr


def test_a_command_for_another_app_touches_no_stream_of_the_run_that_has_the_port(
    run: Run, sqlite: sqlite3.Connection, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(run.path.read_text().replace(f"app: {run.topic}", "app: other"))
    with run.going():
        run.until(lambda found: found["rows_acked"] == ROWS)
        refused = run.command("pause", other, "events")
        assert refused.returncode == 2
        assert f"answers the run of app '{run.topic}', not of 'other'" in refused.stderr
        assert run.stream()["state"] == "running"
        assert not run.answer("status", other)["running"]
        assert run.answer("status", run.path)["running"]
