"""Owns the metrics: every name, its unit, and the labels that a stream's series carry.

Labels are stream, source and topic, and where the name says so one more with few values (state, reason). Tables, keys
and errors are never labels. All series of a stream exist from its first moment, so that a rate over them has a start;
those of a `LateGauge` exist once their value is known.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from producer import __version__, errors

StreamStateName = Literal["starting", "running", "paused", "complete", "failed", "stopped"]
SplitStateName = Literal["waiting", "running", "done", "failed"]

_STREAM = ("stream", "source", "topic")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TRANSIENT = ("TransientError", *(kind.__name__ for kind in errors.TransientError.__subclasses__()))
_PERMANENT = ("PermanentError", *(kind.__name__ for kind in errors.PermanentError.__subclasses__()))
_BAD_RECORDS = ("EncodeError", "RecordTooLargeError")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Not a metric of ours: a `_created` series beside each counter and histogram, which doubles what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class LateGauge:
    """A stream's gauge that has no series before its value is known: 0 would say that nothing is left to do."""

    _gauge: Gauge
    _labels: tuple[str, str, str]

    def set(self, value: float) -> None:
        """The value from now on."""
        self._gauge.labels(*self._labels).set(value)


@dataclass(frozen=True, slots=True)
class StreamMetrics:
    """One stream's series, ready to be counted on."""

    rows_read: Counter
    records_acked: Counter
    bytes_acked: Counter
    inflight_records: Gauge
    inflight_bytes: Gauge
    oldest_unacknowledged_seconds: Gauge
    page_fetch_seconds: Histogram
    encode_seconds: Histogram
    ack_seconds: Histogram
    checkpoint_commit_seconds: Histogram
    checkpoint_last_commit_timestamp_seconds: Gauge
    backfill_rows_total_estimate: LateGauge
    backfill_rows_remaining: LateGauge
    backfill_eta_seconds: LateGauge
    source_lag_seconds: Gauge
    source_lag_rows: LateGauge
    source_throttle_factor: Gauge
    rate_limit_wait_seconds: Counter
    gap_holes_open: Gauge
    gap_holes_expired: Counter
    table_replacements: Counter
    _labels: tuple[str, str, str]
    _all: Metrics

    def state(self, state: StreamStateName) -> None:
        """The stream is in `state` from now on: 1 for it and 0 for all others."""
        for name in get_args(StreamStateName):
            self._all.stream_state.labels(*self._labels, name).set(name == state)

    def splits(self, counts: Mapping[str, int]) -> None:
        """How many splits are in each state; states that are left out have none."""
        for name in get_args(SplitStateName):
            self._all.splits.labels(*self._labels, name).set(counts.get(name, 0))

    def retried(self, reason: str) -> None:
        """One more retry; `reason` is the error's class, such as ``SourceUnavailableError``."""
        self._all.retries.labels(*self._labels, reason).inc()

    def failed(self, reason: str) -> None:
        """The stream has failed; `reason` is the error's class, such as ``AuthenticationError``."""
        self._all.failures.labels(*self._labels, reason).inc()

    def dead_letter(self, reason: str) -> None:
        """One more record in the dead-letter topic; `reason` is the error's class."""
        self._all.dead_letters.labels(*self._labels, reason).inc()


