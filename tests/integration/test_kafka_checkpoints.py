"""Owns the claims about the state topic that the contract of all stores does not make; against a real broker."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from producer.checkpoints.kafka import KafkaCheckpointStore
from producer.checkpoints.state_topic import StateTopic, record_key
from producer.config import Config
from producer.embedded import EmbeddedKafka
from producer.errors import CheckpointConflictError, CheckpointCorruptError, StoreUnavailableError
from producer.kafka import abandon
from producer.model import Checkpoint, KeyPosition, Split, StreamState
from tests.integration.kafka_rows import read_topic

Open = Callable[..., Awaitable[KafkaCheckpointStore]]


def config(app: str, bootstrap: str, **kafka: Any) -> Config:
    return Config.model_validate(
        {
            "app": app,
            "kafka": {"bootstrap_servers": bootstrap, **kafka},
            "checkpoints": {"type": "kafka"},
            "coordination": "kafka" if "state_partitions" in kafka else "none",
            "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
            "streams": [{"name": "t", "source": "s", "table": "t"}],
        }
    )


@pytest.fixture
async def open_store(kafka_bootstrap: str, unique: str) -> AsyncIterator[Open]:
    opened = []

    async def open_one(bootstrap: str = kafka_bootstrap, **kafka: Any) -> KafkaCheckpointStore:
        store = KafkaCheckpointStore(config(unique, bootstrap, **kafka))
        opened.append(store)
        await store.start()
        return store

    yield open_one
    for store in opened:
        await store.close()


def at(number: int, rows: int) -> Checkpoint:
    return Checkpoint(Split(str(number)), KeyPosition((rows,)), rows)


def state(epoch: int, *checkpoints: Checkpoint, stream: str = "t") -> StreamState:
    return StreamState(stream, "f", epoch, checkpoints)


async def put(bootstrap: str, topic: str, *records: tuple[bytes, bytes | None]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for key, value in records:
            await producer.send_and_wait(topic, key=key, value=value, partition=0)


async def test_splits_keep_the_plans_order_whichever_was_written_last(open_store: Open) -> None:
    store = await open_store()
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(7, 0), at(3, 0), at(5, 0)))
    await store.commit("t", epoch, [at(7, 1)])
    await store.commit("t", epoch, [at(9, 1)])
    await store.commit("t", epoch, [at(3, 1)])

    loaded = await (await open_store()).load("t")

    assert loaded is not None
    assert [c.split.id for c in loaded.checkpoints] == ["7", "3", "5", "9"]
    newer = await open_store()
    await newer.commit("t", await newer.claim("t"), [at(11, 0)])
    assert [c.split.id for c in (await newer.load("t")).checkpoints] == ["7", "3", "5", "9", "11"]  # type: ignore[union-attr]


async def test_the_plans_order_outlives_a_compaction(open_store: Open, kafka_bootstrap: str) -> None:
    """Which leaves each key's newest record, in the order of their writing."""
    store = await open_store()
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(7, 0), at(3, 0), at(5, 0)))
    kept = {r.key: r.value for r in await read_topic(kafka_bootstrap, store.topic)}
    await store.close()
    await put(kafka_bootstrap, store.topic, *((key, None) for key in kept))
    await put(kafka_bootstrap, store.topic, *reversed(kept.items()))

    loaded = await (await open_store()).load("t")

    assert loaded is not None
    assert loaded.checkpoints == (at(7, 0), at(3, 0), at(5, 0))


async def test_a_commit_writes_one_record_a_changed_split(open_store: Open, kafka_bootstrap: str) -> None:
    store = await open_store()
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(0, 0), at(1, 0)))
    before = len(await read_topic(kafka_bootstrap, store.topic))

    await store.commit("t", epoch, [at(1, 10)])

    after = (await read_topic(kafka_bootstrap, store.topic))[before:]
    assert [json.loads(r.key) for r in after] == [{"stream": "t", "split": "1"}]


async def test_a_commit_shows_whole_or_not_at_all(open_store: Open, kafka_bootstrap: str) -> None:
    """A runner that dies in the middle of a transaction has committed nothing of it."""
    store = await open_store()
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(0, 0), at(1, 0)))
    producer = store._claims["t"].producer
    assert producer is not None
    await producer.begin_transaction()
    await producer.send_and_wait(store.topic, b"not json", record_key("t", "0"), partition=0)

    newer = await open_store()  # its claim ends the open transaction
    await newer.claim("t")

    assert (await newer.load("t")).checkpoints == (at(0, 0), at(1, 0))  # type: ignore[union-attr]


