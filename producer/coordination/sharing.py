"""Owns a stream whose work is shared between processes: planned once, run in units by whoever owns them.

One process, whichever claims the stream's plan first, plans the splits, writes a state for each unit, and then the
stream's own state: that is the sign for all that the units are there. A unit is run where its partition of the state
topic is assigned; its claim fences whoever ran it before, so a process that hung does no harm when it wakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, cast

import structlog

from producer.errors import CheckpointConflictError, ProducerError, StoreUnavailableError, TransientError, unexpected
from producer.model import Checkpoint, StreamState, unit_name
from producer.pipeline import wait_for_any
from producer.protocols import LendingStore, PageWriter
from producer.scheduling import ignored_transient
from producer.stream import Stream, control_deadline
from producer.unit import Unit, refuse_other_query

log = structlog.get_logger("producer")

LOOK_INTERVAL_S = 1.0
CLAIM_AGAIN_S = 8.0  # longer than the group's session
DRAIN_DEADLINE_S = 5.0


class SharedStream(Stream):
    """A Stream that runs the units it is told to `own`, until told to `disown` them."""

    _owned: dict[int, asyncio.Task[None]]
    _running: dict[int, Unit]
    _looking: asyncio.Lock
    _broken: asyncio.Future[ProducerError] | None = None
    _all_done = False
    _resting: frozenset[int] = frozenset()  # owned, and to be run again at the next `_run_units`

    @property
    def _store(self) -> LendingStore:
        return cast(LendingStore, self._engine.store)  # the configuration has seen to it

    async def start(self) -> None:
        """As `Stream.start`, but for the claim: the plan is made if there is none, and units come with `own`."""
        if self.started:
            return
        self._owned, self._running, self._looking = {}, {}, asyncio.Lock()
        self._dataset = await self._source.describe(self.config)
        if not self._engine.exactly_once:
            self._writer = await self._open_writer(self.config.name)
        await self._plan_once()
        self.status.rows_total_estimate = self._dataset.rows_estimate
        self.started = True
        log.info("stream ready", stream=self.config.name, topic=self.config.topic, units=self._store.partitions)

    async def _open_writer(self, unit: str) -> PageWriter[Any]:
        assert self._dataset is not None
        return await self._engine.open_writer(self.config, self._dataset, unit, self.dead_lettered)

    async def _plan_once(self) -> None:
        assert self._dataset is not None
        store, name = self._store, self.config.name
        fingerprint = self._dataset.fingerprint(self.config.traversal)
        while (state := await store.load(name)) is None:
            try:
                epoch = await store.claim(name)
                if (state := await store.load(name)) is None:
                    await self._plan(fingerprint, epoch)
            except (CheckpointConflictError, StoreUnavailableError):  # fenced, whether its epoch is there yet or not
                log.debug("another process plans", stream=name)
                await wait_for_any(self._engine.stop, timeout_s=LOOK_INTERVAL_S)
            finally:
                await store.release(name)
        refuse_other_query(state, name, fingerprint)

    async def _plan(self, fingerprint: str, epoch: int) -> None:
        assert self._dataset is not None
        store, name = self._store, self.config.name
        splits = await self._source.plan(self.config, self._dataset)
        for partition in range(store.partitions):
            unit = unit_name(name, partition)
            mine = tuple(Checkpoint(split) for split in splits if int(split.id) % store.partitions == partition)
            await store.begin(StreamState(unit, fingerprint, await store.claim(unit), mine))
            await store.release(unit)
        await store.begin(StreamState(name, fingerprint, epoch, ()))

    # --- ownership -------------------------------------------------------------------------------------------------

    async def own(self, partitions: Collection[int]) -> None:
        """Begins to run these units, beside what runs already; where nothing runs yet, as soon as it does."""
        if self._broken is None:
            self._resting |= frozenset(partitions)
            return
        for partition in sorted(partitions):
            if partition not in self._owned and self.failure is None and not self._all_done:
                self._owned[partition] = asyncio.create_task(self._run_unit(partition))

    async def disown(self, partitions: Collection[int]) -> None:
        """Drains these units, or drops what is in flight after `DRAIN_DEADLINE_S`; then nothing of them moves."""
        self._resting = self._resting.difference(partitions)
        await self._rest(partitions)

    async def _rest(self, partitions: Collection[int]) -> None:
        tasks = {self._owned.pop(partition): partition for partition in partitions if partition in self._owned}
        for task, partition in tasks.items():
            if partition in self._running:
                self._running[partition].stop.set()
            else:
                task.cancel()  # it has not sent anything yet
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_DEADLINE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for partition in partitions:
            self._forget(partition)

    def _forget(self, partition: int) -> None:
        ended = self._running.pop(partition, None)
        if ended is not None:
            self._units.remove(ended)
            self.status.split_lists[:] = [s for s in self.status.split_lists if s is not ended.splits]

    async def _run_unit(self, partition: int) -> None:
        """Runs a unit for as long as it is ours. One that was taken over, and is ours all the same after the group's
        session has run out, is claimed again: otherwise nobody would run it."""
        while not await self._run_claimed(partition):
            await wait_for_any(self._engine.stop, timeout_s=CLAIM_AGAIN_S)
            if self._engine.stop.is_set():
                return

    async def _run_claimed(self, partition: int) -> bool:
        """One claim of a unit, to its end; False where another process has taken it over."""
        assert self._dataset is not None
        name = unit_name(self.config.name, partition)
        places = max(1, self.config.max_parallel // self._store.partitions)
        config = self.config.model_copy(update={"max_parallel": places})
        writer: PageWriter[Any] | None = self._writer
        try:
            async for attempt in self._attempts():
                with attempt:
                    if writer is None:
                        writer = await self._open_writer(name)
                    unit = Unit(
                        name,
                        config,
                        self._source,
                        self._dataset,
                        writer,
                        self._engine,
                        self,
                        self._gate,
                        asyncio.Event(),
                        self.wake,
                    )
                    if await unit.claim() is None:
                        await unit.begin(())
            self._running[partition] = unit
            self._units.append(unit)
            self.status.split_lists.append(unit.splits)
            await unit.run()
        except CheckpointConflictError as error:
            # Not this stream's failure: the group has given the unit to somebody while we could not hear of it.
            log.warning("unit taken over", stream=self.config.name, unit=partition, error=error.message)
            self._forget(partition)
            return False
        except Exception as error:  # whatever it is: a unit that nobody runs would be missed by nobody
            error = error if isinstance(error, ProducerError) else unexpected(error)
            if self._broken is not None and not self._broken.done():
                self._broken.set_result(error)
        finally:
            if writer is not None and writer is not self._writer:
                await writer.close()
            await self._store.release(name)
        return True

    # --- run -------------------------------------------------------------------------------------------------------

    async def _run_units(self) -> None:
        """Runs until every unit of every process is done (`once`), a unit has failed, or all is to stop."""
        engine, following = self._engine, self.config.mode != "snapshot"
        self._broken = asyncio.get_running_loop().create_future()
        with ignored_transient(self.config.name):
            await self._heed_pause()  # before anything moves
        await self.own(self._resting)  # those that were assigned before, or rest since the table has changed
        try:
            while not engine.stop.is_set() and not self._broken.done():
                await wait_for_any(engine.stop, timeout_s=LOOK_INTERVAL_S)
                if await self._everything_done() and (engine.once or not following):
                    self._all_done = True
                    return
            if self._broken.done():
                raise self._broken.result()
        finally:
            if not self._all_done:
                self._resting = frozenset(self._owned)
                await self._rest(self._resting)
            self._broken = None

    async def _remember_pause(self) -> None:
        """A pause is kept with the stream's own state, where all processes look."""
        name, paused = self.config.name, not self._gate.is_set()
        async with control_deadline("the pause cannot be remembered"), self._looking:
            epoch = await self._store.claim(name)
            await self._store.set_paused(name, epoch, paused)
            await self._store.release(name)

    async def _heed_pause(self) -> None:
        async with self._looking:
            state = await self._store.load(self.config.name)
            if state is None or state.paused == (not self._gate.is_set()):
                return
            if state.paused:
                self._gate.clear()
            else:
                self._gate.set()
            self._enter("paused" if state.paused else "running")

    async def _everything_done(self) -> bool:
        """Looks at all units, other processes' too, and counts what is still to come."""
        store, done, rows = self._store, True, 0
        try:
            await self._heed_pause()
            for partition in range(store.partitions):
                state = await store.load(unit_name(self.config.name, partition))
                checkpoints = state.checkpoints if state is not None else ()
                done = done and state is not None and all(c.done for c in checkpoints)
                rows += sum(c.rows for c in checkpoints)
        except TransientError:
            return False
        if self.status.rows_total_estimate is not None:
            self.status.rows_remaining = max(0, self.status.rows_total_estimate - rows)
        if self._engine.once and self.config.mode != "snapshot":
            return bool(self._owned) and all(task.done() for task in self._owned.values())
        return done

    def _complete(self) -> bool:
        return self._all_done

    def _at_rest(self) -> bool:
        return True
