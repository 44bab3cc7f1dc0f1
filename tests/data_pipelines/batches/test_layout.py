"""Layouts of batches: whole identities, exact sizes, shares, and errors that name the sizes that work."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import tasks
from data_pipelines.batches.layout import BatchPlan, Unit, apportion, plan_batch


class CountingTokenizer:
    """A tokenizer whose ids tell the sentence."""

    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.array([[len(s), i, 0] for i, s in enumerate(sentences)])


def plan_of(units: list[Unit], size: int, blocks: int) -> BatchPlan:
    return plan_batch(units, size, blocks, tokenizer=CountingTokenizer())


@st.composite
def mixes(draw: st.DrawFn) -> list[Unit]:
    names = draw(st.lists(st.sampled_from(list(tasks.TASKS)), min_size=1, max_size=5))
    return [
        Unit.of_task(
            f"{name}_{i}",
            name,
            share=draw(st.integers(1, 9)) / 3,
            images_per_identity=draw(st.sampled_from([2, 3, 4, 6])),
        )
        for i, name in enumerate(names)
    ]


@given(mix=mixes(), size=st.integers(-5, 400), blocks=st.sampled_from([1, 2, 3, 8]))
def test_every_size_is_laid_out_exactly_or_refused_with_the_nearest_that_work(mix, size, blocks):
    try:
        plan = plan_of(mix, size, blocks)
    except ValueError as error:
        nearest = [int(n) for n in re.search(r"valid sizes are ([-\d and]+)", str(error)).group(1).split(" and ")]
        for other in nearest:
            assert plan_of(mix, other, blocks).batch_size == other
        below = max([n for n in nearest if n < size], default=size - 1)
        above = min(n for n in nearest if n > size)
        for between in set(range(below + 1, above)) & set(range(size - 12, size + 12)):
            with pytest.raises(ValueError, match="nearest valid sizes"):
                plan_of(mix, between, blocks)
        return
    assert sum(u.rows for u in plan.units) * blocks == size
    for kind in plan.kinds:
        rows, entries, composed = [], [], []
        for u in plan.of_kind(kind):
            assert u.identities >= 1
            assert u.rows == u.identities * u.unit.images_per_identity
            rows += range(u.row, u.row + u.rows)
            entries += range(u.entry, u.entry + u.entries)
            composed += range(u.composed_row, u.composed_row + u.composed_rows)
            assert (u.entries == 0) == (tasks.task(u.unit.task).sentence is not None)
            if u.unit.share_instruction:
                assert u.entries <= u.identities * u.unit.outfits
        assert rows == list(range(plan.rows(kind)))
        assert entries == list(range(plan.entries(kind)))
        assert composed == list(range(plan.composed_rows(kind)))


def largest_remainder(weights: list[float], seats: int) -> list[int]:
    """Hamilton's rule, ties to the earlier."""
    quotas = [seats * w / sum(weights) for w in weights]
    floors = [int(q + 1e-9) for q in quotas]
    order = sorted(range(len(weights)), key=lambda i: (-round(quotas[i] - floors[i], 6), i))
    for i in order[: seats - sum(floors)]:
        floors[i] += 1
    return floors


@given(weights=st.lists(st.integers(1, 8), min_size=1, max_size=6), seats=st.integers(1, 60))
def test_equal_steps_follow_the_largest_remainder(weights, seats):
    expected = largest_remainder(weights, seats)
    found = apportion([16 * seats * w / sum(weights) for w in weights], [16] * len(weights), 16 * seats)
    if min(expected) >= 1:
        assert found == expected
    elif found is not None:
        assert min(found) >= 1
        assert sum(found) == seats
    else:
        assert seats < len(weights)


def test_two_units_of_one_data_set_take_different_identities():
    plan = plan_of([Unit("real", "trad"), Unit("other", "trad"), Unit("real", "cc", outfits=2)], 48, 2)
    first, _, second = plan.units
    assert (first.dataset, second.dataset) == (0, 0)
    assert first.first_identity == 0
    assert second.first_identity == first.identities * 2
    assert plan.identities_per_batch("real") == 2 * (first.identities + second.identities)


def test_units_of_one_data_set_are_told_apart_by_their_task():
    plan = plan_of([Unit.of_task("a", "trad"), Unit.of_task("a", "cc"), Unit.of_task("b", "trad")], 24, 1)
    assert [plan.title(layout) for layout in plan.units] == ["a (trad)", "a (cc)", "b"]


def test_constants_are_the_sentences_in_use_and_the_neutral_one_last():
    plan = plan_of([Unit("a", "trad"), Unit("b", "vi"), Unit("c", "trad"), Unit.of_task("d", "li")], 64, 4)
    assert plan.constants == (tasks.TASKS["trad"].sentence, tasks.TASKS["vi"].sentence, tasks.NEUTRAL_SENTENCE)
    assert [u.constant for u in plan.units] == [0, 1, 0, -1]
    assert plan.neutral == 2
    np.testing.assert_array_equal(plan.constant_tokens, CountingTokenizer().encode(list(plan.constants)))
    assert plan.constant_tokens.dtype == np.int32


def test_fingerprint_is_json_and_changes_with_the_plan():
    plan = plan_of([Unit("a", "trad"), Unit("b", "vi")], 32, 2)
    same, other = (
        plan_of([Unit("a", "trad"), Unit("b", "vi")], 32, 2),
        plan_of([Unit("a", "trad"), Unit("b", "vi")], 32, 4),
    )
    assert json.loads(json.dumps(plan.fingerprint())) == same.fingerprint()
    assert plan.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, "share = 0 must be positive"),
        ({"images_per_identity": 0}, "at least 1"),
        ({"outfits": 5}, "do not fit into images_per_identity = 4"),
        ({"outfits": 2, "balance_modality": True}, "exclude each other"),
        ({"composed": True}, "instruction of their own"),
        ({"share_instruction": True}, "instruction of their own"),
        ({"task": "tract"}, "unknown task 'tract'"),
    ],
)
def test_bad_units_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Unit(**{"dataset": "a", "task": "trad", **arguments})


def test_bad_plans_are_refused():
    with pytest.raises(ValueError, match="no data sets"):
        plan_of([], 8, 1)
    with pytest.raises(ValueError, match="batch_blocks = 0"):
        plan_of([Unit("a", "trad")], 8, 0)
    with pytest.raises(ValueError, match="instruction_dropout = 2"):
        plan_batch([Unit("a", "trad")], 8, 1, tokenizer=CountingTokenizer(), instruction_dropout=2)
    with pytest.raises(ValueError, match=r"batch_size = 100 .* are 96 and 112\."):
        plan_of([Unit("a", "trad"), Unit("b", "vi")], 100, 4)


def test_another_constant_sentence_of_a_task():
    """The released checkpoints learned "cross modiality"; it is no other plan to a checkpoint of before this option."""
    own = Unit.of_task("a", "vi", sentence="cross modiality")
    plan = plan_batch([own, Unit.of_task("b", "trad")], 16, 1, tokenizer=CountingTokenizer())
    assert plan.constants == ("cross modiality", "do not change clothes", "any image of this person")
    assert plan.units[0].constant == 0
    assert "sentence" not in plan.fingerprint()["units"][0]
    with pytest.raises(ValueError, match="each row brings its own"):
        Unit.of_task("a", "li", sentence="x")
