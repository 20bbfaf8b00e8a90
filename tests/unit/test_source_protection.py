"""Owns the claim that a stream presses its source less when that is slow or fails, and no faster than it is told to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from producer import pressure
from producer.config import StreamConfig
from producer.errors import SourceUnavailableError
from producer.model import Dataset, Page, Position, Split
from producer.service import Service
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter, SplitReader, service_of

PAGE_ROWS = 64


@dataclass
class Pages:
    """What the readers of a source were asked for, in order, and how many at a time; and what comes in their way."""

    failing: int = 0  # so many fetches fail first
    slow_s: list[float] = field(default_factory=list)  # the first ones that are answered take so long
    asked: list[int] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    at_work: int = 0


@dataclass
class WatchedReader(SplitReader):
    pages: Pages = field(default_factory=Pages)

    async def fetch(self, position: Position | None, limit: int) -> Page:
        pages = self.pages
        pages.asked.append(limit)
        if pages.failing:
            pages.failing -= 1
            raise SourceUnavailableError("canceling statement due to conflict with recovery")
        pages.at_work += 1
        pages.together.append(pages.at_work)
        await asyncio.sleep(pages.slow_s.pop() if pages.slow_s else 0.001)
        pages.at_work -= 1
        return await SplitReader.fetch(self, position, limit)


@dataclass
class WatchedSource(ScriptedSource):
    pages: Pages = field(default_factory=Pages)

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> SplitReader:
        last = (await super().reader(stream, dataset, split)).last
        return WatchedReader(last=last, split=split, pages=self.pages)


async def run(source: ScriptedSource, **stream: Any) -> Service:
    service = service_of(
        {"a": source}, {"a": ScriptedWriter()}, MemoryStore(), **({"page_size": PAGE_ROWS, "max_parallel": 1} | stream)
    )
    (summary,) = await service.run(once=True, stop=asyncio.Event())
    assert (summary.state, summary.acked) == ("complete", source.rows)
    return service


async def test_a_failure_halves_the_page_and_good_answers_grow_it_again() -> None:
    source = WatchedSource(2_000, pages=Pages(failing=1))
    service = await run(source)
    assert source.pages.asked[:4] == [64, 32, 36, 40]
    assert max(source.pages.asked[1:]) == PAGE_ROWS
    labels = {"stream": "a", "source": "a", "topic": "a.a"}
    assert service._metrics.registry.get_sample_value("producer_source_throttle_factor", labels) == 1.0


async def test_a_slow_answer_halves_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "SLOW_S", 0.5)
    source = WatchedSource(300, pages=Pages(slow_s=[0.6]))
    await run(source)
    assert source.pages.asked[:2] == [64, 32]


async def test_after_failures_fewer_pages_are_fetched_at_a_time() -> None:
    cuts = (500, 1_000, 1_500)
    untroubled = WatchedSource(2_000, cuts=cuts)
    await run(untroubled, max_parallel=4)
    assert max(untroubled.pages.together) == 4
    troubled = WatchedSource(2_000, cuts=cuts, pages=Pages(failing=4, slow_s=[0.5] * 3))
    await run(troubled, max_parallel=4)
    assert troubled.pages.together[:3] == [1, 1, 1]


async def test_rows_come_no_faster_than_they_may() -> None:
    began = time.monotonic()
    await run(ScriptedSource(300), page_size=50, max_rows_per_s=1_000)
    assert time.monotonic() - began >= 0.25