class Metrics:
    """All metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*_STREAM, *more), namespace="producer", registry=registry)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(name, text, (*_STREAM, *more), namespace="producer", registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, _STREAM, namespace="producer", registry=registry, buckets=_SECONDS)

        self.rows_read = counter("rows_read_total", "Rows read from the source.")
        self.records_acked = counter("records_acked_total", "Records that the broker has acknowledged.")
        self.bytes_acked = counter("bytes_acked_total", "Bytes of acknowledged records, before compression.")
        self.inflight_records = gauge("inflight_records", "Records sent and not yet acknowledged.")
        self.inflight_bytes = gauge("inflight_bytes", "Memory held by records that are not yet acknowledged.")
        self.oldest_unacknowledged_seconds = gauge(
            "oldest_unacknowledged_seconds", "How long the oldest record in flight has waited; 0: none is in flight."
        )
        self.page_fetch_seconds = seconds("page_fetch_seconds", "Time to fetch a page from the source.")
        self.encode_seconds = seconds("encode_seconds", "Time to encode a page.")
        self.ack_seconds = seconds("ack_seconds", "Time from handing a page over to its acknowledgement.")
        self.checkpoint_commit_seconds = seconds("checkpoint_commit_seconds", "Time to write a checkpoint.")
        self.checkpoint_last_commit_timestamp_seconds = gauge(
            "checkpoint_last_commit_timestamp_seconds", "When the last checkpoint was written, since 1970."
        )
        self.backfill_rows_total_estimate = gauge(
            "backfill_rows_total_estimate", "About how many rows the snapshot has in all; absent while unknown."
        )
        self.backfill_rows_remaining = gauge(
            "backfill_rows_remaining",
            "About how many rows of the splits that this process runs are still to come; absent while unknown.",
        )
        self.backfill_eta_seconds = gauge(
            "backfill_eta_seconds", "About how long the rest will take; absent while unknown."
        )
        self.splits = gauge("splits", "Splits by state.", "state")
        self.source_lag_seconds = gauge("source_lag_seconds", "Time since the source's end was seen: the topic's age.")
        self.source_lag_rows = gauge(
            "source_lag_rows", "About how many rows the source is ahead of the topic; absent while unknown."
        )
        self.source_throttle_factor = gauge(
            "source_throttle_factor", "1: the source is read at full speed; less after errors and slow answers."
        )
        self.retries = counter("retries_total", "Attempts after a transient error, by its class.", "reason")
        self.failures = counter("failures_total", "Times the stream failed for good, by the error's class.", "reason")
        self.rate_limit_wait_seconds = counter("rate_limit_wait_seconds_total", "Time waited because of a rate limit.")
        self.dead_letters = counter("dead_letters_total", "Records sent to the dead-letter topic.", "reason")
        self.gap_holes_open = gauge("gap_holes_open", "Missing ids that a late commit may still fill.")
        self.gap_holes_expired = counter("gap_holes_expired_total", "Missing ids given up after their time.")
        self.table_replacements = counter(
            "table_replacements_total", "Times another table had the name of the stream's."
        )
        self.stream_state = gauge("stream_state", "1 for the state that the stream is in.", "state")
        self.build_info = Gauge(
            "build_info", "Always 1.", ("version", "python"), namespace="producer", registry=registry
        )
        self.build_info.labels(__version__, platform.python_version()).set(1)

    def stream(self, name: str, source: str, topic: str) -> StreamMetrics:
        """The series of one stream; the same ones when called again."""
        labels = (name, source, topic)
        for by_reason, reasons in (
            (self.retries, _TRANSIENT),
            (self.dead_letters, _BAD_RECORDS),
            (self.failures, (*_TRANSIENT, *_PERMANENT)),
        ):
            for reason in reasons:
                by_reason.labels(*labels, reason)
        return StreamMetrics(
            rows_read=self.rows_read.labels(*labels),
            records_acked=self.records_acked.labels(*labels),
            bytes_acked=self.bytes_acked.labels(*labels),
            inflight_records=self.inflight_records.labels(*labels),
            inflight_bytes=self.inflight_bytes.labels(*labels),
            oldest_unacknowledged_seconds=self.oldest_unacknowledged_seconds.labels(*labels),
            page_fetch_seconds=self.page_fetch_seconds.labels(*labels),
            encode_seconds=self.encode_seconds.labels(*labels),
            ack_seconds=self.ack_seconds.labels(*labels),
            checkpoint_commit_seconds=self.checkpoint_commit_seconds.labels(*labels),
            checkpoint_last_commit_timestamp_seconds=self.checkpoint_last_commit_timestamp_seconds.labels(*labels),
            backfill_rows_total_estimate=LateGauge(self.backfill_rows_total_estimate, labels),
            backfill_rows_remaining=LateGauge(self.backfill_rows_remaining, labels),
            backfill_eta_seconds=LateGauge(self.backfill_eta_seconds, labels),
            source_lag_seconds=self.source_lag_seconds.labels(*labels),
            source_lag_rows=LateGauge(self.source_lag_rows, labels),
            source_throttle_factor=self.source_throttle_factor.labels(*labels),
            rate_limit_wait_seconds=self.rate_limit_wait_seconds.labels(*labels),
            gap_holes_open=self.gap_holes_open.labels(*labels),
            gap_holes_expired=self.gap_holes_expired.labels(*labels),
            table_replacements=self.table_replacements.labels(*labels),
            _labels=labels,
            _all=self,
        )

    def text(self) -> bytes:
        """All series in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self.registry)
