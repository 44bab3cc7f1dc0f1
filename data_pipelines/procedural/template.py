"""Pictures of clothes without a person: the visual instruction of task ctcc."""

from __future__ import annotations

import numpy as np
import simplejpeg

from data_pipelines.procedural import garments, outfits
from data_pipelines.procedural.canvas import Canvas, Colour, shade
from data_pipelines.procedural.outfits import Outfit, Wardrobe
from data_pipelines.procedural.people import Person
from data_pipelines.procedural.render import visible_look

def render_template(outfit: Outfit, wardrobe: Wardrobe, size: tuple[int, int]) -> np.ndarray:
    """Returns u8[H, W, 3]: the outfit as flat garments on white, as a shop shows them. No body, skin or hair."""
    pixels = np.full((*size, 3), 255, np.uint8)
    canvas = Canvas(pixels)
    # Canvas units are half as wide as high; a template is square, so its content is laid out in the unit square here.
    canvas.scale, canvas.centre, canvas.top = float(min(size)), size[1] / 2, (size[0] - min(size)) / 2
    person = Person(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0)
    look = _visible_look(person, outfit, wardrobe)
    upper, pattern, _, bag = outfit[: len(outfits.BASE_SLOTS)]
    edge = (150.0, 150.0, 150.0)
    long = wardrobe.extra(outfit, "sleeves")
    cuff = 0.42 if long else 0.26
    shirt = [(-0.07, 0.05), (-0.16, 0.07), (-0.30, cuff - 0.04), (-0.23, cuff), (-0.15, 0.19), (-0.15, 0.47)]
    shirt = [(x - 0.14, y) for x, y in [*shirt, *[(-x, y) for x, y in reversed(shirt)]]]
    trousers = [(-0.12, 0.52), (-0.14, 0.96), (-0.03, 0.96), (0.0, 0.64)]
    trousers = [(x - 0.14, y) for x, y in [*trousers, *[(-x, y) for x, y in reversed(trousers[:-1])]]]
    for outline in (shirt, trousers):
        middle = (sum(x for x, _ in outline) / len(outline), sum(y for _, y in outline) / len(outline))
        grown = [(middle[0] + (x - middle[0]) * 1.05, middle[1] + (y - middle[1]) * 1.04) for x, y in outline]
        canvas.polygon(grown, edge)
    figure.garment(canvas, shirt, pattern, look, (-0.14, 0.05), zoom=1.4)
    canvas.polygon(trousers, look.lower)
    if bag == 1:
        corners = [(0.20, 0.16), (0.38, 0.16), (0.42, 0.22), (0.42, 0.48), (0.16, 0.48), (0.16, 0.22)]
        canvas.polygon(corners, look.bag, convex=True)
        canvas.rectangle(0.20, 0.33, 0.38, 0.45, shade(look.bag, 0.72))
    elif bag == 2:
        for start, end in (((0.17, 0.32), (0.29, 0.10)), ((0.29, 0.10), (0.41, 0.32))):
            canvas.capsule(start, end, 0.014, 0.014, look.bag)
        canvas.rectangle(0.15, 0.30, 0.43, 0.48, look.bag)
        canvas.rectangle(0.15, 0.30, 0.43, 0.36, shade(look.bag, 0.70))
    if "shoes" in wardrobe.extras:
        canvas.capsule((0.20, 0.90), (0.38, 0.92), 0.045, 0.035, edge)
        canvas.capsule((0.20, 0.90), (0.38, 0.92), 0.038, 0.028, look.shoes)
    hat = wardrobe.extra(outfit, "hat")
    if hat:
        canvas.ellipse(0.29, 0.66, 0.10, 0.08, look.hat)
        brim = 0.44 if hat == 1 else 0.39
        canvas.rectangle(0.19, 0.66, brim, 0.70, shade(look.hat, 0.8))
    return pixels


def template_jpeg(outfit: Outfit, wardrobe: Wardrobe, size: tuple[int, int]) -> bytes:
    """Returns the template as JPEG bytes, quality 95."""
    return simplejpeg.encode_jpeg(render_template(outfit, wardrobe, size), quality=95, colorspace="RGB")
