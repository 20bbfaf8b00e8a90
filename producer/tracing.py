"""Owns the traces: OpenTelemetry spans for what is done with each page (extra ``otel``; the key ``opentelemetry``).

Each page is a trace of its own: a span ``page`` with the children ``fetch``, ``encode``, ``send`` and ``commit``. A
commit of several pages is a span in each one's trace. Where they go, and how many are kept, is said by OpenTelemetry's
own environment variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ...).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from producer.config import DropConfig, MaskConfig, StreamConfig
from producer.errors import ConfigError
from producer.model import Page, position_to_json

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

_CLOSE_S = 3.0


class PageTrace:
    """What is recorded of one page; this one records nothing, for all pages while tracing is off."""

    __slots__ = ()

    def step(self, name: str, seconds: float, *, size: int | None = None, error: BaseException | None = None) -> None:
        """A step ("fetch", "encode", "send", "commit") has just ended: seconds it took, and what it failed with.

        `size` is the page's bytes, once they are known.
        """

    def end(self, error: BaseException | None = None) -> None:
        """The page is committed, or is dropped because of `error`. Nothing is recorded of it any more."""


UNTRACED = PageTrace()

#: Begins the trace of a page of a split, by its name in the stream, that has just been fetched in so many seconds.
#: Without a page: the fetch has failed.
Trace = Callable[[StreamConfig, str, Page | None, float], PageTrace]


def untraced(stream: StreamConfig, split: str, page: Page | None, seconds: float) -> PageTrace:
    """Nothing is recorded."""
    return UNTRACED


@dataclass(slots=True)
class OpenTraces:
    """The traces of one attempt's pages that are not committed, by their numbers in the order of the fetches."""

    _by_number: dict[int, PageTrace] = field(default_factory=dict)
    _next: int = 0

    def add(self, page: PageTrace) -> PageTrace:
        self._by_number[self._next] = page
        self._next += 1
        return page

    def commit(self, through: int, seconds: float, error: BaseException | None = None) -> None:
        """The pages up to and with that number have been committed; with an error, they are still to be."""
        for number in [number for number in self._by_number if number <= through]:
            self._by_number[number].step("commit", seconds, error=error)
            if error is None:
                self._by_number.pop(number).end()

    def drop(self, error: BaseException | None) -> None:
        """The attempt is over; `error` ended it, or it was cancelled."""
        for page in self._by_number.values():
            page.end(error if isinstance(error, Exception) else Dropped())
        self._by_number.clear()


class Dropped(Exception):
    """A page that was read and will not be sent."""


@contextmanager
def tracing(app: str, *, enabled: bool, processor: SpanProcessor | None = None) -> Iterator[Trace]:
    """Records spans inside ``with`` if `enabled`, and hands the last ones over at its end (within 3 s).

    They go to `processor`, or else by OTLP over HTTP. ConfigError where the extra is not installed.
    """
    if not enabled:
        yield untraced
        return
    try:
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

    def begin(stream: StreamConfig, split: str, page: Page | None, seconds: float) -> PageTrace:
        now = time.time_ns()
        traced = _Recorded(tracer, _attributes(stream, split, page), now - int(seconds * 1e9))
        return traced if traced.is_kept else UNTRACED

    try:
        yield begin
    finally:
        provider.force_flush(int(_CLOSE_S * 1000))
        provider.shutdown()


def _attributes(stream: StreamConfig, split: str, page: Page | None) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "producer.stream": stream.name,
        "producer.source": stream.source,
        "producer.topic": stream.topic,
        "producer.split": split,
    }
    if page is not None:
        found["producer.rows"] = page.rows
        # It is a row's key, and what the stream masks or drops is not told anywhere else.
        if not any(isinstance(transform, MaskConfig | DropConfig) for transform in stream.transforms):
            found["producer.position"] = json.dumps(position_to_json(page.position))
    return found


class _Recorded(PageTrace):
    """A page's spans. Of errors only the kind is told: their words may quote a row."""

    __slots__ = ("_attributes", "_context", "_ended", "_page", "_tracer")

    def __init__(self, tracer: Tracer, attributes: dict[str, str | int], started: int) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        nowhere = Context()  # a trace of its own, also where whoever embeds us has one open
        self._tracer, self._attributes, self._ended = tracer, attributes, False
        self._page = tracer.start_span("page", nowhere, attributes=attributes, start_time=started)
        self._context = set_span_in_context(self._page, nowhere)

    @property
    def is_kept(self) -> bool:
        """Whether the sampler has chosen it."""
        return self._page.is_recording()

    def step(self, name: str, seconds: float, *, size: int | None = None, error: BaseException | None = None) -> None:
        if self._ended:  # an acknowledgement that came after the attempt was given up
            return
        if size is not None:
            self._attributes["producer.bytes"] = size
            self._page.set_attribute("producer.bytes", size)
        end = time.time_ns()
        span = self._tracer.start_span(
            name, self._context, attributes=self._attributes, start_time=end - int(seconds * 1e9)
        )
        _end(span, error, end)

    def end(self, error: BaseException | None = None) -> None:
        if not self._ended:
            self._ended = True
            _end(self._page, error, time.time_ns())


def _end(span: Span, error: BaseException | None, at: int) -> None:
    if error is not None:
        from opentelemetry.trace import StatusCode

        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR, type(error).__name__)
    span.end(at)
