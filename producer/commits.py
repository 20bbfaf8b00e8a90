"""Owns what is committed of a stream: how far each split is known to be, and the one task that saves it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from producer.errors import TransientError
from producer.inflight import Prefix, Window
from producer.model import Checkpoint
from producer.retry import attempts
from producer.tracing import OpenTraces

COMMIT_INTERVAL_S = 0.05
GIVE_UP_AFTER_S = 600.0


@dataclass(slots=True)
class SplitProgress:
    """What is known of one split while it runs: the committed checkpoint, and counts for people."""

    checkpoint: Checkpoint
    rows_read: int = 0
    active: bool = False
    halt: bool = False  # end the attempt early, drained: the split is about to be divided
    unacknowledged: dict[int, tuple[float, int]] = field(default_factory=dict)  # page: (time.monotonic() sent, rows)
    caught_up_at: float | None = None  # time.monotonic() before the last fetch that came to the source's end
    traces: OpenTraces = field(default_factory=OpenTraces)


#: Saves checkpoints, all or none.
Save = Callable[[Sequence[Checkpoint]], Awaitable[None]]


class Committer:
    """The one task that commits: gathers what the splits that it knows of have had acknowledged, and saves it.

    Splits are committed together, at most every `interval_s` seconds unless a window is full or the stream drains,
    so that many splits cost one write. With `whole`, as a transaction needs it, nothing is submitted while it
    commits, and a window is committed as a whole.
    """

    def __init__(
        self,
        save: Save,
        *,
        committed: Callable[[Sequence[Checkpoint], float], None],
        retried: Callable[[TransientError, float], None] = lambda error, wait_s: None,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        interval_s: float = COMMIT_INTERVAL_S,
        whole: bool = False,
    ) -> None:
        self._save = save
        self._told = committed
        self._retried = retried
        self._give_up_after_s = give_up_after_s
        self._interval_s = interval_s
        self._whole = whole
        self._dropped = False
        self._windows: dict[str, tuple[Window, Checkpoint, SplitProgress]] = {}
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._room = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._submitting = asyncio.Lock()

    async def enter(self, window: Window, progress: SplitProgress) -> None:
        """Begins an attempt of a split: its window is empty and starts at the committed checkpoint.

        Waits for a commit that is under way: it may move the very checkpoint that the attempt starts from.
        """
        async with self._writing:
            self._windows[progress.checkpoint.split.id] = (window, progress.checkpoint, progress)

    def leave(self, split_id: str) -> None:
        """Ends an attempt: what its window still holds is dropped and never committed."""
        left = self._windows.pop(split_id, None)
        self._dropped = self._dropped or (self._whole and left is not None and not left[0].empty)

    def submitting(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Around the submission of a page."""
        return self._submitting if self._whole else contextlib.nullcontext()

    def acknowledged(self) -> None:
        """Some page of some window has been acknowledged."""
        self._news.set()

    async def room(self, window: Window) -> None:
        """Waits until the window has a place."""
        if window.full:
            self._hurry.set()
            async with self._room:
                await self._room.wait_for(lambda: not window.full)

    async def drained(self, window: Window) -> None:
        """Waits until the window is empty: everything submitted is acknowledged and committed."""
        self._hurry.set()
        async with self._room:
            await self._room.wait_for(lambda: window.empty)

    async def run(self) -> None:
        """Commits until cancelled. A store that is away is asked again until `give_up_after_s` have passed; its
        error then ends this, and with it the stream: the splits wait meanwhile, with their windows full."""
        while True:
            await self._news.wait()
            if not self._hurry.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._hurry.wait()
            self._hurry.clear()
            self._news.clear()
            await self.save_also(())

    async def save_also(self, changed: Sequence[Checkpoint]) -> None:
        """Commits what there is, and `changed` with it: checkpoints of splits that are not moving."""
        async with self.submitting():
            while self._whole and not self._may_end():  # for ever, where the attempt has failed: it is cancelled soon
                await self._news.wait()
                self._news.clear()
            async for attempt in attempts(give_up_after_s=self._give_up_after_s, before_sleep=self._retried):
                with attempt:
                    await self.commit(changed)

    def _may_end(self) -> bool:
        """Whether the transaction may: all that is in it is acknowledged, and stands in a window."""
        return not self._dropped and all(window.acknowledged for window, *_ in self._windows.values())

    async def commit(self, also: Sequence[Checkpoint] = ()) -> None:
        """Writes the contiguous acknowledged prefixes of all windows, if there are any."""
        async with self._writing:
            await self._commit(also)

    async def _commit(self, also: Sequence[Checkpoint]) -> None:
        if self._dropped:
            return
        found: list[tuple[Window, Prefix, SplitProgress, Checkpoint]] = []
        for window, base, progress in self._windows.values():
            prefix = window.committable()
            if prefix is not None:
                position = prefix.position if prefix.position is not None else progress.checkpoint.position
                detail = prefix.detail if prefix.detail is not None else progress.checkpoint.detail
                checkpoint = replace(
                    base, position=position, rows=base.rows + prefix.rows, done=prefix.last, detail=detail
                )
                found.append((window, prefix, progress, checkpoint))
        changed = [*(checkpoint for *_, checkpoint in found), *also]
        if not changed:
            return
        started = time.perf_counter()
        try:
            await self._save(changed)
        except Exception as error:
            for _, prefix, progress, _ in found:
                progress.traces.commit(prefix.sequence, time.perf_counter() - started, error)
            raise
        seconds = time.perf_counter() - started
        for window, prefix, progress, checkpoint in found:
            window.committed(prefix)
            progress.checkpoint = checkpoint
            progress.traces.commit(prefix.sequence, seconds)
        self._told(changed, seconds)
        async with self._room:
            self._room.notify_all()
        if any(window.full for window, *_ in self._windows.values()):
            self._hurry.set()
