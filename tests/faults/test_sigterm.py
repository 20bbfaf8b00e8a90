"""Owns the claim that a run told to end at full rate does so in time, with all that was acknowledged committed."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import yaml

from tests.audit import TopicAudit
from tests.faults.killing import finish, start, state_of, write_config

TIMES = 20
ROWS_EACH = 150_000
MORE_ROWS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO events (kind) SELECT 'kind ' || i % 7 FROM n
"""
VALUES = Path(__file__).resolve().parents[2] / "helm" / "values.yaml"


@pytest.mark.timeout(600)
def test_20_signals_at_full_rate_leave_nothing_uncommitted_and_repeat_nothing(
    kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    """What is on the topic after a clean end is what the checkpoint counts: not a record more, so none comes twice."""
    grace_s = yaml.safe_load(VALUES.read_text())["terminationGracePeriodSeconds"]
    table = sqlite3.connect(tmp_path / "shop.db")
    table.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL)")
    config = write_config(
        tmp_path,
        {
            "app": unique,
            "kafka": {"bootstrap_servers": kafka_bootstrap},
            "checkpoints": {"type": "file", "path": "state"},
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
            "streams": [
                {"source": "shop", "table": "events", "topic": unique, "mode": "snapshot_then_tail", "partitions": 4}
            ],
        },
    )
    audit = TopicAudit(kafka_bootstrap, unique, {"type": "record", "name": "k", "fields": []})
    rng = random.Random(TIMES)
    struck_in_its_midst, longest_s = 0, 0.2
    try:
        for time_number in range(1, TIMES + 1):
            with table:
                table.execute(MORE_ROWS, (ROWS_EACH,))
            before = audit.end()
            process = start(config)
            while audit.end() == before:
                assert process.poll() is None, process.communicate()
            time.sleep(rng.uniform(0, longest_s))
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=grace_s)
            assert process.returncode == 128 + signal.SIGTERM, err
            state = state_of(config, "events")
            assert state is not None
            committed = sum(checkpoint.rows for checkpoint in state.checkpoints)
            assert committed == audit.end(), f"after signal {time_number}"
            if committed < time_number * ROWS_EACH:
                struck_in_its_midst += 1
            else:  # this machine had sent all before the signal came
                longest_s /= 2
        (summary,) = finish(start(config, "--once"))
        assert audit.end() == TIMES * ROWS_EACH
    finally:
        audit.close()
        table.close()
    assert summary["state"] == "complete"
    assert struck_in_its_midst >= TIMES // 2
