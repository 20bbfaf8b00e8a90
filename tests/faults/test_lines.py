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
from tests.audit import TopicAudit
from tests.faults.killing import finish, start, write_config
from tests.faults.test_kill import KEY_SCHEMA
from tests.faults.workers import verified
from tests.services.proxy import Proxy

ROWS = 9_000
BETWEEN = 1_200  # rows that are appended before the next fault
PREFIX = 5  # bytes of the framing before a key


@dataclass(frozen=True, slots=True)
class Fault:
    """Switches of a `Proxy` that are set for `hold_s`, and whether connections break at its end."""

    name: str
    switches: dict[str, Any]
    hold_s: float = 0.5
    breaks: bool = False


FAULTS = (
    Fault("latency", {"latency_s": 0.15}),
    Fault("bandwidth", {"bytes_per_s": 20_000}),
    Fault("drop", {"silent": True}),  # for a while; TCP brings it later
    Fault("reset", {}, hold_s=0, breaks=True),
    Fault("down", {"refuse": True}, breaks=True),
    Fault("half-open", {"silent": True}, hold_s=1.5, breaks=True),  # longer than the deadlines below
    Fault("lost answers", {"swallow_answers": True}, breaks=True),
)


def begin(proxy: Proxy, fault: Fault) -> None:
    for switch, value in fault.switches.items():
        setattr(proxy, switch, value)
    if fault.breaks and "refuse" in fault.switches:
        proxy.reset()


def end(proxy: Proxy, fault: Fault) -> None:
    if fault.breaks:
        proxy.reset()
    for switch, usual in (
        ("latency_s", 0.0),
        ("bytes_per_s", None),
        ("silent", False),
        ("swallow_answers", False),
        ("refuse", False),
    ):
        if switch in fault.switches:
            setattr(proxy, switch, usual)


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
    """Exactly once, or checkpoints and the shared rate limit in Redis."""
    checkpoints: dict[str, Any] = {"type": "kafka"}
    if redis is not None:
        checkpoints = {"type": "redis", "url": redis, "prefix": f"{name}:", "lock_timeout_s": 20}
    return write_config(
        folder,
        {
            "app": name,
            "kafka": {"bootstrap_servers": bootstrap, **kafka},
            "schema_registry": {"url": registry, "timeout_s": 5.0},
            "checkpoints": checkpoints,
            "delivery": "at_least_once" if redis else "exactly_once",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": database, "statement_timeout_s": 1.0, "connect_timeout_s": 1.0}},
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


def goes_on_through_all(
    config: Path,
    name: str,
    direct: str,
    proxy: Proxy,
    *,
    exactly_once: bool = True,
    meanwhile: Callable[[Fault], None] = lambda _fault: None,
) -> None:
    """Each fault in turn, the next one when the run has gone on for a while after the last."""
    audit = TopicAudit(
        direct, name, KEY_SCHEMA, prefix=PREFIX, isolation="read_committed" if exactly_once else "read_uncommitted"
    )
    process = start(config, "--once")
    try:
        wait_until(lambda: audit.end() >= 200, process)
        for fault in FAULTS:
            before = audit.end()
            begin(proxy, fault)
            meanwhile(fault)
            time.sleep(fault.hold_s)
            end(proxy, fault)
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
    goes_on_through_all(config, unique, broker.bootstrap, proxy)


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
    goes_on_through_all(config, unique, kafka_bootstrap, proxy)


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
    goes_on_through_all(config, unique, kafka_bootstrap, proxy, exactly_once=False)


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

    goes_on_through_all(config, unique, kafka_bootstrap, proxy, meanwhile=add_column)
    with urllib.request.urlopen(f"{registry_url}/subjects/{unique}-value/versions/latest", timeout=30) as answer:
        latest = answer.read().decode()
    assert all(fault.name.replace(" ", "_").replace("-", "_") in latest for fault in FAULTS)
    assert proxy.bytes_up > asked
