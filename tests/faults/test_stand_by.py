"""Owns the claim that of several processes with `coordination: redis` one runs a stream and another takes over."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.audit import TopicAudit
from tests.faults.killing import start, write_config
from tests.faults.test_kill import KEY_SCHEMA, ROWS, sqlite_table
from tests.faults.test_shared_work import end_all, wait_for
from tests.faults.workers import verified

LOCK_TIMEOUT_S = 4


@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["dies", "hangs"])
def test_when_the_holder_of_the_lock_is_gone_the_other_takes_over_and_a_late_waker_commits_nothing(
    way: str, kafka_bootstrap: str, redis_url: str, unique: str, tmp_path: Path
) -> None:
    config = write_config(
        tmp_path,
        {
            "app": unique,
            "kafka": {"bootstrap_servers": kafka_bootstrap},
            "checkpoints": {"type": "redis", "url": redis_url, "lock_timeout_s": LOCK_TIMEOUT_S},
            "coordination": "redis",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": sqlite_table(tmp_path)}},
            "streams": [
                {
                    "name": unique,
                    "source": "shop",
                    "table": "events",
                    "topic": unique,
                    "partitions": 2,
                    "page_size": 2000,
                    "max_rows_per_s": 25_000,
                }
            ],
        },
    )
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA)
    workers = [start(config, "--once")]
    try:
        wait_for(audit, 20_000, workers)
        workers.append(start(config, "--once"))
        time.sleep(3)
        assert workers[1].poll() is None, workers[1].communicate()[1]  # it stands by
        workers[0].send_signal(signal.SIGKILL if way == "dies" else signal.SIGSTOP)
        time.sleep(LOCK_TIMEOUT_S + 6)
        moved = audit.end()
        wait_for(audit, moved + 5_000, workers[1:], 20)
        workers[0].send_signal(signal.SIGCONT)
        out, err = workers[1].communicate(timeout=120)
        assert workers[1].returncode == 0, err
        assert '"state": "complete"' in out
        if way == "hangs":  # it lost the lock, and found everything done when it woke
            out, err = workers[0].communicate(timeout=60)
            assert workers[0].returncode == 0, err
            assert "standing by" in err
        audit.catch_up()
        assert set(audit.keys) == {(n * 3,) for n in range(1, ROWS + 1)}
    finally:
        end_all(workers)
        audit.close()
    assert verified(config, unique)["source_rows"] == ROWS
