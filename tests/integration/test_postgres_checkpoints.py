"""Owns the claims about checkpoints in PostgreSQL beyond the contract: the guide's table, restarts, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from producer.checkpoints.postgres import PostgresCheckpointStore
from producer.config import Config
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    CheckpointCorruptError,
    ConfigError,
    PermanentError,
    StoreUnavailableError,
)
from producer.model import Checkpoint, KeyPosition, Split, StreamState
from tests.services.databases import Postgres

GUIDE_TABLE = """
CREATE TABLE etl_checkpoints (
    group_id BIGINT PRIMARY KEY,
    last_message_id BIGINT NOT NULL,
    total_processed BIGINT DEFAULT 0,
    last_updated TIMESTAMP DEFAULT NOW(),
    created_at TIMESTAMP DEFAULT NOW()
);
CREATE INDEX idx_checkpoints_updated ON etl_checkpoints(last_updated);
"""
GUIDE_READ = "SELECT last_message_id, total_processed FROM etl_checkpoints WHERE group_id = $1"
GUIDE_WRITE = """
INSERT INTO etl_checkpoints
(group_id, last_message_id, total_processed, last_updated)
VALUES ($1, $2, $3, NOW())
ON CONFLICT (group_id) DO UPDATE SET
    last_message_id = $2,
    total_processed = etl_checkpoints.total_processed + $3,
    last_updated = NOW()
