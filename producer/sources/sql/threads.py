"""Owns how blocking drivers are run: in a thread, under a deadline, and stopped when the caller is cancelled."""

from __future__ import annotations

import asyncio
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
    it uses is seldom left in the middle of a query. `stop` may block for a round trip, so it has a thread too: one of
    the loop's, because all of `executor` may hang in such work.
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
                stopping = loop.run_in_executor(None, stop)
                stopping.add_done_callback(lambda future: future.cancelled() or future.exception())
            await asyncio.wait([running], timeout=STOP_GRACE_S)
        raise
