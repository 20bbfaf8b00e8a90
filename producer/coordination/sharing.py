"""Owns a stream whose work is shared between processes: planned once, run in units by whoever owns them.

One process, whichever claims the stream's plan first, plans the splits, and writes the stream's own state and one for
each unit at once. A unit is run where its partition of the state
topic is assigned; its claim fences whoever ran it before, so a process that hung does no harm when it wakes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import structlog

from producer.config import StreamConfig
from producer.errors import (
    CheckpointConflictError,
    CheckpointLostError,
    OtherQueryError,
    ProducerError,
    StoreUnavailableError,
    TransientError,
    unexpected,
)
from producer.identity import Identity
from producer.metrics import StreamMetrics
from producer.model import REPLAY, Between, Checkpoint, Split, StreamState, split_name, unit_name
from producer.modes import refuse_other_mode, tail_after
from producer.ownership import note_identity, refuse_other_query
from producer.pipeline import wait_for_any
from producer.protocols import LendingStore, PageWriter, Source
from producer.stream import Stream, control_deadline, next_replay
from producer.unit import Engine, Unit

log = structlog.get_logger("producer")
T = TypeVar("T")

LOOK_INTERVAL_S = 1.0
CLAIM_AGAIN_S = 8.0  # longer than the group's session
DRAIN_DEADLINE_S = 5.0


class SharedStream(Stream):
    """A Stream that runs the units it is told to `own`, until told to `disown` them."""

    _broken: asyncio.Future[ProducerError] | None = None
    _all_done = False
    _snapshot_over = False
    _resting: frozenset[int] = frozenset()  # owned, and to be run again at the next `_run_units`
    _asked_to_pause: bool | None = None  # before there was a state that could keep it

    def __init__(self, config: StreamConfig, source: Source, engine: Engine, metrics: StreamMetrics) -> None:
        super().__init__(config, source, engine, metrics)
        self.status.shared = True
        self._owned: dict[int, asyncio.Task[None]] = {}
        self._running: dict[int, Unit] = {}
        self._looking = asyncio.Lock()
        self._epochs: dict[int, int] = {}  # the units' at the start: a higher one has been run since

    @property
    def _store(self) -> LendingStore:
        return cast(LendingStore, self._engine.store)  # the configuration has seen to it

    async def start(self) -> None:
        """As `Stream.start`, but for the claim: the plan is made if there is none, and units come with `own`."""
        if self.started:
            return
        self._dataset = await self._source.describe(self.config)
        if self._writer is not None:
            await self._writer.close()  # of an attempt before
            self._writer = None
        if not self._engine.exactly_once:
            self._writer = await self._open_writer(self.config.name)
        await self._plan_once()
        await self._go_on_in_this_mode()
        while (paused := self._asked_to_pause) is not None:
            self._asked_to_pause = None
            await self._tell_paused(paused)
        self.status.table = self._dataset.full_name
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
        patience_s = LOOK_INTERVAL_S
        while (state := await store.load(name)) is None:
            try:
                epoch = await store.claim(name)
                if (state := await store.load(name)) is None:
                    await self._plan(fingerprint, epoch)
            except (CheckpointConflictError, StoreUnavailableError):  # fenced, whether its epoch is there yet or not
                log.debug("another process plans", stream=name)
                await self._leave_planning(patience_s)
                patience_s *= 2
            finally:
                await store.release(name)
        identity = self._engine.identify(self.config, self._dataset)
        refuse_other_query(state, self.config, self._dataset, identity)
        if identity.after(state.identity) != state.identity:
            await self._note(identity)

    async def _note(self, identity: Identity) -> None:
        """Has the stream's own state keep what it belongs to: one of an older version takes it now."""

        async def note(epoch: int) -> None:
            state = await self._store.load(self.config.name)
            if state is not None and (known := identity.after(state.identity)) != state.identity:
                note_identity(self.config, state)
                await self._store.begin(replace(state, epoch=epoch, identity=known))

        await self._as_stream(note)

    async def _leave_planning(self, patience_s: float) -> None:
        """Leaves it to whoever has come in between, for longer each time: else two whose planning takes longer would
        fence one another for ever."""
        until = time.monotonic() + patience_s * random.uniform(1, 2)
        while await self._store.load(self.config.name) is None and (left_s := until - time.monotonic()) > 0:
            await self._wait(min(LOOK_INTERVAL_S, left_s))

    async def _wait(self, seconds: float) -> None:
        await wait_for_any(self._engine.stop, timeout_s=seconds)
        if self._engine.stop.is_set():
            raise StoreUnavailableError(f"stream {self.config.name!r}: stopped while another process had its state")

    async def _plan(self, fingerprint: str, epoch: int) -> None:
        assert self._dataset is not None
        store, name = self._store, self.config.name
        splits = await self._source.plan(self.config, self._dataset)
        identity = self._engine.identify(self.config, self._dataset).after(None)
        units = [
            StreamState(
                unit_name(name, partition),
                fingerprint,
                0,
                tuple(Checkpoint(split) for split in splits if int(split.id) % store.partitions == partition),
                identity=identity,
            )
            for partition in range(store.partitions)
        ]
        await store.begin_units(StreamState(name, fingerprint, epoch, (), identity=identity), units)

    async def _go_on_in_this_mode(self) -> None:
        """Refuses a checkpoint that the stream's mode cannot go on from, and adds the tail that it may lack."""
        checkpoints = _checkpoints(states := await self._load_units())
        self._epochs = {partition: state.epoch for partition, state in states.items()}
        refuse_other_mode(self.config, checkpoints)
        if tail_after(self.config, checkpoints) is None:
            return

        async def add(epoch: int) -> None:
            found = _checkpoints(await self._load_units())  # another process may have added it
            if (tail := tail_after(self.config, found)) is not None:
                await self._put_into_unit(int(tail.id), tail, epoch)

        await self._as_stream(add)

    async def _load_units(self) -> dict[int, StreamState]:
        """All units' states. CheckpointLostError where one is gone: every unit is planned, if without a split."""
        names = [unit_name(self.config.name, partition) for partition in range(self._store.partitions)]
        states: dict[int, StreamState] = {}
        for partition, state in enumerate(await self._store.load_all(names)):
            if state is None:
                raise self._lost(partition)
            states[partition] = state
        return states

    def _lost(self, partition: int) -> CheckpointLostError:
        name = self.config.name
        return CheckpointLostError(
            f"stream {name!r}: the checkpoint of its unit {unit_name(name, partition)!r} is gone: the stream was reset "
            "while it ran, or a reset has not come to its end",
            hint=f"read again from the start after: producer checkpoint reset CONFIG {name}",
        )

    async def _as_stream(self, work: Callable[[int], Awaitable[T]]) -> T:
        """Does something with the claim (its epoch) of the stream's own state: no two processes do so at a time. Who
        is fenced by another one has not done it, and does it after that."""
        store, name = self._store, self.config.name
        while True:
            try:
                return await work(await store.claim(name))
            except CheckpointConflictError:
                await self._wait(LOOK_INTERVAL_S)
            finally:
                await store.release(name)

    async def _put_into_unit(self, number: int, split: Split, epoch: int) -> None:
        unit = unit_name(self.config.name, number % self._store.partitions)
        await self._store.add(self.config.name, epoch, unit, Checkpoint(split))

    # --- ownership -------------------------------------------------------------------------------------------------

    async def own(self, partitions: Collection[int]) -> None:
        """Begins to run these units, beside what runs already; where nothing runs yet, as soon as it does."""
        if self._broken is None:
            self._resting |= frozenset(partitions)
            return
        for partition in sorted(partitions):
            if partition not in self._owned and self.failure is None:
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
            self.status.split_lists.pop(str(partition), None)

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
                        snapshot_over=lambda: self._snapshot_over,
                    )
                    await self._claim(unit, partition)
            self._running[partition] = unit
            self._units.append(unit)
            self.status.split_lists[str(partition)] = unit.splits
            await self._run_unit_on(unit)
        except (CheckpointLostError, OtherQueryError) as error:  # there is nothing to go on with at the next claim
            self._break(error)
        except CheckpointConflictError as error:
            # Not this stream's failure: the group has given the unit to somebody while we could not hear of it.
            log.warning("unit taken over", stream=self.config.name, unit=partition, error=error.message)
            self._forget(partition)
            return False
        except Exception as error:  # whatever it is: a unit that nobody runs would be missed by nobody
            self._break(error if isinstance(error, ProducerError) else unexpected(error))
        finally:
            if writer is not None and writer is not self._writer:
                await writer.close()
            await self._store.release(name)
        return True

    def _break(self, error: ProducerError) -> None:
        """A unit's failure is the stream's."""
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(error)

    async def _claim(self, unit: Unit, partition: int) -> None:
        state = await unit.claim()
        if state is None:  # an empty unit in its place would pass for one that is done
            raise self._lost(partition)
        # What is to be followed again is not done, for those who look whether all is.
        reopened = [again for c in state.checkpoints if (again := unit.resumed(c)) != c]
        if reopened:
            await self._store.commit(unit.name, unit.epoch, reopened)
        await self._refuse_replaced(unit)

    # --- run -------------------------------------------------------------------------------------------------------

    async def _run_units(self) -> None:
        """Runs until every unit of every process is done (`once`), a unit has failed, or all is to stop."""
        engine = self._engine
        self._all_done = await self._look()  # before anything moves
        if engine.once and not self._gate.is_set():
            return
        self._broken = asyncio.get_running_loop().create_future()
        await self.own(self._resting)  # those that were assigned before, or rest since the table has changed
        try:
            while not engine.stop.is_set() and not self._broken.done():
                await wait_for_any(engine.stop, timeout_s=LOOK_INTERVAL_S)
                self._all_done = await self._look()
                if self._all_done and engine.once:
                    await self._end_units()
                    return
                self._show_completion()
            if self._broken.done():
                raise self._broken.result()
        finally:
            if not self._all_done:
                self._resting = frozenset(self._owned)
                await self._rest(self._resting)
            self._broken = None

    async def _end_units(self) -> None:
        """Waits for our units, whose rows are all sent: at the end they look for rows that no page has."""
        assert self._broken is not None
        ending = asyncio.gather(*self._owned.values(), return_exceptions=True)
        stopping = asyncio.create_task(self._engine.stop.wait())
        waits: set[asyncio.Future[Any]] = {ending, self._broken, stopping}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                raise self._broken.result()
        finally:
            stopping.cancel()

    def _show_completion(self) -> None:
        """A stream that is complete is not over: a replay may be asked for, through any process."""
        status = self.status
        if self._all_done and status.state == "running":
            status.finished_at = time.time()
            self._enter("complete")
            log.info("stream complete", stream=self.config.name, hint="use --once to stop then; Ctrl-C stops")
        elif not self._all_done and status.state == "complete":
            status.finished_at = None
            self._enter("running")

    # --- what is asked of all processes ----------------------------------------------------------------------------

    async def _begin_replay(self, wanted: Between) -> Split:
        """Put into the state of a unit: whoever owns that runs it, and it outlives the process that was asked."""

        async def begin(epoch: int) -> Split:
            assert self._dataset is not None
            split_id = next_replay(_checkpoints(await self._load_units()))
            split = await self._source.replay(self.config, self._dataset, split_id, wanted)
            await self._put_into_unit(int(split_id.removeprefix(REPLAY)), split, epoch)
            return split

        async with self._looking:
            return await self._as_stream(begin)

    async def _remember_pause(self) -> None:
        """A pause is kept with the stream's own state, where all processes look."""
        paused = not self._gate.is_set()
        if not self.started:
            self._asked_to_pause = paused
            return
        async with control_deadline("the pause cannot be remembered"), self._looking:
            await self._tell_paused(paused)
            self._obey(paused)  # a look that had begun before may have undone it

    async def _tell_paused(self, paused: bool) -> None:
        await self._as_stream(lambda epoch: self._store.set_paused(self.config.name, epoch, paused))

    async def _heed_pause(self) -> None:
        async with self._looking:
            state = await self._store.load(self.config.name)
            if state is not None:
                self._obey(state.paused)

    def _obey(self, paused: bool) -> None:
        if paused:
            self._gate.clear()
        else:
            self._gate.set()
        if self.status.state in ("running", "paused"):
            self._enter("paused" if paused else "running")

    # --- what all processes do -------------------------------------------------------------------------------------

    async def _look(self) -> bool:
        """Looks at all units, other processes' too: takes up what was put into ours, counts what is still to come, and
        says whether all is done. False where that cannot be told just now; CheckpointLostError where it never will."""
        idle = {partition for partition, task in self._owned.items() if task.done()}
        running = dict(self._running)
        try:
            await self._heed_pause()
            states = await self._load_units()
        except TransientError:
            return False
        checkpoints = _checkpoints(states)
        self._snapshot_over = all(c.done for c in checkpoints if c.split.is_bounded)
        for partition, state in states.items():
            self._take_up(partition, state, running.get(partition), idle)
        self._show_units(states)
        begun = all(self._has_been_run(partition, state) for partition, state in states.items())
        return begun and all(c.done for c in checkpoints)

    def _take_up(self, partition: int, state: StreamState, unit: Unit | None, idle: Collection[int]) -> None:
        """What others have put into a unit that was ours, or was at its end, when its state was read."""
        task = self._owned.get(partition)
        if task is None or self._broken is None or self._engine.stop.is_set():
            return
        if partition in idle and task.done():
            if any(not c.done and (not c.split.is_open or self._snapshot_over) for c in state.checkpoints):
                self._forget(partition)
                self._owned[partition] = asyncio.create_task(self._run_unit(partition))
        elif unit is not None and unit is self._running.get(partition):
            unit.take_up(state.checkpoints)

    def _has_been_run(self, partition: int, state: StreamState) -> bool:
        """Since the start, by whomever: an earlier run was done with what it followed, but there may be more by now."""
        followed = self.config.mode != "snapshot" and any(c.split.is_open for c in state.checkpoints)
        return not followed or state.epoch > self._epochs.get(partition, 0)

    def _show_units(self, states: Mapping[int, StreamState]) -> None:
        status = self.status
        if status.rows_total_estimate is not None:
            rows = sum(c.rows for c in _checkpoints(states) if not c.split.is_replay)
            status.rows_remaining = max(0, status.rows_total_estimate - rows)
        status.elsewhere = [
            (split_name(str(partition), c.split.id), c, state.owner)
            for partition, state in states.items()
            if partition not in self._running
            for c in state.checkpoints
        ]

    def _complete(self) -> bool:
        return self._all_done

    def _at_rest(self) -> bool:
        return True


def _checkpoints(states: Mapping[int, StreamState]) -> list[Checkpoint]:
    return [checkpoint for state in states.values() for checkpoint in state.checkpoints]
