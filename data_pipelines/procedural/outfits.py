"""Clothes of the procedural benchmark: slots, colours, and who owns what (docs/method.md).

An outfit is a tuple of slot values; its number (`Wardrobe.number`) is the `clothes` field of every record, so the same
outfit has the same number in all six data sets.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from data_pipelines.dataset import schema

Outfit = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """One attribute of an outfit; sentences and drawings use the words in `values`."""

    name: str
    values: tuple[str, ...]


UPPER = Slot("upper colour", ("red", "yellow", "green", "blue", "purple", "white", "grey", "black"))
PATTERN = Slot("pattern", ("plain", "striped", "checked", "dotted"))
LOWER = Slot("lower colour", ("black", "blue", "white", "beige", "brown", "green"))
BAG = Slot("bag", ("none", "backpack", "shoulder bag"))
EXTRA_SLOTS = {
    "shoes": Slot("shoes", ("black", "white", "red")),
    "hat": Slot("hat", ("none", "cap", "beanie")),
    "sleeves": Slot("sleeves", ("short", "long")),
}
BASE_SLOTS = (UPPER, PATTERN, LOWER, BAG)

UPPER_RGB = (
    (204, 34, 44),
    (240, 202, 40),
    (36, 146, 66),
    (38, 82, 196),
    (128, 52, 158),
    (240, 240, 238),
    (134, 138, 144),
    (30, 30, 34),
)
PATTERN_RGB = (
    (250, 240, 235),
    (120, 70, 20),
    (226, 246, 226),
    (226, 236, 252),
    (240, 224, 246),
    (40, 60, 130),
    (44, 44, 50),
    (222, 222, 222),
)
"""The second colour of a pattern per upper colour, far from it in brightness, so that patterns are always visible."""
LOWER_RGB = ((34, 34, 38), (56, 88, 150), (234, 234, 230), (206, 184, 146), (112, 72, 42), (74, 112, 62))
SHOES_RGB = ((36, 32, 30), (236, 236, 236), (190, 40, 40))
HAT_RGB = ((0, 0, 0), (60, 60, 120), (150, 60, 60))
BAG_RGB = ((0, 0, 0), (226, 118, 28), (150, 92, 48))

TEST_OUTFITS = 24
TRAD_TEST_OUTFITS = 96
OWNED = 4


@dataclasses.dataclass(frozen=True)
class Wardrobe:
    """The slots in use: the four of the benchmark, then `extras` (names of EXTRA_SLOTS).

    Raises:
      ValueError: an unknown or repeated extra.
    """

    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.extras if name not in EXTRA_SLOTS]
        if unknown or len(set(self.extras)) != len(self.extras):
            raise ValueError(f"extras {self.extras} must be different names out of {tuple(EXTRA_SLOTS)}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        return BASE_SLOTS + tuple(EXTRA_SLOTS[name] for name in self.extras)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of values per slot."""
        return tuple(len(slot.values) for slot in self.slots)

    def number(self, outfit: Outfit) -> int:
        """Returns the outfit's number, below the product of the slot sizes."""
        return int(np.ravel_multi_index(outfit, self.sizes))

    def outfit(self, number: int) -> Outfit:
        """Returns the outfit of a number (the inverse of `number`)."""
        return tuple(int(value) for value in np.unravel_index(number, self.sizes))

    def extra(self, outfit: Outfit, name: str) -> int:
        """Returns the value of an extra slot, or 0 (its plainest value) where the slot is not in use."""
        return outfit[len(BASE_SLOTS) + self.extras.index(name)] if name in self.extras else 0


def agreement(first: Outfit, second: Outfit) -> int:
    """Returns in how many slots two outfits agree (-1, an unnamed slot, agrees with nothing)."""
    return sum(a == b != schema.UNKNOWN for a, b in zip(first, second, strict=True))


def draw_outfit(wardrobe: Wardrobe, rng: np.random.Generator) -> Outfit:
    """Returns a uniformly drawn outfit."""
    return tuple(int(value) for value in rng.integers(wardrobe.sizes))


