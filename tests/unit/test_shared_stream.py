"""Owns the claims about the units of a shared stream that need no broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from producer import stream as streams
from producer.config import Config, StreamConfig
from producer.coordination import sharing
from producer.coordination.membership import Membership
from producer.coordination.sharing import SharedStream
from producer.coordination.units import reset_whole
from producer.errors import (
    CheckpointConflictError,
    CheckpointLostError,
    NullKeyError,
    OtherQueryError,
    SourceUnavailableError,
    StoreUnavailableError,
)
from producer.inflight import ByteBudget
from producer.metrics import Metrics
from producer.model import Between, Checkpoint, Dataset, KeyPosition, NullKeys, NullRows, Split, StreamState
from producer.service import sharing as joined
from producer.unit import Engine
from tests.unit.engine import MemoryStore, Prepared, ScriptedSource, ScriptedWriter


@pytest.fixture(autouse=True)
def looks_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LOOK_INTERVAL_S", 0.02)


@dataclass
class MemoryLendingStore(MemoryStore):
    topic: str = "state"
    partitions: int = 2

    async def release(self, stream: str) -> None: ...

    async def load_all(self, streams: Sequence[str]) -> Sequence[StreamState | None]:
        return [await MemoryStore.load(self, stream) for stream in streams]

    async def claim(self, stream: str, above: int = 0) -> int:
        epoch = await MemoryStore.claim(self, stream, above)
        if stream in self.states:
            self.states[stream] = replace(self.states[stream], epoch=epoch)
        return epoch

    async def begin_units(self, state: StreamState, units: Sequence[StreamState]) -> None:
        for one in (*units, state):
            await self.begin(one)

    async def add(self, stream: str, epoch: int, unit: str, checkpoint: Checkpoint) -> None:
        self.states[unit] = self.states[unit].with_changes([checkpoint], "")


def configuration(mode: str = "snapshot") -> Config:
    return Config.model_validate(
        {
            "coordination": "kafka",
            "checkpoints": {"type": "kafka"},
            "sources": {"s": {"type": "sql", "url": "sqlite:///none"}},
            "streams": [{"name": "t", "source": "s", "table": "t", "page_size": 10, "mode": mode}],
        }
    )


@contextmanager
def shared(
    source: ScriptedSource,
    writer: ScriptedWriter,
    store: MemoryStore,
    stop: asyncio.Event,
    *,
    once: bool = True,
    mode: str = "snapshot",
) -> Iterator[SharedStream]:
    config = configuration(mode)

    async def open_writer(*about: Any) -> ScriptedWriter:
        return writer

    with ThreadPoolExecutor(1) as executor:
        engine = Engine(
            store=cast(Any, store),
            open_writer=open_writer,
            budget=ByteBudget(1 << 20),
            executor=executor,
            stop=stop,
            once=once,
            give_up_after_s=5,
        )
        yield SharedStream(config.streams[0], source, engine, Metrics().stream("t", "s", "t"))


@dataclass
class Workers:
    """Two processes over one store: the first owns unit 0, the second unit 1."""

    streams: Sequence[SharedStream]
    writers: Sequence[ScriptedWriter]
    stop: asyncio.Event

    @property
    def sent(self) -> Counter[int]:
        return Counter(number for writer in self.writers for number in writer.sent)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_all(self, state: str) -> None:
        await self.until(lambda: all(stream.status.state == state for stream in self.streams))


@asynccontextmanager
async def two_workers(
    store: MemoryStore,
    *,
    rows: int = 200,
    cuts: Sequence[int] = (100,),
    answer: Callable[[int, Prepared], BaseException | asyncio.Future[None] | None] = lambda count, page: None,
    **settings: Any,
) -> AsyncIterator[Workers]:
    stop, writers = asyncio.Event(), [ScriptedWriter(answer), ScriptedWriter(answer)]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(shared(ScriptedSource(rows, cuts=cuts), writer, store, stop, **settings))
            for writer in writers
        ]
        for unit, stream in enumerate(streams):
            await stream.start()
            await stream.own([unit])
        running = [asyncio.create_task(stream.run()) for stream in streams]
        try:
            yield Workers(streams, writers, stop)
        finally:
            stop.set()
            await asyncio.wait(running, timeout=10)


async def test_units_that_are_assigned_before_the_stream_has_started_are_run_when_it_has() -> None:
    source, writer = ScriptedSource(200, cuts=(100,)), ScriptedWriter()
    source.describe_error = SourceUnavailableError("away")
    with shared(source, writer, MemoryLendingStore(), asyncio.Event()) as stream:
        with pytest.raises(SourceUnavailableError):
            await stream.start()
        await stream.own([0, 1])  # as the group does, which knows nothing of the source
        await asyncio.sleep(0)
        source.describe_error = None
        async with asyncio.timeout(10):
            await stream.run()
    assert stream.status.state == "complete"
    assert sorted(writer.sent) == list(range(1, 201))


async def test_a_paused_stream_sends_nothing_after_a_restart() -> None:
    source, writer, store, stop = ScriptedSource(200), ScriptedWriter(), MemoryLendingStore(), asyncio.Event()
    with shared(source, writer, store, stop, once=False) as stream:
        await stream.start()
        store.states["t"] = replace(store.states["t"], paused=True)
        await stream.own([0, 1])
        running = asyncio.create_task(stream.run())
        try:
            async with asyncio.timeout(10):
                while stream.status.state != "paused" or not source.readers:
                    await asyncio.sleep(0.002)
        finally:
            stop.set()
            await asyncio.wait({running})
    assert writer.sent == []


async def test_a_run_once_of_a_paused_stream_ends_since_nobody_may_be_there_to_resume_it() -> None:
    writer, store = ScriptedWriter(), MemoryLendingStore()
    with shared(ScriptedSource(200), writer, store, asyncio.Event()) as stream:
        await stream.start()
        store.states["t"] = replace(store.states["t"], paused=True)
        await stream.own([0, 1])
        async with asyncio.timeout(10):
            await stream.run()
    assert (stream.status.state, writer.sent) == ("paused", [])


async def test_a_pause_that_is_asked_for_while_a_stream_starts_is_kept() -> None:
    store = MemoryLendingStore()
    with shared(ScriptedSource(200), ScriptedWriter(), store, asyncio.Event()) as stream:
        await stream.pause()
        await stream.start()
    assert store.states["t"].paused


async def test_a_workers_gauge_is_of_its_own_part_and_its_status_of_the_whole_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Autoscaling and dashboards add the gauges of all workers up."""
    monkeypatch.setattr(streams, "WATCH_INTERVAL_S", 0.01)
    held: list[asyncio.Future[None]] = []

    def hold(count: int, page: Prepared) -> asyncio.Future[None]:
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    async with two_workers(MemoryLendingStore(), rows=200, cuts=(50,), answer=hold, once=False) as workers:
        await workers.until(lambda: len(held) >= 2)
        await workers.until(lambda: [gauge_of(stream) for stream in workers.streams] == [50, 150])
        await asyncio.sleep(0.1)  # some more looks at the others' units
        assert [gauge_of(stream) for stream in workers.streams] == [50, 150]
        assert [stream.status.rows_remaining for stream in workers.streams] == [200, 200]


