"""Counts the delivered messages and reports them."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from typing import Any

#: Called with (messages so far, messages in all, messages a second) after each batch; may be a coroutine function.
ProgressCallback = Callable[[int, int | None, float], Any]


class Progress:
    """The progress of one call."""

    def __init__(self, callback: ProgressCallback | None, shown: bool) -> None:
        self._callback = callback
        self._shown = shown
        self._started = time.monotonic()
        self.current = 0

    async def report(self, rows: int, total: int | None) -> None:
        """Adds `rows` messages and reports the sum."""
        self.current += rows
        rate = self.current / max(time.monotonic() - self._started, 1e-9)
        if self._shown:
            of = f" of {total:,}" if total is not None else ""
            sys.stderr.write(f"{self.current:,}{of} messages, {rate:,.0f} a second\n")
        if self._callback is not None:
            result = self._callback(self.current, total, rate)
            if inspect.isawaitable(result):
                await result
