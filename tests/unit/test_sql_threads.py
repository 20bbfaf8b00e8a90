"""Blocking drivers in threads: a cancellation is heard, whenever it comes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from producer.sources.sql.threads import in_thread


class ByHand(concurrent.futures.Executor):
    """Work is done when the test says so."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> concurrent.futures.Future[Any]:
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        return self.future


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_in_the_moment_when_the_work_is_done_is_not_swallowed(turns: int) -> None:
    """The end of the work takes some turns of the loop to reach who waits; the cancellation comes after each."""
    executor = ByHand()
    went_on = False

    async def fetch_two_pages() -> None:
        nonlocal went_on
        await in_thread(executor, lambda: None, deadline_s=60)
        went_on = True
        await asyncio.Event().wait()

    task = asyncio.create_task(fetch_two_pages())
    await asyncio.sleep(0)
    executor.future.set_result(None)
    for _ in range(turns):
        await asyncio.sleep(0)
    heard_late = went_on  # then it is cancelled in what comes next
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    ended = task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert went_on == heard_late


async def test_work_is_stopped_also_when_all_threads_are_in_such_work() -> None:
    stopped = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        task = asyncio.create_task(in_thread(executor, stopped.wait, deadline_s=60, stop=stopped.set))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended = stopped.is_set()
        stopped.set()
    assert ended