def gauge_of(stream: SharedStream) -> float | None:
    """None before it is known."""
    samples = [
        sample for family in stream._metrics.backfill_rows_remaining._gauge.collect() for sample in family.samples
    ]
    return samples[0].value if samples else None


async def test_a_pause_and_a_resume_through_either_worker_hold_for_both() -> None:
    store = MemoryLendingStore()
    async with two_workers(store, once=False, mode="snapshot_then_tail") as workers:
        await workers.until(lambda: sum(workers.sent.values()) >= 200)
        await workers.streams[0].pause()
        await workers.until_all("paused")
        await workers.streams[1].resume()
        await workers.until_all("running")
    assert not store.states["t"].paused


async def test_a_replay_is_run_by_the_owner_of_its_unit_whichever_worker_is_asked() -> None:
    store = MemoryLendingStore()
    async with two_workers(store, once=False) as workers:
        await workers.until_all("complete")
        for number in (1, 2):  # in unit 1, and in unit 0
            split = await workers.streams[0].replay(Between("", 31 * number, 31 * number + 9))
            assert split.id == f"replay-{number}"
        await workers.until(lambda: sum(workers.sent.values()) == 220)
        await workers.until_all("complete")
    assert [len([n for n in writer.sent if workers.sent[n] > 1]) for writer in workers.writers] != [20, 0]
    assert {number for number, times in workers.sent.items() if times == 2} == {*range(31, 41), *range(62, 72)}
    assert store.states["t/1"].checkpoints[-1].split.id == "replay-1"


