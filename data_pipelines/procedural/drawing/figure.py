"""Draws one person: the body that is the identity, and the clothes on it."""

from __future__ import annotations

import dataclasses
import math

from data_pipelines.procedural.drawing import garments, hair
from data_pipelines.procedural.drawing.body import BACK, FRONT, Body, Look, Pose, Wear
from data_pipelines.procedural.drawing.canvas import Canvas, Point, shade
from data_pipelines.procedural.people import HAIR_SHAPES, Person


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A person on a canvas: body, clothes and colours."""

    canvas: Canvas
    body: Body
    wear: Wear
    look: Look

    def arm(self, sign: float, swing: float, light: float) -> None:
        """Draws an arm on the side `sign`, -1 or 1, swung by `swing` in [-1, 1] and shaded by `light`."""
        body, canvas = self.body, self.canvas
        if body.facing:
            shoulder = (body.shoulder_x, body.shoulder_y + 0.034)
            angle = 0.55 * swing
            bend = angle + 0.25
        else:
            shoulder = (body.x + sign * (body.shoulder - 0.2 * body.arm), body.shoulder_y + 0.030)
            angle = 0.10 + 0.10 * abs(swing)
            bend = angle - 0.06
        half = body.arm_length / 2
        elbow = (shoulder[0] + sign * half * math.sin(angle), shoulder[1] + half * math.cos(angle))
        hand = (elbow[0] + sign * half * math.sin(bend), elbow[1] + half * math.cos(bend))
        skin = shade(self.look.skin, 0.5 + 0.5 * light)
        canvas.capsule(elbow, hand, body.arm * 0.80, body.arm * 0.72, skin)
        canvas.ellipse(hand[0], hand[1], body.arm * 0.95, body.arm * 1.05, skin)
        cloth = shade(self.look.upper, light)
        if self.wear.sleeves:
            cuff = (elbow[0] * 0.15 + hand[0] * 0.85, elbow[1] * 0.15 + hand[1] * 0.85)
            canvas.capsule(elbow, cuff, body.arm, body.arm * 0.9, cloth)
        canvas.capsule(shoulder, elbow, body.arm * 1.15, body.arm * 1.05, cloth)


def draw_person(canvas: Canvas, person: Person, wear: Wear, look: Look, pose: Pose) -> None:
    """Draws the person from back to front."""
    body = Body(person, pose)
    drawn = _Figure(canvas, body, wear, look)
    side = body.facing != 0
    shape = HAIR_SHAPES[person.hair_shape]
    if wear.bag == 1 and pose.view == FRONT:
        garments.draw_backpack(canvas, body, look, 1.10)
    if wear.bag == 1 and side:
        garments.draw_backpack_from_side(canvas, body, look)
    if side:
        drawn.arm(body.facing, -pose.swing, 0.72)
    hair.draw_behind(canvas, body, shape, look)
    _legs(canvas, body, look, pose)
    torso = _torso(body)
    if not side:
        for sign in (-1.0, 1.0):
            drawn.arm(sign, pose.swing * sign, 0.86)
    _neck(canvas, body, look)
    garments.draw_upper(canvas, torso, wear.pattern, look, (body.x, body.shoulder_y))
    if wear.bag == 1 and pose.view == BACK:
        garments.draw_backpack(canvas, body, look, 0.80)
    _head(canvas, body, look, pose.view)
    hair.draw_before(canvas, body, shape, look, pose.view)
    if wear.hat:
        hair.draw_hat(canvas, body, wear.hat, look)
    if side:
        drawn.arm(body.facing, pose.swing, 0.86)
    if wear.bag == 1 and pose.view == FRONT:
        for sign in (-1.0, 1.0):
            strap = body.x + sign * body.shoulder * 0.62
            end = (strap, body.shoulder_y + (body.hip_y - body.shoulder_y) * 0.62)
            canvas.capsule((strap, body.shoulder_y), end, 0.012, 0.010, look.bag)
    if wear.bag == 2:
        garments.draw_shoulder_bag(canvas, body, look, pose.view)


def _torso(body: Body) -> list[Point]:
    s, h, ys, yh = body.shoulder, body.hip, body.shoulder_y, body.hip_y + body.leg * 0.04
    xs, xh = body.shoulder_x, body.x
    middle, waist = (ys + yh) / 2 + 0.01, 0.5 * (0.9 * s + 0.9 * h)
    xm = (xs + xh) / 2 + body.lean * -0.35
    return [
        (xs - 0.40 * s, ys - 0.014),
        (xs - 0.86 * s, ys),
        (xs - s, ys + 0.022),
        (xm - waist, middle),
        (xh - h, yh),
        (xh + h, yh),
        (xm + waist, middle),
        (xs + s, ys + 0.022),
        (xs + 0.86 * s, ys),
        (xs + 0.40 * s, ys - 0.014),
    ]


def _legs(canvas: Canvas, body: Body, look: Look, pose: Pose) -> None:
    ankle_y, top = body.ground - 0.022, body.hip_y + body.hip * 0.30
    open_by = abs(pose.stride)
    for sign, light in ((-1.0, 0.78 if body.facing else 1.0), (1.0, 1.0 if body.facing else 0.92)):
        if body.facing:
            # One leg before and one behind the body, which is narrow: thighs overlap.
            x, reach, thick = body.x - sign * 0.10 * body.hip, sign * body.facing * (0.015 + 0.075 * open_by), 0.62
            heel, toe = -0.006 * body.facing, 0.036 * body.facing
        else:
            x, reach, thick = body.x + sign * 0.50 * body.hip, sign * (0.006 + 0.018 * open_by), 0.50
            heel, toe = 0.0, 0.010 * sign
        ankle = x + reach
        canvas.capsule((x, top), (ankle, ankle_y), thick * body.hip, 0.24 * body.hip + 0.006, shade(look.lower, light))
        start, end = (ankle + heel, ankle_y + 0.008), (ankle + toe, ankle_y + 0.012)
        canvas.capsule(start, end, 0.022, 0.015, shade(look.shoes, light))
    canvas.rectangle(body.x - 0.97 * body.hip, body.hip_y, body.x + 0.97 * body.hip, top + 0.01, look.lower)


def _neck(canvas: Canvas, body: Body, look: Look) -> None:
    foot = (body.shoulder_x, body.shoulder_y + 0.005)
    canvas.capsule(
        (body.head_x, body.head_y + 0.6 * body.ry), foot, 0.45 * body.rx, 0.5 * body.rx, shade(look.skin, 0.85)
    )


def _head(canvas: Canvas, body: Body, look: Look, view: int) -> None:
    x, y, rx, ry, f = body.head_x, body.head_y, body.rx, body.ry, body.facing
    canvas.ellipse(x, y, rx, ry, look.skin)
    if f:
        canvas.polygon(
            [(x + 0.85 * f * rx, y - 0.1 * ry), (x + 1.22 * f * rx, y + 0.22 * ry), (x + 0.8 * f * rx, y + 0.3 * ry)],
            look.skin,
            convex=True,
        )
        canvas.ellipse(x + 0.55 * f * rx, y - 0.02 * ry, 0.11 * rx, 0.10 * ry, look.ink)
    elif view == FRONT:
        for sign in (-1.0, 1.0):
            canvas.ellipse(x + sign * 0.42 * rx, y, 0.13 * rx, 0.10 * ry, look.ink)
        canvas.rectangle(x - 0.3 * rx, y + 0.50 * ry, x + 0.3 * rx, y + 0.58 * ry, shade(look.skin, 0.6))
