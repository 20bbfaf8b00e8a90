"""Owns the claims about progress: rates, percentages and times left are what the counts say."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from producer.progress import Rate, describe, drawn, duration, line
from producer.status import StreamStatus


def status(**values: object) -> StreamStatus:
    made = StreamStatus("events", "shop", "shop.events", state="running")
    for name, value in values.items():
        setattr(made, name, value)
    return made


def test_a_rate_needs_two_counts() -> None:
    rate = Rate()
    assert rate.saw(100.0, 500) == 0.0
    assert rate.saw(102.0, 700) == 100.0


def test_a_rate_forgets_what_is_long_ago() -> None:
    rate = Rate()
    rate.saw(0.0, 0)
    for second in range(1, 100):
        rate.saw(float(second), 1_000_000)
    assert rate.saw(100.0, 1_000_010) == 1.0


def test_a_line_says_what_is_known() -> None:
    told = line(describe(status(rows_acked=120_000, rows_remaining=880_000, rows_total_estimate=1_000_000), 40_000.0))
    assert told == "events: running, 120,000 rows, 40,000/s, 12 %, 22 s left"


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert line(describe(status(rows_acked=5), 0.0)) == "events: running, 5 rows, 0/s"


def test_an_estimate_that_was_too_low_never_shows_100_percent_of_a_running_stream() -> None:
    assert describe(status(rows_acked=2000, rows_remaining=0, rows_total_estimate=1000), 1.0).percent == "99 %"


def test_a_complete_stream_is_100_percent_without_a_rate() -> None:
    row = describe(status(state="complete", rows_acked=7), 3.0)
    assert (row.percent, row.rate, row.eta) == ("100 %", "", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (45.4, "45 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (273_600, "3 d 4 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_on_a_narrow_terminal_it_is_the_names_that_are_cut_off() -> None:
    console = Console(width=70, file=io.StringIO())
    status = StreamStatus("a_table_with_a_name_that_is_much_longer_than_usual", "shop", "t", "running", 150, 120)
    console.print(drawn({status.name: status}, {}))
    _, shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert shown.startswith("a_table_with_a_name")
    assert "running" in shown
    assert "120" in shown
