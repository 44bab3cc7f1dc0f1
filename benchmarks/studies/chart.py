"""A chart of differences with their intervals, as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from irm_jax.evaluation.report import charts

WIDTH, LEFT, GAP, TOP, ROW = 760, 140, 30, 46, 26
_INK, _GRID, _BLUE = "#222", "#ccc", "#1f5fa8"

Intervals = Mapping[tuple[str, str], tuple[float, float]]
"""(mean, half width of the interval, which may be infinite) by (figure, variant)."""


def draw(rows: Intervals, base: str, variants: Sequence[str], panels: Mapping[str, str]) -> str:
    """Draws one row per variant and one panel per figure (`panels`: figure -> title): dots with intervals.

    A dot is filled where its interval excludes 0. A difference with an infinite interval is a dot alone.
    """
    low, high = _range(rows)
    bottom = TOP + ROW * len(variants)
    width = (WIDTH - LEFT - GAP * len(panels)) / len(panels)
    parts = [f'<rect width="{WIDTH}" height="{bottom + 40}" fill="#fff"/>']
    parts += [_text(LEFT - 10, TOP + ROW * (row + 0.5) + 4, name, "end") for row, name in enumerate(variants)]
    for number, (figure, title) in enumerate(panels.items()):
        panel = _Panel(LEFT + number * (width + GAP), width, low, high)
        parts += panel.frame(title, bottom, ticks=4 if len(panels) < 3 else 3)
        for row, variant in enumerate(variants):
            if (figure, variant) in rows:
                parts += panel.dot(*rows[figure, variant], TOP + ROW * (row + 0.5))
    words = f"mAP less that of {base}: mean over paired seeds, 95% interval; filled: it leaves out 0"
    parts.append(_text(WIDTH / 2, bottom + 33, words, "middle"))
    title = f"Paired differences in mAP to {base}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>\n'
    )


def _range(rows: Intervals) -> tuple[float, float]:
    """Returns the lowest and the highest value that a panel shows; 0 is always within."""
    shown = [mean + side * half for mean, half in rows.values() for side in (-1, 1) if math.isfinite(half)]
    shown += [0.0, *(mean for mean, _ in rows.values())]
    low, high = min(shown), max(shown)
    return (low - 0.005, high + 0.005) if high - low < 1e-6 else (low, high)


def _text(x: float, y: float, words: str, anchor: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}"{extra}>{escape(words)}</text>'


class _Panel:
    """One panel of the chart: the values from `low` to `high` over `width` units from `start` on."""

    def __init__(self, start: float, width: float, low: float, high: float) -> None:
        self.start, self.width, self.low, self.high = start, width, low, high

    def at(self, value: float) -> float:
        return self.start + 8 + (value - self.low) / (self.high - self.low) * (self.width - 16)

    def frame(self, title: str, bottom: float, ticks: int) -> list[str]:
        parts = [_text(self.start + self.width / 2, TOP - 22, title, "middle", ' font-weight="bold"')]
        for tick in charts.ticks(self.low, self.high, ticks):
            parts.append(f'<path stroke="{_GRID}" d="M{self.at(tick):.1f} {TOP}V{bottom}"/>')
            parts.append(_text(self.at(tick), bottom + 16, f"{tick:+g}" if tick else "0", "middle"))
        return [*parts, f'<path stroke="{_INK}" d="M{self.at(0):.1f} {TOP}V{bottom}"/>']

    def dot(self, mean: float, half: float, y: float) -> list[str]:
        parts = []
        if math.isfinite(half):
            ends = f"M{self.at(mean - half):.1f} {y:.1f}H{self.at(mean + half):.1f}"
            parts.append(f'<path class="interval" stroke="{_BLUE}" stroke-width="2" d="{ends}"/>')
        fill = _BLUE if math.isfinite(half) and abs(mean) > half else "#fff"
        circle = f'<circle cx="{self.at(mean):.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" '
        return [*parts, circle + f'stroke="{_BLUE}" stroke-width="2"/>']
