"""Owns one stream: how it starts (describe, schemas, topic, checkpoint, plan), runs its splits, and reports itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from producer import holes
from producer.concealment import tellable
from producer.config import StreamConfig
from producer.drift import Changes, differences
from producer.errors import (
    AuthenticationError,
    CheckpointConflictError,
    CheckpointLostError,
    OtherQueryError,
    PermanentError,
    ProducerError,
    RateLimitedError,
    SchemaChangedError,
    SourceUnavailableError,
    StandbyError,
    StoreUnavailableError,
    TableReplacedError,
    TransientError,
    unexpected,
)
from producer.metrics import StreamMetrics
from producer.model import REPLAY, Between, Checkpoint, Dataset, Split
from producer.modes import tail_after
from producer.pipeline import wait_for_any
from producer.protocols import PageWriter, ReplaceableSource, Source
from producer.retry import attempts
from producer.status import StateName, StreamStatus, split_states
from producer.unit import Engine, Unit, sleep_until_stop

log = structlog.get_logger("producer")

WATCH_INTERVAL_S = 5.0
CONTROL_DEADLINE_S = 15.0


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
        self.wake = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._dataset: Dataset | None = None
        self._writer: PageWriter[Any] | None = None
        self._written: Any = None  # the Arrow schema that the writer was opened for
        self._units: list[Unit] = []
        self._last_progress = 0.0
        self._left: int | None = None  # rows still to come of the splits that this process runs
        self._next_free = 0.0
        self._changes = Changes()
        self._holes_expired = 0  # of the stream, as far as they have been counted
        self._replaying = asyncio.Lock()
        self._made_at = time.monotonic()
        metrics.state("starting")
        metrics.source_throttle_factor.set(1)

    # --- control ---------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stops reading, now and after every restart; what is in flight is still acknowledged and committed.

        A ProducerError says that the store could not be told: then it holds until a restart only.
        """
        self._gate.clear()
        if self.status.state in ("starting", "running"):
            self._enter("paused")
        await self._remember_pause()

    async def resume(self) -> None:
        """Reads on; ProducerError as for `pause`."""
        self._gate.set()
        if self.status.state == "paused":
            self._enter("running" if self.started else "starting")
        await self._remember_pause()

    async def _remember_pause(self) -> None:
        async with control_deadline("the pause cannot be remembered"):
            for unit in self._units:
                await unit.remember_pause()

    async def replay(self, wanted: Between) -> Split:
        """Has a range of rows read once more beside what goes on, and over restarts; see `Source.replay`.

        ConfigError for a range that is not one, another ProducerError where the stream cannot take it just now.
        """
        if not self.started:
            raise SourceUnavailableError(f"stream {self.config.name!r} is still starting", hint="try again")
        if self.status.state in ("failed", "stopped"):
            raise PermanentError(f"stream {self.config.name!r} has {self.status.state}", hint="start it again first")
        async with control_deadline("the replay cannot be begun"), self._replaying:
            split = await self._begin_replay(wanted)
        log.info("replaying", stream=self.config.name, split=split.id)
        return split

    async def _begin_replay(self, wanted: Between) -> Split:
        (unit,) = self._units
        split_id = next_replay(progress.checkpoint for progress in unit.splits)
        split = await self._source.replay(self.config, unit.dataset, split_id, wanted)
        await unit.add(split)
        return split

    # --- start -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """All that can be checked before the first row is sent. Idempotent; raises ProducerError."""
        if self.started:
            return
        engine, config = self._engine, self.config
        await engine.open_source(config.source)
        dataset = await self._source.describe(config)
        async with self._planning(dataset) as plan:
            writer = await self._opened_writer(dataset)
            unit = Unit(
                config.name, config, self._source, dataset, writer, engine, self, self._gate, engine.stop, self.wake
            )
            state = await unit.claim()
            if state is None:
                await unit.begin([Checkpoint(split) for split in await plan()])
        if state is not None:
            await self._refuse_replaced(unit)
        if state is not None and (tail := tail_after(config, state.checkpoints)) is not None:
            await unit.add(tail)
        self._holes_expired = max((holes.counts(p.checkpoint.detail)[1] for p in unit.splits), default=0)
        status = self.status
        self._units = [unit]
        status.split_lists = {"": unit.splits}
        if unit.paused:
            self._gate.clear()
            log.info(
                "stream is paused, as it was before", stream=config.name, hint=f"producer resume CONFIG {config.name}"
            )
        before = status.rows_committed
        status.table = dataset.full_name
        status.rows_total_estimate = dataset.rows_estimate
        self._left = max(0, dataset.rows_estimate - before) if dataset.rows_estimate is not None else None
        status.rows_remaining = self._left
        self._dataset = dataset
        self.started = True
        await self._remember_pause()
        log.info(
            "stream ready",
            stream=config.name,
            topic=config.topic,
            splits=len(unit.splits),
            resumed_after_rows=before,
            rows_estimate=dataset.rows_estimate,
        )

    @asynccontextmanager
    async def _planning(self, dataset: Dataset) -> AsyncIterator[Callable[[], Awaitable[Sequence[Split]]]]:
        """The stream's plan. Where there is no checkpoint yet it is begun at once, beside what comes before its use:
        opening the writer keeps this process busy, and planning the database."""

        async def early() -> Sequence[Split]:
            going_on = await self._engine.store.load(self.config.name) is not None
            return () if going_on else await self._source.plan(self.config, dataset)

        async def plan() -> Sequence[Split]:
            return await planning or await self._source.plan(self.config, dataset)

        planning = asyncio.create_task(early())
        try:
            yield plan
        finally:
            planning.cancel()
            await asyncio.gather(planning, return_exceptions=True)

    async def _opened_writer(self, dataset: Dataset) -> PageWriter[Any]:
        if self._writer is not None and not dataset.schema.equals(self._written, check_metadata=True):
            await self._writer.close()  # of an attempt before, and the table has changed since
            self._writer = None
        if self._writer is None:
            self._writer = await self._engine.open_writer(self.config, dataset, self.config.name, self.dead_lettered)
            self._written = dataset.schema
        return self._writer

    # --- run -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs the splits to their end (or until stopped). A ProducerError ends up in `failure`, and is not raised."""
        status = self.status
        status.started_at, status.began_s, status.ran_s = time.time(), time.monotonic(), None
        try:
            while True:
                error = await self._run()
                if error is not None:
                    error = await self._adapt(error)
                    if error is not None:
                        break
                elif self._at_rest():  # unless a replay came in at the very end
                    break
        except asyncio.CancelledError:
            self._enter("stopped")
            raise
        finally:
            status.finished_at, status.ran_s = time.time(), time.monotonic() - status.began_s
            self._show_status()
        if error is not None:
            await self.fail(error)
        elif self._engine.once and not self._gate.is_set() and not self._engine.stop.is_set():
            self._enter("paused")
        else:
            self._enter("complete" if self._complete() else "stopped")

    def _at_rest(self) -> bool:
        paused = self._engine.once and not self._gate.is_set()  # nobody may be there to resume it
        return self._engine.stop.is_set() or paused or self._complete()

    def _complete(self) -> bool:
        return self.started and all(progress.checkpoint.done for progress in self.status.splits)

    async def _run(self) -> ProducerError | None:
        try:
            async for attempt in self._attempts():
                with attempt:
                    await self.start()
            self._enter("running" if self._gate.is_set() else "paused")
            if self._engine.once and not self._gate.is_set():
                return None
            watching = asyncio.create_task(self._watch())
            try:
                await self._run_units()
            finally:
                watching.cancel()
        except CheckpointConflictError as error:
            if not self._stands_by(error):
                return error
            self.started = False
            self._enter("starting")
        except ProducerError as error:
            return error
        except Exception as error:  # whatever it is: it is this stream's failure, and the others go on
            return unexpected(error)
        return None

    async def _adapt(self, error: ProducerError) -> ProducerError | None:
        """Looks at the table once more: None where it has changed, and the next run goes on with what it is now;
        otherwise what ends the stream."""
        before = self._dataset
        if before is None or isinstance(
            error, TransientError | AuthenticationError | CheckpointConflictError | TableReplacedError
        ):
            return error
        try:
            if isinstance(error, SchemaChangedError):
                await wait_for_any(self._engine.stop, timeout_s=self._changes.wait_s(error))
            async for attempt in self._attempts():
                with attempt:
                    dataset = await self._source.describe(self.config)
                    changed = not dataset.schema.equals(before.schema, check_metadata=True)
                    if not changed and not isinstance(error, SchemaChangedError):
                        return error
                    await self._go_on_with(dataset)
        except TransientError:
            return error
        except ProducerError as reason:
            return reason
        changes = differences(before.schema, dataset.schema)
        log.warning("the table has changed: going on with its columns of now", stream=self.config.name, **changes)
        return None

    async def _go_on_with(self, dataset: Dataset) -> None:
        """Has the next run read and write the table as it is now; SchemaIncompatibleError where it may not."""
        before, config = self._dataset, self.config
        assert before is not None
        if dataset.fingerprint(config.traversal) != before.fingerprint(config.traversal):
            raise OtherQueryError(
                f"stream {config.name!r}: the key or order of its table has changed while it was read",
                hint=f"read again from the start after: producer checkpoint reset CONFIG {config.name}",
            )
        if self._writer is not None:
            writer = await self._engine.open_writer(config, dataset, config.name, self.dead_lettered)
            await self._writer.close()
            self._writer, self._written = writer, dataset.schema
            for unit in self._units:
                unit.dataset, unit.writer = dataset, writer
        self._dataset = dataset

    def _stands_by(self, error: CheckpointConflictError) -> bool:
        """Whether the error is that another process runs the stream, and that is what is wanted."""
        if not self._engine.stands_by or isinstance(error, OtherQueryError | CheckpointLostError):
            return False
        self.status.stands_by = True
        log.info("standing by: another process runs the stream", stream=self.config.name, reason=error.message)
        return True

    async def _run_units(self) -> None:
        for unit in self._units:
            await self._run_unit_on(unit)

    async def _run_unit_on(self, unit: Unit) -> None:
        """Runs a unit to its end, also when its table is replaced and that is to be taken."""
        while True:
            try:
                return await unit.run()
            except TableReplacedError as error:
                await self._take_replacement(unit, error)

    async def _refuse_replaced(self, unit: Unit) -> None:
        """Of a unit that was just claimed."""
        if isinstance(self._source, ReplaceableSource):
            try:
                await self._source.refuse_replaced(self.config, [progress.checkpoint for progress in unit.splits])
            except TableReplacedError as error:
                await self._take_replacement(unit, error)

    async def _take_replacement(self, unit: Unit, error: TableReplacedError) -> None:
        """Has the unit's next run read the table that has the name now; raises the error where it is to stop."""
        if self.config.on_replaced == "fail":
            raise error
        self._saw_replacement(error)
        log.warning(
            "the table has been replaced",
            stream=self.config.name,
            reason=error.message,
            on_replaced=self.config.on_replaced,
        )
        async for attempt in self._attempts():
            with attempt:
                dataset = await self._source.describe(self.config)  # the source sees the new table from here on
                if self.config.on_replaced == "continue":
                    await unit.forget_table()
                else:
                    splits = await self._source.plan(self.config, dataset)
                    await unit.begin([Checkpoint(split) for split in splits])

    def _saw_replacement(self, error: TableReplacedError) -> None:
        self.status.table_replacements += 1
        self.status.table_replaced = error.message
        self._metrics.table_replacements.inc()

    async def fail(self, error: ProducerError) -> None:
        """The stream is over, in this process: `error` is the reason."""
        error = self.failure = tellable(error, self.config, self._dataset)
        self.status.error, self.status.hint = error.message, error.hint or None
        self._enter("failed")
        self._metrics.failed(type(error).__name__)
        if isinstance(error, TableReplacedError):
            self._saw_replacement(error)
        log.error("stream failed", stream=self.config.name, error=error.message, hint=error.hint or None)
        if error.__cause__ is not None:
            log.debug("the cause", stream=self.config.name, exc_info=error.__cause__)
        await self._engine.leave(self.config)

    def stopped_early(self) -> None:
        """The run ends before its streams have started."""
        self._enter("stopped")

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()

    def _attempts(self) -> Any:
        return attempts(
            give_up_after_s=self._engine.give_up_after_s,
            progressed=self.last_progress,
            before_sleep=self.retried,
            sleep=functools.partial(sleep_until_stop, self._engine.stop),
        )

    # --- what is observed ------------------------------------------------------------------------------------------

    def _enter(self, state: StateName) -> None:
        self.status.state = state
        self.status.stands_by &= state == "starting"
        self._metrics.state(state)

    def fetched(self, seconds: float, rows: int) -> None:
        if not rows:
            self._changes.settled()
        self.status.rows_read += rows
        self._metrics.page_fetch_seconds.observe(seconds)
        self._metrics.rows_read.inc(rows)

    def encoded(self, seconds: float) -> None:
        self._metrics.encode_seconds.observe(seconds)

    def waited(self, seconds: float) -> None:
        """The source was kept waiting by a rate limit."""
        self._metrics.rate_limit_wait_seconds.inc(seconds)

    def asked_again(self, reason: str) -> None:
        """The source had to repeat a request."""
        self._metrics.retried(reason)

    def last_progress(self) -> float:
        return self._last_progress

    def acknowledged(self, seconds: float, rows: int, size: int) -> None:
        status = self.status
        self._last_progress = time.monotonic()
        self._changes.settled()
        status.retrying = None
        status.rows_acked += rows
        status.bytes_acked += size
        if status.rows_remaining is not None:
            status.rows_remaining = max(0, status.rows_remaining - rows)
        if self._left is not None:
            self._left = max(0, self._left - rows)
        self._metrics.ack_seconds.observe(seconds)
        self._metrics.records_acked.inc(rows)
        self._metrics.bytes_acked.inc(size)

    def dead_lettered(self, reason: str) -> None:
        self.status.dead_letters += 1
        self._metrics.dead_letter(reason)
        if self.status.dead_letters == 1:
            log.warning(
                "bad records go to the dead letters",
                stream=self.config.name,
                reason=reason,
                hint="look at them with: producer dead-letters list CONFIG STREAM",
            )

    def committed(self, changed: Sequence[Checkpoint], seconds: float) -> None:
        self.status.last_commit_at = time.time()
        self._metrics.checkpoint_commit_seconds.observe(seconds)
        self._metrics.checkpoint_last_commit_timestamp_seconds.set(self.status.last_commit_at)
        for checkpoint in changed:
            if checkpoint.detail is not None:
                holes_open, expired = holes.counts(checkpoint.detail)
                self._metrics.gap_holes_open.set(holes_open)
                self._metrics.gap_holes_expired.inc(max(0, expired - self._holes_expired))
                self._holes_expired = max(expired, self._holes_expired)

    def retried(self, error: TransientError, wait_s: float) -> None:
        self.status.retrying = error.message
        self.status.stands_by = isinstance(error, StandbyError)
        self._metrics.retried(type(error).__name__)
        if isinstance(error, RateLimitedError):
            self._metrics.rate_limit_wait_seconds.inc(wait_s)
        log.warning("retrying", stream=self.config.name, error=str(error), wait_s=round(wait_s, 1))

    def pressed(self, factor: float) -> None:
        self._metrics.source_throttle_factor.set(factor)
        log.debug("the source is read at another speed", stream=self.config.name, factor=factor)

    async def throttle(self, rows: int) -> None:
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
            self._show_status()
            if self._left is not None:
                seconds, rows = time.monotonic() - rate_from[0], status.rows_acked - rate_from[1]
                if not self._left:
                    metrics.backfill_eta_seconds.set(0)
                elif rows and seconds:
                    metrics.backfill_eta_seconds.set(self._left / (rows / seconds))
            rate_from = (time.monotonic(), status.rows_acked)
            await asyncio.sleep(WATCH_INTERVAL_S)
            with contextlib.suppress(ProducerError):  # what lasts, the reading meets as well
                asked = [
                    await self._source.remaining(self.config, self._dataset, progress.checkpoint)
                    for progress in status.splits
                    if not progress.checkpoint.done
                ]
                known = [rows for rows in asked if rows is not None]
                if len(known) == len(asked):
                    self._left = sum(known)
                    if not status.shared:
                        status.rows_remaining = self._left
                    if self.config.mode != "snapshot":
                        metrics.source_lag_rows.set(self._left)

    def _show_status(self) -> None:
        """The gauges that say what the status says."""
        status, metrics = self.status, self._metrics
        metrics.splits(split_states(status.splits))
        metrics.inflight_bytes.set(self._engine.budget.used_bytes)
        waiting = [page for progress in status.splits for page in progress.unacknowledged.values()]
        metrics.inflight_records.set(sum(rows for _, rows in waiting))
        now = time.monotonic()
        oldest_s = max((now - sent for sent, _ in waiting), default=0.0)
        metrics.oldest_unacknowledged_seconds.set(oldest_s)
        if self.config.mode != "snapshot":
            open_splits = [progress for progress in status.splits if not progress.checkpoint.done]
            behind_s = [now - (p.caught_up_at or self._made_at) for p in open_splits]
            metrics.source_lag_seconds.set(max(oldest_s, *behind_s, 0.0))
        if status.rows_total_estimate is not None:
            metrics.backfill_rows_total_estimate.set(status.rows_total_estimate)
        if self._left is not None:
            metrics.backfill_rows_remaining.set(self._left)


@asynccontextmanager
async def control_deadline(what: str) -> AsyncIterator[None]:
    """For what somebody waits for at the other end of a request."""
    try:
        async with asyncio.timeout(CONTROL_DEADLINE_S):
            yield
    except TimeoutError:
        raise StoreUnavailableError(f"{what}: no answer in {CONTROL_DEADLINE_S:g} s", hint="try again") from None


def next_replay(checkpoints: Iterable[Checkpoint]) -> str:
    """The id of a stream's next replay."""
    found = (int(c.split.id.removeprefix(REPLAY)) for c in checkpoints if c.split.is_replay)
    return f"{REPLAY}{1 + max(found, default=0)}"
