"""Owns reading a table whole through the SQL source."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from producer.config import StreamConfig
from producer.model import Dataset, Position, Split
from producer.sources.sql import SqlConfig, SqlSource


def stream(table: str, **settings: Any) -> StreamConfig:
    return StreamConfig.model_validate({"name": "s", "source": "db", "table": table, **settings})


@contextlib.asynccontextmanager
async def open_source(url: str, **settings: Any) -> AsyncIterator[SqlSource]:
    source = SqlSource(SqlConfig(url=SecretStr(url), **settings))
    try:
        await source.start()
        yield source
    finally:
        await source.close()


async def read_split(source: SqlSource, config: StreamConfig, dataset: Dataset, split: Split) -> list[pa.RecordBatch]:
    reader = await source.reader(config, dataset, split)
    found: list[pa.RecordBatch] = []
    position: Position | None = None
    try:
        while True:
            page = await reader.fetch(position, config.page_size)
            found.append(page.batch)
            position = page.position
            if page.last:
                return found
    finally:
        await reader.close()


async def read(url: str, config: StreamConfig) -> pa.Table:
    """All rows of the stream, split after split."""
    async with open_source(url) as source:
        dataset = await source.describe(config)
        batches: list[pa.RecordBatch] = []
        for split in await source.plan(config, dataset):
            batches += await read_split(source, config, dataset, split)
    return pa.Table.from_batches(batches, dataset.schema)
