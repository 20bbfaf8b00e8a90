"""The image, built by the Dockerfile and run as the chart runs it: nobody's user, nothing writable, no capability."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from producer.embedded import free_port
from tests.audit import TopicAudit
from tests.container.conftest import IMAGE
from tests.container.engine import Engine

ROWS = 1000
# As in the chart's security context.
CLOSED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host")
HEALTH = ("healthcheck", "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that the image's user may write to, with a table in it."""
    folder = tmp_path / "data"
    folder.mkdir()
    with sqlite3.connect(folder / "shop.db") as table:
        table.execute("CREATE TABLE events (id INTEGER PRIMARY KEY)")
        table.executemany("INSERT INTO events VALUES (?)", ((number,) for number in range(ROWS)))
    table.close()
    for path in (folder, folder / "shop.db"):
        os.chown(path, 10001, 10001)
    return folder


def config(bootstrap: str, topic: str, port: int) -> dict[str, Any]:
    """As seen from inside, where the folder of the data is /var/lib/producer."""
    return {
        "app": topic,
        "kafka": {"bootstrap_servers": bootstrap},
        "checkpoints": {"type": "file", "path": "/var/lib/producer/state"},
        "http": {"port": port},
        "sources": {"shop": {"type": "sql", "url": "sqlite:////var/lib/producer/shop.db"}},
        "streams": [{"source": "shop", "table": "events", "topic": topic, "mode": "snapshot_then_tail"}],
    }


def mounts(data: Path, settings: dict[str, Any]) -> list[str]:
    path = data.parent / "producer.yaml"
    path.write_text(yaml.safe_dump(settings))
    return ["--volume", f"{data}:/var/lib/producer", "--volume", f"{path}:/etc/producer/producer.yaml:ro"]


@pytest.fixture
def audited(kafka_bootstrap: str, unique: str) -> Iterator[TopicAudit]:
    audit = TopicAudit(kafka_bootstrap, unique, {"type": "record", "name": "k", "fields": []})
    yield audit
    audit.close()


def until(holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.timeout(900)
def test_two_builds_are_the_same_to_the_byte(engine: Engine) -> None:
    def layers(name: str) -> str:
        return engine.podman("image", "inspect", "--format", "{{.RootFS.Layers}}", name)

    engine.build("localhost/streaming-producer:again")
    assert layers(IMAGE) == layers("localhost/streaming-producer:again")


def test_it_says_its_version_without_a_network(engine: Engine) -> None:
    closed = [*CLOSED[:-1], "none"]
    assert engine.podman("run", "--rm", *closed, IMAGE, "--version").startswith("producer ")


def test_no_compiler_or_installer_is_in_it_and_its_contents_are_listed(engine: Engine) -> None:
    look = "for name in gcc cc pip make; do command -v $name; done; cat /opt/producer/sbom.cdx.json"
    said = engine.podman("run", "--rm", *CLOSED, "--entrypoint", "sh", IMAGE, "-c", look)
    assert json.loads(said)["bomFormat"] == "CycloneDX"


def test_a_table_is_streamed_to_a_broker(
    engine: Engine, kafka_bootstrap: str, unique: str, data: Path, audited: TopicAudit
) -> None:
    settings = config(kafka_bootstrap, unique, free_port())
    given = mounts(data, settings)
    run = ("run", "/etc/producer/producer.yaml", "--once", "--json")
    said = engine.podman("run", "--rm", *CLOSED, *given, IMAGE, *run)
    assert json.loads(said.splitlines()[-1])["acked"] == ROWS
    assert audited.end() == ROWS


@pytest.fixture
def running(
    engine: Engine, kafka_bootstrap: str, unique: str, data: Path, audited: TopicAudit
) -> Iterator[tuple[str, int]]:
    """The name of a container that follows the table, and its port."""
    port = free_port()
    given = mounts(data, config(kafka_bootstrap, unique, port))
    run = ("run", "/etc/producer/producer.yaml")
    engine.podman("run", "--detach", "--name", unique, "--env", f"HTTP_PORT={port}", *CLOSED, *given, IMAGE, *run)
    until(lambda: engine.tried(*HEALTH, unique).returncode == 0, "it never became healthy")
    yield unique, port
    engine.podman("rm", "--force", "--time", "0", unique)


def test_it_is_healthy_runs_as_nobody_and_a_signal_drains_it(
    engine: Engine, running: tuple[str, int], audited: TopicAudit
) -> None:
    name, _ = running
    until(lambda: audited.end() == ROWS, "the rows did not come")
    status = engine.podman("exec", name, "cat", "/proc/1/status")
    told = dict(re.findall(r"^(\w+):\s+(.+)$", status, re.MULTILINE))
    assert told["Name"] == "producer"
    assert (told["Uid"].split(), told["Gid"].split()) == (["10001"] * 4, ["10001"] * 4)
    assert {int(told[kind], 16) for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert told["NoNewPrivs"] == "1"
    for place in ("/opt/producer/x", "/etc/x", "/x"):
        said = engine.tried("exec", name, "sh", "-c", f"echo > {place}")
        assert "Read-only file system" in said.stderr
    engine.podman("kill", "--signal", "TERM", name)
    assert engine.podman("wait", name).strip() == str(128 + 15)
    assert "draining" in engine.tried("logs", name).stderr


def test_it_is_not_healthy_when_it_hangs(engine: Engine, running: tuple[str, int]) -> None:
    name, _ = running
    engine.podman("kill", "--signal", "STOP", name)
    assert engine.tried(*HEALTH, name).returncode != 0
    engine.podman("kill", "--signal", "CONT", name)
    until(lambda: engine.tried(*HEALTH, name).returncode == 0, "it did not become healthy again")


def test_a_run_that_is_stopped_goes_on_where_it_was(
    engine: Engine, running: tuple[str, int], kafka_bootstrap: str, data: Path, audited: TopicAudit
) -> None:
    name, port = running
    until(lambda: audited.end() == ROWS, "the rows did not come")
    engine.podman("stop", "--time", "45", name)
    with sqlite3.connect(data / "shop.db") as table:
        table.executemany("INSERT INTO events VALUES (?)", ((number,) for number in range(ROWS, 2 * ROWS)))
    table.close()
    run = ("run", "/etc/producer/producer.yaml", "--once", "--json")
    engine.podman("run", "--rm", *CLOSED, *mounts(data, config(kafka_bootstrap, name, port)), IMAGE, *run)
    assert audited.end() == 2 * ROWS
