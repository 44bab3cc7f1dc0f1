"""Controls on hand-made cases: chance in closed form, perfect knowledge, swapped instructions, another person."""

import itertools

import numpy as np
import pytest

from irm_jax.evaluation import controls
from irm_jax.evaluation.figures import average_precision, summarize
from irm_jax.evaluation.protocols import protocol_of
from irm_jax.evaluation.ranking import rank

NAMED = 8


def columns(identity, clothes, asked_clothes=None, worn=None, asked=None, camera=None):
    """Columns of a few records; `worn` and `asked` are lists of slot values, -1 where unknown."""
    count = len(identity)

    def slots(values):
        table = np.full((count, NAMED), -1, np.int32)
        for row, record in enumerate(values or []):
            table[row, : len(record)] = record
        return table

    return {
        "identity": np.array(identity, np.int32),
        "clothes": np.array(clothes, np.int32),
        "camera": np.array(camera if camera is not None else range(count), np.int32),
        "modality": np.zeros(count, np.int32),
        "attributes": slots(worn),
        "instruction_attributes": slots(asked),
        "instruction_clothes": np.array(asked_clothes if asked_clothes is not None else [-1] * count, np.int32),
        "instruction_key": np.arange(count).astype(np.uint32),
        "content": np.arange(count).astype(np.uint64),
    }


@pytest.mark.parametrize(("images", "positives"), [(1, 1), (4, 1), (6, 2), (7, 3), (6, 6), (8, 1)])
def test_chance_is_the_mean_over_all_orders(images, positives):
    found = controls.chance(images, positives)
    places = np.array(list(itertools.combinations(range(images), positives)))
    ap = average_precision(places, np.ones_like(places, bool))
    assert found["mAP"] == pytest.approx(ap.mean())
    assert found["mINP"] == pytest.approx((positives / (places[:, -1] + 1)).mean())
    for k in (1, 5, 10):
        assert found[f"rank{k}"] == pytest.approx((places[:, 0] < k).mean())


def test_random_ranking_counts_junk_out_and_skips_queries_without_positives():
    gallery = columns([0, 0, 0, 1, 2], [1, 1, 2, 1, 1], camera=[5, 6, 7, 8, 9])
    query = columns([0, 1, 7], [1, 2, 1], camera=[5, 0, 0])
    found = controls.random_ranking(query, gallery, protocol_of("procedural_trad"))
    # query 0: image 1 is right, images 0 (its camera) and 2 (other outfit) are junk; 1: its one image is junk; 7: none
    assert found == pytest.approx(controls.chance(3, 1))
    found = controls.random_ranking(query, gallery, protocol_of("procedural_trad+identity"))
    expected = [controls.chance(4, 2), controls.chance(5, 1)]
    assert found == pytest.approx({key: (expected[0][key] + expected[1][key]) / 2 for key in found})
    nobody = controls.random_ranking(columns([9], [1]), gallery, protocol_of("procedural_trad"))
    assert set(nobody) == set(found)
    assert not any(nobody.values())


def test_perfect_identity_prefers_the_persons_images_in_the_clothes_of_the_query():
    query = columns([3, 4], [7, -1])
    gallery = columns([4, 3, 3, 3, 9, 4], [7, 1, 7, 2, 7, -1])
    scores = cosine(*controls.perfect_identity(query, gallery, seed=0))
    assert np.argmax(scores[0]) == 2
    assert set(np.argsort(-scores[0])[:3]) == {1, 2, 3}
    assert set(np.argsort(-scores[1])[:2]) == {0, 5}
    # A caption shows no clothes: with the picture left out, all images of the person are as good.
    tops = {
        int(np.argmax(cosine(*controls.perfect_identity(query, gallery, seed, query_is_image=False))[0]))
        for seed in range(20)
    }
    assert tops == {1, 2, 3}


def test_the_oracle_ranks_by_person_then_by_what_was_asked():
    query = columns([3, 3], [0, 0], asked_clothes=[2, -1], asked=[[], [5, -1, 1]])
    gallery = columns([3, 3, 8, 3], [1, 2, 2, 4], worn=[[5, 0, 1], [5, 1, 0], [5, 1, 1], [4, 2, 0]])
    scores = cosine(*controls.perfect_oracle(query, gallery))
    assert np.argmax(scores[0]) == 1
    assert np.argsort(-scores[1]).tolist() == [0, 1, 3, 2]
    assert scores[0, 2] < scores[0, [0, 1, 3]].min()


def test_a_swapped_instruction_asks_for_another_outfit_of_the_person():
    protocol = protocol_of("procedural_ctcc")
    query = columns([0, 1, 2], [1, 1, 1], asked_clothes=[2, 2, 2])
    gallery = columns([0, 0, 0, 1, 9], [2, 1, 3, 2, 1], asked_clothes=[2, 1, 3, 2, 1])
    assert controls.swapped_instruction(query, gallery, protocol).tolist() == [1, -1, -1]


def test_a_swapped_sentence_does_not_describe_the_right_answer():
    """The sentence of image 1 fits the positive image 0 as well, that of image 2 does not."""
    protocol = protocol_of("procedural_li")
    query = columns([0, 1], [0, 0], asked=[[5, 1], [5, 1]])
    gallery = columns(
        [0, 0, 0, 1, 1], [2, 3, 4, 2, 3],
        worn=[[5, 1, 0], [5, 2, 0], [6, 2, 0], [5, 1, 0], [5, 2, 0]],
        asked=[[5, 1], [5], [6, 2], [5, 1], [5]],
    )  # fmt: skip
    assert controls.swapped_instruction(query, gallery, protocol).tolist() == [2, -1]


@pytest.mark.parametrize("identity", [[0, 1], [0, 0, 0, 1, 0, 0], [0, 1, 2, 0, 1, 2], [5, 5, 6, 6, 7, 7, 7]])
def test_another_person_is_found_wherever_there_is_one(identity):
    identity = np.array(identity)
    chosen = controls.another_person(identity)
    assert (chosen >= 0).all()
    assert (identity[chosen] != identity).all()
    assert controls.another_person(np.array([4, 4, 4])).tolist() == [-1, -1, -1]


def test_controls_are_ranked_as_built():
    """Cosine ranking of the oracle's and the identity's embeddings on a small strict set."""
    query = columns([0, 1], [1, 1], asked_clothes=[2, 3])
    gallery = columns([0, 0, 1, 1, 1], [1, 2, 1, 2, 3], asked_clothes=[1, 2, 1, 2, 3])
    protocol = protocol_of("procedural_ctcc")
    oracle = summarize(rank(*controls.perfect_oracle(query, gallery), query, gallery, protocol))
    identity = summarize(rank(*controls.perfect_identity(query, gallery, 0), query, gallery, protocol))
    assert oracle["mAP"] == 1
    assert identity["rank1"] == 0  # the image in the query's own clothes comes first
    assert identity["mAP"] <= 0.5


def cosine(query, gallery):
    return (query / np.linalg.norm(query, axis=1, keepdims=True)) @ (
        gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    ).T
