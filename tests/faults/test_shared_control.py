"""Owns the claims about control of shared work: what one worker is asked holds for all, and outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producer.embedded import free_port
from tests.audit import TopicAudit
from tests.faults.killing import write_config
from tests.faults.test_kill import KEY_SCHEMA

ROWS = 200
DEADLINE_S = 60.0


def command(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "producer", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Worker:
    """A process with an address and a name of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any], name: str) -> None:
        port = free_port()
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        folder.joinpath(name).mkdir(exist_ok=True)
        self.path = write_config(folder / name, {**settings, "http": {"port": port}})
        with (folder / name / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "producer", "run", str(self.path)],
                stderr=log,
                env={**os.environ, "WORKER_ID": name},
            )

    def stream(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/streams/events", timeout=10) as answer:
            return dict(json.load(answer))

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline, found = time.monotonic() + DEADLINE_S, {}
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # it does not answer yet
                if condition(found := self.stream()):
                    return found
            assert self.process.poll() is None
            time.sleep(0.2)
        pytest.fail(f"never came to be: {found}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def owners(found: dict[str, Any]) -> set[str]:
    return {split["owner"] for split in found["splits"] if split["owner"] is not None}


def snapshot_done(found: dict[str, Any]) -> bool:
    return bool(found["splits"]) and all(split["done"] for split in found["splits"] if split["upper"] is not None)


def replay_done(found: dict[str, Any]) -> bool:
    return any(split["replays"] is not None and split["done"] for split in found["splits"])


@pytest.mark.timeout(200)
def test_a_pause_and_a_replay_are_the_streams_and_outlive_the_worker_that_was_asked(
    kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
        database.executemany("INSERT INTO events VALUES (?)", [(n,) for n in range(1, ROWS + 1)])
    settings = {
        "app": unique,
        "kafka": {"bootstrap_servers": kafka_bootstrap, "state_partitions": 4},
        "checkpoints": {"type": "kafka"},
        "coordination": "kafka",
        "delivery": "exactly_once",
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
        "streams": [
            {
                "source": "shop",
                "table": "events",
                "topic": unique,
                "mode": "snapshot_then_tail",
                "page_size": 10,
                "max_parallel": 4,
                "max_rows_per_s": 50,
                "poll_interval_s": 0.2,
            }
        ],
    }
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA, isolation="read_committed")
    workers = [Worker(tmp_path, settings, name) for name in ("a", "b")]
    try:
        asked, other = workers
        asked.until(lambda found: found["state"] == "running")
        assert command("pause", asked.url, "events")["state"] == "paused"
        other.until(lambda found: found["state"] == "paused")
        asked.until(lambda found: owners(found) == {"a", "b"})
        asked.end()
        workers.append(asked := Worker(tmp_path, settings, "c"))
        asked.until(lambda found: found["state"] == "paused")
        assert command("resume", asked.url, "events")["state"] == "running"
        other.until(lambda found: found["state"] == "running" and snapshot_done(found))
        assert command("replay", asked.url, "events", "--from", "1")["split"] == "replay-1"
        asked.end()
        other.until(replay_done)
        audit.catch_up()
        assert audit.keys == Counter({(n,): 2 for n in range(1, ROWS + 1)})
        assert command("verify", str(other.path), "events")["source_rows"] == ROWS
        other.process.terminate()
        assert other.process.wait(40) == 143
    finally:
        for worker in workers:
            worker.end()
        audit.close()
