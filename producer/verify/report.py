"""The result of a verification: of all rows and records, and of each range of the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from producer.model import Position, position_to_json
from producer.verify.compare import Comparison

NAMED = 10  #: how many keys of a kind are named


@dataclass(frozen=True, slots=True)
class Range:
    """What was found of the rows of one split after `after`, up to and with `through` (None: no bound).

    A `split` of '' stands for rows that belong to no split, which nothing sends; 'replays' for those that only replays
    have read.
    """

    split: str
    after: Position | None
    through: Position | None
    rows: int
    missing: int
    differing: int
    source_checksum: int
    topic_checksum: int

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.differing) and self.source_checksum == self.topic_checksum

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "after": position_to_json(self.after),
            "through": position_to_json(self.through),
            "agrees": self.agrees,
            "source_rows": self.rows,
            "missing": self.missing,
            "differing": self.differing,
            "source_checksum": f"{self.source_checksum:016x}",
            "topic_checksum": f"{self.topic_checksum:016x}",
        }


@dataclass(slots=True)
class Verified:
    """What was found, of all and by ranges of the source up to the checkpoint.

    The names are those of at most `NAMED` keys of a kind, such as ``id=5``. `letters_without_key` counts the dead
    letters that do not tell their row's key; `unscannable` says why the source was read by its page readers.
    """

    stream: str
    topic: str
    comparison: Comparison
    ranges: list[Range]
    seconds: float = 0.0
    letters_without_key: int = 0
    unscannable: str = ""
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return self.comparison.agrees

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; the checksums are salted anew in each run."""
        found = self.comparison
        names = (
            *("source_rows", "topic_records", "topic_keys", "duplicates", "updates", "deleted", "pending"),
            *("dead_lettered", "missing", "unexpected", "differing", "null_keys"),
        )
        return {
            "stream": self.stream,
            "topic": self.topic,
            "agrees": found.agrees,
            "unscannable": self.unscannable or None,
            **{name: getattr(found, name) for name in names},
            "source_rows": found.source_rows - found.source_repeats,
            "source_checksum": f"{found.source_checksum:016x}",
            "topic_checksum": f"{found.topic_checksum:016x}",
            "missing_keys": self.missing,
            "unexpected_keys": self.unexpected,
            "differing_keys": self.differing,
            "ranges": [part.to_json() for part in self.ranges],
            "seconds": round(self.seconds, 3),
        }
