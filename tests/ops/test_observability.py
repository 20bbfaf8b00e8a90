"""Dashboards and alerts: current, tested by promtool, and answered by a Prometheus that scrapes a producer."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import build
from producer.embedded import free_port
from tests.faults.killing import start, write_config
from tests.services.process import Process

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "dashboards" / "alerts.yaml"
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]


def panels() -> list[tuple[str, str, str]]:
    """Dashboard, panel and expression of every query."""
    return [
        (path.stem, panel["title"], target["expr"])
        for path in sorted((ROOT / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]


def test_the_files_are_what_the_code_makes() -> None:
    for path, text in build.generated().items():
        assert path.read_text("utf-8") == text, f"python -m dashboards.build writes {path.name} anew"


def test_no_dashboard_lies_about_in_the_folder_that_nobody_makes() -> None:
    made = {path.name for path in build.generated()}
    assert {path.name for path in (ROOT / "dashboards").glob("*.json")} <= made
    assert {path.name for path in (ROOT / "helm/files").iterdir()} == made


def test_alerts_fire_when_they_should_and_only_then(prometheus: tuple[str, str]) -> None:
    _, promtool = prometheus
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    fires: dict[str, set[bool]] = {}
    for case in yaml.safe_load(Path(__file__).with_name("alerts_test.yaml").read_text())["tests"]:
        for check in case["alert_rule_test"]:
            fires.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert fires == {rule["alert"]: {True, False} for rule in RULES}


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert sections == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{rule['alert'].lower()}"


def test_the_composed_prometheus_reads_the_alerts() -> None:
    (rules,) = yaml.safe_load((ROOT / "compose/prometheus.yml").read_text())["rule_files"]
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["volumes"]
    places = {inside: outside for outside, inside, _ in (mount.split(":") for mount in mounts)}
    folder, _, name = rules.rpartition("/")
    assert (ROOT / places[folder] / name).resolve() == ALERTS


class Watched:
    """A Prometheus that scrapes a running producer."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def values(self, expr: str) -> list[float]:
        """The query's values now, without what is not a number."""
        found = self.get("/api/v1/query", query=expr)["result"]
        return [value for series in found if not math.isnan(value := float(series["value"][1]))]

    def has(self, expr: str) -> bool:
        return bool(self.values(expr))


def until(holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def watched(prometheus: tuple[str, str], kafka_bootstrap: str) -> Iterator[Watched]:
    """The producer follows a SQLite table into which somebody writes all the time."""
    folder = Path(tempfile.mkdtemp(prefix="watched-"))
    name = f"watched_{free_port()}"
    with sqlite3.connect(folder / "shop.db") as table:
        table.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        table.executemany("INSERT INTO events (name) VALUES (?)", [("old",)] * 1000)
    table.close()
    over = threading.Event()

    def write() -> None:
        connection = sqlite3.connect(folder / "shop.db", timeout=30)
        while not over.wait(0.2):
            with connection:
                connection.executemany("INSERT INTO events (name) VALUES (?)", [("new",)] * 10)
        connection.close()

    http_port, port = free_port(), free_port()
    config = {
        "app": name,
        "kafka": {"bootstrap_servers": kafka_bootstrap},
        "checkpoints": {"type": "file", "path": str(folder / "state")},
        "http": {"port": http_port},
        "sources": {"shop": {"type": "sql", "url": f"sqlite:///{folder / 'shop.db'}"}},
        "streams": [
            {
                "source": "shop",
                "table": "events",
                "topic": f"{name}.events",
                "mode": "snapshot_then_tail",
                "poll_interval_s": 0.2,
            }
        ],
    }
    (folder / "prometheus.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(ALERTS)],
                "scrape_configs": [
                    {"job_name": "producer", "static_configs": [{"targets": [f"127.0.0.1:{http_port}"]}]}
                ],
            }
        )
    )
    producer = start(write_config(folder, config))
    writer = threading.Thread(target=write)
    writer.start()
    server = Process(
        [
            prometheus[0],
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        log=folder / "prometheus.log",
    )
    try:
        seen = Watched(port)
        server.wait_ready(seen.ready)
        yield seen
    finally:
        server.stop()
        producer.terminate()
        _, err = producer.communicate(timeout=60)
        over.set()
        writer.join()
        shutil.rmtree(folder, ignore_errors=True)
    assert producer.returncode == 143, err


@pytest.mark.parametrize(("board", "title", "expr"), panels(), ids=lambda text: re.sub(r"\W+", "_", text)[:40])
def test_every_panel_shows_something(watched: Watched, board: str, title: str, expr: str) -> None:
    asked = expr.replace("$__rate_interval", "10s").replace("$stream", ".*")
    assert "$" not in asked
    until(lambda: watched.has(asked), f"{board}, {title}: no data for {asked}")


def test_the_stream_can_be_chosen(watched: Watched) -> None:
    match = {"match[]": "producer_rows_read_total"}
    until(lambda: watched.get("/api/v1/label/stream/values", **match) == ["events"], "no stream to choose")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_series_that_an_alert_looks_at_is_there(watched: Watched, rule: dict[str, Any]) -> None:
    """Also of what has not happened yet: an alert on the first dead letter needs the 0 before it."""
    series = re.findall(r"producer_\w+(?:\{[^}]*\})?", rule["expr"])
    assert series
    for selector in series:
        until(functools.partial(watched.has, selector), f"no data for {selector}")


def test_prometheus_evaluates_the_alerts_and_a_producer_that_is_well_fires_none(watched: Watched) -> None:
    def evaluated() -> bool:
        (group,) = watched.get("/api/v1/rules", type="alert")["groups"]
        return all(rule["health"] == "ok" for rule in group["rules"])

    until(lambda: watched.has("producer_rows_read_total > 1000"), "nothing was read")
    until(evaluated, "an alert cannot be evaluated")
    # Before the first scrape no producer is seen, which is pending until the next evaluation.
    until(lambda: watched.get("/api/v1/alerts")["alerts"] == [], "an alert on a producer that is well")
