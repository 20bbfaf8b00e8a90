"""An IPTVPortal table into a real Kafka by the example's configuration: all that is there, and what is added."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.audit import TopicAudit
from tests.dump import expected, portal
from tests.jsonsql.server import Fault, JsonSqlServer

ROOT = Path(__file__).resolve().parents[2]
KEY = {"type": "record", "name": "terminal_key", "fields": [{"name": "id", "type": "long"}]}
DEADLINE_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JsonSqlServer]:
    with portal(tmp_path) as server:
        yield server


def start(folder: Path, server: JsonSqlServer, bootstrap: str, topic: str, *args: str) -> subprocess.Popen[str]:
    """`producer run` with the example, its topic and its place for checkpoints being this test's."""
    text = (ROOT / "examples" / "iptvportal.yaml").read_text()
    text = text.replace("topic: portal.terminal", f"topic: {topic}").replace("app: portal-export", f"app: {topic}")
    text = text.replace("mode: snapshot_then_tail", "mode: snapshot_then_tail\n    poll_interval_s: 0.1")
    path = folder / "iptvportal.yaml"
    path.write_text(text)
    env: dict[str, Any] = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KAFKA_BOOTSTRAP": bootstrap,
        "IPTVPORTAL_URL": server.url,
        "IPTVPORTAL_USERNAME": "user",
        "IPTVPORTAL_PASSWORD": "secret",
    }
    command = [sys.executable, "-m", "producer", "run", str(path), *args]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=folder)


def wait_for(audit: TopicAudit, process: subprocess.Popen[str], wanted: set[tuple[int]]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not wanted <= set(audit.keys):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"{len(wanted - set(audit.keys))} of {len(wanted)} rows are missing"
        audit.catch_up()
        time.sleep(0.05)


def test_the_table_and_then_its_new_rows_arrive_once_although_the_api_fails_at_times(
    tmp_path: Path, server: JsonSqlServer, kafka_bootstrap: str
) -> None:
    topic = f"portal-{uuid.uuid4().hex[:8]}"
    server.script(None, None, Fault(expire=True), Fault(status=503), None, Fault(drop=True))
    process = start(tmp_path, server, kafka_bootstrap, topic)
    audit = TopicAudit(kafka_bootstrap, topic, KEY)
    try:
        wanted = {(row["id"],) for row in expected("terminal")}
        wait_for(audit, process, wanted)
        with sqlite3.connect(server.settings.database) as database:
            new = [(i, "00", True, 1.25, "2026-01-01 00:00:00", None) for i in range(4000, 4010)]
            database.executemany("INSERT INTO terminal VALUES (?, ?, ?, ?, ?, ?)", new)
        database.close()
        wait_for(audit, process, {(i,) for i in range(4000, 4010)})
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 143, told
        assert set(audit.keys) == wanted | {(i,) for i in range(4000, 4010)}
        assert audit.duplicates == 0
        assert "secret" not in told
    finally:
        audit.close()
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_the_schema_of_a_table_without_one_is_inferred_and_shown(tmp_path: Path, server: JsonSqlServer) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        f"sources: {{p: {{type: iptvportal, url: '{server.url}', username: user, password: secret}}}}\n"
        "streams: [{source: p, table: media}]\n"
    )
    command = [sys.executable, "-m", "producer", "schema", "show", str(path), "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True, cwd=ROOT).stdout
    for part in ('"field_0"', '"field_1"', '"field_2"', '"double"', '"id"'):
        assert part in shown
