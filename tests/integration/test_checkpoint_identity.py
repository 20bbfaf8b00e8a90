"""A checkpoint belongs to one app, source, table and topic: a run of another one is refused, in every store."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pymysql
import pytest
import yaml
from pydantic import SecretStr

from producer.checkpoints import STORES
from producer.cli import main
from producer.config import StreamConfig, load_config
from producer.errors import ProducerError
from producer.identity import Identity, differences
from producer.metrics import Metrics
from producer.parts import make_store
from producer.protocols import CheckpointStore
from producer.service import Service
from producer.sources.sql import SqlConfig, SqlSource
from tests.integration.kafka_rows import read_topic

ROWS = 12

#: How each store is configured; shared work and transactions keep their checkpoints in Kafka in other ways.
KINDS = (*sorted(STORES), "exactly once", "shared")


def make_database(path: Path, first: int, count: int, table: str = "events") -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY, name TEXT)")
        ids = range(first, first + count)
        connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", [(i, f"{path.stem}{i}") for i in ids])


@dataclass(frozen=True)
class Outcome:
    state: str
    acked: int = 0
    error: str = ""


class Place:
    """A configuration in a folder, changed for one run at a time."""

    def __init__(self, folder: Path, kafka: str, app: str, **settings: Any) -> None:
        self.folder = folder
        self.app = app
        make_database(folder / "shop.db", 1, ROWS)
        make_database(folder / "shop.db", 1, ROWS, "other")
        make_database(folder / "staging.db", 1, ROWS)
        self.document: dict[str, Any] = {
            "app": app,
            "kafka": {"bootstrap_servers": kafka, "state_topic": f"{app}.positions", "state_partitions": 2},
            "http": {"port": 0},
            "sources": {"shop": {"type": "sql", "url": f"sqlite:///{folder / 'shop.db'}"}},
            "streams": [{"name": "s", "source": "shop", "table": "events", "topic": f"{app}.t", "partitions": 1}],
            **settings,
        }

    def config(self, changes: Mapping[str, Any]) -> Path:
        """`changes` are keys of the document, of its stream, or the URL."""
        document = json.loads(json.dumps(self.document))
        for key, value in changes.items():
            if key == "url":
                document["sources"]["shop"]["url"] = value
            elif key == "bootstrap_servers":
                document["kafka"][key] = value
            elif key in ("app",):
                document[key] = value
            else:
                document["streams"][0][key] = value
        path = self.folder / "shop.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def run(self, **changes: Any) -> Outcome:
        async def once() -> Outcome:
            config = load_config(self.config(changes))
            try:
                (found,) = await Service(config, metrics=Metrics(), run_id="test").run(once=True, stop=asyncio.Event())
            except ProducerError as error:
                return Outcome("failed", error=str(error))
            return Outcome(found.state, found.acked, found.error or "")

        return asyncio.run(once())

    def ask(self, capsys: pytest.CaptureFixture[str], *command: str, **changes: Any) -> tuple[int, str]:
        """A command's exit code, and all that it says."""
        words = [str(self.config(changes)) if word == "CONFIG" else word for word in command]
        code = main(words)
        told = capsys.readouterr()
        return code, told.out + told.err

    def store(self, work: Callable[[CheckpointStore], Any], **changes: Any) -> Any:
        async def run() -> Any:
            store = make_store(load_config(self.config(changes)))
            await store.start()
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, kafka_bootstrap: str, postgres_dsn: str, redis_url: str, unique: str
) -> Place:
    """By the store that is the test's parameter."""
    settings: dict[str, dict[str, Any]] = {
        "file": {"checkpoints": {"type": "file", "path": str(tmp_path / "state")}},
        "kafka": {"checkpoints": {"type": "kafka"}},
        "postgres": {"checkpoints": {"type": "postgres", "url": postgres_dsn}},
        "redis": {"checkpoints": {"type": "redis", "url": redis_url, "prefix": f"{unique}:"}},
        "exactly once": {"checkpoints": {"type": "kafka"}, "delivery": "exactly_once"},
        "shared": {"checkpoints": {"type": "kafka"}, "coordination": "kafka"},
    }
    return Place(tmp_path, kafka_bootstrap, unique, **settings[getattr(request, "param", "file")])


