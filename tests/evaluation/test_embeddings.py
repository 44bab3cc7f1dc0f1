"""`irm_jax.evaluate`: every protocol as `--mode evaluate` has it from shards, or a message."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from test_test_sets import write

import irm_jax
from data_pipelines import tasks
from data_pipelines.dataset.reader import open_dataset
from irm_jax.evaluation.protocols import PROTOCOLS, ProtocolError
from irm_jax.evaluation.ranking.metrics import summarize
from irm_jax.evaluation.ranking.rank import Options
from irm_jax.evaluation.ranking.scores import EmbeddingScores
from irm_jax.evaluation.test_sets import Entry, Loader, TestSet

pytestmark = pytest.mark.usefixtures("quick_programs", "one_device")
REFUSED = {"template_outfit", "requested_outfit", "named_attributes"}
"""Rules that read what an instruction asks for."""
TAKEN = tuple(name for name in PROTOCOLS if name not in REFUSED)


def rows(seed: int, count: int, unknown: int) -> list[tuple[Any, ...]]:
    """Records for `write`, in no order of people and cameras; files of one person and camera are in order."""
    draw = np.random.default_rng(seed)
    return [
        ("night", int(draw.integers(5)), int(draw.choice([0, 1, 2, 3, 4, 5, unknown])), bool(draw.integers(2)),
         1000 * seed + number, "", int(draw.choice([0, 1, -1])))
        for number in range(count)
    ]  # fmt: skip


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several devices change no figure (ranking/test_rank.py), but compile longer."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> TestSet:
    folder = tmp_path_factory.mktemp("shards")
    write(folder, "night", "cc", "night", {"query": rows(1, 30, -1), "gallery": rows(2, 90, -2)})
    dataset = open_dataset(folder, "night")
    return Loader().load(Entry("night", tasks.task("cc"), TAKEN), (dataset, "query"), (dataset, "gallery"))


@pytest.fixture(scope="module")
def given(built: TestSet) -> dict[str, Any]:
    """The same as `irm_jax.evaluate` takes it: names of people, None for what is not known."""
    found: dict[str, Any] = {}
    for side, part in (("query", built.query), ("gallery", built.gallery)):
        names, index = part.dataset.people, part.index
        found[side] = np.random.default_rng(len(part)).standard_normal((len(part), 4)).astype(np.float32)
        found[f"{side}_ids"] = [names[number] for number in index.identity]
        found[f"{side}_camera_numbers"] = [c if c >= 0 else None for c in index.camera.tolist()]
        found[f"{side}_clothes"] = [f"outfit {c}" if c >= 0 else None for c in index.clothes.tolist()]
        found[f"{side}_modality"] = index.modality
    return found


@pytest.mark.parametrize("name", TAKEN)
def test_figures_are_those_of_the_built_set(built, given, name):
    case = built.cases[TAKEN.index(name)]
    expected = case.rank(EmbeddingScores(given["query"], given["gallery"]), Options(top_k=3))
    found = irm_jax.evaluate(**given, protocol=name, top_k=3, samples=10)
    assert found.figures == summarize(expected)
    assert 0 < found.mAP < 1
    np.testing.assert_array_equal(found.ranking.ap, expected.ap)
    np.testing.assert_array_equal(found.queries, case.selection.query)
    rows_of = np.where(expected.top_ids >= 0, case.selection.gallery[expected.top_ids], -1)
    np.testing.assert_array_equal(found.ranking.top_ids, rows_of)


def test_a_rule_whose_columns_are_missing_is_refused(given):
    for name in REFUSED:
        with pytest.raises(ProtocolError, match=rf"{name} .*reads .*evaluate\(\) does not take it"):
            irm_jax.evaluate(**given, protocol=name)
    people = {name: given[name] for name in ("query", "gallery", "query_ids", "gallery_ids")}
    cameras = {f"{side}_cams": given[f"{side}_camera_numbers"] for side in ("query", "gallery")}
    for name in ("same_outfit", "ltcc_cc", "described_outfit"):
        with pytest.raises(ProtocolError, match=rf"{name} .*clothes: give query_clothes and gallery_clothes"):
            irm_jax.evaluate(**people, **cameras, protocol=name)
    for name in ("prcc_same_multi_shot", "vcclothes_cc", "sysu_all", "llcm_v2n"):
        with pytest.raises(ProtocolError, match=r"camera_number.*give query_camera_numbers and gallery_camera_numbers"):
            irm_jax.evaluate(**people, **cameras, protocol=name)


def two(protocol: str = "market", **labels: Any) -> Any:
    """Two queries and four images of two people under two cameras; the second person's image is nearest to both."""
    people = {"query_ids": ["ann", "bob"], "gallery_ids": ["ann", "bob", "ann", "bob"]}
    cameras = {"query_cams": [0, 0], "gallery_cams": [1, 1, 1, 1]}
    query, gallery = np.eye(2), np.array([[0.1, 1], [0, 2], [0.2, 1], [0.3, 1]])
    return irm_jax.evaluate(query, gallery, protocol=protocol, samples=10, **people | cameras | labels)


