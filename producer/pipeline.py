"""Owns how one split moves: fetch, encode, submit, acknowledge.

For each split three stages run side by side: the next page is fetched while the one before is encoded and the ones
before that wait for their acknowledgement. The stages stop when the window or the byte budget is full: that is the
back-pressure. There is one way to recover: an attempt that fails drops everything after its last committed
checkpoint, and the next one starts there.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from producer.commits import Committer, SplitProgress
from producer.errors import ProducerError, SourceUnavailableError, TransientError
from producer.inflight import ByteBudget, Reservation, Window
from producer.model import Page, Position
from producer.nullkeys import NullKeyWatch
from producer.pressure import Pressure
from producer.protocols import PageReader, PageWriter, RememberingReader
from producer.tracing import UNTRACED, OpenTraces, PageTrace

FIRST_PAGE_ROWS = 64
GROWTH = 8
MAX_POLL_INTERVAL_FACTOR = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one split may hold: pages in the window, rows and bytes a page."""

    window_pages: int
    page_rows: int
    page_bytes: int


@dataclass(slots=True)
class PageSizer:
    """Rows to ask for: starts small, grows to `limits.page_rows`, and shrinks where rows are wide.

    The first page is small unless the source knows how wide a row is, so that a table of megabyte rows does not
    fill the memory before its width has been seen.
    """

    limits: Limits
    row_bytes: float = 0.0
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self._bounded(self.limits.page_rows if self.row_bytes else FIRST_PAGE_ROWS)

    def _bounded(self, rows: int) -> int:
        if self.row_bytes:
            rows = min(rows, int(self.limits.page_bytes / self.row_bytes))
        return max(1, min(rows, self.limits.page_rows))

    @property
    def bytes(self) -> int:
        """What the next page will about need in memory; a row wider than a page all of it."""
        if self.row_bytes:
            return int(self.rows * self.row_bytes) + 1
        return min(self.limits.page_bytes, self.rows * 1024) + 1

    def saw(self, rows: int, nbytes: int) -> None:
        """Learns from a page: follows wider rows at once and narrower ones slowly."""
        if rows:
            width = max(1.0, nbytes / rows)
            self.row_bytes = width if width > self.row_bytes else 0.8 * self.row_bytes + 0.2 * width
            self.rows = self._bounded(self.rows * GROWTH)


@dataclass(slots=True)
class StreamIO:
    """What the splits of one stream share. `observe_*` are told each page's seconds; `gate` is clear while paused."""

    stream: str
    writer: PageWriter[Any]
    budget: ByteBudget
    limits: Limits
    commits: Committer
    gate: asyncio.Event
    stop: asyncio.Event
    follow: bool  # goes on polling after the end
    poll_interval_s: float
    observe_fetch: Callable[[float, int], None]
    observe_encode: Callable[[float], None]
    observe_ack: Callable[[float, int, int], None]
    run_in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
    throttle: Callable[[int], Coroutine[Any, Any, None]]
    wake: asyncio.Event  # set by a source that knows of new rows
    row_bytes: int | None = None
    pressure: Pressure = field(default_factory=Pressure)
    deleted: Callable[[], Awaitable[Page | None]] | None = None  # rows that are gone, when it is time to look
    #: Begins the trace of a page of a split that was fetched in so many seconds; without one, the fetch has failed.
    trace: Callable[[str, Page | None, float], PageTrace] = lambda split_id, page, seconds: UNTRACED


