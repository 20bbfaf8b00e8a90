"""What a running stream's metrics say, where alerts rely on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from producer import stream as streams
from producer.config import StreamConfig
from producer.errors import AuthenticationError, RateLimitedError
from producer.model import Checkpoint, Dataset
from producer.service import Service
from tests.unit.engine import MemoryStore, ScriptedSource, ScriptedWriter, service_of


@pytest.fixture(autouse=True)
def _looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WATCH_INTERVAL_S", 0.01)


class Silent(ScriptedWriter):
    """Acknowledges nothing until `answers` is called."""

    def __init__(self) -> None:
        super().__init__(answer=lambda count, page: self._held())
        self.held: list[asyncio.Future[None]] = []
        self.silent = True

    def _held(self) -> asyncio.Future[None] | None:
        if not self.silent:
            return None
        self.held.append(asyncio.get_running_loop().create_future())
        return self.held[-1]

    def answers(self) -> None:
        self.silent = False
        for future in self.held:
            future.set_result(None)


def value(service: Service, name: str, **more: str) -> float:
    labels = {"stream": "a", "source": "a", "topic": "a.a", **more}
    found = service._metrics.registry.get_sample_value(f"producer_{name}", labels)
    assert found is not None, name
    return found


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(once=False, stop=stop))
    try:
        await until(lambda: bool(service.streams))
        yield
    finally:
        stop.set()
        await task


async def test_the_oldest_unacknowledged_record_ages_until_the_broker_answers() -> None:
    writer = Silent()
    service = service_of({"a": ScriptedSource(30)}, {"a": writer}, MemoryStore())
    async with running(service):
        await until(lambda: value(service, "inflight_records") == 30)
        first = value(service, "oldest_unacknowledged_seconds")
        await until(lambda: value(service, "oldest_unacknowledged_seconds") > first)
        writer.answers()
        await until(lambda: value(service, "inflight_records") == 0)
        assert value(service, "oldest_unacknowledged_seconds") == 0


async def test_the_lag_grows_while_the_end_is_not_acknowledged_and_falls_when_it_is() -> None:
    writer = Silent()
    source = ScriptedSource(30)
    service = service_of({"a": source}, {"a": writer}, MemoryStore(), mode="tail", poll_interval_s=0.01)
    async with running(service):
        await until(lambda: value(service, "source_lag_seconds") > 0.5)
        writer.answers()
        await until(lambda: value(service, "source_lag_seconds") < 0.5)


async def test_a_failure_is_counted_by_what_it_was() -> None:
    writer = ScriptedWriter(answer=lambda count, page: AuthenticationError("the session was revoked"))
    service = service_of({"a": ScriptedSource(30)}, {"a": writer}, MemoryStore())
    async with running(service):
        await until(lambda: value(service, "stream_state", state="failed") == 1)
        assert value(service, "failures_total", reason="AuthenticationError") == 1
        assert value(service, "failures_total", reason="EncodeError") == 0


async def test_waiting_for_a_rate_limit_is_counted() -> None:
    source = ScriptedSource(30, reader_faults={1: RateLimitedError("slow down", retry_after_s=0.01)})
    service = service_of({"a": source}, {"a": ScriptedWriter()}, MemoryStore())
    async with running(service):
        await until(lambda: value(service, "rate_limit_wait_seconds_total") >= 0.01)
        assert value(service, "retries_total", reason="RateLimitedError") == 1


class Unknowing(ScriptedSource):
    """A source that cannot tell how much there is, until `tells`."""

    tells: int | None = None

    async def describe(self, stream: StreamConfig) -> Dataset:
        return replace(await super().describe(stream), rows_estimate=None)

    async def remaining(self, stream: StreamConfig, dataset: Dataset, checkpoint: Checkpoint) -> int | None:
        return self.tells


async def test_an_unknown_rest_and_time_to_go_have_no_value() -> None:
    source, writer = Unknowing(30), Silent()
    service = service_of({"a": source}, {"a": writer}, MemoryStore())

    def left(name: str) -> float | None:
        labels = {"stream": "a", "source": "a", "topic": "a.a"}
        return service._metrics.registry.get_sample_value(f"producer_{name}", labels)

    async with running(service):
        await until(lambda: value(service, "inflight_records") == 30)
        known = [left(f"backfill_{name}") for name in ("rows_total_estimate", "rows_remaining", "eta_seconds")]
        assert known == [None, None, None]
        source.tells = 70
        await until(lambda: left("backfill_rows_remaining") == 70)
        assert left("backfill_eta_seconds") is None  # nothing has been acknowledged: no rate
        source.tells = 0
        await until(lambda: left("backfill_eta_seconds") == 0)
        writer.answers()
