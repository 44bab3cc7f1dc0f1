"""The second edition of the benchmark: what differs from the first, and that it is kept apart from it."""

import collections
import zlib

import pytest

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.procedural.benchmark import Benchmark
from data_pipelines.procedural.drawing import body
from data_pipelines.procedural.people import draw_person

SECOND = Benchmark(edition=2)


def test_a_change_of_rows_needs_a_new_version():
    shots = [shot for task in tasks.TASK_NAMES for split in SECOND.shots(task).values() for shot in split]
    text = repr([(shot.row, shot.file, shot.person, SECOND.sentences(shot)) for shot in shots])
    assert (SECOND.version, zlib.crc32(text.encode())) == ("2.0.0", 3211197466)


def test_an_edition_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="edition 3 is none of 1, 2"):
        Benchmark(edition=3)


def test_heads_are_larger_and_bodies_as_tall():
    person = draw_person(0, "procedural_test", 0)
    plain, large = (
        body.Body(person, body.Pose(body.FRONT, 0.0, 0.95, 1.0, 0.0, 0.0, head=head)) for head in (1.0, 1.5)
    )
    assert large.head == pytest.approx(1.5 * plain.head)
    assert large.height == plain.height
    top = [each.head_y - each.ry for each in (plain, large)]
    assert top[1] == pytest.approx(top[0], abs=0.05 * plain.height), "the crown stays where it was"


@pytest.mark.parametrize(("task", "outfits"), [("cc", 12), ("vi", 6), ("trad", 1), ("ctcc", 4)])
def test_training_people_own_many_outfits(task, outfits):
    worn = collections.defaultdict(set)
    for shot in SECOND.shots(task)["train"]:
        worn[shot.person].add(shot.row.outfit)
    assert {len(each) for each in worn.values()} == {outfits}


def test_instructions_have_three_lengths_in_every_split():
    for shots in SECOND.shots("li").values():
        for shot in shots[::13]:
            sentence, short, key = SECOND.sentences(shot)
            assert len(sentence.split()) > len(short.split()) >= len(key.split()) >= 1
            assert len(key.split()) <= 2


def test_the_key_phrase_of_a_query_asks_for_what_its_picture_does_not_show():
    for shot in SECOND.shots("li")["query"]:
        key = SECOND.sentences(shot)[2]
        slots = zip(SECOND.wardrobe.slots, shot.row.named, shot.row.outfit, strict=True)
        (asked,) = [slot.values[named] for slot, named, worn in slots if named not in (schema.UNKNOWN, worn)]
        assert (asked if asked != "none" else "no bag") in key


def test_captions_of_training_end_with_a_short_one():
    splits = SECOND.shots("t2i")
    for shot in splits["train"][::29]:
        *captions, short = SECOND.sentences(shot)
        assert len(captions) == 2
        assert len(short.split()) < min(len(caption.split()) for caption in captions)
    assert {len(SECOND.sentences(shot)) for shot in splits["query"]} == {1}


def test_no_word_of_them_is_unknown():
    tokenizer = Tokenizer()
    for task in ("li", "t2i"):
        for text in {text for shots in SECOND.shots(task).values() for s in shots for text in SECOND.sentences(s)}:
            assert tokenizer.known_words(text)[1] == (), text