async def test_a_replay_that_comes_in_while_its_unit_is_at_work_is_run_beside_it() -> None:
    held: list[asyncio.Future[None]] = []

    def answer(count: int, page: Prepared) -> asyncio.Future[None] | None:
        if held or min(page.ids) < 101:
            return None
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    async with two_workers(MemoryLendingStore(), answer=answer) as workers:
        await workers.until(lambda: bool(held))
        await workers.streams[0].replay(Between("", 31, 40))
        await workers.until(lambda: workers.sent[40] == 2)
        held[0].set_result(None)
        await workers.until_all("complete")


async def test_the_split_that_follows_a_snapshot_waits_for_all_units_of_it() -> None:
    held: list[asyncio.Future[None]] = []

    def answer(count: int, page: Prepared) -> asyncio.Future[None] | None:
        if min(page.ids) > 100 or max(page.ids) <= 50:
            return None
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    # Splits 0 and 2, of which the latter is open, are in unit 0.
    async with two_workers(MemoryLendingStore(), cuts=(50, 100), answer=answer, mode="snapshot_then_tail") as workers:
        await workers.until(lambda: sum(workers.sent.values()) == 100)
        assert not await workers.streams[0]._look()
        await asyncio.sleep(0.05)
        assert max(workers.sent) <= 100
        while any(stream.status.state != "complete" for stream in workers.streams):
            for future in held:
                if not future.done():
                    future.set_result(None)
            await asyncio.sleep(0.005)
    assert workers.sent == Counter(range(1, 201))


async def test_a_snapshot_that_is_followed_later_gets_its_tail_from_one_of_the_workers() -> None:
    store = MemoryLendingStore()
    async with two_workers(store) as workers:
        await workers.until_all("complete")
    async with two_workers(store, rows=230, mode="snapshot_then_tail") as workers:
        await workers.until_all("complete")
    assert workers.sent == Counter(range(201, 231))
    added = [c.split for name in ("t/0", "t/1") for c in store.states[name].checkpoints if c.split.upper is None]
    assert added == [Split("2", KeyPosition((200,)))]


async def test_a_run_once_ends_when_what_is_followed_is_caught_up_with_by_every_worker() -> None:
    store = MemoryLendingStore()
    for rows in (200, 230):
        async with two_workers(store, rows=rows, mode="snapshot_then_tail") as workers:
            await workers.until_all("complete")
    assert workers.sent == Counter(range(201, 231))


async def test_a_worker_whose_part_is_done_takes_the_part_of_one_that_dies_over_before_a_run_once_ends() -> None:
    store = MemoryLendingStore()
    stop, writer = asyncio.Event(), ScriptedWriter()
    with shared(ScriptedSource(200, cuts=(100,)), writer, store, stop, mode="snapshot_then_tail") as stream:
        await stream.start()
        await stream.own([0])  # unit 1, with what is to be followed, is somebody else's
        running = asyncio.create_task(stream.run())
        async with asyncio.timeout(10):
            while len(writer.sent) < 100 or not all(task.done() for task in stream._owned.values()):
                await asyncio.sleep(0.005)
        await stream._look()
        assert not running.done()
        await stream.own([1])
        async with asyncio.timeout(15):
            await running
    assert stream.status.state == "complete"
    assert sorted(writer.sent) == list(range(1, 201))


