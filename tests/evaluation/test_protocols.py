"""Every rule on cases small enough to check by hand, and its variants."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.procedural.benchmark import Benchmark
from irm_jax.evaluation import protocols, test_sets
from irm_jax.evaluation.protocols import PROTOCOLS, protocol_of
from irm_jax.evaluation.ranking import related_pairs, relations, tau_similarity

SLOTS = 8


def named(*values: int) -> list[int]:
    return [*values, *[-1] * (SLOTS - len(values))]


QUERY = {
    "identity": np.array([5]),
    "camera": np.array([0]),
    "camera_number": np.array([0]),
    "source": np.array([0]),
    "clothes": np.array([1]),
    "modality": np.array([0]),
    "instruction_clothes": np.array([2]),
    "instruction_attributes": np.array([named(3, -1, 7)]),
    "content": np.array([100], np.uint64),
    "instruction_key": np.array([9], np.uint32),
}
# Each image: identity, camera, clothes, modality, attributes, content.
IMAGES = [
    (5, 0, 1, 0, named(3, 0, 7), 100),  # 0 the query's own image, once more
    (5, 0, 1, 0, named(3, 0, 7), 1),  # 1 same camera, same outfit
    (5, 1, 1, 0, named(3, 0, 0), 2),  # 2 other camera, same outfit
    (5, 0, 2, 0, named(3, 4, 7), 3),  # 3 same camera, other outfit (the one the template shows)
    (5, 1, 2, 1, named(3, 4, 7), 4),  # 4 other camera, other outfit, infrared
    (5, 2, 3, 1, named(0, 4, 7), 5),  # 5 other camera, third outfit, infrared
    (6, 1, 1, 1, named(3, 0, 7), 6),  # 6 another person in the same outfit
    (6, 2, 2, 0, named(3, 4, 7), 100),  # 7 the query's own file under another, unlinked name
]
GALLERY = {
    name: np.array([image[i] for image in IMAGES])
    for i, name in enumerate(("identity", "camera", "clothes", "modality", "attributes", "content"))
}
GALLERY |= {"camera_number": GALLERY["camera"], "source": np.zeros(len(IMAGES), int)}
GALLERY["content"] = GALLERY["content"].astype(np.uint64)


def relation(name: str) -> tuple[list[int], list[int]]:
    query = {key: column[:, None] for key, column in QUERY.items()}
    positive, junk = protocol_of(name).relate(query, {key: column[None] for key, column in GALLERY.items()})
    return np.flatnonzero(positive[0]).tolist(), np.flatnonzero(junk[0]).tolist()


@pytest.mark.parametrize(
    ("name", "positive", "junk"),
    [
        ("market1501", [2, 4, 5], [0, 1, 3]),
        ("procedural_trad", [2], [0, 1, 3, 4, 5]),
        ("procedural_cc", [3, 4, 5], [0, 1, 2]),
        ("procedural_vi", [4, 5], [0, 1, 2, 3]),
        ("procedural_ctcc", [3, 4], []),
        ("procedural_li", [0, 1, 3, 4], []),
        ("procedural_t2i", [0, 1, 2], [3, 4, 5]),
        ("procedural_trad+identity", [2, 4, 5], [0, 1, 3]),
        ("procedural_vi+identity", [2, 4, 5], [0, 1, 3]),
        ("procedural_li+identity", [2, 4, 5], [0, 1, 3]),
        ("procedural_t2i+identity", [0, 1, 2, 3, 4, 5], []),
        ("ltcc_general", [2, 4, 5], [0, 1, 3]),
        ("ltcc_cc", [4, 5], [0, 1, 2, 3]),
        ("ltcc_sc", [2], [0, 1, 3, 4, 5]),
        ("real2_ctcc", [2, 4, 5], [0, 1, 3]),
        ("real2_li+clothes", [4], [0, 1, 3]),
        ("sysu_all", [0, 1, 2, 3, 4, 5], []),
        ("cuhk_pedes", [0, 1, 2, 3, 4, 5], []),
        ("task_free/ltcc_cc", [4, 5], [0, 1, 2, 3, 7]),
        ("task_free/market1501", [2, 4, 5], [0, 1, 3, 7]),
        ("task_free/procedural_ctcc", [3, 4], [0, 7]),
        ("task_free/procedural_li", [1, 3, 4], [0, 7]),
        ("task_free/procedural_t2i", [0, 1, 2], [3, 4, 5]),
    ],
)
def test_rule_by_hand(name, positive, junk):
    assert relation(name) == (positive, junk)


def test_every_procedural_task_has_both_targets():
    for task in ("trad", "cc", "vi", "ctcc", "li", "t2i"):
        for name in (f"procedural_{task}", f"procedural_{task}+identity"):
            assert (PROTOCOLS[name].task, PROTOCOLS[name].setting) == (task, "task_specific")
            assert PROTOCOLS[name].gallery_has_instruction == (task != "t2i")


@pytest.mark.parametrize("name", [*PROTOCOLS, *(f"task_free/{name}" for name in PROTOCOLS)])
def test_rules_work_alike_on_numpy_jax_and_lists_of_pairs(name):
    rule = protocol_of(name)
    query = {key: column[:, None] for key, column in QUERY.items()}
    expected = rule.relate(query, {key: column[None] for key, column in GALLERY.items()})
    arrays = [
        {key: jnp.asarray(column.astype(np.int32)) for key, column in columns.items()} for columns in (query, GALLERY)
    ]
    for got, mask in zip(rule.relate(arrays[0], {k: v[None] for k, v in arrays[1].items()}), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(got), mask)
    pairs = {key: np.repeat(column, len(IMAGES), axis=0) for key, column in QUERY.items()}
    for got, mask in zip(rule.relate(pairs, GALLERY), expected, strict=True):
        np.testing.assert_array_equal(got, mask[0])


def test_unknown_template_matches_nothing():
    asked = {"instruction_clothes": np.array([-1, 1])}
    shown = {"clothes": np.array([-1, 1])}
    assert relations.wears_template(asked, shown).tolist() == [False, True]


def test_unknown_cameras_are_never_junk():
    query = {"identity": np.array([1]), "camera": np.array([-1])}
    positive, junk = relations.market_rule(query, {"identity": np.array([1]), "camera": np.array([-2])})
    assert (positive.tolist(), junk.tolist()) == ([True], [False])


def test_names_lead_to_variants():
    compat = protocol_of("market1501@top500")
    assert (compat.name, compat.ap_topk, compat.setting) == ("market1501@top500", 500, "task_specific")
    both = protocol_of("task_free/procedural_cc+identity@top20")
    assert (both.name, both.ap_topk, both.setting) == ("task_free/procedural_cc+identity@top20", 20, "task_free")
    for unknown in ("market1502", "market1501@top", "market1501@topfive", "task_free/"):
        with pytest.raises(ValueError, match="known are procedural_trad"):
            protocol_of(unknown)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        protocols.cut(PROTOCOLS["market1501"], 0)
    with pytest.raises(ValueError, match="'junk' or 'negative'"):
        relations.strict(relations.same_outfit, "ignored")


def columns_of(random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {
        "identity": random.integers(0, 6, count),
        "camera": random.integers(0, 3, count),
        "content": random.integers(0, 30, count).astype(np.uint64),
    }


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 15),
    images=st.integers(1, 60),
    at_once=st.sampled_from([1, 7, 100_000]),
)
def test_linked_pairs_are_all_related_pairs(seed, queries, images, at_once):
    """Looking only at pairs that share a linking column finds what looking at every pair finds, in any piece size."""
    random = np.random.default_rng(seed)
    query, gallery = columns_of(random, queries), columns_of(random, images)
    rows = random.permutation(queries)
    rule = protocols.task_free(PROTOCOLS["market1501"])
    masks = rule.relate({k: v[:, None] for k, v in query.items()}, {k: v[None] for k, v in gallery.items()})
    same = query["identity"][:, None] == gallery["identity"]
    original = related_pairs.PAIRS_AT_ONCE
    related_pairs.PAIRS_AT_ONCE = at_once
    try:
        for protocol in (rule, dataclasses.replace(rule, linked_by=())):
            pairs = related_pairs.RelatedPairs(protocol, query, gallery, (queries, images), person=True)
            found = pairs.of(rows)
            for expected, chosen in zip(
                (*masks, same & ~masks[1]), (found.positive, found.junk, found.person), strict=True
            ):
                got = np.zeros((queries, images), bool)
                got[rows[found.row[chosen]], found.column[chosen]] = True
                np.testing.assert_array_equal(got, expected)
            assert (np.diff(found.row.astype(np.int64) * images + found.column) > 0).all()
            positives, junk, ranked = pairs.counts()
            np.testing.assert_array_equal(positives, masks[0].sum(axis=1))
            np.testing.assert_array_equal(junk, masks[1].sum(axis=1))
            np.testing.assert_array_equal(ranked, (masks[0] | (same & ~masks[1])).sum(axis=1))
    finally:
        related_pairs.PAIRS_AT_ONCE = original


def test_attribute_similarity_counts_slots_known_of_both():
    asked = np.array([named(1, 2, 3, 0)] * 5)
    shown = np.array([named(1, 2, 3, 1), named(1, -1, 0, -1), named(-1, -1, -1, -1, 6), named(1, 2, 3, 0), named(0, 0)])
    query = {"instruction_outfit": asked, "instruction_key": np.array([1, 1, 1, 1, 1])}
    gallery = {"instruction_outfit": shown, "instruction_key": np.array([2, 2, 2, 2, 1])}
    # The last pair's instructions are the same ones, whatever the slots say.
    assert tau_similarity.ATTRIBUTES(query, gallery).tolist() == [0.75, 0.5, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_every_tau_keeps_other_positives_of_the_drawn_instructions(task):
    """data.md section 6: owned outfits agree in 3, 2 and 0 of four slots, also where a sentence names but two."""
    benchmark = Benchmark(train_people=2, test_people=24)
    shots = benchmark.shots(task)

    def columns(split):
        rows = [shot.row for shot in shots[split]]
        number = benchmark.wardrobe.number
        slots = {"attributes": [row.outfit for row in rows], "instruction_attributes": [row.named for row in rows]}
        numbers = {
            "clothes": [number(row.outfit) for row in rows],
            "instruction_clothes": [number(row.wanted) for row in rows],
            "identity": [int(shot.person.rpartition("p")[2]) for shot in shots[split]],
        }
        return {name: np.array(values, np.int32) for name, values in (slots | numbers).items()}

    query, gallery = columns("query"), columns("gallery")
    test_sets.add_instruction_outfits(query, gallery)
    own = query["identity"][:, None] == gallery["identity"]
    asked, shown = query["instruction_outfit"][:, None], gallery["instruction_outfit"][None]
    keys = {"instruction_key": np.array(1)}, {"instruction_key": np.array(2)}
    similarity = tau_similarity.ATTRIBUTES(
        {"instruction_outfit": asked, **keys[0]}, {"instruction_outfit": shown, **keys[1]}
    )[own]
    assert set(similarity.tolist()) == {0.0, 0.25, 0.5, 0.75, 1.0}
    kept = [(similarity >= tau).mean() for tau in (0.5, 0.7, 0.9)]
    assert 1 > kept[0] > kept[1] + 0.1 > kept[2] + 0.2


def test_clothes_similarity():
    query = {"instruction_clothes": np.array([1, 1, -1, -1]), "instruction_key": np.array([1, 1, 1, 2])}
    gallery = {"instruction_clothes": np.array([1, 2, -1, -1]), "instruction_key": np.array([2, 2, 2, 2])}
    assert tau_similarity.CLOTHES(query, gallery).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("similarity", "column", "known"),
    [
        (tau_similarity.ATTRIBUTES, "instruction_outfit", named(-1, 3)),
        (tau_similarity.CLOTHES, "instruction_clothes", 1),
    ],
)
def test_instructions_that_tell_nothing_have_no_map_tau(similarity, column, known):
    """Unless there is one instruction for all, under which mAP_tau = mAP."""
    unknown = {
        "instruction_outfit": np.array([named(), named()]), "instruction_clothes": np.array([-1, -1]),
        "instruction_key": np.array([1, 2]),
    }  # fmt: skip
    assert f"no query's instruction tells its {similarity.source}" in similarity.missing(unknown, unknown)
    told = {**unknown, column: np.array([unknown[column][0], known])}
    assert similarity.missing(told, unknown) is None
    assert similarity.missing(unknown, told) is not None
    constant = {**unknown, "instruction_key": np.array([1, 1])}
    assert similarity.missing(constant, constant) is None
    assert tau_similarity.similarity_of("model").missing(unknown, unknown) is None


def test_feature_similarity_is_the_cosine():
    similarity = tau_similarity.feature_similarity("frozen_encoder")
    query = {"instruction_feature": np.float32([[3, 4], [1, 0], [0, 0]]), "instruction_key": np.array([1, 1, 1])}
    gallery = {"instruction_feature": np.float32([[4, 3], [0, 2], [1, 1]]), "instruction_key": np.array([2, 1, 2])}
    np.testing.assert_allclose(similarity(query, gallery), [24 / 25, 1, 0], atol=1e-12)
    assert similarity.source == "frozen_encoder"
