"""When a gallery image is right for a query, and when it is left out: the relations that protocols are made of.

A rule computes on columns (see `protocols`) whose leading axes broadcast, so that it serves [Q,1(,8)] against
[1,G(,8)] as well as lists of pairs [N(,8)]; a per-record vector lies on axis -1. It uses operators only, and works on
NumPy and JAX arrays alike. `rule(query, gallery) -> (positive, junk)`, bool arrays; junk wins over positive, the rest
is negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Columns = Mapping[str, Any]
Test = Callable[[Columns, Columns], Any]
Relate = Callable[[Columns, Columns], tuple[Any, Any]]


def same_identity(q: Columns, g: Columns) -> Any:
    return q["identity"] == g["identity"]


def same_outfit(q: Columns, g: Columns) -> Any:
    """The same person's outfit of the same number (outfits are numbered a person)."""
    return q["clothes"] == g["clothes"]


def wears_template(q: Columns, g: Columns) -> Any:
    """The image shows the outfit that the instruction asks for."""
    return (q["instruction_clothes"] >= 0) & (q["instruction_clothes"] == g["clothes"])


def wears_named(q: Columns, g: Columns) -> Any:
    """The image agrees with every slot that the instruction names."""
    asked = q["instruction_attributes"]
    return ((asked < 0) | (asked == g["attributes"])).all(axis=-1)


def market_rule(q: Columns, g: Columns) -> tuple[Any, Any]:
    """Positive: same identity. Junk: same identity and same camera."""
    same = same_identity(q, g)
    junk = same & (q["camera"] == g["camera"])
    return same & ~junk, junk


def identity_rule(q: Columns, g: Columns) -> tuple[Any, Any]:
    """Positive: same identity. No junk (there is no query image that could be found again)."""
    same = same_identity(q, g)
    return same, same & ~same


def asked_outfit_rule(q: Columns, g: Columns) -> tuple[Any, Any]:
    """Positive: same identity in the outfit that is asked for, other camera. Junk: same identity and same camera."""
    positive, junk = market_rule(q, g)
    return positive & wears_template(q, g), junk


def strict(target: Test, rest: str) -> Relate:
    """Positive: same identity and `target`. The other images of the person are "junk" or "negative" (`rest`)."""
    if rest not in ("junk", "negative"):
        raise ValueError(f"rest={rest!r}: the other images of the person are 'junk' or 'negative'")

    def relate(q: Columns, g: Columns) -> tuple[Any, Any]:
        same, hit = same_identity(q, g), target(q, g)
        return same & hit, same & ~hit if rest == "junk" else same & ~same

    return relate


def other_camera_and(clothes: Test) -> Test:
    """Another camera, and `clothes` holds between two outfits that are known: what an unknown one shows is not."""

    def target(q: Columns, g: Columns) -> Any:
        known = (q["clothes"] >= 0) & (g["clothes"] >= 0)
        return (q["camera"] != g["camera"]) & known & clothes(q, g)

    return target


def sysu_rule(q: Columns, g: Columns) -> tuple[Any, Any]:
    """Positive: same identity. Junk: every image of camera 2 for a query of camera 3, which stands in the same place.

    Camera numbers count from 0 here: 2 and 1. Between two data sets nothing is junk.
    """
    same = same_identity(q, g)
    junk = (q["source"] == g["source"]) & (q["camera_number"] == 2) & (g["camera_number"] == 1)
    return same & ~junk, junk
