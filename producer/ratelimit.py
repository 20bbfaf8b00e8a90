"""Owns the pace of requests to one account: spacing, waits that the other side orders, and an adaptive delay.

One `RateLimiter` an account (or an API key), shared by everything that asks with it. The delay between two requests
doubles with every ordered wait, up to ``max_delay_s``, and shrinks to nine tenths with every answer, down to
``min_delay_s``; an ordered wait itself is kept to the second. All waiting is cancellable and can be bounded, so that a
reader can hand over what it has and look for a stop signal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

BACKOFF_FLOOR_S = 0.05  #: what a delay of nothing is doubled from
_FULL_RATE = 100


class TokenBucket(Protocol):
    """A limit that several processes share, such as one kept in Redis."""

    async def acquire(self, n: int) -> float:
        """Takes `n` tokens and returns 0.0, or takes none and returns the seconds until asking again is worth it.

        Has its own deadline; raises StoreUnavailableError when the bucket cannot be asked.
        """
        ...


class RateLimiter:
    """Gives turns to requests of one account.

    ``on_wait`` is told the seconds of every wait when it is over; ``clock`` gives seconds that only rise. After a
    pause `burst` requests may follow one another at once. With ``adaptive=False`` the delay stays at ``min_delay_s``;
    ordered waits are kept all the same. An ordered wait counts for one kind of request only (its method's name, say),
    while the pace is that of all together.
    """

    def __init__(
        self,
        *,
        min_delay_s: float = 1.0,
        max_delay_s: float = 30.0,
        burst: int = 1,
        adaptive: bool = True,
        bucket: TokenBucket | None = None,
        on_wait: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if not 0 <= min_delay_s <= max_delay_s or burst < 1:
            raise ValueError("0 <= min_delay_s <= max_delay_s and burst >= 1 are needed")
        self._min_delay_s = min_delay_s
        self._max_delay_s = max_delay_s
        self._burst = burst
        self._adaptive = adaptive
        self._bucket = bucket
        self._on_wait = on_wait
        self._clock = clock
        self._sleep = sleep
        self._delay_s = min_delay_s
        self._next_at = clock()
        self._ordered_until: dict[str, float] = {}
        self.ordered_waits = 0  #: how often the other side has ordered a wait

    @property
    def delay_s(self) -> float:
        """Seconds between two requests as of now."""
        return self._delay_s

    @property
    def remaining(self) -> int:
        """How much of the full rate is left, in percent: 100 undisturbed, 0 while an ordered wait runs."""
        if any(self._clock() < until for until in self._ordered_until.values()):
            return 0
        floor = max(self._min_delay_s, BACKOFF_FLOOR_S)
        return max(1, round(_FULL_RATE * floor / max(self._delay_s, floor)))

    async def acquire(self, kind: str = "", *, at_most_s: float | None = None) -> float:
        """Waits for a turn, at most `at_most_s` seconds; 0.0 when it was given, else the seconds that are left."""
        give_up_at = None if at_most_s is None else self._clock() + at_most_s
        while (left_s := await self._try_turn(kind)) > 0:
            nap_s = left_s if give_up_at is None else min(left_s, give_up_at - self._clock())
            if nap_s <= 0:
                return left_s
            started = self._clock()
            try:
                await self._sleep(nap_s)
            finally:
                self._on_wait(self._clock() - started)
        return 0.0

    async def _try_turn(self, kind: str) -> float:
        now = self._clock()
        # the generic cell rate algorithm: a turn may be early by what a pause has saved, up to burst - 1 delays
        early_s = (self._burst - 1) * self._delay_s
        if (free_at := max(self._next_at - early_s, self._ordered_until.get(kind, now))) > now:
            return free_at - now
        self._next_at = (
            max(now, self._next_at) + self._delay_s
        )  # taken before the bucket is asked, so that nobody gets in between
        if self._bucket is None or (wait_s := await self._bucket.acquire(1)) <= 0:
            return 0.0
        self._next_at = max(self._next_at, self._clock() + wait_s + early_s)
        self._slow_down()
        return wait_s

    def succeeded(self) -> None:
        """An answer came: the delay shrinks towards the least."""
        if self._adaptive:
            shorter = self._delay_s * 0.9
            self._delay_s = self._min_delay_s if shorter < BACKOFF_FLOOR_S else max(self._min_delay_s, shorter)

    def ordered_to_wait(self, seconds: float, kind: str = "") -> None:
        """The other side ordered a wait (FLOOD_WAIT_X, ``Retry-After``): no `kind` of request before it is over.

        Several requests that were on their way together and meet the same wait slow the pace down once.
        """
        now = self._clock()
        until = self._ordered_until.get(kind, now)
        if now >= until:
            self.ordered_waits += 1
            self._slow_down()
        self._ordered_until[kind] = max(until, now + seconds)

    def _slow_down(self) -> None:
        if self._adaptive:
            self._delay_s = min(self._max_delay_s, 2 * max(self._delay_s, BACKOFF_FLOOR_S))
