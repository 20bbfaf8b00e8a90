"""Owns the arithmetic of traversals: how a key space is cut into splits and where a fetch begins and ends. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from producer.model import KeyPosition, KeyScalar, OffsetPosition, Position, Split


def split_count(rows: int | None, page_size: int, max_parallel: int) -> int:
    """How many splits are worth while: one for every two pages, at most `max_parallel`, at least one."""
    if rows is None:
        return max_parallel
    return max(1, min(max_parallel, -(-rows // (2 * page_size))))


def key_splits(boundaries: Sequence[KeyPosition], *, open_end: bool) -> tuple[Split, ...]:
    """Disjoint splits that cover all keys up to the last boundary (or, with `open_end`, all keys).

    `boundaries` are the inclusive upper ends in ascending order, the last one being the greatest key there is;
    repeated ones are dropped. Without any there are no rows: one split, with nothing in it yet.
    """
    ends: list[KeyPosition] = []
    for boundary in boundaries:
        if not ends or boundary != ends[-1]:
            ends.append(boundary)
    if not ends:
        return (Split("0"),)
    lowers: list[KeyPosition | None] = [None, *ends[:-1]]
    uppers: list[KeyPosition | None] = [*ends[:-1], None if open_end else ends[-1]]
    return tuple(Split(str(i), lower, upper) for i, (lower, upper) in enumerate(zip(lowers, uppers, strict=True)))


def offset_split(rows: int | None) -> Split:
    """The one split of an OFFSET stream: the first `rows` rows, or without an end."""
    return Split("0", None, None if rows is None else OffsetPosition(rows))


def start_of(split: Split, position: Position | None) -> Position | None:
    """The exclusive position from which a fetch reads: the checkpoint's, else the split's lower end."""
    return split.lower if position is None else position


def offset_window(split: Split, position: Position | None, limit: int) -> tuple[int, int]:
    """(rows to skip, rows to read at most) of an OFFSET fetch; nothing is read at or after the split's upper end."""
    start = start_of(split, position)
    skip = 0 if start is None else offset_rows(start)
    if split.upper is None:
        return skip, limit
    return skip, max(0, min(limit, offset_rows(split.upper) - skip))


def offset_rows(position: Position) -> int:
    """The count of an OFFSET position; ValueError for a key position."""
    if not isinstance(position, OffsetPosition):
        raise ValueError("an OFFSET stream has no position by key")
    return position.rows


def key_values(position: Position | None, columns: int) -> tuple[KeyScalar, ...] | None:
    """The values of a key position over `columns` columns (None: open); ValueError for one of another shape."""
    if position is None:
        return None
    if not isinstance(position, KeyPosition):
        raise ValueError("an ID_RANGE stream has no position by count")
    if len(position.values) != columns:
        raise ValueError(f"a position of {len(position.values)} values does not fit a key of {columns}")
    return position.values


def is_last(rows: int, limit: int, position: Position | None, upper: Position | None) -> bool:
    """Whether nothing follows a page of `rows` rows (as of its fetch): it came short, or reached the upper end."""
    return rows < limit or (upper is not None and position == upper)


def interpolate(start: KeyScalar, end: KeyScalar, least: KeyScalar, greatest: KeyScalar, rows: int) -> int | None:
    """About how many of `rows` rows with keys from `least` to `greatest` lie in (start, end], were they spread evenly.

    None for keys that are not integers.
    """
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(least, int) and isinstance(greatest, int)):
        return None
    return rows * max(0, min(end, greatest) - max(start, least)) // max(1, greatest - least)
