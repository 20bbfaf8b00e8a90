"""A dump's progress and its statistics, as callers see them while it runs and afterwards."""

from __future__ import annotations

import datetime as dt
import math
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from producer.dump.config import DumpConfig


class DumpState(StrEnum):
    """Where a dump is. COMPLETED is another name of COMPLETE."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETE = COMPLETED = "complete"
    FAILED = "failed"
    STOPPED = "stopped"


def utc_now() -> dt.datetime:
    """The time in UTC, without zone and in whole seconds: the form of the state file."""
    return dt.datetime.now(dt.UTC).replace(tzinfo=None, microsecond=0)


@dataclass(slots=True)
class DumpProgress:
    """Counts of one dump. `dumped_rows` counts from the dump's beginning, over all its runs; times are UTC.

    `current_offset` is how many rows have been passed (OFFSET), or the id up to which all is written (ID_RANGE).
    Rates and times are those of this run, pauses left out. `total_rows` is None while it is not known: ID_RANGE counts
    no rows of an IPTVPortal table, and tells its progress by the part of the ids that is done.
    """

    dumped_rows: int = 0
    total_rows: int | None = None
    current_offset: int = 0
    chunks_completed: int = 0
    started_at: dt.datetime | None = None
    last_updated_at: dt.datetime | None = None
    completed_at: dt.datetime | None = None
    rows_before: int = field(default=0, repr=False)  # of earlier runs
    part_done: float = field(default=0.0, repr=False)  # of the ids, 0 to 1
    part_before: float = field(default=0.0, repr=False)  # by earlier runs
    _running_since_s: float | None = field(default=None, repr=False)  # monotonic
    _elapsed_s: float = field(default=0.0, repr=False)

    def percent_complete(self) -> float:
        """0.0 while nothing is known."""
        if self.completed_at is not None:
            return 100.0
        if self.total_rows is None:
            return 100.0 * self.part_done
        return min(100.0, 100.0 * self.dumped_rows / self.total_rows) if self.total_rows else 100.0

    def rows_per_second(self) -> float:
        elapsed_s = self.elapsed_seconds()
        return (self.dumped_rows - self.rows_before) / elapsed_s if elapsed_s > 0 else 0.0

    def elapsed_seconds(self) -> float:
        running_s = 0.0 if self._running_since_s is None else time.monotonic() - self._running_since_s
        return self._elapsed_s + running_s

    def eta_seconds(self) -> float:
        """Infinite while nothing is known."""
        if self.completed_at is not None:
            return 0.0
        if self.total_rows is None:
            left, done = 1.0 - self.part_done, self.part_done - self.part_before
        else:
            left, done = max(0, self.total_rows - self.dumped_rows), self.dumped_rows - self.rows_before
        return 0.0 if left <= 0 else left / done * self.elapsed_seconds() if done > 0 else math.inf

    def start_clock(self) -> None:
        if self._running_since_s is None:
            self._running_since_s = time.monotonic()

    def stop_clock(self) -> None:
        self._elapsed_s, self._running_since_s = self.elapsed_seconds(), None


@dataclass(slots=True)
class DumpStats:
    """One dump as a whole; `error` is what it failed with, `retries` how many chunks were asked for again."""

    config: DumpConfig
    progress: DumpProgress = field(default_factory=DumpProgress)
    state: DumpState = DumpState.PENDING
    files: tuple[Path, ...] = ()
    bytes_written: int = 0
    retries: int = 0
    error: str | None = None
