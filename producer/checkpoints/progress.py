"""Owns the short answers that people and scripts want of a stream's checkpoints: an id, a count."""

from __future__ import annotations

from collections.abc import Iterable

from producer.model import Checkpoint, KeyPosition, OffsetPosition, Position


def last_id(checkpoints: Iterable[Checkpoint]) -> int:
    """The id up to which every row has been acknowledged (for OFFSET: how many rows); 0 for none, or another key.

    Splits lie side by side and end at different times: what counts is the one that is furthest behind.
    """
    behind: list[int] = []
    done: list[int] = []
    for checkpoint in checkpoints:
        if checkpoint.split.is_replay:  # it runs behind by intention
            continue
        if checkpoint.done:
            done.append(_id(checkpoint.position or checkpoint.split.upper))
        else:
            behind.append(_id(checkpoint.position or checkpoint.split.lower))
    return min(behind) if behind else max(done, default=0)


def total_rows(checkpoints: Iterable[Checkpoint]) -> int:
    """How many rows all splits together have had acknowledged."""
    return sum(checkpoint.rows for checkpoint in checkpoints)


def _id(position: Position | None) -> int:
    match position:
        case OffsetPosition(rows):
            return rows
        case KeyPosition((int(value),)) if -(2**63) <= value < 2**63:
            return value
    return 0
