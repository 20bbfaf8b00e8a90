"""Owns the claims about the pressure on a source: within its bounds, less in trouble, and full speed again after it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from producer.errors import RateLimitedError, SourceUnavailableError
from producer.pressure import LEAST, SLOW_S, STEP, Pressure

#: Seconds that a page took; None: the fetch failed.
ANSWERS = st.lists(st.none() | st.floats(0, 10 * SLOW_S))


def live(pressure: Pressure, answers: list[float | None]) -> None:
    for seconds in answers:
        before = pressure.factor
        if seconds is None:
            pressure.failed(SourceUnavailableError("away"))
        else:
            pressure.answered(seconds)
        if seconds is None or seconds > SLOW_S:
            assert pressure.factor == max(LEAST, before / 2)
        else:
            assert before <= pressure.factor <= before + STEP


@given(ANSWERS, st.integers(1, 64), st.integers(1, 1_000_000))
def test_there_is_always_a_place_and_a_row_and_never_more_than_was_asked_for(
    answers: list[float | None], places: int, rows: int
) -> None:
    pressure = Pressure(places)
    live(pressure, answers)
    assert LEAST <= pressure.factor <= 1
    assert 1 <= pressure.allowed <= places
    assert 1 <= pressure.rows(rows) <= rows


@given(ANSWERS)
def test_good_answers_lead_back_to_full_speed(answers: list[float | None]) -> None:
    told: list[float] = []
    pressure = Pressure(4, told.append)
    live(pressure, answers)
    for _ in range(int(1 / STEP)):
        pressure.answered(0.01)
    assert pressure.factor == 1
    assert (told or [1.0])[-1] == 1


@given(st.lists(st.floats(0, SLOW_S)))
def test_a_healthy_source_is_left_alone(seconds: list[float]) -> None:
    told: list[float] = []
    pressure = Pressure(3, told.append)
    for each in seconds:
        pressure.answered(each)
    pressure.failed(RateLimitedError("wait"))
    assert (pressure.factor, told) == (1, [])


async def test_fewer_pages_are_fetched_at_a_time_while_the_source_is_in_trouble() -> None:
    pressure = Pressure(4)
    pressure.failed(SourceUnavailableError("away"))
    under_way = most = 0

    async def fetch() -> None:
        nonlocal under_way, most
        async with pressure.place():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1

    await asyncio.gather(*(fetch() for _ in range(10)))
    assert most == 2
