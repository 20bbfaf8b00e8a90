"""Owns scripted stand-ins for the engine's seams: failure written as data, and what came of it recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from producer.commits import Committer, SplitProgress
from producer.config import Config, StreamConfig
from producer.inflight import ByteBudget
from producer.metrics import Metrics
from producer.model import Between, Checkpoint, Dataset, KeyPosition, Page, Position, Split, StreamState
from producer.parts import Parts
from producer.pipeline import Limits, StreamIO
from producer.service import Service


@dataclass
class ScriptedReader:
    """Pages over the ids `first..last`; `faults` maps a count of fetches to the error that this fetch raises."""

    last: int
    first: int = 1
    faults: dict[int, BaseException] = field(default_factory=dict)
    fetches: int = 0
    limits: list[int] = field(default_factory=list)
    row_bytes: int = 8

    async def fetch(self, position: Position | None, limit: int) -> Page:
        self.fetches += 1
        self.limits.append(limit)
        await asyncio.sleep(0)
        if error := self.faults.get(self.fetches):
            raise error
        after = position.values[0] if isinstance(position, KeyPosition) else self.first - 1
        assert isinstance(after, int)
        ids = list(range(after + 1, min(after + limit, self.last) + 1))
        columns = {"id": pa.array(ids, pa.int64()), "fill": pa.array(["x" * (self.row_bytes - 8)] * len(ids))}
        return Page(
            pa.record_batch(columns),
            KeyPosition((ids[-1],)) if ids else position,
            last=not ids or ids[-1] >= self.last,
        )

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Prepared:
    ids: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def bytes(self) -> int:
        return 8 * len(self.ids)


@dataclass
class ScriptedWriter:
    """Keeps what was submitted; `answer(count, page)` says how: None = acknowledged, an error, or a future."""

    answer: Callable[[int, Prepared], BaseException | asyncio.Future[None] | None] = lambda count, page: None
    sent: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    pages: int = 0

    def prepare(self, page: Page) -> Prepared:
        return Prepared(tuple(page.batch.column(0).to_pylist()))

    async def submit(self, prepared: Prepared) -> asyncio.Future[None]:
        self.pages += 1
        self.sent.extend(prepared.ids)
        outcome = self.answer(self.pages, prepared)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future() if not isinstance(outcome, asyncio.Future) else outcome
        future.add_done_callback(
            lambda f: self.acknowledged.extend(prepared.ids) if not f.cancelled() and f.exception() is None else None
        )
        if isinstance(outcome, BaseException):
            loop.call_soon(future.set_exception, outcome)
        elif outcome is None:
            loop.call_soon(future.set_result, None)
        return future

    async def close(self) -> None:
        pass


@dataclass
class MemoryStore:
    """A checkpoint store in memory; `check` is called with each commit before it counts."""

    check: Callable[[Sequence[Checkpoint]], None] = lambda changed: None
    faults: dict[int, BaseException] = field(default_factory=dict)
    states: dict[str, StreamState] = field(default_factory=dict)
    commits: int = 0
    delay_s: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def load(self, stream: str) -> StreamState | None:
        return self.states.get(stream)

    async def claim(self, stream: str, above: int = 0) -> int:
        state = self.states.get(stream)
        return (state.epoch if state else 0) + 1

    async def begin(self, state: StreamState) -> None:
        self.states[state.stream] = state

    async def commit(self, stream: str, epoch: int, changed: Sequence[Checkpoint]) -> None:
        self.commits += 1
        await asyncio.sleep(self.delay_s)
        await self.gate.wait()
        if error := self.faults.get(self.commits):
            raise error
        self.check(changed)
        if stream in self.states:
            self.states[stream] = self.states[stream].with_changes(changed, "")

    async def set_paused(self, stream: str, epoch: int, paused: bool) -> None:
        self.states[stream] = replace(self.states[stream], paused=paused)

    async def reset(self, stream: str) -> bool:
        return self.states.pop(stream, None) is not None

    async def streams(self) -> Sequence[str]:
        return sorted(self.states)


def stream_io(
    writer: ScriptedWriter,
    store: MemoryStore,
    *,
    window_pages: int = 4,
    page_rows: int = 100,
    page_bytes: int = 1 << 20,
    budget_bytes: int = 1 << 20,
    follow: bool = False,
    row_bytes: int | None = 8,
    whole: bool = False,
) -> StreamIO:
    """A StreamIO over stand-ins, with an open gate."""
    gate = asyncio.Event()
    gate.set()

    async def here(work: Callable[[], object]) -> object:
        return work()

    async def unthrottled(rows: int) -> None:
        pass

    return StreamIO(
        stream="s",
        writer=writer,
        budget=ByteBudget(budget_bytes),
        limits=Limits(window_pages, page_rows, page_bytes),
        commits=Committer(
            lambda changed: store.commit("s", 1, changed), committed=lambda changed, seconds: None, whole=whole
        ),
        gate=gate,
        stop=asyncio.Event(),
        follow=follow,
        poll_interval_s=0.01,
        observe_fetch=lambda seconds, rows: None,
        observe_encode=lambda seconds: None,
        observe_ack=lambda seconds, rows, size: None,
        run_in_thread=here,
        throttle=unthrottled,
        wake=asyncio.Event(),
        row_bytes=row_bytes,
    )


@contextlib.asynccontextmanager
async def committing(io: StreamIO) -> AsyncIterator[None]:
    """With the task that commits."""
    task = asyncio.create_task(io.commits.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def fresh() -> SplitProgress:
    """Progress of a split that has not begun."""
    return SplitProgress(Checkpoint(Split("0")))


@dataclass
class SplitReader(ScriptedReader):
    """A ScriptedReader within a split's bounds."""

    split: Split = field(default_factory=lambda: Split("0"))

    async def fetch(self, position: Position | None, limit: int) -> Page:
        return await ScriptedReader.fetch(self, position if position is not None else self.split.lower, limit)


