"""Owns the claims about the commands against a real broker: what they print, do, and leave alone."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka.admin import AIOKafkaAdminClient

from producer.embedded import EmbeddedKafka

DEADLINE_S = 30.0
ROWS = 200
SUMMARY = ("stream", "rows", "acked", "bytes", "seconds", "rows_per_second", "position", "state")


@pytest.fixture
def document(tmp_path: Path, kafka_bootstrap: str) -> dict[str, Any]:
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    database.executemany("INSERT INTO events VALUES (?, ?)", [(i, f"n{i}") for i in range(1, ROWS + 1)])
    database.commit()
    database.close()
    app = f"cli-{uuid.uuid4().hex[:8]}"
    return {
        "app": app,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "http": {"port": 0},
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
        "streams": [
            {"source": "shop", "table": "events", "topic": f"{app}.events", "partitions": 2, "max_parallel": 1}
        ],
    }


def written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def producer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "producer", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def answer(*arguments: str | Path) -> Any:
    """The one JSON document on stdout of a command that succeeds."""
    done = producer(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def topics(bootstrap: str) -> set[str]:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    try:
        return set(await client.list_topics())
    finally:
        await client.close()


@contextlib.contextmanager
def running(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `producer run` and its HTTP address, from when it is listening on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", "run", str(path), "--json", "--log-format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "address" in (told := json.loads(line)):
                yield process, told["address"]
                break
        else:
            pytest.fail("it ended before it was listening")
    finally:
        process.kill()
        process.communicate()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def wait_for_rows_read(url: str, rows: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if get(f"{url}/streams/events")["rows_read"] >= rows:
            return
        time.sleep(0.02)
    pytest.fail("nothing more was read")


def wait_for(url: str, wanted: str, least_rows: int = 1) -> dict[str, Any]:
    """The first stream as soon as it is in the wanted state and has had so many rows acknowledged."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = get(f"{url}/streams")["streams"]
        if found and found[0]["state"] == wanted and found[0]["rows_acked"] >= least_rows:
            return dict(found[0])
        time.sleep(0.02)
    pytest.fail(f"no stream came to be {wanted}")


def test_with_json_stdout_has_nothing_but_a_summary_a_stream(document: dict[str, Any], tmp_path: Path) -> None:
    document["streams"].append({**document["streams"][0], "name": "again"})
    done = producer("run", "--once", "--json", written(tmp_path, document))
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(line) for line in done.stdout.splitlines()]
    assert [summary["stream"] for summary in summaries] == ["events", "again"]
    for summary in summaries:
        assert tuple(summary) == SUMMARY
        assert (summary["rows"], summary["acked"], summary["state"]) == (ROWS, ROWS, "complete")


