"""The page of one query: lists by hand, confusing people by loops, axes by another decomposition, a whole page."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath
from page_reader import Page
from report_example import jpeg, person

from irm_jax.errors import UserError
from irm_jax.evaluation.embed import of_length_one
from irm_jax.evaluation.records import Records
from irm_jax.evaluation.report import explain, gallery_map
from irm_jax.evaluation.report.results import Rollout

IDENTITY = np.array([7, 7, 3, 3, 3, 5, 5, 9])


@pytest.fixture(autouse=True)
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [jpeg(person(np.random.default_rng(number))) for number in range(40)]
    monkeypatch.setattr(explain, "picture_of", lambda split, record: drawn[record])


def scored(asked: int = 7, **changes: Any) -> explain.Scored:
    """Eight gallery images of four people; record 0 is the query's own file."""
    identity = changes.pop("identity", IDENTITY)
    count = len(identity)
    records = Records.of(identity=identity, camera_number=np.arange(count) % 3 - 1)
    names = [f"set/p{number}" for number in range(identity.max() + 1)]
    manifest = SimpleNamespace(namespace="procedural", source={})
    split = SimpleNamespace(
        records=records, index=SimpleNamespace(identity=identity),
        dataset=SimpleNamespace(people=names, manifest=manifest, folder=epath.Path("/nowhere/own/mine/1.0.0")),
    )  # fmt: skip
    gallery = of_length_one(np.random.default_rng(0).normal(size=(count, 6)))
    query = of_length_one(np.random.default_rng(1).normal(size=(2, 6)))
    scores = changes.pop("scores", gallery @ query.T)
    scores[0] = -np.inf
    return explain.Scored(SimpleNamespace(name="set", gallery=split, query=split), gallery, query, scores, asked)


def hand_made() -> explain.Scored:
    without = [0.0, 0.2, 0.9, 0.8, 0.1, 0.7, 0.6, 0.3]
    under = [0.0, 0.9, 0.3, 0.8, 0.1, 0.7, 0.2, 0.4]
    return scored(scores=np.stack([without, under], axis=1))


def test_the_lists_say_what_moved() -> None:
    found = hand_made()
    without, under = explain.rank_lists(found, 3)
    assert [(round(hit.score, 1), hit.relation, hit.caption) for hit in without] == [
        (0.9, "negative", "rank 5 with"), (0.8, "negative", "same rank"), (0.7, "negative", "same rank"),
    ]  # fmt: skip
    assert [(round(hit.score, 1), hit.relation, hit.caption) for hit in under] == [
        (0.9, "positive", "rank 6 without"), (0.8, "negative", "same rank"), (0.7, "negative", "same rank"),
    ]  # fmt: skip
    kept, right = explain.changes(found, 3)
    assert kept.startswith("2 of the 3 best images stay among the best, 1 are new.")
    assert right == (
        "The first image of the same person stands at rank 6 without and 1 with the instruction; among the 3 best are "
        "0 and 1 of that person's 1 image."
    )
    assert {hit.relation for hits in explain.rank_lists(scored(-1), 9) for hit in hits} == {"unknown"}
    assert all(len(hits) == 7 for hits in explain.rank_lists(found, 99))  # the query's own file is in no list
    assert "who is right is not known" in explain.changes(scored(-1), 3)[1]


def test_similar_people_stand_once_each_by_their_best_image() -> None:
    people = explain.similar_people(hand_made())
    assert [(one.name, round(one.score, 1)) for one in people] == [
        ("set/p7", 0.9), ("set/p3", 0.8), ("set/p5", 0.7), ("set/p9", 0.4),
    ]  # fmt: skip
    assert people[0].words == "best of 1 image, camera 0"
    assert people[1].words == "best of 3 images, unknown camera"
    named = hand_made()
    vars(named)["camera_names"] = {0: "front door"}  # as of an own table
    assert explain.similar_people(named)[0].words == "best of 1 image, camera front door"


