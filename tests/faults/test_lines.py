"""Owns the claims about the lines between a run and its broker, database, registry and Redis, each broken in every way:
the run goes on by itself, `producer verify` agrees, and what is exactly once has nothing twice."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from adbc_driver_postgresql import dbapi

from producer.embedded import EmbeddedKafka
from producer.redis import SOCKET_TIMEOUT_S
from tests.audit import TopicAudit
from tests.faults.killing import finish, start, state_of, write_config
from tests.faults.test_kill import KEY_SCHEMA
from tests.faults.workers import verified
from tests.services.proxy import Proxy

ROWS = 10_000
BETWEEN = 1_200  # rows that are appended before the next fault
PREFIX = 5  # bytes of the framing before a key


@dataclass(frozen=True, slots=True)
class Fault:
    """Switches of a `Proxy` that are set for `hold_s`, and whether connections break at its end.

    One that `strands` leaves the connections open at its end, those that were made meanwhile, too: nothing ever passes
    on them again, and only new ones work.
    """

    name: str
    switches: dict[str, Any]
    hold_s: float = 0.5
    breaks: bool = False
    strands: bool = False


FAULTS = (
    Fault("latency", {"latency_s": 0.15}),
    Fault("bandwidth", {"bytes_per_s": 20_000}),
    Fault("drop", {"silent": True}),  # for a while; TCP brings it later
    Fault("reset", {}, hold_s=0, breaks=True),
    Fault("down", {"refuse": True}, breaks=True),
    Fault("lost answers", {"swallow_answers": True}, breaks=True),
    # No end to it but the deadline of whoever waits for an answer; what was on its way is committed within the hold.
    Fault("half-open", {}, hold_s=1.2, strands=True),
)


class Line:
    """A proxy behind the one that clients know: it falls silent for good, and new connections go around it."""

    def __init__(self, front: Proxy) -> None:
        self.front = front
        self._server_port = front.upstream_port
        self._back = Proxy(front.upstream_port)
        front.upstream_port = self._back.port

    def begin(self, fault: Fault) -> None:
        for switch, value in fault.switches.items():
            setattr(self.front, switch, value)
        if fault.breaks and "refuse" in fault.switches:
            self.front.reset()
        if fault.strands:
            self._back.silent = True

    def end(self, fault: Fault) -> None:
        if fault.breaks:
            self.front.reset()
        for switch, usual in (
            ("latency_s", 0.0),
            ("bytes_per_s", None),
            ("silent", False),
            ("swallow_answers", False),
            ("refuse", False),
        ):
            if switch in fault.switches:
                setattr(self.front, switch, usual)
        if fault.strands:
            self.front.upstream_port = self._server_port

    def close(self) -> None:
        self.front.upstream_port = self._server_port
        self._back.close()


def through(proxy: Proxy, url: str) -> str:
    """The URL with the proxy in the place of its server."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{at}{proxy.address}").geturl()


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def run_sql(database: str, statement: str) -> None:
    with dbapi.connect(database, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.fixture(scope="module")
def database(postgres_dsn: str) -> str:
    numbers = f"generate_series(1::bigint, {ROWS}) g"
    run_sql(postgres_dsn, f"CREATE TABLE events AS SELECT g AS id, 'kind ' || g % 7 AS kind FROM {numbers}")
    run_sql(postgres_dsn, "ALTER TABLE events ADD PRIMARY KEY (id)")
    run_sql(postgres_dsn, "ANALYZE events")
    return postgres_dsn


def configuration(
    folder: Path, name: str, *, bootstrap: str, database: str, registry: str, redis: str | None = None, **kafka: float
) -> Path:
    """Exactly once, or checkpoints in Redis. The deadlines are short, since a half-open line lasts until they pass."""
    checkpoints: dict[str, Any] = {"type": "kafka"}
    if redis is not None:
        checkpoints = {"type": "redis", "url": redis, "prefix": f"{name}:", "lock_timeout_s": 20}
    return write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap, **kafka},
            "schema_registry": {"url": registry, "timeout_s": 2.5},
            "checkpoints": checkpoints,
            "delivery": "at_least_once" if redis else "exactly_once",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": database, "statement_timeout_s": 2.5, "connect_timeout_s": 1.0}},
            "streams": [
                {
                    "source": "shop",
                    "table": "events",
                    "topic": name,
                    "partitions": 2,
                    "page_size": 100,
                    "max_parallel": 2,
                    "max_rows_per_s": 1_200,  # longer than all faults
                }
            ],
        },
    )


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], deadline_s: float = 60) -> None:
    until = time.monotonic() + deadline_s
    while not true():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it does not go on"
        time.sleep(0.02)


def commits_more(config: Path) -> Callable[[], bool]:
    """Whether the checkpoints have moved on from where they are now."""

    def rows() -> int:
        state = state_of(config, "events")
        return sum(checkpoint.rows for checkpoint in state.checkpoints) if state is not None else 0

    before = rows()
    return lambda: rows() > before


