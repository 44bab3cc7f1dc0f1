"""The training augmentation of u8[H,W,3] RGB images, with OpenCV.

In this order: colour jitter (brightness, contrast, saturation, hue in a random order), resize, flip, pad and random
crop, random-colour erasing (docs/method.md, batches); the device normalises. The jitter follows torchvision's PIL back
end. The affine operations, one `cv2.transform` each, differ from it by at most 1 grey level. Hue is shifted in 8-bit
HSV, as there, by the same number of 256 steps, but rounded otherwise: by 1.1 grey levels on average and at most 13
(from the exact circle ours differs by up to 9, PIL's by up to 11).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_pipelines.images import resize

_ERASE_ATTEMPTS = 10
_FIXED_DRAWS = 14
DRAWS = _FIXED_DRAWS + 2 * _ERASE_ATTEMPTS
"""Uniform numbers that the augmentation of one image consumes, whatever its options: options never shift a stream."""

_JITTER_ORDERS = tuple(itertools.permutations(range(4)))
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_PAD_REFERENCE_HEIGHT = 256


@dataclasses.dataclass(frozen=True)
class Augment:
    """Options of the training augmentation; the defaults are the paper's (docs/method.md, batches).

    Attributes:
      jitter_probability, flip_probability, crop_probability, erase_probability: per image.
      brightness, contrast, saturation: half widths of the factor around 1.
      hue: half width of the shift, as a fraction of the circle.
      pad: pixels at an image height of 256; scales with the height.
      erase_area: range of the erased rectangle's share of the image.
      erase_aspect: range of its height/width ratio, which is log-uniform; its colour is random.
    """

    jitter_probability: float = 1.0
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.4
    flip_probability: float = 0.5
    crop_probability: float = 1.0
    pad: int = 10
    erase_probability: float = 0.9
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_aspect: tuple[float, float] = (0.3, 3.33)

    def __post_init__(self) -> None:
        for name in ("jitter_probability", "flip_probability", "crop_probability", "erase_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} = {getattr(self, name)} is not a probability")
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augment.{name} = {getattr(self, name)} must lie between 0 and {most}")
        if self.pad < 0:
            raise ValueError(f"augment.pad = {self.pad} must not be negative")
        if (
            not 0 < self.erase_area[0] <= self.erase_area[1] <= 1
            or not 0 < self.erase_aspect[0] <= self.erase_aspect[1]
        ):
            raise ValueError(f"augment.erase_area {self.erase_area} or erase_aspect {self.erase_aspect} is no range")


NO_AUGMENT = Augment(jitter_probability=0, flip_probability=0, crop_probability=0, erase_probability=0)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The operations on one image: random draws turned into plain numbers (None: the step is skipped)."""

    jitter: tuple[tuple[int, float], ...]  # (operation, factor) in the order of application
    flip: bool
    shift: tuple[int, int]  # (down, right): where the window of the crop starts, relative to the unpadded image
    erase: tuple[int, int, int, int] | None  # top, left, height, width
    colour: tuple[int, int, int]


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def parameters(draws: Float64[np.ndarray, " draws"], options: Augment, size: tuple[int, int]) -> Parameters:
    """Turns DRAWS uniform numbers of [0, 1) into the parameters of one image of `size` (height, width)."""
    height, width = size
    u = draws.tolist()
    jitter: tuple[tuple[int, float], ...] = ()
    if u[0] < options.jitter_probability:
        factors = (
            1 + options.brightness * (2 * u[1] - 1),
            1 + options.contrast * (2 * u[2] - 1),
            1 + options.saturation * (2 * u[3] - 1),
            options.hue * (2 * u[4] - 1),
        )
        neutral = (1.0, 1.0, 1.0, 0.0)
        order = _JITTER_ORDERS[int(u[5] * len(_JITTER_ORDERS))]
        jitter = tuple((op, factors[op]) for op in order if factors[op] != neutral[op])
    shift = (0, 0)
    if u[7] < options.crop_probability:
        pad = round(options.pad * height / _PAD_REFERENCE_HEIGHT)
        shift = (int(u[8] * (2 * pad + 1)) - pad, int(u[9] * (2 * pad + 1)) - pad)
    erase = _erase_box(u, options, height, width) if u[10] < options.erase_probability else None
    # One number gives the colour: 2^24 colours fit into a double's 53 bits.
    code = int(u[11] * 2**24)
    return Parameters(
        jitter, u[6] < options.flip_probability, shift, erase, (code >> 16, (code >> 8) & 255, code & 255)
    )


