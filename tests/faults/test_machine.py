"""Owns the claims about what fails beneath a run: its clock steps, its disk is full, Redis loses its data, or its lock
goes to another worker in the middle of a page."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from producer.embedded import EmbeddedKafka
from tests.audit import TopicAudit
from tests.faults.killing import finish, start, state_of, wait_for, write_config
from tests.faults.test_kill import KEY_SCHEMA
from tests.faults.workers import verified
from tests.services.databases import Redis
from tests.services.proxy import Proxy

ROWS = 8_000
KEYS = {(n,) for n in range(1, ROWS + 1)}
LOCK_S = 1.0


def configuration(folder: Path, name: str, bootstrap: str, checkpoints: dict[str, Any], **settings: Any) -> Path:
    """A table of `ROWS` rows to the topic `name`, which takes some seconds."""
    database = folder / "shop.db"
    if not database.exists():
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT)")
            connection.executemany("INSERT INTO events VALUES (?, ?)", ((n, f"n{n}") for n in range(1, ROWS + 1)))
    stream = {
        "source": "shop",
        "table": "events",
        "topic": name,
        "partitions": 2,
        "page_size": 200,
        "max_parallel": 1,
        "max_rows_per_s": 3_000,
    }
    return write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap},
            "checkpoints": checkpoints,
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": f"sqlite:///{database}"}},
            "streams": [stream],
            **settings,
        },
    )


def failed(process: subprocess.Popen[str]) -> str:
    """What a run says that ends with exit code 1."""
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    return err


@pytest.fixture
def make_audit(kafka_bootstrap: str, unique: str) -> Iterator[Callable[..., TopicAudit]]:
    made: list[TopicAudit] = []

    def make(**settings: Any) -> TopicAudit:
        made.append(TopicAudit(settings.pop("bootstrap", kafka_bootstrap), unique, KEY_SCHEMA, **settings))
        return made[-1]

    yield make
    for audit in made:
        audit.close()


#: `producer` with a wall clock that is off by what a file says. Only the wall clock steps: that is what makes it one.
STEPPED = """
import pathlib, runpy, sys, time
offset, real, real_ns = pathlib.Path(sys.argv.pop(1)), time.time, time.time_ns
time.time = lambda: real() + float(offset.read_text())
time.time_ns = lambda: real_ns() + int(float(offset.read_text()) * 1e9)
runpy.run_module("producer", run_name="__main__")
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", ["kafka", "redis"])
def test_a_clock_that_steps_back_and_forth_neither_stalls_a_run_nor_loses_anything(
    store: str,
    kafka_bootstrap: str,
    redis_url: str,
    unique: str,
    tmp_path: Path,
    make_audit: Callable[..., TopicAudit],
) -> None:
    """Transactions on the one hand; on the other a lock that is renewed. In both the rate is limited."""
    exactly_once = store == "kafka"
    settings: dict[str, Any] = {"delivery": "exactly_once"} if exactly_once else {"coordination": "redis"}
    checkpoints: dict[str, Any] = {"type": "kafka"}
    if not exactly_once:
        checkpoints = {"type": "redis", "url": redis_url, "prefix": f"{unique}:", "lock_timeout_s": LOCK_S}
    config = configuration(tmp_path, unique, kafka_bootstrap, checkpoints, **settings)
    audit = make_audit(isolation="read_committed" if exactly_once else "read_uncommitted")
    offset = tmp_path / "offset"
    offset.write_text("0")
    process = subprocess.Popen(
        [sys.executable, "-c", STEPPED, str(offset), "run", str(config), "--once", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for step_s in (-7200, 1800, -86_400 * 400):
            wait_for(audit, audit.end() + 800, process)
            new = tmp_path / "offset.new"
            new.write_text(str(step_s))
            new.rename(offset)
        (summary,) = finish(process, 60)
    finally:
        process.kill()
        process.communicate()
    assert (summary["state"], summary["acked"]) == ("complete", ROWS)
    assert 0 < summary["seconds"] < 60
    audit.catch_up()
    assert set(audit.keys) == KEYS
    assert audit.duplicates == 0
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(120)
def test_a_clock_far_ahead_of_the_brokers_fails_the_run_by_its_name_and_loses_nothing(
    kafka_bootstrap: str, unique: str, tmp_path: Path, make_audit: Callable[..., TopicAudit]
) -> None:
    """A broker takes no record from over an hour in its future (message.timestamp.after.max.ms)."""
    config = configuration(tmp_path, unique, kafka_bootstrap, {"type": "kafka"}, delivery="exactly_once")
    offset = tmp_path / "offset"
    offset.write_text("86400")
    command = [sys.executable, "-c", STEPPED, str(offset), "run", str(config), "--once", "--json"]
    told = failed(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert "set this machine's clock" in told
    finish(start(config, "--once"))
    audit = make_audit(isolation="read_committed")
    audit.catch_up()
    assert (set(audit.keys), audit.duplicates) == (KEYS, 0)
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(120)
def test_a_disk_that_fills_up_ends_the_run_with_its_checkpoint_intact_and_the_next_goes_on(
    kafka_bootstrap: str, unique: str, tmp_path: Path, make_audit: Callable[..., TopicAudit]
) -> None:
    config = configuration(tmp_path, unique, kafka_bootstrap, {"type": "file", "path": "state"})
    audit = make_audit()
    process = start(config, "--once")
    try:
        wait_for(audit, ROWS // 4, process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        told = failed(process)
    finally:
        process.kill()
        process.communicate()
    assert "cannot be saved" in told
    assert "make room and run again: nothing is lost" in told
    state = state_of(config, "events")
    assert state is not None
    audit.catch_up()
    done = sum(checkpoint.rows for checkpoint in state.checkpoints)
    assert 0 < done < ROWS
    assert {(n,) for n in range(1, done + 1)} <= set(audit.keys)
    (summary,) = finish(start(config, "--once"))
    assert summary["acked"] == ROWS - done  # it went on, and did not start over
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(120)
@pytest.mark.parametrize("coordination", ["none", "redis"])
@pytest.mark.parametrize("way", ["flushed", "restarted"])
def test_a_redis_that_loses_its_data_stops_the_run_and_the_next_sends_everything(
    way: str,
    coordination: str,
    kafka_bootstrap: str,
    unique: str,
    tmp_path: Path,
    make_audit: Callable[..., TopicAudit],
) -> None:
    server = Redis()
    server.start()
    process: subprocess.Popen[str] | None = None
    try:
        checkpoints = {"type": "redis", "url": server.url(), "lock_timeout_s": LOCK_S}
        config = configuration(tmp_path, unique, kafka_bootstrap, checkpoints, coordination=coordination)
        audit = make_audit()
        process = start(config, "--once")
        wait_for(audit, ROWS // 4, process)
        if way == "flushed":
            with redis.Redis.from_url(server.url()) as client:
                client.flushall()
        else:
            server.stop()
            server.start()
        assert "Redis has lost its data" in failed(process)
        (summary,) = finish(start(config, "--once"))
        assert summary["acked"] == ROWS
        assert verified(config, "events")["source_rows"] == ROWS
    finally:
        if process is not None:
            process.kill()
            process.communicate()
        server.close()


@pytest.mark.timeout(120)
def test_a_lock_that_goes_to_another_worker_in_the_middle_of_a_page_leaves_its_late_acknowledgement_uncommitted(
    proxied_kafka: tuple[EmbeddedKafka, Proxy],
    redis_url: str,
    unique: str,
    tmp_path: Path,
    make_audit: Callable[..., TopicAudit],
) -> None:
    broker, proxy = proxied_kafka
    checkpoints = {"type": "redis", "url": redis_url, "prefix": f"{unique}:", "lock_timeout_s": LOCK_S}
    (tmp_path / "late").mkdir()
    slow = configuration(tmp_path / "late", unique, proxy.address, checkpoints, coordination="redis")
    audit = make_audit(bootstrap=broker.bootstrap)
    late, second = start(slow, "--once"), None
    try:
        wait_for(audit, ROWS // 4, late)
        proxy.swallow_answers = True  # pages are with the broker, and their acknowledgements on the way
        sent = proxy.bytes_up
        while proxy.bytes_up == sent:
            time.sleep(0.01)
        proxy.silent, proxy.swallow_answers = True, False
        late.send_signal(signal.SIGSTOP)
        direct = write_config(
            tmp_path, {**_read(slow), "kafka": {"bootstrap_servers": broker.bootstrap}}
        )  # the same stream by another way to the broker
        second = start(direct, "--once")
        wait_for(audit, audit.end() + ROWS // 4, second)
        proxy.silent = False
        proxy.reset()
        late.send_signal(signal.SIGCONT)
        _, told = late.communicate(timeout=60)
        assert late.returncode == 0, told
        assert "taken over by another worker" in told
        (summary,) = finish(second)
        assert 0 < summary["acked"] < ROWS  # it went on where the first had committed
        assert verified(direct, "events")["source_rows"] == ROWS
    finally:
        for process in filter(None, (late, second)):
            process.kill()
            process.communicate()


@pytest.mark.timeout(120)
def test_a_stream_that_has_given_up_leaves_its_lock_to_the_worker_that_stands_by(
    proxied_kafka: tuple[EmbeddedKafka, Proxy],
    redis_url: str,
    unique: str,
    tmp_path: Path,
    make_audit: Callable[..., TopicAudit],
) -> None:
    broker, proxy = proxied_kafka
    checkpoints = {"type": "redis", "url": redis_url, "prefix": f"{unique}:", "lock_timeout_s": LOCK_S}
    (tmp_path / "cut_off").mkdir()
    impatient = {"bootstrap_servers": proxy.address, "delivery_timeout_s": 2, "connect_timeout_s": 2}
    cut_off = configuration(
        tmp_path / "cut_off",
        unique,
        proxy.address,
        checkpoints,
        coordination="redis",
        retry_timeout_s=2,
        kafka=impatient,
    )
    audit = make_audit(bootstrap=broker.bootstrap)
    first, second = start(cut_off), None
    try:
        wait_for(audit, ROWS // 4, first)
        direct = write_config(tmp_path, {**_read(cut_off), "kafka": {"bootstrap_servers": broker.bootstrap}})
        second = start(direct, "--once")
        proxy.refuse = True
        proxy.reset()
        (summary,) = finish(second)
        assert 0 < summary["acked"] < ROWS
        assert first.poll() is None  # it is there, and has failed
        assert verified(direct, "events")["source_rows"] == ROWS
    finally:
        proxy.refuse = False
        for process in filter(None, (first, second)):
            process.kill()
            process.communicate()


def _read(config: Path) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load(config.read_text())
    return found