def agreements(slots: int) -> tuple[int, int, int]:
    """Returns in how many slots the second to fourth owned outfit agree with the first: all but one, half, none."""
    return slots - 1, slots // 2, 0


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Which outfits are worn in the tests: `test` by all sets but trad, `trad` (a superset) by trad.

    No training person wears any outfit of `trad`.
    """

    test: tuple[Outfit, ...]
    trad: tuple[Outfit, ...]


def draw_catalogue(wardrobe: Wardrobe, seed: int) -> Catalogue:
    """Returns the test outfits of benchmark `seed`.

    The 24 are redrawn until every slot value is worn at least twice and every outfit has partners that agree
    in 3, in 2 and in 0 slots, which the owned outfits of ctcc and li need.
    """
    rng = np.random.default_rng([seed, 0xCA7])
    while True:
        chosen: list[Outfit] = []
        while len(chosen) < TEST_OUTFITS:
            outfit = draw_outfit(wardrobe, rng)
            changed = rng.integers(len(outfit))
            other = draw_outfit(wardrobe, rng)
            partner = tuple(other[i] if i == changed else value for i, value in enumerate(outfit))
            if outfit != partner and not {outfit, partner} & set(chosen):
                chosen += [outfit, partner]
        counts = [
            np.bincount(column, minlength=size) for column, size in zip(np.array(chosen).T, wardrobe.sizes, strict=True)
        ]
        wanted = set(agreements(len(wardrobe.slots)))
        complete = all(wanted <= {agreement(a, b) for b in chosen if b != a} for a in chosen)
        if complete and min(int(count.min()) for count in counts) >= 2:
            break
    trad = list(chosen)
    for number in rng.permutation(math.prod(wardrobe.sizes)):
        if len(trad) == TRAD_TEST_OUTFITS:
            break
        if wardrobe.outfit(int(number)) not in chosen:
            trad.append(wardrobe.outfit(int(number)))
    return Catalogue(tuple(chosen), tuple(trad))


def deal(catalogue: Sequence[Outfit], people: int, count: int, rng: np.random.Generator) -> list[list[Outfit]]:
    """Returns `count` different outfits per test person.

    The shuffled catalogue is dealt out like a deck of cards, a new shuffle when it runs out, so that every outfit finds
    about the same number of wearers.
    """
    owned: list[list[Outfit]] = []
    while len(owned) < people:
        order = rng.permutation(len(catalogue))
        hands = [order[start : start + count] for start in range(0, len(order) - count + 1, count)]
        owned += [[catalogue[int(position)] for position in hand] for hand in hands]
    return owned[:people]


def deal_agreeing(catalogue: Sequence[Outfit], people: int, rng: np.random.Generator) -> list[list[Outfit]]:
    """Returns four outfits per test person: a first, and others that agree with it in 3, 2 and 0 slots.

    First outfits go round the catalogue; of the possible others the least worn is taken, so that every outfit finds
    about the same number of wearers.
    """
    worn = collections.Counter(dict.fromkeys(catalogue, 0))
    owned: list[list[Outfit]] = []
    for person in range(people):
        chosen = [catalogue[person % len(catalogue)]]
        for wanted in agreements(len(chosen[0])):
            partners = [
                outfit for outfit in catalogue if outfit not in chosen and agreement(outfit, chosen[0]) == wanted
            ]
            least = min(worn[outfit] for outfit in partners)
            partners = [outfit for outfit in partners if worn[outfit] == least]
            chosen.append(partners[int(rng.integers(len(partners)))])
        worn.update(chosen)
        owned.append(chosen)
    return owned


def own_fresh(wardrobe: Wardrobe, count: int, avoid: frozenset[Outfit], rng: np.random.Generator) -> list[Outfit]:
    """Returns `count` different outfits of a training person, drawn independently, none in `avoid`."""
    owned: list[Outfit] = []
    while len(owned) < count:
        outfit = draw_outfit(wardrobe, rng)
        if outfit not in avoid and outfit not in owned:
            owned.append(outfit)
    return owned


def own_fresh_agreeing(wardrobe: Wardrobe, avoid: frozenset[Outfit], rng: np.random.Generator) -> list[Outfit]:
    """Returns four outfits of a training person, none in `avoid`, that agree with the first in 3, 2 and 0 slots."""
    owned = own_fresh(wardrobe, 1, avoid, rng)
    for wanted in agreements(len(wardrobe.slots)):
        while True:
            kept = set(rng.permutation(len(wardrobe.slots))[:wanted].tolist())
            drawn = draw_outfit(wardrobe, rng)
            outfit = tuple(owned[0][i] if i in kept else value for i, value in enumerate(drawn))
            if outfit not in avoid and outfit not in owned and agreement(outfit, owned[0]) == wanted:
                owned.append(outfit)
                break
    return owned