def changes_of(place: Place) -> dict[str, dict[str, Any]]:
    """Each field that changes what is read or where it is written, with the words that the refusal must have."""
    return {
        "topic": {"topic": f"{place.app}.new"},
        "server": {"url": f"sqlite:///{place.folder / 'staging.db'}"},
        "table": {"table": "other"},
    }


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_checkpoint_of_another_topic_database_or_table_is_refused_and_can_be_adopted(
    place: Place, kafka_bootstrap: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.run().state == "complete"
    for what, change in changes_of(place).items():
        refused = place.run(**change)
        assert refused.state == "failed", (what, refused)
        assert "belongs to something else" in refused.error, what
        assert f"{what} '" in refused.error and "checkpoint adopt CONFIG s" in refused.error
    code, told = place.ask(capsys, "validate", "CONFIG", topic=f"{place.app}.new")
    assert code == 2 and f"{place.app}.new" in told and "goes on after" not in told
    assert place.run().acked == 0  # the refusals have changed nothing

    code, told = place.ask(capsys, "checkpoint", "adopt", "CONFIG", "s")
    assert code == 2 and "nothing differs" in told
    make_database(place.folder / "shop.db", 100, 3)
    code, told = place.ask(capsys, "checkpoint", "adopt", "CONFIG", "s", topic=f"{place.app}.new")
    assert code == 0, told
    carried = place.run(topic=f"{place.app}.new", mode="snapshot_then_tail")
    assert (carried.state, carried.acked) == ("complete", 3), carried
    assert place.run().state == "failed"  # the way back is a change as well


def test_an_app_has_its_own_checkpoints_in_a_folder_that_another_one_uses(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.run().acked == ROWS
    refused = place.run(app="staging")
    assert refused.state == "failed" and "app" in refused.error
    assert "checkpoint reset" not in refused.error  # it would forget the other app's
    for command in (["checkpoint", "reset", "CONFIG", "s"], ["checkpoint", "set", "CONFIG", "s", "--id", "5"]):
        code, told = place.ask(capsys, *command, app="staging")
        assert code != 0 and place.app in told, command
    code, told = place.ask(capsys, "status", "CONFIG", app="staging")
    assert place.app in told and "complete" not in told
    assert place.run().acked == 0


def test_another_kafka_cluster_is_another_topic(place: Place) -> None:
    place.run()

    async def move(store: CheckpointStore) -> None:
        epoch = await store.claim("s")
        state = await store.load("s")
        assert state is not None and state.identity is not None and state.identity.facts["kafka cluster"]
        await store.begin(replace(state, epoch=epoch, identity=state.identity.also(kafka_cluster="elsewhere")))

    place.store(move)
    refused = place.run()
    assert refused.state == "failed" and "kafka cluster 'elsewhere'" in refused.error


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_checkpoint_of_an_older_version_takes_its_identity_at_the_first_claim(place: Place) -> None:
    place.run()

    async def forget(store: CheckpointStore) -> None:
        for name in {"s", *await store.streams()}:
            epoch = await store.claim(name)
            state = await store.load(name)
            if state is not None:
                await store.begin(replace(state, epoch=epoch, identity=None))

    async def known(store: CheckpointStore) -> Any:
        state = await store.load("s")
        return state and state.identity

    place.store(forget)
    assert place.store(known) is None
    resumed = place.run()
    assert (resumed.state, resumed.acked) == ("complete", 0)
    assert place.store(known).facts["topic"] == f"{place.app}.t"
    assert place.run(topic=f"{place.app}.new").state == "failed"


def test_a_file_that_was_moved_or_is_named_in_another_way_continues(place: Place, tmp_path: Path) -> None:
    place.run()
    assert place.run(url=f"sqlite:///{tmp_path}/../{tmp_path.name}/shop.db").acked == 0
    moved = tmp_path / "moved.db"
    shutil.move(tmp_path / "shop.db", moved)
    assert place.run(url=f"sqlite:///{moved}").state == "complete"
    shutil.move(moved, tmp_path / "again.db")
    assert place.run(url=f"sqlite:///{tmp_path / 'again.db'}").state == "complete"


async def test_nothing_of_a_refused_run_is_on_its_topic(place: Place, kafka_bootstrap: str) -> None:
    await asyncio.to_thread(place.run)
    await asyncio.to_thread(place.run, url=f"sqlite:///{place.folder / 'staging.db'}")
    assert len(await read_topic(kafka_bootstrap, f"{place.app}.t")) == ROWS


async def origin(url: str, table: str) -> Identity:
    source = SqlSource(SqlConfig(url=SecretStr(url)))
    await source.start()
    try:
        return (await source.describe(StreamConfig(source="s", table=table))).origin
    finally:
        await source.close()


async def test_postgresql_is_known_by_its_system_identifier_and_database(postgres_dsn: str) -> None:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("CREATE SCHEMA a CREATE TABLE t (id int PRIMARY KEY)")
    await connection.execute("CREATE SCHEMA b CREATE TABLE t (id int PRIMARY KEY)")
    ours = await origin(postgres_dsn, "a.t")
    assert ours.system and ours.facts["table"] == "a.t"
    host = urlsplit(postgres_dsn).hostname or ""
    other_name = postgres_dsn.replace(host, "localhost" if host != "localhost" else "127.0.0.1", 1)
    assert not differences(ours, await origin(other_name, "a.t"))
    path = postgres_dsn + ("&" if "?" in postgres_dsn else "?") + "options=-csearch_path%3D"
    by_path = [await origin(path + schema, "t") for schema in ("a", "b")]
    assert not differences(ours, by_path[0])
    assert [d.what for d in differences(ours, by_path[1])] == ["table"]
    other = f"{postgres_dsn.rpartition('/')[0]}/postgres"
    admin = await asyncpg.connect(other)
    await admin.execute("CREATE SCHEMA IF NOT EXISTS a; CREATE TABLE IF NOT EXISTS a.t (id int PRIMARY KEY)")
    assert [d.what for d in differences(ours, await origin(other, "a.t"))] == ["database"]
    await admin.execute("DROP SCHEMA a CASCADE")
    await connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    await connection.execute("CREATE ROLE plain LOGIN PASSWORD 'p'; GRANT USAGE ON SCHEMA a TO plain")
    await connection.execute("GRANT SELECT ON a.t TO plain")
    parts = urlsplit(postgres_dsn)
    plain = parts._replace(netloc=f"plain:p@{parts.netloc.rpartition('@')[2]}").geturl()
    hidden = await origin(plain, "a.t")
    assert not hidden.system and not differences(ours, hidden)
    assert ours.after(hidden) and hidden.after(ours).system == ours.system
    await connection.execute("DROP OWNED BY plain; DROP ROLE plain")
    await asyncio.gather(admin.close(), connection.close())


async def test_mariadb_is_known_by_its_database_and_server(mariadb_url: str) -> None:
    parts = urlsplit(mariadb_url)
    with closing(
        pymysql.connect(
            host=parts.hostname, port=parts.port or 3306, user=parts.username, password=parts.password or ""
        )
    ) as connection:
        cursor = connection.cursor()
        database = parts.path.strip("/")
        cursor.execute(f"CREATE DATABASE `{database}_2`")
        for name in (database, f"{database}_2"):
            cursor.execute(f"CREATE TABLE `{name}`.t (id int PRIMARY KEY)")
        ours = await origin(mariadb_url, "t")
        assert [d.what for d in differences(ours, await origin(f"{mariadb_url}_2", "t"))] == ["database", "table"]
        elsewhere = mariadb_url.replace(
            parts.hostname or "", "localhost" if parts.hostname != "localhost" else "127.1", 1
        )
        assert not differences(ours, await origin(elsewhere, "t"))
        cursor.execute(f"DROP DATABASE `{database}_2`")


def replace_table(place: Place) -> None:
    with sqlite3.connect(place.folder / "shop.db") as connection:
        connection.execute("DROP TABLE events")
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO events VALUES (?, ?)", [(i, f"new{i}") for i in range(1, ROWS + 4)])


def replace_table_elsewhere(place: Place) -> None:
    """By another process: a second copy of SQLite in this one would drop the locks of the first."""
    program = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20); "
        "c.execute('BEGIN IMMEDIATE'); c.execute('DELETE FROM events'); c.execute('DROP TABLE events'); "
        "c.execute('CREATE TABLE events (id INTEGER PRIMARY KEY, name TEXT)'); "
        f"c.executemany('INSERT INTO events VALUES (?, ?)', [(i, f'new{{i}}') for i in range(1, {ROWS + 4})]); "
        "c.execute('COMMIT')"
    )
    subprocess.run([sys.executable, "-c", program, str(place.folder / "shop.db")], check=True)


