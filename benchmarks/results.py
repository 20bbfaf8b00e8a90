"""Owns what becomes of samples: medians, ratios within a round, the JSON file, the Markdown tables, the goals."""

from __future__ import annotations

import itertools
import json
import platform
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample
from benchmarks.suites import (
    DEBEZIUM,
    EXACTLY_ONCE,
    LIBRDKAFKA,
    LIBRDKAFKA_LEVEL,
    LIBRDKAFKA_PLAIN,
    LIBRDKAFKA_REPORTS,
    NAIVE,
    OURS,
    OURS_PLAIN,
    SUITES,
)

FIGURES = {
    "rows_per_s": ("rows/s", "{:,.0f}"),
    "rows_per_s_with_startup": ("with start-up", "{:,.0f}"),
    "mbytes_per_s": ("MB/s", "{:,.1f}"),
    "cpu_s_per_million": ("CPU s per 1M rows", "{:,.2f}"),
    "peak_rss_mb": ("peak MB", "{:,.0f}"),
    "startup_s": ("first record after s", "{:,.2f}"),
}


@dataclass
class Measured:
    """A case and its samples, one a round (None where it failed), with what went wrong."""

    workload: str
    competitor: str
    rounds: list[dict[str, Any] | None] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        self.rounds.append({**sample.numbers(), **sample.extra})

    def failed(self, error: str) -> None:
        self.rounds.append(None)
        self.errors.append(error)

    def median(self, figure: str) -> float | None:
        found = [r[figure] for r in self.rounds if r is not None and figure in r]
        return statistics.median(found) if found else None


Results = dict[str, list[Measured]]


def ratio(of: Measured, to: Measured) -> float | None:
    """The median of rows/s `of` over rows/s `to`, each pair from one round."""
    pairs = [(a, b) for a, b in zip(of.rounds, to.rounds, strict=False) if a is not None and b is not None]
    return statistics.median(a["rows_per_s"] / b["rows_per_s"] for a, b in pairs) if pairs else None


def ours(cases: Iterable[Measured], workload: str | None = None) -> Measured | None:
    found = (c for c in cases if c.competitor == OURS and (workload is None or c.workload == workload))
    return next(found, None)


def load(path: Path) -> Results:
    """What earlier runs wrote; a suite is replaced as a whole when it is run again."""
    if not path.exists():
        return {}
    suites = json.loads(path.read_text())["suites"]
    return {suite: [Measured(**case) for case in cases] for suite, cases in suites.items()}


def save(path: Path, results: Results) -> None:
    suites = {
        suite: [
            {"workload": c.workload, "competitor": c.competitor, "rounds": c.rounds, "errors": c.errors} for c in cases
        ]
        for suite, cases in results.items()
    }
    machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    path.write_text(json.dumps({"machine": machine, "suites": suites}, indent=1) + "\n")


def markdown(results: Results, parts: Mapping[str, str]) -> str:
    """All tables."""
    out = ["# Results", "", "Medians of the rounds; ratios are medians of ratios within a round. See README.md.", ""]
    if goals := _goals(results):
        out += ["## Goals", "", "| goal | measured | |", "|---|---|---|"]
        out += [f"| {text} | {measured} | {'met' if met else '**missed**'} |" for text, measured, met in goals]
        out.append("")
    for suite in SUITES:
        if cases := results.get(suite):
            out += [f"## {suite}", "", (SUITES[suite].__doc__ or "").strip(), "", *table(cases), ""]
            if suite == "depth":
                out += [*_depth_table(cases), ""]
            out += [f"- {c.workload}, {c.competitor}: {error}" for c in cases for error in c.errors]
    for name, text in parts.items():
        out += [f"## {name} alone", "", "    " + text.strip().replace("\n", "\n    "), ""]
    return "\n".join(out).rstrip() + "\n"


def table(cases: list[Measured]) -> list[str]:
    """A suite as Markdown lines."""
    compared = len({c.competitor for c in cases}) > 1
    titles = ["", *(title for title, _ in FIGURES.values()), *(["ours is"] if compared else [])]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for case in cases:
        name = f"{case.workload}, {case.competitor}" if compared else case.workload
        cells = [form.format(m) if (m := case.median(f)) is not None else "" for f, (_, form) in FIGURES.items()]
        if compared:
            base = ours(cases, case.workload)
            times = ratio(base, case) if base is not None and base is not case else None
            cells.append(f"{times:.2f} times" if times else "")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return lines