@dataclass
class ScriptedSource:
    """A table of the ids 1..`rows`. `cuts` are the upper ends of the planned splits but the last."""

    rows: int
    cuts: Sequence[int] = ()
    identity: str = "table"
    describe_error: BaseException | None = None
    reader_faults: dict[int, BaseException] = field(default_factory=dict)
    row_bytes: int | None = 8
    divided: int = 0
    readers: int = 0
    closed: int = 0

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1

    async def describe(self, stream: StreamConfig) -> Dataset:
        if self.describe_error is not None:
            raise self.describe_error
        schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("fill", pa.string())])
        return Dataset(
            stream.name, schema, ("id",), ("id",), {"t": self.identity}, rows_estimate=self.rows, row_bytes_estimate=8
        )

    async def plan(self, stream: StreamConfig, dataset: Dataset) -> Sequence[Split]:
        ends = [KeyPosition((cut,)) for cut in (*self.cuts, self.rows)]
        lowers: list[Position | None] = [None, *ends[:-1]]
        uppers: list[Position | None] = [*ends[:-1], None if stream.mode != "snapshot" else ends[-1]]
        return [Split(str(i), low, up) for i, (low, up) in enumerate(zip(lowers, uppers, strict=True))]

    async def reader(self, stream: StreamConfig, dataset: Dataset, split: Split) -> SplitReader:
        self.readers += 1
        return SplitReader(last=_id(split.upper, self.rows), faults=self.reader_faults, split=split)

    async def divide(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> Position | None:
        self.divided += 1
        low, high = self._rest(checkpoint)
        return KeyPosition(((low + high) // 2,)) if high - low > 1 else None

    async def replay(self, stream: StreamConfig, dataset: Dataset, split_id: str, wanted: Between) -> Split:
        return Split(
            split_id, KeyPosition((int(str(wanted.first)) - 1,)), KeyPosition((int(str(wanted.last or self.rows)),))
        )

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        low, high = self._rest(checkpoint)
        return high - low

    def _rest(self, checkpoint: Checkpoint) -> tuple[int, int]:
        start = checkpoint.position if checkpoint.position is not None else checkpoint.split.lower
        return _id(start, 0), _id(checkpoint.split.upper, self.rows)


def _id(position: Position | None, default: int) -> int:
    value = position.values[0] if isinstance(position, KeyPosition) else default
    assert isinstance(value, int)
    return value


def service_of(
    sources: Mapping[str, ScriptedSource],
    writers: Mapping[str, ScriptedWriter],
    store: MemoryStore,
    *,
    retry_timeout_s: float = 5,
    shutdown_timeout_s: float = 5,
    opening: Callable[[], Awaitable[None]] | None = None,
    **more: Any,
) -> Service:
    """A Service over stand-ins: a stream for each source, of the same name. `opening` is awaited for each writer."""
    config = Config.model_validate(
        {
            "sources": {name: {"type": "sql", "url": "sqlite:///none"} for name in sources},
            "streams": [{"name": n, "source": n, "table": n, "page_size": 10, **more} for n in sources],
            "retry_timeout_s": retry_timeout_s,
            "shutdown_timeout_s": shutdown_timeout_s,
        }
    )

    async def open_writer(
        stream: StreamConfig, dataset: Dataset, unit: str, dead_lettered: Callable[[str], None]
    ) -> ScriptedWriter:
        if opening is not None:
            await opening()
        return writers[stream.name]

    async def parts(config: Config, run_id: str) -> Parts:
        return Parts(sources, store, open_writer)

    return Service(config, metrics=Metrics(), run_id="r", parts=parts)
