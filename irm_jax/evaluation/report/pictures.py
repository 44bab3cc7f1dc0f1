"""The pictures of a page: each is embedded once, as WebP, at a quality at which all of them fit a budget of bytes."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from absl import logging
from markupsafe import Markup

from data_pipelines.images import MOST_MAX_PIXELS, pixels_of

Picture = bytes | np.ndarray
"""JPEG or PNG bytes, or u8[H,W,3] RGB."""
BUDGET = 4_000_000
"""Bytes of a page that pictures take at most, in base64; the text of some hundred rank lists takes two million more."""
LEVELS = ((192, 85), (192, 70), (160, 65), (128, 60), (128, 50), (112, 45), (96, 45), (80, 40), (64, 40), (48, 40))
"""(greatest height in pixels, WebP quality), the best first. A picture has at least 600 bytes."""


class Album:
    """The pictures of a page. `show` returns a reference to a picture, `defs` the pictures, each distinct one once."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._numbers: dict[object, int] = {}
        self._images: list[np.ndarray] = []

    def show(self, picture: Picture, alt: str, css: str = "picture") -> Markup:
        """Returns an SVG that shows the picture, as wide as its box; `alt` describes it.

        Raises ValueError for bytes that are no picture and arrays of another shape or dtype.
        """
        key = picture if isinstance(picture, bytes) else (picture.shape, picture.tobytes())
        if key not in self._numbers:
            image = _reduced(pixels_of(picture, MOST_MAX_PIXELS), LEVELS[0][0])
            self._numbers[key] = len(self._images)
            self._images.append(image)
        number = self._numbers[key]
        height, width = self._images[number].shape[:2]
        return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><use href="#i{}"/></svg>').format(
            css, width, height, alt, number
        )

    def defs(self) -> Markup:
        """Returns the pictures that `show` was asked for, at the best level of LEVELS whose bytes fit the budget."""
        for height, quality in LEVELS:
            encoded = [_webp(image, height, quality) for image in self._images]
            size = sum(map(len, encoded))
            if size <= self._budget:
                break
        else:
            logging.warning("%d pictures take %.1f MB of the page; show fewer queries", len(encoded), size / 1e6)
        images = [
            Markup('<image id="i{}" width="{}" height="{}" preserveAspectRatio="none" href="{}"/>').format(
                number, image.shape[1], image.shape[0], Markup(uri)
            )
            for number, (image, uri) in enumerate(zip(self._images, encoded, strict=True))
        ]
        return Markup('<svg class="album" width="0" height="0" aria-hidden="true"><defs>{}</defs></svg>').format(
            Markup("\n").join(images)
        )


def _reduced(image: np.ndarray, max_height: int) -> np.ndarray:
    if image.shape[0] <= max_height:
        return image
    width = max(1, round(image.shape[1] * max_height / image.shape[0]))
    return cv2.resize(image, (width, max_height), interpolation=cv2.INTER_AREA)


def _webp(image: np.ndarray, max_height: int, quality: int) -> str:
    """Returns a picture as data URI; one higher than `max_height` pixels is reduced to it."""
    image = _reduced(image, max_height)
    ok, data = cv2.imencode(".webp", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not ok:
        raise ValueError(f"a picture of the report, {image.shape[1]}x{image.shape[0]}, could not be written as WebP")
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode()


# Black over violet and orange to pale yellow: brightness rises throughout, so the map also reads without colour.
HEAT_STOPS = np.array([[8, 6, 40], [92, 18, 110], [190, 54, 84], [245, 130, 30], [252, 250, 170]], np.float64)


def overlay(picture: Picture, heat: np.ndarray, height: int = 256) -> np.ndarray:
    """Returns u8[height,W,3]: the picture under `heat` f32[gh,gw], whose maximum is the brightest.

    Raises ValueError if `heat` is no map or holds NaN or infinity.
    """
    image = pixels_of(picture, MOST_MAX_PIXELS)  # the evaluation has applied the configured limit
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