"""
TABLES = "DROP TABLE IF EXISTS etl_splits, etl_streams, etl_checkpoints"


def config(url: str, app: str = "app") -> Config:
    return Config.model_validate(
        {
            "app": app,
            "checkpoints": {"type": "postgres", "url": url},
            "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
            "streams": [{"name": "t", "source": "s", "table": "t"}],
        }
    )


def split(number: int, position: int | None = None, **changes: Any) -> Checkpoint:
    lower = KeyPosition((number * 100,)) if number else None
    place = KeyPosition((position,)) if position is not None else None
    return Checkpoint(Split(str(number), lower, KeyPosition((number * 100 + 100,))), place, **changes)


@pytest.fixture
async def connection(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute(TABLES)
    yield connection
    await connection.close()


@pytest.fixture
async def open_store() -> AsyncIterator[Callable[..., Any]]:
    opened: list[PostgresCheckpointStore] = []

    async def make(url: str, app: str = "app") -> PostgresCheckpointStore:
        store = PostgresCheckpointStore(config(url, app))
        opened.append(store)
        await store.start()
        return store

    yield make
    for store in opened:
        await store.close()


async def started(store: PostgresCheckpointStore, stream: str, *checkpoints: Checkpoint) -> int:
    epoch = await store.claim(stream)
    await store.begin(StreamState(stream, "f00d", epoch, checkpoints))
    return epoch


async def test_the_guides_table_and_index_are_made(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    await open_store(postgres_dsn)
    columns = await connection.fetch(
        "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_name = 'etl_checkpoints' ORDER BY ordinal_position"
    )
    assert [tuple(row) for row in columns] == [
        ("group_id", "bigint", "NO"),
        ("last_message_id", "bigint", "NO"),
        ("total_processed", "bigint", "YES"),
        ("last_updated", "timestamp without time zone", "YES"),
        ("created_at", "timestamp without time zone", "YES"),
    ]
    assert await connection.fetchval("SELECT to_regclass('idx_checkpoints_updated') IS NOT NULL")


async def test_a_chats_progress_is_read_by_the_guides_query(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    store = await open_store(postgres_dsn)
    epoch = await started(store, "-1001234", split(0), split(1))
    assert tuple(await connection.fetchrow(GUIDE_READ, -1001234)) == (0, 0)
    await store.commit("-1001234", epoch, [split(1, 150, rows=50)])
    assert tuple(await connection.fetchrow(GUIDE_READ, -1001234)) == (0, 50)  # the first split has not begun
    await store.commit("-1001234", epoch, [split(0, 40, rows=40)])
    assert tuple(await connection.fetchrow(GUIDE_READ, -1001234)) == (40, 90)
    await store.commit("-1001234", epoch, [split(0, 100, rows=99, done=True)])
    assert tuple(await connection.fetchrow(GUIDE_READ, -1001234)) == (150, 149)


async def test_the_guides_own_rows_and_statements_work_on_beside_the_store(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    await connection.execute(GUIDE_TABLE)
    await connection.execute(GUIDE_WRITE, 12345, 700, 70)
    store = await open_store(postgres_dsn)
    epoch = await started(store, "12345", split(0))
    await store.commit("12345", epoch, [split(0, 5, rows=5)])
    await connection.execute(GUIDE_WRITE, 12345, 800, 10)
    assert tuple(await connection.fetchrow(GUIDE_READ, 12345)) == (800, 80)  # not touched by the stream of that name
    assert await connection.fetchval("SELECT count(*) FROM etl_checkpoints") == 2
    assert await store.reset("12345")
    assert tuple(await connection.fetchrow(GUIDE_READ, 12345)) == (800, 80)
    assert await connection.fetchval("SELECT count(*) FROM etl_checkpoints") == 1


async def test_applications_in_one_database_do_not_see_one_another(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    one, other = await open_store(postgres_dsn, "one"), await open_store(postgres_dsn, "other")
    epoch = await started(one, "7", split(0))
    await started(other, "7", split(3))
    await one.commit("7", epoch, [split(0, 9, rows=9)])
    assert (await other.load("7")).checkpoints == (split(3),)
    assert await other.reset("7")
    assert await one.streams() == ["7"]


async def test_many_stores_that_start_at_once_make_the_tables_once(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    await asyncio.gather(*(open_store(postgres_dsn) for _ in range(8)))


async def test_a_fenced_runner_changes_nothing_even_after_a_reset(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    old, new = await open_store(postgres_dsn), await open_store(postgres_dsn)
    epoch = await started(old, "t", split(0))
    assert await new.reset("t")
    with pytest.raises(CheckpointConflictError):
        await old.commit("t", epoch, [split(0, 1, rows=1)])
    newer = await started(new, "t", split(0))
    assert newer > epoch
    with pytest.raises(CheckpointConflictError):
        await old.commit("t", epoch, [split(0, 1, rows=1)])
    assert (await new.load("t")).checkpoints == (split(0),)


async def test_a_commit_that_fails_in_its_midst_changes_nothing(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    store = await open_store(postgres_dsn)
    epoch = await started(store, "t", split(0), split(1))
    await connection.execute(
        "ALTER TABLE etl_splits ADD CONSTRAINT stop CHECK (split <> '1' OR checkpoint ->> 'rows' = '0')"
    )
    with pytest.raises(PermanentError, match="stop"):
        await store.commit("t", epoch, [split(0, 5, rows=5), split(1, 105, rows=5)])
    await connection.execute("ALTER TABLE etl_splits DROP CONSTRAINT stop")
    assert (await store.load("t")).checkpoints == (split(0), split(1))
    await store.commit("t", epoch, [split(0, 6, rows=6)])
    assert (await store.load("t")).checkpoints == (split(0, 6, rows=6), split(1))


async def test_a_row_that_cannot_be_read_is_said(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    store = await open_store(postgres_dsn)
    await started(store, "t", split(0))
    await connection.execute("UPDATE etl_splits SET checkpoint = '{}'")
    with pytest.raises(CheckpointCorruptError, match="checkpoint reset"):
        await store.load("t")


async def test_commits_go_on_over_restarts_of_the_server(
    own_postgres: Callable[..., Postgres], open_store: Callable[..., Any]
) -> None:
    server = own_postgres()
    store = await open_store(server.dsn())
    epoch = await started(store, "t", split(0))
    told: list[int] = []
    refused = 0
    stopping = asyncio.Event()

    async def work() -> None:
        nonlocal refused
        rows = 0
        while not stopping.is_set():
            rows += 1
            try:
                await store.commit("t", epoch, [split(0, rows, rows=rows)])
                told.append(rows)
            except StoreUnavailableError:
                refused += 1
                await asyncio.sleep(0.02)

    async def beyond(rows: int) -> None:
        while not told or told[-1] <= rows:
            await asyncio.sleep(0.01)

    worker = asyncio.create_task(work())
    for kill in (False, True):
        await beyond(told[-1] + 20 if told else 20)
        await asyncio.to_thread(server.kill if kill else server.stop)
        before = refused
        while refused == before:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.start)
    await beyond(told[-1] + 20)
    stopping.set()
    await worker
    state = await store.load("t")
    assert state is not None
    assert state.checkpoints[0].rows >= told[-1]  # what was told to be committed is there
    assert state.epoch == epoch


async def test_a_line_that_breaks_in_the_midst_of_an_answer_is_a_store_that_is_away(
    postgres_dsn: str, open_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver tells such a line, now and then, by an error about its own state."""
    store = await open_store(postgres_dsn)
    epoch = await started(store, "broken", split(0))

    def broken(connection: asyncpg.Connection, statement: str) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    with monkeypatch.context() as patched:
        patched.setattr(asyncpg.Connection, "execute", broken)
        with pytest.raises(StoreUnavailableError):
            await store.commit("broken", epoch, [split(0, 1, rows=1)])
    await store.commit("broken", epoch, [split(0, 1, rows=1)])


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://u:hunter2@127.0.0.1:1/x", StoreUnavailableError),
        ("http://u:hunter2@127.0.0.1/x", ConfigError),
        ("postgresql://u:hunter2@127.0.0.1:notaport/x", ConfigError),
        ("postgresql://u:hunter2@/x?sslmode=nonsense", ConfigError),
    ],
)
async def test_a_wrong_url_is_one_line_without_the_password(
    url: str, error: type[Exception], open_store: Callable[..., Any]
) -> None:
    with pytest.raises(error) as caught:
        await open_store(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_refusals_of_the_server_are_told_by_their_kind(
    connection: asyncpg.Connection, postgres_dsn: str, open_store: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await open_store(postgres_dsn + "_not_there")
    await connection.execute("DROP ROLE IF EXISTS reader_only; CREATE ROLE reader_only LOGIN")
    with pytest.raises(AuthenticationError, match="permission denied"):
        await open_store(postgres_dsn.replace("postgres@", "reader_only@"))
    await connection.execute("ALTER ROLE reader_only CONNECTION LIMIT 0")
    with pytest.raises(StoreUnavailableError, match="too many connections for role") as caught:
        await open_store(postgres_dsn.replace("postgres@", "reader_only@"))
    assert not caught.value.hint  # it has answered
    await connection.execute("DROP ROLE reader_only")
