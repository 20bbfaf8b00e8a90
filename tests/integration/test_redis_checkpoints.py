"""Owns the claims about checkpoints in Redis beyond the contract: lock, fence, lost data, the guide's fields."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis as Client

from producer.checkpoints.redis import RedisCheckpointStore
from producer.config import Config
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    CheckpointCorruptError,
    ConfigError,
    StandbyError,
    StoreUnavailableError,
)
from producer.model import Checkpoint, KeyPosition, Split, StreamState
from tests.services.databases import Redis

LOCK_S = 0.5
SPLIT = Split("0", None, KeyPosition((1000,)))
STREAM = "12345"


def at(rows: int) -> Checkpoint:
    return Checkpoint(SPLIT, KeyPosition((rows,)), rows)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Client]:
    async with Client.from_url(redis_url, decode_responses=True) as client:
        for key in await client.keys("etl:*"):
            await client.delete(key)
        yield client


@pytest.fixture
async def open_store(redis_url: str) -> AsyncIterator[Callable[..., Any]]:
    opened: list[RedisCheckpointStore] = []

    async def make(
        url: str = redis_url, app: str = "app", coordination: str = "none", **settings: Any
    ) -> RedisCheckpointStore:
        config = Config.model_validate(
            {
                "app": app,
                "coordination": coordination,
                "checkpoints": {"type": "redis", "url": url, "lock_timeout_s": LOCK_S, **settings},
                "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
                "streams": [{"name": "t", "source": "s", "table": "t"}],
            }
        )
        store = RedisCheckpointStore(config)
        opened.append(store)
        await store.start()
        return store

    yield make
    for store in opened:
        await store.close()


async def started(store: RedisCheckpointStore) -> int:
    epoch = await store.claim(STREAM)
    await store.begin(StreamState(STREAM, "f00d", epoch, (Checkpoint(SPLIT),)))
    return epoch


async def fall_asleep(store: RedisCheckpointStore) -> None:
    """As a process that is stopped: its lock is not renewed any more."""
    assert store._renewing is not None
    store._renewing.cancel()
    await asyncio.wait({store._renewing})


async def test_the_hash_has_the_guides_fields(
    redis: Client, open_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKER_ID", "w7")
    store = await open_store()
    epoch = await started(store)
    before = time.time()
    await store.commit(STREAM, epoch, [at(70)])
    found = await redis.hgetall(f"etl:checkpoint:{STREAM}")
    assert int(found.get("last_id", 0)) == 70
    assert found["worker"] == "w7"
    assert before <= float(found["timestamp"]) <= time.time()
    assert await redis.pttl(f"etl:lock:{STREAM}") <= LOCK_S * 1000


async def test_each_commit_is_published(redis: Client, open_store: Callable[..., Any]) -> None:
    store = await open_store()
    async with redis.pubsub() as listener:
        await listener.subscribe(f"etl:progress:{STREAM}")
        epoch = await started(store)
        await store.commit(STREAM, epoch, [at(70)])
        told: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while len(told) < 2:
                message = await listener.get_message(ignore_subscribe_messages=True, timeout=1)
                if message:
                    told.append(json.loads(message["data"]))
    assert [(m["stream"], m["rows"], m["last_id"]) for m in told] == [(STREAM, 0, 0), (STREAM, 70, 70)]


async def test_a_living_holder_keeps_others_out(redis: Client, open_store: Callable[..., Any]) -> None:
    holder, other = await open_store(), await open_store()
    epoch = await started(holder)
    with pytest.raises(CheckpointConflictError, match="run by another worker"):
        await other.claim(STREAM)
    with pytest.raises(CheckpointConflictError):
        await other.reset(STREAM)
    await holder.commit(STREAM, epoch, [at(1)])


async def test_a_dead_holder_is_followed_after_the_timeout(redis: Client, open_store: Callable[..., Any]) -> None:
    dead, other = await open_store(), await open_store()
    epoch = await started(dead)
    await dead.commit(STREAM, epoch, [at(40)])
    await fall_asleep(dead)
    assert await other.claim(STREAM) > epoch  # waited for the lock to end
    assert (await other.load(STREAM)).checkpoints == (at(40),)


async def test_a_holder_that_wakes_late_cannot_commit(redis: Client, open_store: Callable[..., Any]) -> None:
    late, other = await open_store(), await open_store()
    epoch = await started(late)
    await fall_asleep(late)
    newer = await other.claim(STREAM)
    await other.commit(STREAM, newer, [at(80)])
    await other.close()  # even when the newer one is gone, and its lock with it
    with pytest.raises(CheckpointConflictError, match="taken over"):
        await late.commit(STREAM, epoch, [at(41)])
    assert (await late.load(STREAM)).checkpoints == (at(80),)


async def test_a_holder_whose_lock_ended_goes_on_if_nobody_came(redis: Client, open_store: Callable[..., Any]) -> None:
    store = await open_store()
    epoch = await started(store)
    await redis.delete(f"etl:lock:{STREAM}")
    await store.commit(STREAM, epoch, [at(5)])
    assert await redis.exists(f"etl:lock:{STREAM}")


async def test_standing_by_is_no_failure_and_says_when_to_ask_again(
    redis: Client, open_store: Callable[..., Any]
) -> None:
    holder, other = await open_store(), await open_store(coordination="redis")
    await started(holder)
    with pytest.raises(StandbyError) as caught:
        await other.claim(STREAM)
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= LOCK_S + 0.1
    await holder.close()
    assert await other.claim(STREAM) > 1


async def test_a_lock_of_the_guides_script_is_respected(redis: Client, open_store: Callable[..., Any]) -> None:
    store = await open_store()
    async with redis.lock(f"etl:lock:{STREAM}", timeout=3600):
        with pytest.raises(CheckpointConflictError):
            await store.claim(STREAM)
    await started(store)
    assert not await redis.lock(f"etl:lock:{STREAM}", timeout=3600).acquire(blocking=False)


async def test_a_hash_of_somebody_else_is_left_alone(redis: Client, open_store: Callable[..., Any]) -> None:
    await redis.hset(f"etl:checkpoint:{STREAM}", mapping={"last_id": 7, "worker": "1", "timestamp": 1.5})
    store = await open_store()
    assert await store.load(STREAM) is None
    with pytest.raises(CheckpointConflictError, match=r"checkpoints\.prefix"):
        await store.claim(STREAM)
    await redis.delete(f"etl:checkpoint:{STREAM}")
    await started(store)
    await store.close()
    with pytest.raises(CheckpointConflictError, match="belongs to application 'app'"):
        await (await open_store(app="other")).claim(STREAM)


async def test_a_hash_that_cannot_be_read_is_said(redis: Client, open_store: Callable[..., Any]) -> None:
    store = await open_store()
    await started(store)
    await redis.hset(f"etl:checkpoint:{STREAM}", "split:0", "{")
    with pytest.raises(CheckpointCorruptError, match="checkpoint reset"):
        await store.load(STREAM)


async def test_a_name_with_pattern_characters_is_found(redis: Client, open_store: Callable[..., Any]) -> None:
    store = await open_store(prefix="e[t]l*:")
    await started(store)
    await redis.hset("eel:checkpoint:other", "app", "app")
    assert await store.streams() == [STREAM]


@pytest.fixture
def server() -> Iterator[Redis]:
    """A server of the test's own, which keeps nothing over a restart."""
    own = Redis()
    own.start()
    yield own
    own.close()


