"""Draws the report's charts as SVG, without a plotting library.

Charts take their colours from CSS classes (`s0`, `s1`, ...: one hue per task), so they follow the page's light or dark
scheme. Every series also has its own dash and mark: colour is never the only difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from markupsafe import Markup, escape

DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "12 4")
MARKS = ("circle", "square", "triangle", "diamond", "plus", "cross", "bar", "down")
WIDTH = 400  # viewBox units; text of 12 units then stays legible on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38
CHARACTER = 7  # viewBox units per letter of a label, in the widest of the page's fonts
FEW_POINTS = 12  # a line of at most this many points gets a mark at each


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart: x and y of equal length; NaN breaks it.

    `style` selects colour, dash and mark; -1 is neutral.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = -1


@dataclasses.dataclass(frozen=True)
class Dots:
    """One row of a dot chart: a label and one fraction per name of the chart; NaN draws nothing."""

    label: str
    values: Sequence[float]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Returns a short axis label: 12k, 0.25, 3."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def mark(shape: str, x: float, y: float, r: float, css: str) -> str:
    """Returns one SVG mark of radius `r` centred at (x, y), in viewBox units."""
    points = {
        "triangle": [(0, -1.15), (1.05, 0.8), (-1.05, 0.8)],
        "down": [(0, 1.15), (1.05, -0.8), (-1.05, -0.8)],
        "diamond": [(0, -1.25), (1.1, 0), (0, 1.25), (-1.1, 0)],
        "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    }
    strokes = {"plus": "M{l} {y}H{r}M{x} {t}V{b}", "cross": "M{l} {t}L{r} {b}M{r} {t}L{l} {b}", "bar": "M{x} {t}V{b}"}
    if shape in points:
        path = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in points[shape])
        return f'<polygon class="{css}" points="{path}"/>'
    if shape in strokes:
        box = {"x": x, "y": y, "l": x - r, "r": x + r, "t": y - r, "b": y + r}
        path = strokes[shape].format(**{key: f"{value:.1f}" for key, value in box.items()})
        return f'<path class="{css}" d="{path}"/>'
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Returns an HTML list of (SVG sample in a 30x14 box, name)."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 14" width="30" height="14" aria-hidden="true">{svg}</svg>{escape(name)}</li>'
        for svg, name in entries
    )
    return f'<ul class="legend">{items}</ul>'


@dataclasses.dataclass(frozen=True)
class _Axes:
    """The data range of a line chart, its round heights, and where a point lies in the viewBox."""

    x: tuple[float, float]
    y: tuple[float, float]
    heights: Sequence[float]
    columns: Sequence[float]
    height: int

    @classmethod
    def around(cls, series: Sequence[Series], height: int) -> Self:
        """Returns axes that hold every point; y starts at or below 0 and ends on a round number."""
        xs = np.concatenate([np.asarray(s.x, np.float64) for s in series])
        ys = np.concatenate([np.asarray(s.y, np.float64) for s in series])
        ys = ys[np.isfinite(ys)]
        x0, x1 = float(xs.min()), float(xs.max())
        x0 = 0.0 if 0 < x0 < 0.05 * x1 else x0  # a curve of averaged steps starts slightly after 0
        y0, y1 = min(0.0, float(ys.min())), float(ys.max())
        x1, y1 = (x1 if x1 > x0 else x0 + 1.0), (y1 if y1 > y0 else y0 + 1.0)
        heights = ticks(y0, y1)
        if len(heights) > 1 and heights[-1] < y1:
            y1 = heights[-1] + heights[1] - heights[0]
            heights.append(y1)
        columns = ticks(x0, x1, 4) if len(set(xs)) > 4 else sorted(set(xs))
        return cls((x0, x1), (y0, y1), heights, columns, height)

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self.x, self.y
        left = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return left, self.height - BOTTOM - (y - y0) / (y1 - y0) * (self.height - TOP - BOTTOM)

    def svg(self, x_label: str, unit: str) -> str:
        """Returns the grid and the axis labels."""
        parts = []
        for value in self.heights:
            y = self.at(self.x[0], value)[1]
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}{unit}</text>')
        for value in self.columns:
            x, bottom = self.at(value, self.y[0])[0], self.height - BOTTOM
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v4"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(value)}</text>')
        middle, bottom = (LEFT + WIDTH - RIGHT) / 2, self.height - 5
        parts.append(f'<text class="axis" x="{middle}" y="{bottom}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def _curve(series: Series, axes: _Axes) -> tuple[str, str]:
    """Returns the SVG of one line, and its sample for the legend."""
    css = "sn" if series.style < 0 else f"s{series.style % len(DASHES)}"
    place = max(series.style + series.style // len(DASHES), 0)  # the next lap of the colours has other dashes and marks
    dash, shape = DASHES[place % len(DASHES)], MARKS[place % len(MARKS)]
    points = [axes.at(x, y) if math.isfinite(y) else None for x, y in zip(series.x, series.y, strict=True)]
    path, pen = "", "M"
    for point in points:
        if point is not None:
            path += f"{pen}{point[0]:.1f} {point[1]:.1f}"
        pen = "M" if point is None else "L"
    stroke = f'<path class="line {css}" stroke-dasharray="{dash}" d="{{}}"/>'
    svg, sample = stroke.format(path), stroke.format("M1 7H29")
    if len(points) <= FEW_POINTS:
        svg += "".join(mark(shape, *point, 4, f"dot {css}") for point in points if point is not None)
        sample += mark(shape, 15, 7, 4, f"dot {css}")
    return svg, sample


def _figure(title: str, description: str, size: tuple[int, int], svg: str, key: str = "") -> Markup:
    """Returns a `<figure>`; `description` is what a screen reader says."""
    label = f'role="img" aria-label="{escape(description)}"'
    chart = f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" {label}>{svg}</svg>'
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{chart}{key}</figure>")


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, percent: bool = False, height: int = 230
) -> Markup:
    """Returns a `<figure>` with a line chart; with `percent`, y holds fractions and the axis shows percent.

    Lines of at most FEW_POINTS points have marks. Raises ValueError if no point is finite.
    """
    if not any(math.isfinite(y) for s in series for y in s.y):
        raise ValueError(f"chart {title!r} has no finite value to draw")
    unit = "%" if percent else ""
    if percent:
        series = [dataclasses.replace(s, y=[100 * y for y in s.y]) for s in series]
    axes = _Axes.around(series, height)
    curves = [_curve(s, axes) for s in series]
    ends = []
    for s in series:
        if finite := [y for y in s.y if math.isfinite(y)]:
            ends.append(f"{s.name} {number(finite[0])}{unit} to {number(finite[-1])}{unit}")
    description = f"{title}: line chart over {x_label}; first to last value: {'; '.join(ends)}"
    samples = [(sample, s.name) for (_, sample), s in zip(curves, series, strict=True)]
    key = legend(samples) if len(series) > 1 or series[0].style >= 0 else ""
    return _figure(title, description, (WIDTH, height), axes.svg(x_label, unit) + "".join(c for c, _ in curves), key)


def dot_chart(title: str, rows: Sequence[Dots], names: Sequence[str]) -> Markup:
    """Returns a `<figure>`: one line per row on an axis from 0 to 100%, with one mark per name.

    The first name is the model: a filled mark with its value above it. The others are outlines.
    """
    left = max(52, 15 + CHARACTER * max((len(row.label) for row in rows), default=0))
    row_height, top = 36, 12
    bottom = top + row_height * len(rows)
    scale = WIDTH - left - 18
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = left + tick / 100 * scale
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick}%</text>')
    described = []
    for i, row in enumerate(rows):
        y = top + row_height * (i + 0.62)
        parts.append(f'<path class="rail" d="M{left} {y:.1f}H{WIDTH - 18}"/>')
        parts.append(f'<text class="row" x="{left - 11}" y="{y + 4:.1f}" text-anchor="end">{escape(row.label)}</text>')
        finite = [k for k, value in enumerate(row.values) if math.isfinite(value)]
        for k in reversed(finite):  # the model last, on top
            shape, radius, css = MARKS[k % len(MARKS)], 5 if k else 6, "control" if k else "model"
            parts.append(mark(shape, left + row.values[k] * scale, y, radius, css))
        if 0 in finite:
            x = min(max(left + row.values[0] * scale, left + 16), WIDTH - 34)
            text = f"{row.values[0]:.1%}"
            parts.append(f'<text class="value" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{text}</text>')
        described.append(f"{row.label}: " + ", ".join(f"{names[k]} {row.values[k]:.1%}" for k in finite))
    samples = [(mark(MARKS[k % len(MARKS)], 15, 7, 5, "control" if k else "model"), n) for k, n in enumerate(names)]
    return _figure(title, f"{title}. {'; '.join(described)}", (WIDTH, bottom + 26), "".join(parts), legend(samples))


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Points of a scatter chart: f[n,2], the group of each (its place in `names`, -1: none of them), and what it is."""

    points: np.ndarray
    group: Sequence[int]
    names: Sequence[str]
    titles: Sequence[str]


