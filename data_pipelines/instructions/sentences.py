"""Sentences made from attributes: what people wear, and what they look like (docs/method.md).

Words and templates vary by a generator seeded from the record, so every run makes the same sentences. The nouns and
verbs are those a witness would use; the values themselves (colour names and so on) are never paraphrased.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

_UPPER_NOUNS = ("shirt", "top", "t-shirt")
_LOWER_NOUNS = ("trousers", "pants")
_BAG_NOUNS = {"backpack": ("backpack", "rucksack"), "shoulder bag": ("shoulder bag", "bag on a strap")}
_SUBJECTS = ("person", "pedestrian")
_OPENINGS = (
    "the same person {clothes}",
    "find this person {clothes}",
    "this person, now {clothes}",
    "the person in the picture, {clothes}",
    "look for this pedestrian {clothes}",
    "the same pedestrian, {clothes}",
)
_CAPTIONS = (
    "{build} with {hair} is {wearing} {clothes}.",
    "{build} with {hair}, {wearing} {clothes}.",
    "{build} is {wearing} {clothes}. The {subject} has {hair}.",
    "The picture shows {build_lower} with {hair}, {wearing} {clothes}.",
)
_HAIR = {
    "short": ("short {colour} hair", "{colour} hair cut short"),
    "bob": ("chin-length {colour} hair", "a {colour} bob"),
    "long": ("long {colour} hair", "{colour} hair down to the chest"),
    "bun": ("{colour} hair tied in a bun", "a {colour} bun"),
    "afro": ("a {colour} afro", "big round {colour} hair"),
    "spiky": ("spiky {colour} hair", "{colour} hair in spikes"),
}
_STATURE = {"short": ("short", "small"), "medium": ("",), "tall": ("tall",)}
_GIRTH = {"slim": ("slim", "thin"), "medium": ("",), "broad": ("broad", "stocky")}


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def with_article(phrase: str) -> str:
    """Returns the phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _join(parts: Sequence[str]) -> str:
    """Joins phrases as a sentence does: a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def garment_phrases(named: Mapping[str, str], rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Returns what is worn and what is carried, as phrases: (["a red striped shirt", "blue trousers"], ["a backpack"]).

    Args:
      named: slot name -> value, any subset of: upper colour, pattern, lower colour, bag, shoes, hat, sleeves.
      rng: chooses nouns and word order.

    Raises:
      ValueError: a slot no phrase is known for.
    """
    known = {"upper colour", "pattern", "lower colour", "bag", "shoes", "hat", "sleeves"}
    if unknown := set(named) - known:
        raise ValueError(f"no phrases for slots {sorted(unknown)}; known are {sorted(known)}")
    worn, carried = [], []
    if {"upper colour", "pattern", "sleeves"} & set(named):
        adjectives = [named[slot] for slot in ("pattern", "upper colour") if slot in named]
        if rng.random() < 0.5 and named.get("pattern") != "plain":
            adjectives.reverse()
        upper = " ".join([*adjectives, _pick(_UPPER_NOUNS, rng)])
        worn.append(with_article(upper) + (f" with {named['sleeves']} sleeves" if "sleeves" in named else ""))
    if "lower colour" in named:
        worn.append(f"{named['lower colour']} {_pick(_LOWER_NOUNS, rng)}")
    if "shoes" in named:
        worn.append(f"{named['shoes']} shoes")
    if "hat" in named:
        worn.append("no hat" if named["hat"] == "none" else with_article(named["hat"]))
    if "bag" in named:
        bag = named["bag"]
        carried.append("no bag" if bag == "none" else with_article(_pick(_BAG_NOUNS[bag], rng)))
    return worn, carried


def clothes_phrase(named: Mapping[str, str], rng: np.random.Generator) -> str:
    """Returns the named slots as one participle phrase: "wearing a red shirt and carrying a backpack"."""
    worn, carried = garment_phrases(named, rng)
    clothes = f"{_pick(('wearing', 'dressed in'), rng)} {_join(worn)}" if worn else ""
    if not carried:
        return clothes
    carrying, link = ((f"carrying {carried[0]}", " and "), (f"with {carried[0]}", ", "))[int(rng.integers(2))]
    return f"{clothes}{link}{carrying}" if clothes else carrying


