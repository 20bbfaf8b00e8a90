"""Owns the search for the bad rows of a page, given a function that fails because of them: pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from producer.errors import EncodeError, RecordTooLargeError

T = TypeVar("T")
RowError = EncodeError | RecordTooLargeError


def salvage(rows: int, attempt: Callable[[int, int], T]) -> tuple[list[T], list[tuple[int, RowError]]]:
    """What `attempt(start, stop)` made of all rows but the bad ones, and these with their errors; both in order.

    An attempt that fails is made again without the row that its error names (``row``, counted from `start`); where
    none is named, by halves. A row is bad when it fails alone: with k bad ones in n rows that is work for about
    2n rows and 3k calls where attempts find their first bad row first, and n log n at the worst.
    """
    good: list[T] = []
    bad: list[tuple[int, RowError]] = []
    todo = [(0, rows)]
    while todo:
        start, stop = todo.pop()
        try:
            good.append(attempt(start, stop))
        except (EncodeError, RecordTooLargeError) as error:
            if stop - start <= 1:
                if rows == 0:
                    raise
                bad.append((start, error))
                continue
            row = error.row
            if row is None or not 0 <= row < stop - start:
                middle = (start + stop) // 2
                parts = [(start, middle), (middle, stop)]
            else:
                parts = [(start, start + row), (start + row, start + row + 1), (start + row + 1, stop)]
            todo.extend(part for part in reversed(parts) if part[0] < part[1])
    return good, bad


def other_rows(rows: int, bad: Sequence[int]) -> npt.NDArray[np.int64]:
    """The numbers of the rows that are not bad, of so many rows in all."""
    mask = np.ones(rows, dtype=bool)
    mask[list(bad)] = False
    return np.flatnonzero(mask)
