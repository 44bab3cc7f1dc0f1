"""One numbering of people over data sets."""

import numpy as np
import pytest

from data_pipelines.batches.layout import Unit, plan_batch
from data_pipelines.people.identity_space import IdentitySpace, TrainPeople


class NoWords:
    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.zeros((len(sentences), 4), np.int32)


def people(names: list[str], train: list[str]) -> TrainPeople:
    """A data set of these people, of whom some have training images."""
    return TrainPeople(names, np.array(sorted({names.index(name) for name in train})))


@pytest.fixture
def space() -> IdentitySpace:
    datasets = {
        "captions": people(["m/1", "x/1", "x/2"], ["x/2", "m/1", "x/1"]),
        "market": people(["m/0", "m/1", "m/2", "m/9test"], ["m/1", "m/0", "m/2", "m/0"]),
        "li": people(["l/0", "m/2"], ["m/2", "l/0"]),
    }
    units = [Unit("captions", "t2i", images_per_identity=1), Unit("market", "trad"), Unit.of_task("li", "li")]
    return IdentitySpace(plan_batch(units, 16, 1, tokenizer=NoWords()), datasets)


def test_head_people_come_first_and_a_name_is_one_identity(space):
    assert space.names == ("m/0", "m/1", "m/2", "l/0", "x/1", "x/2")
    assert len(space) == 6
    assert space.num_head == 4
    np.testing.assert_array_equal(space.of("market"), [0, 1, 2, -1])
    np.testing.assert_array_equal(space.of("li"), [3, 2])
    np.testing.assert_array_equal(space.of("captions"), [1, 4, 5])
    assert space.of("li").dtype == np.int32


def test_members_are_the_head_people_of_each_data_set(space):
    np.testing.assert_array_equal(space.members, [[0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    assert space.members.dtype == bool


def test_captions_alone_have_no_head():
    plan = plan_batch([Unit("c", "t2i", images_per_identity=1)], 1, 1, tokenizer=NoWords())
    space = IdentitySpace(plan, {"c": people(["a", "b"], ["b"])})
    assert (space.num_head, space.names, space.members.shape) == (0, ("b",), (1, 0))


def test_a_number_is_one_person_however_many_zeros_a_build_wrote():
    """Tables of earlier builds kept a number as it was written; a data set beside it has four digits."""
    datasets = {"old": people(["m/50", "m/a"], ["m/50", "m/a"]), "new": people(["m/0050"], ["m/0050"])}
    units = [Unit("old", "trad"), Unit("new", "trad")]
    space = IdentitySpace(plan_batch(units, 16, 1, tokenizer=NoWords()), datasets)
    assert space.names == ("m/50", "m/a")
    assert (space.of("old").tolist(), space.of("new").tolist()) == ([0, 1], [0])
