"""Pictures of people and of clothes, from a description: deterministic in (seed, version), at any size.

Body, skin and hair are the identity; outfit, camera, view, pose, scenery and occluder are nuisance.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import simplejpeg

from data_pipelines.procedural import outfits
from data_pipelines.procedural.drawing import body, figure, scene
from data_pipelines.procedural.drawing.canvas import Canvas, Colour
from data_pipelines.procedural.outfits import Outfit, Wardrobe
from data_pipelines.procedural.people import HAIR_INFRARED, Person, infrared_skin

_VIEWS = (body.FRONT,) * 4 + (body.RIGHT,) * 2 + (body.LEFT,) * 2 + (body.BACK,) * 2


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a picture depends on.

    Attributes:
      person, outfit, wardrobe, camera: who wears what, and which camera sees it.
      seed: of the benchmark.
      draw: key of this picture's random numbers.
      material: key of the fabrics of this person's outfit, which give its brightness in infrared.
      hard: whether every camera has a strong tint.
      head: size of the head, 1 for what `body` has.
    """

    person: Person
    outfit: Outfit
    wardrobe: Wardrobe
    camera: int
    seed: int
    draw: tuple[int, ...]
    material: tuple[int, ...]
    hard: bool = False
    head: float = 1.0


def _grey(value: float) -> Colour:
    return value, value, value


def clothes_look(outfit: Outfit, wardrobe: Wardrobe) -> body.Look:
    """Returns the colours of an outfit; skin and hair are grey."""
    upper, _, lower, bag = outfit[: len(outfits.BASE_SLOTS)]
    return body.Look(
        skin=_grey(128),
        hair=_grey(128),
        upper=outfits.UPPER_RGB[upper],
        pattern=outfits.PATTERN_RGB[upper],
        lower=outfits.LOWER_RGB[lower],
        bag=outfits.BAG_RGB[bag],
        shoes=outfits.SHOES_RGB[wardrobe.extra(outfit, "shoes")],
        hat=outfits.HAT_RGB[wardrobe.extra(outfit, "hat")],
    )


def _infrared_look(person: Person, material: tuple[int, ...]) -> body.Look:
    """Returns greys. Dyes are transparent in the near infrared: cloth is as bright as its fibre, patterns are faint."""
    draw = np.random.default_rng(material).random(5)
    upper = 95 + 125 * draw[0]
    return body.Look(
        skin=_grey(infrared_skin(person.skin)),
        hair=_grey(HAIR_INFRARED[person.hair_colour]),
        upper=_grey(upper),
        pattern=_grey(upper * (0.70 if draw[4] < 0.5 else 1.25)),
        lower=_grey(70 + 130 * draw[1]),
        bag=_grey(60 + 60 * draw[2]),
        shoes=_grey(50 + 90 * draw[3]),
        hat=_grey(110),
    )


def _expose(described: Scene, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Returns the picture, u8[H, W, 3] RGB, and its JPEG quality, 70 to 95."""
    draws = scene.Draws(np.random.default_rng(described.draw))
    camera = scene.camera(described.seed, described.camera, described.hard)
    wear = body.Wear(
        pattern=described.outfit[1],
        bag=described.outfit[3],
        hat=described.wardrobe.extra(described.outfit, "hat"),
        sleeves=described.wardrobe.extra(described.outfit, "sleeves"),
    )
    if camera.infrared:
        look = _infrared_look(described.person, described.material)
    else:
        clothes = clothes_look(described.outfit, described.wardrobe)
        look = dataclasses.replace(clothes, skin=described.person.skin_rgb, hair=described.person.hair_rgb)
    pose = body.Pose(
        view=_VIEWS[draws.below(len(_VIEWS))],
        x=draws.between(-0.03, 0.03),
        ground=draws.between(0.945, 0.970),
        zoom=draws.between(0.97, 1.03),
        stride=draws.between(-1, 1),
        swing=draws.between(-1, 1),
        head=described.head,
    )
    canvas = Canvas(scene.background(size, draws, camera.infrared))
    figure.draw_person(canvas, described.person, wear, look, pose)
    scene.occlude(canvas, draws, camera.infrared)
    return scene.expose(canvas.pixels, camera, draws), 70 + draws.below(26)


def render(described: Scene, size: tuple[int, int]) -> np.ndarray:
    """Returns the picture before compression, u8[H, W, 3] RGB; `size` is (H, W)."""
    return _expose(described, size)[0]


def render_jpeg(described: Scene, size: tuple[int, int]) -> bytes:
    """Returns the picture as JPEG bytes; `size` is (H, W)."""
    pixels, quality = _expose(described, size)
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB")
