"""Owns the claims about comparing two sides by hashes: every kind of difference, and the same result from files."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from contextlib import ExitStack

import numpy as np
import pytest

from producer.reconcile import Comparison, Side, compare

LIMIT = 10
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
        for side, records in zip(sides, (source, topic), strict=True):
            for key, value, flag in records:
                hashes = np.array([key * 2**56, value], dtype=np.int64)
                side.add(hashes[:1], hashes[1:], bool(flag))
        return compare(sides[0], sides[1], LIMIT)


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


def test_what_must_be_there_is_counted_by_where_it_was_read(capacity: int) -> None:
    rows = [(1, 10, 1, 0), (2, 20, 1, 0), (3, 30, 1, 1), (4, 40, 1, 1), (5, 50, 1, 2), (6, 60, 0, 3)]
    records = [(1, 10), (2, 20), (4, -1), (5, 50), (9, 90)]
    with Side(capacity) as ours, Side(capacity) as theirs:
        for key, value, needed, place in rows:
            ours.add(np.array([key * 2**56]), np.array([value]), bool(needed), place)
        for key, value in records:
            theirs.add(np.array([key * 2**56]), np.array([value]), False)
        found = compare(ours, theirs, LIMIT, 4)
    places = found.places
    assert (found.missing, found.differing, found.unexpected, found.pending) == (1, 1, 1, 1)
    assert places.rows.tolist() == [2, 2, 1, 0]
    assert places.missing.tolist() == [0, 1, 0, 0]
    assert places.differing.tolist() == [0, 1, 0, 0]
    agrees = (places.source_checksum == places.topic_checksum).tolist()
    assert agrees == [True, False, True, True]
    assert int(places.source_checksum.sum(dtype=np.uint64)) == found.source_checksum
    assert places.source_checksum[0] and places.source_checksum[2]


def test_a_row_read_twice_counts_where_it_was_read_last(capacity: int) -> None:
    with Side(capacity) as ours, Side(capacity) as theirs:
        for place in (1, 0):
            ours.add(np.array([2**56]), np.array([7]), True, place)
        theirs.add(np.array([2**56]), np.array([7]), False)
        found = compare(ours, theirs, LIMIT, 2)
    assert found.agrees
    assert found.places.rows.tolist() == [1, 0]


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
            for side, flag in ((source, True), (topic, False)):
                for part in np.split(random_keys, 100):
                    side.add(part, part, flag)
            found = compare(source, topic, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.agrees
    assert found.topic_keys == len(np.unique(random_keys))
    assert peak < 60 * 2**20  # both sides in memory would be 34 MB, and sorting them three times as much
