"""Owns a unit: the splits of one stream that are run under one claim, with one committer or one transaction.

A stream that one process runs whole is one unit of the stream's name. Where work is shared between processes, a
stream has a unit for each partition of the state topic (see `producer.coordination`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import pyarrow as pa

from producer.commits import Committer, Save, SplitProgress
from producer.config import StreamConfig
from producer.errors import (
    CheckpointConflictError,
    CheckpointLostError,
    ProducerError,
    SinkUnavailableError,
    TransientError,
    unexpected,
)
from producer.identity import Identity
from producer.inflight import ByteBudget
from producer.model import (
    Checkpoint,
    Dataset,
    Page,
    Split,
    StreamState,
    split_name,
    unit_partition,
    without_table,
)
from producer.ownership import note_identity, refuse_other
from producer.pipeline import Limits, StreamIO, wait_for_any
from producer.pressure import Pressure
from producer.protocols import CheckpointStore, LendingStore, PageWriter, Source, TransactionalWriter, WakingSource
from producer.retry import attempts
from producer.scheduling import SplitSchedule
from producer.tracing import PageTrace, Trace, untraced

WINDOW_PAGES = 8
TRANSACTION_PAGES = 64
TRANSACTION_INTERVAL_S = 0.5
MAX_PAGE_BYTES = 4 * 2**20
#: Half of the bytes in flight are shared by so many splits' pages at the most.
PAGES_AT_ONCE = 4
LOOK_BEFORE_CLAIM_S = 1.0
#: From when a runner fences an older one to when its own epoch can be read.
TAKEN_OVER_KNOWN_S = 2.0

#: Makes a unit's writer once the dataset is known: schemas are derived or checked and registered, the topic made.
#: The last argument is told the reason of each dead letter that was acknowledged.
OpenWriter = Callable[[StreamConfig, Dataset, str, Callable[[str], None]], Awaitable[PageWriter[Any]]]


class Search(Protocol):
    """Looks for deleted rows, again and again; it remembers between two looks what it saw."""

    async def find(self) -> pa.RecordBatch | None:
        """The keys on the stream's topic that its source has no longer; None where there are none."""
        ...

    async def close(self) -> None: ...


#: Starts a source by its name, once; StandbyError where it is for one process at a time, and another one has it.
OpenSource = Callable[[str], Awaitable[None]]


async def opened(name: str) -> None:
    """The sources have been started before."""


#: Gives up what keeps other processes from running a stream that has failed in this one.
Leave = Callable[[StreamConfig], Awaitable[None]]


async def left(stream: StreamConfig) -> None:
    """Nobody waits for it."""


#: What the checkpoint of a stream belongs to, as the stream is configured and its source described it now.
Identify = Callable[[StreamConfig, Dataset], Identity]


def origin_of(stream: StreamConfig, dataset: Dataset) -> Identity:
    """What the source alone knows."""
    return dataset.origin


#: Makes the search for deleted rows of a stream.
OpenSearch = Callable[[StreamConfig, Dataset], Search]


@dataclass(frozen=True, slots=True)
class Engine:
    """What all streams of a process share."""

    store: CheckpointStore
    open_writer: OpenWriter
    budget: ByteBudget
    executor: Executor
    stop: asyncio.Event
    once: bool
    give_up_after_s: float
    stands_by: bool = False  # a stream that another process runs is waited for
    trace: Trace = untraced
    open_search: OpenSearch | None = None
    open_source: OpenSource = opened  # awaited before a stream uses its source
    leave: Leave = left
    identify: Identify = origin_of
    exactly_once: bool = False  # the writers are TransactionalWriters, the store can lend its transactional ids


class Observer(Protocol):
    """Who is told what a stream's units do."""

    def fetched(self, seconds: float, rows: int) -> None: ...

    def encoded(self, seconds: float) -> None: ...

    def acknowledged(self, seconds: float, rows: int, size: int) -> None: ...

    def committed(self, changed: Sequence[Checkpoint], seconds: float) -> None: ...

    def retried(self, error: TransientError, wait_s: float) -> None: ...

    def pressed(self, factor: float) -> None:
        """With which part of its full speed the source is read from now on."""
        ...

    def last_progress(self) -> float:
        """When something was acknowledged last, on the monotonic clock."""
        ...

    async def throttle(self, rows: int) -> None:
        """Waits as the stream's `max_rows_per_s` asks."""
        ...


