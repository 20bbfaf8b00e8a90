"""Owns what people and the HTTP side see of a stream."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from producer.commits import SplitProgress
from producer.model import Checkpoint, split_name

StateName = Literal["starting", "running", "paused", "complete", "failed", "stopped"]


@dataclass(slots=True)
class StreamStatus:
    """Of one stream; live, changed in place."""

    name: str
    source: str
    topic: str
    state: StateName = "starting"
    rows_read: int = 0
    rows_acked: int = 0
    bytes_acked: int = 0
    dead_letters: int = 0
    rows_total_estimate: int | None = None
    rows_remaining: int | None = None  # of the whole stream, also where others run parts of it
    error: str | None = None
    hint: str | None = None
    retrying: str | None = None
    table_replacements: int = 0  # in this run
    table_replaced: str | None = None  # what was found last
    stands_by: bool = False  # another process runs it, and this one waits to take it over
    started_at: float | None = None  # seconds since 1970
    finished_at: float | None = None
    began_s: float | None = None  # of the clock that only rises, whatever is done to the other one
    ran_s: float | None = None  # when it has finished
    last_commit_at: float | None = None
    split_lists: dict[str, list[SplitProgress]] = field(default_factory=dict)  # by unit; "" for a whole stream
    elsewhere: Sequence[tuple[str, Checkpoint, str | None]] = ()  # name, last commit and owner: other processes' splits
    table: str | None = None  # with its schema, as the source has it, once that is known
    shared: bool = False  # the work of several processes: what is in `split_lists` is owned, moving or not

    @property
    def seconds(self) -> float:
        """For how long it has run, or ran; 0 where it has not begun."""
        if self.began_s is None:
            return 0.0
        return time.monotonic() - self.began_s if self.ran_s is None else self.ran_s

    @property
    def splits(self) -> list[SplitProgress]:
        """Those that this process runs."""
        return [progress for splits in self.split_lists.values() for progress in splits]

    @property
    def named_splits(self) -> list[tuple[str, SplitProgress]]:
        """The same, by the names that they have in the whole stream."""
        return [
            (split_name(unit, progress.checkpoint.split.id), progress)
            for unit, splits in self.split_lists.items()
            for progress in splits
        ]

    @property
    def rows_committed(self) -> int:
        """Rows of these splits up to the checkpoint, of all runs; `rows_read` and `rows_acked` are of this one."""
        return sum(p.checkpoint.rows for p in self.splits if not p.checkpoint.split.is_replay)


def split_states(splits: Sequence[SplitProgress]) -> Mapping[str, int]:
    """How many splits are waiting, running and done."""
    counts = {"waiting": 0, "running": 0, "done": 0}
    for progress in splits:
        counts["done" if progress.checkpoint.done else "running" if progress.active else "waiting"] += 1
    return counts
