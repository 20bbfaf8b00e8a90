"""Owns which splits of a stream move at a time, and the division of one that turned out too big."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import structlog

from producer.commits import SplitProgress
from producer.config import StreamConfig
from producer.errors import TransientError
from producer.model import Checkpoint, Dataset, Split
from producer.nullkeys import NoRows, NullKeyWatch
from producer.pipeline import StreamIO, run_split
from producer.protocols import NullKeySource, PageReader, Source

log = structlog.get_logger("producer")

#: What is left of a split is halved for an idle place while it is more than so many pages.
DIVIDE_PAGES = 16


class SplitSchedule:
    """Keeps `max_parallel` splits of a stream moving: those that wait first, then halves of the largest that moves.
    One replay at a time moves beside them.

    `splits` is the stream's list: a split that is divided adds to it. With `retrying`, a split that fails
    transiently starts again from its checkpoint by itself; otherwise its failure is everybody's.
    """

    def __init__(
        self,
        config: StreamConfig,
        source: Source,
        dataset: Dataset,
        io: StreamIO,
        splits: list[SplitProgress],
        attempts: Callable[[], Any],
        retrying: bool,
    ) -> None:
        self._config = config
        self._source = source
        self._dataset = dataset
        self._io = io
        self._splits = splits
        self._attempts = attempts
        self._retrying = retrying
        self._whole: set[str] = set()  # splits that need not be looked at again
        self._waiting = deque(progress for progress in splits if not progress.checkpoint.done)
        self._added = asyncio.Event()

    def add(self, progress: SplitProgress) -> None:
        """Has a split that was not planned run with the others; it is in `splits` already."""
        self._waiting.append(progress)
        self._added.set()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Runs all splits as tasks of `group`; returns when they are done, or when one has failed."""
        waiting = self._waiting
        running: dict[asyncio.Task[None], SplitProgress] = {}
        while waiting or running:
            while (started := self._startable(running.values())) is not None:
                running[group.create_task(self._run_split(started))] = started
            if not running:
                return  # what waits follows splits that were stopped
            if len(running) < self._config.max_parallel and not self._io.stop.is_set():
                await self._halt_largest(running.values())
            added = asyncio.create_task(self._added.wait())
            try:
                done, _ = await asyncio.wait({*running, added}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                added.cancel()
            self._added.clear()
            for task in [task for task in running if task in done]:
                progress = running.pop(task)
                if task.cancelled() or task.exception() is not None:
                    return  # the group sees to the others
                if progress.halt and not progress.checkpoint.done and not self._io.stop.is_set():
                    progress.halt = False
                    waiting.append(progress)
                    waiting.extend(await self._divide(progress))

    def _startable(self, running: Iterable[SplitProgress]) -> SplitProgress | None:
        """The next split that waits and has a place."""
        moving = [progress.checkpoint.split.is_replay for progress in running]
        free = {True: not any(moving), False: moving.count(False) < self._config.max_parallel}
        planned = any(not p.checkpoint.done for p in self._splits if p.checkpoint.split.is_bounded)
        for progress in self._waiting:
            if progress.checkpoint.split.is_open and self._config.mode != "snapshot" and planned:
                continue  # it follows the snapshot: what it reads is never older than what that has sent
            if free[progress.checkpoint.split.is_replay]:
                self._waiting.remove(progress)
                return progress
        return None

    async def search_after_snapshot(self) -> None:
        """Looks for the rows that no page has, when all of a snapshot has been read; what follows a snapshot does it
        itself. Where work is shared, one process sends such rows to the dead letters, and all stop at them."""
        progress = next((p for p in self._splits if p.checkpoint.split.id == "0"), None)
        if progress is None and self._config.on_bad_record == "fail":
            progress = next((p for p in self._splits if not p.checkpoint.split.is_replay), None)
        read = all(p.checkpoint.done for p in self._splits)
        if self._config.mode == "snapshot" and read and progress is not None:
            progress.halt = False  # it may have come to its end before it was divided
            await self._run_split(progress, over=True)

    async def _run_split(self, progress: SplitProgress, *, over: bool = False) -> None:
        """Runs a split; with `over` no more than the search at its end."""
        if self._io.stop.is_set():
            return
        reader: PageReader | None = None
        try:
            watch = await self._watch(progress, over)
            if over and watch is None:
                return
            if not self._retrying:
                reader = await self._reader(progress, over)
                await run_split(self._io, reader, progress, watch)
                return
            async for attempt in self._attempts():
                with attempt:
                    reader = reader or await self._reader(progress, over)
                    await run_split(self._io, reader, progress, watch)
        finally:
            if reader is not None:
                await reader.close()

    async def _reader(self, progress: SplitProgress, over: bool) -> PageReader:
        split = progress.checkpoint.split
        if over:
            return NoRows(self._dataset.schema, split)
        return await self._source.reader(self._config, self._dataset, split)

    async def _watch(self, progress: SplitProgress, over: bool) -> NullKeyWatch | None:
        """The watch of a split that ends after all others; None where the source's keys cannot be NULL."""
        last = over or (progress.checkpoint.split.is_open and self._config.mode != "snapshot")
        if not last or not isinstance(self._source, NullKeySource):
            return None
        if not await self._source.null_columns(self._config):
            return None
        return NullKeyWatch(self._source, self._config, ends=not self._io.follow)

    async def _halt_largest(self, running: Iterable[SplitProgress]) -> None:
        """Halts the split with the most rows to come, if they are worth a place of their own."""
        largest, most = None, DIVIDE_PAGES * self._config.page_size
        for progress in running:
            split = progress.checkpoint.split
            split_id = split.id
            follows = split.is_open and self._config.mode != "snapshot"
            if split_id in self._whole or progress.halt or split.is_replay or follows:
                continue
            with ignored_transient(self._config.name):
                rows = await self._source.remaining(self._config, self._dataset, progress.checkpoint)
                if rows is None or rows <= most:
                    self._whole.add(split_id)  # it only gets smaller
                else:
                    largest, most = progress, rows
        if largest is not None:
            largest.halt = True

    async def _divide(self, progress: SplitProgress) -> Sequence[SplitProgress]:
        """Gives the second half of what a drained split has to come to a new split; both are committed at once."""
        checkpoint = progress.checkpoint
        self._whole.add(checkpoint.split.id)
        middle = None
        with ignored_transient(self._config.name):
            middle = await self._source.divide(self._config, self._dataset, checkpoint)
        if middle is None:
            return ()
        ids = {int(p.checkpoint.split.id) for p in self._splits if not p.checkpoint.split.is_replay}
        first = replace(checkpoint, split=replace(checkpoint.split, upper=middle))
        second = Checkpoint(Split(str(max(ids) + 1), middle, checkpoint.split.upper))
        await self._io.commits.save_also([first, second])
        self._whole.discard(checkpoint.split.id)
        progress.checkpoint = first
        added = SplitProgress(second)
        self._splits.append(added)
        log.debug("split divided", stream=self._config.name, split=first.split.id, added=second.split.id)
        return (added,)


@contextlib.contextmanager
def ignored_transient(stream: str) -> Iterator[None]:
    """For estimates: one that cannot be had just now is not worth a retry."""
    try:
        yield
    except TransientError as error:
        log.debug("estimate not to be had", stream=stream, error=str(error))
