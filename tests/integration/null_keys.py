"""A run of the real engine and SQL source over tables with NULL in their keys; what it sends is kept in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from producer.config import Config, StreamConfig
from producer.metrics import Metrics
from producer.model import Dataset, Page
from producer.parts import Parts
from producer.service import Service
from producer.sources.sql import SqlConfig, SqlSource
from producer.status import StreamStatus
from tests.unit.engine import MemoryStore


@dataclass(frozen=True)
class Prepared:
    page: Page

    @property
    def rows(self) -> int:
        return self.page.rows

    @property
    def bytes(self) -> int:
        return 8 * self.page.rows


@dataclass
class Received:
    """What one stream has sent: its rows, and the rows of its dead letters, each as text by column."""

    dataset: Dataset
    dead_lettered: Callable[[str], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    letters: list[dict[str, Any]] = field(default_factory=list)

    def prepare(self, page: Page) -> Prepared:
        for name in (*self.dataset.key, *self.dataset.order):
            assert not page.batch.column(name).null_count, "a page has a row without a key"
        return Prepared(page)

    async def submit(self, prepared: Prepared) -> asyncio.Future[None]:
        self.rows += prepared.page.batch.to_pylist()
        for rejected in prepared.page.rejected:
            self.letters.append(rejected.columns.to_pylist()[0] | dict(rejected.others))
            self.dead_lettered(type(rejected.error).__name__)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    async def close(self) -> None:
        pass


@dataclass
class Runs:
    """Runs of the same streams, one after the other: their checkpoints stay."""

    url: str
    streams: Sequence[Mapping[str, Any]]
    store: MemoryStore = field(default_factory=MemoryStore)
    received: dict[str, Received] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)

    def service(self) -> Service:
        config = Config.model_validate(
            {
                "sources": {"shop": {"type": "sql", "url": self.url}},
                "streams": [{"source": "shop", "poll_interval_s": 0.02, **stream} for stream in self.streams],
            }
        )
        self.received = {}
        self.metrics = Metrics()

        async def open_writer(
            stream: StreamConfig, dataset: Dataset, unit: str, dead_lettered: Callable[[str], None]
        ) -> Received:
            return self.received.setdefault(stream.name, Received(dataset, dead_lettered))

        async def parts(config: Config, run_id: str) -> Parts:
            source = SqlSource(SqlConfig(url=SecretStr(self.url)))
            await source.start()
            return Parts({"shop": source}, self.store, open_writer)

        return Service(config, metrics=self.metrics, run_id="r", parts=parts)

    async def once(self) -> dict[str, StreamStatus]:
        """Runs to the end. What each stream came to, by name."""
        service = self.service()
        async with asyncio.timeout(120):
            await service.run(once=True, stop=asyncio.Event())
        return dict(service.streams)

    def rows(self, stream: str) -> list[dict[str, Any]]:
        return self.received[stream].rows if stream in self.received else []

    def letters(self, stream: str) -> list[dict[str, Any]]:
        return self.received[stream].letters if stream in self.received else []
