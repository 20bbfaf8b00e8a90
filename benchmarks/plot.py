"""Owns the pictures: bars and lines as plain SVG, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

_INK, _MUTED, _GRID = "#6b7280", "#9ca3af", "#9ca3af55"
_OURS, _OTHER = "#2563eb", "#94a3b8"
_LINES = ("#2563eb", "#d97706", "#059669")
_FONT = "font-family='system-ui, sans-serif'"


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    ours: bool


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one axis; `x` says what it is."""

    title: str
    x: str
    lines: Sequence[Line]
    log_x: bool = False


def bars(title: str, unit: str, values: Sequence[Bar]) -> str:
    """A bar each, with its range over the rounds."""
    left, width, step, top = 190, 720, 34, 56
    height = top + step * len(values) + 16
    most = max(bar.high for bar in values)
    scale = (width - left - 130) / most
    out = [_text(left, 24, title, size=16, weight="600"), _text(left, 42, unit, fill=_MUTED)]
    for i, bar in enumerate(values):
        y = top + i * step
        color = _OURS if bar.ours else _OTHER
        out.append(_text(left - 10, y + 17, bar.label, anchor="end"))
        size = f"width='{max(1.0, bar.value * scale):.1f}' height='22'"
        out.append(f"<rect x='{left}' y='{y + 2}' {size} rx='3' fill='{color}'/>")
        out.append(_line(left + bar.low * scale, y + 13, left + bar.high * scale, y + 13, _INK, 1.5))
        out.append(_text(left + bar.high * scale + 8, y + 17, f"{bar.value:,.0f}", weight="600"))
    return _svg(width, height, out)


def panels(values: Sequence[Panel]) -> str:
    """Panels two abreast."""
    width, height = 420, 270
    out = []
    for i, panel in enumerate(values):
        out.append(f"<g transform='translate({i % 2 * width}, {i // 2 * height})'>{_panel(panel, width, height)}</g>")
    return _svg(width * min(2, len(values)), height * ceil(len(values) / 2), out)


def _panel(panel: Panel, width: int, height: int) -> str:
    left, right, top, bottom = 62, width - 18, 58, height - 40
    ys = [y for line in panel.lines for _, y in line.points]
    xs = sorted({_place(x, panel.log_x) for line in panel.lines for x, _ in line.points})
    most = _round_up(max(ys))
    low, high = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = (_place(x, panel.log_x) - low) / (high - low)
        return left + across * (right - left), bottom - y / most * (bottom - top)

    out = [_text(left, 22, panel.title, size=14, weight="600")]
    for part in range(5):
        y = bottom - part / 4 * (bottom - top)
        out += [
            _line(left, y, right, y, _GRID, 1),
            _text(left - 8, y + 4, _short(most * part / 4), anchor="end", size=11),
        ]
    for x in sorted({x for line in panel.lines for x, _ in line.points}):
        out.append(_text(at(x, 0)[0], bottom + 16, _short(x), anchor="middle", size=11))
    out.append(_text((left + right) / 2, bottom + 33, panel.x, anchor="middle", fill=_MUTED, size=11))
    for i, line in enumerate(panel.lines):
        color = _LINES[i % len(_LINES)]
        points = [at(x, y) for x, y in sorted(line.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='2'/>")
        out += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{color}'/>" for x, y in points]
        if len(panel.lines) > 1:
            out.append(_text(left + i * 150, 42, f"● {line.label}", fill=color, size=12))
    return "".join(out)


def _place(x: float, log: bool) -> float:
    return log10(x) if log else x


def _round_up(value: float) -> float:
    step: float = 10 ** floor(log10(value)) / 2
    return ceil(value * 1.02 / step) * step


def _short(value: float) -> str:
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = _INK, size: int = 13, weight: str = "400"
) -> str:
    style = f"text-anchor='{anchor}' fill='{fill}' font-size='{size}' font-weight='{weight}'"
    return f"<text x='{x:.1f}' y='{y:.1f}' {_FONT} {style}>{escape(text)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float) -> str:
    ends = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {ends} stroke='{color}' stroke-width='{width}'/>"


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    size = f"viewBox='0 0 {width} {height}' width='{width}' height='{height}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n" + "\n".join(parts) + "\n</svg>\n"
