"""Owns the dashboards: what is on them.

``python -m dashboards.build`` writes their JSON, here and into the chart, with a copy of the alerts there; with
``--check`` nothing is written and the exit code is 1 if a file is not current.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE = Path(__file__).resolve().parent
CHART = HERE.parent / "helm" / "files"

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_ONE = '{stream=~"$stream"}'
_RATE = "[$__rate_interval]"
# The process' own metrics have no label of ours: they are a producer's where its build is told beside them.
_PROCESS = "and on (job, instance) producer_build_info"

#: A query and its legend.
Query = tuple[str, str]
Panel = timeseries.Panel | stat.Panel | heatmap.Panel


def main(arguments: list[str]) -> int:
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text("utf-8") != text}
    if "--check" in arguments:
        return bool(stale)
    for path, text in stale.items():
        path.write_text(text, "utf-8")
    return 0


def generated() -> dict[Path, str]:
    """Each derived file with its text."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    boards = {
        f"{name}.json": encoder.encode(board.build()) + "\n"
        for name, board in (("fleet", fleet()), ("stream", stream()))
    }
    files = {HERE / name: text for name, text in boards.items()}
    files |= {CHART / name: text for name, text in boards.items()}
    return files | {CHART / "alerts.yaml": (HERE / "alerts.yaml").read_text("utf-8")}


def fleet() -> dashboard.Dashboard:
    """All streams of all producers."""
    board = _board("producer-fleet", "Producers: fleet")
    for panel in (
        number("Streams", ("count(producer_rows_read_total)", "streams")),
        number("Failed", ('sum(producer_stream_state{state="failed"})', "failed")),
        number("Records a second", (f"sum(rate(producer_records_acked_total{_RATE}))", "acknowledged"), unit="cps"),
        number("Rows to go", ("sum(producer_backfill_rows_remaining)", "rows"), unit="short"),
        lines("Streams by state", [("sum by (state) (producer_stream_state)", "{{state}}")]),
        lines(
            "Records acknowledged",
            [(f"sum by (stream) (rate(producer_records_acked_total{_RATE}))", "{{stream}}")],
            "cps",
        ),
        lines(
            "Bytes acknowledged", [(f"sum by (stream) (rate(producer_bytes_acked_total{_RATE}))", "{{stream}}")], "Bps"
        ),
        lines("Rows remaining", [("sum by (stream) (producer_backfill_rows_remaining)", "{{stream}}")], "short"),
        lines("Time to go", [("max by (stream) (producer_backfill_eta_seconds)", "{{stream}}")], "s"),
        lines("Lag", [("max by (stream) (producer_source_lag_rows)", "{{stream}}")], "short"),
        lines("Age of the checkpoint", [(f"max by (stream) ({_age('')})", "{{stream}}")], "s"),
        lines(
            "Oldest unacknowledged", [("max by (stream) (producer_oldest_unacknowledged_seconds)", "{{stream}}")], "s"
        ),
        lines(
            "Retries", [(f"sum by (stream, reason) (increase(producer_retries_total{_RATE}))", "{{stream}} {{reason}}")]
        ),
        lines(
            "Failures",
            [
                (
                    "sum by (stream, reason) (producer_failures_total) > 0 or sum(producer_failures_total)",
                    "{{stream}} {{reason}}",
                )
            ],
        ),
        lines("Dead letters", [("sum by (stream) (producer_dead_letters_total)", "{{stream}}")]),
        lines("CPU", [(f"rate(process_cpu_seconds_total{_RATE}) {_PROCESS}", "{{instance}}")], "percentunit"),
        lines("Memory", [(f"process_resident_memory_bytes {_PROCESS}", "{{instance}}")], "bytes"),
        lines("Versions", [("count by (version) (producer_build_info)", "{{version}}")]),
    ):
        board.with_panel(panel)
    return board


