"""Sentences from attributes."""

import itertools

import numpy as np
import pytest

from data_pipelines.instructions import sentences as instructions
from data_pipelines.instructions import tokenizer
from data_pipelines.procedural import outfits

ALL = {"upper colour": "red", "pattern": "striped", "lower colour": "blue", "bag": "backpack"}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_wish_names_what_is_named_and_nothing_else(count):
    silent = {"red": "upper colour", "striped": "pattern", "blue": "lower colour"}
    for slots, seed in itertools.product(itertools.combinations(ALL, count), range(8)):
        sentence = instructions.wanted_sentence({slot: ALL[slot] for slot in slots}, rng(seed))
        for word, slot in silent.items():
            assert (word in sentence) == (slot in slots), sentence
        assert ("backpack" in sentence or "rucksack" in sentence) == ("bag" in slots), sentence
        assert "  " not in sentence
        assert "{" not in sentence


def test_sentences_are_seeded_and_vary():
    assert instructions.wanted_sentence(ALL, rng(5)) == instructions.wanted_sentence(ALL, rng(5))
    assert len({instructions.wanted_sentence(ALL, rng(seed)) for seed in range(50)}) > 30


def test_absence_is_said():
    assert "no bag" in instructions.wanted_sentence({"bag": "none"}, rng())
    assert "no hat" in instructions.wanted_sentence({"hat": "none"}, rng())
    assert "plain" in instructions.wanted_sentence({"pattern": "plain", "upper colour": "red"}, rng())


def test_caption_describes_the_whole_person():
    for seed in range(30):
        text = instructions.caption(ALL, "tall", "slim", "bun", "grey", rng(seed))
        assert text.endswith(".")
        assert text[0].isupper()
        for words in (("tall",), ("slim", "thin"), ("bun",), ("grey",), ("red",), ("striped",), ("blue",)):
            assert any(word in text for word in words), text
        assert len(tokenizer.clean_text(text).split()) < tokenizer.MAX_WORDS
    medium = instructions.caption(ALL, "medium", "medium", "short", "black", rng())
    assert "medium build" in medium


@pytest.mark.parametrize(("phrase", "expected"), [("orange bag", "an orange bag"), ("cap", "a cap")])
def test_article(phrase, expected):
    assert instructions.with_article(phrase) == expected


def test_every_slot_value_has_a_phrase():
    for slot in [*outfits.BASE_SLOTS, *outfits.EXTRA_SLOTS.values()]:
        sentences = {instructions.wanted_sentence({slot.name: value}, rng(1)) for value in slot.values}
        assert len(sentences) == len(slot.values)


def test_unknown_slot_is_refused():
    with pytest.raises(ValueError, match="gloves"):
        instructions.clothes_phrase({"gloves": "red"}, rng())
