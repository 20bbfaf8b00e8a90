"""Owns the claims about traces: one for each page, with a span for each step, whatever becomes of the page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from opentelemetry import trace as opentelemetry
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from producer.config import StreamConfig
from producer.errors import EncodeError, SinkUnavailableError, SourceUnavailableError, StoreUnavailableError
from producer.model import Page
from producer.pipeline import StreamIO, run_split
from producer.tracing import UNTRACED, Trace, tracing
from tests.unit.engine import MemoryStore, ScriptedReader, ScriptedWriter, committing, fresh, service_of, stream_io
from tests.unit.engine import ScriptedSource as Source

STREAM = StreamConfig(name="events", source="shop", table="events", topic="shop.events")
STEPS = ["fetch", "encode", "send", "commit"]


class Pages:
    """The traces that have been kept, each as its page's span and the spans of the steps."""

    def __init__(self) -> None:
        self.kept = InMemorySpanExporter()

    @contextmanager
    def traced(self, io: StreamIO, stream: StreamConfig = STREAM) -> Iterator[None]:
        with self.tracing() as trace:
            io.trace = partial(trace, stream)
            yield

    @contextmanager
    def tracing(self) -> Iterator[Trace]:
        with tracing("shop", enabled=True, processor=SimpleSpanProcessor(self.kept)) as trace:
            yield trace

    @property
    def traces(self) -> list[tuple[ReadableSpan, list[ReadableSpan]]]:
        """In the order in which the pages were begun."""
        spans = self.kept.get_finished_spans()
        pages = sorted((span for span in spans if span.name == "page"), key=lambda span: span.start_time or 0)
        assert all(page.parent is None for page in pages)
        return [(page, [span for span in spans if span.parent == page.context]) for page in pages]

    def steps(self) -> list[list[tuple[str, str | None]]]:
        """Name and error of each step of each page; there are no others."""
        found = [[(step.name, error_of(step)) for step in steps] for _, steps in self.traces]
        assert sum(1 + len(steps) for steps in found) == len(self.kept.get_finished_spans())
        return found


def error_of(span: ReadableSpan) -> str | None:
    assert span.end_time is not None
    error = (span.attributes or {}).get("error.type")
    assert (span.status.status_code == StatusCode.ERROR, span.status.description) == (error is not None, error)
    return None if error is None else str(error)


async def run(io: StreamIO, reader: ScriptedReader) -> None:
    async with committing(io), asyncio.timeout(20):
        await run_split(io, reader, fresh())


async def test_each_page_is_a_trace_with_its_steps() -> None:
    pages, io = Pages(), stream_io(ScriptedWriter(), MemoryStore(), page_rows=100)
    with pages.traced(io):
        await run(io, ScriptedReader(last=250))
    assert pages.steps() == [[(name, None) for name in STEPS]] * 3
    assert len({page.context.trace_id for page, _ in pages.traces}) == 3
    for number, (page, steps) in enumerate(pages.traces):
        rows = [100, 100, 50][number]
        told: dict[str, object] = {
            "producer.stream": "events",
            "producer.source": "shop",
            "producer.topic": "shop.events",
            "producer.split": "0",
            "producer.rows": rows,
            "producer.position": ['{"key": [100]}', '{"key": [200]}', '{"key": [250]}'][number],
        }
        size = {"producer.bytes": 8 * rows}
        assert error_of(page) is None
        assert [dict(span.attributes or {}) for span in steps] == [told, *[told | size] * 3]
        assert dict(page.attributes or {}) == told | size
        assert page.start_time is not None
        assert page.end_time is not None
        assert all(step.end_time is not None and step.end_time <= page.end_time for step in steps)


async def test_a_stream_that_is_followed_has_traces_that_end() -> None:
    pages, io = Pages(), stream_io(ScriptedWriter(), MemoryStore(), follow=True)
    with pages.traced(io):
        running = asyncio.create_task(run(io, ScriptedReader(last=250)))
        async with asyncio.timeout(10):
            while len(pages.traces) < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # polls that find nothing are no pages
        assert pages.steps() == [[(name, None) for name in STEPS]] * 3
        io.stop.set()
        await running


async def test_a_commit_of_several_pages_is_in_the_trace_of_each() -> None:
    store = MemoryStore()
    pages, io = Pages(), stream_io(ScriptedWriter(), store, page_rows=100, window_pages=8)
    with pages.traced(io):
        await run(io, ScriptedReader(last=400))
    assert store.commits < 4
    assert pages.steps() == [[(name, None) for name in STEPS]] * 4