async def test_another_streams_open_transaction_does_not_hide_commits_behind_it(open_store: Open) -> None:
    store = await open_store()
    for name in ("dead", "t"):
        await store.begin(state(await store.claim(name), at(0, 0), stream=name))
    dead = store._claims["dead"].producer
    assert dead is not None
    await dead.begin_transaction()
    await dead.send_and_wait(store.topic, b"{}", record_key("dead", "0"), partition=0)
    await store.commit("t", store._claims["t"].epoch, [at(0, 5)])

    reader = await open_store()
    loading = asyncio.create_task(reader.load("t"))
    await asyncio.sleep(0.5)
    assert not loading.done(), "what is behind an open transaction is not known before its end"
    await dead.abort_transaction()

    assert (await loading).checkpoints == (at(0, 5),)  # type: ignore[union-attr]


async def test_a_topic_that_ends_with_transaction_markers_is_read_to_its_end(open_store: Open) -> None:
    store = await open_store()
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(0, 0)))
    for rows in range(1, 6):
        await store.commit("t", epoch, [at(0, rows)])
        assert (await asyncio.wait_for(store.load("t"), 10)).checkpoints == (at(0, rows),)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (record_key("t", "0"), b"{"),
        (record_key("t", "0"), b"[]"),
        (record_key("t", "0"), b"{}"),
        (record_key("t", "0"), b'{"place": 0, "split": "0", "rows": "x"}'),
        (record_key("t"), b"\xff"),
        (record_key("t"), b"[]"),
        (record_key("t"), b'{"fingerprint": "f"}'),
        (record_key("t"), None),
    ],
)
async def test_a_corrupt_record_is_an_error_of_its_stream_alone_and_reset_mends_it(
    open_store: Open, kafka_bootstrap: str, key: bytes, value: bytes | None
) -> None:
    store = await open_store()
    for name in ("other", "t"):
        await store.begin(state(await store.claim(name), at(0, 0), stream=name))
    await store.close()
    await put(kafka_bootstrap, store.topic, (key, value), (b"schema/1", b"{}"), (b"\xff", b"x"), (b"3", b"x"))

    store = await open_store()
    with pytest.raises(
        CheckpointCorruptError, match=r"stream 't' in topic .*cannot be read.* checkpoint reset CONFIG t"
    ):
        await store.load("t")
    with pytest.raises(CheckpointCorruptError):
        await store.claim("t")
    assert await store.streams() == ["other", "t"]
    assert await store.load("other") is not None

    assert await store.reset("t") is True
    assert await store.load("t") is None
    await store.begin(state(await store.claim("t"), at(0, 0)))


async def test_epochs_rise_over_resets_and_claims_without_a_plan(open_store: Open) -> None:
    first, second = await open_store(), await open_store()
    epochs = [await first.claim("t"), await second.claim("t")]
    await second.begin(state(epochs[-1], at(0, 0)))
    await (await open_store()).reset("t")
    epochs.append(await second.claim("t"))

    assert epochs == [1, 2, 4]  # 3 is the reset's, which fences whoever still runs
    assert await first.load("t") is None
    assert await first.streams() == []


