"""Owns the arithmetic of traversals, for all inputs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from producer.model import KeyPosition, OffsetPosition, Split
from producer.traversal import interpolate, is_last, key_splits, offset_window, split_count

integers = st.integers(-(2**63), 2**63 - 1)


def inside(split: Split, key: int) -> bool:
    lower = split.lower.values[0] if isinstance(split.lower, KeyPosition) else None
    upper = split.upper.values[0] if isinstance(split.upper, KeyPosition) else None
    assert lower is None or isinstance(lower, int)
    assert upper is None or isinstance(upper, int)
    return (lower is None or lower < key) and (upper is None or key <= upper)


@given(st.lists(integers, min_size=1, max_size=20).map(sorted), st.lists(integers, max_size=20), st.booleans())
def test_every_key_up_to_the_greatest_is_in_exactly_one_split(ends: list[int], keys: list[int], open_end: bool) -> None:
    splits = key_splits([KeyPosition((end,)) for end in ends], open_end=open_end)
    for key in [*keys, *ends, ends[0] - 1, ends[-1] + 1]:
        covered = open_end or key <= ends[-1]
        assert sum(inside(split, key) for split in splits) == covered
    assert len({split.id for split in splits}) == len(splits)


def test_no_boundary_makes_one_split() -> None:
    assert key_splits([], open_end=False) == (Split("0"),)


@given(st.integers(0, 10**12), st.integers(1, 10**6), st.integers(1, 64))
def test_splits_are_never_more_than_allowed_nor_smaller_than_a_page(rows: int, page: int, most: int) -> None:
    count = split_count(rows, page, most)
    assert 1 <= count <= most
    assert count == 1 or rows / count > page


@given(st.integers(0, 300), st.integers(1, 50), st.integers(0, 300))
def test_windows_of_a_counted_table_meet_without_gap_or_overlap(rows: int, limit: int, inserted: int) -> None:
    split = Split("0", None, OffsetPosition(rows))
    table = rows + inserted
    position, seen = None, 0
    while True:
        skip, count = offset_window(split, position, limit)
        assert skip == seen
        read = max(0, min(count, table - skip))
        seen += read
        position = OffsetPosition(skip + read)
        if is_last(read, limit, position, split.upper):
            break
    assert seen == rows


@given(integers, integers, integers, integers, st.integers(0, 10**12))
def test_what_remains_is_between_nothing_and_everything(a: int, b: int, c: int, d: int, rows: int) -> None:
    least, greatest = min(c, d), max(c, d)
    found = interpolate(a, b, least, greatest, rows)
    assert found is not None
    assert 0 <= found <= rows


def test_text_keys_are_not_interpolated() -> None:
    assert interpolate("a", "b", "a", "z", 100) is None
