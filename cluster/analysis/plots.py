"""Small plots as inline SVG text: pure functions of numbers. Never reads a file, never writes script or style from data."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 8, 10, 20


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name, its points (seconds, value), and its class in the page's style sheet."""

    name: str
    points: Sequence[Point]
    style: str


def thin(points: Sequence[Point], limit: int = 400) -> list[Point]:
    """Return at most about `limit` points that keep every bucket's lowest and highest value, in order of time."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / max(1, limit // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        low, high = min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])
        kept.extend(sorted({low, high}))
    return kept


def nice_ceiling(value: float) -> float:
    """Return the next of 1, 2, 2.5, 5, 10 times a power of ten at or above `value`; 1.0 for nothing."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 2.5, 5, 10, 20) if step * power >= value * (1 - 1e-9)))


def line_plot(lines: Sequence[Line], *, span_s: float, top: float, tick: str, width: int = 520, height: int = 130) -> str:
    """Return an SVG of all lines over 0..span_s and 0..top; `tick` labels the top of the axis.

    Values over the top are drawn at the top. A line without points is left out.
    """
    span_s, top = max(span_s, 1e-9), max(top, 1e-9)
    inner_w, inner_h = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def place(point: Point) -> str:
        x = _LEFT + inner_w * min(max(point[0] / span_s, 0.0), 1.0)
        y = _TOP + inner_h * (1 - min(max(point[1] / top, 0.0), 1.0))
        return f"{x:.1f},{y:.1f}"

    names = ", ".join(line.name for line in lines)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(names, quote=True)}">',
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{inner_w}" height="{inner_h}"/>',
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{_TOP + inner_h / 2:.1f}" y2="{_TOP + inner_h / 2:.1f}"/>',
        _label(_LEFT - 4, _TOP + 8, "end", tick),
        _label(_LEFT - 4, _TOP + inner_h, "end", "0"),
        _label(_LEFT, height - 6, "start", "0 s"),
        _label(width - _RIGHT, height - 6, "end", f"{span_s:.0f} s"),
    ]
    for line in lines:
        if line.points:
            path = " ".join(place(point) for point in thin(line.points))
            title = f"<title>{html.escape(line.name)}</title>"
            parts.append(f'<polyline class="{html.escape(line.style, quote=True)}" points="{path}">{title}</polyline>')
    return "".join([*parts, "</svg>"])


def _label(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{html.escape(text)}</text>'


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], top: float, width: int = 32) -> str:
    """Return at most `width` block characters over 0..top, each the mean of its share of the values."""
    if not values or top <= 0:
        return ""
    count = min(width, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in itertools.pairwise(edges)]
    return "".join(_BARS[min(7, max(0, int(mean / top * 8)))] for mean in means)