async def test_what_an_earlier_run_was_done_with_is_not_done_before_this_one_has_looked_for_more() -> None:
    store = MemoryLendingStore()
    async with two_workers(store, mode="snapshot_then_tail") as workers:
        await workers.until_all("complete")
    writer = ScriptedWriter()
    with shared(ScriptedSource(230, cuts=(100,)), writer, store, asyncio.Event(), mode="snapshot_then_tail") as stream:
        await stream.start()
        await stream.own([0])  # the one without an end is nobody's as yet
        running = asyncio.create_task(stream.run())
        await asyncio.wait({running}, timeout=0.2)
        assert not running.done()
        await stream.own([1])
        async with asyncio.timeout(10):
            await running
    assert writer.sent == list(range(201, 231))


class FencingStore(MemoryLendingStore):
    """Whose commits find what somebody has done to the state, as they do in Kafka."""

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        state = self.states.get(stream)
        if state is None or state.epoch > epoch:
            raise CheckpointConflictError("taken over")
        await super().commit(stream, epoch, changed)


async def test_a_look_reads_the_units_at_once_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Sequence[str]] = []

    class Counting(MemoryLendingStore):
        async def load(self, stream: str) -> StreamState | None:
            read.append([stream])
            return await super().load(stream)

        async def load_all(self, streams: Sequence[str]) -> Sequence[StreamState | None]:
            read.append(streams)
            return await super().load_all(streams)

    with shared(ScriptedSource(200), ScriptedWriter(), Counting(partitions=12), asyncio.Event()) as stream:
        await stream.start()
        read.clear()
        await stream._look()
    assert read == [["t"], [f"t/{unit}" for unit in range(12)]]