@dataclass(slots=True)
class Unit:
    """A claimed part of a stream. `claim` first, `begin` where that found nothing, then `run`.

    `stop` ends it early: what is in flight is drained and committed. `gate` is clear while the stream is paused.
    """

    name: str
    config: StreamConfig
    source: Source
    dataset: Dataset
    writer: PageWriter[Any]
    engine: Engine
    observer: Observer
    gate: asyncio.Event
    stop: asyncio.Event
    wake: asyncio.Event  # set when the source knows of new rows
    splits: list[SplitProgress] = field(default_factory=list)
    epoch: int = 0
    snapshot_over: Callable[[], bool] = lambda: True
    paused: bool = False  # as the store remembers it
    pressure: Pressure = field(init=False)
    moving: tuple[SplitSchedule, Committer] | None = None
    search: PeriodicSearch | None = None

    def __post_init__(self) -> None:
        self.pressure = Pressure(self.config.max_parallel, self.observer.pressed)

    @property
    def follows(self) -> bool:
        return self.config.mode != "snapshot"

    async def claim(self) -> StreamState | None:
        """Becomes the unit's only runner; its state, or None where there is none yet."""
        store, identity = self.engine.store, self.engine.identify(self.config, self.dataset)
        with contextlib.suppress(TimeoutError):  # what a killed runner had begun may hold this up; the claim ends it
            async with asyncio.timeout(LOOK_BEFORE_CLAIM_S):
                refuse_other(await store.load(self.name), self.config, self.dataset, identity)
        self.epoch = await store.claim(self.name)
        state = await store.load(self.name)  # again: another runner may have moved it before our claim
        refuse_other(state, self.config, self.dataset, identity)
        if state is not None:
            if unit_partition(self.name) is None:  # of shared work the stream's own state keeps it
                state = await self._note(state, identity)
            self._restore(state)
        return state

    async def _note(self, state: StreamState, identity: Identity) -> StreamState:
        """The state with what it belongs to: one of an older version takes it now."""
        known = identity.after(state.identity)
        if known != state.identity:
            note_identity(self.config, state)
            state = replace(state, identity=known, epoch=self.epoch)
            await self.engine.store.begin(state)
        return state

    async def begin(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Writes the unit's first state: a new plan."""
        fingerprint = self.dataset.fingerprint(self.config.traversal)
        state = StreamState(
            self.name,
            fingerprint,
            self.epoch,
            tuple(checkpoints),
            paused=not self.gate.is_set(),
            identity=self.engine.identify(self.config, self.dataset).after(None),
        )
        await self.engine.store.begin(state)
        self._restore(state)

    def _restore(self, state: StreamState) -> None:
        self.splits[:] = [SplitProgress(self.resumed(c)) for c in state.checkpoints if self.may_run(c)]
        self.paused = state.paused

    def may_run(self, checkpoint: Checkpoint) -> bool:
        """Whether it is not one that follows a snapshot of which other units have still something to send."""
        return not (self.follows and checkpoint.split.is_open) or self.snapshot_over()

    def take_up(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Has those splits run with the others that are not among them yet: others have put them into the state."""
        known = {progress.checkpoint.split.id for progress in self.splits}
        for checkpoint in checkpoints:
            if self.moving is not None and checkpoint.split.id not in known and self.may_run(checkpoint):
                progress = SplitProgress(self.resumed(checkpoint))
                self.splits.append(progress)
                if not progress.checkpoint.done:
                    self.moving[0].add(progress)

    def resumed(self, checkpoint: Checkpoint) -> Checkpoint:
        """An open split that had been caught up with is not done where it is followed."""
        return replace(checkpoint, done=False) if self.follows and checkpoint.split.is_open else checkpoint

    async def forget_table(self) -> None:
        """Commits the positions as those of whichever table has the name now."""
        changed = [without_table(progress.checkpoint) for progress in self.splits]
        await self._save(changed)
        for progress, checkpoint in zip(self.splits, changed, strict=True):
            progress.checkpoint = checkpoint

    async def remember_pause(self) -> None:
        """Has the store keep whether the gate is shut."""
        paused = not self.gate.is_set()
        if paused != self.paused:
            await self.engine.store.set_paused(self.name, self.epoch, paused)
            self.paused = paused

    async def add(self, split: Split) -> None:
        """Commits a split that was not planned, and has it run with the others, or at the next `run`."""
        progress = SplitProgress(Checkpoint(split))
        if self.moving is not None:
            await self.moving[1].save_also([progress.checkpoint])
        else:
            await self._save([progress.checkpoint])
        self.splits.append(progress)
        if self.moving is not None:
            self.moving[0].add(progress)

    @property
    def done(self) -> bool:
        return all(progress.checkpoint.done for progress in self.splits)

    async def run(self) -> None:
        """Runs the splits to their end, or until stopped. Raises the ProducerError that ended it otherwise."""
        error: ProducerError | None = None
        open_search, wanted = self.engine.open_search, self.config.deletes
        if open_search is not None and wanted is not None:
            self.search = PeriodicSearch(open_search(self.config, self.dataset), wanted.every_s, self.stop)
        try:
            if self.engine.exactly_once:
                async for attempt in self._attempts():
                    with attempt:
                        await self._run_in_transactions()
            else:
                await self._run_splits(self._committer(self._save), retrying=True)
        except* Exception as group:  # whatever it is: it is this stream's failure, and the others go on
            error = first_error(group)
        finally:
            if self.search is not None:
                await self.search.close()
        if error is not None:
            raise error

    async def _save(self, changed: Sequence[Checkpoint]) -> None:
        await self.engine.store.commit(self.name, self.epoch, changed)

    def _committer(self, save: Save, **form: Any) -> Committer:
        return Committer(
            save,
            committed=self.observer.committed,
            retried=self.observer.retried,
            **{"give_up_after_s": self.engine.give_up_after_s, **form},
        )

    async def _run_in_transactions(self) -> None:
        """One attempt of all splits: their pages and checkpoints are committed together, or none of them.

        A failure anywhere drops the open transaction; the splits then start again from what had been committed,
        which is read anew, since a commit whose answer was lost may have happened.
        """
        store = cast(LendingStore, self.engine.store)  # the configuration has seen to it
        writer = cast("TransactionalWriter[Any]", self.writer)
        await store.lend(self.name, self.epoch)
        await writer.begin()
        await store.lend(self.name, self.epoch)  # who came in between is fenced now, and neither goes on
        state = await store.load(self.name)
        if state is None:
            raise CheckpointLostError(
                f"the checkpoint of {self.name!r} went away while it was running",
                hint=f"read again from the start after: producer checkpoint reset CONFIG {self.config.name}",
            )
        self._restore(state)

        async def save(changed: Sequence[Checkpoint]) -> None:
            await writer.commit(store.topic, store.records(self.name, self.epoch, changed))

        committer = self._committer(save, give_up_after_s=0, interval_s=TRANSACTION_INTERVAL_S, whole=True)
        error: ProducerError | None = None
        try:
            await self._run_splits(committer, retrying=False)
        except* ProducerError as group:
            error = first_error(group)
        if isinstance(error, CheckpointConflictError):
            # The broker fences whoever it has not heard of for the transaction's timeout just as it fences an older
            # runner. A newer one has written its epoch by now, and the loan is refused.
            await wait_for_any(self.stop, timeout_s=TAKEN_OVER_KNOWN_S)
            await store.lend(self.name, self.epoch)
            error = SinkUnavailableError(f"stream {self.config.name!r}: the broker has given up our transaction")
        if error is not None:
            raise error

    async def _run_splits(self, commits: Committer, *, retrying: bool) -> None:
        io = self._io(commits)
        schedule = SplitSchedule(self.config, self.source, self.dataset, io, self.splits, self._attempts, retrying)
        self.moving = (schedule, commits)
        try:
            async with asyncio.TaskGroup() as background:
                side = [background.create_task(commits.run())]
                if io.follow and isinstance(self.source, WakingSource):
                    side.append(background.create_task(self.source.listen(self.config, io.wake.set)))
                async with asyncio.TaskGroup() as group:
                    await schedule.run(group)
                await schedule.search_after_snapshot()
                for task in side:
                    task.cancel()
        finally:
            self.moving = None

    def _attempts(self) -> Any:
        return attempts(
            give_up_after_s=self.engine.give_up_after_s,
            progressed=self.observer.last_progress,
            before_sleep=self.observer.retried,
            sleep=functools.partial(sleep_until_stop, self.stop),
        )

    def _io(self, commits: Committer) -> StreamIO:
        loop = asyncio.get_running_loop()
        engine, config = self.engine, self.config
        # Many splits take turns with pages that are worth their while: small ones cost more than they bring.
        share = engine.budget.limit_bytes // (2 * max(1, min(config.max_parallel, len(self.splits), PAGES_AT_ONCE)))
        return StreamIO(
            stream=config.name,
            writer=self.writer,
            budget=engine.budget,
            limits=Limits(
                TRANSACTION_PAGES if engine.exactly_once else WINDOW_PAGES,
                config.page_size,
                max(1, min(MAX_PAGE_BYTES, share)),
            ),
            commits=commits,
            gate=self.gate,
            stop=self.stop,
            follow=self.follows and not engine.once,
            poll_interval_s=config.poll_interval_s,
            observe_fetch=self.observer.fetched,
            observe_encode=self.observer.encoded,
            observe_ack=self.observer.acknowledged,
            run_in_thread=functools.partial(loop.run_in_executor, engine.executor),
            throttle=self.observer.throttle,
            wake=self.wake,
            row_bytes=self.dataset.row_bytes_estimate,
            pressure=self.pressure,
            deleted=None if self.search is None else self._deleted,
            trace=self._trace,
        )

    def _trace(self, split_id: str, page: Page | None, seconds: float) -> PageTrace:
        partition = unit_partition(self.name)
        split = split_name("" if partition is None else str(partition), split_id)
        return self.engine.trace(self.config, split, page, seconds)

    async def _deleted(self) -> Page | None:
        """A page of tombstones, where it is time to look for deleted rows and there are some."""
        keys = None if self.search is None else await self.search.look()
        if keys is None:
            return None
        return Page(pa.RecordBatch.from_pylist([], self.dataset.schema), None, tombstones=keys)


class PeriodicSearch:
    """A search every `every_s` seconds; one that is under way when `stop` is set is broken off."""

    def __init__(self, search: Search, every_s: float, stop: asyncio.Event) -> None:
        self._search = search
        self._every_s = every_s
        self._stop = stop
        self._due = time.monotonic() + every_s

    async def look(self) -> pa.RecordBatch | None:
        if time.monotonic() < self._due:
            return None
        finding, stopped = asyncio.create_task(self._search.find()), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({finding, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not finding.done():
                return None
            self._due = time.monotonic() + self._every_s
            return finding.result()
        finally:
            finding.cancel()
            stopped.cancel()
            await asyncio.wait({finding})

    async def close(self) -> None:
        await self._search.close()


async def sleep_until_stop(stop: asyncio.Event, seconds: float) -> None:
    """Sleeps; CancelledError as soon as `stop` is set, so that no new attempt begins."""
    await wait_for_any(stop, timeout_s=seconds)
    if stop.is_set():
        raise asyncio.CancelledError


def first_error(group: BaseExceptionGroup[Exception]) -> ProducerError:
    """The first error in a tree of groups, the permanent ones before the transient."""
    errors: list[ProducerError] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        elif isinstance(error, Exception):
            errors.append(error if isinstance(error, ProducerError) else unexpected(error))

    collect(group)
    return min(errors, key=lambda error: isinstance(error, TransientError))
