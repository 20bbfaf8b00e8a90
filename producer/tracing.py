"""Owns the traces: OpenTelemetry spans for what is done with each page (extra ``otel``; the key ``opentelemetry``).

Spans ``fetch``, ``encode``, ``send`` and ``commit`` of a stream hang on one span ``stream``. Where they go is said by
OpenTelemetry's own environment variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ...).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from producer.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

#: Records that a step ("fetch", "encode", "send", "commit") of a stream has just ended: seconds it took, rows.
Trace = Callable[[str, str, float, int], None]

_CLOSE_S = 3.0


def untraced(stream: str, step: str, seconds: float, rows: int) -> None:
    """Nothing is recorded."""


@contextmanager
def tracing(app: str, *, enabled: bool, processor: SpanProcessor | None = None) -> Iterator[Trace]:
    """Records spans inside ``with`` if `enabled`, and hands the last ones over at its end (within 3 s).

    They go to `processor`, or else by OTLP over HTTP. ConfigError where the extra is not installed.
    """
    if not enabled:
        yield untraced
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        if processor is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            processor = BatchSpanProcessor(OTLPSpanExporter())
    except ImportError:
        raise ConfigError(
            "opentelemetry is on, and its packages are not there", hint="pip install 'streaming-producer[otel]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "producer", "service.namespace": app}))
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("producer")
    streams: dict[str, trace.Span] = {}

    def record(stream: str, step: str, seconds: float, rows: int) -> None:
        if stream not in streams:
            streams[stream] = tracer.start_span("stream", attributes={"producer.stream": stream})
        parent = trace.set_span_in_context(streams[stream])
        end = time.time_ns()
        attributes: dict[str, str | int] = {"producer.stream": stream, "producer.rows": rows}
        span = tracer.start_span(step, parent, attributes=attributes, start_time=end - int(seconds * 1e9))
        span.end(end)

    try:
        yield record
    finally:
        for span in streams.values():
            span.end()
        provider.force_flush(int(_CLOSE_S * 1000))
        provider.shutdown()
