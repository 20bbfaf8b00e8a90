"""Owns the claims about two workers on one stream with a lock in Redis: one works, the other takes over in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from producer.sources.telegram import record
from producer.unit import WINDOW_PAGES
from tests.audit import TopicAudit
from tests.faults.killing import finish, start, state_of, write_config
from tests.mtproto import World, made_chat
from tests.mtproto.running import serving

ROWS = 20_000
PAGE = 500
LOCK_S = 1.0
MESSAGE_KEY = record.avro_schema(record.KEY, record="MessageKey")


@pytest.fixture
def config(tmp_path: Path, kafka_bootstrap: str, redis_url: str, unique: str) -> Path:
    """A stream that takes some seconds, for workers that stand by."""
    database = tmp_path / "shop.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO events VALUES (?, ?)", ((n, f"n{n}") for n in range(1, ROWS + 1)))
    return write_config(
        tmp_path,
        {
            "app": unique,
            "kafka": {"bootstrap_servers": kafka_bootstrap},
            "checkpoints": {
                "type": "redis",
                "url": redis_url,
                "prefix": f"{unique}:",
                "lock_timeout_s": LOCK_S,
            },
            "coordination": "redis",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": f"sqlite:///{database}"}},
            "streams": [
                {
                    "source": "shop",
                    "table": "events",
                    "topic": unique,
                    "partitions": 2,
                    "page_size": PAGE,
                    "max_parallel": 1,
                    "max_rows_per_s": 4000,
                }
            ],
        },
    )


@pytest.fixture
def workers(config: Path) -> Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """The one that works, and the one that has been started after it and stands by."""
    first = start(config, "--once")
    _wait_for_rows(config, PAGE)
    second = start(config, "--once")
    assert second.stderr is not None
    for line in second.stderr:
        if "standing by" in line:
            break
    yield first, second
    for process in (first, second):
        process.kill()
        process.communicate()


def _wait_for_rows(config: Path, rows: int) -> None:
    async def wait() -> None:
        async with asyncio.timeout(60):
            while True:
                state = await asyncio.to_thread(state_of, config, "events")
                if state is not None and sum(c.rows for c in state.checkpoints) >= rows:
                    return

    asyncio.run(wait())


def _verified(config: Path) -> dict[str, int]:
    command = [sys.executable, "-m", "producer", "verify", str(config), "events", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_a_killed_holder_is_followed_by_the_worker_that_stands_by(
    config: Path, workers: tuple[subprocess.Popen[str], subprocess.Popen[str]]
) -> None:
    first, second = workers
    first.kill()
    (summary,) = finish(second)
    assert summary["state"] == "complete"
    assert 0 < summary["acked"] < ROWS  # went on, and did not start over
    found = _verified(config)
    assert found["source_rows"] == ROWS
    assert found["duplicates"] <= WINDOW_PAGES * PAGE


def test_a_holder_that_wakes_late_commits_nothing_more(
    config: Path, workers: tuple[subprocess.Popen[str], subprocess.Popen[str]]
) -> None:
    late, second = workers
    late.send_signal(signal.SIGSTOP)
    state = state_of(config, "events")
    assert state is not None
    asleep_at = sum(c.rows for c in state.checkpoints)
    _wait_for_rows(config, asleep_at + 2 * PAGE)  # by the second one
    late.send_signal(signal.SIGCONT)
    _, err = late.communicate(timeout=60)
    assert late.returncode == 0, err
    assert "taken over by another worker" in err
    assert "standing by" in err
    (summary,) = finish(second)
    assert summary["state"] == "complete"
    assert _verified(config)["source_rows"] == ROWS


def test_a_worker_that_takes_over_a_table_that_has_changed_while_it_stood_by_goes_on(
    config: Path, workers: tuple[subprocess.Popen[str], subprocess.Popen[str]]
) -> None:
    first, second = workers
    with sqlite3.connect(config.parent / "shop.db") as connection:
        connection.execute("ALTER TABLE events ADD COLUMN more TEXT")
    first.kill()
    (summary,) = finish(second)
    assert summary["state"] == "complete"
    assert _verified(config)["source_rows"] == ROWS


def test_who_stands_by_leaves_a_telegram_session_alone_until_it_takes_over(
    tmp_path: Path, kafka_bootstrap: str, redis_url: str, unique: str
) -> None:
    with serving(World([made_chat(1001, 3000, username="demo", title="Demo")])) as server:
        account = {"type": "telegram", "api_id": 1, "api_hash": "none", "session": server.session(), "min_delay_s": 0}
        config = write_config(
            tmp_path,
            {
                "app": unique,
                "kafka": {"bootstrap_servers": kafka_bootstrap},
                "checkpoints": {"type": "redis", "url": redis_url, "prefix": f"{unique}:", "lock_timeout_s": LOCK_S},
                "coordination": "redis",
                "http": {"port": 0},
                "sources": {"account": account},
                "streams": [
                    {
                        "name": name,
                        "source": "account",
                        "chat": "@demo",
                        "topic": f"{unique}.{name}",
                        "mode": "snapshot_then_tail",
                    }
                    for name in ("one", "two")
                ],
            },
        )
        with contextlib.closing(TopicAudit(kafka_bootstrap, f"{unique}.one", MESSAGE_KEY)) as audit:
            first = start(config)
            second = None
            try:
                _wait_for(lambda: audit.end() >= 3000)
                connections = server.connections
                second = start(config)
                assert second.stderr is not None
                told = ""
                while "another worker" not in told:
                    told += second.stderr.readline()
                (address,) = re.findall(r"http://[\d.:]+", told)
                with urllib.request.urlopen(f"{address}/readyz", timeout=10) as answer:
                    assert answer.status == 200
                time.sleep(LOCK_S)
                assert server.connections == connections
                first.send_signal(signal.SIGSTOP)
                _wait_for(lambda: server.connections > connections)
                first.send_signal(signal.SIGCONT)  # it finds that its lock is gone
                _wait_for(lambda: server.open_connections == 1)
                time.sleep(2 * LOCK_S)
                assert server.open_connections == 1
            finally:
                for process in filter(None, (first, second)):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                    process.communicate()


def _wait_for(happened: Callable[[], bool], deadline_s: float = 60) -> None:
    until = time.monotonic() + deadline_s
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
