"""Owns the claims about several processes that share the work: killed, hung and joining workers, nothing lost, nothing
twice where it is exactly once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from producer.coordination.membership import SESSION_TIMEOUT_MS
from producer.sinks.kafka import _TRANSACTION_TIMEOUT_MS
from producer.unit import WINDOW_PAGES
from tests.audit import TopicAudit
from tests.faults.killing import finish, start
from tests.faults.test_kill import KEY_SCHEMA, postgres_table
from tests.faults.workers import shared_configuration, verified

ROWS = 300_000
UNITS = 6
PAGE_SIZE = 1000  # of `shared_configuration`


@pytest.fixture(scope="module")
def table(postgres_dsn: str) -> str:
    return postgres_table(postgres_dsn)


def wait_for(audit: TopicAudit, records: int, workers: list[subprocess.Popen[str]], deadline_s: float = 90) -> None:
    until = time.monotonic() + deadline_s
    while audit.end() < records:
        assert time.monotonic() < until, "no progress"
        assert any(worker.poll() is None for worker in workers)
        time.sleep(0.05)


def end_all(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
        worker.communicate()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_workers_killed_at_random_leave_every_row_on_the_topic(
    delivery: str, table: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = shared_configuration(
        tmp_path, kafka_bootstrap, table, unique, delivery=delivery, rows_per_s=8_000, units=UNITS
    )
    exactly_once = delivery == "exactly_once"
    audit = TopicAudit(
        kafka_bootstrap, unique, KEY_SCHEMA, isolation="read_committed" if exactly_once else "read_uncommitted"
    )
    rng = random.Random(7)
    workers = [start(config, "--once") for _ in range(3)]
    try:
        wait_for(audit, 1_000, workers)
        for _ in range(6):
            time.sleep(rng.uniform(0.3, 3))
            victim = rng.randrange(3)
            workers[victim].kill()
            workers[victim].communicate()
            workers[victim] = start(config, "--once")
        for worker in workers:
            out, err = worker.communicate(timeout=200)
            assert worker.returncode == 0, err
            assert '"state": "complete"' in out
        audit.catch_up()
        assert set(audit.keys) == {(n * 3,) for n in range(1, ROWS + 1)}
        if exactly_once:
            assert audit.duplicates == 0
    finally:
        end_all(workers)
        audit.close()
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(200)
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_an_owner_that_hangs_is_replaced_and_what_it_writes_when_it_wakes_is_refused(
    delivery: str, table: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    """In transactions the broker refuses its records; at least once, records may come and checkpoints are refused."""
    config = shared_configuration(
        tmp_path, kafka_bootstrap, table, unique, delivery=delivery, rows_per_s=25_000, units=UNITS
    )
    exactly_once = delivery == "exactly_once"
    audit = TopicAudit(
        kafka_bootstrap, unique, KEY_SCHEMA, isolation="read_committed" if exactly_once else "read_uncommitted"
    )
    workers = [start(config, "--once")]
    try:
        wait_for(audit, 20_000, workers)
        workers.append(start(config, "--once"))
        workers[0].send_signal(signal.SIGSTOP)  # it has all units, and is in the midst of them
        pause_s = SESSION_TIMEOUT_MS / 1000 + 4
        time.sleep(pause_s)
        moved = audit.end()
        # The other one has taken its work over, before the broker would end its transactions for their age alone.
        wait_for(audit, moved + 5_000, workers[1:], _TRANSACTION_TIMEOUT_MS / 1000 - pause_s - 3)
        workers[0].send_signal(signal.SIGCONT)
        told = []
        for worker in workers:
            _, err = worker.communicate(timeout=120)
            assert worker.returncode == 0, err
            told.append(err)
        refused = [line for line in told[0].splitlines() if "unit taken over" in line]
        assert refused, told[0]
        assert all("has been taken over by another runner" in line for line in refused)
        assert "unit taken over" not in told[1]
        audit.catch_up()
        assert set(audit.keys) == {(n * 3,) for n in range(1, ROWS + 1)}
        assert audit.duplicates <= (0 if exactly_once else UNITS * WINDOW_PAGES * PAGE_SIZE)
    finally:
        end_all(workers)
        audit.close()
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(200)
def test_work_moves_to_a_worker_that_joins_and_back_from_one_that_dies_within_ten_seconds(
    table: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = shared_configuration(
        tmp_path, kafka_bootstrap, table, unique, delivery="at_least_once", rows_per_s=3_000, units=UNITS
    )
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA)
    workers = [start(config)]
    try:
        wait_for(audit, 1_000, workers)
        workers.append(start(config))
        seconds: dict[str, float] = {}
        for what in ("join", "death"):
            if what == "death":
                workers[0].kill()
            began = time.monotonic()
            most_still_s, last, since = 0.0, audit.end(), time.monotonic()
            while time.monotonic() < began + 14:
                time.sleep(0.1)
                end = audit.end()
                if end != last:
                    most_still_s = max(most_still_s, time.monotonic() - since)
                    last, since = end, time.monotonic()
            assert time.monotonic() - since < 5, f"after the {what} nothing moves"
            seconds[what] = most_still_s
        assert max(seconds.values()) < 10, seconds
        workers[1].send_signal(signal.SIGTERM)
        out, err = workers[1].communicate(timeout=40)
        assert workers[1].returncode == 143, err
        assert '"state": "stopped"' in out
    finally:
        end_all(workers)
        audit.close()


def test_two_processes_that_start_at_once_make_one_plan(
    table: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = shared_configuration(
        tmp_path, kafka_bootstrap, table, unique, delivery="exactly_once", rows_per_s=1_000_000, units=UNITS
    )
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA, isolation="read_committed")
    workers = [start(config, "--once") for _ in range(3)]
    try:
        rows: list[Any] = []
        for worker in workers:
            out, err = worker.communicate(timeout=100)
            assert worker.returncode == 0, err
            rows.append(out)
        audit.catch_up()
        assert set(audit.keys) == {(n * 3,) for n in range(1, ROWS + 1)}
        assert audit.duplicates == 0
    finally:
        end_all(workers)
        audit.close()


@pytest.mark.timeout(200)
def test_shared_work_is_seen_as_one_stream_by_the_commands_and_verified(
    table: str, kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    config = shared_configuration(
        tmp_path, kafka_bootstrap, table, unique, delivery="exactly_once", rows_per_s=1_000_000, units=UNITS
    )
    finish(start(config, "--once"))

    def producer(*arguments: str) -> Any:
        command = [sys.executable, "-m", "producer", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    (listed,) = producer("checkpoint", "list", str(config), "--json")
    assert (listed["stream"], listed["rows"]) == ("events", ROWS)
    assert listed["splits"] == listed["done"] >= UNITS
    assert producer("verify", str(config), "events", "--json")["source_rows"] == ROWS
    assert producer("checkpoint", "reset", str(config), "events", "--json")["reset"] is True
    assert producer("checkpoint", "list", str(config), "--json") == []