def tenths(case: Measured) -> list[float]:
    """Median rows/s in each tenth of a table."""
    rounds = [r for r in case.rounds if r is not None]

    def rates(r: dict[str, Any]) -> list[float]:
        edges = r["tenths_s"]
        return [r["rows_per_s"] * edges[-1] / 10 / max(b - a, 0.001) for a, b in itertools.pairwise(edges)]

    return [statistics.median(tenth) for tenth in zip(*map(rates, rounds), strict=True)]


def _depth_table(cases: list[Measured]) -> list[str]:
    lines = ["| rows/s by tenth of the table | " + " | ".join(str(n + 1) for n in range(10)) + " |", "|---" * 11 + "|"]
    for case in cases:
        if any(r is not None for r in case.rounds):
            lines.append(f"| {case.workload} | " + " | ".join(f"{v:,.0f}" for v in tenths(case)) + " |")
    return lines


def _goals(results: Results) -> list[tuple[str, str, bool]]:
    """What the product promises, against what was measured."""
    found: list[tuple[str, str, bool]] = []

    def goal(text: str, value: float | None, limit: float, form: str, *, at_least: bool = False) -> None:
        if value is not None:
            met = value >= limit if at_least else value <= limit
            found.append((text.format(form.format(limit)), form.format(value), met))

    peers = results.get("peers", [])
    mine = ours(peers)
    if mine is not None:
        goals = {LIBRDKAFKA: 1.5, LIBRDKAFKA_LEVEL: 1.5, LIBRDKAFKA_REPORTS: 1.5, DEBEZIUM: 12.0, NAIVE: 4.0}
        for name, times in goals.items():
            other = next((c for c in peers if c.competitor == name), None)
            text = f"at least {{}} the rate of: {name}"
            goal(text, ratio(mine, other) if other else None, times, "{:.1f} times", at_least=True)
        plain = {c.competitor: c for c in peers}
        if EXACTLY_ONCE in plain:
            text = "exactly once at least {} of the rate of at least once"
            goal(text, ratio(plain[EXACTLY_ONCE], mine), 0.85, "{:.2f}", at_least=True)
        if OURS_PLAIN in plain and LIBRDKAFKA_PLAIN in plain:
            text = f"at least {{}} the rate of: {LIBRDKAFKA_PLAIN}, neither having headers"
            goal(text, ratio(plain[OURS_PLAIN], plain[LIBRDKAFKA_PLAIN]), 1.5, "{:.1f} times", at_least=True)
        goal("at most {} of CPU a million rows", mine.median("cpu_s_per_million"), 3.5, "{:.2f} s")
        goal("peak memory under {}", mine.median("peak_rss_mb"), 250, "{:.0f} MB")
        goal("first record acknowledged after at most {}", mine.median("startup_s"), 1.5, "{:.2f} s")
    sizes = results.get("growth", [])
    if len(sizes) > 1:
        slower = ratio(sizes[-1], sizes[0])
        text = f"rate at {sizes[-1].workload} over that at {sizes[0].workload} at least {{}}"
        goal(text, slower, 0.9, "{:.2f}", at_least=True)
        peak = [c.median("peak_rss_mb") for c in sizes]
        if peak[0] and peak[1]:
            goal(
                f"memory at {sizes[1].workload} over that at {sizes[0].workload} at most {{}}",
                peak[1] / peak[0],
                1.1,
                "{:.2f}",
            )
    many = results.get("streams", [])
    if many:
        goal(f"peak memory of {many[-1].workload} under {{}}", many[-1].median("peak_rss_mb"), 400, "{:.0f} MB")
        first, last = many[-1].median("startup_s"), many[-1].median("last_stream_begins_s")
        if first and last is not None:
            text = f"of {many[-1].workload} the last to begin takes at most {{}} times as long as the first"
            goal(text, (first + last) / first, 1.5, "{:.2f}")
    return found


def summary(cases: list[Measured]) -> str:
    """A suite for a terminal."""
    width = max(len(f"{c.workload}, {c.competitor}") for c in cases)
    lines = [" " * width + "".join(f"{title:>21}" for title, _ in FIGURES.values()) + "   ours is"]
    for case in cases:
        cells = [form.format(m) if (m := case.median(f)) is not None else "-" for f, (_, form) in FIGURES.items()]
        base = ours(cases, case.workload)
        times = ratio(base, case) if base is not None and base is not case else None
        lines.append(
            f"{case.workload + ', ' + case.competitor:<{width}}"
            + "".join(f"{cell:>21}" for cell in cells)
            + (f"{times:>9.2f}x" if times else "")
        )
    return "\n".join(lines)
