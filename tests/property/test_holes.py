"""Owns the laws of the ledger of late commits: nothing that may still be filled is forgotten."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from producer import holes
from producer.holes import Hole, Ledger, Passage, Snapshot
from producer.model import KeyPosition

numbers = st.integers(-30, 60)


def missing(ledger: Ledger, low: int = -40, high: int = 70) -> set[int]:
    return {n for hole in ledger.holes for n in range(max(hole.first, low), min(hole.last, high) + 1)}


def ends(passage: Passage) -> tuple[int, int]:
    lower = 0 if passage.lower is None else int(str(passage.lower.values[0]))
    return lower, int(str(passage.upper.values[0]))


def read_through(ids: list[int], per_page: int) -> Ledger:
    """A ledger after reading ascending ids in pages."""
    ledger, after = Ledger(), holes.LEAST_ID - 1
    for start in range(0, len(ids), per_page):
        page = ids[start : start + per_page]
        ledger = holes.opened(ledger, holes.gaps(after, page, float(start)))
        after = page[-1]
    return ledger


@given(st.sets(numbers, min_size=1), st.integers(1, 5))
def test_every_id_below_the_last_is_either_read_or_in_a_hole(ids: set[int], per_page: int) -> None:
    ledger = read_through(sorted(ids), per_page)
    assert missing(ledger) == set(range(-40, max(ids))) - ids


@given(st.sets(numbers, min_size=1), st.lists(st.sets(numbers), max_size=4))
def test_only_what_appears_leaves_a_hole(ids: set[int], late: list[set[int]]) -> None:
    ledger = read_through(sorted(ids), 3)
    expected = missing(ledger)
    for more in late:
        ledger = holes.filled(ledger, more)
        expected -= more
        assert missing(ledger) == expected
        edges = [(hole.first, hole.last) for hole in ledger.holes]
        assert all(first <= last for first, last in edges)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(edges))


@given(st.sets(numbers, min_size=1), st.floats(-1, 70))
def test_a_hole_expires_by_its_own_age_and_is_counted(ids: set[int], before: float) -> None:
    ledger = read_through(sorted(ids), 2)
    left, gone = holes.expire(ledger, before)
    assert set(left.holes) | set(gone) == set(ledger.holes)
    assert all(hole.since < before for hole in gone)
    assert all(hole.since >= before for hole in left.holes)
    assert left.expired == len(gone)


@given(st.sets(numbers, min_size=1), st.integers(0, 10))
def test_the_lowest_holes_make_room(ids: set[int], most: int) -> None:
    ledger = read_through(sorted(ids), 2)
    left, gone = holes.crowded_out(ledger, most)
    assert (*gone, *left.holes) == ledger.holes
    assert len(left.holes) == min(most, len(ledger.holes))


@given(st.sets(numbers, min_size=1), numbers)
def test_no_holes_are_noted_up_to_the_floor(ids: set[int], floor: int) -> None:
    ledger = holes.opened(Ledger(floor=floor), holes.gaps(min(ids) - 9, sorted(ids), 0.0))
    assert missing(ledger) == {n for n in range(min(ids) - 8, max(ids)) if n not in ids and n > floor}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 20)), min_size=1, max_size=8))
def test_passages_cover_every_key_with_no_later_transaction_than_it_was_read_with(steps: list[tuple[int, int]]) -> None:
    ledger, key, now = Ledger(), 0, 0.0
    read: list[tuple[int, int]] = []
    for width, least in steps:
        upper = key + width
        passage = Passage(KeyPosition((key,)), KeyPosition((upper,)), now, least)
        ledger = holes.passed(ledger, passage, merge_within_s=3, most=3)
        ledger = holes.closed(ledger, now - 4, Snapshot(0, 50))
        read += [(n, least) for n in range(key + 1, upper + 1)]
        key, now = upper, now + 1.5
    for number, least in read:
        (held,) = [p for p in ledger.passages if ends(p)[0] < number <= ends(p)[1]]
        assert held.least <= least


def test_passages_of_other_transactions_are_kept_apart_until_there_are_many() -> None:
    ledger = Ledger()
    for key, least in enumerate((5, 5, 6, 7, 8)):
        ledger = holes.passed(ledger, Passage(KeyPosition((key,)), KeyPosition((key + 1,)), 1.0, least), 3, most=2)
    assert [(ends(passage), passage.least) for passage in ledger.passages] == [((0, 2), 5), ((2, 5), 6)]


@given(st.sets(numbers, min_size=1))
def test_a_checkpoint_keeps_the_ledger(ids: set[int]) -> None:
    passage = Passage(None, KeyPosition((7, "x")), 1.5, 5, 9)
    ledger = holes.passed(holes.expire(read_through(sorted(ids), 2), 1.0)[0], passage, 0, 1)
    assert holes.from_json(json.loads(json.dumps(holes.to_json(ledger)))) == ledger


def test_a_passage_is_settled_when_no_transaction_of_its_time_runs() -> None:
    ledger = Ledger(passages=(Passage(None, KeyPosition((1,)), 1.0, 5),))
    assert not ledger.passages[0].settled(Snapshot(100, 100))
    (passage,) = holes.closed(ledger, 2.0, Snapshot(5, 9)).passages
    assert not passage.settled(Snapshot(8, 20))
    assert passage.settled(Snapshot(9, 9))


def test_an_id_at_the_edge_of_a_hole_makes_it_smaller() -> None:
    ledger = Ledger((Hole(3, 5, 1.0),))
    assert holes.filled(ledger, [3]).holes == (Hole(4, 5, 1.0),)
    assert holes.filled(ledger, [5]).holes == (Hole(3, 4, 1.0),)
    assert holes.filled(ledger, [4]).holes == (Hole(3, 3, 1.0), Hole(5, 5, 1.0))
