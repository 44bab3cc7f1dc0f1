"""Draws patterned cloth and bags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.procedural import outfits
from data_pipelines.procedural.drawing.body import BACK, LEFT, Body, Look
from data_pipelines.procedural.drawing.canvas import Canvas, Paint, Point, shade

_STRIPES, _SQUARES = 0.062, 0.078
"""Period of the stripes, and of checks and dots, in units of the picture height."""


def pattern_paint(x0: float, y0: float, pattern: int, zoom: float = 1.0) -> Paint:
    """Returns what paints a pattern whose origin is (x0, y0), for `Canvas.textured`; edges are one pixel wide.

    Triangle waves and plain arithmetic only: the same bits on every machine.
    """
    name = outfits.PATTERN.values[pattern]
    period = np.float32(zoom * (_STRIPES if name == "striped" else _SQUARES))

    def paint(x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
        sharp = period / np.float32(pixel)
        down = np.abs(((y - np.float32(y0)) / period + np.float32(0.25)) % 1 - np.float32(0.5))
        if name == "striped":
            return np.clip((np.float32(0.25) - down) * sharp + np.float32(0.5), 0, 1).repeat(x.shape[1], 1)
        across = np.abs(((x - np.float32(x0)) / period) % 1 - np.float32(0.5))
        if name == "checked":
            a = np.clip((across - np.float32(0.25)) * sharp + np.float32(0.5), 0, 1)
            b = np.clip((down - np.float32(0.25)) * sharp + np.float32(0.5), 0, 1)
            return a + b - 2 * a * b
        radius = np.sqrt(across * across + down * down)
        return np.clip((np.float32(0.29) - radius) * sharp + np.float32(0.5), 0, 1)

    return paint


def draw_upper(
    canvas: Canvas, points: Sequence[Point], wear: int, look: Look, origin: Point, zoom: float = 1.0
) -> None:
    """Fills the outline of an upper garment with its colour and pattern (`wear`, a value of `outfits.PATTERN`)."""
    if outfits.PATTERN.values[wear] == "plain":
        canvas.polygon(points, look.upper)
    else:
        canvas.textured(points, pattern_paint(*origin, wear, zoom), look.upper, look.pattern)


def draw_backpack(canvas: Canvas, body: Body, look: Look, share: float) -> None:
    half, top = share * (body.shoulder + 0.004), body.shoulder_y - 0.004
    bottom = top + 0.80 * (body.hip_y - body.shoulder_y)
    corners = [(-0.7, 0.0), (0.7, 0.0), (1.0, 0.12), (1.0, 1.0), (-1.0, 1.0), (-1.0, 0.12)]
    canvas.polygon([(body.x + half * px, top + (bottom - top) * py) for px, py in corners], look.bag, convex=True)
    if share < 1:
        pocket = top + 0.55 * (bottom - top)
        canvas.rectangle(body.x - 0.7 * half, pocket, body.x + 0.7 * half, bottom - 0.012, shade(look.bag, 0.72))


def draw_backpack_from_side(canvas: Canvas, body: Body, look: Look) -> None:
    f, tall = body.facing, body.hip_y - body.shoulder_y
    near, far = body.shoulder_x - f * 0.6 * body.shoulder, body.shoulder_x - f * (body.shoulder + 0.062)
    corners = [(near, 0.0), (0.5 * (near + far), 0.0), (far, 0.15), (far, 0.82), (near, 0.82)]
    canvas.polygon([(px, body.shoulder_y + tall * py) for px, py in corners], look.bag, convex=True)


def draw_shoulder_bag(canvas: Canvas, body: Body, look: Look, view: int) -> None:
    sign = -1.0 if view in (BACK, LEFT) else 1.0
    start = (body.shoulder_x - sign * 0.55 * body.shoulder, body.shoulder_y)
    end = (body.x + sign * (body.hip + 0.012), body.hip_y - 0.02)
    canvas.capsule(start, end, 0.009, 0.009, look.bag)
    top, half = body.hip_y - 0.045, 0.042
    canvas.rectangle(end[0] - half, top, end[0] + half, top + 0.095, look.bag)
    canvas.rectangle(end[0] - half, top, end[0] + half, top + 0.030, shade(look.bag, 0.70))
