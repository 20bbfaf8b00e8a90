"""Owns the claims about finding a page's bad rows: all of them, only them, in order, and with bounded work."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from producer.errors import EncodeError, RecordTooLargeError
from producer.salvage import salvage

ROWS = 1000


@given(
    st.integers(0, 60).flatmap(lambda rows: st.tuples(st.just(rows), st.sets(st.integers(0, max(rows - 1, 0))))),
    st.sampled_from(["first", "last", "none", "beyond"]),
)
def test_exactly_the_bad_rows_are_put_aside_and_the_others_stay_in_order(
    page: tuple[int, set[int]], named: str
) -> None:
    rows, bad = page
    bad = {row for row in bad if row < rows}

    def attempt(start: int, stop: int) -> range:
        found = sorted(bad.intersection(range(start, stop)))
        if found:
            where = {"first": found[0] - start, "last": found[-1] - start, "none": None, "beyond": stop}[named]
            raise EncodeError("bad", row=where)
        return range(start, stop)

    good, put_aside = salvage(rows, attempt)
    assert [row for piece in good for row in piece] == [row for row in range(rows) if row not in bad]
    assert [row for row, _ in put_aside] == sorted(bad)


@given(st.sets(st.integers(0, ROWS - 1), max_size=20), st.booleans())
def test_a_few_bad_rows_cost_little_more_than_the_page(bad: set[int], named: bool) -> None:
    work = calls = 0

    def attempt(start: int, stop: int) -> None:
        nonlocal work, calls
        calls += 1
        found = sorted(bad.intersection(range(start, stop)))
        work += (found[0] - start + 1 if named else stop - start) if found else stop - start
        if found:
            raise RecordTooLargeError("bad", row=found[0] - start if named else None)

    salvage(ROWS, attempt)
    if named:
        assert work <= 2 * ROWS + 3 * len(bad)
        assert calls <= 3 * len(bad) + 1
    else:
        assert work <= ROWS * (2 + 2 * math.log2(len(bad) + 1))
