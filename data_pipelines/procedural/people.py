"""The identities of the procedural benchmark: bodies, skin and hair; nothing a person could take off.

A person is a function of (seed, namespace, index) alone, so adding people never changes those that exist
(docs/method.md).
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np

HAIR_SHAPES = ("short", "bob", "long", "bun", "afro", "spiky")
HAIR_COLOURS = ("black", "brown", "blond", "red", "grey", "blue")
HAIR_RGB = ((24, 22, 22), (104, 62, 34), (232, 200, 110), (196, 72, 24), (178, 180, 186), (58, 96, 210))
_SKIN_RGB = ((250, 218, 196), (232, 184, 148), (196, 138, 98), (140, 90, 58), (84, 54, 38))
HAIR_INFRARED = (72, 96, 176, 128, 196, 84)
"""Brightness in the near infrared: it follows the melanin, so dyed hair is as dark as the hair below the dye."""
TRAITS = ("height", "shoulder", "hip", "leg", "head", "arm", "stoop", "skin")
_BUILD_EDGES = (0.36, 0.64)


def skin_colour(tone: float) -> tuple[int, int, int]:
    """Returns the colour, 0..255 per channel, of a skin tone in [0, 1], light to dark."""
    position = tone * (len(_SKIN_RGB) - 1)
    lighter = min(int(position), len(_SKIN_RGB) - 2)
    share = position - lighter
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(*_SKIN_RGB[lighter : lighter + 2], strict=True))
    return red, green, blue


@dataclasses.dataclass(frozen=True)
class Person:
    """One identity. The continuous traits lie in [0, 1]; `body` maps them to lengths.

    They are: height, shoulder and hip width, leg share of the height, head size, arm length and girth, stoop, and skin
    (light to dark).
    """

    height: float
    shoulder: float
    hip: float
    leg: float
    head: float
    arm: float
    stoop: float
    skin: float
    hair_shape: int
    hair_colour: int

    @property
    def skin_rgb(self) -> tuple[int, int, int]:
        """The skin's colour, 0..255 per channel."""
        return skin_colour(self.skin)

    @property
    def hair_rgb(self) -> tuple[int, int, int]:
        """The hair's colour, 0..255 per channel."""
        return HAIR_RGB[self.hair_colour]


def infrared_skin(tone: float) -> float:
    """Returns the brightness, 0..255, of a skin tone in the near infrared, where all skin is bright."""
    return 236 - 56 * tone


def _recurrence_steps(dimensions: int) -> np.ndarray:
    """Returns f64[dimensions], the steps of the additive recurrence that fills the unit cube most evenly.

    They are powers of 1/g, g the positive root of g^(d+1) = g + 1 (the golden ratio generalised to d dimensions).
    """
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (dimensions + 1))
    return (1 / root) ** np.arange(1, dimensions + 1)


def draw_person(seed: int, namespace: str, index: int) -> Person:
    """Returns the person `namespace/index` of benchmark `seed`.

    Traits follow an evenly spread sequence, not independent draws, and the 36 hair combinations are dealt out in
    turn: two people of one set are then rarely near twins, and 64 people are as different as 64 people can be.
    """
    rng = np.random.default_rng([seed, zlib.crc32(namespace.encode()), len(TRAITS)])
    start = rng.random(len(TRAITS))
    order = rng.permutation(len(TRAITS))
    combination = rng.permutation(len(HAIR_SHAPES) * len(HAIR_COLOURS))
    values = (start + index * _recurrence_steps(len(TRAITS))[order]) % 1.0
    shape, colour = divmod(int(combination[index % len(combination)]), len(HAIR_COLOURS))
    traits = dict(zip(TRAITS, values.tolist(), strict=True))
    return Person(**traits, hair_shape=shape, hair_colour=colour)


def stature(person: Person) -> str:
    """Returns the word for the person's height: short, medium or tall."""
    return ("short", "medium", "tall")[int(np.searchsorted(_BUILD_EDGES, person.height))]


def girth(person: Person) -> str:
    """Returns the word for the person's breadth: slim, medium or broad (mean of shoulder and hip width)."""
    return ("slim", "medium", "broad")[int(np.searchsorted(_BUILD_EDGES, (person.shoulder + person.hip) / 2))]
