"""Owns the claims about metrics: the names are the contract's, and labels are few."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from producer.metrics import Metrics

CONTRACT = [
    "producer_rows_read_total",
    "producer_records_acked_total",
    "producer_bytes_acked_total",
    "producer_inflight_records",
    "producer_inflight_bytes",
    "producer_oldest_unacknowledged_seconds",
    "producer_page_fetch_seconds",
    "producer_encode_seconds",
    "producer_ack_seconds",
    "producer_checkpoint_commit_seconds",
    "producer_checkpoint_last_commit_timestamp_seconds",
    "producer_backfill_rows_total_estimate",
    "producer_backfill_rows_remaining",
    "producer_backfill_eta_seconds",
    "producer_splits",
    "producer_source_lag_seconds",
    "producer_source_lag_rows",
    "producer_source_throttle_factor",
    "producer_retries_total",
    "producer_rate_limit_wait_seconds_total",
    "producer_dead_letters_total",
    "producer_failures_total",
    "producer_gap_holes_open",
    "producer_gap_holes_expired_total",
    "producer_table_replacements_total",
    "producer_stream_state",
    "producer_build_info",
]

#: The gauges that have no value before it is known.
LATE = ["backfill_rows_total_estimate", "backfill_rows_remaining", "backfill_eta_seconds", "source_lag_rows"]


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    stream = metrics.stream("events", "shop", "shop.events")
    stream.state("running")
    stream.splits({"running": 2})
    for late in LATE:
        getattr(stream, late).set(5)
    stream.retried("SourceUnavailableError")
    stream.dead_letter("RecordTooLargeError")
    return metrics


def samples(metrics: Metrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_name_of_the_contract_is_there_and_no_other(metrics: Metrics) -> None:
    ours = {name for name in samples(metrics) if name.startswith("producer_")}
    histograms = {name for name in CONTRACT if f"{name}_bucket" in ours}
    parts = {f"{name}{part}" for name in histograms for part in ("_bucket", "_sum", "_count")}
    assert ours == (set(CONTRACT) - histograms) | parts


def test_labels_are_stream_source_topic_and_one_more_at_most(metrics: Metrics) -> None:
    for name, found in samples(metrics).items():
        if name.startswith("producer_") and name != "producer_build_info":
            for labels, _ in found:
                assert set(labels) - {"le", "state", "reason"} == {"stream", "source", "topic"}


def test_what_has_not_happened_yet_is_counted_as_0(metrics: Metrics) -> None:
    metrics.stream("quiet", "shop", "shop.quiet")
    for name, reason in (
        ("producer_retries_total", "SinkUnavailableError"),
        ("producer_dead_letters_total", "EncodeError"),
        ("producer_failures_total", "AuthenticationError"),
    ):
        values = {labels["reason"]: value for labels, value in samples(metrics)[name] if labels["stream"] == "quiet"}
        assert values[reason] == 0


def test_a_stream_is_in_one_state(metrics: Metrics) -> None:
    states = {labels["state"]: value for labels, value in samples(metrics)["producer_stream_state"]}
    assert states.pop("running") == 1
    assert set(states.values()) == {0}


def test_the_same_stream_has_the_same_series(metrics: Metrics) -> None:
    metrics.stream("events", "shop", "shop.events").rows_read.inc(3)
    metrics.stream("events", "shop", "shop.events").rows_read.inc(4)
    assert samples(metrics)["producer_rows_read_total"][0][1] == 7


def test_the_process_and_its_garbage_collector_are_measured(metrics: Metrics) -> None:
    assert {"process_resident_memory_bytes", "python_gc_collections_total"} <= set(samples(metrics))


@pytest.mark.parametrize("name", LATE)
def test_what_is_unknown_has_no_series_rather_than_0(metrics: Metrics, name: str) -> None:
    quiet = metrics.stream("quiet", "shop", "shop.quiet")
    assert [labels["stream"] for labels, _ in samples(metrics)[f"producer_{name}"]] == ["events"]
    getattr(quiet, name).set(0)
    assert {labels["stream"] for labels, _ in samples(metrics)[f"producer_{name}"]} == {"events", "quiet"}
