"""Which pictures each person has in each of the six sets, with which instructions (docs/method.md).

A test person has two queries and eight gallery images in every set, a training person twelve images. Protocols decide
what is a positive; the rows are made so that every query has one.

  trad  two outfits a test person, each seen by all four cameras; one outfit a training person.
  cc    four outfits drawn independently of each other, so that colour says nothing about who wears it.
  ctcc  four outfits that agree with the first in 3, 2 and 0 slots; the query asks for one that it does not wear.
  vi    two outfits, half of the pictures infrared; one visible and one infrared query.
  t2i   four outfits; a query is a caption.
  li    outfits as in ctcc; the query names 2-3 slots of another outfit and wears the opposite of exactly one.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.dataset.schema import UNKNOWN
from data_pipelines.procedural.drawing.scene import CAMERAS, VISIBLE_CAMERAS
from data_pipelines.procedural.outfits import (
    OWNED,
    Catalogue,
    Outfit,
    Wardrobe,
    deal,
    deal_agreeing,
    own_fresh,
    own_fresh_agreeing,
)

TRAIN_IMAGES, QUERIES, GALLERY_IMAGES = 12, 2, 8
_MANY_OUTFITS = {"cc": 12, "vi": 6}
"""Outfits of a training person in edition 2: with few, a model that fits the training people knows them by clothes."""
_TRAIN_OUTFITS = {"trad": 1, "cc": OWNED, "ctcc": OWNED, "vi": 2, "t2i": OWNED, "li": OWNED}
_TEST_OUTFITS = _TRAIN_OUTFITS | {"trad": 2}
_AGREEING = ("ctcc", "li")
_ASKING = ("ctcc", "t2i", "li")


@dataclasses.dataclass(frozen=True)
class Row:
    """One picture to draw.

    Attributes:
      outfit, camera: what is worn, and who sees it.
      wanted: the outfit that the instruction asks for; None: the task's sentence is constant.
      named: slot values that the instruction names, -1 elsewhere.
    """

    outfit: Outfit
    camera: int
    wanted: Outfit | None = None
    named: Outfit = ()


def own_train(
    task: str, wardrobe: Wardrobe, catalogue: Catalogue, rng: np.random.Generator, *, edition: int = 1
) -> list[Outfit]:
    """Returns the outfits of a training person: none of them is worn in any test."""
    avoid = frozenset(catalogue.trad)
    if task in _AGREEING:
        return own_fresh_agreeing(wardrobe, avoid, rng)
    count = _MANY_OUTFITS.get(task, _TRAIN_OUTFITS[task]) if edition == 2 else _TRAIN_OUTFITS[task]
    return own_fresh(wardrobe, count, avoid, rng)


def own_test(task: str, catalogue: Catalogue, people: int, rng: np.random.Generator) -> list[list[Outfit]]:
    """Returns the outfits of each test person."""
    if task in _AGREEING:
        return deal_agreeing(catalogue.test, people, rng)
    return deal(catalogue.trad if task == "trad" else catalogue.test, people, _TEST_OUTFITS[task], rng)


def _named(outfit: Outfit, rng: np.random.Generator, must: int | None = None, may: tuple[int, ...] = ()) -> Outfit:
    """Returns two or three slots of an outfit, -1 elsewhere: `must` and others out of `may`; any if `must` is None."""
    others = list(may) if must is not None else list(range(len(outfit)))
    count = min(2 + int(rng.integers(2)) - (must is not None), len(others))
    kept = set(rng.permutation(others)[:count].tolist()) | ({must} if must is not None else set())
    return tuple(value if i in kept else UNKNOWN for i, value in enumerate(outfit))


def _own_instruction(task: str, row: Row, rng: np.random.Generator) -> Row:
    """Returns the row with the instruction that describes what it shows (training, gallery and caption rows)."""
    if task not in _ASKING:
        return row
    named = _named(row.outfit, rng) if task == "li" else row.outfit
    return dataclasses.replace(row, wanted=row.outfit, named=named)


def _cameras(first: int, modality_infrared: bool) -> int:
    if modality_infrared:
        return VISIBLE_CAMERAS + first % (CAMERAS - VISIBLE_CAMERAS)
    return first % VISIBLE_CAMERAS


def train_rows(task: str, owned: list[Outfit], rng: np.random.Generator) -> list[Row]:
    """Returns the twelve rows of a training person: every outfit equally often, the cameras in turn."""
    each = TRAIN_IMAGES // len(owned)
    start = int(rng.integers(VISIBLE_CAMERAS))
    rows = []
    for j, outfit in enumerate(owned):
        for m in range(each):
            infrared = task == "vi" and 2 * m >= each
            rows.append(_own_instruction(task, Row(outfit, _cameras(start + j + m, infrared)), rng))
    return rows


def gallery_rows(task: str, owned: list[Outfit], rng: np.random.Generator) -> list[Row]:
    """Returns the eight gallery rows of a test person: every outfit equally often, cameras as different as can be."""
    each = GALLERY_IMAGES // len(owned)
    start = int(rng.integers(VISIBLE_CAMERAS))
    rows = []
    for j, outfit in enumerate(owned):
        for m in range(each):
            infrared = task == "vi" and 2 * m >= each
            step = m if each == VISIBLE_CAMERAS else 2 * m
            row = Row(outfit, _cameras(start + j + step, infrared))
            rows.append(row if task == "t2i" else _own_instruction(task, row, rng))
    return rows


def query_rows(task: str, owned: list[Outfit], rng: np.random.Generator) -> list[Row]:
    """Returns the two query rows of a test person."""
    cameras = [int(rng.integers(VISIBLE_CAMERAS)) for _ in range(QUERIES)]
    if task == "vi":
        return [Row(owned[0], cameras[0]), Row(owned[1], _cameras(cameras[1], True))]
    if task == "ctcc":
        rows = []
        for asked, camera in enumerate(cameras):
            worn = int(rng.choice([j for j in range(len(owned)) if j != asked]))
            rows.append(Row(owned[worn], camera, owned[asked], owned[asked]))
        return rows
    if task == "li":
        rows = []
        for (asked, worn), camera in zip(((0, 1), (2, 0)), cameras, strict=True):
            same = [a == b for a, b in zip(owned[asked], owned[worn], strict=True)]
            differing = [i for i, equal in enumerate(same) if not equal]
            agreeing = tuple(i for i, equal in enumerate(same) if equal)
            named = _named(owned[asked], rng, differing[int(rng.integers(len(differing)))], agreeing)
            rows.append(Row(owned[worn], camera, owned[asked], named))
        return rows
    return [_own_instruction(task, Row(outfit, camera), rng) for outfit, camera in zip(owned, cameras, strict=False)]
