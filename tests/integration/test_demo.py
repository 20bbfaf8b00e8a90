"""Owns the claims about the demo: it proves what it says, ends by itself, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from producer.demo import TABLE, Outcome, canonical, demo_rows, fill, report
from producer.proof import Digest, digest, digest_table

ROWS = 3000


def start(folder: Path, bootstrap: str, rows: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "producer", "demo", "--rows", str(rows)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KAFKA_BOOTSTRAP": bootstrap, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"},
    )


async def demo_topics(bootstrap: str) -> set[str]:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        return {topic for topic in await client.list_topics() if topic.startswith("demo-")}
    finally:
        await client.close()


async def test_the_demo_proves_that_every_row_arrived_and_cleans_up(tmp_path: Path, kafka_bootstrap: str) -> None:
    before = await demo_topics(kafka_bootstrap)
    process = start(tmp_path, kafka_bootstrap, ROWS)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert "PROOF: every row is on the topic once" in out
    proof = [line.split() for line in out.splitlines() if line.endswith("  equal")]
    assert [line[:-1] for line in proof][:2] == [
        ["rows", "/", "records", f"{ROWS:,}", f"{ROWS:,}"],
        ["distinct", "keys", f"{ROWS:,}", f"{ROWS:,}"],
    ]
    assert proof[2][0] == "checksum"
    assert list(tmp_path.iterdir()) == []
    assert await demo_topics(kafka_bootstrap) <= before


def test_ctrl_c_ends_the_demo_and_leaves_nothing(tmp_path: Path, kafka_bootstrap: str) -> None:
    process = start(tmp_path, kafka_bootstrap, 2_000_000)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Kafka: ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_lost_a_doubled_and_a_changed_record_fail_the_proof(tmp_path: Path) -> None:
    fill(tmp_path / "shop.db", 1000, threading.Event())
    rows = [(row[0], row[1:]) for chunk in demo_rows(1000) for row in chunk]
    good = digest(rows)
    assert Outcome(good, good, 1.0).equal
    changed = [(rows[0][0], (*rows[0][1][:-1], "changed")), *rows[1:]]
    for bad in (rows[1:], [*rows, rows[0]], changed, [*rows[1:], rows[1]]):
        outcome = Outcome(good, digest(bad), 1.0)
        assert not outcome.equal
        assert "PROOF FAILED" in report(outcome)


def test_digests_add_up_in_any_order_and_cut(tmp_path: Path) -> None:
    last_id = fill(tmp_path / "shop.db", 1000, threading.Event())
    whole = digest_table(tmp_path / "shop.db", TABLE, 0, last_id, canonical)
    parts = [digest_table(tmp_path / "shop.db", TABLE, a, b, canonical) for a, b in ((500, last_id), (0, 500))]
    assert sum(parts, Digest()) == whole
    assert whole.count == 1000


def test_the_table_is_the_same_every_time() -> None:
    assert next(demo_rows(100)) == next(demo_rows(100))


@pytest.mark.parametrize("rows", [1, 50_000, 50_001])
def test_there_are_as_many_rows_as_asked_for(rows: int) -> None:
    ids = [row[0] for chunk in demo_rows(rows) for row in chunk]
    assert (len(ids), len(set(ids))) == (rows, rows)
