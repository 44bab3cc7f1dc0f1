"""Attributes read back from sentences."""

import numpy as np
import pytest

from data_pipelines.instructions import read_back
from data_pipelines.instructions.sentences import wanted_sentence
from data_pipelines.procedural import outfits

SLOTS = (*outfits.BASE_SLOTS, *outfits.EXTRA_SLOTS.values())
VALUES = {slot.name: slot.values for slot in SLOTS}
MADE_OF = {"upper colour": "red", "pattern": "striped", "lower colour": "blue", "bag": "none"}


def test_of_every_template_the_attributes_are_read_back_that_it_was_made_of() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1500):
        chosen = rng.permutation(len(SLOTS))[: rng.integers(1, len(SLOTS) + 1)]
        attributes = {SLOTS[i].name: str(rng.choice(SLOTS[i].values)) for i in chosen}
        sentence = wanted_sentence(attributes, rng)
        assert read_back.read(sentence, VALUES) == {slot: {value} for slot, value in attributes.items()}, sentence
        assert read_back.differences(sentence, attributes, VALUES) == ""


@pytest.mark.parametrize(
    "sentence",
    [
        "Show me the same person in a red striped shirt and blue jeans, without any bag.",
        "Find the one whose jacket is striped in red, whose trousers are blue, and who carries no bag or backpack.",
        "I look for this person: blue pants, a striped red T-shirt, no bags",
    ],
)
def test_free_sentences_that_say_it(sentence: str) -> None:
    assert read_back.differences(sentence, MADE_OF, VALUES) == ""


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("a red striped shirt and blue trousers", "bag is not named instead of none"),
        ("a blue striped shirt and red trousers, no bag", "upper colour is blue instead of red"),
        ("a red and white striped shirt, blue trousers, no bag", "upper colour is red and white instead of red"),
        ("a dark red striped shirt, blue trousers, no bag", "upper colour is dark red instead of red"),
        ("a red shirt, striped blue trousers, no bag", "pattern is not named instead of striped"),
        ("a red striped shirt, blue trousers and a backpack", "bag is backpack instead of none"),
        ("a red striped shirt, blue trousers, white shoes, no bag", "white (shoes) is added"),
        ("a red striped shirt, blue trousers, a cap, no bag", "cap (hat) is added"),
        ("a woman in a red striped shirt and blue trousers, no bag", "woman (other) is added"),
        ("a red striped shirt and blue trousers, not black, no bag", "no black (other) is added"),
        ("a red striped shirt with long sleeves, blue trousers, no bag", "long (sleeves) is added"),
        ("", "upper colour is not named instead of red"),
    ],
)
def test_sentences_that_say_something_else(sentence: str, problem: str) -> None:
    assert problem in read_back.differences(sentence, MADE_OF, VALUES)


def test_values_of_ones_own_are_read_where_they_are_known() -> None:
    own = {"upper colour": "Bordeaux", "hat": "red cap", "bag": "shoulder bag", "shoes": "running"}
    said = "a bordeaux coat, running shoes, a red cap and a bag on a strap"
    assert read_back.differences(said, own, {slot: [value] for slot, value in own.items()}) == ""
    assert "upper colour is not named" in read_back.differences(said, own, {})
