"""Owns the properties of the in-flight window and the byte budget, over arbitrary orders of events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.inflight import ByteBudget, Window
from producer.model import KeyPosition


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["submit", "ack", "commit"]), st.integers(0, 5)), max_size=80),
)
def test_a_committed_prefix_never_passes_an_unacknowledged_page_and_never_goes_back(
    capacity: int, script: list[tuple[str, int]]
) -> None:
    window = Window(capacity)
    submitted: list[int] = []
    acknowledged: set[int] = set()
    committed = -1
    for action, choice in script:
        open_pages = [s for s in submitted if s > committed]
        assert window.full == (len(open_pages) >= capacity)
        assert window.empty == (not open_pages)
        if action == "submit" and not window.full:
            submitted.append(window.submit(KeyPosition((len(submitted),)), rows=10 + len(submitted)))
        elif action == "ack" and open_pages:
            page = open_pages[choice % len(open_pages)]
            window.acknowledge(page)
            acknowledged.add(page)
        elif action == "commit":
            prefix = window.committable()
            expected = committed
            while expected + 1 in acknowledged:
                expected += 1
            if prefix is None:
                assert expected == committed
                continue
            assert prefix.sequence == expected
            assert prefix.position == KeyPosition((expected,))
            assert prefix.rows == sum(10 + s for s in range(expected + 1))
            window.committed(prefix)
            committed = prefix.sequence


def test_a_window_refuses_more_pages_than_its_capacity_until_a_commit_frees_a_place() -> None:
    window = Window(2)
    window.submit(KeyPosition((1,)), 1)
    window.submit(KeyPosition((2,)), 1)
    window.acknowledge(0)
    assert window.full  # acknowledged is not committed
    with pytest.raises(ValueError, match="full"):
        window.submit(KeyPosition((3,)), 1)
    prefix = window.committable()
    assert prefix is not None
    window.committed(prefix)
    assert not window.full


def test_a_page_that_is_not_in_the_window_can_be_neither_acknowledged_nor_committed() -> None:
    window = Window(2)
    with pytest.raises(ValueError, match="not in the window"):
        window.acknowledge(0)
    window.submit(KeyPosition((1,)), 1)
    window.acknowledge(0)
    prefix = window.committable()
    assert prefix is not None
    window.committed(prefix)
    with pytest.raises(ValueError, match="not in the window"):
        window.acknowledge(0)
    with pytest.raises(ValueError, match="not in the window"):
        window.committed(prefix)


@given(st.integers(1, 100), st.lists(st.tuples(st.booleans(), st.integers(1, 150), st.booleans()), max_size=40))
def test_the_byte_budget_is_never_passed_but_by_a_single_wide_page_and_nobody_starves(
    limit: int, script: list[tuple[bool, int, bool]]
) -> None:
    async def run() -> None:
        budget = ByteBudget(limit)
        held: list[Any] = []
        waiting: list[asyncio.Task[Any]] = []
        granted: list[int] = []
        order = 0

        async def take(amount: int, number: int) -> None:
            held.append(await budget.acquire(amount))
            granted.append(number)

        for taking, amount, cancels in script:
            if taking:
                waiting.append(asyncio.create_task(take(amount, order)))
                order += 1
                await asyncio.sleep(0)
                if cancels:
                    waiting[-1].cancel()
            elif held:
                held.pop(amount % len(held)).release()
            for _ in range(3):
                await asyncio.sleep(0)
            assert budget.used_bytes == sum(r.bytes for r in held)
            assert budget.used_bytes <= limit or len(held) == 1
        for _ in range(len(script) + 1):
            while held:
                held.pop().release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert all(task.done() for task in waiting)
        assert granted == sorted(granted)
        assert budget.used_bytes == sum(r.bytes for r in held)

    asyncio.run(run())


async def test_a_released_reservation_gives_back_its_resized_amount_once() -> None:
    budget = ByteBudget(10)
    reservation = await budget.acquire(4)
    reservation.resize(25)
    assert budget.used_bytes == 25
    reservation.release()
    reservation.release()
    assert budget.used_bytes == 0