def test_an_unknown_label_is_nobody_elses():
    nan = float("nan")
    for query, gallery in ((None, [0, None, 1, None]), (nan, [0, nan, 1, nan]), (nan, np.array([0, nan, 1, nan]))):
        found = two(query_ids=[query, 1], gallery_ids=gallery)
        assert found.ranking.num_positives.tolist() == [0, 1]
    for unknown in (None, nan, -1):
        clothes = {"query_clothes": [unknown, 5], "gallery_clothes": [unknown, unknown, unknown, 5]}
        assert two("described_outfit", **clothes).ranking.num_positives.tolist() == [0, 1]
        cameras = two(query_cams=[unknown, 0], gallery_cams=[unknown, 0, 1, 1])
        assert cameras.ranking.num_positives.tolist() == [2, 1]


def test_labels_of_every_kind_of_list_are_equal():
    expected = two().ranking.ap.tolist()
    for cams in (np.array([0, 1]), np.array([0.0, 1.0]), [np.int64(0), np.float32(1)], [False, True], ("a", "b"),
                 np.array(["a", "b"]), np.array(["a", None], object)):  # fmt: skip
        first, second = cams[:1], cams[1:]
        same = two(query_cams=[*first, *first], gallery_cams=np.repeat(np.asarray(second), 4))
        assert same.ranking.ap.tolist() == expected
    modality = {"query_modality": ["visible"] * 2, "gallery_modality": [1, 1, 0, np.int8(1)]}
    assert two("other_modality", **modality).ranking.num_positives.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"query_ids": None}, "query_ids is missing; give query_ids and gallery_ids"),
        ({"query_ids": "ab"}, "query_ids is a str; give a list"),
        ({"query_ids": {"ann", "bob"}}, "query_ids is a set"),
        ({"query_ids": ["ann"]}, "1 query_ids for 2 embeddings"),
        ({"query_ids": np.array([[1], [2]])}, r"an array \(2, 1\) as query_ids for 2 embeddings"),
        ({"query_ids": [["ann"], ["bob"]]}, r"query_ids\[0\] is a list"),
        ({"query_cams": ["0", "0"]}, "query_cams and gallery_cams are numbers and str, never equal"),
        ({"query_cams": None}, "query_cams is missing; give query_cams and gallery_cams"),
        ({"query_modality": ["visible", "dark"], "gallery_modality": [1] * 4}, "modality 'dark' is none: 0 or 'visi"),
        ({"query_modality": [0, None], "gallery_modality": [1] * 4}, "modality None is none"),
        ({"query_camera_numbers": [0, 0.5], "gallery_camera_numbers": [1] * 4}, "camera number 0.5 is none"),
        ({"query_camera_numbers": ["a", "b"], "gallery_camera_numbers": ["c"] * 4}, "camera number '.' is none"),
        ({"protocol": None}, "unknown protocol 'None'; known are market"),
        ({"top_k": -1}, "top_k = -1"),
        ({"gallery": np.zeros((0, 2))}, r"gallery embeddings must be a matrix .* not empty, not \(0, 2\)"),
        ({"query": np.zeros(2)}, "query embeddings must be a matrix"),
    ],
)
def test_what_cannot_be_ranked_is_named(labels, message):
    whole = {"query": np.eye(2), "gallery": np.ones((4, 2)), "query_ids": ["ann", "bob"],
             "gallery_ids": ["ann", "bob"] * 2, "query_cams": [0, 0], "gallery_cams": [1] * 4}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        irm_jax.evaluate(**whole | labels)


def test_likely_mistakes_are_warned_of(caplog):
    two()
    assert not caplog.text
    people = np.eye(2), ["ann", "bob"]
    found = irm_jax.evaluate(people[0], people[0], people[1], people[1], samples=10)
    assert found.mAP == 1
    assert "no camera is known: no image is left out" in caplog.text
    assert "right answers with the very embedding of their query: 2" in caplog.text
    caplog.clear()
    numbers = {"query_camera_numbers": [3, 4], "gallery_camera_numbers": [3, 3, 4, 4]}
    two("vcclothes_cc", **numbers | {"query_camera_numbers": [3, 3], "gallery_camera_numbers": [2, 2, 2, 2]})
    assert "none is 0: camera_numbers count from 0" in caplog.text
