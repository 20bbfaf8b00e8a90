"""Owns the contract of checkpoint stores: every store of `producer.checkpoints.STORES` runs each of these tests."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from producer.checkpoints import STORES
from producer.config import Config
from producer.errors import CheckpointConflictError
from producer.identity import Identity
from producer.model import Between, Checkpoint, KeyPosition, OffsetPosition, Split, StreamState
from producer.parts import make_store
from producer.protocols import CheckpointStore

STREAM = 'Ein Stream/.."x" ü'


@pytest.fixture(params=sorted(STORES))
def config(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Config:
    """A configuration with each kind of store, over an empty state."""
    kind: str = request.param
    data: dict[str, Any] = {
        "app": unique,
        "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
        "streams": [{"name": "t", "source": "s", "table": "t"}],
    }
    match kind:
        case "file":
            data["checkpoints"] = {"type": "file", "path": str(tmp_path / "state")}
        case "kafka":
            data["checkpoints"] = {"type": "kafka"}
            data["kafka"] = {"bootstrap_servers": request.getfixturevalue("kafka_bootstrap")}
        case "postgres":
            data["checkpoints"] = {"type": "postgres", "url": request.getfixturevalue("postgres_dsn")}
        case "redis":
            data["checkpoints"] = {
                "type": "redis",
                "url": request.getfixturevalue("redis_url"),
                "prefix": f"{unique}:",
                "lock_timeout_s": 0.5,
            }
        case _:
            raise AssertionError(f"no contract run for the store {kind!r}: add it here")
    return Config.model_validate(data)


@pytest.fixture
async def new_store(config: Config) -> AsyncIterator[Callable[[], Any]]:
    """Opens stores over the same state, each as another process would."""
    opened: list[CheckpointStore] = []

    async def open_store() -> CheckpointStore:
        store = make_store(config)
        await store.start()
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.close()


def state(epoch: int, *checkpoints: Checkpoint, fingerprint: str = "f00d") -> StreamState:
    return StreamState(STREAM, fingerprint, epoch, checkpoints)


def split(number: int, position: int | None = None, **changes: Any) -> Checkpoint:
    lower = KeyPosition((number * 100,)) if number else None
    place = KeyPosition((position,)) if position is not None else None
    return Checkpoint(Split(str(number), lower, KeyPosition((number * 100 + 100,))), place, **changes)


async def test_a_stream_that_was_never_run_has_no_state(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    assert await store.load(STREAM) is None
    assert list(await store.streams()) == []
    assert await store.reset(STREAM) is False


async def test_what_is_committed_is_loaded_by_the_next_process(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    belongs = Identity({"app": "a", "topic": "t"}, "7", ("address a:1",), "server 1", "q")
    await store.begin(replace(state(epoch, split(0), split(1)), identity=belongs))
    await store.commit(STREAM, epoch, [split(1, 150, rows=50)])
    await store.commit(STREAM, epoch, [split(0, 100, rows=100, done=True, detail={"holes": [3, 4]})])
    await store.close()
    loaded = await (await new_store()).load(STREAM)
    assert loaded is not None
    assert loaded.fingerprint == "f00d"
    assert loaded.epoch == epoch
    assert loaded.identity == belongs
    assert set(map(repr, loaded.checkpoints)) == {
        repr(split(0, 100, rows=100, done=True, detail={"holes": [3, 4]})),
        repr(split(1, 150, rows=50)),
    }


async def test_every_kind_of_position_comes_back_as_it_was(new_store: Callable[[], Any]) -> None:
    values = (
        -(2**63),
        2**63 - 1,
        "x'\"\n\u2603",
        uuid.UUID(int=2**128 - 1),
        decimal.Decimal("-1.50"),
        b"\x00\xff",
        dt.datetime(1, 1, 1, 0, 0, 0, 1),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC),
        dt.date(2024, 2, 29),
        dt.time(23, 59, 59, 999999),
        0.1,
    )
    found = [
        Checkpoint(Split("key", None, None), KeyPosition(values)),
        Checkpoint(Split("offset", None, OffsetPosition(2**40)), OffsetPosition(7)),
        Checkpoint(Split("fresh", KeyPosition(values), None), None),
    ]
    store = await new_store()
    await store.begin(state(await store.claim(STREAM), *found))
    loaded = await store.load(STREAM)
    assert loaded is not None
    assert {c.split.id: c for c in loaded.checkpoints} == {c.split.id: c for c in found}


async def test_commits_of_splits_that_are_not_named_stay(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, *(split(n) for n in range(64))))
    for n in range(0, 64, 3):
        await store.commit(STREAM, epoch, [split(n, n * 100 + 1, rows=1)])
    loaded = await store.load(STREAM)
    assert loaded is not None
    assert {int(c.split.id): c.rows for c in loaded.checkpoints} == {n: int(n % 3 == 0) for n in range(64)}


async def test_a_new_split_can_be_added_by_a_commit(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0)))
    await store.commit(STREAM, epoch, [split(7)])
    loaded = await store.load(STREAM)
    assert loaded is not None
    assert sorted(c.split.id for c in loaded.checkpoints) == ["0", "7"]


async def test_a_new_plan_replaces_the_old_one_whole(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0, 5), split(1), split(2)))
    await store.begin(state(epoch, split(0), fingerprint="beef"))
    await store.close()
    loaded = await (await new_store()).load(STREAM)
    assert loaded is not None
    assert loaded.fingerprint == "beef"
    assert loaded.checkpoints == (split(0),)


async def test_epochs_rise_with_every_claim(new_store: Callable[[], Any]) -> None:
    epochs = []
    for _ in range(3):
        store = await new_store()
        epochs.append(await store.claim(STREAM))
        if len(epochs) == 1:
            await store.begin(state(epochs[0], split(0)))
        await store.close()
    assert epochs == sorted(set(epochs))


async def test_a_second_runner_is_kept_out_or_the_first_is_fenced(new_store: Callable[[], Any]) -> None:
    first, second = await new_store(), await new_store()
    epoch = await first.claim(STREAM)
    await first.begin(state(epoch, split(0)))
    try:
        newer = await second.claim(STREAM)
    except CheckpointConflictError as error:
        assert STREAM in error.message
        await first.commit(STREAM, epoch, [split(0, 1, rows=1)])  # the first works on
        return
    assert newer > epoch
    await second.commit(STREAM, newer, [split(0, 2, rows=2)])
    with pytest.raises(CheckpointConflictError):
        await first.commit(STREAM, epoch, [split(0, 1, rows=1)])
    loaded = await second.load(STREAM)
    assert loaded is not None
    assert loaded.checkpoints == (split(0, 2, rows=2),)


async def test_a_reset_is_kept_out_by_a_live_runner_or_fences_it(new_store: Callable[[], Any]) -> None:
    runner, other = await new_store(), await new_store()
    epoch = await runner.claim(STREAM)
    await runner.begin(state(epoch, split(0), split(1)))
    try:
        assert await other.reset(STREAM) is True
    except CheckpointConflictError as error:
        assert STREAM in error.message
        await runner.commit(STREAM, epoch, [split(0, 1, rows=1)])  # the runner works on
        return
    for _ in range(2):
        with pytest.raises(CheckpointConflictError):
            await runner.commit(STREAM, epoch, [split(0, 1, rows=1)])
    assert await other.load(STREAM) is None
    assert await (await new_store()).claim(STREAM) > epoch


async def test_a_runner_that_resets_its_stream_has_to_claim_it_again(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0)))
    assert await store.reset(STREAM) is True
    with pytest.raises(CheckpointConflictError):
        await store.commit(STREAM, epoch, [split(0, 1, rows=1)])
    assert await store.load(STREAM) is None
    await store.begin(state(await store.claim(STREAM), split(0)))


async def test_a_claim_ends_with_close(new_store: Callable[[], Any]) -> None:
    first = await new_store()
    epoch = await first.claim(STREAM)
    await first.begin(state(epoch, split(0)))
    await first.close()
    second = await new_store()
    assert await second.claim(STREAM) > epoch


async def test_a_pause_outlives_commits_claims_and_the_process(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0)))
    assert not (await store.load(STREAM)).paused
    await store.set_paused(STREAM, epoch, True)
    await store.commit(STREAM, epoch, [split(0, 5, rows=5)])
    await store.close()

    store = await new_store()
    assert (await store.load(STREAM)).paused
    epoch = await store.claim(STREAM)
    paused = await store.load(STREAM)
    assert paused.paused
    assert paused.checkpoints == (split(0, 5, rows=5),)
    await store.set_paused(STREAM, epoch, False)
    assert not (await store.load(STREAM)).paused


async def test_a_pause_is_forgotten_with_the_stream(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0)))
    await store.set_paused(STREAM, epoch, True)
    await store.close()
    store = await new_store()
    await store.reset(STREAM)
    await store.begin(state(await store.claim(STREAM), split(0)))
    assert not (await store.load(STREAM)).paused


async def test_only_the_newest_runner_pauses(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0)))
    with pytest.raises(CheckpointConflictError):
        await store.set_paused(STREAM, epoch - 1, True)
    assert not (await store.load(STREAM)).paused


async def test_a_replay_comes_back_with_its_range(new_store: Callable[[], Any]) -> None:
    since = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    replays = [
        Checkpoint(Split("replay-1", None, None, Between("changed", since, None))),
        Checkpoint(Split("replay-2", None, KeyPosition((9,)), Between("id", 1, 9)), KeyPosition((5,)), rows=5),
    ]
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0)))
    await store.commit(STREAM, epoch, replays)
    assert (await store.load(STREAM)).checkpoints == (split(0), *replays)


async def test_reset_forgets_one_stream_and_no_other(new_store: Callable[[], Any]) -> None:
    store = await new_store()
    epoch = await store.claim(STREAM)
    await store.begin(state(epoch, split(0, 5)))
    await store.begin(StreamState("other", "f", await store.claim("other"), (split(0, 6),)))
    assert sorted(await store.streams()) == sorted([STREAM, "other"])
    await store.close()
    store = await new_store()
    assert await store.reset(STREAM) is True
    assert await store.load(STREAM) is None
    assert list(await store.streams()) == ["other"]
    assert (await store.load("other")).checkpoints == (split(0, 6),)
