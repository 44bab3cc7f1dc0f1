"""Measures of a drawn person: the body's lengths, the pose, the colours.

All lengths are in units of the picture height (see `canvas`).
"""

from __future__ import annotations

import dataclasses

from data_pipelines.procedural.drawing.canvas import Colour
from data_pipelines.procedural.people import Person

FRONT, RIGHT, LEFT, BACK = range(4)
"""Views. RIGHT and LEFT are side views, named by where the person faces."""


@dataclasses.dataclass(frozen=True)
class Look:
    """The colours of everything a person is made of, as this camera sees them (0..255 per channel)."""

    skin: Colour
    hair: Colour
    upper: Colour
    pattern: Colour
    lower: Colour
    bag: Colour
    shoes: Colour
    hat: Colour
    ink: Colour = (30.0, 26.0, 26.0)


@dataclasses.dataclass(frozen=True)
class Wear:
    """What is worn, as slot values of `outfits`."""

    pattern: int
    bag: int
    hat: int
    sleeves: int


@dataclasses.dataclass(frozen=True)
class Pose:
    """How the person stands in this picture: nuisance, not identity.

    `x` and `ground` place the feet, `zoom` scales the person; `stride` opens the legs and `swing` the arms, both in
    [-1, 1]. `head` scales the head alone.
    """

    view: int
    x: float
    ground: float
    zoom: float
    stride: float
    swing: float
    head: float = 1.0


class Body:
    """The lengths of a person in a pose."""

    def __init__(self, person: Person, pose: Pose):
        z = pose.zoom
        self.height = z * (0.60 + 0.26 * person.height)
        self.head = pose.head * self.height * (0.150 + 0.065 * person.head)
        self.leg = self.height * (0.36 + 0.17 * person.leg)
        self.shoulder = z * (0.062 + 0.066 * person.shoulder)
        self.hip = z * (0.052 + 0.060 * person.hip)
        self.arm_length = (self.height - self.head) * (0.40 + 0.15 * person.arm)
        self.arm = z * (0.018 + 0.012 * person.arm + 0.006 * person.shoulder)
        self.stoop = person.stoop
        self.x, self.ground = pose.x, pose.ground
        self.hip_y = pose.ground - self.leg
        # A stoop shortens the neck seen from front and back; from the side it bends the back as well (`lean`).
        self.shoulder_y = pose.ground - self.height + self.head * (1.06 - 0.10 * person.stoop)
        self.head_y = pose.ground - self.height + self.head * (0.5 + 0.16 * person.stoop)
        self.rx, self.ry = self.head * 0.40, self.head * 0.50
        self.facing = {RIGHT: 1.0, LEFT: -1.0}.get(pose.view, 0.0)
        self.lean = self.facing * (0.01 + 0.09 * person.stoop) * z
        if self.facing:
            self.shoulder *= 0.66
            self.hip *= 0.80
        self.head_x = self.x + self.lean * 1.5
        self.shoulder_x = self.x + self.lean
