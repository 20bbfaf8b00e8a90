"""Owns the arithmetic of what is in flight: the window of one split's pages, and the byte budget of all.

`Window` is the only origin of a commit: it gives the longest contiguous acknowledged prefix of the submitted pages
and nothing else. It is pure: no clock, no I/O, no event loop. `ByteBudget` bounds memory over all splits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from producer.model import Position


@dataclass(frozen=True, slots=True)
class Prefix:
    """What may be committed: everything up to and with page `sequence` is acknowledged.

    `rows` are the rows of all pages from the window's beginning up to there; `last` is the end of the split.
    """

    sequence: int
    position: Position | None
    rows: int
    last: bool
    detail: Mapping[str, Any] | None


@dataclass(slots=True)
class _Entry:
    prefix: Prefix
    acknowledged: bool = False


@dataclass(slots=True)
class Window:
    """Pages of one split between submission and commit, in order.

    `capacity` bounds the pages that are submitted and not yet *committed*, so that what a crash makes a restart
    send again is never more than the window: acknowledged pages keep their place until `committed` is told.
    """

    capacity: int
    _entries: deque[_Entry] = field(default_factory=deque)
    _next: int = 0
    _rows: int = 0

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ValueError("a window holds at least one page")

    @property
    def full(self) -> bool:
        return len(self._entries) >= self.capacity

    @property
    def empty(self) -> bool:
        return not self._entries

    @property
    def acknowledged(self) -> bool:
        """All submitted pages are acknowledged."""
        return all(entry.acknowledged for entry in self._entries)

    def submit(
        self, position: Position | None, rows: int, *, last: bool = False, detail: Mapping[str, Any] | None = None
    ) -> int:
        """Enters the next page; its sequence number, counted from 0."""
        if self.full:
            raise ValueError("the window is full")
        sequence = self._next
        self._next += 1
        self._rows += rows
        self._entries.append(_Entry(Prefix(sequence, position, self._rows, last, detail)))
        return sequence

    def acknowledge(self, sequence: int) -> None:
        """Marks one page as acknowledged, in any order. ValueError for a page that is not in the window."""
        index = sequence - self._entries[0].prefix.sequence if self._entries else -1
        if not 0 <= index < len(self._entries):
            raise ValueError(f"page {sequence} is not in the window")
        self._entries[index].acknowledged = True

    def committable(self) -> Prefix | None:
        """The longest contiguous acknowledged prefix, or None where the oldest page is still unacknowledged."""
        found = None
        for entry in self._entries:
            if not entry.acknowledged:
                break
            found = entry.prefix
        return found

    def committed(self, prefix: Prefix) -> None:
        """Frees the places of a prefix whose checkpoint is durable now."""
        if not self._entries or prefix.sequence < self._entries[0].prefix.sequence:
            raise ValueError(f"page {prefix.sequence} is not in the window")
        while self._entries and self._entries[0].prefix.sequence <= prefix.sequence:
            if not self._entries[0].acknowledged:
                raise ValueError(f"page {self._entries[0].prefix.sequence} is not acknowledged")
            self._entries.popleft()


class ByteBudget:
    """A first-come, first-served bound on bytes held by pages between their fetch and their acknowledgement.

    What is larger than the whole budget is let in alone, so that a wide page slows things down but never stops
    them.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 1:
            raise ValueError("a byte budget is positive")
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    def _fits(self, amount: int) -> bool:
        return self.used_bytes == 0 or self.used_bytes + amount <= self.limit_bytes

    async def acquire(self, amount: int) -> Reservation:
        """Waits (in order) until `amount` bytes are free, and takes them."""
        if self._waiters or not self._fits(amount):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (amount, future)
            self._waiters.append(waiter)
            try:
                await future  # the bytes are taken for us by _wake, so that nobody gets in between
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._give(amount)
                else:
                    self._waiters.remove(waiter)
                    self._wake()
                raise
        else:
            self.used_bytes += amount
        return Reservation(self, amount)

    def _give(self, amount: int) -> None:
        self.used_bytes -= amount
        self._wake()

    def _wake(self) -> None:
        while self._waiters and self._fits(self._waiters[0][0]):
            amount, future = self._waiters.popleft()
            if not future.done():
                self.used_bytes += amount
                future.set_result(None)


class Reservation:
    """Bytes taken from a budget: `resize` when the true size is known, `release` (idempotent) at the end."""

    __slots__ = ("_budget", "bytes")

    def __init__(self, budget: ByteBudget, amount: int) -> None:
        self._budget = budget
        self.bytes = amount

    def resize(self, amount: int) -> None:
        """Changes the amount at once, above the limit if need be: the memory is already held."""
        change, self.bytes = amount - self.bytes, amount
        self._budget._give(-change)

    def release(self) -> None:
        amount, self.bytes = self.bytes, 0
        if amount:
            self._budget._give(amount)
