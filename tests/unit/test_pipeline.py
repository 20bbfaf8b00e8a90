"""Owns the claims about one split's movement: order, bounds, recovery, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from producer.commits import SplitProgress
from producer.errors import EncodeError, SinkUnavailableError, SourceUnavailableError, StoreUnavailableError
from producer.model import Checkpoint, KeyPosition
from producer.pipeline import FIRST_PAGE_ROWS, Limits, PageSizer, StreamIO, run_split
from tests.unit.engine import MemoryStore, Prepared, ScriptedReader, ScriptedWriter, committing, fresh, stream_io


async def run(io: StreamIO, reader: ScriptedReader, progress: SplitProgress) -> None:
    async with committing(io), asyncio.timeout(20):
        await run_split(io, reader, progress)


async def test_every_row_is_sent_once_in_order_and_the_checkpoint_ends_at_the_last() -> None:
    writer, progress = ScriptedWriter(), fresh()
    await run(stream_io(writer, MemoryStore()), ScriptedReader(last=1050), progress)
    assert writer.sent == list(range(1, 1051))
    assert progress.checkpoint.position == KeyPosition((1050,))
    assert progress.checkpoint.rows == 1050
    assert progress.checkpoint.done


async def test_an_empty_split_is_done_without_a_record() -> None:
    writer, progress = ScriptedWriter(), fresh()
    await run(stream_io(writer, MemoryStore()), ScriptedReader(last=0), progress)
    assert writer.sent == []
    assert progress.checkpoint.done
    assert progress.checkpoint.rows == 0


async def test_no_commit_is_ahead_of_what_was_acknowledged_whatever_the_order_of_acknowledgements() -> None:
    writer = ScriptedWriter()
    open_futures: list[asyncio.Future[None]] = []

    def hold(count: int, page: Prepared) -> asyncio.Future[None]:
        open_futures.append(asyncio.get_running_loop().create_future())
        return open_futures[-1]

    def check(changed: Sequence[Checkpoint]) -> None:
        (checkpoint,) = changed
        assert isinstance(checkpoint.position, KeyPosition)
        (last,) = checkpoint.position.values
        assert isinstance(last, int)
        assert set(range(1, last + 1)) <= set(writer.acknowledged)
        assert checkpoint.rows == last

    writer.answer = hold
    progress = fresh()
    io = stream_io(writer, MemoryStore(check))

    async def acknowledge_newest_first() -> None:
        while not progress.checkpoint.done:
            before = len(writer.sent)
            await asyncio.sleep(0.002)
            if open_futures and len(writer.sent) == before:  # nothing more comes while these are open
                open_futures.pop().set_result(None)

    acknowledging = asyncio.create_task(acknowledge_newest_first())
    await run(io, ScriptedReader(last=2000), progress)
    await acknowledging
    assert progress.checkpoint.position == KeyPosition((2000,))


async def test_what_is_sent_and_not_committed_is_never_more_than_the_window() -> None:
    writer, progress = ScriptedWriter(), fresh()
    writer.answer = lambda count, page: asyncio.get_running_loop().create_future()  # never acknowledged
    io = stream_io(writer, MemoryStore(), window_pages=3, page_rows=10)
    with pytest.raises(TimeoutError):
        async with committing(io), asyncio.timeout(0.2):
            await run_split(io, ScriptedReader(last=1000), progress)
    assert len(writer.sent) == 30
    assert progress.checkpoint.position is None


async def test_acknowledged_pages_keep_their_place_until_they_are_committed() -> None:
    writer, progress = ScriptedWriter(), fresh()
    io = stream_io(writer, MemoryStore(), window_pages=3, page_rows=10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):  # nobody commits
            await run_split(io, ScriptedReader(last=1000), progress)
    assert len(writer.sent) == 30


async def test_the_byte_budget_stops_the_reading_while_the_broker_is_slow() -> None:
    writer, progress = ScriptedWriter(), fresh()
    unanswered = [asyncio.get_running_loop().create_future() for _ in range(1000)]
    writer.answer = lambda count, page: unanswered[count]
    io = stream_io(writer, MemoryStore(), window_pages=1000, page_rows=10, budget_bytes=2000, row_bytes=100)
    reader = ScriptedReader(last=100_000, row_bytes=100)
    with pytest.raises(TimeoutError):
        async with committing(io), asyncio.timeout(0.2):
            await run_split(io, reader, progress)
    assert io.budget.used_bytes == len(writer.sent) * 8  # what the sink still has
    assert len(writer.sent) * 8 <= 2000
    for future in unanswered:
        future.cancel()
    await asyncio.sleep(0)
    assert io.budget.used_bytes == 0  # all given back
    assert reader.fetches < 40


async def test_a_read_that_is_cancelled_by_its_driver_fails_the_attempt_and_is_no_end() -> None:
    progress, reader = fresh(), ScriptedReader(last=1000)
    reader.faults[5] = asyncio.CancelledError()
    io = stream_io(ScriptedWriter(), MemoryStore())
    async with committing(io), asyncio.timeout(20):
        with pytest.raises(SourceUnavailableError, match="cut off"):
            await run_split(io, reader, progress)


@pytest.mark.parametrize("failing", ["source", "sink", "sink_later"])
async def test_a_failed_page_ends_the_attempt_and_the_next_one_goes_on_from_the_checkpoint(failing: str) -> None:
    writer, progress = ScriptedWriter(), fresh()
    reader = ScriptedReader(last=1000)
    io = stream_io(writer, MemoryStore())
    error: Exception = SinkUnavailableError("gone")
    if failing == "source":
        error = SourceUnavailableError("gone")
        reader.faults[5] = error
    else:
        writer.answer = lambda count, page: error if count == 5 else None
    async with committing(io), asyncio.timeout(20):
        with pytest.raises(type(error), match="gone"):
            await run_split(io, reader, progress)
        position = progress.checkpoint.position
        resumed_at = position.values[0] if isinstance(position, KeyPosition) else 0
        assert isinstance(resumed_at, int)
        assert resumed_at <= 400
        before = len(writer.sent)
        await run_split(io, reader, progress)
    assert writer.sent[before:] == list(range(resumed_at + 1, 1001))
    assert set(writer.acknowledged) == set(range(1, 1001))
    assert progress.checkpoint.rows == 1000
    assert io.budget.used_bytes == 0


async def test_a_late_acknowledgement_of_a_failed_attempt_moves_nothing() -> None:
    late: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    writer, progress = ScriptedWriter(), fresh()
    writer.answer = lambda count, page: late if count == 1 else SinkUnavailableError("gone") if count == 2 else None
    io = stream_io(writer, MemoryStore(), page_rows=10)
    async with committing(io), asyncio.timeout(20):
        with pytest.raises(SinkUnavailableError):
            await run_split(io, ScriptedReader(last=100), progress)
        late.set_result(None)
        await io.commits.commit()
        assert progress.checkpoint.position is None
        await run_split(io, ScriptedReader(last=100), progress)
    assert progress.checkpoint.rows == 100


async def test_a_permanent_failure_leaves_the_checkpoint_before_the_bad_page() -> None:
    writer, progress = ScriptedWriter(), fresh()
    writer.answer = lambda count, page: EncodeError("bad") if 555 in page.ids else None
    with pytest.raises(EncodeError):
        await run(stream_io(writer, MemoryStore()), ScriptedReader(last=1000), progress)
    position = progress.checkpoint.position
    assert position is None or (isinstance(position, KeyPosition) and position.values[0] <= 500)  # type: ignore[operator]


async def test_stop_drains_what_is_in_flight_and_commits_it() -> None:
    writer, progress = ScriptedWriter(), fresh()
    io = stream_io(writer, MemoryStore(), page_rows=10)

    def stop_at_fifth(count: int, page: Prepared) -> None:
        if count == 5:
            io.stop.set()

    writer.answer = stop_at_fifth
    await run(io, ScriptedReader(last=1_000_000), progress)
    assert progress.checkpoint.position == KeyPosition((writer.sent[-1],))
    assert not progress.checkpoint.done
    assert len(writer.sent) < 1000


async def test_a_following_split_goes_on_after_the_end_and_is_never_done() -> None:
    writer, progress = ScriptedWriter(), fresh()
    io = stream_io(writer, MemoryStore(), follow=True)
    reader = ScriptedReader(last=100)

    async def grow() -> None:
        while len(writer.sent) < 100:
            await asyncio.sleep(0.001)
        reader.last = 250
        while len(writer.sent) < 250:
            await asyncio.sleep(0.001)
        io.stop.set()

    growing = asyncio.create_task(grow())
    await run(io, reader, progress)
    await growing
    assert writer.sent == list(range(1, 251))
    assert progress.checkpoint.position == KeyPosition((250,))
    assert not progress.checkpoint.done


async def test_pausing_holds_the_reading_and_opening_the_gate_goes_on() -> None:
    writer, progress = ScriptedWriter(), fresh()
    io = stream_io(writer, MemoryStore(), page_rows=10)
    io.gate.clear()
    reader = ScriptedReader(last=100)
    async with committing(io), asyncio.timeout(20):
        task = asyncio.create_task(run_split(io, reader, progress))
        await asyncio.sleep(0.05)
        assert reader.fetches == 0
        io.gate.set()
        await task
    assert progress.checkpoint.done


async def test_a_store_that_is_away_holds_the_stream_and_loses_nothing() -> None:
    writer, progress = ScriptedWriter(), fresh()
    store = MemoryStore(faults={1: StoreUnavailableError("away"), 2: StoreUnavailableError("away")})
    io = stream_io(writer, store, page_rows=10)
    await run(io, ScriptedReader(last=200), progress)
    assert progress.checkpoint.rows == 200
    assert store.commits > 2


async def test_a_commit_that_is_under_way_when_an_attempt_fails_is_where_the_next_one_starts() -> None:
    writer, progress = ScriptedWriter(), fresh()
    store = MemoryStore()
    gate = store.gate
    gate.clear()
    io = stream_io(writer, store, window_pages=2, page_rows=10)
    reader = ScriptedReader(last=100, faults={3: SourceUnavailableError("gone")})
    async with committing(io), asyncio.timeout(20):
        with pytest.raises(SourceUnavailableError):
            await run_split(io, reader, progress)
        again = asyncio.create_task(run_split(io, reader, progress))
        await asyncio.sleep(0.1)
        before = len(writer.sent)
        gate.set()
        await again
    assert writer.sent[before] == 1 or writer.sent[before] > 10
    assert writer.sent[before:] == list(range(writer.sent[before], 101))
    assert progress.checkpoint.rows == 100


def test_the_first_page_is_small_unless_the_width_is_known_and_then_grows_to_the_limit() -> None:
    sizer = PageSizer(Limits(4, 5000, 1 << 20))
    asked = [sizer.rows]
    for _ in range(4):
        sizer.saw(sizer.rows, sizer.rows * 100)
        asked.append(sizer.rows)
    assert asked == [FIRST_PAGE_ROWS, 512, 4096, 5000, 5000]
    assert PageSizer(Limits(4, 5000, 1 << 20), row_bytes=100).rows == 5000


def test_wide_rows_shrink_the_page_at_once_to_its_bytes() -> None:
    sizer = PageSizer(Limits(4, 5000, 1 << 20), row_bytes=100)
    sizer.saw(5000, 5000 << 10)
    assert sizer.rows == 1024
    sizer.saw(10, 10 << 20)
    assert sizer.rows == 1


async def test_a_transaction_holds_whole_pages_and_nothing_is_submitted_while_it_commits() -> None:
    writer, progress = ScriptedWriter(), fresh()
    store = MemoryStore()
    positions: list[int] = []

    def check(changed: Sequence[Checkpoint]) -> None:
        (checkpoint,) = changed
        positions.append(checkpoint.rows)
        assert checkpoint.rows == len(writer.sent) == len(writer.acknowledged)

    store.check = check
    store.delay_s = 0.01  # long enough for a page to slip in, were it let
    await run(stream_io(writer, store, page_rows=10, whole=True), ScriptedReader(last=1000), progress)
    assert writer.sent == list(range(1, 1001))
    assert positions[-1] == 1000
    assert len(positions) > 3