async def run_split(
    io: StreamIO, reader: PageReader, progress: SplitProgress, watch: NullKeyWatch | None = None
) -> None:
    """One attempt of a split, from its committed checkpoint to its end (or for ever, where it follows).

    `watch` looks for the rows that no page has. Returns when all is acknowledged and committed, or when `io.stop` is
    set and what was in flight has been drained. Raises the first failure; then nothing after the last committed
    checkpoint counts.
    """
    window = Window(io.limits.window_pages)
    await io.commits.enter(window, progress)
    failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    held: set[Reservation] = set()
    stage = asyncio.create_task(_move(io, reader, progress, window, failure, held, watch))
    progress.active = True
    progress.unacknowledged = {}  # late acknowledgements of an earlier attempt are not ours
    progress.traces = OpenTraces()
    try:
        await asyncio.wait({stage, failure}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            failure.result()
        await stage
    finally:
        progress.active = False
        stage.cancel()
        failure.cancel()
        await asyncio.wait({stage})
        if not stage.cancelled():
            stage.exception()
        io.commits.leave(progress.checkpoint.split.id)
        for reservation in held:
            reservation.release()
        held.clear()
        progress.unacknowledged.clear()
        progress.traces.drop(sys.exception())


#: A page, what it takes of the budget, and its trace.
_Fetched = tuple[Page, Reservation, PageTrace]


async def _move(
    io: StreamIO,
    reader: PageReader,
    progress: SplitProgress,
    window: Window,
    failure: asyncio.Future[None],
    held: set[Reservation],
    watch: NullKeyWatch | None,
) -> None:
    """The stages of one attempt: fetching runs one page ahead of encoding and submitting."""
    sizer = PageSizer(io.limits, float(io.row_bytes or 0))
    ahead: asyncio.Queue[_Fetched | None] = asyncio.Queue(maxsize=1)
    fetching = asyncio.create_task(_fetch(io, reader, progress, sizer, ahead, held, watch))

    def wake(_: asyncio.Task[None]) -> None:
        if not ahead.full():
            ahead.put_nowait(None)

    fetching.add_done_callback(wake)
    try:
        while not (fetching.done() and ahead.empty()) and (item := await ahead.get()) is not None:
            page, reservation, traced = item
            prepared = await _encoded(io, page, traced)
            reservation.resize(prepared.bytes)
            await io.commits.room(window)
            sent = time.perf_counter()
            async with io.commits.submitting():
                future = await io.writer.submit(prepared)
                sequence = window.submit(
                    page.position, page.rows, last=page.last and not follows(io, progress), detail=page.detail
                )
                waiting = progress.unacknowledged
                waiting[sequence] = (time.monotonic(), page.rows)
                held.discard(reservation)  # the sink has the page now, also when the attempt ends
                future.add_done_callback(
                    _Acknowledged(
                        io, window, sequence, failure, reservation, waiting, sent, page.rows, prepared.bytes, traced
                    )
                )
            del page, prepared, item
        await asyncio.wait({fetching})
        if fetching.cancelled():  # not by us: whoever reads for us has dropped a request
            raise SourceUnavailableError("a read was cut off")
        if not _is_passing(fetching.exception()):
            await io.commits.drained(window)
        await fetching
    finally:
        fetching.cancel()
        await asyncio.wait({fetching})


async def _encoded(io: StreamIO, page: Page, traced: PageTrace) -> Any:
    """The page as the writer takes it."""
    started = time.perf_counter()
    try:
        prepared = await io.run_in_thread(partial(io.writer.prepare, page))
    except Exception as error:
        traced.step("encode", time.perf_counter() - started, error=error)
        raise
    seconds = time.perf_counter() - started
    io.observe_encode(seconds)
    traced.step("encode", seconds, size=prepared.bytes)
    return prepared


def follows(io: StreamIO, progress: SplitProgress) -> bool:
    """Whether the split is polled on after its end."""
    return io.follow and progress.checkpoint.split.is_open


def _is_passing(error: BaseException | None) -> bool:
    """Whether the attempt ends at once, since the next one may get further. What was read before an error that lasts
    is sent and committed."""
    return error is not None and (isinstance(error, TransientError) or not isinstance(error, ProducerError))


def _is_tail(io: StreamIO, progress: SplitProgress) -> bool:
    return follows(io, progress) and progress.checkpoint.split.upper is None


async def _fetch(
    io: StreamIO,
    reader: PageReader,
    progress: SplitProgress,
    sizer: PageSizer,
    ahead: asyncio.Queue[_Fetched | None],
    held: set[Reservation],
    watch: NullKeyWatch | None,
) -> None:
    """Reads page after page into `ahead`, to the end or until the stop."""
    position: Position | None = progress.checkpoint.position
    detail = progress.checkpoint.detail
    kept = detail if watch is None else watch.restore(detail)
    if isinstance(reader, RememberingReader):
        reader.restore(kept)
    idle_s = io.poll_interval_s
    while not io.stop.is_set() and not progress.halt:
        if not io.gate.is_set():
            await wait_for_any(io.gate, io.stop)
            continue
        reservation = await io.budget.acquire(sizer.bytes)
        held.add(reservation)
        if io.stop.is_set():
            break
        started, asked_at = time.perf_counter(), time.monotonic()
        io.wake.clear()  # a sign that comes while the page is read may be of rows that it has not
        try:
            # What is read after this may have come back since: it is sent after the tombstones.
            gone = await io.deleted() if io.deleted is not None and _is_tail(io, progress) else None
            async with io.pressure.place():
                asked = time.perf_counter()
                page = gone or await reader.fetch(position, io.pressure.rows(sizer.rows))
            io.pressure.answered(time.perf_counter() - asked)
            if gone is not None:
                page = replace(gone, position=position)
            if watch is not None:
                page = await watch.after(page)
        except Exception as error:
            if isinstance(error, TransientError):
                io.pressure.failed(error)
            seconds = time.perf_counter() - started
            failed = io.trace(progress.checkpoint.split.id, None, seconds)
            failed.step("fetch", seconds, error=error)
            failed.end(error)
            raise
        page = replace(page, after=position if position is not None else progress.checkpoint.split.lower)
        seconds = time.perf_counter() - started
        io.observe_fetch(seconds, page.rows)
        size = page.batch.nbytes  # once: pyarrow gives the interpreter's lock away for it
        sizer.saw(page.rows, size)
        reservation.resize(size)
        moved = (page.position is not None and page.position != position) or page.detail not in (None, detail)
        detail = page.detail if page.detail is not None else detail
        position = page.position if page.position is not None else position
        progress.rows_read += page.rows
        if page.last:
            progress.caught_up_at = asked_at
        ends = page.last and not follows(io, progress)
        if page.rows or moved or ends or page.tombstones is not None:
            traced = progress.traces.add(io.trace(progress.checkpoint.split.id, page, seconds))
            traced.step("fetch", seconds)
            await ahead.put((page, reservation, traced))
        else:
            held.discard(reservation)
            reservation.release()
        rows, last = page.rows, page.last
        del page, gone  # not kept while the next one is read
        if ends:
            break
        if rows:
            idle_s = io.poll_interval_s
            await io.throttle(rows)
        elif last:
            await wait_for_any(io.wake, io.stop, timeout_s=idle_s)
            idle_s = min(idle_s * 1.5, io.poll_interval_s * MAX_POLL_INTERVAL_FACTOR)


async def wait_for_any(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Waits for one of the events, at most `timeout_s` seconds."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@dataclass(frozen=True, slots=True, eq=False)
class _Acknowledged:
    """What happens when a page's future is done."""

    io: StreamIO
    window: Window
    sequence: int
    failure: asyncio.Future[None]
    reservation: Reservation
    waiting: dict[int, tuple[float, int]]
    sent: float
    rows: int
    bytes: int
    traced: PageTrace

    def __call__(self, future: asyncio.Future[None]) -> None:
        self.reservation.release()
        self.waiting.pop(self.sequence, None)
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        seconds = time.perf_counter() - self.sent
        self.traced.step("send", seconds, error=error)
        if error is None:
            self.window.acknowledge(self.sequence)
            self.io.commits.acknowledged()
            self.io.observe_ack(seconds, self.rows, self.bytes)
        elif not self.failure.done() and not isinstance(error, asyncio.CancelledError):
            self.failure.set_exception(error)