def wanted_sentence(named: Mapping[str, str], rng: np.random.Generator) -> str:
    """Returns an instruction of task li: "find this person wearing a striped shirt and carrying no bag"."""
    return _pick(_OPENINGS, rng).format(clothes=clothes_phrase(named, rng))


def short_phrase(named: Mapping[str, str], rng: np.random.Generator) -> str:
    """Returns the named slots alone: "a red shirt, blue trousers and a backpack"."""
    worn, carried = garment_phrases(named, rng)
    return _join([*worn, *carried])


def key_phrase(named: Mapping[str, str], slots: Sequence[str], rng: np.random.Generator) -> str:
    """Returns one of the slots in one to three words: "red shirt", "striped", "blue trousers", "backpack", "no bag"."""
    slot = _pick(slots, rng)
    value = named[slot]
    if slot in ("hat", "bag"):
        return f"no {slot}" if value == "none" else value
    noun = {"upper colour": "shirt", "lower colour": "trousers", "shoes": "shoes", "sleeves": "sleeves"}.get(slot, "")
    return f"{value} {noun}".strip()


def short_caption(named: Mapping[str, str], rng: np.random.Generator) -> str:
    """Returns one or two of the named slots as users type them: "a person in a red shirt", "person with no bag"."""
    kept = rng.permutation(list(named))[: 1 + int(rng.integers(2))]
    worn, carried = garment_phrases({slot: named[slot] for slot in named if slot in kept}, rng)
    subject = f"{_pick(('a ', ''), rng)}{_pick(_SUBJECTS, rng)}"
    clothes = f" {_pick(('in', 'wearing', 'dressed in'), rng)} {_join(worn)}" if worn else ""
    return f"{subject}{clothes}{f' with {carried[0]}' if carried else ''}"


def hair_phrase(shape: str, colour: str, rng: np.random.Generator) -> str:
    """Returns "short black hair" and the like. Raises KeyError for a shape without phrases."""
    return _pick(_HAIR[shape], rng).format(colour=colour)


def build_phrase(stature: str, girth: str, subject: str, rng: np.random.Generator) -> str:
    """Returns "a tall, slim person"; a person of medium height and breadth is "a person of medium build"."""
    words = [word for word in (_pick(_STATURE[stature], rng), _pick(_GIRTH[girth], rng)) if word]
    return with_article(f"{', '.join(words)} {subject}") if words else f"a {subject} of medium build"


def caption(
    named: Mapping[str, str], stature: str, girth: str, hair_shape: str, hair_colour: str, rng: np.random.Generator
) -> str:
    """Returns one sentence or two that describe a whole person: build, hair, and every named slot."""
    subject = _pick(_SUBJECTS, rng)
    build = build_phrase(stature, girth, subject, rng)
    worn, carried = garment_phrases(named, rng)
    if carried:
        carried = [f"{_pick(('carries', 'has'), rng)} {carried[0]}"]
    text = _pick(_CAPTIONS, rng).format(
        build=build.capitalize(),
        build_lower=build,
        hair=hair_phrase(hair_shape, hair_colour, rng),
        wearing=_pick(("wearing", "dressed in"), rng),
        clothes=_join(worn),
        subject=subject,
    )
    return text if not carried else f"{text} The {subject} {carried[0]}."


def words() -> list[str]:
    """Returns every word the templates can write, slot values apart, unsorted and with repeats (for a vocabulary)."""
    texts = [
        *_UPPER_NOUNS,
        *_LOWER_NOUNS,
        *itertools.chain(*_BAG_NOUNS.values(), *_HAIR.values(), *_STATURE.values(), *_GIRTH.values()),
        *_SUBJECTS,
        *_OPENINGS,
        *_CAPTIONS,
        "a an and build carries carrying dressed has hat in medium no of shoes sleeves wearing with",
    ]
    return [word for text in texts for word in re.sub(r"\{\w+\}", " ", text).replace("-", " ").split()]