def scatter_chart(title: str, data: Scatter, marked: Sequence[tuple[str, float, float]], size: int = 400) -> Markup:
    """Returns a `<figure>` without axes, with one point per image; points without a group are small and grey.

    `marked`: (name, x, y) of points that stand out, joined by a line; the last is filled.
    """
    every = np.concatenate([data.points, [[x, y] for _, x, y in marked]]) if len(marked) else data.points
    low, high = every.min(axis=0), every.max(axis=0)
    spread = float(max(*(high - low), 1e-9))
    middle = (low + high) / 2

    def at(point: Sequence[float]) -> tuple[float, float]:
        x, y = (np.asarray(point) - middle) / spread * (size - 28)
        return size / 2 + float(x), size / 2 - float(y)

    parts = []
    for place in np.argsort(np.asarray(data.group), kind="stable").tolist():  # points without a group come first
        group = data.group[place]
        shape = "circle" if group < 0 else MARKS[group % len(MARKS)]
        css = "other" if group < 0 else f"dot s{group % len(DASHES)}"
        svg = mark(shape, *at(data.points[place]), 2.2 if group < 0 else 3.6, css)
        parts.append(f"<g><title>{escape(data.titles[place])}</title>{svg}</g>")
    places = [at((x, y)) for _, x, y in marked]
    if len(places) > 1:
        parts.append(f'<path class="moved" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
    samples = [(mark(MARKS[g % len(MARKS)], 15, 7, 5, f"dot s{g % len(DASHES)}"), n) for g, n in enumerate(data.names)]
    if any(group < 0 for group in data.group):
        samples.append((mark("circle", 15, 7, 3, "other"), "others"))
    for number, (name, _, _) in enumerate(marked):
        css = "model" if number == len(marked) - 1 else "control"
        parts.append(mark("square", *places[number], 6, css))
        samples.append((mark("square", 15, 7, 5.5, css), name))
    words = f"{title}: scatter chart of {len(data.points)} images"
    return _figure(title, words, (size, size), "".join(parts), legend(samples))