def test_a_run_that_nobody_asks_does_without_the_library_for_http(document: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, document)
    command = [sys.executable, "-X", "importtime", "-m", "producer", "run", "--once", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "producer.http" in imported
    assert not [name for name in imported if name.startswith("aiohttp")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_drains_commits_and_is_the_exit_code(
    document: dict[str, Any], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    document["streams"][0] |= {"max_rows_per_s": 40, "page_size": 5}
    path = written(tmp_path, document)
    with running(path) as (process, url):
        wait_for(url, "running")
        process.send_signal(number)
        out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code
    (summary,) = [json.loads(line) for line in out.splitlines()]
    assert summary["state"] == "stopped"
    assert 0 < summary["acked"] < ROWS
    (listed,) = answer("checkpoint", "list", path, "--json")
    assert listed["rows"] == summary["acked"]


def test_a_paused_stream_reads_nothing_until_it_is_resumed(document: dict[str, Any], tmp_path: Path) -> None:
    document["streams"][0] |= {"max_rows_per_s": 100, "page_size": 5}
    with running(written(tmp_path, document)) as (_, url):
        wait_for(url, "running")
        assert get(f"{url}/readyz")["ready"] is True
        urllib.request.urlopen(f"{url}/streams/events/pause", data=b"", timeout=10).close()
        wait_for(url, "paused")
        urllib.request.urlopen(f"{url}/streams/events/resume", data=b"", timeout=10).close()
        assert wait_for(url, "complete", ROWS)["rows_remaining"] == 0


def test_a_terminal_shows_a_live_table_and_leaves_stdout_alone(document: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", "run", "--once", "--json", str(written(tmp_path, document))],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the other end has been closed: how a terminal says that it is over
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert json.loads(out)["acked"] == ROWS
    assert b"\x1b[" in shown
    for text in (b"stream", b"rate", b"ETA", b"complete", b"100 %"):
        assert text in shown


EARLY = """\
import os, signal, sys, time
from producer import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
from producer.commands import options
def interrupted(*_):
    os.kill(os.getpid(), int(sys.argv[1]))
    time.sleep(30)
if sys.argv[2] == "parser":
    cli.build_parser = interrupted
else:
    options.load = interrupted
sys.exit(cli.main(["run", "shop.yaml"]))
"""


@pytest.mark.parametrize(
    ("number", "place", "code"),
    [(signal.SIGINT, "parser", 130), (signal.SIGINT, "load", 130), (signal.SIGTERM, "load", 143)],
)
def test_a_signal_before_anything_has_begun_ends_it_without_a_traceback(
    number: signal.Signals, place: str, code: int
) -> None:
    command = [sys.executable, "-c", EARLY, str(int(number)), place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_second_signal_ends_it_at_once(document: dict[str, Any], tmp_path: Path) -> None:
    with EmbeddedKafka() as broker:
        document["kafka"]["bootstrap_servers"] = broker.bootstrap
        document["streams"][0] |= {"max_rows_per_s": 40, "page_size": 5}
        with running(written(tmp_path, document)) as (process, url):
            wait_for(url, "running")
            broker.pause()  # nothing in flight is acknowledged any more: the drain has to wait
            read = get(f"{url}/streams/events")["rows_read"]
            wait_for_rows_read(url, read + 5)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            assert any("draining" in line for line in process.stderr)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 143


def test_status_asks_the_run_that_is_going_on_and_else_the_checkpoints(
    document: dict[str, Any], tmp_path: Path
) -> None:
    path = written(tmp_path, document)
    assert answer("status", path, "--json")["streams"][0]["state"] == "not started"
    with running(path) as (_, url):
        wait_for(url, "complete", ROWS)
        document["http"] = {"port": int(url.rpartition(":")[2])}
        told = answer("status", written(tmp_path, document), "--json")
        assert (told["running"], told["streams"][0]["rows_acked"]) == (True, ROWS)
        assert told["streams"][0]["rows_committed"] == ROWS
    told = answer("status", path, "--json")
    assert (told["running"], told["streams"][0]["state"]) == (False, "complete")
    assert told["streams"][0]["rows_committed"] == ROWS
    document["http"] = {"port": 0}
    with running(written(tmp_path, document)) as (_, url):  # again: nothing is left to read
        wait_for(url, "complete", 0)
        document["http"] = {"port": int(url.rpartition(":")[2])}
        told = answer("status", written(tmp_path, document), "--json")["streams"][0]
        assert (told["rows_acked"], told["rows_committed"]) == (0, ROWS)


async def test_plan_and_validate_write_nothing(document: dict[str, Any], tmp_path: Path, kafka_bootstrap: str) -> None:
    path = written(tmp_path, document)
    (plan,) = answer("plan", path, "--json")
    assert (plan["rows_estimate"], plan["key"], plan["topic"]) == (ROWS, ["id"], document["streams"][0]["topic"])
    assert [split["upper"] for split in plan["splits"]] == [{"key": [ROWS]}]
    assert [field["name"] for field in plan["schema"]["fields"]] == ["id", "name"]
    assert not (tmp_path / "state").exists()
    done = producer("validate", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("✓ ") for line in done.stdout.splitlines())
    assert not {name for name in await topics(kafka_bootstrap) if name.startswith(document["app"])}


def test_validate_goes_on_after_a_cross_and_hints(document: dict[str, Any], tmp_path: Path) -> None:
    document["streams"].append({**document["streams"][0], "table": "evnts", "name": "wrong"})
    done = producer("validate", written(tmp_path, document), "--json")
    checks = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 2
    assert not checks["stream wrong: table"]["ok"]
    assert "events" in checks["stream wrong: table"]["hint"]
    assert checks["stream events: Avro schema"]["ok"]
    assert checks["broker"]["ok"]


def test_plan_writes_positions_as_people_do(document: dict[str, Any], tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE odd (a TEXT, b BLOB, c INTEGER, d DATE, PRIMARY KEY (a, b, c, d)) WITHOUT ROWID")
    database.execute("INSERT INTO odd VALUES ('ü \"x\"', x'00ff', -7, '2024-02-29')")
    database.commit()
    document["streams"][0] |= {"table": "odd"}
    path = written(tmp_path, document)
    assert '  split 0: after the start up to "ü \\"x\\"", 0x00ff, -7, ' in producer("plan", path).stdout
    document["streams"][0] |= {"traversal": "OFFSET"}
    assert "  split 0: after the start up to row 1\n" in producer("plan", written(tmp_path, document)).stdout


def test_validate_lists_every_mistake_of_the_configuration(document: dict[str, Any], tmp_path: Path) -> None:
    document |= {"kafka": {"compression": "zst"}, "app": 7}
    document["streams"][0]["page_size"] = 0
    path = written(tmp_path, document)
    done = producer("validate", path)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 3
    assert all(str(path) in line for line in done.stdout.splitlines())
    assert [check["ok"] for check in json.loads(producer("validate", "--json", path).stdout)] == [False] * 3


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"replication_factor": 3}, "replication factor of 3 cannot be reached"),
        ({"topic_config": {"retention": "1"}}, "Unknown topic config name: retention"),
    ],
)
async def test_validate_asks_the_broker_whether_it_would_make_the_topic(
    document: dict[str, Any], tmp_path: Path, kafka_bootstrap: str, setting: dict[str, Any], told: str
) -> None:
    document["streams"][0] |= setting
    done = producer("validate", written(tmp_path, document))
    assert done.returncode == 2
    assert told in done.stdout
    assert document["streams"][0]["topic"] not in await topics(kafka_bootstrap)


def test_a_checkpoint_that_is_set_back_is_read_from_there(document: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, document)
    assert producer("run", "--once", path).returncode == 0
    assert answer("checkpoint", "set", path, "events", "--id", "150", "--json")["position"] == {"key": [150]}
    assert answer("run", "--once", "--json", path)["acked"] == ROWS - 150
    shown = answer("checkpoint", "show", path, "events", "--json")
    assert shown["splits"][0]["position"] == {"key": [ROWS]}
    assert shown["splits"][0]["done"] is True


def test_a_checkpoint_cannot_be_moved_under_a_run(document: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, document)
    with running(path) as (_, url):
        wait_for(url, "complete", ROWS)
        for action, more in (("set", ["--id", "5"]), ("reset", [])):
            done = producer("checkpoint", action, path, "events", *more)
            assert done.returncode == 1
            assert "another process" in done.stderr


def test_schemas_are_shown_checked_and_registered(document: dict[str, Any], tmp_path: Path, registry_url: str) -> None:
    document["schema_registry"] = {"url": registry_url, "auto_register": False}
    path = written(tmp_path, document)
    topic = document["streams"][0]["topic"]
    assert answer("schema", "show", path, "events", "--json")["key"]["fields"] == [{"name": "id", "type": "long"}]
    refused = producer("run", "--once", path)
    assert (refused.returncode, "auto_register is off" in refused.stderr) == (2, True)
    done = producer("schema", "register", path)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [f"{topic}-key", f"{topic}-value"]
    assert producer("schema", "check", path).returncode == 0
    assert producer("run", "--once", path).returncode == 0


def test_the_version_and_the_help_of_every_command_are_there() -> None:
    assert producer("--version").stdout.startswith("producer ")
    for command in ("run", "validate", "plan", "status", "checkpoint", "schema", "demo"):
        assert producer(command, "--help").returncode == 0
