"""Which rows of a scan must be on the topic, by where the ends of a checkpoint's splits are met."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from producer.model import REPLAY, Checkpoint, KeyPosition, Mark, OffsetPosition, Split
from producer.verify.compare import Kind
from producer.verify.ranges import Piece, ScanRanges, pieces_of


def key(value: int) -> KeyPosition:
    return KeyPosition((value,))


def checkpoint(
    name: str, lower: int | None, upper: int | None, position: int | None, *, done: bool = False
) -> Checkpoint:
    at = [None if value is None else key(value) for value in (lower, upper, position)]
    return Checkpoint(Split(name, at[0], at[1]), at[2], done=done)


def scan(checkpoints: Sequence[Checkpoint], keys: Sequence[int], page: int = 3) -> list[tuple[Kind, int]]:
    """The kind and the range of each key of a table; positions without a row are met at the row before them."""
    ranges = ScanRanges([piece for one in checkpoints for piece in pieces_of(one)])
    numbers: list[int] = []
    for start in range(0, len(keys), page):
        rows = keys[start : start + page]
        marks = [
            Mark(row, number, value == position.values[0])
            for row, value in enumerate(rows)
            for number, position in enumerate(ranges.positions)
            if value == max((k for k in keys if k <= position.values[0]), default=None)  # type: ignore[operator]
        ]
        if start == 0:
            below = [n for n, position in enumerate(ranges.positions) if keys[0] > position.values[0]]  # type: ignore[operator]
            marks = [*(Mark(-1, number, False) for number in below), *marks]
        numbers += ranges.number(len(rows), marks).tolist()
    places = ranges.places()
    return [(Kind(places.kinds[number]), int(places.range_of[number])) for number in numbers]


def kinds(checkpoints: Sequence[Checkpoint], keys: Sequence[int], page: int = 3) -> str:
    """``N``: needed, ``P``: pending, ``K``: known; one letter for each key."""
    return "".join(kind.name[0] for kind, _ in scan(checkpoints, keys, page))


TEN = range(1, 11)
CASES = [
    ("a snapshot that is done", [checkpoint("0", None, 10, 10, done=True)], TEN, "NNNNNNNNNN"),
    ("rows that came after its plan", [checkpoint("0", None, 7, 7, done=True)], TEN, "NNNNNNNKKK"),
    ("one that is under way", [checkpoint("0", None, 5, 3), checkpoint("1", 5, 10, None)], TEN, "NNNPPPPPPP"),
    ("two splits under way", [checkpoint("0", None, 5, 2), checkpoint("1", 5, 10, 8)], TEN, "NNPPPNNNPP"),
    ("a tail", [checkpoint("0", None, 4, 4, done=True), checkpoint("1", 4, None, 6)], TEN, "NNNNNNPPPP"),
    ("from the latest row on", [checkpoint("0", 4, None, 6)], TEN, "KKKKNNPPPP"),
    (
        "a hole between splits",
        [checkpoint("0", None, 3, 3, done=True), checkpoint("1", 5, 10, None)],
        TEN,
        "NNNNNPPPPP",
    ),
    ("a position whose row is gone", [checkpoint("0", None, 10, 5)], [1, 2, 3, 4, 6, 7], "NNNNPP"),
    ("a position below all rows", [checkpoint("0", None, None, 0)], TEN, "PPPPPPPPPP"),
    ("nothing read yet", [checkpoint("0", None, None, None)], TEN, "PPPPPPPPPP"),
    ("no rows", [checkpoint("0", None, 5, 5, done=True)], [], ""),
]


@pytest.mark.parametrize(("checkpoints", "keys", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("page", [1, 3, 100])
def test_a_row_is_needed_up_to_the_checkpoint(
    checkpoints: Sequence[Checkpoint], keys: Sequence[int], expected: str, page: int
) -> None:
    assert kinds(checkpoints, keys, page) == expected


def test_rows_of_no_split_have_a_range_of_their_own() -> None:
    found = scan([checkpoint("0", None, 3, 3, done=True), checkpoint("1", 5, 10, 10, done=True)], TEN)
    assert [number for _, number in found] == [0, 0, 0, 2, 2, 1, 1, 1, 1, 1]


def test_a_position_that_is_never_met_leaves_its_rows_needed() -> None:
    ranges = ScanRanges(pieces_of(checkpoint("0", None, None, 5)))
    numbers = ranges.number(10, [])
    assert set(ranges.places().kinds[numbers].tolist()) == {Kind.NEEDED}


def test_the_row_with_the_key_counts_more_than_what_the_database_compares() -> None:
    ranges = ScanRanges(pieces_of(checkpoint("0", None, None, 5)))
    numbers = ranges.number(10, [Mark(1, 0, False), Mark(4, 0, True)])  # the nearest key is wrong
    assert ranges.places().kinds[numbers].tolist() == [Kind.NEEDED] * 5 + [Kind.PENDING] * 5


@pytest.mark.parametrize("page", [1, 3, 4, 100])
@pytest.mark.parametrize("read", [0, 1, 4, 10, 11])
def test_an_offset_is_a_count_of_rows(read: int, page: int) -> None:
    ranges = ScanRanges(pieces_of(Checkpoint(Split("0"), OffsetPosition(read))))
    numbers = [n for start in range(0, 10, page) for n in ranges.number(min(page, 10 - start), []).tolist()]
    found = ranges.places().kinds[numbers].tolist()
    assert found == [Kind.NEEDED] * min(read, 10) + [Kind.PENDING] * max(0, 10 - read)
    assert ranges.positions == []


def test_what_a_replay_has_read_is_needed_before_the_start_of_a_tail() -> None:
    replay = Split(f"{REPLAY}1", None, key(3))
    pieces = [Piece(replay, None, True), *pieces_of(checkpoint("0", 4, None, 6))]
    ranges = ScanRanges(pieces)
    assert ranges.replays == [replay]
    numbers = ranges.number(10, [Mark(3, 0, True), Mark(5, 1, True)])
    numbers[:3] += 1  # as of rows that a replay has read
    places = ranges.places()
    assert "".join(Kind(kind).name[0] for kind in places.kinds[numbers]) == "NNNKNNPPPP"
    assert places.range_of[numbers].tolist() == [3, 3, 3, 2, 0, 0, 1, 1, 1, 1]


def test_a_replay_says_nothing_where_the_splits_have_all_rows() -> None:
    assert ScanRanges([Piece(Split(f"{REPLAY}1"), None, True), *pieces_of(checkpoint("0", None, 9, 3))]).replays == []


def test_a_scan_that_starts_again_forgets_where_it_met_the_ends() -> None:
    ranges = ScanRanges(pieces_of(checkpoint("0", None, None, 5)))
    ranges.number(10, [Mark(0, 0, True)])
    ranges.begin()
    numbers = ranges.number(10, [Mark(4, 0, True)])
    assert ranges.places().kinds[numbers].tolist() == [Kind.NEEDED] * 5 + [Kind.PENDING] * 5
