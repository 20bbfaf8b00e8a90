"""Owns how blocking drivers are run: in a thread, under a deadline, and stopped when the caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")

#: How long a driver is given to come back after it was told to stop.
STOP_GRACE_S = 2.0


async def in_thread(
    executor: Executor, work: Callable[[], T], *, deadline_s: float, stop: Callable[[], None] | None = None
) -> T:
    """`work()` in a thread of `executor`; TimeoutError after `deadline_s` seconds.

    On a timeout or a cancellation `stop` is called and `work` is waited for, for a short while, so that the connection
    it uses is seldom left in the middle of a query. `stop` may block, for as long as a server is silent, so it has a
    thread of its own: all of `executor` may hang in such work, and the loop's threads are waited for at its end.
    """
    loop = asyncio.get_running_loop()
    running = loop.run_in_executor(executor, work)
    running.add_done_callback(lambda future: future.cancelled() or future.exception())  # never "not retrieved"
    try:
        # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes in the moment when the work is done,
        # and whoever cancelled waits for ever.
        async with asyncio.timeout(deadline_s):
            return await asyncio.shield(running)
    except (TimeoutError, asyncio.CancelledError):
        if not running.done():
            if stop is not None:
                threading.Thread(target=_quietly, args=(stop,), name="stop", daemon=True).start()
            await asyncio.wait([running], timeout=STOP_GRACE_S)
        raise


def _quietly(stop: Callable[[], None]) -> None:
    """What cannot be stopped is given up; what it was told meanwhile is of no use to anybody."""
    with contextlib.suppress(Exception):
        stop()
