"""Anti-aliased drawing in units of the picture's height.

A thin layer over OpenCV's polygon filler with sub-pixel coordinates: the same calls draw the same picture at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

Colour = tuple[float, float, float]
Point = tuple[float, float]
Paint = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
_SHIFT = 5  # sub-pixel bits of OpenCV's integer coordinates
_ONE = 1 << _SHIFT


def _circle(points: int, start: float, stop: float) -> np.ndarray:
    """Returns complex128[points], unit vectors at evenly spaced angles from `start` to `stop`."""
    return np.exp(1j * np.linspace(start, stop, points))


_ELLIPSE = _circle(21, 0, 2 * math.pi)[:-1].view(np.float64).reshape(-1, 2)
# A capsule's outline is linear in (direction * r0, direction * r1, start, end), all complex numbers: c128[14, 4].
_CAPSULE = np.zeros((14, 4), np.complex128)
_CAPSULE[:7, 0], _CAPSULE[7:, 1] = _circle(7, -math.pi / 2, math.pi / 2), -_circle(7, -math.pi / 2, math.pi / 2)
_CAPSULE[:7, 2], _CAPSULE[7:, 3] = 1, 1


def shade(colour: Colour, factor: float) -> Colour:
    """Returns the colour darkened or lightened by a factor, cut at 255."""
    return min(colour[0] * factor, 255.0), min(colour[1] * factor, 255.0), min(colour[2] * factor, 255.0)


class Canvas:
    """A picture u8[H, W, 3] with the unit, `scale` pixels, and the place of x = 0, `centre`.

    y runs down, and y = 1 is the bottom edge. One unit is the height of the picture, or twice its width where that is
    less, so that a person of width 0.5 always fits; or as many pixels as `scale` says.
    """

    def __init__(self, pixels: np.ndarray, scale: float | None = None):
        height, width = pixels.shape[:2]
        self.pixels = pixels
        self.scale = scale or float(min(height, 2 * width))
        self.centre = width / 2
        self.top = height - self.scale

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        # Pixel centres lie at half coordinates, OpenCV's at whole ones; the last half rounds to the nearest step.
        shift = ((self.centre - 0.5) * _ONE + 0.5, (self.top - 0.5) * _ONE + 0.5)
        return (points * (self.scale * _ONE) + shift).astype(np.int32)

    def polygon(self, points: Sequence[Point] | np.ndarray, colour: Colour, convex: bool = False) -> None:
        """Fills a polygon given as (x, y) points, f64[n, 2]."""
        fixed = self._fixed(np.asarray(points, np.float64))
        if convex:
            cv2.fillConvexPoly(self.pixels, fixed, colour, cv2.LINE_AA, _SHIFT)
        else:
            cv2.fillPoly(self.pixels, [fixed], colour, cv2.LINE_AA, _SHIFT)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Fills an upright ellipse of half axes rx, ry."""
        self.polygon(_ELLIPSE * (rx, ry) + (x, y), colour, convex=True)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fills an upright rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour, convex=True)

    def capsule(self, start: Point, end: Point, r0: float, r1: float, colour: Colour) -> None:
        """Fills a limb: round ends of radii r0 at `start` and r1 at `end`, straight sides between."""
        first, last = complex(*start), complex(*end)
        direction = first - last
        direction /= abs(direction) or 1.0
        outline = _CAPSULE @ np.array((direction * r0, direction * r1, first, last))
        self.polygon(outline.view(np.float64).reshape(-1, 2), colour, convex=True)

    def textured(self, points: Sequence[Point], paint: Paint, colour: Colour, second: Colour) -> None:
        """Fills a polygon with a mix of two colours.

        Args:
          points: the outline, (x, y) pairs.
          paint: (x f32[1, w], y f32[h, 1], size of a pixel) -> f32[h, w] of a box: 0 = `colour`, 1 = `second`.
          colour, second: the two colours.
        """
        height, width = self.pixels.shape[:2]
        fixed = self._fixed(np.asarray(points, np.float64))
        (left, top), (right, bottom) = fixed.min(0) // _ONE - 1, fixed.max(0) // _ONE + 3
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(mask, [fixed - np.array((left, top), np.int32) * _ONE], (255,), cv2.LINE_AA, _SHIFT)
        x = (np.arange(left, right, dtype=np.float32)[None] + (0.5 - self.centre)) / self.scale
        y = (np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - self.top)) / self.scale
        layer = np.subtract(second, colour, dtype=np.float32) * paint(x, y, 1 / self.scale)[..., None]
        layer += np.asarray(colour, np.float32)
        under = self.pixels[top:bottom, left:right]
        layer -= under
        layer *= mask[..., None] * np.float32(1 / 255)
        layer += under
        layer += 0.5
        self.pixels[top:bottom, left:right] = layer
