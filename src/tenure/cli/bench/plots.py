"""Curves as SVG, without a library: axes, a line per series, a point per measurement; light or dark as the reader's system is."""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenure.cli.bench.results import Curve

WIDTH, PLOT_BOTTOM = 720, 330
LEFT, RIGHT, TOP = 80, 150, 52
LINE, CAPTION_CHARS = 14, 118
SERIES = 4
DECADES = 1.3
"""What spans more powers of ten than this is drawn on a logarithmic axis."""
_LOOK = """\
svg{--back:#fff;--text:#1f2328;--faint:#59636e;--grid:#d8dee4;--axis:#818b98;--s0:#0969da;--s1:#bc4c00;--s2:#1a7f37;--s3:#8250df}
@media (prefers-color-scheme:dark){svg{--back:#0d1117;--text:#e6edf3;--faint:#9198a1;--grid:#2f353d;--axis:#656c76;\
--s0:#58a6ff;--s1:#f0883e;--s2:#3fb950;--s3:#bc8cff}}
text{font:12px system-ui,sans-serif;fill:var(--text)}.title{font-size:14px;font-weight:600}.faint{font-size:10px;fill:var(--faint)}
.end{text-anchor:end}.mid{text-anchor:middle}.axis{stroke:var(--axis)}.grid{stroke:var(--grid)}.back{fill:var(--back)}
polyline{fill:none;stroke-width:2}"""
STYLE = _LOOK + "".join(
    f".s{n}{{stroke:var(--s{n})}}.f{n}{{fill:var(--s{n});stroke:var(--back)}}" for n in range(SERIES)
)


def svg(curve: Curve, caption: str) -> str:
    """The plot; `caption` says when and on what it was measured."""
    points = [point for series in curve.series.values() for point in series]
    values = [y for _, y in points]
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT, log=curve.log_x)
    decades = _spans_decades(values)
    up = _Axis(_span(values, decades=decades), PLOT_BOTTOM, TOP, log=decades)
    foot = textwrap.wrap(caption, CAPTION_CHARS)
    height = PLOT_BOTTOM + 50 + LINE * len(foot)
    scale = " (logarithmic)" if decades else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(curve.title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="24">{escape(curve.title)}</text>',
        *_grid(up, f"{curve.y}{scale}", values, decades=decades),
        *_foot(across, curve, sorted({x for x, _ in points})),
    ]
    for number, (name, series) in enumerate(curve.series.items()):
        parts += _line(name, number, [(across.at(x), up.at(y)) for x, y in series])
    parts += [
        f'<text class="faint" x="{LEFT}" y="{PLOT_BOTTOM + 54 + LINE * n}">{escape(line)}</text>'
        for n, line in enumerate(foot)
    ]
    return "\n".join(parts) + "\n</svg>\n"


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and math.log10(max(values) / min(values)) > DECADES


def _span(values: Sequence[float], *, decades: bool) -> tuple[float, float]:
    """The ends of the axis: from nothing to the next tick above; or whole powers of ten."""
    if decades:
        return 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    return 0.0, _ticks(max(values, default=1.0))[-1]


def _ticks(most: float) -> list[float]:
    """Round numbers from nothing to at least `most`, four to eight steps."""
    most = most or 1.0
    step = 10 ** math.floor(math.log10(most / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if most / (step * factor) <= 6)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


class _Axis:
    """From values to places on the page; a logarithmic one that has nothing (0) shows it a step left of one."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self._log, self._start, self._end = log, start, end
        self._zero = min((value for value in values if value > 0), default=1.0) / 10
        scaled = [self._scaled(value) for value in values] or [0.0, 1.0]
        self._low, self._high = min(scaled), max(scaled)
        if self._high == self._low:
            self._high = self._low + 1.0

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, self._zero)) if self._log else value

    def at(self, value: float) -> float:
        part = (self._scaled(value) - self._low) / (self._high - self._low)
        return round(self._start + part * (self._end - self._start), 1)


def _grid(up: _Axis, unit: str, values: Sequence[float], *, decades: bool) -> list[str]:
    parts: list[str] = []
    low, high = _span(values, decades=decades)
    if decades:
        ticks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    else:
        ticks = _ticks(high)
    for value in ticks:
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{y + 4}">{_plain(value)}</text>')
    middle = (TOP + PLOT_BOTTOM) / 2
    parts.append(f'<text class="mid" x="20" y="{middle}" transform="rotate(-90 20 {middle})">{escape(unit)}</text>')
    return parts


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _foot(across: _Axis, curve: Curve, values: Sequence[float]) -> list[str]:
    y = PLOT_BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>']
    for x in values:
        at = across.at(x)
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{y}" y2="{y + 4}"/>')
        parts.append(f'<text class="mid" x="{at}" y="{y + 18}">{x:,.0f}</text>')
    scale = " (logarithmic)" if curve.log_x and len(values) > 2 else ""
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="mid" x="{middle}" y="{y + 36}">{escape(curve.x)}{scale}</text>')
    return parts


def _line(name: str, number: int, places: Sequence[tuple[float, float]]) -> list[str]:
    kind = number % SERIES
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline class="s{kind}" points="{path}"/>']
    parts += [f'<circle class="f{kind}" cx="{x}" cy="{y}" r="4"/>' for x, y in places]
    x, y = WIDTH - RIGHT + 18, TOP + 10 + 20 * number
    parts.append(f'<line class="s{kind}" stroke-width="3" x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}"/>')
    parts.append(f'<text x="{x + 24}" y="{y}">{escape(name)}</text>')
    return parts
