"""Owns the claims about comparing two sides by hashes: every kind of difference, and the same result from files."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from contextlib import ExitStack

import numpy as np
import pytest

from producer.verify.compare import Comparison, Kind, Places, Side, compare

LIMIT = 10
#: A place for each kind, all of one range; the flags of the rows below are among them.
KINDS = Places(np.array([Kind.PENDING, Kind.NEEDED, Kind.KNOWN], np.uint8), np.zeros(3, np.intp), 1)
PENDING, NEEDED, KNOWN = range(3)
LETTER = 8  # added to a row's place: it is in the dead letters
IN_MEMORY, IN_FILES = 1000, 3


@pytest.fixture(params=[IN_MEMORY, IN_FILES])
def capacity(request: pytest.FixtureRequest) -> int:
    kept: int = request.param
    return kept


def compared(
    source: Iterable[tuple[int, int, int]], topic: Iterable[tuple[int, int, int]], capacity: int
) -> Comparison:
    with ExitStack() as stack:
        sides = [stack.enter_context(Side(capacity)) for _ in range(2)]
        for key, value, place in source:
            sides[0].add(np.array([key * 2**56]), np.array([value]), bool(place & LETTER), place & ~LETTER)
        for key, value, flag in topic:
            sides[1].add(np.array([key * 2**56]), np.array([value]), bool(flag))
        return compare(sides[0], sides[1], LIMIT, KINDS)


def keys(found: set[int]) -> list[int]:
    return sorted(key >> 56 for key in found)


ROWS = [(key, key * 7, 1) for key in range(-9, 10)]
RECORDS = [(key, key * 7, 0) for key in range(-9, 10)]


def test_equal_sides_in_any_order_agree(capacity: int) -> None:
    found = compared(ROWS, random.Random(1).sample(RECORDS, len(RECORDS)), capacity)
    assert found.agrees
    assert (found.source_rows, found.topic_records, found.topic_keys, found.duplicates) == (19, 19, 19, 0)


def test_a_missing_record_is_named(capacity: int) -> None:
    found = compared(ROWS, [r for r in RECORDS if r[0] != 5], capacity)
    assert not found.agrees
    assert (found.missing, keys(found.missing_keys)) == (1, [5])
    assert found.unexpected == found.differing == 0


def test_an_extra_record_is_named(capacity: int) -> None:
    found = compared(ROWS, [*RECORDS, (77, 1, 0)], capacity)
    assert not found.agrees
    assert (found.unexpected, keys(found.unexpected_keys)) == (1, [77])


def test_another_value_is_named(capacity: int) -> None:
    found = compared(ROWS, [(k, v + (k == 3), f) for k, v, f in RECORDS], capacity)
    assert not found.agrees
    assert (found.differing, keys(found.differing_keys)) == (1, [3])


def test_duplicates_are_counted_and_agree(capacity: int) -> None:
    found = compared(ROWS, [*RECORDS, *RECORDS[3:6], RECORDS[3]], capacity)
    assert found.agrees
    assert (found.duplicates, found.updates) == (4, 0)


def test_the_last_record_of_a_key_counts(capacity: int) -> None:
    assert compared(ROWS, [(4, 999, 0), *RECORDS], capacity).agrees
    found = compared(ROWS, [*RECORDS, (4, 999, 0)], capacity)
    assert (found.updates, keys(found.differing_keys)) == (1, [4])


def test_a_tombstone_deletes(capacity: int) -> None:
    deleted = compared([r for r in ROWS if r[0] != 2], [*RECORDS, (2, 0, 1)], capacity)
    assert deleted.agrees
    assert deleted.deleted == 1
    still_there = compared(ROWS, [*RECORDS, (2, 0, 1)], capacity)
    assert keys(still_there.missing_keys) == [2]
    back_again = compared(ROWS, [(2, 0, 1), *RECORDS], capacity)
    assert back_again.agrees


def test_what_is_beyond_the_checkpoint_may_be_there_or_not(capacity: int) -> None:
    beyond = [(50, 1, 0), (51, 1, 0)]
    found = compared([*ROWS, *beyond], [*RECORDS, (50, 2, 0)], capacity)
    assert found.agrees
    assert found.pending == 1


def test_a_row_whose_key_alone_is_known_is_neither_missing_nor_unexpected(capacity: int) -> None:
    known = [(50, 1, KNOWN), (51, 1, KNOWN)]
    found = compared([*ROWS, *known], [*RECORDS, (50, 2, 0)], capacity)
    assert found.agrees
    assert found.pending == 0


def test_a_row_in_the_dead_letters_need_not_be_there_as_it_is_now(capacity: int) -> None:
    places = (NEEDED, PENDING, KNOWN)
    lettered = [(50 + i, 1, place | LETTER) for i, place in enumerate((*places, *places, *places))]
    topic = [(key, value, 0) for key, value in [(53, 1), (54, 1), (55, 1), (56, 2), (57, 2), (58, 2)]]
    found = compared([*ROWS, *lettered], [*RECORDS, *topic], capacity)
    assert found.agrees
    assert (found.dead_lettered, found.pending) == (4, 0)  # not there, or with another value


def test_rows_without_a_key_differ(capacity: int) -> None:
    found = compared(ROWS, RECORDS, capacity)
    found.null_keys["code"] = 1
    assert not found.agrees


def test_what_must_be_there_is_counted_by_where_it_was_read(capacity: int) -> None:
    rows = [(1, 10, 0), (2, 20, 0), (3, 30, 1), (4, 40, 1), (5, 50, 2), (6, 60, 3)]
    records = [(1, 10), (2, 20), (4, -1), (5, 50), (9, 90)]
    kinds = np.array([Kind.NEEDED, Kind.NEEDED, Kind.NEEDED, Kind.PENDING], np.uint8)
    with Side(capacity) as ours, Side(capacity) as theirs:
        for key, value, place in rows:
            ours.add(np.array([key * 2**56]), np.array([value]), False, place)
        for key, value in records:
            theirs.add(np.array([key * 2**56]), np.array([value]), False)
        found = compare(ours, theirs, LIMIT, Places(kinds, np.arange(4), 4))
    ranges = found.ranges
    assert (found.missing, found.differing, found.unexpected, found.pending) == (1, 1, 1, 1)
    assert ranges.rows.tolist() == [2, 2, 1, 0]
    assert ranges.missing.tolist() == [0, 1, 0, 0]
    assert ranges.differing.tolist() == [0, 1, 0, 0]
    agrees = (ranges.source_checksum == ranges.topic_checksum).tolist()
    assert agrees == [True, False, True, True]
    assert int(ranges.source_checksum.sum(dtype=np.uint64)) == found.source_checksum
    assert ranges.source_checksum[0] and ranges.source_checksum[2]


def test_a_row_read_twice_counts_where_it_was_read_last(capacity: int) -> None:
    with Side(capacity) as ours, Side(capacity) as theirs:
        for place in (1, 0):
            ours.add(np.array([2**56]), np.array([7]), False, place)
        theirs.add(np.array([2**56]), np.array([7]), False)
        found = compare(ours, theirs, LIMIT, Places(np.full(2, Kind.NEEDED, np.uint8), np.arange(2), 2))
    assert found.agrees
    assert found.ranges.rows.tolist() == [1, 0]


def test_a_side_that_is_cleared_starts_again(capacity: int) -> None:
    with Side(capacity) as ours, Side(capacity) as theirs:
        for key in range(8):
            ours.add(np.array([key * 2**56]), np.array([key]), False, NEEDED)
        ours.clear()
        assert ours.count == 0
        ours.add(np.array([2**56]), np.array([7]), False, NEEDED)
        theirs.add(np.array([2**56]), np.array([7]), False)
        found = compare(ours, theirs, LIMIT, KINDS)
    assert found.agrees
    assert found.source_rows == 1


def test_names_are_limited_and_counts_are_not(capacity: int) -> None:
    found = compared(ROWS, [], capacity)
    assert found.missing == 19
    assert len(found.missing_keys) == LIMIT


def test_nothing_agrees_with_nothing(capacity: int) -> None:
    assert compared([], [], capacity).agrees


def test_a_million_records_a_side_take_little_memory() -> None:
    random_keys = np.random.default_rng(7).integers(-(2**63), 2**63 - 1, 1_000_000, dtype=np.int64)
    tracemalloc.start()
    try:
        with Side() as source, Side() as topic:
            for side, place in ((source, NEEDED), (topic, 0)):
                for part in np.split(random_keys, 100):
                    side.add(part, part, False, place)
            found = compare(source, topic, LIMIT, KINDS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.agrees
    assert found.topic_keys == len(np.unique(random_keys))
    assert peak < 60 * 2**20  # both sides in memory would be 34 MB, and sorting them three times as much
