"""Owns the claims about traces: a span for each step of a page, with the time it took."""

from __future__ import annotations

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from producer.tracing import tracing


def test_each_step_of_a_page_is_a_span_of_its_stream() -> None:
    kept = InMemorySpanExporter()
    with tracing("shop", enabled=True, processor=SimpleSpanProcessor(kept)) as trace:
        for step in ("fetch", "encode", "send", "commit"):
            trace("events", step, 0.25, 100)
    *steps, stream = kept.get_finished_spans()
    assert [span.name for span in steps] == ["fetch", "encode", "send", "commit"]
    assert stream.name == "stream"
    for span in steps:
        assert span.parent is not None
        assert span.parent.span_id == stream.context.span_id
        assert span.end_time is not None
        assert span.start_time is not None
        assert span.end_time - span.start_time == 250_000_000
        assert dict(span.attributes or {}) == {"producer.stream": "events", "producer.rows": 100}


def test_without_the_switch_nothing_is_loaded_or_recorded() -> None:
    with tracing("shop", enabled=False) as trace:
        trace("events", "fetch", 0.1, 1)
