"""Which rows of a scan must be on the topic: the ends of the checkpoint's splits, found in the order of the scan.

A scan has all rows in the order of the traversal, so a position divides them where the row with its key stands. No key
is compared with another one here, but for equality. A row that lies in no split at all is one that no run sends: it
must be on the topic too, and is counted in a range of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from producer.model import Checkpoint, KeyPosition, Mark, OffsetPosition, Position, Split
from producer.traversal import offset_rows
from producer.verify.compare import Kind, Places

#: The place of rows of which only the key matters.
KNOWN = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of the source: the `split` from `position` on. `needed`: all of them must be on the topic."""

    split: Split
    position: Position | None
    needed: bool

    @property
    def after(self) -> Position | None:
        return self.position if self.position is not None else self.split.lower

    @property
    def through(self) -> Position | None:
        return self.split.upper


def pieces_of(checkpoint: Checkpoint) -> list[Piece]:
    """What the checkpoint says is on the topic, and the rest of the split."""
    split, position = checkpoint.split, checkpoint.position
    if checkpoint.done and split.upper is not None:
        return [Piece(split, None, True)]
    rest = Piece(split, position, False)
    match position:
        case KeyPosition() | OffsetPosition():
            return [Piece(replace(split, upper=position), None, True), rest]
    return [rest]


class ScanRanges:
    """Numbers the rows of a scan by where they stand between the ends of pieces: rows between two ends have one place,
    and another one where a replay has read them. When the scan is over, `places` says what each place means.

    Replays are in no order with the other pieces. They matter only for rows that the others leave out: those before
    the beginning of a stream that was started at the latest row.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = [piece for piece in pieces if not piece.split.is_replay]
        from_start = any(piece.after is None for piece in self.pieces)
        done = [piece.split for piece in pieces if piece.split.is_replay and piece.needed]
        self.replays = [] if from_start else done
        ends = (end for piece in self.pieces for end in (piece.after, piece.through) if end is not None)
        self._ends = list(dict.fromkeys(ends))
        self._number = {end: number for number, end in enumerate(self._ends)}
        self.begin()

    @property
    def positions(self) -> list[KeyPosition]:
        """The ends that a scan has to look for. The others are counts of rows."""
        return [end for end in self._ends if isinstance(end, KeyPosition)]

    def begin(self) -> None:
        """Forgets where the ends are: the scan starts again."""
        self._rows = 0
        self._segments = 1
        self._exact: dict[int, int] = {}  # by the number of an end, the first segment after it
        self._nearest: dict[int, int] = {}

    def number(self, count: int, marks: Sequence[Mark]) -> npt.NDArray[np.uint32]:
        """The places of the next `count` rows, as far as replays have not read them."""
        segments = np.full(count, self._segments - 1, dtype=np.uint32)
        for mark in (*self._counted(count), *marks):
            segments[mark.row + 1 :] = self._segments
            (self._exact if mark.exact else self._nearest)[mark.position] = self._segments
            self._segments += 1
        self._rows += count
        return 1 + 2 * segments

    def _counted(self, count: int) -> list[Mark]:
        """Where the next `count` rows meet the ends that are counts of rows."""
        counts = [(offset_rows(end), i) for i, end in enumerate(self._ends) if isinstance(end, OffsetPosition)]
        inside = sorted((rows - self._rows, i) for rows, i in counts if self._rows <= rows < self._rows + count)
        return [Mark(rows - 1, i, True) for rows, i in inside]

    def places(self) -> Places:
        """What the places mean. Two ranges follow those of the pieces: rows of no piece, and rows of replays."""
        of_piece = np.full(self._segments, -1, np.intp)
        begin, end = math.inf, 0.0
        for number, piece in reversed(tuple(enumerate(self.pieces))):
            first, last = self._first_after(piece.after, 0), self._first_after(piece.through, math.inf)
            begin, end = min(begin, first), max(end, last)
            of_piece[int(min(first, self._segments)) : int(min(last, self._segments))] = number
        kinds, ranges = [Kind.KNOWN], [0]
        for segment, number in enumerate(of_piece.tolist()):
            if number >= 0:
                kinds += [Kind.NEEDED if self.pieces[number].needed else Kind.PENDING] * 2
                ranges += [number] * 2
            else:
                before, beyond = segment < begin, segment >= end
                kinds += [Kind.KNOWN if before or beyond else Kind.NEEDED, Kind.KNOWN if beyond else Kind.NEEDED]
                ranges += [len(self.pieces), len(self.pieces) + before]
        return Places(np.array(kinds, np.uint8), np.array(ranges, np.intp), len(self.pieces) + 2)

    def _first_after(self, end: Position | None, open_end: float) -> float:
        """The first segment after an end. One that was not met counts as after all rows, so that they are needed."""
        if end is None:
            return open_end
        number = self._number[end]
        return self._exact.get(number, self._nearest.get(number, math.inf))


class ReadRanges:
    """The same for a source that cannot scan: its rows are read piece by piece, and each piece has one place."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces

    def places(self) -> Places:
        kinds = [Kind.KNOWN, *(Kind.NEEDED if piece.needed else Kind.PENDING for piece in self.pieces)]
        ranges = [0, *range(len(self.pieces))]
        return Places(np.array(kinds, np.uint8), np.array(ranges, np.intp), len(self.pieces) + 2)
