"""Owns the claims about when deleted rows are looked for: every so many seconds, and not while the stream stops."""

from __future__ import annotations

import asyncio

import pyarrow as pa

from producer.unit import PeriodicSearch

HOUR_S = 3600.0
FOUND = pa.RecordBatch.from_pydict({"id": [1]})


class Scripted:
    """A search that finds something when it is let."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled = False

    async def find(self) -> pa.RecordBatch | None:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return FOUND

    async def close(self) -> None: ...


async def test_it_is_not_looked_before_the_time_has_come() -> None:
    search = Scripted()
    assert await PeriodicSearch(search, HOUR_S, asyncio.Event()).look() is None
    assert not search.begun.is_set()


async def test_what_a_search_finds_is_given() -> None:
    search = Scripted()
    search.may_end.set()
    assert await PeriodicSearch(search, 0, asyncio.Event()).look() == FOUND


async def test_a_search_that_is_under_way_when_the_stream_stops_is_broken_off() -> None:
    search, stop = Scripted(), asyncio.Event()
    looking = asyncio.create_task(PeriodicSearch(search, 0, stop).look())
    await search.begun.wait()
    stop.set()
    async with asyncio.timeout(10):
        assert await looking is None
    assert search.cancelled