def goes_on_through_all(
    config: Path,
    name: str,
    direct: str,
    proxy: Proxy,
    *,
    deadline_s: float,
    exactly_once: bool = True,
    meanwhile: Callable[[Fault], None] = lambda _fault: None,
) -> None:
    """Each fault in turn, the next one when the run has gone on for a while after the last.

    `deadline_s` is how long the run waits for an answer on the line: after that it goes on where a line is half-open.
    """
    line = Line(proxy)
    audit = TopicAudit(
        direct, name, KEY_SCHEMA, prefix=PREFIX, isolation="read_committed" if exactly_once else "read_uncommitted"
    )
    process = start(config, "--once")
    try:
        wait_until(lambda: audit.end() >= 200, process)
        for fault in FAULTS:
            if fault.strands:  # there is to be a connection, in use again after the fault before
                wait_until(commits_more(config), process)
            before, began = audit.end(), time.monotonic()
            line.begin(fault)
            meanwhile(fault)
            time.sleep(fault.hold_s)
            line.end(fault)
            if fault.strands:
                more = commits_more(config)
                wait_until(lambda more=more: process.poll() is not None or more(), process)  # type: ignore[misc]
                assert time.monotonic() - began > 0.8 * deadline_s, "nobody waited for an answer on the silent line"
            else:
                wait_until(lambda before=before: audit.end() >= before + 200, process)  # type: ignore[misc]
        (summary,) = finish(process, 60)
        assert summary["state"] == "complete"
        audit.catch_up()
        assert set(audit.keys) == {(n,) for n in range(1, ROWS + 1)}
        if exactly_once:
            assert audit.duplicates == 0
    finally:
        process.kill()
        process.communicate()
        audit.close()
        line.close()
    assert verified(config, "events")["source_rows"] == ROWS


@pytest.mark.timeout(180)
def test_a_run_goes_on_through_every_fault_of_the_line_to_its_broker(
    proxied_kafka: tuple[EmbeddedKafka, Proxy], database: str, registry_url: str, unique: str, tmp_path: Path
) -> None:
    broker, proxy = proxied_kafka
    config = configuration(
        tmp_path,
        unique,
        bootstrap=proxy.address,
        database=database,
        registry=registry_url,
        request_timeout_s=3.0,
        connect_timeout_s=5.0,
    )
    goes_on_through_all(config, unique, broker.bootstrap, proxy, deadline_s=3.0)


@pytest.mark.timeout(180)
def test_a_run_goes_on_through_every_fault_of_the_line_to_its_database(
    make_proxy: Callable[[int], Proxy],
    kafka_bootstrap: str,
    database: str,
    registry_url: str,
    unique: str,
    tmp_path: Path,
) -> None:
    proxy = make_proxy(port_of(database))
    config = configuration(
        tmp_path, unique, bootstrap=kafka_bootstrap, database=through(proxy, database), registry=registry_url
    )
    goes_on_through_all(config, unique, kafka_bootstrap, proxy, deadline_s=2.5)


@pytest.mark.timeout(180)
def test_a_run_goes_on_through_every_fault_of_the_line_to_its_redis(
    make_proxy: Callable[[int], Proxy],
    kafka_bootstrap: str,
    database: str,
    registry_url: str,
    redis_url: str,
    unique: str,
    tmp_path: Path,
) -> None:
    proxy = make_proxy(port_of(redis_url))
    config = configuration(
        tmp_path,
        unique,
        bootstrap=kafka_bootstrap,
        database=database,
        registry=registry_url,
        redis=through(proxy, redis_url),
    )
    goes_on_through_all(config, unique, kafka_bootstrap, proxy, deadline_s=SOCKET_TIMEOUT_S, exactly_once=False)


@pytest.mark.timeout(180)
def test_a_run_goes_on_through_every_fault_of_the_line_to_its_registry(
    make_proxy: Callable[[int], Proxy],
    kafka_bootstrap: str,
    database: str,
    registry_url: str,
    unique: str,
    tmp_path: Path,
) -> None:
    """The registry is asked where a table changes: a new column meets each fault."""
    proxy = make_proxy(port_of(registry_url))
    config = configuration(
        tmp_path, unique, bootstrap=kafka_bootstrap, database=database, registry=through(proxy, registry_url)
    )
    asked = proxy.bytes_up

    def add_column(fault: Fault) -> None:
        run_sql(database, f'ALTER TABLE events ADD COLUMN "{fault.name}" int')

    goes_on_through_all(config, unique, kafka_bootstrap, proxy, deadline_s=2.5, meanwhile=add_column)
    with urllib.request.urlopen(f"{registry_url}/subjects/{unique}-value/versions/latest", timeout=30) as answer:
        latest = answer.read().decode()
    assert all(fault.name.replace(" ", "_").replace("-", "_") in latest for fault in FAULTS)
    assert proxy.bytes_up > asked