async def test_a_fenced_runner_is_refused_for_good_and_leaves_no_noise(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    gc.collect()  # what tests before this one left is not this one's noise
    caplog.clear()
    first, second = await open_store(), await open_store()
    epoch = await first.claim("t")
    await first.begin(state(epoch, at(0, 0)))
    newer = await second.claim("t")

    for _ in range(2):
        with pytest.raises(CheckpointConflictError, match="taken over"):
            await first.commit("t", epoch, [at(0, 9)])
    await second.commit("t", newer, [at(0, 1)])
    await first.close()
    gc.collect()

    assert (await second.load("t")).checkpoints == (at(0, 1),)  # type: ignore[union-attr]
    assert [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR] == []


async def test_of_two_processes_plans_one_is_there_and_it_is_whole(open_store: Open) -> None:
    first, second = await open_store(), await open_store()
    mine = [state(0, at(n, n), stream=f"t/{n}") for n in range(2)]
    theirs = [state(0, at(n + 2, n + 2), stream=f"t/{n}") for n in range(2)]
    epoch = await first.claim("t")
    newer = await second.claim("t")  # while the first one plans
    await second.begin_units(state(newer), theirs)
    with pytest.raises((CheckpointConflictError, StoreUnavailableError)):
        await first.begin_units(state(epoch), mine)
    found = [await second.load(f"t/{n}") for n in range(2)]
    assert [unit.checkpoints for unit in found if unit] == [(at(2, 2),), (at(3, 3),)]


async def test_all_units_are_read_with_one_question_for_their_ends(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many partitions they are in: a stream's processes look at them each second."""
    store, reader = [await open_store(state_partitions=6) for _ in ("store", "reader")]
    names = [f"t/{n}" for n in range(6)]
    units = [state(0, at(n, n), stream=name) for n, name in enumerate(names)]
    await store.begin_units(state(await store.claim("t")), units)
    asked: list[int] = []
    ends = StateTopic._ends_now

    async def counted(topic: StateTopic, consumer: AIOKafkaConsumer, wanted: Sequence[TopicPartition]) -> Any:
        asked.append(len(wanted))
        return await ends(topic, consumer, wanted)

    for rows in (0, 10):  # all from the start, and what is new
        if rows:
            await store.commit("t/3", await store.claim("t/3"), [at(3, rows)])
            await store.commit("t/5", await store.claim("t/5"), [at(5, rows)])
        with monkeypatch.context() as patch:
            patch.setattr(StateTopic, "_ends_now", counted)
            found = await reader.load_all([*names, "nobody/1"])
        rows_of = [unit.checkpoints[0].rows if unit else None for unit in found]
        assert rows_of == [0, 1, 2, rows or 3, 4, rows or 5, None]
    assert asked == [6, 6]


async def test_a_split_is_put_into_a_unit_that_another_process_runs(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, owner = await open_store(), await open_store()
    await asked.begin_units(state(await asked.claim("t")), [state(0, at(0, 0), stream="t/0")])
    monkeypatch.setenv("WORKER_ID", "w2")
    epoch = await owner.claim("t/0")
    await asked.add("t", await asked.claim("t"), "t/0", at(1, 0))
    await owner.commit("t/0", epoch, [at(0, 5)])  # it is not fenced, and takes nothing away
    unit = await asked.load("t/0")
    assert unit is not None
    assert (set(unit.checkpoints), unit.owner) == ({at(0, 5), at(1, 0)}, "w2")


async def test_a_process_that_was_asked_is_fenced_by_one_that_is_asked_after_it(open_store: Open) -> None:
    first, second = await open_store(), await open_store()
    await first.begin_units(state(await first.claim("t")), [state(0, at(0, 0), stream="t/0")])
    older = await first.claim("t")
    await second.claim("t")
    with pytest.raises((CheckpointConflictError, StoreUnavailableError)):
        await first.add("t", older, "t/0", at(1, 0))
    unit = await second.load("t/0")
    assert unit is not None
    assert unit.checkpoints == (at(0, 0),)


async def test_a_runner_whose_connection_broke_does_not_fence_the_one_that_took_over(open_store: Open) -> None:
    first, second = await open_store(), await open_store()
    epoch = await first.claim("t")
    await first.begin(state(epoch, at(0, 0)))
    newer = await second.claim("t")
    producer = first._claims["t"].producer
    assert producer is not None
    first._claims["t"].producer = None  # as after a failed commit
    await abandon(producer)
    with pytest.raises(CheckpointConflictError):
        await first.commit("t", epoch, [at(0, 9)])

    await second.commit("t", newer, [at(0, 1)])


async def test_a_cancelled_commit_comes_to_its_end_and_the_next_one_follows_it(open_store: Open) -> None:
    store = await open_store()
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(0, 0), at(1, 0)))
    commit = asyncio.create_task(store.commit("t", epoch, [at(0, 1)]))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit

    await store.commit("t", epoch, [at(1, 1)])

    assert (await store.load("t")).checkpoints == (at(0, 1), at(1, 1))  # type: ignore[union-attr]


async def test_a_broker_that_is_away_is_an_error_in_time_and_commits_go_on_when_it_is_back(
    own_kafka: Callable[..., EmbeddedKafka], open_store: Open
) -> None:
    broker = await asyncio.to_thread(own_kafka)
    store = await open_store(broker.bootstrap, request_timeout_s=2, connect_timeout_s=1)
    epoch = await store.claim("t")
    await store.begin(state(epoch, at(0, 0)))
    await asyncio.to_thread(broker.kill)

    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match=broker.bootstrap):
            await asyncio.wait_for(store.commit("t", epoch, [at(0, 1)]), 15)

    await asyncio.to_thread(broker.start)
    async with asyncio.timeout(60):
        while True:
            try:
                await store.commit("t", epoch, [at(0, 2)])
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.1)
    assert (await store.load("t")).checkpoints == (at(0, 2),)  # type: ignore[union-attr]
    await store.close()


async def test_a_broker_that_is_not_there_is_named(open_store: Open) -> None:
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1: could not connect: connection refused"):
        await open_store("127.0.0.1:1")


async def test_a_claim_that_is_given_up_halfway_fences_nobody_afterwards(open_store: Open) -> None:
    first, second = await open_store(), await open_store()
    begun, go_on = asyncio.Event(), asyncio.Event()
    make = first._new_producer

    async def slowly(stream: str) -> AIOKafkaProducer:
        begun.set()
        await go_on.wait()
        return await make(stream)

    first._new_producer = slowly  # type: ignore[method-assign]
    claiming = asyncio.create_task(first.claim("t"))
    await begun.wait()
    claiming.cancel()
    await asyncio.wait({claiming})
    releasing = asyncio.create_task(first.release("t"))
    await asyncio.wait({releasing}, timeout=0.1)
    if not releasing.done():
        go_on.set()
        await releasing
    epoch = await second.claim("t")
    go_on.set()
    async with asyncio.timeout(20):
        while first._work:
            await asyncio.sleep(0.01)
    await second.begin(state(epoch, at(0, 0)))
    await second.commit("t", epoch, [at(0, 1)])
    assert "t" not in first._claims
