"""Owns what tests do with a source on the loopback server: open it, and read a stream as the engine would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from producer.config import StreamConfig
from producer.errors import TransientError
from producer.model import Page, Position, Split
from producer.protocols import PageReader
from producer.sources.telegram import TelegramConfig, TelegramSource
from tests.mtproto.server import Server

CHAT = 1001


def stream_config(chat: str | int = "@demo", **more: Any) -> StreamConfig:
    """A chat stream; snapshot, one split."""
    values = {"name": "chat", "source": "chats", "topic": "chats.chat", "chat": chat, "max_parallel": 1} | more
    return StreamConfig.model_validate(values)


@asynccontextmanager
async def open_source(
    server: Server, *, hooks: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[TelegramSource]:
    """A started source that waits for nothing by itself and asks again after a second."""
    settings = {"api_id": 1, "api_hash": "secret", "session": server.session(), "min_delay_s": 0.0}
    config = TelegramConfig.model_validate(settings | {"request_timeout_s": 1.0, "adaptive": False} | more)
    source = TelegramSource(config, **(hooks or {}))
    await source.start()
    try:
        yield source
    finally:
        await source.close()


@dataclass
class Reading:
    """What came out of a stream's splits, in order of the splits."""

    pages: list[Page] = field(default_factory=list)
    errors: list[TransientError] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for page in self.pages for row in page.batch.to_pylist()]

    @property
    def ids(self) -> list[int]:
        return [number for page in self.pages for number in page.batch.column("id").to_pylist()]


async def drain(
    reader: PageReader, reading: Reading, position: Position | None = None, limit: int = 1000
) -> Position | None:
    """Fetches until the reader says that nothing follows for now; transient errors are noted and asked again."""
    while True:
        try:
            page = await reader.fetch(position, limit)
        except TransientError as error:
            reading.errors.append(error)
            continue
        reading.pages.append(replace(page, detail=None))
        position = page.position or position
        if page.last:
            return position


async def read_all(
    source: TelegramSource,
    stream: StreamConfig,
    *,
    limit: int = 1000,
    keep: Callable[[Split], bool] = lambda split: True,
) -> Reading:
    """Every split of a fresh plan, one after the other."""
    dataset = await source.describe(stream)
    reading = Reading()
    for split in await source.plan(stream, dataset):
        if keep(split):
            await drain(await source.reader(stream, dataset, split), reading, limit=limit)
    return reading