def stream() -> dashboard.Dashboard:
    """One stream, or some."""
    board = _board("producer-stream", "Producers: one stream").with_variable(
        dashboard.QueryVariable("stream")
        .label("Stream")
        .datasource(_SOURCE)
        .query("label_values(producer_rows_read_total, stream)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )
    rows = f"clamp_min(sum(producer_backfill_rows_total_estimate{_ONE}), 1)"
    done = f"clamp_min(1 - sum(producer_backfill_rows_remaining{_ONE}) / {rows}, 0)"
    for panel in (
        number(
            "Records a second", (f"sum(rate(producer_records_acked_total{_ONE}{_RATE}))", "acknowledged"), unit="cps"
        ),
        number("Done", (done, "done"), unit="percentunit"),
        number("Rows to go", (f"sum(producer_backfill_rows_remaining{_ONE})", "rows"), unit="short"),
        number("Time to go", (f"max(producer_backfill_eta_seconds{_ONE})", "time"), unit="s"),
        lines(
            "Rows read, records acknowledged",
            [
                (f"sum by (stream) (rate(producer_rows_read_total{_ONE}{_RATE}))", "{{stream}} read"),
                (f"sum by (stream) (rate(producer_records_acked_total{_ONE}{_RATE}))", "{{stream}} acknowledged"),
            ],
            "cps",
        ),
        lines(
            "Bytes acknowledged",
            [(f"sum by (stream) (rate(producer_bytes_acked_total{_ONE}{_RATE}))", "{{stream}}")],
            "Bps",
        ),
        lines("Rows remaining", [(f"sum by (stream) (producer_backfill_rows_remaining{_ONE})", "{{stream}}")], "short"),
        lines("Lag in rows", [(f"max by (stream) (producer_source_lag_rows{_ONE})", "{{stream}}")], "short"),
        lines("Lag in time", [(f"max by (stream) (producer_source_lag_seconds{_ONE})", "{{stream}}")], "s"),
        lines(
            "In flight",
            [
                (f"sum by (stream) (producer_inflight_records{_ONE})", "{{stream}} records"),
                (f"max(producer_inflight_bytes{_ONE})", "bytes, all streams of a process"),
            ],
            "short",
        ),
        latencies("Time to the acknowledgement", f"sum by (le) (increase(producer_ack_seconds_bucket{_ONE}{_RATE}))"),
        lines("Where a page's time goes (99 of 100)", [(_p99(part), part) for part in _PARTS], "s"),
        lines("Age of the checkpoint", [(f"max by (stream) ({_age(_ONE)})", "{{stream}}")], "s"),
        lines(
            "Oldest unacknowledged",
            [(f"max by (stream) (producer_oldest_unacknowledged_seconds{_ONE})", "{{stream}}")],
            "s",
        ),
        lines(
            "Retries",
            [(f"sum by (stream, reason) (increase(producer_retries_total{_ONE}{_RATE}))", "{{stream}} {{reason}}")],
        ),
        lines(
            "Waiting for rate limits",
            [(f"sum by (stream) (rate(producer_rate_limit_wait_seconds_total{_ONE}{_RATE}))", "{{stream}}")],
            "percentunit",
        ),
        lines(
            "Holes in the ids",
            [
                (f"sum by (stream) (producer_gap_holes_open{_ONE})", "{{stream}} open"),
                (f"sum by (stream) (producer_gap_holes_expired_total{_ONE})", "{{stream}} expired"),
            ],
        ),
        lines(
            "Dead letters", [(f"sum by (stream, reason) (producer_dead_letters_total{_ONE})", "{{stream}} {{reason}}")]
        ),
        lines("Splits", [(f"sum by (state) (producer_splits{_ONE})", "{{state}}")]),
        lines("State", [(f"sum by (state) (producer_stream_state{_ONE})", "{{state}}")]),
        lines("CPU", [(f"rate(process_cpu_seconds_total{_RATE}) {_PROCESS}", "{{instance}}")], "percentunit"),
        lines("Memory", [(f"process_resident_memory_bytes {_PROCESS}", "{{instance}}")], "bytes"),
    ):
        board.with_panel(panel)
    return board


_PARTS = ("page_fetch", "encode", "ack", "checkpoint_commit")


def _p99(part: str) -> str:
    return f"histogram_quantile(0.99, sum by (le) (rate(producer_{part}_seconds_bucket{_ONE}{_RATE})))"


def _age(selector: str) -> str:
    """Seconds since the last checkpoint; nothing where none has been written yet."""
    return f"time() - (producer_checkpoint_last_commit_timestamp_seconds{selector} > 0)"


def _board(uid: str, title: str) -> dashboard.Dashboard:
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["kafka", "streaming-producer"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )


def _queries(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + index)).datasource(_SOURCE)
        for index, (expr, legend) in enumerate(queries)
    ]


def number(title: str, query: Query, unit: str = "short") -> stat.Panel:
    """The newest value, large."""
    panel = stat.Panel().title(title).datasource(_SOURCE).unit(unit).height(4).span(6)
    return panel.with_target(_queries([query])[0])


def lines(title: str, queries: Sequence[Query], unit: str = "short") -> timeseries.Panel:
    """A line for each series; units are Grafana's."""
    panel = timeseries.Panel().title(title).datasource(_SOURCE).unit(unit).min(0).height(8).span(12)
    panel.fill_opacity(10).legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(models.LegendDisplayMode.LIST)
        .placement(models.LegendPlacement.BOTTOM)
    )
    for target in _queries(queries):
        panel.with_target(target)
    return panel


def latencies(title: str, expr: str) -> heatmap.Panel:
    """A histogram's buckets over time."""
    (target,) = _queries([(expr, "{{le}}")])
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    y_axis = heatmap.YAxisConfig().unit("s").axis_placement(models.AxisPlacement.LEFT)
    panel = heatmap.Panel().title(title).datasource(_SOURCE).height(8).span(12).color(color).y_axis(y_axis)
    return panel.with_target(target.format(PromQueryFormat.HEATMAP))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
