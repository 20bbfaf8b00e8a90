"""Owns how a transient failure is answered: backoff with jitter, the other side's wish, and when to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from tenacity import AsyncRetrying, AttemptManager, RetryCallState, retry_if_exception_type, wait_random_exponential

from producer.errors import StandbyError, TransientError

MAX_BACKOFF_S = 30.0

_backoff = wait_random_exponential(multiplier=0.5, max=MAX_BACKOFF_S)


def wait_s(state: RetryCallState) -> float:
    """Seconds before the next attempt: `retry_after_s` where the other side named it, else 0.5, 1, 2 ... 30 s
    with full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), at least 0.1."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TransientError) and error.retry_after_s is not None:
        return error.retry_after_s
    return max(0.1, _backoff(state))


async def attempts(
    *,
    give_up_after_s: float,
    before_sleep: Callable[[TransientError, float], None],
    progressed: Callable[[], float] = lambda: 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = asyncio.sleep,
) -> AsyncIterator[AttemptManager]:
    """Attempts of a piece of work that is repeated after every TransientError.

    `progressed` gives the `clock` time of the last progress: the backoff starts anew after it, and the last error
    is raised when there was none for `give_up_after_s` seconds (standing by has no end). ``with attempt:`` around
    the work, as in tenacity.
    """
    start = clock()

    def since_progress_s() -> float:
        return clock() - max(start, progressed())

    seen = progressed()

    def wait(state: RetryCallState) -> float:
        nonlocal seen
        if progressed() != seen:
            seen = progressed()
            state.attempt_number = 1
        return wait_s(state)

    def announce(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TransientError):
            before_sleep(error, state.next_action.sleep if state.next_action else 0.0)

    def give_up(state: RetryCallState) -> bool:
        nonlocal start
        if state.outcome and isinstance(state.outcome.exception(), StandbyError):
            start = clock()
        return since_progress_s() > give_up_after_s

    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(TransientError),
        wait=wait,
        stop=give_up,
        before_sleep=announce,
        sleep=sleep,  # type: ignore[arg-type]  # tenacity's type leaves plain awaitable functions out
        reraise=True,
    ):
        yield attempt
