"""Owns the laws of the ledger of late commits: nothing that may still be filled is forgotten."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

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


def due(ledger: Ledger, now: float, settled_s: float, first_s: float, late_s: float) -> Passage | None:
    first = [one for one in ledger.passages if one.since < now - settled_s]
    again = [one for one in ledger.looked if one.due_again(now, first_s) or one.since < now - late_s]
    return next(iter((*first, *again)), None)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9), st.booleans()), min_size=1, max_size=30))
def test_what_is_looked_through_again_misses_no_key_and_no_transaction(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Each step reads some keys, and looks through what is due, part by part."""
    ledger, key, now, least = Ledger(), 0, 0.0, 0
    passed_at: dict[int, float] = {}
    seen: dict[int, int] = {}
    for width, more, parted in steps:
        upper = key + width
        ledger = holes.passed(ledger, Passage(KeyPosition((key,)), KeyPosition((upper,)), now, least), 3, 3)
        passed_at |= dict.fromkeys(range(key + 1, upper + 1), now)
        seen |= dict.fromkeys(range(key + 1, upper + 1), least)
        key, now, least = upper, now + 1.5, least + more
        while (held := due(ledger, now, 4, 2, 1000)) is not None:
            first, _ = ends(held)
            upto = KeyPosition((first + 1,)) if parted else held.upper
            part = replace(held, upper=upto, least=least, looks=held.looks + 1, looked=now)
            ledger = holes.merged(holes.looked_through(ledger, held, upto, part), 3)
            seen |= dict.fromkeys(range(first + 1, ends(part)[1] + 1), least)
    for number, when in passed_at.items():
        (held,) = [p for p in (*ledger.passages, *ledger.looked) if ends(p)[0] < number <= ends(p)[1]]
        assert held.least <= seen[number]
        assert held.since >= when - 3


def test_looks_become_seldom_and_what_they_have_in_common_is_one_passage() -> None:
    ledger, key, looks, most, now = Ledger(), 0, 0, 0, 0.0
    for turn in range(4000):
        now = float(turn)
        lower, upper = KeyPosition((f"{key:06d}",)), KeyPosition((f"{key + 1:06d}",))
        ledger, key = holes.passed(ledger, Passage(lower, upper, now, turn), 10, 200), key + 1
        while (held := due(ledger, now, 20, 20, 1000)) is not None:
            part = replace(held, least=turn, looks=held.looks + 1, looked=now)
            kept = None if held.since < now - 1000 else part
            ledger = holes.merged(holes.looked_through(ledger, held, held.upper, kept), 10)
            looks += 1
        most = max(most, len(ledger.looked))
    assert most <= 25
    assert looks <= 1.4 * 4000  # each page by itself once, then all those of a time at once


def test_a_range_is_put_to_the_one_before_it_only_where_nothing_can_lie_between() -> None:
    def looked(lower: str | int, upper: str | int, **more: Any) -> Passage:
        return replace(Passage(KeyPosition((lower,)), KeyPosition((upper,)), 1.0, 5, 6, 1, 2.0), **more)

    def after(*passages: Passage) -> int:
        return len(holes.merged(Ledger(looked=passages), 10).looked)

    assert after(looked("a", "b"), looked("b", "c", least=6, looked=12.0)) == 1
    assert after(looked(1, 3), looked(7, 9)) == 1
    assert after(looked("a", "b"), looked("c", "d")) == 2
    assert after(looked(7, 9), looked(1, 3)) == 2
    assert after(looked("a", "b"), looked("b", "c", looks=2)) == 2
    assert after(looked("a", "b"), looked("b", "c", looked=12.1)) == 2
    assert after(looked("a", "b", least=6), looked("b", "c")) == 2


def test_a_checkpoint_of_before_is_read() -> None:
    old = {"holes": [], "passages": [[None, {"key": [7]}, 1.5, 5, None]], "floor": 3, "expired": 0}
    assert holes.from_json(old) == Ledger(passages=(Passage(None, KeyPosition((7,)), 1.5, 5),), floor=3)


@given(st.sets(numbers, min_size=1))
def test_a_checkpoint_keeps_the_ledger(ids: set[int]) -> None:
    passage = Passage(None, KeyPosition((7, "x")), 1.5, 5, 9)
    ledger = holes.passed(holes.expire(read_through(sorted(ids), 2), 1.0)[0], passage, 0, 1)
    ledger = replace(ledger, looked=(replace(passage, looks=2, looked=3.5),), beyond=KeyPosition(("x",)))
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