def _erase_box(u: list[float], options: Augment, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Returns the first of the drawn rectangles that fits into the image; None if none does."""
    (area_low, area_high), (aspect_low, aspect_high) = options.erase_area, options.erase_aspect
    for attempt in range(_ERASE_ATTEMPTS):
        u_area, u_aspect = u[_FIXED_DRAWS + 2 * attempt : _FIXED_DRAWS + 2 * attempt + 2]
        area = (area_low + u_area * (area_high - area_low)) * height * width
        aspect = aspect_low * (aspect_high / aspect_low) ** u_aspect
        box_height, box_width = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < box_height < height and 0 < box_width < width:
            top, left = int(u[12] * (height - box_height + 1)), int(u[13] * (width - box_width + 1))
            return top, left, box_height, box_width
    return None


@functools.lru_cache(maxsize=16 * 256)
def _hue_pattern(width: int, shift: int) -> np.ndarray:
    """Returns u8[3 * width] with `shift` in the first channel: one contiguous wrapping addition then shifts the hue."""
    return np.tile(np.array([shift, 0, 0], np.uint8), width)


def _shift_hue(image: UInt8[np.ndarray, "_ _ 3"], fraction: float) -> UInt8[np.ndarray, "_ _ 3"]:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    flat = hsv.reshape(hsv.shape[0], -1)
    np.add(flat, _hue_pattern(hsv.shape[1], int(fraction * 255) % 256), out=flat)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def colour_jitter(
    image: UInt8[np.ndarray, "_ _ 3"], operations: tuple[tuple[int, float], ...]
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Applies (operation, factor) pairs in order, saturating at 0 and 255 after each, as torchvision on PIL images.

    Brightness f*x; contrast f*x + (1-f)*mean luma; saturation f*x + (1-f)*luma of the pixel; hue: shift by a fraction.
    """
    for operation, factor in operations:
        if operation == HUE:
            image = _shift_hue(image, factor)
            continue
        matrix = np.zeros((3, 4), np.float32)
        matrix[0, 0] = matrix[1, 1] = matrix[2, 2] = factor
        if operation == CONTRAST:
            mean = cv2.mean(image)
            luma = float(_LUMA[0]) * mean[0] + float(_LUMA[1]) * mean[1] + float(_LUMA[2]) * mean[2]
            matrix[:, 3] = (1 - factor) * int(luma + 0.5)
        elif operation == SATURATION:
            matrix[:, :3] += (1 - factor) * _LUMA
        image = cv2.transform(image, matrix)
    return image


def shrunk(image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image that is larger than `size`, resized; jitter then works on fewer pixels, and further views share it."""
    return resize(image, size) if image.shape[0] * image.shape[1] > size[0] * size[1] else image


def augment_into(out: UInt8[np.ndarray, "_ _ 3"], image: UInt8[np.ndarray, "_ _ 3"], chosen: Parameters) -> None:
    """Augments an image and writes it into `out`, u8[H,W,3] of any size; outside the crop it is black.

    An image larger than `out` is resized before the jitter, see `shrunk`.
    """
    height, width = out.shape[:2]
    image = shrunk(image, (height, width))
    if chosen.jitter:
        image = colour_jitter(image, chosen.jitter)
    image = resize(image, (height, width))
    if chosen.flip:
        image = cv2.flip(image, 1)
    down, right = chosen.shift
    if down or right:
        out[...] = 0
        target = out[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
        target[...] = image[max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)]
    else:
        out[...] = image
    if chosen.erase:
        top, left, box_height, box_width = chosen.erase
        # cv2.rectangle fills rows about ten times faster than numpy's broadcast of a colour; the corner is inclusive.
        cv2.rectangle(out, (left, top), (left + box_width - 1, top + box_height - 1), chosen.colour, cv2.FILLED)
