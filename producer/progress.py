"""Owns the progress of a run as people see it: a live table on a terminal, a line now and then elsewhere.

It only looks at `producer.status.StreamStatus`; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.service import Service
    from producer.status import StreamStatus

WINDOW_S = 10.0
TABLE_INTERVAL_S = 0.25
LINE_INTERVAL_S = 5.0


@dataclass(slots=True)
class Rate:
    """Rows a second over the last `WINDOW_S` seconds, from counts seen now and then."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def saw(self, now_s: float, count: int) -> float:
        """Notes a count; the rate since the oldest one in the window, 0.0 while there is only one."""
        self._seen.append((now_s, count))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        then_s, before = self._seen[0]
        return max(0.0, (count - before) / (now_s - then_s)) if now_s > then_s else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One stream at one moment, in words; '' is what is not known."""

    stream: str
    state: str
    rows: str
    rate: str
    percent: str
    eta: str
    lag: str


def describe(status: StreamStatus, rate: float) -> Row:
    """`rate` in rows a second."""
    left, total = status.rows_remaining, status.rows_total_estimate
    done = status.state == "complete"
    percent = "100 %" if done else ""
    if not done and left is not None and total:
        percent = f"{min(99, max(0, 100 * (total - left) // total))} %"
    eta = duration(left / rate) if left is not None and rate > 0 and not done else ""
    return Row(
        stream=status.name,
        state=status.state,
        rows=f"{status.rows_acked:,}",
        rate=f"{rate:,.0f}/s" if not done else "",
        percent=percent,
        eta=eta,
        lag="" if left is None or done else f"{left:,}",
    )


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``5 h 12 min`` or ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


@asynccontextmanager
async def showing(service: Service, *, terminal: bool, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Shows the streams on stderr while inside: as a table that is drawn anew, or as lines given to `say`."""
    show = _table(service) if terminal else _lines(service, say)
    task = asyncio.create_task(show)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _lines(service: Service, say: Callable[[str], None]) -> None:
    rates: dict[str, Rate] = {}
    told: dict[str, Row] = {}
    while True:
        await asyncio.sleep(LINE_INTERVAL_S)
        now_s = time.monotonic()
        for name, status in service.streams.items():
            row = describe(status, rates.setdefault(name, Rate()).saw(now_s, status.rows_acked))
            if told.get(name) != row:
                told[name] = row
                say(line(row))


def line(row: Row) -> str:
    """``events: running, 120,000 rows, 40,000/s, 12 %, 22 s left``."""
    parts = [row.state, f"{row.rows} rows", row.rate, row.percent, f"{row.eta} left" if row.eta else ""]
    return f"{row.stream}: " + ", ".join(part for part in parts if part)


async def _table(service: Service) -> None:
    from rich.console import Console
    from rich.live import Live

    rates: dict[str, Rate] = {}
    with Live(console=Console(stderr=True), auto_refresh=False, transient=False) as live:
        try:
            while True:
                live.update(drawn(service.streams, rates), refresh=True)
                await asyncio.sleep(TABLE_INTERVAL_S)
        finally:
            live.update(drawn(service.streams, rates), refresh=True)


_COLOURS = {"running": "cyan", "complete": "green", "failed": "red", "paused": "yellow"}


def drawn(streams: Mapping[str, StreamStatus], rates: dict[str, Rate]) -> Any:
    """The table of a terminal, at this moment."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    # Where the terminal is narrow, the names are what is cut off.
    table.add_column("stream", overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for title in ("rows", "rate", "done", "ETA", "lag"):
        table.add_column(title, justify="right", no_wrap=True)
    now_s = time.monotonic()
    for name, status in streams.items():
        row = describe(status, rates.setdefault(name, Rate()).saw(now_s, status.rows_acked))
        state = Text(row.state, style=_COLOURS.get(row.state, ""))
        table.add_row(Text(row.stream), state, row.rows, row.rate, row.percent, row.eta, row.lag)
    return table
