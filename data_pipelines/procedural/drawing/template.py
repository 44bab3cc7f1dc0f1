"""Pictures of clothes without a person: the visual instruction of task ctcc."""

from __future__ import annotations

import numpy as np
import simplejpeg

from data_pipelines.procedural import outfits
from data_pipelines.procedural.drawing import garments
from data_pipelines.procedural.drawing.body import Look
from data_pipelines.procedural.drawing.canvas import Canvas, Colour, Point, shade
from data_pipelines.procedural.drawing.render import clothes_look
from data_pipelines.procedural.outfits import Outfit, Wardrobe

_WHITE, _EDGE = 255, (150.0, 150.0, 150.0)
_MIDDLE = -0.14  # of shirt and trousers; what is carried lies to the right
_TROUSERS = ((-0.12, 0.52), (-0.14, 0.96), (-0.03, 0.96), (0.0, 0.64))


def _mirrored(left_half: list[Point]) -> list[Point]:
    """Returns the outline of a garment from its left half, moved to its place."""
    return [(x + _MIDDLE, y) for x, y in [*left_half, *[(-x, y) for x, y in reversed(left_half)]]]


def _outline(canvas: Canvas, points: list[Point]) -> None:
    """Draws a thin grey rim, so that white clothes are seen on white."""
    x0, y0 = (sum(values) / len(points) for values in zip(*points, strict=True))
    canvas.polygon([(x0 + (x - x0) * 1.05, y0 + (y - y0) * 1.04) for x, y in points], _EDGE)


def render_template(outfit: Outfit, wardrobe: Wardrobe, size: tuple[int, int]) -> np.ndarray:
    """Returns the outfit as flat garments on white, as a shop shows them, u8[H, W, 3]; `size` is (H, W).

    No body, skin or hair: a template says nothing about who wears it.
    """
    canvas = Canvas(np.full((*size, 3), _WHITE, np.uint8), scale=float(min(size)))
    look = clothes_look(outfit, wardrobe)
    _, pattern, _, bag = outfit[: len(outfits.BASE_SLOTS)]
    cuff = 0.42 if wardrobe.extra(outfit, "sleeves") else 0.26
    shirt = _mirrored([(-0.07, 0.05), (-0.16, 0.07), (-0.30, cuff - 0.04), (-0.23, cuff), (-0.15, 0.19), (-0.15, 0.47)])
    trousers = _mirrored(list(_TROUSERS))
    _outline(canvas, shirt)
    _outline(canvas, trousers)
    garments.draw_upper(canvas, shirt, pattern, look, (_MIDDLE, 0.05), zoom=1.4)
    canvas.polygon(trousers, look.lower)
    _draw_bag(canvas, bag, look.bag)
    _draw_extras(canvas, outfit, wardrobe, look)
    return canvas.pixels


def _draw_bag(canvas: Canvas, bag: int, colour: Colour) -> None:
    if bag == 1:
        corners = [(0.20, 0.16), (0.38, 0.16), (0.42, 0.22), (0.42, 0.48), (0.16, 0.48), (0.16, 0.22)]
        canvas.polygon(corners, colour, convex=True)
        canvas.rectangle(0.20, 0.33, 0.38, 0.45, shade(colour, 0.72))
    elif bag == 2:
        for start, end in (((0.17, 0.32), (0.29, 0.10)), ((0.29, 0.10), (0.41, 0.32))):
            canvas.capsule(start, end, 0.014, 0.014, colour)
        canvas.rectangle(0.15, 0.30, 0.43, 0.48, colour)
        canvas.rectangle(0.15, 0.30, 0.43, 0.36, shade(colour, 0.70))


def _draw_extras(canvas: Canvas, outfit: Outfit, wardrobe: Wardrobe, look: Look) -> None:
    if "shoes" in wardrobe.extras:
        canvas.capsule((0.20, 0.90), (0.38, 0.92), 0.045, 0.035, _EDGE)
        canvas.capsule((0.20, 0.90), (0.38, 0.92), 0.038, 0.028, look.shoes)
    hat = wardrobe.extra(outfit, "hat")
    if hat:
        canvas.ellipse(0.29, 0.66, 0.10, 0.08, look.hat)
        brim = 0.44 if hat == 1 else 0.39  # a cap has a peak, a beanie a fold
        canvas.rectangle(0.19, 0.66, brim, 0.70, shade(look.hat, 0.8))


def template_jpeg(outfit: Outfit, wardrobe: Wardrobe, size: tuple[int, int]) -> bytes:
    """Returns the template as JPEG bytes, quality 95."""
    return simplejpeg.encode_jpeg(render_template(outfit, wardrobe, size), quality=95, colorspace="RGB")