@pytest.mark.parametrize("place", ["file", "exactly once", "shared"], indirect=True)
def test_a_replaced_table_stops_the_stream_until_it_is_adopted_or_taken(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    followed = {"mode": "snapshot_then_tail"}
    assert place.run(**followed).acked == ROWS
    replace_table(place)
    for _ in range(2):  # what was found once is found again
        refused = place.run(**followed)
        assert refused.state == "failed" and "has been replaced" in refused.error
    code, told = place.ask(capsys, "validate", "CONFIG", **followed)
    assert code == 2 and "has been replaced" in told
    code, told = place.ask(capsys, "checkpoint", "adopt", "CONFIG", "s", **followed)
    assert code == 0, told
    assert place.run(**followed).acked == 3
    replace_table(place)
    taken = place.run(on_replaced="continue", **followed)
    assert (taken.state, taken.acked) == ("complete", 0)
    assert place.run(**followed).state == "complete"


@pytest.mark.parametrize("place", ["file", "exactly once"], indirect=True)
def test_a_stream_may_start_over_with_the_table_that_has_the_name(place: Place) -> None:
    assert place.run().acked == ROWS
    replace_table(place)
    assert place.run(on_replaced="restart").acked == ROWS + 3
    assert place.run(on_replaced="restart").acked == 0


@pytest.mark.parametrize("reaction", ["fail", "continue", "restart"])
async def test_a_table_that_is_replaced_under_a_running_stream_is_told(place: Place, reaction: str) -> None:
    path = place.config({"mode": "tail", "poll_interval_s": 0.05, "on_replaced": reaction})
    metrics, stop = Metrics(), asyncio.Event()
    service = Service(load_config(path), metrics=metrics, run_id="test")
    running = asyncio.create_task(service.run(once=False, stop=stop))

    async def until(done: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(30):
            while not service.streams or not done(service.streams["s"]):
                await asyncio.sleep(0.02)

    await until(lambda status: status.rows_acked == ROWS)
    await asyncio.to_thread(replace_table_elsewhere, place)
    await until(lambda status: status.table_replacements == 1)
    rows = {"fail": ROWS, "continue": ROWS + 3, "restart": ROWS + ROWS + 3}[reaction]
    await until(lambda status: status.rows_acked == rows and (status.state == "failed") == (reaction == "fail"))
    assert "has been replaced" in (service.streams["s"].table_replaced or "")
    assert b"producer_table_replacements_total{" in metrics.text()
    stop.set()
    await running