@asynccontextmanager
async def at_work(store: MemoryStore, rows: int = 4000) -> AsyncIterator[tuple[SharedStream, asyncio.Task[None]]]:
    """A worker that owns both units and has sent some of their rows."""
    stop, writer = asyncio.Event(), ScriptedWriter()
    with shared(ScriptedSource(rows, cuts=(rows // 2,)), writer, store, stop) as stream:
        await stream.start()
        await stream.own([0, 1])
        running = asyncio.create_task(stream.run())
        try:
            async with asyncio.timeout(15):
                while len(writer.sent) < 300:
                    await asyncio.sleep(0)
                yield stream, running
        finally:
            stop.set()
            await asyncio.wait({running}, timeout=10)


@pytest.mark.parametrize("found_by", ["a look", "the unit's claim"])
async def test_a_stream_whose_state_is_reset_while_it_runs_fails_and_is_not_complete(
    found_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable() -> dict[int, StreamState]:
        raise StoreUnavailableError("away")

    monkeypatch.setattr(sharing, "CLAIM_AGAIN_S", 0.02)
    monkeypatch.setattr(sharing, "DRAIN_DEADLINE_S", 0.1)
    store = FencingStore()
    async with at_work(store) as (stream, running):
        if found_by != "a look":
            monkeypatch.setattr(stream, "_load_units", unavailable)
        await reset_whole(cast(Any, store), "t")
        await running
    assert stream.status.state == "failed"
    assert isinstance(stream.failure, CheckpointLostError)
    assert "producer checkpoint reset CONFIG t" in stream.failure.hint
    assert store.states == {}, "no empty unit in the place of what was lost"


async def test_a_unit_that_was_planned_and_is_not_there_at_the_start_is_not_taken_for_an_empty_one() -> None:
    store, writer = MemoryLendingStore(), ScriptedWriter()
    with shared(ScriptedSource(200, cuts=(100,)), writer, store, asyncio.Event()) as stream:
        await stream.start()
    await store.reset("t/1")  # as of a reset that did not come to its end
    with shared(ScriptedSource(200, cuts=(100,)), writer, store, asyncio.Event()) as stream:
        async with asyncio.timeout(10):
            await stream.run()
    assert isinstance(stream.failure, CheckpointLostError)
    assert "t/1" in stream.failure.message
    assert sorted(store.states) == ["t", "t/0"]


async def test_a_unit_that_another_query_has_begun_anew_is_not_claimed_again_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "CLAIM_AGAIN_S", 0.02)
    store = FencingStore()
    async with at_work(store) as (stream, running):
        store.states["t/0"] = replace(store.states["t/0"], fingerprint="another", epoch=9)
        await running
    assert stream.status.state == "failed"
    assert isinstance(stream.failure, OtherQueryError)


async def test_a_stream_with_fewer_splits_than_units_is_complete_with_empty_units() -> None:
    store, writer = MemoryLendingStore(partitions=4), ScriptedWriter()
    with shared(ScriptedSource(200, cuts=(100,)), writer, store, asyncio.Event()) as stream:
        await stream.start()
        await stream.own(range(4))
        async with asyncio.timeout(10):
            await stream.run()
    assert stream.status.state == "complete"
    assert sorted(writer.sent) == list(range(1, 201))


async def test_two_processes_whose_planning_takes_long_do_not_fence_one_another_for_ever() -> None:
    class Fencing(MemoryLendingStore):
        claims = 0

        async def claim(self, stream: str, above: int = 0) -> int:
            self.claims += 1
            return self.claims

        async def begin_units(self, state: StreamState, units: Sequence[StreamState]) -> None:
            if state.epoch != self.claims:
                raise CheckpointConflictError("fenced")
            await super().begin_units(state, units)

    class Slow(ScriptedSource):
        async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
            await asyncio.sleep(0.3)  # much longer than a look
            return await super().plan(stream, dataset)

    store, stop = Fencing(), asyncio.Event()
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(shared(Slow(200), ScriptedWriter(), store, stop)) for _ in ("first", "second")
        )
        async with asyncio.timeout(10):
            starting = asyncio.create_task(first.start())
            await asyncio.sleep(0.15)  # in the midst of its planning
            await second.start()
            await starting
    assert first.started
    assert second.started


async def test_a_stop_does_not_wait_for_the_group_to_take_the_process_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(_: Membership) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Membership, "start", for_ever)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, stop.set)
    async with asyncio.timeout(5):
        async with joined(configuration(), [], stop):
            pass


@dataclass
class SourceWithNullKeys(ScriptedSource):
    """One row has no key."""

    async def null_columns(self, stream: StreamConfig) -> Sequence[str]:
        return ["id"]

    async def null_keys(self, stream: StreamConfig, named: int = 10) -> NullKeys:
        await asyncio.sleep(0.1)  # longer than others need to see that all splits are done
        return NullKeys({"id": 1}, ("id=NULL",))

    async def null_rows(self, stream: StreamConfig, known: frozenset[bytes], *, limit: int, most: int) -> NullRows:
        raise AssertionError("on_bad_record is fail")


@pytest.mark.parametrize("runs", [1, 2])
async def test_a_snapshot_is_not_complete_before_its_search_for_null_keys(runs: int) -> None:
    writer, store = ScriptedWriter(), MemoryLendingStore()
    for _ in range(runs):  # the second run finds all splits done
        with shared(SourceWithNullKeys(200, cuts=(100,)), writer, store, asyncio.Event()) as stream:
            await stream.start()
            await stream.own([0, 1])
            async with asyncio.timeout(10):
                await stream.run()
        assert isinstance(stream.failure, NullKeyError)
    assert sorted(writer.sent) == list(range(1, 201))