def test_confusing_people_by_loops() -> None:
    found = scored(3)
    cosine = found.gallery @ found.gallery.T
    own = [2, 3, 4]
    expected = {}
    for other in (7, 5, 9):
        images = [i for i in range(1, 8) if IDENTITY[i] == other]
        best = [max(cosine[i, j] for j in images) for i in own]
        at_home = [max(cosine[i, j] for j in own if j != i) for i in own]
        expected[f"set/p{other}"] = np.mean(best), sum(b > a for a, b in zip(at_home, best, strict=True))
    people = explain.confusing_people(found)
    assert [one.name for one in people] == sorted(expected, key=lambda name: -expected[name][0])
    for one in people:
        mean, nearer = expected[one.name]
        assert one.score == pytest.approx(mean)
        assert one.words == f"nearer than the own images for {nearer} of 3"
    # The query's own file is the only image of its person.
    assert explain.confusing_people(scored(7, identity=np.array([7, 3, 3, 3, 3, 5, 5, 9]))) == []


def test_main_axes_are_those_of_the_covariance() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 5)) * [5, 3, 1, 1, 1]
    points, share = gallery_map.main_axes(rows)
    values = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), values[:2])
    assert share == pytest.approx(values[:2].sum() / values.sum())
    assert gallery_map.main_axes(np.ones((3, 4)))[0].tolist() == [[0, 0]] * 3
    assert gallery_map.most_frequent(np.array([4, 4, 2, 2, 2, -1, 6]), [6, 8], 2) == [6, 2]


def test_a_map_names_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rows = np.random.default_rng(0).normal(size=(12, 4))
    found = gallery_map.project(rows, "auto", 0)
    assert "(PCA), which hold" in found.words
    assert "pip install 'irm_jax[explain]'" in found.words
    with pytest.raises(UserError, match=r"needs scikit-learn: pip install 'irm_jax\[explain\]'"):
        gallery_map.project(rows, "tsne", 0)


@pytest.mark.nightly
def test_neighbours_stay_together_in_tsne() -> None:
    pytest.importorskip("sklearn")
    centres = np.eye(6)[np.repeat(np.arange(3), 20)]
    rows = of_length_one(centres + 0.05 * np.random.default_rng(0).normal(size=centres.shape))
    found = gallery_map.project(rows, "tsne", 0)
    distance = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(axis=1) // 20 == np.arange(60) // 20).all()


@pytest.mark.parametrize("asked", [3, -1])
def test_the_page_is_whole(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    rng = np.random.default_rng(0)
    found, words = scored(asked, identity=np.arange(40) // 3), [("ignore", 0.2), ("clothes", 0.4)]
    monkeypatch.setattr(explain, "score", lambda *given: found)
    looks = [Rollout(name, person(rng), rng.random((8, 4)), words) for name in ("without", "with")]
    monkeypatch.setattr(explain, "attention", lambda *given: looks)
    question = explain.Question("q.jpg", person(rng), "ignore <clothes>", b"")
    options = explain.Options(points=20, map="pca")
    text = explain.page(None, found.test, question, options, {"step": 150})
    page = Page(text)
    assert page.open == []
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == [
        "question", "ranks", "attention", "people", "map", "use",
    ]  # fmt: skip
    words = " ".join(page.text)
    for expected in (
        "ignore <clothes>",
        "any image of this person",
        "20 of 40 images are drawn",
        "drawn by this project",
    ):
        assert expected in words
    assert ("The query's own file is left out" in words) == (asked >= 0)
    lists = [len(page.having(relation)) for relation in ("positive", "negative", "unknown")]
    assert (lists[2] == 0) == (asked >= 0)
    assert sum(lists) == 2 * 10 + 2 * 8 + 2 * (asked >= 0)  # two lists, two rows of people, and a key
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "use"} == {
        attrs["id"] for tag, attrs in page.tags if tag == "image"
    }
    assert "http" not in text.replace("http-equiv", "")
