"""Every rule on cases small enough to check by hand; relations, their operators and links; names of rules."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.evaluation.protocols import ALIASES, PROTOCOLS, Protocol, ProtocolError, protocol_of
from irm_jax.evaluation.ranking import relations
from irm_jax.evaluation.ranking.relations import same_camera, same_file, same_identity, same_outfit, same_source

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


def rule_of(name: str) -> Protocol:
    """`union/NAME` and `captions/NAME`: against the union, by queries with and without an image."""
    rule = protocol_of(name.rpartition("/")[2])
    return rule.against_union(query_is_image=name.startswith("union/")) if "/" in name else rule


def relation(name: str) -> tuple[list[int], list[int]]:
    query = {key: column[:, None] for key, column in QUERY.items()}
    positive, junk = rule_of(name).relate(query, {key: column[None] for key, column in GALLERY.items()})
    return np.flatnonzero(positive[0]).tolist(), np.flatnonzero(junk[0]).tolist()


@pytest.mark.parametrize(
    ("name", "positive", "junk"),
    [
        ("market", [2, 4, 5], [0, 1, 3]),
        ("same_outfit", [2], [0, 1, 3, 4, 5]),
        ("other_outfit", [3, 4, 5], [0, 1, 2]),
        ("other_modality", [4, 5], [0, 1, 2, 3]),
        ("template_outfit", [3, 4], []),
        ("named_attributes", [0, 1, 3, 4], []),
        ("described_outfit", [0, 1, 2], [3, 4, 5]),
        ("procedural_trad+identity", [2, 4, 5], [0, 1, 3]),
        ("procedural_vi+identity", [2, 4, 5], [0, 1, 3]),
        ("procedural_li+identity", [2, 4, 5], [0, 1, 3]),
        ("procedural_t2i+identity", [0, 1, 2, 3, 4, 5], []),
        ("ltcc_general", [2, 4, 5], [0, 1, 3]),
        ("ltcc_cc", [4, 5], [0, 1, 2, 3]),
        ("ltcc_sc", [2], [0, 1, 3, 4, 5]),
        ("real2_ctcc", [2, 4, 5], [0, 1, 3]),
        ("requested_outfit", [4], [0, 1, 3]),
        ("sysu_all", [0, 1, 2, 3, 4, 5], []),
        ("identity", [0, 1, 2, 3, 4, 5], []),
        ("union/ltcc_cc", [4, 5], [0, 1, 2, 3, 7]),
        ("union/market", [2, 4, 5], [0, 1, 3, 7]),
        ("union/template_outfit", [3, 4], [0, 7]),
        ("union/named_attributes", [1, 3, 4], [0, 7]),
        ("captions/described_outfit", [0, 1, 2], [3, 4, 5]),
    ],
)
def test_rule_by_hand(name, positive, junk):
    assert relation(name) == (positive, junk)


@pytest.mark.parametrize("name", [*PROTOCOLS, *(f"union/{name}" for name in PROTOCOLS)])
def test_rules_work_alike_on_numpy_jax_and_lists_of_pairs(name):
    rule = rule_of(name)
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


@pytest.mark.parametrize("name", [*PROTOCOLS, *(f"union/{name}" for name in PROTOCOLS)])
def test_a_rule_states_the_columns_that_it_needs(name):
    """It reads no other one, and whatever is not negative agrees in a column that links."""

    class Noting(dict):
        def __getitem__(self, column):
            read.add(column)
            return super().__getitem__(column)

    read: set[str] = set()
    rule = rule_of(name)
    positive, junk = rule.relate(Noting(QUERY), Noting(GALLERY))
    assert read <= rule.columns
    assert {*rule.queries, *rule.gallery, *rule.draw} <= rule.columns
    linked = np.any([QUERY[column] == GALLERY[column] for column in rule.links], axis=0)
    assert not ((positive | junk) & ~linked).any()


def test_relations_are_joined_by_operators():
    both, either, neither = same_identity & same_camera, same_identity | same_file, ~(same_identity & same_camera)
    assert both.text == "same identity and same camera"
    assert (either.text, neither.text) == ("(same identity or same file)", "not (same identity and same camera)")
    assert (both.links, either.links, neither.links) == (("identity",), ("identity", "content"), ())
    assert (~same_identity | same_file).links == ()
    assert (~same_outfit & same_source).links == ("source",)
    assert both == relations.same("identity") & relations.same("camera", known=True) != either
    assert both.columns == {"identity", "camera"}


def test_descriptions_are_made_of_the_rule():
    assert PROTOCOLS["market"].description == "positive: same identity; junk: same identity and same camera"
    assert PROTOCOLS["identity"].description == "positive: same identity; no junk"
    assert PROTOCOLS["prcc_same_multi_shot"].description.endswith("; camera B against all of camera A")


def test_unknown_template_matches_nothing():
    query = {"instruction_clothes": np.array([-1, 1])}
    assert relations.wears_requested(query, {"clothes": np.array([-1, 1])}).tolist() == [False, True]


@pytest.mark.parametrize("name", ["same_outfit", "other_outfit", "described_outfit", "ltcc_cc", "ltcc_sc"])
def test_an_image_of_the_person_in_an_unknown_outfit_is_junk(name):
    """On either side, or on both."""
    query = {"identity": np.array([1, 1, 1]), "camera": np.array([0, 0, 0]), "clothes": np.array([-1, -1, 3])}
    gallery = {"identity": np.array([1, 1, 1]), "camera": np.array([1, 1, 1]), "clothes": np.array([-1, 3, -1])}
    positive, junk = PROTOCOLS[name].relate(query, gallery)
    assert (positive.tolist(), junk.tolist()) == ([False] * 3, [True] * 3)


def test_unknown_cameras_are_never_junk():
    query = {"identity": np.array([1]), "camera": np.array([-1])}
    positive, junk = PROTOCOLS["market"].relate(query, {"identity": np.array([1]), "camera": np.array([-1])})
    assert (positive.tolist(), junk.tolist()) == ([True], [False])


def test_names_of_earlier_versions_are_the_rules_that_they_were():
    assert protocol_of("market1501") is protocol_of("procedural_cc+identity") is PROTOCOLS["market"]
    assert protocol_of("llcm_v2n@released") is PROTOCOLS["llcm_v2n_released"]
    assert set(ALIASES.values()) <= set(PROTOCOLS)
    assert not set(ALIASES) & set(PROTOCOLS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("market1502", "unknown protocol 'market1502'; known are market, identity"),
        ("task_free/market", "known are market"),
        ("market@top500", "known are market"),
        ("market1501+distractors", "name the plain one; a test set that has `distractors` is ranked without and with"),
    ],
)
def test_unknown_protocols(name, message):
    with pytest.raises(ProtocolError, match=message):
        protocol_of(name)
