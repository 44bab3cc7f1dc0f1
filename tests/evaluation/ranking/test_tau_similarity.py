"""Similarities of instructions, on cases small enough to check by hand and on the drawn benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.procedural.benchmark import Benchmark
from irm_jax.evaluation.ranking.tau_similarity import InstructionSimilarity
from irm_jax.evaluation.records import Records
from irm_jax.evaluation.test_sets import with_instruction_outfits

SLOTS = 8


def named(*values: int) -> list[int]:
    return [*values, *[-1] * (SLOTS - len(values))]


def paired(source: str, query: Records, gallery: Records, features=None) -> list[float]:
    """The similarity of query i and gallery image i."""
    return InstructionSimilarity(source, query, gallery, features)(
        np.arange(len(query)), np.arange(len(query))
    ).tolist()


def test_attribute_similarity_counts_slots_known_of_both():
    wanted = [named(1, 2, 3, 0)] * 5
    shown = [named(1, 2, 3, 1), named(1, -1, 0, -1), named(-1, -1, -1, -1, 6), named(1, 2, 3, 0), named(0, 0)]
    query = Records.of(instruction_outfit=wanted, instruction_key=[1, 1, 1, 1, 1])
    gallery = Records.of(instruction_outfit=shown, instruction_key=[2, 2, 2, 2, 1])
    # The last pair's instructions are the same ones, whatever the slots say.
    assert paired("attributes", query, gallery) == [0.75, 0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_every_tau_keeps_other_positives_of_the_drawn_instructions(task):
    """Owned outfits agree in 3, 2 and 0 of four slots, also where a sentence names but two."""
    benchmark = Benchmark(train_people=2, test_people=24)
    shots = benchmark.shots(task)

    def records(split: str, key: int) -> Records:
        rows = [shot.row for shot in shots[split]]
        number = benchmark.wardrobe.number
        return Records.of(
            attributes=[named(*row.outfit) for row in rows], instruction_attributes=[named(*row.named) for row in rows],
            clothes=[number(row.outfit) for row in rows], instruction_clothes=[number(row.wanted) for row in rows],
            identity=[int(shot.person.rpartition("p")[2]) for shot in shots[split]], instruction_key=[key] * len(rows),
        )  # fmt: skip

    query, gallery = with_instruction_outfits(records("query", 1), records("gallery", 2))
    q, g = np.nonzero(query.identity[:, None] == gallery.identity)
    similarity = InstructionSimilarity("attributes", query, gallery)(q, g)
    assert set(similarity.tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    kept = [(similarity >= tau).mean() for tau in (0.5, 0.7, 0.9)]
    assert 1 > kept[0] > kept[1] + 0.1 > kept[2] + 0.2


def test_clothes_similarity():
    query = Records.of(instruction_clothes=[1, 1, -1, -1], instruction_key=[1, 1, 1, 2])
    gallery = Records.of(instruction_clothes=[1, 2, -1, -1], instruction_key=[2, 2, 2, 2])
    assert paired("clothes", query, gallery) == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("source", "column", "known"),
    [("attributes", "instruction_outfit", named(-1, 3)), ("clothes", "instruction_clothes", 1)],
)
def test_instructions_that_state_nothing_have_no_map_tau(source, column, known):
    """Unless there is one instruction for all, under which mAP_tau = mAP."""
    unknown = Records.of(identity=[0, 0], instruction_key=[1, 2])
    assert f"no query's instruction states its {source}" in InstructionSimilarity(source, unknown, unknown).missing()
    told = unknown.replace(**{column: np.int32([unknown[column][0], known])})
    assert InstructionSimilarity(source, told, unknown).missing() is None
    assert InstructionSimilarity(source, unknown, told).missing() is not None
    constant = unknown.replace(instruction_key=np.uint32([1, 1]))
    assert InstructionSimilarity(source, constant, constant).missing() is None
    assert InstructionSimilarity("model", unknown, unknown, (np.eye(2), np.eye(2))).missing() is None


def test_feature_similarity_is_the_cosine():
    query = Records.of(instruction_key=[1, 1, 1])
    gallery = Records.of(instruction_key=[2, 1, 2])
    features = np.float32([[3, 4], [1, 0], [0, 0]]), np.float32([[4, 3], [0, 2], [1, 1]])
    np.testing.assert_allclose(paired("model", query, gallery, features), [24 / 25, 1, 0], atol=1e-12)
