"""Owns the claim that no mistake of a user costs more than one line: no traceback, no password, the right exit code."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PASSWORD = "hunter2secret"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port on which nobody answers and which nobody else can take."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def document(tmp_path: Path, kafka_bootstrap: str) -> dict[str, Any]:
    """A configuration that works, in a folder with its database."""
    database = sqlite3.connect(tmp_path / "shop.db")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    database.execute("CREATE TABLE keyless (name TEXT)")
    database.executemany("INSERT INTO events VALUES (?, ?)", [(i, f"n{i}") for i in range(1, 101)])
    database.commit()
    database.close()
    app = f"bad-{uuid.uuid4().hex[:8]}"
    return {
        "app": app,
        "kafka": {"bootstrap_servers": kafka_bootstrap, "sasl_password": PASSWORD, "connect_timeout_s": 2},
        "http": {"port": 0},
        "retry_timeout_s": 3,
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"}},
        "streams": [{"source": "shop", "table": "events", "topic": f"{app}.events", "partitions": 1}],
    }


def producer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "producer", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def config_file(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def refused(code: int, *arguments: str | Path) -> str:
    """Runs a command that must fail with `code`: the one line that says why."""
    done = producer(*arguments)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert PASSWORD not in said
    assert done.returncode == code, said
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def stream(**values: Any) -> Edit:
    return lambda document: document["streams"][0].update(values)


def source(**values: Any) -> Edit:
    return lambda document: document["sources"]["shop"].update(values)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(2, "run", tmp_path / "nope.yaml")


def test_a_yaml_error_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "shop.yaml"
    path.write_text("app: a\nkafka: [1\n")
    assert "shop.yaml:3:1: YAML error" in refused(2, "run", path)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (stream(tabel="x"), "streams[0].tabel is not a known key; did you mean 'table'?"),
        (stream(traversal="ID_RNGE"), "valid: OFFSET, ID_RANGE; did you mean 'ID_RANGE'?"),
        (stream(source="shpo"), "did you mean 'shop'?"),
        (source(type="sqll"), "did you mean 'sql'?"),
        (stream(table="evnts"), "evnts"),
        (stream(columns=["id", "nmae"]), "nmae"),
        (stream(exclude=["nmae"]), "nmae"),
        (stream(key=["idd"]), "idd"),
        (stream(order_by=["idd"]), "idd"),
        (stream(table="keyless"), "key"),
        (stream(traversal="OFFSET", table="keyless"), "key"),
        (stream(where="nmae > :x", params={"x": 1}), "nmae"),
        (stream(where="id > :x"), "x"),
        (stream(schema="nope.avsc"), "nope.avsc"),
        (source(url="sqlite:////nonexistent/shop.db"), "shop.db"),
        (source(url=f"nosuch://u:{PASSWORD}@localhost/x"), "nosuch"),
        (source(url="no url at all"), "url"),
    ],
)
def test_a_wrong_configuration_is_exit_code_2(document: dict[str, Any], tmp_path: Path, edit: Edit, told: str) -> None:
    edit(document)
    assert told in refused(2, "run", "--once", config_file(tmp_path, document))


def test_a_broker_that_is_not_there_is_named(document: dict[str, Any], tmp_path: Path, closed_port: int) -> None:
    document["kafka"]["bootstrap_servers"] = f"127.0.0.1:{closed_port}"
    path = config_file(tmp_path, document)
    assert f"127.0.0.1:{closed_port}" in refused(2, "run", "--once", "--log-level", "warning", path)
    assert producer("run", "--once", "--log-level", "warning", path).stderr.count("\n") == 1


def test_a_registry_that_is_not_there_is_named(document: dict[str, Any], tmp_path: Path, closed_port: int) -> None:
    document["schema_registry"] = {"url": f"http://u:{PASSWORD}@127.0.0.1:{closed_port}"}
    assert f"127.0.0.1:{closed_port}" in refused(2, "run", "--once", config_file(tmp_path, document))


def test_a_database_that_is_not_there_is_named(document: dict[str, Any], tmp_path: Path, closed_port: int) -> None:
    document["sources"]["shop"]["url"] = f"postgresql://u:{PASSWORD}@127.0.0.1:{closed_port}/shop"
    assert str(closed_port) in refused(2, "run", "--once", config_file(tmp_path, document))


def test_a_user_that_the_database_does_not_know_is_refused(
    document: dict[str, Any], tmp_path: Path, postgres_dsn: str
) -> None:
    scheme, _, rest = postgres_dsn.partition("://")
    document["sources"]["shop"]["url"] = f"{scheme}://nobody:{PASSWORD}@{rest.rpartition('@')[2]}"
    assert "refused" in refused(2, "run", "--once", config_file(tmp_path, document))


def test_a_registry_that_refuses_names_the_field(document: dict[str, Any], tmp_path: Path, registry_url: str) -> None:
    subject = f"{document['streams'][0]['topic']}-value"
    old = {
        "type": "record",
        "name": "events",
        "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": "int"}],
    }
    request = urllib.request.Request(
        f"{registry_url}/subjects/{subject}/versions",
        json.dumps({"schema": json.dumps(old)}).encode(),
        {"Content-Type": "application/vnd.schemaregistry.v1+json"},
    )
    urllib.request.urlopen(request, timeout=20).close()
    document["schema_registry"] = {"url": registry_url}
    path = config_file(tmp_path, document)
    line = refused(2, "run", "--once", path)
    assert subject in line
    assert "name" in line
    assert "✗ stream events: registry" in producer("validate", path).stdout
    assert producer("schema", "check", path).returncode == 1


def test_a_checkpoint_of_another_query_names_the_way_out(document: dict[str, Any], tmp_path: Path) -> None:
    path = config_file(tmp_path, document)
    assert producer("run", "--once", path).returncode == 0
    document["streams"][0]["columns"] = ["id"]
    config_file(tmp_path, document)
    assert "producer checkpoint reset" in refused(2, "run", "--once", path)
    assert "✗ stream events: checkpoint" in producer("validate", path).stdout
    assert producer("checkpoint", "reset", path, "events").returncode == 0
    assert producer("run", "--once", path).returncode == 0


def test_a_corrupt_checkpoint_names_the_way_out(document: dict[str, Any], tmp_path: Path) -> None:
    path = config_file(tmp_path, document)
    assert producer("run", "--once", path).returncode == 0
    (checkpoint,) = (tmp_path / "state").glob("*.json")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-20])
    commands: list[list[str | Path]] = [
        ["run", "--once", path],
        ["checkpoint", "show", path, "events"],
        ["checkpoint", "list", path],
    ]
    for command in commands:
        assert "cannot be read" in refused(2 if command[0] == "run" else 1, *command)
    assert producer("validate", path).returncode == 2


def test_a_state_directory_that_cannot_be_written_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert "checkpoints.path" in refused(2, "run", "--once", config_file(tmp_path, document))


def test_a_full_disk_leaves_the_checkpoint_and_costs_one_line(ready: Path) -> None:
    assert producer("checkpoint", "set", ready, "events", "--id", "50").returncode == 0
    before = producer("checkpoint", "show", ready, "events", "--json").stdout
    (checkpoint,) = (ready.parent / "state").glob("*.json")
    checkpoint.with_name(f"{checkpoint.name}.tmp").symlink_to("/dev/full")  # where the next save is written first
    assert "No space left on device" in refused(2, "run", "--once", ready)
    assert producer("checkpoint", "show", ready, "events", "--json").stdout == before
    assert producer("run", "--once", ready).returncode == 0


def test_a_port_in_use_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        document["http"]["port"] = taken.getsockname()[1]
        assert "the port is in use" in refused(2, "run", "--once", config_file(tmp_path, document))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: COMMAND"),
        (["rnu"], "invalid choice"),
        (["run"], "required: CONFIG"),
        (["run", "a.yaml", "--log-level", "loud"], "invalid choice"),
        (["demo", "--rows", "none"], "--rows"),
        (["demo", "--rows", "-5"], "--rows"),
        (["checkpoint", "set", "a.yaml", "events"], "required"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], told: str) -> None:
    assert told in refused(2, *arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "evnts"], "has no checkpoint; streams with one: events"),
        (["reset", "evnts"], "has no checkpoint; streams with one: events"),
        (["set", "evnts", "--id", "5"], "has no checkpoint"),
        (["set", "events", "--offset", "5"], "another kind of position"),
        (["set", "events", "--key", '"abc"'], "has a key of (int)"),
        (["set", "events", "--key", "{"], "--key is not JSON"),
        (["set", "events", "--position", '{"offst": 5}'], "not a position"),
        (["set", "events", "--id", "5", "--split", "x"], "no split 'x'"),
    ],
)
def test_a_checkpoint_cannot_be_set_to_what_does_not_fit(ready: Path, arguments: list[str], told: str) -> None:
    action, name, *rest = arguments
    assert told in refused(2, "checkpoint", action, ready, name, *rest)


@pytest.fixture
def ready(document: dict[str, Any], tmp_path: Path) -> Path:
    """A configuration whose stream has run once, with one split."""
    document["streams"][0]["max_parallel"] = 1
    path = config_file(tmp_path, document)
    assert producer("run", "--once", path).returncode == 0
    return path
