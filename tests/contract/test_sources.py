"""Owns the contract of sources: every source of `producer.sources.SOURCES` runs each of these tests.

A new source joins by a module ``tests/contract/cases/<type>.py`` with its ``CASES``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from producer.config import StreamConfig
from producer.model import Checkpoint as Check
from producer.model import Dataset, Page, Position, Split, checkpoint_from_json, checkpoint_to_json
from producer.protocols import PageReader, Source
from producer.sources import SOURCES
from tests.contract.cases import SourceCase, cases, covered

ALL = cases()


@pytest.fixture(params=sorted(ALL))
def case(request: pytest.FixtureRequest) -> Any:
    with ALL[request.param](request) as case:
        yield case


@pytest.fixture
async def source(case: SourceCase) -> AsyncIterator[Source]:
    source = case.open_source()
    await source.start()
    yield source
    await source.close()


@contextlib.asynccontextmanager
async def reading(source: Source, stream: StreamConfig, dataset: Dataset, split: Split) -> AsyncIterator[PageReader]:
    reader = await source.reader(stream, dataset, split)
    try:
        yield reader
    finally:
        await reader.close()


def keys(dataset: Dataset, page: Page) -> list[tuple[Any, ...]]:
    columns = [page.batch.column(page.batch.schema.get_field_index(name)).to_pylist() for name in dataset.key]
    return list(zip(*columns, strict=True))


async def pages(reader: PageReader, limit: int, position: Position | None = None) -> list[Page]:
    """All pages from `position` on; the end is what the pages say, not their length."""
    found: list[Page] = []
    for _ in range(10_000):
        page = await reader.fetch(position, limit)
        found.append(page)
        position = page.position
        if page.last:
            return found
    raise AssertionError("the split has no end")


def test_every_registered_source_has_a_contract_run() -> None:
    assert covered() == sorted(SOURCES)


async def test_splits_together_give_every_row_once_and_each_in_order(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.stream)
    read: list[tuple[Any, ...]] = []
    for split in await source.plan(case.stream, dataset):
        async with reading(source, case.stream, dataset, split) as reader:
            for page in await pages(reader, 5):
                page.batch.validate(full=True)
                assert page.batch.schema == dataset.schema
                read += keys(dataset, page)
    assert read == list(case.keys)


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_no_page_has_more_rows_than_asked_for(case: SourceCase, source: Source, limit: int) -> None:
    dataset = await source.describe(case.stream)
    (split,) = await source.plan(case.stream.model_copy(update={"max_parallel": 1}), dataset)
    async with reading(source, case.stream, dataset, split) as reader:
        found = await pages(reader, limit)
    assert max(page.rows for page in found) <= limit
    assert sum(page.rows for page in found) == len(case.keys)


async def test_reading_goes_on_after_every_page_with_exactly_the_rest(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.stream)
    (split,) = await source.plan(case.stream.model_copy(update={"max_parallel": 1}), dataset)
    async with reading(source, case.stream, dataset, split) as reader:
        done = 0
        for page in await pages(reader, 6):
            done += page.rows
            saved = checkpoint_from_json(checkpoint_to_json(Check(split, page.position, detail=page.detail)))
            async with reading(source, case.stream, dataset, split) as again:
                rest = await pages(again, 9, saved.position)
            assert [key for p in rest for key in keys(dataset, p)] == list(case.keys[done:])


async def test_a_split_divided_after_its_first_page_gives_the_same_rows(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.stream)
    (split,) = await source.plan(case.stream.model_copy(update={"max_parallel": 1}), dataset)
    async with reading(source, case.stream, dataset, split) as reader:
        first = await reader.fetch(None, 5)
    middle = await source.divide(case.stream, dataset, Check(split, first.position))
    pieces = [(split, first.position)]
    if middle is not None:
        pieces = [(replace(split, upper=middle), first.position), (Split("1", middle, split.upper), None)]
    read = keys(dataset, first)
    for piece, position in pieces:
        async with reading(source, case.stream, dataset, piece) as reader:
            read += [key for page in await pages(reader, 7, position) for key in keys(dataset, page)]
    assert read == list(case.keys)


async def test_a_page_fetched_twice_is_the_same(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.stream)
    split = (await source.plan(case.stream, dataset))[0]
    async with reading(source, case.stream, dataset, split) as reader:
        first, again = await reader.fetch(None, 5), await reader.fetch(None, 5)
    assert first.batch.equals(again.batch)
    assert (first.position, first.last) == (again.position, again.last)


async def test_a_stream_without_rows_has_one_split_with_nothing_in_it(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.empty)
    (split,) = await source.plan(case.empty, dataset)
    async with reading(source, case.empty, dataset, split) as reader:
        page = await reader.fetch(None, 5)
    assert (page.rows, page.last) == (0, True)
    assert page.batch.schema == dataset.schema


async def test_a_cancelled_fetch_leaves_the_reader_usable(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.stream)
    (split,) = await source.plan(case.stream.model_copy(update={"max_parallel": 1}), dataset)
    async with reading(source, case.stream, dataset, split) as reader:
        first = await reader.fetch(None, 5)
        for turns in range(4):
            task = asyncio.ensure_future(reader.fetch(first.position, 5))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        rest = await pages(reader, 5, first.position)
    assert [key for p in rest for key in keys(dataset, p)] == list(case.keys[first.rows :])


async def test_another_instance_goes_on_where_the_first_was_closed(case: SourceCase) -> None:
    first = case.open_source()
    await first.start()
    dataset = await first.describe(case.stream)
    (split,) = await first.plan(case.stream.model_copy(update={"max_parallel": 1}), dataset)
    async with reading(first, case.stream, dataset, split) as reader:
        page = await reader.fetch(None, 5)
    await first.close()
    second = case.open_source()
    await second.start()
    try:
        same = await second.describe(case.stream)
        assert same.fingerprint(case.stream.traversal) == dataset.fingerprint(case.stream.traversal)
        async with reading(second, case.stream, same, split) as reader:
            rest = await pages(reader, 100, page.position)
    finally:
        await second.close()
    assert [key for p in rest for key in keys(dataset, p)] == list(case.keys[page.rows :])


async def test_what_remains_is_nothing_when_a_split_is_done(case: SourceCase, source: Source) -> None:
    dataset = await source.describe(case.stream)
    split = (await source.plan(case.stream, dataset))[0]
    assert await source.remaining(case.stream, dataset, Check(split, done=True)) == 0
    remaining = await source.remaining(case.stream, dataset, Check(split))
    assert remaining is None or remaining >= 0