async def test_lost_data_stop_a_running_stream_and_do_not_start_it_over(
    server: Redis, open_store: Callable[..., Any]
) -> None:
    store = await open_store(server.url(), lock_timeout_s=30)
    epoch = await started(store)
    await store.commit(STREAM, epoch, [at(40)])
    await asyncio.to_thread(server.stop)
    with pytest.raises(StoreUnavailableError):
        await store.commit(STREAM, epoch, [at(41)])
    await asyncio.to_thread(server.start)
    with pytest.raises(CheckpointConflictError, match="Redis has lost its data"):
        await store.commit(STREAM, epoch, [at(41)])


async def test_a_break_in_between_is_survived(server: Redis, open_store: Callable[..., Any]) -> None:
    store = await open_store(server.url(), lock_timeout_s=30)
    epoch = await started(store)
    async with Client.from_url(server.url()) as client:
        await client.client_kill_filter(_type="normal", skipme=True)
        await store.commit(STREAM, epoch, [at(41)])
        await client.script_flush()
        await store.commit(STREAM, epoch, [at(42)])
    assert (await store.load(STREAM)).checkpoints == (at(42),)


@pytest.mark.parametrize(
    ("url", "error"),
    [("redis://:hunter2@127.0.0.1:1/0", StoreUnavailableError), ("http://:hunter2@127.0.0.1/0", ConfigError)],
)
async def test_a_wrong_url_is_one_line_without_the_password(
    url: str, error: type[Exception], open_store: Callable[..., Any]
) -> None:
    with pytest.raises(error) as caught:
        await open_store(url)
    assert "hunter2" not in str(caught.value)


async def test_refused_credentials_are_said(server: Redis, open_store: Callable[..., Any]) -> None:
    async with Client.from_url(server.url()) as client:
        await client.config_set("requirepass", "right")
    for url in (server.url(), server.url().replace("redis://", "redis://:hunter2@")):
        with pytest.raises(AuthenticationError) as caught:
            await open_store(url)
        assert "hunter2" not in str(caught.value)
