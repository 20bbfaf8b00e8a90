"""Owns ``python -m benchmarks``: runs suites against servers of its own and writes what it found beside itself.

    python -m benchmarks [SUITE ...] [--rounds N] [--rows N] [--quick] [--no-exactly-once] [--only TEXT]

Without names: all suites, then the measurements of single parts. ``results.json``, ``results.md`` and the SVG files
keep what was not run this time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plot, results
from benchmarks.measure import ROOT, WrongResult, python
from benchmarks.results import Measured, Results
from benchmarks.servers import Servers, running
from benchmarks.suites import OURS, SUITES, Case, Scale

_HERE = Path(__file__).parent
FAILED = "failed"
_PARTS = ("encode", "sink", "dump", "telegram")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    names = [*SUITES, *_PARTS]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of: {', '.join(names)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often each case is run (3; with --quick 1)")
    parser.add_argument("--rows", type=int, help="of the main table (1,000,000; with --quick 100,000)")
    parser.add_argument("--quick", action="store_true", help="a short run: see that all works")
    parser.add_argument("--no-exactly-once", action="store_true", help="leave delivery: exactly_once out")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases whose name has this in it")
    parser.add_argument("--output", type=Path, default=_HERE, help="the folder for what was found")
    args = parser.parse_args()
    if unknown := set(args.suites) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; valid: {', '.join(names)}")
    wanted = args.suites or names
    scale = Scale(args.rows or (100_000 if args.quick else 1_000_000), args.quick, not args.no_exactly_once)
    args.output.mkdir(parents=True, exist_ok=True)
    found = results.load(args.output / "results.json")
    failed = False
    with running() as servers:
        for suite in (name for name in SUITES if name in wanted):
            cases = [c for c in SUITES[suite](scale) if args.only in f"{c.workload}, {c.competitor}"]
            if not cases:
                continue
            print(f"\n{suite}: {SUITES[suite].__doc__}", flush=True)
            found[suite] = run_suite(servers, cases, args.rounds or (1 if args.quick else 3))
            print(results.summary(found[suite]), flush=True)
            failed |= any(case.errors for case in found[suite])
            write(args.output, found)
        for part in (name for name in _PARTS if name in wanted):
            text = run_part(servers, part, scale)
            failed |= text.startswith(FAILED)
            (args.output / f"{part}.txt").write_text(text)
            print(f"\n{part} alone\n{text}", flush=True)
    write(args.output, found)
    print(f"written: {args.output}/results.md, results.json and the SVG files")
    return 1 if failed else 0


def run_suite(servers: Servers, cases: Sequence[Case], rounds: int) -> list[Measured]:
    """Each case once, then each again, so that what the machine does meanwhile meets all of them."""
    found = [Measured(case.workload, case.competitor) for case in cases]
    for number in range(rounds):
        for case, measured in zip(cases, found, strict=True):
            begin = time.monotonic()
            try:
                sample = case.measure(servers)
            except WrongResult as error:
                measured.failed(str(error))
                print(f"  {number + 1}/{rounds} {case.workload}, {case.competitor}: FAILED: {error}", flush=True)
            else:
                measured.add(sample)
                figures = ", ".join(f"{name} {value:,.4g}" for name, value in sample.numbers().items())
                took_s = time.monotonic() - begin
                print(
                    f"  {number + 1}/{rounds} {case.workload}, {case.competitor}: {figures} ({took_s:.0f} s)",
                    flush=True,
                )
    servers.drop([table for case in cases for table in case.tables])
    return found


def run_part(servers: Servers, part: str, scale: Scale) -> str:
    """What a part's own measurement prints; see its module."""
    arguments = {
        "encode": ["--rows", str(scale.rows // 2)],
        "sink": ["--bootstrap", servers.bootstrap, "--rows", str(scale.rows)],
        "dump": ["--rows", str(scale.rows // 2)],
        "telegram": ["--bootstrap", servers.bootstrap],
    }
    command = python(f"benchmarks.{part}", *arguments[part])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else f"{FAILED}\n{done.stdout}{done.stderr}"


def write(folder: Path, found: Results) -> None:
    """Everything that is known, in all its forms."""
    results.save(folder / "results.json", found)
    parts = {part: (folder / f"{part}.txt").read_text() for part in _PARTS if (folder / f"{part}.txt").exists()}
    (folder / "results.md").write_text(results.markdown(found, parts))
    for name in ("peers", "shapes", "databases"):
        if picture := _bars(found.get(name, [])):
            (folder / f"{name}.svg").write_text(picture)
    if lines := _panels(found):
        (folder / "growth.svg").write_text(plot.panels(lines))


def _bars(cases: Sequence[Measured]) -> str:
    values = []
    for case in cases:
        rates = [r["rows_per_s"] for r in case.rounds if r is not None]
        median = case.median("rows_per_s")
        if median is not None:
            several = len({c.workload for c in cases}) > 1
            compared = len({c.competitor for c in cases}) > 1
            label = ", ".join(([case.workload] if several else []) + ([case.competitor] if compared else []))
            values.append(plot.Bar(label, median, min(rates), max(rates), case.competitor.startswith(OURS)))
    unit = "rows a second, first to last append; the line spans the rounds"
    return plot.bars("A table into Kafka", unit, values) if values else ""


def _panels(found: Results) -> list[plot.Panel]:
    def line(suite: str, figure: str = "rows_per_s") -> list[tuple[float, float]]:
        points = [(float(c.workload.split()[0].replace(",", "")), c.median(figure)) for c in found.get(suite, [])]
        return [(x, y) for x, y in points if y is not None]

    made = []
    if points := line("growth"):
        made.append(plot.Panel("rows/s by size", "rows in the table", [plot.Line("ID_RANGE", points)]))
        peaks = line("growth", "peak_rss_mb")
        made.append(plot.Panel("peak memory (MB) by size", "rows in the table", [plot.Line("ID_RANGE", peaks)]))
    depth = [c for c in found.get("depth", []) if c.median("rows_per_s") is not None]
    if depth:
        lines = [plot.Line(c.workload, list(enumerate(results.tenths(c), 1))) for c in depth]
        made.append(plot.Panel("rows/s by depth", "tenth of the table", lines))
    if points := line("splits"):
        made.append(plot.Panel("rows/s by splits", "splits at a time", [plot.Line("ID_RANGE", points)], log_x=True))
    if points := line("streams"):
        made.append(plot.Panel("rows/s by streams", "streams in the process", [plot.Line("all", points)], log_x=True))
        peaks = line("streams", "peak_rss_mb")
        made.append(plot.Panel("peak memory (MB) by streams", "streams", [plot.Line("all", peaks)], log_x=True))
    return made


if __name__ == "__main__":
    sys.exit(main())
