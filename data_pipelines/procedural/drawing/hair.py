"""Draws hair, the largest mark of identity on a small picture, and the hat above it."""

from __future__ import annotations

import math

import numpy as np

from data_pipelines.procedural.drawing.body import BACK, Body, Look
from data_pipelines.procedural.drawing.canvas import Canvas, Point, shade

_ARC = np.linspace(0.0, 1.0, 14)


def draw_behind(canvas: Canvas, body: Body, shape: str, look: Look) -> None:
    x, y, rx, ry, f = body.head_x, body.head_y, body.rx, body.ry, body.facing
    if shape == "afro":
        canvas.ellipse(x - 0.15 * f * rx, y - 0.30 * ry, 1.95 * rx, 1.50 * ry, look.hair)
    elif shape == "bob" and not f:
        canvas.polygon(_bell(x, y - 1.0 * ry, y + 1.0 * ry, 1.15 * rx, 1.70 * rx), look.hair)
    elif shape == "long" and not f:
        canvas.polygon(_bell(x, y - 1.0 * ry, body.shoulder_y + 0.06, 1.20 * rx, 1.55 * rx), look.hair)


def _bell(x: float, top: float, bottom: float, narrow: float, wide: float) -> list[Point]:
    """Returns hair that hangs: round at the top, widening to the bottom."""
    upper = top + 0.25 * (bottom - top)
    left = [(x - wide, bottom), (x - 0.5 * (narrow + wide), upper), (x - 0.6 * narrow, top + 0.03 * (bottom - top))]
    return [*left, *[(2 * x - px, py) for px, py in reversed(left)]]


def _cap(body: Body, view: int, low: float, grow: float) -> list[Point]:
    """Returns the hair on the skull: the head's outline grown a little, above `low` (half heads below the middle)."""
    x, y, rx, ry, f = body.head_x, body.head_y, body.rx * grow, body.ry * grow, body.facing
    if view == BACK:
        start, end = -0.20 * math.pi, 1.20 * math.pi
    elif f:
        # From the forehead over the top down to the nape; the face stays free.
        start, end = 0.34 * math.pi, 1.22 * math.pi
    else:
        rise = math.asin(max(-1.0, min(1.0, -low)))
        start, end = rise, math.pi - rise
    angles = start + (end - start) * _ARC
    sign = -1.0 if f < 0 else 1.0
    points = list(zip((x + sign * rx * np.cos(angles)).tolist(), (y - ry * np.sin(angles)).tolist(), strict=True))
    if f:
        points.append((x - 0.05 * f * rx, y + 0.25 * ry))
        points.append((x + 0.20 * f * rx, y + low * ry))
    return points


def draw_before(canvas: Canvas, body: Body, shape: str, look: Look, view: int) -> None:
    x, y, rx, ry, f = body.head_x, body.head_y, body.rx, body.ry, body.facing
    low = {"bob": -0.18, "long": -0.30, "short": -0.38}.get(shape, -0.34)
    canvas.polygon(_cap(body, view, low, 1.08 if shape == "short" else 1.12), look.hair)
    chest = body.shoulder_y + 0.42 * (body.hip_y - body.shoulder_y)
    if shape == "bun":
        canvas.ellipse(x - 0.55 * f * rx, y - 1.42 * ry, 0.62 * rx, 0.50 * ry, look.hair)
    elif shape == "spiky":
        for k in range(-2, 3):
            base, tip = 0.42 * k * rx, 0.62 * k * rx
            points = [
                (x + base - 0.32 * rx, y - 0.78 * ry),
                (x + tip, y - (1.85 - 0.13 * abs(k)) * ry),
                (x + base + 0.32 * rx, y - 0.78 * ry),
            ]
            canvas.polygon(points, look.hair, convex=True)
    elif shape == "bob":
        if f:
            points = [
                (x - 0.1 * f * rx, y - 0.9 * ry),
                (x - 1.2 * f * rx, y - 0.3 * ry),
                (x - 1.5 * f * rx, y + ry),
                (x + 0.15 * f * rx, y + ry),
            ]
            canvas.polygon(points, look.hair)
        elif view == BACK:
            canvas.polygon(_bell(x, y - ry, y + 1.0 * ry, 1.15 * rx, 1.70 * rx), look.hair)
    elif shape == "long":
        if f:
            canvas.capsule(
                (x - 0.5 * f * rx, y - 0.3 * ry), (x - 0.75 * f * rx, chest), 0.70 * rx, 0.50 * rx, look.hair
            )
        elif view == BACK:
            canvas.polygon(_bell(x, y - ry, chest, 1.15 * rx, 1.45 * rx), look.hair)
        else:
            for sign in (-1.0, 1.0):
                top = (x + sign * 1.0 * rx, y - 0.2 * ry)
                canvas.capsule(top, (x + sign * 1.25 * rx, chest), 0.28 * rx, 0.40 * rx, look.hair)


def draw_hat(canvas: Canvas, body: Body, hat: int, look: Look) -> None:
    x, y, rx, ry, f = body.head_x, body.head_y, body.rx, body.ry, body.facing
    crown = [(x + 1.2 * rx * math.cos(a), y - 0.35 * ry - 0.85 * ry * math.sin(a)) for a in np.linspace(0, math.pi, 9)]
    canvas.polygon(crown, look.hat, convex=True)
    if hat == 1:
        reach = x + (f or 0.0) * 0.9 * rx
        canvas.rectangle(reach - 1.2 * rx, y - 0.48 * ry, reach + 1.2 * rx, y - 0.26 * ry, shade(look.hat, 0.8))
    else:
        canvas.rectangle(x - 1.22 * rx, y - 0.55 * ry, x + 1.22 * rx, y - 0.22 * ry, shade(look.hat, 1.25))
