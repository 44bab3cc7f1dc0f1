"""Reads attributes back from a sentence, to tell whether it says what it was made of (docs/own_data.md).

The grammar is small: colours and patterns belong to the garment that follows them, or to the last one where none
follows before the next comma ("a shirt in red, ..."). What it cannot place, such as a second colour, hair or an age,
is read as OTHER. A sentence that is right may thus be refused; one that says something else is not taken.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

OTHER = "other"
"""Slot of what a sentence says beyond the slots."""
NONE = "none"
_UPPER, _LOWER, _SHOES, _HAT, _BAG = "upper colour", "lower colour", "shoes", "hat", "bag"
_NOUNS = {
    _UPPER: "shirt tshirt tee top sweater jumper pullover sweatshirt hoodie jacket coat blouse cardigan blazer",
    _LOWER: "trousers pants jeans shorts skirt leggings slacks bottoms",
    _SHOES: "shoes shoe sneakers trainers boots sandals footwear",
    _HAT: "hat cap beanie helmet hood beret headwear headgear",
    _BAG: "bag bags handbag purse suitcase briefcase tote luggage pouch satchel",
}
_NOUN_SLOT = {noun: slot for slot, nouns in _NOUNS.items() for noun in nouns.split()}
_BAG_PHRASES = {
    "backpack": "backpack", "rucksack": "backpack", "shoulder bag": "shoulder bag", "bag on a strap": "shoulder bag",
    "crossbody bag": "shoulder bag", "cross body bag": "shoulder bag", "messenger bag": "shoulder bag",
    "empty handed": NONE, "carrying nothing": NONE,
}  # fmt: skip
_HAT_PHRASES = {"bareheaded": NONE, "hatless": NONE}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COLOURS = _words(
    "red orange yellow green blue purple violet pink brown black white grey gray beige navy khaki teal turquoise cyan "
    "magenta maroon olive tan cream gold silver"
)
_PATTERNS = _words(
    "plain solid striped stripes checked checkered chequered plaid dotted dots spotted floral patterned camouflage "
    "printed print"
)
_SHADES = _words("dark light bright pale deep")
_NEGATIONS = _words("no without not nor neither never")
_OTHERS = _words(
    "dress gown suit tie scarf glasses sunglasses gloves belt umbrella phone hair haired beard moustache man woman men "
    "women male female boy girl lady gentleman guy he she his her him young old elderly middle aged teenager child kid "
    "slim tall sleeveless"
)


def words_of(text: str) -> list[str]:
    """Returns the words of a text in small letters, and its stops (. , ; :) as words of their own."""
    return re.findall(r"[^\W_]+|[.,;:!?]", text.lower().replace("t-shirt", "tshirt").replace("tee-shirt", "tshirt"))


def read(sentence: str, values: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Returns {slot: values that the sentence says}, with OTHER for what is none of them.

    Args:
      sentence: an English sentence.
      values: slot -> the values that are known for it, beside common colours and patterns. Slots: upper colour,
        pattern, lower colour, bag, shoes, hat, sleeves.
    """
    reader = _Reader(_phrases(values))
    words, at = words_of(sentence), 0
    while at < len(words):
        at += reader.take(words, at)
    reader.close_clause()
    return dict(reader.found)


def differences(sentence: str, attributes: Mapping[str, str], values: Mapping[str, Iterable[str]]) -> str:
    """Returns in words how what a sentence says differs from the attributes it was made of; "" where it does not."""
    found = read(sentence, values)
    problems = []
    for slot, value in attributes.items():
        said = found.pop(slot, set())
        if said != {_plain(value)}:
            problems.append(f"{slot} is {' and '.join(sorted(said)) or 'not named'} instead of {value}")
    problems += [f"{' and '.join(sorted(said))} ({slot}) is added" for slot, said in found.items()]
    return "; ".join(problems)


def _plain(text: str) -> str:
    return " ".join(words_of(text))


_Phrases = dict[tuple[str, ...], list[tuple[str, str]]]


def _phrases(values: Mapping[str, Iterable[str]]) -> _Phrases:
    """Returns {words: [(slot, value)]} of everything that is read as a value."""
    found: dict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)

    def add(phrase: str, slot: str, value: str) -> None:
        if words := tuple(words_of(phrase)):
            found[words].add((slot, _plain(value)))

    for colour in (*_COLOURS, *(f"{shade} {colour}" for shade in _SHADES for colour in _COLOURS)):
        add(colour, "colour", colour)
    for pattern in _PATTERNS:
        add(pattern, "pattern", pattern)
    for slot in (_UPPER, _LOWER, _SHOES):
        for value in values.get(slot, ()):
            add(value, "colour", value)
    for value in values.get("pattern", ()):
        add(value, "pattern", value)
    for value in {"long", "short", *values.get("sleeves", ())}:
        for noun in ("sleeve", "sleeves", "sleeved"):
            add(f"{value} {noun}", "sleeves", value)
    for slot, known in ((_HAT, _HAT_PHRASES), (_BAG, _BAG_PHRASES)):
        own = {value: value for value in values.get(slot, ()) if value != NONE}
        for phrase, value in {**known, **own}.items():
            add(phrase, slot, value)
    return {words: sorted(meant) for words, meant in found.items()}


class _Reader:
    """Reads word by word; `pending` holds adjectives that wait for their garment."""

    def __init__(self, phrases: _Phrases) -> None:
        self.found: defaultdict[str, set[str]] = defaultdict(set)
        self._phrases, self._longest = phrases, max(map(len, phrases))
        self._pending: list[tuple[str, str]] = []
        self._garment, self._negated = "", False

    def take(self, words: list[str], at: int) -> int:
        """Reads what begins at word `at`; returns how many words that were."""
        for length in range(min(self._longest, len(words) - at), 0, -1):
            if meant := self._phrases.get(tuple(words[at : at + length])):
                self._value(meant)
                return length
        word = words[at]
        if word in _NOUN_SLOT:
            self._noun(_NOUN_SLOT[word], word)
        elif word in _NEGATIONS:
            self._negated = True
        elif word in ".,;:!?":
            self.close_clause()
        elif word in ("and", "but", "with"):
            self._negated = False
        elif word in _OTHERS:
            self.found[OTHER].add(word)
        return 1

    def close_clause(self) -> None:
        """Gives adjectives without a garment after them to the last one."""
        self._attach(self._garment)
        self._negated = False

    def _value(self, meant: list[tuple[str, str]]) -> None:
        slot, value = meant[0]
        if slot in (_HAT, _BAG):
            self._attach("")
            self.found[slot].add(NONE if self._negated else value)
            self._garment = slot
        elif self._negated:
            self.found[OTHER].add(f"no {value}")
        elif slot == "sleeves":
            self.found[slot].add(value)
        else:
            self._pending.append((slot, value))

    def _noun(self, slot: str, word: str) -> None:
        if slot in (_HAT, _BAG):
            self._attach("")
            self.found[slot].add(NONE if self._negated else word)
        elif self._negated:
            self.found[OTHER].add(f"no {word}")
        else:
            self._attach(slot)
        self._garment = slot

    def _attach(self, garment: str) -> None:
        for kind, value in self._pending:
            if kind == "pattern" and garment == _UPPER:
                self.found["pattern"].add(value)
            elif kind == "colour" and garment in (_UPPER, _LOWER, _SHOES):
                self.found[garment].add(value)
            else:
                self.found[OTHER].add(value)
        self._pending = []
