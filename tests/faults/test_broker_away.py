"""Owns the claims about a broker that goes away in the midst of a run: nothing lost, memory bounded, exit clean."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from producer.embedded import EmbeddedKafka
from tests.audit import TopicAudit
from tests.faults.killing import finish, start, wait_for, write_config
from tests.faults.test_kill import KEY_SCHEMA, ROWS, sqlite_table
from tests.faults.workers import verified


def configuration(folder: Path, bootstrap: str, *, exactly_once: bool = False, rows_per_s: int = 100_000) -> Path:
    return write_config(
        folder,
        {
            "app": "away",
            "kafka": {"bootstrap_servers": bootstrap, "max_inflight_bytes": "8MiB"},
            "checkpoints": {"type": "kafka"} if exactly_once else {"type": "file", "path": "state"},
            "delivery": "exactly_once" if exactly_once else "at_least_once",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": sqlite_table(folder)}},
            "streams": [
                {"source": "shop", "table": "events", "topic": "away", "partitions": 4, "max_rows_per_s": rows_per_s}
            ],
        },
    )


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.timeout(240)
def test_a_broker_away_for_20_seconds_costs_nothing_but_time(
    own_kafka: Callable[..., EmbeddedKafka], tmp_path: Path
) -> None:
    broker = own_kafka()
    audit = TopicAudit(broker.bootstrap, "away", KEY_SCHEMA)
    config = configuration(tmp_path, broker.bootstrap)
    process = start(config, "--once")
    try:
        wait_for(audit, ROWS // 10, process)
        before = resident_bytes(process.pid)
        broker.kill()
        most = before
        until = time.monotonic() + 20
        while time.monotonic() < until:
            most = max(most, resident_bytes(process.pid))
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        broker.start()
        (summary,) = finish(process, 120)
    finally:
        process.kill()
        audit.catch_up()
        audit.close()
    assert summary["state"] == "complete"
    assert set(audit.keys) == {(n * 3,) for n in range(1, ROWS + 1)}
    assert most - before < 64 << 20  # the source had 200,000 rows to run ahead with
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(120)
def test_a_broker_killed_and_started_again_in_the_midst_of_transactions_leaves_every_row_exactly_once(
    own_kafka: Callable[..., EmbeddedKafka], tmp_path: Path
) -> None:
    broker = own_kafka()
    audit = TopicAudit(broker.bootstrap, "away", KEY_SCHEMA, isolation="read_committed")
    config = configuration(tmp_path, broker.bootstrap, exactly_once=True, rows_per_s=40_000)
    process = start(config, "--once")
    try:
        wait_for(audit, ROWS // 6, process)
        broker.kill()
        time.sleep(1)
        assert process.poll() is None, process.communicate()[1]
        broker.start()
        (summary,) = finish(process, 90)
        audit.catch_up()
    finally:
        process.kill()
        process.communicate()
        audit.close()
    assert (summary["state"], summary["acked"]) == ("complete", ROWS)
    assert set(audit.keys) == {(n * 3,) for n in range(1, ROWS + 1)}
    assert audit.duplicates == 0
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(120)
def test_a_run_whose_broker_is_gone_still_ends_in_time_on_sigterm(
    own_kafka: Callable[..., EmbeddedKafka], tmp_path: Path
) -> None:
    broker = own_kafka()
    audit = TopicAudit(broker.bootstrap, "away", KEY_SCHEMA)
    process = start(configuration(tmp_path, broker.bootstrap))
    try:
        wait_for(audit, ROWS // 10, process)
        broker.kill()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=50)
    finally:
        process.kill()
        audit.close()
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert json.loads(out)["state"] == "stopped"
