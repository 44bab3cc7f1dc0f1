"""Pictures of the report: SVG charts drawn here (no plotting library), and person images as base64 JPEG.

Charts take their colours from CSS classes (`s0`, `s1`, ...: one hue a task), so that they follow the page's light or
dark scheme; every series also has its own dash and mark, so that colour is never the only difference.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np
from markupsafe import Markup, escape

from irm_jax.evaluation.report.results import Picture

DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "12 4")
MARKS = ("circle", "square", "triangle", "diamond", "plus", "cross", "bar", "down")
WIDTH = 400  # viewBox units; text of 12 units then stays legible on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38
CHARACTER = 7  # width of a letter of a label, in the widest of the page's fonts


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart: x, y of equal length, NaN breaks it. `style` picks colour, dash and mark; -1 is neutral."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int = -1


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers that lie within [low, high]."""
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
    """Returns one SVG mark centred at (x, y), in viewBox units."""
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


def _css(style: int) -> str:
    return "sn" if style < 0 else f"s{style % 6}"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Returns an HTML list of (SVG sample in a 30x14 box, name)."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 14" width="30" height="14" aria-hidden="true">{svg}</svg>{escape(name)}</li>'
        for svg, name in entries
    )
    return f'<ul class="legend">{items}</ul>'


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, percent: bool = False, height: int = 230
) -> Markup:
    """Returns a `<figure>` with a line chart; with `percent`, y holds fractions and the axis runs from 0 in percent.

    Marks are drawn where a line has at most 12 points. Raises ValueError if no point is finite.
    """
    scale = 100.0 if percent else 1.0
    lines = [(s, np.asarray(s.x, np.float64), np.asarray(s.y, np.float64) * scale) for s in series]
    values = np.concatenate([y[np.isfinite(y)] for _, _, y in lines])
    if not values.size:
        raise ValueError(f"chart {title!r} has no finite value to draw")
    xs = np.concatenate([x for _, x, _ in lines])
    x0, x1 = float(xs.min()), float(xs.max())
    x0 = 0.0 if 0 < x0 < 0.05 * x1 else x0  # a curve of averaged steps starts a little after 0
    y0, y1 = min(0.0, float(values.min())), float(values.max())
    x1, y1 = (x1 if x1 > x0 else x0 + 1.0), (y1 if y1 > y0 else y0 + 1.0)
    heights = ticks(y0, y1)
    if len(heights) > 1 and heights[-1] < y1:
        y1 = heights[-1] + heights[1] - heights[0]
        heights.append(y1)

    def at(x: float, y: float) -> tuple[float, float]:
        left = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return left, height - BOTTOM - (y - y0) / (y1 - y0) * (height - TOP - BOTTOM)

    unit = "%" if percent else ""
    parts = []
    for value in heights:
        y = at(x0, value)[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}{unit}</text>')
    for value in ticks(x0, x1, 4) if len(set(xs)) > 4 else sorted(set(xs)):
        x = at(value, y0)[0]
        parts.append(f'<path class="grid" d="M{x:.1f} {height - BOTTOM}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 17}" text-anchor="middle">{number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{height - 5}" text-anchor="middle">{escape(x_label)}</text>')
    entries: list[tuple[str, str]] = []
    ends = []
    for s, sx, sy in lines:
        css, dash = _css(s.style), DASHES[s.style % 6 if s.style >= 0 else 0]
        shape = MARKS[s.style % len(MARKS)] if s.style >= 0 else "circle"
        good = np.isfinite(sy)
        pieces, pen = [], "M"
        for px, py, ok in zip(sx, sy, good, strict=True):
            if ok:
                left, top = at(px, py)
                pieces.append(f"{pen}{left:.1f} {top:.1f}")
            pen = "L" if ok else "M"
        parts.append(f'<path class="line {css}" stroke-dasharray="{dash}" d="{"".join(pieces)}"/>')
        few = len(sx) <= 12
        if few:
            parts += [mark(shape, *at(px, py), 4, f"dot {css}") for px, py in zip(sx[good], sy[good], strict=True)]
        sample = f'<path class="line {css}" stroke-dasharray="{dash}" d="M1 7H29"/>'
        entries.append((sample + (mark(shape, 15, 7, 4, f"dot {css}") if few else ""), s.name))
        if good.any():
            ends.append(f"{s.name} {number(sy[good][0])}{unit} to {number(sy[good][-1])}{unit}")
    shown = legend(entries) if len(series) > 1 or series[0].style >= 0 else ""
    label = escape(f"{title}: line chart over {x_label}; first to last value: {'; '.join(ends)}")
    svg = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{svg}{shown}</figure>")


