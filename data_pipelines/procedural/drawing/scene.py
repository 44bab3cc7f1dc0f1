"""Draws the surroundings of a person: background, occluder, camera."""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np

from data_pipelines.procedural import outfits, people
from data_pipelines.procedural.drawing.canvas import Canvas, Colour, shade

VISIBLE_CAMERAS, INFRARED_CAMERAS = 4, 2
CAMERAS = VISIBLE_CAMERAS + INFRARED_CAMERAS
NOISE_STANDARD_DEVIATION = 6.0
OCCLUDED_SHARE = 0.25
GAIN_SPREAD, HARD_GAIN_SPREAD = 0.08, 0.30
_CLOTHES_RGB = outfits.UPPER_RGB + outfits.LOWER_RGB
_NOISE_POOL = 1 << 20


class Draws:
    """Uniform numbers drawn in advance and handed out one by one, because a generator's calls are slow."""

    def __init__(self, rng: np.random.Generator, count: int = 256):
        self._array = rng.random(count)
        self._values = self._array.tolist()
        self._next = 0

    def unit(self) -> float:
        """Returns the next number in [0, 1). Raises IndexError beyond the count drawn in advance."""
        self._next += 1
        return self._values[self._next - 1]

    def units(self, count: int) -> np.ndarray:
        """Returns the next `count` numbers, f64[count]."""
        self._next += count
        return self._array[self._next - count : self._next]

    def between(self, low: float, high: float) -> float:
        """Returns the next number in [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """Returns the next whole number in [0, count)."""
        return int(self.unit() * count)


@dataclasses.dataclass(frozen=True)
class Camera:
    """What a camera does to every picture: gain per channel, blur (standard deviation in units of picture height)."""

    infrared: bool
    gain: tuple[float, float, float]
    blur: float


@functools.lru_cache(maxsize=64)
def camera(seed: int, number: int, hard: bool) -> Camera:
    """Returns camera `number` of benchmark `seed`: 0..3 visible, 4 and 5 infrared; `hard` tints them strongly."""
    rng = np.random.default_rng([seed, 0xCA3, number])
    spread = HARD_GAIN_SPREAD if hard else GAIN_SPREAD
    red, green, blue = (float(value) for value in rng.uniform(1 - spread, 1 + spread, 3))
    infrared = number >= VISIBLE_CAMERAS
    return Camera(infrared, (red, red, red) if infrared else (red, green, blue), float(rng.uniform(0.002, 0.005)))


def _scenery_colour(draws: Draws, infrared: bool) -> Colour:
    if infrared:
        grey = draws.between(10, 80)
        return grey, grey, grey
    # In the colours of clothes, hair and skin: a colour histogram cannot tell who or what they belong to.
    kind, light = draws.unit(), draws.between(0.85, 1.1)
    if kind < 0.25:
        colour: Colour = people.skin_colour(draws.unit())
    elif kind < 0.5:
        colour = people.HAIR_RGB[draws.below(len(people.HAIR_RGB))]
    else:
        colour = _CLOTHES_RGB[draws.below(len(_CLOTHES_RGB))]
    return shade(colour, light)


def background(size: tuple[int, int], draws: Draws, infrared: bool) -> np.ndarray:
    """Returns u8[H, W, 3]: wall and floor, soft light, and a few upright things of any colour."""
    height, width = size
    wall, floor = _scenery_colour(draws, infrared), _scenery_colour(draws, infrared)
    horizon = draws.between(0.45, 0.85)
    light = 0.75 + 0.5 * draws.units(24).reshape(6, 4, 1)
    grid = np.array([wall if row < 6 * horizon else floor for row in range(6)])[:, None] * light
    pixels = cv2.resize(np.minimum(grid, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR)
    canvas = Canvas(pixels)
    half = width / (2 * canvas.scale)
    for _ in range(4 + draws.below(5)):
        middle, wide = draws.between(-half, half), draws.between(0.02, 0.16)
        bottom = draws.between(horizon - 0.15, 1.0)
        top = bottom - draws.between(0.10, 0.80)
        canvas.rectangle(middle - wide, top, middle + wide, bottom, _scenery_colour(draws, infrared))
    return canvas.pixels


def occlude(canvas: Canvas, draws: Draws, infrared: bool) -> None:
    """Draws something in front of the person in a quarter of all pictures: a post, a low wall, a bush or a shoulder."""
    if draws.unit() >= OCCLUDED_SHARE:
        return
    colour = _scenery_colour(draws, infrared)
    kind, where, much = draws.below(3), draws.between(-0.2, 0.2), draws.unit()
    if kind == 0:
        canvas.rectangle(where - 0.02 - 0.02 * much, 0.0, where + 0.02 + 0.02 * much, 1.0, colour)
    elif kind == 1:
        canvas.rectangle(-0.5, 0.78 + 0.12 * much, 0.5, 1.0, colour)
    else:
        side = -0.27 if where < 0 else 0.27
        canvas.ellipse(side, 0.72 + 0.2 * much, 0.13 + 0.05 * much, 0.28, colour)


@functools.lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    rng = np.random.default_rng(0x4015E)
    return (rng.standard_normal(_NOISE_POOL, np.float32) * np.float32(NOISE_STANDARD_DEVIATION)).astype(np.float32)


def expose(pixels: np.ndarray, camera: Camera, draws: Draws) -> np.ndarray:
    """Returns the picture as the camera delivers it, u8[H, W, 3]: blur, light, gain, noise.

    Infrared pictures have equal channels and the bright middle of a lamp beside the lens.
    """
    height, width = pixels.shape[:2]
    sigma = camera.blur * height * draws.between(0.6, 1.6)
    if sigma > 0.2:
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma)
    light = 0.96 + 0.08 * draws.units(3)
    channels = 1 if camera.infrared else 3
    seen = pixels[..., :channels].astype(np.float32)
    seen *= (np.array(camera.gain) * light)[:channels].astype(np.float32)
    if camera.infrared:
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
        seen *= 1.06 - np.float32(0.28) * (x * x + y * y)
    pool = _noise()
    if len(pool) < seen.size:
        pool = np.resize(pool, seen.size + 1)
    offset = draws.below(len(pool) - seen.size)
    seen += pool[offset : offset + seen.size].reshape(seen.shape)
    seen += 0.5
    np.clip(seen, 0, 255, out=seen)
    delivered = seen.astype(np.uint8)
    return cv2.cvtColor(delivered, cv2.COLOR_GRAY2RGB) if camera.infrared else delivered
