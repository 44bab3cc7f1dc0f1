"""The published protocols on cases worked out by hand, and all of them against the slow twin."""

from __future__ import annotations

import random
from typing import Any

import jax
import numpy as np
import protocol_twin
import pytest
from jax.sharding import Mesh

from irm_jax.config import data_sets
from irm_jax.evaluation import compare
from irm_jax.evaluation.case import prepare
from irm_jax.evaluation.controls import random_ranking
from irm_jax.evaluation.figures import Figure
from irm_jax.evaluation.protocols import ProtocolError, protocol_of
from irm_jax.evaluation.ranking import rank
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.scores import EmbeddingScores, Selection
from irm_jax.evaluation.records import Records

ONE = Mesh(np.array(jax.devices()[:1]), ("data",))
"""Several devices change no figure (test_ranking.py), but compile longer."""
FIELDS = {
    "person": 0, "camera": 0, "clothes": 0, "infrared": False, "file": "", "asked": -1, "distractor": False,
    "content": 0, "source": 0,
}  # fmt: skip


def records(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Records with a file name and content of their own each."""
    return [{**FIELDS, "file": f"{i:03}.png", "content": 1000 + i, **row} for i, row in enumerate(rows)]


def columns(rows: list[dict[str, Any]]) -> Records:
    """The records of a split as `test_sets` makes them."""
    order = np.empty(len(rows), np.int64)
    order[sorted(range(len(rows)), key=lambda i: (rows[i]["person"], rows[i]["camera"], rows[i]["file"]))] = range(
        len(rows)
    )
    one = {name: np.array([row[name] for row in rows]) for name in FIELDS if name != "file"}
    camera = np.where(one["camera"] >= 0, one["camera"] + 4096 * one["source"], one["camera"])
    return Records.of(
        identity=one["person"], camera=camera, camera_number=one["camera"], clothes=one["clothes"],
        modality=one["infrared"], instruction_clothes=one["asked"], source=one["source"], dataset=one["source"],
        distractor=one["distractor"], order=order, content=one["content"],
    )  # fmt: skip


def ranked(
    name: str, query: Records, gallery: Records, q: np.ndarray, g: np.ndarray, *, top_k: int = 5,
    distractors: bool = False,
) -> tuple[Ranking, Selection]:  # fmt: skip
    """Ranks embeddings, the nearest first."""
    case = prepare(protocol_of(name), query, gallery, distractors=distractors)
    scores = EmbeddingScores(q, g, "euclidean", ONE)
    return case.rank(scores, rank.Options(top_k=top_k, query_block=8)), case.selection


def run(
    name: str, queries: list[dict], gallery: list[dict], at_query: Any, at_gallery: Any, *, distractors: bool = False
):
    """Ranks points on a line, the nearest first."""
    q, g = (np.float32(points)[:, None] for points in (at_query, at_gallery))
    return ranked(name, columns(queries), columns(gallery), q, g, distractors=distractors)


def test_prcc_by_hand():
    """Queries: B1 of person 1, C1 of person 1, a picture of camera A. Gallery: A of persons 1, 1, 2, and one of C."""
    queries = records({"person": 1, "camera": 1}, {"person": 1, "camera": 2}, {"person": 2, "camera": 0})
    gallery = records(
        {"person": 1, "camera": 0, "file": "b"}, {"person": 2, "camera": 0, "file": "c"},
        {"person": 1, "camera": 0, "file": "a"}, {"person": 1, "camera": 2},
    )  # fmt: skip
    points = [0, 0, 0], [1, 2, 3, 0]  # the nearest is the picture of camera C, which is not searched
    for name, record in (("prcc_same", 0), ("prcc_cross", 1)):
        ranking, chosen = run(f"{name}_multi_shot", queries, gallery, *points)
        assert (chosen.query.tolist(), chosen.gallery.tolist()) == ([record], [0, 1, 2])
        assert ranking.ap.tolist() == [pytest.approx((1 / 1 + 2 / 3) / 2)]

        ranking, chosen = run(f"{name}_single_shot", queries, gallery, *points)
        # Person 1 is drawn first, from its sorted files "a" (third, behind person 2: AP 1/2) and "b" (first: AP 1).
        nearest = np.array([random.Random(trial).choice("ab") == "b" for trial in range(10)])
        assert 0 < nearest.sum() < 10
        ap = np.where(nearest, 1.0, 0.5)
        assert ranking.ap.tolist() == [pytest.approx(ap.mean())]
        assert ranking.rank1.tolist() == [pytest.approx(nearest.mean())]
        assert ranking.trial_ranks.tolist() == [np.where(nearest, 1, 2).tolist()]
        # The retrieved images are those of the first trial, numbered over all of camera A.
        assert ranking.top_ids[0].tolist()[:2] == ([0, 1] if nearest[0] else [1, 2])
        summary = summarize(ranking)
        assert (summary["trials"], summary["queries"], summary["gallery_size"]) == (10, 1, 2)
        assert summary["mAP"] == pytest.approx(ap.mean())
        assert summary["rank1"] == pytest.approx(nearest.mean())
        assert summary["std"]["mAP"] == pytest.approx(ap.std(ddof=1))
        assert summary["std"]["rank5"] == 0


def test_ltcc_by_hand():
    """Person 1 asks from camera 0 in clothes 0. Nearest first: same camera, same clothes, both other, a stranger."""
    query = records({"person": 1, "camera": 0, "clothes": 0})
    gallery = records(
        {"person": 1, "camera": 0, "clothes": 1}, {"person": 1, "camera": 1, "clothes": 0}, {"person": 2, "camera": 1},
        {"person": 1, "camera": 1, "clothes": 1}, {"person": 1, "camera": 1, "clothes": -1},
    )  # fmt: skip
    expected = {
        "market": (1 / 1 + 2 / 3 + 3 / 4) / 3,  # good, stranger, good, good: an unknown outfit does not matter
        "ltcc_cc": 1 / 2,  # stranger, good: what an unknown outfit shows is not known, so it is left out
        "ltcc_sc": 1.0,  # good, stranger
    }
    for name, ap in expected.items():
        assert run(name, query, gallery, [0], range(5))[0].ap.tolist() == [pytest.approx(ap)]


def test_vcclothes_by_hand():
    """Person 1 is seen by cameras 1 to 4 (0 to 3 here) on both sides."""
    queries = records(*({"person": 1, "camera": c} for c in range(4)))
    gallery = records(*({"person": 1, "camera": c} for c in range(4)), {"person": 2, "camera": 2})
    expected = {  # asking cameras, searched records, AP of each query, whose own camera is junk; the stranger is last
        "market": ([0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 1, 1, 1]),
        "vcclothes_sc": ([1, 2], [1, 2, 4], [1, 1]),
        "vcclothes_cc": ([2, 3], [2, 3, 4], [1, 1]),
    }
    for name, (asking, searched, ap) in expected.items():
        ranking, chosen = run(name, queries, gallery, [0] * 4, range(5))
        assert (chosen.query.tolist(), chosen.gallery.tolist()) == (asking, searched)
        assert ranking.ap.tolist() == pytest.approx(ap)
        assert ranking.num_positives.tolist() == [3] * 4 if name == "market" else [1, 1]


def test_llcm_by_hand():
    """Visible query of person 1, camera 0. Infrared, nearest first: person 2 twice, person 1's own camera, person 1."""
    query = records({"person": 1, "camera": 0}, {"person": 1, "camera": 1, "infrared": True})
    gallery = records(
        {"person": 2, "camera": 1, "infrared": True}, {"person": 2, "camera": 2, "infrared": True},
        {"person": 1, "camera": 0, "infrared": True}, {"person": 1, "camera": 2, "infrared": True},
        {"person": 1, "camera": 2},
    )  # fmt: skip
    ranking, chosen = run("llcm_v2n", query, gallery, [0, 0], range(5))
    assert (chosen.query.tolist(), chosen.gallery.tolist()) == ([0], [0, 1, 2, 3])
    assert ranking.first_positive_rank.tolist() == [2]  # the second person, though the third image
    summary = summarize(ranking)
    assert (summary["rank1"], summary["rank5"]) == (0.0, 1.0)
    assert summary["std"]["mAP"] == pytest.approx(0, abs=1e-12)  # every trial draws the only image of each group
    assert summary["mAP"] == pytest.approx(1 / 3)
    other, chosen = run("llcm_n2v", query, gallery, [0, 0], range(5))
    assert (chosen.query.tolist(), chosen.gallery.tolist(), other.ap.tolist()) == ([1], [4], [1.0])


def test_llcm_draws_one_image_a_person_and_camera():
    gallery = columns(
        records(
            {"person": 7, "camera": 1, "infrared": True, "file": "z"}, {"person": 3, "camera": 2, "infrared": True},
            {"person": 7, "camera": 0, "infrared": True}, {"person": 7, "camera": 1, "infrared": True, "file": "y"},
            {"person": 7, "camera": 1},
        )
    )  # fmt: skip
    query = columns(records({"person": 7, "camera": 5}))
    draws = [trial.selection.gallery.tolist() for trial in prepare(protocol_of("llcm_v2n"), query, gallery).trials]
    # Person 3, then person 7's cameras 0 and 1: the third draw of each seed chooses between files y (3) and z (0).
    for trial, drawn in enumerate(draws):
        generator = random.Random(trial)
        assert [generator.choice([1]), generator.choice([2]), generator.choice([3, 0])] == drawn
    assert len({tuple(drawn) for drawn in draws}) == 2


def test_the_released_mode_of_llcm_asks_the_other_way_round():
    """Infrared images of person 1 ask: two of camera 0, of which a trial draws one, and one of camera 1."""
    query = records(
        {"person": 1, "camera": 0, "infrared": True}, {"person": 1, "camera": 0, "infrared": True},
        {"person": 1, "camera": 1, "infrared": True}, {"person": 1, "camera": 1},
    )  # fmt: skip
    gallery = records({"person": 2, "camera": 3}, {"person": 1, "camera": 3}, {"person": 1, "infrared": True})
    # Nearest of query 0 is person 1 (AP 1), of the other two person 2 (AP 1/2).
    ranking, chosen = run("llcm_v2n_released", query, gallery, [9, 0, 0, 0], [0, 9, 0])
    assert (chosen.query.tolist(), chosen.gallery.tolist()) == ([0, 1, 2], [0, 1])
    first = np.array([random.Random(trial).choice([0, 1]) == 0 for trial in range(10)])
    assert ranking.ap.tolist() == [1.0, 0.5, 0.5]
    assert ((ranking.trial_ranks[:2] >= 0) == np.stack([first, ~first])).all()
    assert (ranking.trial_ranks[2] == 2).all()
    summary = summarize(ranking)
    assert summary["queries"] == 2
    assert summary["mAP"] == pytest.approx(np.where(first, 0.75, 0.5).mean())


def test_sysu_by_hand():
    """Cameras 3 and 6 (2 and 5 here) ask. Nearest first: person 2 on cameras 2 and 1, person 1 on cameras 2 and 4."""
    queries = records(*({"person": 1, "camera": c, "infrared": True} for c in (2, 5)))
    gallery = records(
        {"person": 2, "camera": 1}, {"person": 2, "camera": 0}, {"person": 1, "camera": 1}, {"person": 1, "camera": 3}
    )
    ranking, chosen = run("sysu_all", queries, gallery, [0, 0], range(4))
    assert chosen.gallery.tolist() == [0, 1, 2, 3]
    # Camera 3 loses both images of camera 2, also the stranger's: stranger, good.
    assert ranking.ap.tolist() == pytest.approx([1 / 2, (1 / 3 + 2 / 4) / 2])
    assert ranking.first_positive_rank.tolist() == [2, 2]
    ranking, chosen = run("sysu_indoor", queries, gallery, [0, 0], range(4))
    assert chosen.gallery.tolist() == [0, 1, 2]
    assert ranking.drop_cause.tolist() == ["no_positive", ""]
    assert ranking.ap[1] == pytest.approx(1 / 3)


def test_distractors_count_where_they_are_asked_for():
    """A distractor lies between the query and its one good image."""
    query = records({"person": 1, "camera": 0})
    gallery = records({"person": 1, "camera": 1}, {"person": 0, "camera": -2, "distractor": True})
    assert run("market", query, gallery, [0], [2, 1])[0].ap.tolist() == [1.0]
    assert run("market", query, gallery, [0], [2, 1], distractors=True)[0].ap.tolist() == [0.5]


def test_every_caption_is_a_query():
    """Two captions of one picture, which is in the gallery: it is found, not junk."""
    queries = records({"person": 1, "content": 5}, {"person": 1, "content": 5})
    gallery = records({"person": 2}, {"person": 1, "content": 5})
    ranking, _ = run("identity", queries, gallery, [0, 9], [0, 9])
    assert ranking.ap.tolist() == [0.5, 1.0]


def draw(seed: int, count: int, unknown_camera: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return records(
        *(
            {
                "person": int(generator.integers(6)), "clothes": int(generator.integers(2)),
                "camera": int(generator.choice([0, 1, 2, 3, 4, 5, unknown_camera])),
                "infrared": bool(generator.integers(2)), "file": f"{generator.integers(10**9)}.png",
                "asked": int(generator.integers(2)), "distractor": bool(generator.random() < 0.1),
            }
            for _ in range(count)
        )
    )  # fmt: skip


SHOTS = [(way, shot) for way in ("same", "cross") for shot in ("multi_shot", "single_shot")]
NAMES = {
    "market": "market1501", "identity": "cuhk_pedes", "requested_outfit": "real2_ctcc+clothes",
    **{f"prcc_{way}_{shot}": f"prcc_{way}+{shot}" for way, shot in SHOTS}, "llcm_v2n_released": "llcm_v2n@released",
    **{name: name for name in ("ltcc_cc", "ltcc_sc", "vcclothes_sc", "vcclothes_cc", "llcm_v2n", "llcm_n2v",
                               "sysu_all", "sysu_indoor")},
}  # fmt: skip
"""Rule -> its name in the twin, which knows the published protocols."""


@pytest.mark.parametrize(("name", "published"), [*NAMES.items(), ("market+distractors", "market1501+distractors")])
def test_agrees_with_the_twin(name, published):
    queries, gallery = draw(1, 60, -1), draw(2, 150, -2)
    generator = np.random.default_rng(3)
    q, g = (generator.integers(-2, 3, (n, 3)).astype(np.float32) for n in (60, 150))  # exact scores, many ties
    scores = -((q[:, None] - g[None]) ** 2).sum(axis=-1)
    expected = protocol_twin.evaluate(published, queries, gallery, scores)
    ranking, chosen = ranked(
        name.removesuffix("+distractors"), columns(queries), columns(gallery), q, g, distractors="+" in name
    )
    summary = summarize(ranking)
    assert sum(map(len, expected)) > 5
    for key, of in (("mAP", lambda f: f["ap"]), ("mINP", lambda f: f["inp"]), ("rank1", lambda f: f["first"] == 1),
                    ("rank5", lambda f: f["first"] <= 5)):  # fmt: skip
        by_trial = [np.mean([of(figure) for figure in found.values()]) for found in expected]
        assert summary[key] == pytest.approx(np.mean(by_trial), abs=1e-9), key
    for place, record in enumerate(chosen.query.tolist()):
        mine = [found[record]["ap"] for found in expected if record in found]
        assert ranking.valid[place] == bool(mine)
        if mine:
            assert ranking.ap[place] == pytest.approx(np.mean(mine), abs=1e-9)
            hits = [found[record]["first"] == 1 for found in expected if record in found]
            assert ranking.rank1[place] == pytest.approx(np.mean(hits))


def test_all_protocols_of_the_published_sets_have_a_twin():
    published = {rule for _, rules, _ in data_sets.TEST.values() for rule in rules}
    assert set(NAMES) == published | {"prcc_same_multi_shot"}


def test_trials_are_compared_query_by_query(tmp_path):
    """Ten trials of 40 queries leave 40 rows: a bootstrap over trials of one query would be too sure of itself."""
    queries, gallery = draw(1, 40, -1), draw(2, 150, -2)
    generator = np.random.default_rng(3)
    for run_name in "ab":
        q, g = (generator.standard_normal((n, 3)) for n in (40, 150))
        ranking, chosen = ranked("llcm_n2v", columns(queries), columns(gallery), q, g, top_k=10)
        figure = Figure(test_set="llcm", task="vi", protocol="llcm_n2v")
        compare.save_per_query(tmp_path / run_name, figure, ranking, chosen.query, chosen.gallery)
    rows = compare.compare_runs(tmp_path / "a", tmp_path / "b", samples=50)
    assert [row.metric for row in rows] == ["mAP", "rank1"]
    assert rows[0].queries == ranking.valid.sum() < 40
    assert rows[0].b == pytest.approx(np.nanmean(ranking.ap))
    assert rows[1].b == pytest.approx(ranking.rank1[ranking.valid].mean())


def test_chance_is_a_mean_over_trials():
    """Person 1 has one or two images (both drawn: two cameras) among two or three: both figures by hand."""
    query = columns(records({"person": 1, "camera": 5}))
    rows = [{"person": 1, "camera": c, "infrared": True} for c in (0, 1)]
    gallery = columns(records(*rows, {"person": 2, "infrared": True}))
    found = random_ranking(prepare(protocol_of("llcm_v2n"), query, gallery))
    # Orders of (good, good, bad): AP 1, (1 + 2/3)/2, (1/2 + 2/3)/2.
    assert found["mAP"] == pytest.approx((1 + 5 / 6 + 7 / 12) / 3)
    assert (found["rank1"], found["rank5"]) == (pytest.approx(2 / 3), None)


def test_in_the_union_a_protocol_chooses_among_its_own_source():
    """Camera 1 of source 0 is not searched by vcclothes_cc; camera 1 of source 1 and its distractors: yes, and no."""
    query = columns(records({"person": 1, "camera": 2, "content": 77}))
    gallery = columns(
        records(
            {"person": 1, "camera": 3}, {"person": 1, "camera": 0}, {"person": 1, "camera": 0, "source": 1},
            {"person": 2, "camera": 2, "source": 1, "distractor": True},
            {"person": 9, "camera": 2, "source": 1, "content": 77},
        )
    )  # fmt: skip
    case = prepare(protocol_of("vcclothes_cc").against_union(query_is_image=True), query, gallery, union=True)
    assert case.selection.gallery.tolist() == [0, 2, 4]
    scores = EmbeddingScores(np.float32([[0.0]]), np.float32([[5], [0], [4], [1], [1]]), "euclidean", ONE)
    ranking = case.rank(scores, rank.Options(query_block=8))
    assert ranking.num_positives.tolist() == [2]
    assert ranking.ap.tolist() == [1.0]  # the copy of the query's own file lies nearest, and is left out
    whole = protocol_of("llcm_v2n").against_union(query_is_image=True)
    assert (whole.draw, whole.trials, whole.distinct_identities) == ((), 1, True)
    assert "nothing is drawn" in whole.description


@pytest.mark.parametrize(
    ("name", "query", "gallery", "message"),
    [
        ("prcc_same_multi_shot", {"camera": -1}, {"camera": -2},
         r"prcc_same_multi_shot \(.*camera B.*takes query records of camera_number 1 .*they have camera_number -1"),
        ("vcclothes_cc", {"camera": 2}, {"camera": 0}, r"takes gallery records of camera_number 2 or 3 .* 0 \(neg"),
        ("llcm_v2n", {}, {}, r"takes gallery records of modality 1"),
        ("market", {}, {}, r"market \(positive.*\) drops all 1 queries.*1 pairs are junk.*camera is the same"),
        ("ltcc_cc", {"clothes": -1}, {"camera": 1}, r"ltcc_cc .*clothes is unknown"),
        ("requested_outfit", {}, {"camera": 1}, r"instruction_clothes is unknown\."),
        ("market", {}, {"person": 3}, r"No query shares its identity"),
        ("template_outfit", {"asked": 4}, {"clothes": 1}, r"0 pairs are junk\. The 1 pairs .* differ, but not"),
    ],
)  # fmt: skip
def test_a_rule_that_would_drop_every_query_says_so(name, query, gallery, message):
    sides = columns(records({"person": 1, **query})), columns(records({"person": 1, **gallery}))
    with pytest.raises(ProtocolError, match=message):
        prepare(protocol_of(name), *sides).check()
