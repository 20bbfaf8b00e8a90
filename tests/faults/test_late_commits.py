"""Owns the claim that a tail loses no row that commits late, whatever the order of commits; and that it could."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from producer import holes
from producer.embedded import free_port
from producer.model import KeyPosition
from tests.audit import TopicAudit
from tests.faults.killing import start, state_of, write_config
from tests.faults.workers import verified
from tests.services.databases import Postgres
from tests.services.process import Process, account, owned_folder

KEY_SCHEMA = {"type": "record", "name": "k", "fields": [{"name": "id", "type": "long"}]}
WRITERS, TURNS, LONG_S = 8, 60, 8.0
VERY_LONG_S = 60.0

#: Opens a connection of the DB-API without autocommit.
Connect = Callable[[], Any]


class Replica(Postgres):
    """A streaming standby of another server."""

    def __init__(self, primary: Postgres) -> None:
        self._settings = ("hot_standby=on",)
        self._user = account("postgres")
        self._folder = owned_folder("replica-", self._user)
        self._port = free_port()
        self._process: Process | None = None
        copying = [self._program("pg_basebackup"), "-d", primary.dsn(), "-D", str(self._folder / "data"), "-R"]
        subprocess.run(
            [*copying, "-c", "fast", "-X", "stream", "--no-sync"],
            check=True,
            capture_output=True,
            timeout=120,
            cwd=self._folder,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
        )


def postgres(dsn: str) -> Connect:
    from adbc_driver_postgresql import dbapi

    return lambda: dbapi.connect(dsn)


def mariadb(url: str) -> Connect:
    import pymysql

    parts = urlsplit(url)
    return lambda: pymysql.connect(
        host=parts.hostname,
        port=parts.port or 3306,
        user=parts.username,
        password=parts.password or "",
        database=parts.path.lstrip("/"),
    )


TABLE = {
    "postgres": "CREATE TABLE events (id bigserial PRIMARY KEY, body text NOT NULL)",
    "mariadb": "CREATE TABLE events (id bigint AUTO_INCREMENT PRIMARY KEY, body text NOT NULL)",
    "sqlite": "CREATE TABLE events (id INTEGER PRIMARY KEY, body TEXT NOT NULL)",
}


def execute(connection: Any, *statements: str) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)


def write(connect: Connect, seed: int, turns: int = TURNS) -> None:
    """Transactions of some rows each, some rolled back, of every length up to half a second."""
    rng = random.Random(seed)
    with contextlib.closing(connect()) as connection:
        for turn in range(turns):
            rows = rng.randint(1, 4)
            for row in range(rows):
                execute(connection, f"INSERT INTO events (body) VALUES ('{seed} {turn} {row}')")
                time.sleep(rng.choice([0, 0, 0.01, 0.1]))
            if rng.random() < 0.15:
                connection.rollback()
            else:
                connection.commit()


def write_long(connect: Connect, seconds: float) -> None:
    """One row whose transaction stays open while the others commit."""
    with contextlib.closing(connect()) as connection:
        execute(connection, "INSERT INTO events (body) VALUES ('long')")
        time.sleep(seconds)
        connection.commit()


def load(kind: str, connect: Connect, long_s: float = LONG_S) -> list[threading.Thread]:
    """Eight that write at the same time, and one whose transaction takes long. SQLite lets one write at a time: there a
    row cannot commit behind a later one, and they have less to do."""
    turns = TURNS if kind != "sqlite" else TURNS // 4
    threads = [threading.Thread(target=write, args=(connect, seed, turns)) for seed in range(WRITERS)]
    if kind != "sqlite":
        threads.append(threading.Thread(target=write_long, args=(connect, long_s)))
    for thread in threads:
        thread.start()
    return threads


def ids(connect: Connect) -> set[tuple[int, ...]]:
    with contextlib.closing(connect()) as connection, contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SELECT id FROM events")
        return {tuple(row) for row in cursor.fetchall()}


@pytest.fixture(params=["postgres", "replica", "mariadb", "sqlite"])
def server(
    request: pytest.FixtureRequest, own_postgres: Callable[..., Postgres], tmp_path: Path
) -> Iterator[tuple[str, str, Connect]]:
    """The kind of table, the URL to read from, and connections to write by; with some rows in the table."""
    with contextlib.ExitStack() as stack:
        match request.param:
            case "postgres":
                url = request.getfixturevalue("postgres_dsn")
                kind, read_url, connect = "postgres", url, postgres(url)
            case "replica":
                primary = own_postgres()
                replica = Replica(primary)
                stack.callback(replica.close)
                replica.start()
                kind, read_url, connect = "postgres", replica.dsn(), postgres(primary.dsn())
            case "mariadb":
                url = request.getfixturevalue("mariadb_url")
                kind, read_url, connect = "mariadb", url, mariadb(url)
            case _:
                path = tmp_path / "shop.db"
                kind, read_url = "sqlite", f"sqlite:////{str(path).lstrip('/')}"
                connect = lambda: sqlite3.connect(path, timeout=60)  # noqa: E731
        with contextlib.closing(connect()) as connection:
            execute(connection, TABLE[kind], *["INSERT INTO events (body) VALUES ('before')"] * 20)
            connection.commit()
        yield kind, read_url, connect
        with contextlib.closing(connect()) as connection:
            execute(connection, "DROP TABLE events")
            connection.commit()


def configured(folder: Path, url: str, kafka: str, topic: str, **stream: Any) -> Path:
    exactly_once = stream.pop("exactly_once", False)
    one = {"source": "shop", "table": "events", "topic": topic, "poll_interval_s": 0.05, "partitions": 2, **stream}
    return write_config(
        folder,
        {
            "app": topic,
            "kafka": {"bootstrap_servers": kafka},
            "checkpoints": {"type": "kafka"} if exactly_once else {"type": "file", "path": str(folder / "state")},
            "delivery": "exactly_once" if exactly_once else "at_least_once",
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": url}},
            "streams": [one],
        },
    )


def reaches(audit: TopicAudit, done: Callable[[], bool], timeout_s: float = 60) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        audit.catch_up()
        if done():
            return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(config)
    try:
        yield process
        assert process.poll() is None, process.communicate()[1]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["tail", "snapshot_then_tail"])
def test_a_tail_under_writers_that_commit_out_of_order_has_every_committed_row(
    mode: str, server: tuple[str, str, Connect], kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    kind, url, connect = server
    config = configured(tmp_path, url, kafka_bootstrap, unique, mode=mode)
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA)
    threads = load(kind, connect)  # before the plan, too
    try:
        with running(config):
            for thread in threads:
                thread.join()
            committed = ids(connect)
            assert reaches(audit, lambda: committed <= set(audit.keys)), sorted(committed - set(audit.keys))[:20]
        assert set(audit.keys) == committed
        verified(config, "events")
    finally:
        audit.close()


@pytest.mark.timeout(180)
def test_in_transactions_every_late_row_comes_exactly_once(
    kafka_bootstrap: str, mariadb_url: str, unique: str, tmp_path: Path
) -> None:
    connect = mariadb(mariadb_url)
    config = configured(tmp_path, mariadb_url, kafka_bootstrap, unique, mode="tail", exactly_once=True)
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA, isolation="read_committed")
    with table("mariadb", connect), contextlib.closing(audit):
        threads = load("mariadb", connect)
        for some in (1, 50):
            with running(config):
                assert reaches(audit, partial(lambda count: audit.records >= count, some))
        for thread in threads:
            thread.join()
        committed = ids(connect)
        with running(config):
            assert reaches(audit, lambda: committed <= set(audit.keys)), sorted(committed - set(audit.keys))[:20]
        assert audit.keys == dict.fromkeys(committed, 1)


@pytest.mark.timeout(180)
def test_a_row_whose_transaction_was_open_for_a_minute_is_there(
    kafka_bootstrap: str, postgres_dsn: str, mariadb_url: str, unique: str, tmp_path: Path
) -> None:
    """On both kinds of server at once, since a minute is long."""
    with contextlib.ExitStack() as stack:
        tails = []
        for kind, url, connect in (
            ("postgres", postgres_dsn, postgres(postgres_dsn)),
            ("mariadb", mariadb_url, mariadb(mariadb_url)),
        ):
            stack.enter_context(table(kind, connect))
            folder = tmp_path / kind
            folder.mkdir()
            config = configured(folder, url, kafka_bootstrap, f"{unique}-{kind}", mode="tail")
            audit = TopicAudit(kafka_bootstrap, f"{unique}-{kind}", KEY_SCHEMA)
            stack.callback(audit.close)
            stack.enter_context(running(config))
            tails.append((connect, audit, config, load(kind, connect, VERY_LONG_S)))
        for connect, audit, config, threads in tails:
            for thread in threads:
                thread.join()
            committed = ids(connect)
            assert reaches(audit, partial(lambda there, seen: there <= set(seen.keys), committed, audit))
            assert set(audit.keys) == committed
            verified(config, "events")


@contextlib.contextmanager
def table(kind: str, connect: Connect) -> Iterator[None]:
    with contextlib.closing(connect()) as connection:
        execute(connection, TABLE[kind])
        connection.commit()
    try:
        yield
    finally:
        with contextlib.closing(connect()) as connection:
            execute(connection, "DROP TABLE events")
            connection.commit()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_without_its_ledger_the_tail_loses_rows(
    kind: str, kafka_bootstrap: str, unique: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue({"postgres": "postgres_dsn", "mariadb": "mariadb_url"}[kind])
    connect = {"postgres": postgres, "mariadb": mariadb}[kind](url)
    config = configured(tmp_path, url, kafka_bootstrap, unique, mode="tail", late_commit_s=0)
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA)
    with table(kind, connect), contextlib.closing(audit):
        threads = load(kind, connect)
        with running(config):
            for thread in threads:
                thread.join()
            with contextlib.closing(connect()) as connection:
                execute(connection, "INSERT INTO events (body) VALUES ('last')")
                connection.commit()
            committed = ids(connect)
            assert reaches(audit, lambda: max(committed) in audit.keys)
        assert committed - set(audit.keys)


def passed_ids(config: Path) -> set[int]:
    """Up to the checkpoint, those that it does not say may still come; none where there is no checkpoint yet."""
    state = state_of(config, "events")
    found = set[int]()
    for checkpoint in state.checkpoints if state is not None else ():
        if isinstance(checkpoint.position, KeyPosition) and checkpoint.detail is not None:
            ledger = holes.from_json(checkpoint.detail)
            (last,) = checkpoint.position.values
            assert isinstance(last, int)
            found |= set(range(max(ledger.floor, 0) + 1, last + 1))
            for hole in ledger.holes:
                found.difference_update(range(hole.first, hole.last + 1))
    return found


@pytest.mark.timeout(240)
def test_a_tail_that_is_killed_again_and_again_has_every_committed_row(
    server: tuple[str, str, Connect], kafka_bootstrap: str, unique: str, tmp_path: Path
) -> None:
    kind, url, connect = server
    config = configured(tmp_path, url, kafka_bootstrap, unique, mode="tail")
    audit = TopicAudit(kafka_bootstrap, unique, KEY_SCHEMA)
    threads = load(kind, connect)
    rng = random.Random(7)
    looked_at = 0

    def more(before: int) -> bool:
        return audit.records > before or not any(thread.is_alive() for thread in threads)

    try:
        for _ in range(4):
            with running(config):
                assert reaches(audit, partial(more, audit.records))
                time.sleep(rng.uniform(0, 0.5))
            passed = passed_ids(config)
            audit.catch_up()
            ahead = {(number,) for number in passed} & ids(connect) - set(audit.keys)
            assert not ahead, f"the checkpoint is ahead of the topic by {len(ahead)} rows, such as {sorted(ahead)[:3]}"
            looked_at += len(passed)
        assert looked_at
        for thread in threads:
            thread.join()
        committed = ids(connect)
        with running(config):
            assert reaches(audit, lambda: committed <= set(audit.keys)), sorted(committed - set(audit.keys))[:20]
        assert set(audit.keys) == committed
    finally:
        audit.close()
