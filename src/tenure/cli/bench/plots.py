"""Curves as SVG, without a library: axes, a line per series, a point per measurement."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.cli.bench.results import Curve

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
COLORS = ("#1f6feb", "#d4691e", "#2e8b57", "#8250df")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.axis{stroke:#8c959f}.grid{stroke:#d8dee4;stroke-dasharray:2 3}"
)
TICKS = 4


def svg(curve: Curve, caption: str) -> str:
    """The plot; `caption` says when and on what it was measured."""
    points = [point for series in curve.series.values() for point in series]
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, log=curve.log_x)
    up = _Axis([0.0, *(y for _, y in points)], HEIGHT - BOTTOM, TOP, log=False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(curve.title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-weight="600">{escape(curve.title)}</text>',
        *_grid(up, curve.y),
        *_foot(across, curve, sorted({x for x, _ in points})),
    ]
    for number, (name, series) in enumerate(curve.series.items()):
        parts += _line(name, number, [(across.at(x), up.at(y)) for x, y in series])
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}" fill="#57606a" font-size="10">{escape(caption)}</text></svg>')
    return "\n".join(parts) + "\n"


class _Axis:
    """From values to places on the page; on a logarithmic one, nothing stands left of one."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self._log = log
        self._start, self._end = start, end
        scaled = [self._scaled(value) for value in values] or [0.0, 1.0]
        self._low, self._high = min(scaled), max(scaled)
        if self._high == self._low:
            self._high = self._low + 1.0
        self.top = max(values, default=1.0) or 1.0

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 0.0) + 1.0) if self._log else value

    def at(self, value: float) -> float:
        part = (self._scaled(value) - self._low) / (self._high - self._low)
        return round(self._start + part * (self._end - self._start), 1)


def _grid(up: _Axis, unit: str) -> list[str]:
    parts: list[str] = []
    for number in range(TICKS + 1):
        value = up.top * number / TICKS
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{value:,.3g}</text>')
    parts.append(f'<text x="12" y="{(TOP + HEIGHT - BOTTOM) / 2}" transform="rotate(-90 12 {(TOP + HEIGHT - BOTTOM) / 2})" '
                 f'text-anchor="middle">{escape(unit)}</text>')  # fmt: skip
    return parts


def _foot(across: _Axis, curve: Curve, values: Sequence[float]) -> list[str]:
    y = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    parts += [f'<text x="{across.at(x)}" y="{y + 16}" text-anchor="middle">{x:,.0f}</text>' for x in values]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{y + 32}" text-anchor="middle">{escape(curve.x)}</text>')
    return parts


def _line(name: str, number: int, places: Sequence[tuple[float, float]]) -> list[str]:
    color = COLORS[number % len(COLORS)]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>']
    parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
    y = TOP + 16 * number
    parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 9}" width="10" height="10" fill="{color}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT + 30}" y="{y}">{escape(name)}</text>')
    return parts
