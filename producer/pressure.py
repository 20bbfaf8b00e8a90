"""Owns how hard a source is pressed: less after errors and slow answers, by halves; more after good ones, step by step.

The factor is 1 while all is well, and then nothing is any different. It scales the rows of a page and how many pages
are fetched at a time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from producer.errors import RateLimitedError, TransientError

#: A page that takes longer than this is too much at a time, one within a quarter of it is not.
SLOW_S = 4.0
LEAST = 1 / 64
STEP = 1 / 16


@dataclass(slots=True)
class Pressure:
    """One stream's. `told` hears the factor when it has changed."""

    places: int = 1
    told: Callable[[float], None] = lambda factor: None
    factor: float = 1.0
    _busy: int = 0
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def allowed(self) -> int:
        """Fetches at a time."""
        return max(1, math.ceil(self.places * self.factor))

    def rows(self, wanted: int) -> int:
        return max(1, int(wanted * self.factor))

    def answered(self, seconds: float) -> None:
        """A page was fetched in so many seconds."""
        if seconds > SLOW_S:
            self._change(self.factor / 2)
        elif seconds <= SLOW_S / 4 and self.factor < 1:
            self._change(self.factor + STEP)

    def failed(self, error: TransientError) -> None:
        """A fetch was refused or broke off. A rate limit has its own way to slow things down."""
        if not isinstance(error, RateLimitedError):
            self._change(self.factor / 2)

    def _change(self, factor: float) -> None:
        factor = min(1.0, max(LEAST, factor))
        if factor != self.factor:
            self.factor = factor
            self.told(factor)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Around a fetch: waits while `allowed` others are under way."""
        while self._busy >= self.allowed and self.factor < 1:
            self._freed.clear()
            await self._freed.wait()
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._freed.set()