async def test_a_page_that_the_sink_refuses_and_those_dropped_with_it_end_with_the_error() -> None:
    error = SinkUnavailableError("value 'secret' refused")
    writer = ScriptedWriter(answer=lambda count, page: error if count == 2 else asyncio.Future())
    pages, io = Pages(), stream_io(writer, MemoryStore(), page_rows=100)
    with pages.traced(io), pytest.raises(SinkUnavailableError):
        await run(io, ScriptedReader(last=400))
    assert {error_of(page) for page, _ in pages.traces} == {"SinkUnavailableError"}
    assert pages.steps()[:2] == [
        [("fetch", None), ("encode", None)],
        [("fetch", None), ("encode", None), ("send", "SinkUnavailableError")],
    ]
    assert not any("secret" in span.to_json() for span in pages.kept.get_finished_spans())


async def test_a_page_that_cannot_be_encoded_ends_with_the_error() -> None:
    class Writer(ScriptedWriter):
        def prepare(self, page: Page) -> object:  # type: ignore[override]
            raise EncodeError("no")

    pages, io = Pages(), stream_io(Writer(), MemoryStore())
    with pages.traced(io), pytest.raises(EncodeError):
        await run(io, ScriptedReader(last=10))
    assert pages.steps() == [[("fetch", None), ("encode", "EncodeError")]]
    assert error_of(pages.traces[0][0]) == "EncodeError"


async def test_a_fetch_that_fails_is_a_trace_without_a_page() -> None:
    pages, io = Pages(), stream_io(ScriptedWriter(), MemoryStore())
    reader = ScriptedReader(last=10, faults={1: SourceUnavailableError("away")})
    with pages.traced(io), pytest.raises(SourceUnavailableError):
        await run(io, reader)
    assert pages.steps() == [[("fetch", "SourceUnavailableError")]]
    ((page, _),) = pages.traces
    assert error_of(page) == "SourceUnavailableError"
    assert "producer.rows" not in (page.attributes or {})


async def test_a_commit_that_is_asked_again_is_two_steps_of_a_page_that_did_not_fail() -> None:
    store = MemoryStore(faults={1: StoreUnavailableError("away")})
    pages, io = Pages(), stream_io(ScriptedWriter(), store)
    with pages.traced(io):
        await run(io, ScriptedReader(last=10))
    assert pages.steps() == [
        [("fetch", None), ("encode", None), ("send", None), ("commit", "StoreUnavailableError"), ("commit", None)]
    ]
    assert error_of(pages.traces[0][0]) is None


async def test_pages_that_are_dropped_when_the_run_is_cut_off_end_too() -> None:
    writer = ScriptedWriter(answer=lambda count, page: asyncio.Future())
    pages, io = Pages(), stream_io(writer, MemoryStore(), page_rows=100, window_pages=2)
    with pages.traced(io):
        running = asyncio.create_task(run(io, ScriptedReader(last=1000)))
        async with asyncio.timeout(10):
            while writer.pages < 2:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        assert {error_of(page) for page, _ in pages.traces} == {"Dropped"}


async def test_a_service_traces_the_pages_of_its_streams_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages()
    service = service_of({"shop": Source(25, cuts=[10])}, {"shop": ScriptedWriter()}, MemoryStore())
    monkeypatch.setattr("producer.service.tracing", lambda app, enabled: pages.tracing())
    with TracerProvider().get_tracer("of whoever embeds us").start_as_current_span("outer"):
        assert opentelemetry.get_current_span().is_recording()
        async with asyncio.timeout(20):
            await service.run(once=True, stop=asyncio.Event())
    assert pages.steps() == [[(name, None) for name in STEPS]] * 3
    assert sorted(str((page.attributes or {})["producer.split"]) for page, _ in pages.traces) == ["0", "1", "1"]


@pytest.mark.parametrize("transform", [{"mask": ["id"], "with": "?"}, {"drop": ["name"]}])
async def test_a_stream_that_conceals_values_tells_no_position(transform: dict[str, object]) -> None:
    stream = StreamConfig.model_validate(STREAM.model_dump(exclude_unset=True) | {"transforms": [transform]})
    pages, io = Pages(), stream_io(ScriptedWriter(), MemoryStore())
    with pages.traced(io, stream):
        await run(io, ScriptedReader(last=10))
    assert not any("producer.position" in (span.attributes or {}) for span in pages.kept.get_finished_spans())


async def test_the_sampler_chooses_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    pages, io = Pages(), stream_io(ScriptedWriter(), MemoryStore(), page_rows=10)
    with pages.traced(io):
        await run(io, ScriptedReader(last=1000))
    assert 10 < len(pages.traces) < 90
    assert pages.steps() == [[(name, None) for name in STEPS]] * len(pages.traces)


def test_without_the_switch_nothing_is_recorded() -> None:
    with tracing("shop", enabled=False) as trace:
        assert trace(STREAM, "0", None, 0.1) is UNTRACED
