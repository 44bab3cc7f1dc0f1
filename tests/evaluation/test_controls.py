"""Controls on hand-made cases: chance in closed form, perfect knowledge, swapped instructions, another person."""

import itertools

import numpy as np
import pytest

from irm_jax.evaluation import controls
from irm_jax.evaluation.case import prepare
from irm_jax.evaluation.protocols import PROTOCOLS
from irm_jax.evaluation.ranking.metrics import average_precision, summarize
from irm_jax.evaluation.ranking.rank import Options
from irm_jax.evaluation.ranking.scores import EmbeddingScores, HostScores
from irm_jax.evaluation.records import Records

NAMED = 8


def columns(identity, clothes, asked_clothes=None, worn=None, asked=None, camera=None):
    """A few records; `worn` and `asked` are lists of slot values, -1 where unknown."""
    count = len(identity)

    def slots(values):
        table = np.full((count, NAMED), -1, np.int32)
        for row, record in enumerate(values or []):
            table[row, : len(record)] = record
        return table

    return Records.of(
        identity=identity, clothes=clothes, camera=camera if camera is not None else range(count),
        modality=np.zeros(count), attributes=slots(worn), instruction_attributes=slots(asked),
        instruction_clothes=asked_clothes if asked_clothes is not None else [-1] * count,
        instruction_key=np.arange(count),
    )  # fmt: skip


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
    found = controls.random_ranking(prepare(PROTOCOLS["same_outfit"], query, gallery))
    # query 0: image 1 is right, images 0 (its camera) and 2 (other outfit) are junk; 1: its one image is junk; 7: none
    assert found == pytest.approx(controls.chance(3, 1))
    found = controls.random_ranking(prepare(PROTOCOLS["market"], query, gallery))
    expected = [controls.chance(4, 2), controls.chance(5, 1)]
    assert found == pytest.approx({key: (expected[0][key] + expected[1][key]) / 2 for key in found})
    nobody = controls.random_ranking(prepare(PROTOCOLS["same_outfit"], columns([9], [1]), gallery))
    assert set(nobody) == set(found)
    assert not any(nobody.values())


def test_perfect_identity_prefers_the_persons_images_in_the_clothes_of_the_query():
    query = columns([3, 4], [7, -1])
    gallery = columns([4, 3, 3, 3, 9, 4], [7, 1, 7, 2, 7, -1])
    scores = judged(controls.perfect_identity(query, gallery, seed=0), query, gallery)
    assert np.argmax(scores[0]) == 2
    assert set(np.argsort(-scores[0])[:3]) == {1, 2, 3}
    assert set(np.argsort(-scores[1])[:2]) == {0, 5}
    # A caption shows no clothes: with the picture left out, all images of the person are as good.
    tops = {
        int(np.argmax(judged(controls.perfect_identity(query, gallery, s, query_is_image=False), query, gallery)[0]))
        for s in range(20)
    }
    assert tops == {1, 2, 3}


def test_the_oracle_ranks_by_person_then_by_what_was_asked():
    query = columns([3, 3], [0, 0], asked_clothes=[2, -1], asked=[[], [5, -1, 1]])
    gallery = columns([3, 3, 8, 3], [1, 2, 2, 4], worn=[[5, 0, 1], [5, 1, 0], [5, 1, 1], [4, 2, 0]])
    scores = judged(controls.perfect_oracle(query, gallery), query, gallery)
    assert np.argmax(scores[0]) == 1
    assert np.argsort(-scores[1]).tolist() == [0, 1, 3, 2]
    assert scores[0, 2] < scores[0, [0, 1, 3]].min()


def test_a_swapped_instruction_asks_for_another_outfit_of_the_person():
    protocol = PROTOCOLS["template_outfit"]
    query = columns([0, 1, 2], [1, 1, 1], asked_clothes=[2, 2, 2])
    gallery = columns([0, 0, 0, 1, 9], [2, 1, 3, 2, 1], asked_clothes=[2, 1, 3, 2, 1])
    assert controls.swapped_instruction(query, gallery, protocol).tolist() == [1, -1, -1]


def test_a_swapped_sentence_does_not_describe_the_right_answer():
    """The sentence of image 1 fits the positive image 0 as well, that of image 2 does not."""
    protocol = PROTOCOLS["named_attributes"]
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
    """The oracle and the identity on a small strict set."""
    query = columns([0, 1], [1, 1], asked_clothes=[2, 3])
    gallery = columns([0, 0, 1, 1, 1], [1, 2, 1, 2, 3], asked_clothes=[1, 2, 1, 2, 3])
    oracle = figures(controls.perfect_oracle(query, gallery), query, gallery)
    identity = figures(controls.perfect_identity(query, gallery, 0), query, gallery)
    assert oracle["mAP"] == 1
    assert identity["rank1"] == 0  # the image in the query's own clothes comes first
    assert identity["mAP"] <= 0.5


@pytest.mark.parametrize("query_is_image", [True, False])
def test_knowing_people_ranks_as_embeddings_of_one_column_a_person_do(query_is_image):
    """The slow twin: people, outfits and noise one beside the other, compared by cosine. Some outfits are unknown."""
    random = np.random.default_rng(5)
    query, gallery = (
        columns(random.integers(0, 7, n), random.integers(-1, 4, n), random.integers(-1, 4, n)) for n in (30, 200)
    )
    sides = []
    for number, side in enumerate((query, gallery)):
        noise = np.random.default_rng(9 + number).standard_normal((len(side), 16)).astype(np.float32)
        people = (side.identity[:, None] == np.arange(7)).astype(np.float32)
        outfits = (side.clothes[:, None] == np.arange(4)).astype(np.float32)
        outfits *= 0.3 * (number or query_is_image)
        sides.append(np.concatenate([people, outfits, 0.01 * noise], axis=1))
    found = figures(controls.perfect_identity(query, gallery, 9, query_is_image=query_is_image), query, gallery)
    case = prepare(PROTOCOLS["template_outfit"], query, gallery)
    assert found == summarize(case.rank(EmbeddingScores(*sides), Options(query_block=8)))
    assert 0.1 < found["mAP"] < 0.9


def judged(judge, query, gallery):
    return judge(np.arange(len(query)), np.arange(len(gallery)))


def figures(judge, query, gallery):
    case = prepare(PROTOCOLS["template_outfit"], query, gallery)
    return summarize(case.rank(HostScores(judge), Options(query_block=8)))
