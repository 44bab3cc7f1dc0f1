"""Sentences made from the 27 attributes of Market-1501, and paraphrases seeded by record (docs/method.md).

The attributes (Lin et al., 2019: gender, hair, up, down, clothes, hat, backpack, bag, handbag, age, eight colours of
the upper and nine of the lower clothes) become the eight `SLOTS` of a record.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.dataset import schema
from data_pipelines.instructions.sentences import with_article

UPPER_COLOURS = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
LOWER_COLOURS = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
BAGS = ("backpack", "bag", "handbag")
AGES = ("young", "teenager", "adult", "old")
SLOTS: dict[str, tuple[str, ...]] = {
    "upper colour": UPPER_COLOURS,
    "lower colour": LOWER_COLOURS,
    "sleeves": ("long", "short"),
    "lower garment": ("long dress", "trousers", "short dress", "shorts"),
    "carried": ("none", *(" and ".join(bag for n, bag in enumerate(BAGS) if bits >> n & 1) for bits in range(1, 8))),
    "hat": ("no", "yes"),
    "hair": ("short", "long"),
    "gender and age": tuple(f"{gender} {age}" for gender in ("male", "female") for age in AGES),
}
"""Name -> values, in the order of a record's attributes; the file's 27 attributes can be read back from them."""
NAMED = ("upper colour", "lower colour", "sleeves", "lower garment", "carried")
"""The slots that an instruction names: clothes and bags, what a person can change."""
ATTRIBUTES = (
    *("gender", "hair", "up", "down", "clothes", "hat", *BAGS, "age"),
    *(f"up{colour}" for colour in UPPER_COLOURS),
    *(f"down{colour}" for colour in LOWER_COLOURS),
)
"""The 27 names in market_attribute.mat. Values are 1 or 2 (age: 1 to 4); of the colours at most one should be 2."""

_OPENINGS = (
    "the same person wearing {worn}{carried}",
    "find this person dressed in {worn}{carried}",
    "this person, now in {worn}{carried}",
    "look for this pedestrian wearing {worn}{carried}",
    "the person in the picture, wearing {worn}{carried}",
)
_UPPER = ("shirt", "top", "t-shirt")
_LOWER = {
    "long dress": ("long {} dress", "long {} skirt"),
    "short dress": ("short {} dress", "short {} skirt"),
    "trousers": ("{} trousers", "{} pants"),
    "shorts": ("{} shorts", "short {} pants"),
}
_BAG_WORDS = {"backpack": ("backpack", "rucksack"), "bag": ("bag", "shoulder bag"), "handbag": ("handbag", "purse")}


def slot_values(attributes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the values of SLOTS from the 27 attributes; a colour is -1 unless exactly one is marked.

    Raises ValueError for a missing attribute, or a value out of range.
    """
    if missing := [name for name in ATTRIBUTES if name not in attributes]:
        raise ValueError(f"attribute {missing[0]} is missing")
    for name in ATTRIBUTES:
        if not 1 <= attributes[name] <= (4 if name == "age" else 2):
            raise ValueError(f"attribute {name} is {attributes[name]}")
    yes = {name: attributes[name] - 1 for name in ATTRIBUTES}

    def colour(prefix: str, names: tuple[str, ...]) -> int:
        marked = [n for n, name in enumerate(names) if yes[f"{prefix}{name}"]]
        return marked[0] if len(marked) == 1 else schema.UNKNOWN

    return (
        colour("up", UPPER_COLOURS),
        colour("down", LOWER_COLOURS),
        yes["up"],
        2 * yes["down"] + yes["clothes"],
        sum(yes[bag] << n for n, bag in enumerate(BAGS)),
        yes["hat"],
        yes["hair"],
        len(AGES) * yes["gender"] + yes["age"],
    )


def named_values(values: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the values that an instruction names, -1 in the other slots."""
    return tuple(value if name in NAMED else schema.UNKNOWN for name, value in zip(SLOTS, values, strict=True))


def sentence(values: tuple[int, ...], rng: np.random.Generator) -> str:
    """Returns an instruction that names what is worn and carried: "find this person dressed in a red top ..."."""
    named = {name: SLOTS[name][value] for name, value in zip(SLOTS, values, strict=True) if value != schema.UNKNOWN}

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    lower = named["lower garment"]
    upper = f"{named.get('upper colour', '')} {pick(_UPPER)}".strip()
    lower_words = " ".join(pick(_LOWER[lower]).format(named.get("lower colour", "")).split())
    worn = f"{with_article(upper)} with {named['sleeves']} sleeves and "
    worn += with_article(lower_words) if lower.endswith("dress") else lower_words
    if named["carried"] == "none":
        carried = pick((", without a bag", ", carrying no bag"))
    else:
        bags = [with_article(pick(_BAG_WORDS[bag])) for bag in named["carried"].split(" and ")]
        carried = f", {pick(('carrying', 'with'))} {' and '.join(bags)}"
    return pick(_OPENINGS).format(worn=worn, carried=carried)


def paraphrases(write: Callable[[np.random.Generator], str], count: int, seed: str) -> tuple[str, ...]:
    """Returns up to `count` different sentences of `write`, the same in every run for one `seed` (a file's name)."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    written: dict[str, None] = {}
    for _ in range(20 * count):
        written.setdefault(write(rng))
        if len(written) == count:
            break
    return tuple(written)
