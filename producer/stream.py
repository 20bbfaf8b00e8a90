"""Owns one stream: how it starts (describe, schemas, topic, checkpoint, plan), runs its splits, and reports itself."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import structlog

from producer.config import StreamConfig
from producer.errors import CheckpointConflictError, ProducerError, TransientError
from producer.inflight import ByteBudget
from producer.metrics import StreamMetrics
from producer.model import Checkpoint, Dataset, Split, StreamState
from producer.pipeline import Committer, Limits, Save, SplitProgress, StreamIO, wait_for_any
from producer.protocols import CheckpointStore, LendingStore, PageWriter, Source, TransactionalWriter
from producer.retry import attempts
from producer.scheduling import SplitSchedule, ignored_transient

log = structlog.get_logger("producer")

StateName = Literal["starting", "running", "paused", "complete", "failed", "stopped"]

WINDOW_PAGES = 8
MAX_PAGE_BYTES = 4 * 2**20
WATCH_INTERVAL_S = 5.0
TRANSACTION_INTERVAL_S = 0.5
TRANSACTION_PAGES = 64

#: Makes a stream's writer once its dataset is known: schemas are derived or checked and registered, the topic made.
OpenWriter = Callable[[StreamConfig, Dataset], Awaitable[PageWriter[Any]]]


@dataclass(slots=True)
class StreamStatus:
    """What people and the HTTP server see of a stream; live, changed in place."""

    name: str
    source: str
    topic: str
    state: StateName = "starting"
    rows_read: int = 0
    rows_acked: int = 0
    bytes_acked: int = 0
    rows_total_estimate: int | None = None
    rows_remaining: int | None = None
    error: str | None = None
    hint: str | None = None
    retrying: str | None = None
    started_at: float | None = None  # seconds since 1970
    finished_at: float | None = None
    last_commit_at: float | None = None
    splits: list[SplitProgress] = field(default_factory=list)


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
    exactly_once: bool = False  # the writers are TransactionalWriters, the store can lend its transactional ids


class Stream:
    """A configured stream at run time. `start`, then `run`; `pause` and `resume` at any moment."""

    def __init__(self, config: StreamConfig, source: Source, engine: Engine, metrics: StreamMetrics) -> None:
        self.config = config
        self.status = StreamStatus(config.name, config.source, config.topic)
        self.failure: ProducerError | None = None
        self.started = False
        self._source = source
        self._engine = engine
        self._metrics = metrics
        self._gate = asyncio.Event()
        self._gate.set()
        self._dataset: Dataset | None = None
        self._writer: PageWriter[Any] | None = None
        self._epoch = 0
        self._last_progress = 0.0
        self._next_free = 0.0
        metrics.state("starting")

    # --- control ---------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stops reading; what is in flight is still acknowledged and committed."""
        self._gate.clear()
        if self.status.state in ("starting", "running"):
            self._enter("paused")

    def resume(self) -> None:
        """Reads on."""
        self._gate.set()
        if self.status.state == "paused":
            self._enter("running")

    # --- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """All that can be checked before the first row is sent. Idempotent; raises ProducerError."""
        if self.started:
            return
        engine, config = self._engine, self.config
        dataset = await self._source.describe(config)
        if self._writer is None:
            self._writer = await engine.open_writer(config, dataset)
        fingerprint = dataset.fingerprint(config.traversal)
        refuse_other_query(await engine.store.load(config.name), config.name, fingerprint)
        self._epoch = await engine.store.claim(config.name)
        state = await engine.store.load(config.name)  # again: another runner may have moved it before our claim
        refuse_other_query(state, config.name, fingerprint)
        if state is None:
            splits = await self._source.plan(config, dataset)
            state = StreamState(config.name, fingerprint, self._epoch, tuple(Checkpoint(split) for split in splits))
            await engine.store.begin(state)
        elif self._follows and all(c.split.upper is not None for c in state.checkpoints):
            # A snapshot that is to be followed from now on: an open split begins where the plan ended.
            tail = Split(f"{len(state.checkpoints)}", lower=state.checkpoints[-1].split.upper)
            await engine.store.commit(config.name, self._epoch, [Checkpoint(tail)])
            state = state.with_changes([Checkpoint(tail)], state.updated_at)
        status = self.status
        status.splits = [SplitProgress(checkpoint) for checkpoint in state.checkpoints]
        before = sum(checkpoint.rows for checkpoint in state.checkpoints)
        status.rows_total_estimate = dataset.rows_estimate
        status.rows_remaining = max(0, dataset.rows_estimate - before) if dataset.rows_estimate is not None else None
        self._dataset = dataset
        self.started = True
        log.info(
            "stream ready",
            stream=config.name,
            topic=config.topic,
            splits=len(status.splits),
            resumed_after_rows=before,
            rows_estimate=dataset.rows_estimate,
        )

    @property
    def _follows(self) -> bool:
        return self.config.mode != "snapshot"

    # --- run -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the splits to their end (or until stopped). A ProducerError ends up in `failure`, and is not raised."""
        status = self.status
        status.started_at = time.time()
        try:
            error = await self._run()
        except asyncio.CancelledError:
            self._enter("stopped")
            raise
        finally:
            status.finished_at = time.time()
            self._metrics.splits(split_states(status.splits))
        if error is not None:
            self.fail(error)
        elif self._engine.stop.is_set() and not all(progress.checkpoint.done for progress in status.splits):
            self._enter("stopped")
        else:
            self._enter("complete")

    async def _run(self) -> ProducerError | None:
        error: ProducerError | None = None
        try:
            async for attempt in self._attempts():
                with attempt:
                    await self.start()
                    self._enter("running" if self._gate.is_set() else "paused")
                    if self._engine.exactly_once:
                        await self._run_in_transactions()
                    else:
                        await self._run_splits(self._committer(self._save), retrying=True)
        except* ProducerError as group:
            error = _first(group)
        return error

    def fail(self, error: ProducerError) -> None:
        """The stream is over: `error` is the reason."""
        self.failure = error
        self.status.error, self.status.hint = error.message, error.hint or None
        self._enter("failed")
        log.error("stream failed", stream=self.config.name, error=error.message, hint=error.hint or None)

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()

    async def _save(self, changed: Sequence[Checkpoint]) -> None:
        await self._engine.store.commit(self.config.name, self._epoch, changed)

    def _committer(self, save: Save, **form: Any) -> Committer:
        return Committer(
            save,
            committed=self._committed,
            retried=self._retried,
            **{"give_up_after_s": self._engine.give_up_after_s, **form},
        )

    async def _run_in_transactions(self) -> None:
        """One attempt of all splits: their pages and checkpoints are committed together, or none of them.

        A failure anywhere drops the open transaction; the splits then start again from what had been committed,
        which is read anew, since a commit whose answer was lost may have happened.
        """
        name = self.config.name
        store = cast(LendingStore, self._engine.store)  # the configuration has seen to it
        writer = cast("TransactionalWriter[Any]", self._writer)
        await store.lend(name, self._epoch)
        await writer.begin()
        await store.lend(name, self._epoch)  # looks once more: who came in between is fenced now, and neither goes on
        state = await store.load(name)
        if state is None:
            raise CheckpointConflictError(f"the checkpoint of stream {name!r} went away while it was running")
        self.status.splits = [SplitProgress(checkpoint) for checkpoint in state.checkpoints]

        async def save(changed: Sequence[Checkpoint]) -> None:
            await writer.commit(store.topic, store.records(name, self._epoch, changed))

        committer = self._committer(save, give_up_after_s=0, interval_s=TRANSACTION_INTERVAL_S, whole=True)
        error: ProducerError | None = None
        try:
            await self._run_splits(committer, retrying=False)
        except* ProducerError as group:
            error = _first(group)
        if error is not None:
            raise error

    async def _run_splits(self, commits: Committer, *, retrying: bool) -> None:
        assert self._dataset is not None
        moving = SplitSchedule(
            self.config, self._source, self._dataset, self._io(commits), self.status.splits, self._attempts, retrying
        )
        async with asyncio.TaskGroup() as background:
            side = [background.create_task(commits.run()), background.create_task(self._watch())]
            async with asyncio.TaskGroup() as group:
                await moving.run(group)
            for task in side:
                task.cancel()

    def _attempts(self) -> Any:
        return attempts(
            give_up_after_s=self._engine.give_up_after_s,
            progressed=lambda: self._last_progress,
            before_sleep=self._retried,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        await wait_for_any(self._engine.stop, timeout_s=seconds)
        if self._engine.stop.is_set():
            raise asyncio.CancelledError

    def _io(self, commits: Committer) -> StreamIO:
        assert self._writer is not None
        assert self._dataset is not None
        loop = asyncio.get_running_loop()
        share = self._engine.budget.limit_bytes // (2 * max(1, min(self.config.max_parallel, len(self.status.splits))))
        return StreamIO(
            stream=self.config.name,
            writer=self._writer,
            budget=self._engine.budget,
            limits=Limits(
                TRANSACTION_PAGES if self._engine.exactly_once else WINDOW_PAGES,
                self.config.page_size,
                max(1, min(MAX_PAGE_BYTES, share)),
            ),
            commits=commits,
            gate=self._gate,
            stop=self._engine.stop,
            follow=self._follows and not self._engine.once,
            poll_interval_s=self.config.poll_interval_s,
            observe_fetch=self._fetched,
            observe_encode=self._metrics.encode_seconds.observe,
            observe_ack=self._acked,
            run_in_thread=functools.partial(loop.run_in_executor, self._engine.executor),
            throttle=self._throttle,
            wake=asyncio.Event(),
            row_bytes=self._dataset.row_bytes_estimate,
        )

    # --- what is observed ------------------------------------------------------------------------------------------

    def _enter(self, state: StateName) -> None:
        self.status.state = state
        self._metrics.state(state)

    def _fetched(self, seconds: float, rows: int) -> None:
        self.status.rows_read += rows
        self._metrics.page_fetch_seconds.observe(seconds)
        self._metrics.rows_read.inc(rows)
        self._metrics.inflight_records.inc(rows)

    def _acked(self, seconds: float, rows: int, size: int) -> None:
        status = self.status
        self._last_progress = time.monotonic()
        status.retrying = None
        status.rows_acked += rows
        status.bytes_acked += size
        if status.rows_remaining is not None:
            status.rows_remaining = max(0, status.rows_remaining - rows)
        self._metrics.ack_seconds.observe(seconds)
        self._metrics.records_acked.inc(rows)
        self._metrics.bytes_acked.inc(size)

    def _committed(self, changed: Sequence[Checkpoint], seconds: float) -> None:
        self.status.last_commit_at = time.time()
        self._metrics.checkpoint_commit_seconds.observe(seconds)
        self._metrics.checkpoint_last_commit_timestamp_seconds.set(self.status.last_commit_at)

    def _retried(self, error: TransientError, wait_s: float) -> None:
        self.status.retrying = error.message
        self._metrics.retried(type(error).__name__)
        log.warning("retrying", stream=self.config.name, error=str(error), wait_s=round(wait_s, 1))

    async def _throttle(self, rows: int) -> None:
        """Holds the stream's rate at `max_rows_per_s`, all splits together."""
        rate = self.config.max_rows_per_s
        if rate is None:
            return
        now = time.monotonic()
        self._next_free = max(now, self._next_free) + rows / rate
        await wait_for_any(self._engine.stop, timeout_s=self._next_free - now)

    async def _watch(self) -> None:
        """Keeps the gauges that are derived from the status current, and asks the source what is still to come."""
        assert self._dataset is not None
        status, metrics = self.status, self._metrics
        rate_from = (time.monotonic(), status.rows_acked)
        while True:
            metrics.splits(split_states(status.splits))
            metrics.inflight_bytes.set(self._engine.budget.used_bytes)
            metrics.inflight_records.set(status.rows_read - status.rows_acked)
            if status.rows_total_estimate is not None:
                metrics.backfill_rows_total_estimate.set(status.rows_total_estimate)
            if status.rows_remaining is not None:
                metrics.backfill_rows_remaining.set(status.rows_remaining)
                seconds, rows = time.monotonic() - rate_from[0], status.rows_acked - rate_from[1]
                if rows and seconds:
                    metrics.backfill_eta_seconds.set(status.rows_remaining / (rows / seconds))
            rate_from = (time.monotonic(), status.rows_acked)
            await asyncio.sleep(WATCH_INTERVAL_S)
            with ignored_transient(self.config.name):
                asked = [
                    await self._source.remaining(self.config, self._dataset, progress.checkpoint)
                    for progress in status.splits
                    if not progress.checkpoint.done
                ]
                known = [rows for rows in asked if rows is not None]
                if len(known) == len(asked):
                    status.rows_remaining = sum(known)
                    if self._follows:
                        metrics.source_lag_rows.set(status.rows_remaining)


def split_states(splits: Sequence[SplitProgress]) -> Mapping[str, int]:
    """How many splits are waiting, running and done."""
    counts = {"waiting": 0, "running": 0, "done": 0}
    for progress in splits:
        counts["done" if progress.checkpoint.done else "running" if progress.active else "waiting"] += 1
    return counts


def refuse_other_query(state: StreamState | None, stream: str, fingerprint: str) -> None:
    """CheckpointConflictError where the checkpoint was made by another query than the configured one."""
    if state is not None and state.fingerprint != fingerprint:
        raise CheckpointConflictError(
            f"the checkpoint of stream {stream!r} was made by another query: its table, columns, where, key, order or "
            f"traversal has changed since (fingerprint {state.fingerprint}, now {fingerprint})",
            hint=f"put the configuration back, or read again from the start after: "
            f"producer checkpoint reset CONFIG {stream}",
        )


def _first(group: BaseExceptionGroup[ProducerError]) -> ProducerError:
    """The first error in a tree of groups, the permanent ones before the transient."""
    errors: list[ProducerError] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        elif isinstance(error, ProducerError):
            errors.append(error)

    collect(group)
    return min(errors, key=lambda error: isinstance(error, TransientError))
