"""Owns the contract of sinks: what every PageWriter of `producer.sinks.SINKS` does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from producer.config import KafkaConfig, StreamConfig
from producer.encoding.arrow_avro import AvroEncoder
from producer.encoding.records import RecordEncoder
from producer.encoding.schema import derive_key_schema, derive_value_schema
from producer.model import Dataset, KeyPosition, Page
from producer.protocols import PageWriter
from producer.sinks import SINKS
from tests.audit import TopicAudit

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string())])
DATASET = Dataset("t", SCHEMA, ("id",), ("id",), {})


@dataclass(frozen=True)
class SinkCase:
    """A writer over an empty place, and the ids that are durably there, in order where there is one."""

    writer: PageWriter[Any]
    ids: Callable[[], Awaitable[list[int]]]
    ordered: bool


@pytest.fixture(params=sorted(SINKS))
async def case(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> AsyncIterator[SinkCase]:
    match request.param:
        case "kafka":
            from producer.sinks.kafka import KafkaSink

            bootstrap = request.getfixturevalue("kafka_bootstrap")
            sink = KafkaSink(KafkaConfig(bootstrap_servers=bootstrap), unique, "run")
            await sink.start()
            await sink.ensure_topic(unique, 3)
            stream = StreamConfig(name="t", source="s", table="t", topic=unique)
            key_schema = derive_key_schema(DATASET)
            key, value = AvroEncoder(key_schema, SCHEMA), AvroEncoder(derive_value_schema(DATASET), SCHEMA)

            async def keys() -> list[int]:
                audit = TopicAudit(bootstrap, unique, key_schema)
                try:
                    await asyncio.to_thread(audit.catch_up)
                    return [id for (id,), times in audit.keys.items() for _ in range(times)]
                finally:
                    audit.close()

            yield SinkCase(sink.writer(stream, RecordEncoder(key, value)), keys, ordered=False)
            await sink.close()
        case "files":
            from producer.sinks.files import FileSink
            from producer.sinks.formats import file_format

            files = FileSink(tmp_path, "t", file_format("jsonl", SCHEMA), SCHEMA)
            await files.open(None)

            async def lines() -> list[int]:
                return [json.loads(line)["id"] for line in files.path().read_text().splitlines()]

            yield SinkCase(files, lines, ordered=True)
            await files.close()
        case other:
            raise AssertionError(f"no contract run for the sink {other!r}: add it here")


def page(first: int, last: int) -> Page:
    ids = list(range(first, last + 1))
    batch = pa.record_batch([pa.array(ids, pa.int64()), pa.array([f"text {n}" for n in ids])], schema=SCHEMA)
    return Page(batch, KeyPosition((last,)))


async def write(case: SinkCase, first: int, last: int) -> asyncio.Future[None]:
    return await case.writer.submit(await asyncio.to_thread(case.writer.prepare, page(first, last)))


async def test_what_is_acknowledged_is_there_once_and_whole(case: SinkCase) -> None:
    futures = [await write(case, first, first + 999) for first in range(1, 10_000, 1000)]
    async with asyncio.timeout(30):
        await asyncio.gather(*futures)
    ids = await case.ids()
    assert sorted(ids) == list(range(1, 10_001))
    assert not case.ordered or ids == sorted(ids)


async def test_a_page_without_rows_is_acknowledged(case: SinkCase) -> None:
    async with asyncio.timeout(30):
        await (await write(case, 1, 0))
        await (await write(case, 1, 5))
        await (await write(case, 6, 5))
    assert sorted(await case.ids()) == [1, 2, 3, 4, 5]


async def test_pages_are_prepared_side_by_side_in_threads(case: SinkCase) -> None:
    pages = [page(n * 500 + 1, n * 500 + 500) for n in range(8)]
    prepared = await asyncio.gather(*(asyncio.to_thread(case.writer.prepare, one) for one in pages))
    assert [one.rows for one in prepared] == [500] * 8
    assert all(one.bytes > 0 for one in prepared)
    async with asyncio.timeout(30):
        for one in prepared:
            await (await case.writer.submit(one))
    assert sorted(await case.ids()) == list(range(1, 4001))


async def test_a_caller_that_gives_up_waiting_leaves_the_writer_usable(case: SinkCase) -> None:
    first = await write(case, 1, 100)
    waiting = asyncio.create_task(asyncio.wait_for(asyncio.shield(first), 10))
    await asyncio.sleep(0)
    waiting.cancel()
    async with asyncio.timeout(30):
        await (await write(case, 101, 200))
        await asyncio.wait({first})
    assert sorted(await case.ids()) == list(range(1, 201))


async def test_closing_twice_is_well(case: SinkCase) -> None:
    async with asyncio.timeout(30):
        await (await write(case, 1, 10))
        await case.writer.close()
        await case.writer.close()
    assert sorted(await case.ids()) == list(range(1, 11))