def dot_chart(title: str, rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str]) -> Markup:
    """Returns a `<figure>`: a line a row on an axis of 0 to 100%, a mark for each of `names` (fractions, NaN: none).

    The first name is the model: a filled mark with its value written above it; the others are outlines.
    """
    left, row_height, top = max(52, 12 + CHARACTER * max((len(name) for name, _ in rows), default=0)), 36, 12
    bottom = top + row_height * len(rows)

    def at(value: float) -> float:
        return left + value * (WIDTH - left - 18)

    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = at(tick / 100)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{tick}%</text>')
    spoken = []
    for i, (name, values) in enumerate(rows):
        y = top + row_height * (i + 0.62)
        parts.append(f'<path class="rail" d="M{left} {y:.1f}H{WIDTH - 18}"/>')
        parts.append(f'<text class="row" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        order = range(len(values) - 1, -1, -1)  # the model last, on top
        for k in (k for k in order if math.isfinite(values[k])):
            css = "model" if k == 0 else "control"
            parts.append(mark(MARKS[k % len(MARKS)], at(values[k]), y, 6 if k == 0 else 5, css))
        if math.isfinite(values[0]):
            x = min(max(at(values[0]), left + 16), WIDTH - 34)
            parts.append(f'<text class="value" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{values[0]:.1%}</text>')
        told = ", ".join(f"{n} {v:.1%}" for n, v in zip(names, values, strict=True) if math.isfinite(v))
        spoken.append(f"{name}: {told}")
    samples = [(mark(MARKS[k % len(MARKS)], 15, 7, 5, "control" if k else "model"), n) for k, n in enumerate(names)]
    label = escape(f"{title}. {'; '.join(spoken)}")
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 26}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{svg}{legend(samples)}</figure>")


def decode(picture: Picture) -> np.ndarray:
    """Returns u8[H,W,3] RGB. Raises ValueError on bytes that are no picture or an array of another shape or type."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"a picture of the report is {picture.dtype}{list(picture.shape)}; u8[H,W,3] is needed")
        return picture
    decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) if picture else None
    if decoded is None:
        raise ValueError(f"a picture of the report ({len(picture)} bytes) is neither JPEG nor PNG")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def thumbnail(picture: Picture, max_height: int = 192, quality: int = 85) -> tuple[str, int, int]:
    """Returns (data URI of a JPEG, width, height); pictures higher than `max_height` pixels are made smaller."""
    image = decode(picture)
    if image.shape[0] > max_height:
        width = max(1, round(image.shape[1] * max_height / image.shape[0]))
        image = cv2.resize(image, (width, max_height), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"a picture of the report, {image.shape[1]}x{image.shape[0]}, could not be written as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode(), image.shape[1], image.shape[0]


# Black over violet and orange to pale yellow: brightness rises all the way, so the map also reads without colour.
HEAT_STOPS = np.array([[8, 6, 40], [92, 18, 110], [190, 54, 84], [245, 130, 30], [252, 250, 170]], np.float64)


def overlay(picture: Picture, heat: np.ndarray, height: int = 256) -> np.ndarray:
    """Returns u8[height,W,3]: the picture with `heat` f32[gh,gw] over it, its maximum brightest."""
    image = decode(picture)
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    values = np.asarray(heat, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"attention heat is {list(values.shape)} with NaN or infinity in it, or not a [gh,gw] map")
    spread = values.max() - values.min()
    values = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    values = np.clip(cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    colour = np.stack([np.interp(values, np.linspace(0, 1, len(HEAT_STOPS)), HEAT_STOPS[:, c]) for c in range(3)], -1)
    alpha = 0.35 + 0.4 * values[..., None]
    return np.round(image * (1 - alpha) + colour * alpha).astype(np.uint8)
