"""Owns the claims about streams and the service: start, plans, isolation, division, pause, stop, summaries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from producer import drift
from producer.config import StreamConfig
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    ConfigError,
    EncodeError,
    SchemaChangedError,
    SinkUnavailableError,
    SourceUnavailableError,
    StoreUnavailableError,
)
from producer.model import Checkpoint, Dataset, KeyPosition, Split, StreamState
from producer.service import Service, StreamSummary
from tests.unit.engine import MemoryStore, Prepared, ScriptedSource, ScriptedWriter, SplitReader, service_of


async def run(service: Service, *, once: bool = True, stop: asyncio.Event | None = None) -> dict[str, StreamSummary]:
    async with asyncio.timeout(20):
        return {s.stream: s for s in await service.run(once=once, stop=stop or asyncio.Event())}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_run_moves_every_split_of_every_stream_and_sums_up() -> None:
    sources = {"a": ScriptedSource(500, cuts=(100, 300)), "b": ScriptedSource(70)}
    writers = {"a": ScriptedWriter(), "b": ScriptedWriter()}
    store = MemoryStore()
    done = await run(service_of(sources, writers, store))
    assert sorted(writers["a"].sent) == list(range(1, 501))
    assert sorted(writers["b"].sent) == list(range(1, 71))
    assert (done["a"].state, done["a"].rows, done["a"].acked) == ("complete", 500, 500)
    assert done["a"].position["0"] == {"key": [100]}
    assert all(checkpoint.done for checkpoint in store.states["a"].checkpoints)
    assert sources["a"].closed == 1


@dataclass
class PlanningSource(ScriptedSource):
    """Tells of each plan; with `hangs` none comes to an end."""

    planned: asyncio.Event = field(default_factory=asyncio.Event)
    hangs: bool = False
    plans: int = 0
    cancelled: int = 0

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        self.plans += 1
        self.planned.set()
        try:
            while self.hangs:
                await asyncio.sleep(1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().plan(stream, dataset)


async def test_a_stream_that_begins_is_planned_while_its_writer_is_opened_and_one_that_goes_on_is_not() -> None:
    store, writer, source = MemoryStore(), ScriptedWriter(), PlanningSource(50)

    async def opening() -> None:
        await source.planned.wait()

    await run(service_of({"a": source}, {"a": writer}, store, opening=opening))
    assert (sorted(writer.sent), source.plans) == (list(range(1, 51)), 1)
    await run(service_of({"a": source}, {"a": writer}, store, opening=opening))
    assert (len(writer.sent), source.plans) == (50, 1)


async def test_a_plan_is_broken_off_where_the_writer_cannot_be_opened() -> None:
    source = PlanningSource(50, hangs=True)

    async def opening() -> None:
        await source.planned.wait()
        raise EncodeError("no")

    with pytest.raises(EncodeError):
        await run(service_of({"a": source}, {"a": ScriptedWriter()}, MemoryStore(), opening=opening))
    assert (source.plans, source.cancelled) == (1, 1)


@dataclass
class LostStore(MemoryStore):
    """A store whose state has gone between the first look and the claim."""

    looks: int = 0

    async def load(self, stream: str) -> StreamState | None:
        self.looks += 1
        return StreamState(stream, "f", 1, ()) if self.looks == 1 else await super().load(stream)


async def test_a_stream_that_seemed_to_go_on_and_has_to_begin_is_planned_all_the_same() -> None:
    source, writer, store = PlanningSource(50), ScriptedWriter(), LostStore()

    async def opening() -> None:
        await until(lambda: store.looks == 1)

    await run(service_of({"a": source}, {"a": writer}, store, opening=opening))
    assert (sorted(writer.sent), source.plans) == (list(range(1, 51)), 1)


async def test_a_second_run_of_a_complete_snapshot_sends_nothing() -> None:
    store = MemoryStore()
    await run(service_of({"a": ScriptedSource(50)}, {"a": ScriptedWriter()}, store))
    writer = ScriptedWriter()
    done = await run(service_of({"a": ScriptedSource(80)}, {"a": writer}, store))
    assert writer.sent == []
    assert done["a"].state == "complete"


async def test_a_plan_is_kept_over_restarts_even_where_a_new_one_would_differ() -> None:
    store = MemoryStore()
    await store.begin(
        StreamState(
            "a",
            (
                await ScriptedSource(90).describe(service_of({"a": ScriptedSource(1)}, {}, store).config.streams[0])
            ).fingerprint("ID_RANGE"),
            1,
            (
                Checkpoint(Split("0", None, KeyPosition((40,))), KeyPosition((40,)), 40, True),
                Checkpoint(Split("1", KeyPosition((40,)), KeyPosition((90,))), KeyPosition((60,)), 20),
            ),
        )
    )
    writer = ScriptedWriter()
    await run(service_of({"a": ScriptedSource(200, cuts=(10, 20))}, {"a": writer}, store))
    assert writer.sent == list(range(61, 91))


async def test_a_checkpoint_of_another_query_is_refused_with_the_way_out() -> None:
    store = MemoryStore()
    await run(service_of({"a": ScriptedSource(50)}, {"a": ScriptedWriter()}, store))
    writer = ScriptedWriter()
    with pytest.raises(CheckpointConflictError, match="checkpoint reset CONFIG a"):
        await run(service_of({"a": ScriptedSource(50, identity="other")}, {"a": writer}, store))
    assert writer.sent == []


async def test_a_snapshot_that_is_to_be_followed_goes_on_after_its_last_row() -> None:
    store = MemoryStore()
    await run(service_of({"a": ScriptedSource(50)}, {"a": ScriptedWriter()}, store))
    writer = ScriptedWriter()
    service = service_of({"a": ScriptedSource(80)}, {"a": writer}, store, mode="snapshot_then_tail")
    await run(service)
    assert writer.sent == list(range(51, 81))


async def test_a_wrong_configuration_of_one_stream_stops_the_run_before_any_row_moves() -> None:
    writers = {"a": ScriptedWriter(), "b": ScriptedWriter()}
    sources = {"a": ScriptedSource(50), "b": ScriptedSource(50, describe_error=ConfigError("no table"))}
    with pytest.raises(ConfigError, match="no table"):
        await run(service_of(sources, writers, MemoryStore()))
    assert writers["a"].sent == []
    assert sources["a"].closed == 1


async def test_a_stream_that_cannot_start_leaves_the_others_alone() -> None:
    writers = {"a": ScriptedWriter(), "b": ScriptedWriter()}
    sources = {"a": ScriptedSource(50), "b": ScriptedSource(50, describe_error=AuthenticationError("no right"))}
    service = service_of(sources, writers, MemoryStore())
    done = await run(service)
    assert (done["a"].state, done["b"].state, done["b"].error) == ("complete", "failed", "no right")
    assert service.failed_at_start


async def test_when_no_stream_can_start_the_run_says_why() -> None:
    sources = {"a": ScriptedSource(50, describe_error=SourceUnavailableError("away"))}
    with pytest.raises(SourceUnavailableError, match="away"):
        await run(service_of(sources, {"a": ScriptedWriter()}, MemoryStore()))


async def test_a_permanent_failure_stops_its_stream_and_no_other() -> None:
    writers = {"a": ScriptedWriter(), "b": ScriptedWriter()}
    writers["a"].answer = lambda count, page: EncodeError("bad value", hint="fix it") if 25 in page.ids else None
    service = service_of({"a": ScriptedSource(50), "b": ScriptedSource(50)}, writers, MemoryStore())
    done = await run(service)
    assert (done["a"].state, done["a"].error) == ("failed", "bad value")
    assert service.streams["a"].hint == "fix it"
    assert done["b"].state == "complete"
    assert not service.failed_at_start


@pytest.mark.parametrize("where", ["source", "sink", "store"])
async def test_transient_failures_anywhere_cost_time_and_no_row(where: str) -> None:
    source, writer, store = ScriptedSource(200, cuts=(100,)), ScriptedWriter(), MemoryStore()
    match where:
        case "source":
            source.reader_faults = {3: SourceUnavailableError("x"), 4: SourceUnavailableError("x")}
        case "sink":
            writer.answer = lambda count, page: SinkUnavailableError("x") if count in (2, 5) else None
        case "store":
            store.faults = {1: StoreUnavailableError("x"), 2: StoreUnavailableError("x")}
    service = service_of({"a": source}, {"a": writer}, store)
    done = await run(service)
    assert done["a"].state == "complete"
    assert set(writer.acknowledged) == set(range(1, 201))
    assert sum(checkpoint.rows for checkpoint in store.states["a"].checkpoints) == 200


async def test_without_any_progress_a_stream_gives_up_in_the_end_and_keeps_its_checkpoint() -> None:
    writer, store = ScriptedWriter(), MemoryStore()
    writer.answer = lambda count, page: SinkUnavailableError("broker gone") if count > 3 else None
    service = service_of({"a": ScriptedSource(500)}, {"a": writer}, store, retry_timeout_s=0.5)
    done = await run(service)
    assert (done["a"].state, done["a"].error) == ("failed", "broker gone")
    assert sum(checkpoint.rows for checkpoint in store.states["a"].checkpoints) <= 30


async def test_what_follows_a_snapshot_begins_when_all_of_it_is_acknowledged() -> None:
    held: list[asyncio.Future[None]] = []

    def answer(count: int, page: Prepared) -> asyncio.Future[None] | None:
        if max(page.ids) > 40:
            return None
        held.append(asyncio.get_running_loop().create_future())
        return held[-1]

    writer = ScriptedWriter(answer)
    service = service_of({"a": ScriptedSource(80, cuts=(40,))}, {"a": writer}, MemoryStore(), mode="snapshot_then_tail")
    running = asyncio.create_task(run(service))
    await until(lambda: len(writer.sent) == 40)
    assert set(writer.sent) == set(range(1, 41))
    while not running.done():
        for future in held:
            if not future.done():
                assert max(writer.sent) <= 40
                future.set_result(None)
        await asyncio.sleep(0)
    await running
    assert writer.sent[40:] == list(range(41, 81))


async def test_an_idle_place_takes_half_of_what_a_large_split_has_to_come() -> None:
    source, writer, store = ScriptedSource(20_000, cuts=(5, 10)), ScriptedWriter(), MemoryStore()
    done = await run(service_of({"a": source}, {"a": writer}, store))
    assert source.divided > 0
    assert done["a"].state == "complete"
    assert sorted(writer.sent) == list(range(1, 20_001))
    checkpoints = store.states["a"].checkpoints
    assert len(checkpoints) == 3 + source.divided
    assert all(checkpoint.done for checkpoint in checkpoints)
    edges = {c.split.lower for c in checkpoints} ^ {c.split.upper for c in checkpoints}
    assert edges == {None, KeyPosition((20_000,))}  # each split begins where another one ends


async def test_pause_holds_a_stream_and_resume_lets_it_go_on() -> None:
    writers = {"a": ScriptedWriter(), "b": ScriptedWriter()}
    service = service_of({"a": ScriptedSource(20_000), "b": ScriptedSource(30)}, writers, MemoryStore())
    running = asyncio.create_task(run(service))
    await until(lambda: len(writers["a"].sent) > 100)
    await service.pause("a")
    assert service.streams["a"].state == "paused"
    await until(lambda: service.streams["b"].state == "complete")
    await asyncio.sleep(0.1)
    held = len(writers["a"].sent)
    await asyncio.sleep(0.1)
    assert len(writers["a"].sent) == held
    await service.resume("a")
    assert (await running)["a"].state == "complete"
    assert sorted(writers["a"].sent) == list(range(1, 20_001))


async def test_stop_ends_a_following_stream_drained_and_the_next_run_goes_on_from_there() -> None:
    store, writer, stop = MemoryStore(), ScriptedWriter(), asyncio.Event()
    service = service_of({"a": ScriptedSource(100)}, {"a": writer}, store, mode="tail", poll_interval_s=0.01)
    running = asyncio.create_task(run(service, once=False, stop=stop))
    await until(lambda: len(writer.sent) == 100)
    stop.set()
    done = await running
    assert done["a"].state == "stopped"
    more = ScriptedWriter()
    await run(service_of({"a": ScriptedSource(130)}, {"a": more}, store, mode="tail"))
    assert more.sent == list(range(101, 131))


async def test_a_sink_that_never_answers_cannot_hold_up_the_end() -> None:
    writer, stop = ScriptedWriter(), asyncio.Event()

    def never(count: int, page: Prepared) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    writer.answer = never
    service = service_of({"a": ScriptedSource(1000)}, {"a": writer}, MemoryStore(), shutdown_timeout_s=0.2)
    running = asyncio.create_task(run(service, stop=stop))
    await until(lambda: len(writer.sent) > 0)
    stop.set()
    done = await running
    assert done["a"].state == "stopped"
    assert done["a"].acked == 0


async def test_without_once_a_run_stays_until_it_is_stopped() -> None:
    stop = asyncio.Event()
    service = service_of({"a": ScriptedSource(30)}, {"a": ScriptedWriter()}, MemoryStore())
    running = asyncio.create_task(run(service, once=False, stop=stop))
    await until(lambda: service.streams.get("a") is not None and service.streams["a"].state == "complete")
    await asyncio.sleep(0.05)
    assert not running.done()
    stop.set()
    assert (await running)["a"].state == "complete"


async def test_a_stream_that_was_paused_before_does_not_hold_up_a_run_that_is_to_end() -> None:
    store, writer = MemoryStore(), ScriptedWriter()
    await run(service_of({"a": ScriptedSource(50)}, {"a": ScriptedWriter()}, store))
    store.states["a"] = replace(
        store.states["a"], paused=True, checkpoints=(Checkpoint(Split("0", None, KeyPosition((50,)))),)
    )
    done = await run(service_of({"a": ScriptedSource(50)}, {"a": writer}, store))
    assert done["a"].state == "paused"
    assert writer.sent == []


@dataclass
class Altered(ScriptedSource):
    """A table that is altered at the fetch `at` of each reader, for the first `times` readers."""

    at: int = 1
    times: int = 1000

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> SplitReader:
        error = SchemaChangedError("table 'shop.t' has changed")
        self.reader_faults = {self.at: error} if self.readers < self.times else {}
        return await ScriptedSource.reader(self, stream, dataset, split)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "FIRST_WAIT_S", 0.0)


async def test_a_table_that_is_another_at_each_look_ends_its_stream_by_name(no_wait: None) -> None:
    source, writer = Altered(50), ScriptedWriter()
    done = await run(service_of({"a": source}, {"a": writer}, MemoryStore()))
    assert done["a"].state == "failed"
    assert done["a"].error == ("table 'shop.t' has changed 10 times in a row, before a page of it could be sent")
    assert (source.readers, writer.sent) == (10, [])


async def test_a_table_that_comes_to_rest_is_gone_on_with(no_wait: None) -> None:
    source, writer = Altered(50, times=9), ScriptedWriter()
    done = await run(service_of({"a": source}, {"a": writer}, MemoryStore()))
    assert (done["a"].state, writer.sent) == ("complete", list(range(1, 51)))


async def test_a_table_may_change_as_often_as_a_page_of_it_was_sent_between(no_wait: None) -> None:
    source, writer = Altered(300, at=2), ScriptedWriter()
    done = await run(service_of({"a": source}, {"a": writer}, MemoryStore()))
    assert (done["a"].state, sorted(writer.sent)) == ("complete", list(range(1, 301)))
    assert source.readers > 2 * drift.MAX_IN_A_ROW


def test_the_looks_at_a_changing_table_become_rarer() -> None:
    changes = drift.Changes()
    error = SchemaChangedError("changed")
    waits = [changes.wait_s(error) for _ in range(drift.MAX_IN_A_ROW - 1)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    changes.settled()
    assert changes.wait_s(error) == 0.0
