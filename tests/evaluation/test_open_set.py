"""Open-set figures on scores and people laid out by hand."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from irm_jax.evaluation import open_set
from irm_jax.evaluation.case import prepare
from irm_jax.evaluation.embedded_set import EmbeddedSet, Options
from irm_jax.evaluation.open_set import rank_open_set
from irm_jax.evaluation.protocols import MARKET
from irm_jax.evaluation.records import Records

SEED = 12
"""Under which people 1 and 2 of 0, 1, 2, 3 and 9 leave."""


def test_figures_by_hand():
    """Absent people score .1 to .9 and one .95; present ones score .99 (right), .92 (wrong), .85 (right) and .05."""
    absent = np.array([0.95, *np.arange(1, 10) / 10])
    present, right = np.array([0.92, 0.99, 0.05, 0.85]), np.array([False, True, True, True])
    found = open_set.roc_figures(present, right, absent, fprs=(0.2, 0.1, 0.001))
    # Two of ten absent may be answered: .95 and .9, so the threshold is .8, above which three of four present lie.
    assert found["threshold"] == {"0.2": 0.8, "0.1": 0.9, "0.001": 0.95}
    assert found["tpr"] == {"0.2": 0.75, "0.1": 0.5, "0.001": 0.25}
    assert found["identified"] == {"0.2": 0.5, "0.1": 0.25, "0.001": 0.25}
    assert (found["present"], found["absent"]) == (4, 10)
    # Of 40 pairs the present one is above in 10 (.99), 9 (.92), 8 (.85) and 0.
    assert found["auc"] == pytest.approx(27 / 40)
    roc = list(zip(found["roc"]["fpr"], found["roc"]["tpr"], strict=True))
    assert roc[:4] == [(0.0, 0.25), (0.1, 0.25), (0.2, 0.5), (pytest.approx(0.3), 0.75)]
    assert roc[-2:] == [(1.0, 0.75), (1.0, 1.0)]


def test_equal_scores_are_not_answered():
    """A threshold cannot part equal scores: none of the absent may be answered, so none of the present is."""
    found = open_set.roc_figures(np.ones(3), np.ones(3, bool), np.ones(5))
    assert found["tpr"] == {"0.01": 0.0, "0.001": 0.0}
    assert found["auc"] == 0.5


def test_nothing_to_compare():
    assert open_set.roc_figures(np.ones(0), np.ones(0, bool), np.ones(5)) is None
    assert open_set.roc_figures(np.ones(5), np.ones(5, bool), np.ones(0)) is None


def test_the_roc_of_many_scores_keeps_its_ends():
    random = np.random.default_rng(0)
    present, absent = random.normal(1, 1, 5000), random.normal(0, 1, 3000)
    found = open_set.roc_figures(present, np.ones(5000, bool), absent)
    assert len(found["roc"]["fpr"]) == open_set.ROC_POINTS
    assert (np.diff(found["roc"]["fpr"]) >= 0).all()
    assert (np.diff(found["roc"]["tpr"]) >= 0).all()
    assert found["auc"] == pytest.approx(0.7602, abs=0.02)  # Phi(1 / sqrt 2)
    for name, fpr in (("0.01", 0.01), ("0.001", 0.001)):
        assert (absent > found["threshold"][name]).mean() == pytest.approx(fpr, abs=1e-9)
        assert found["tpr"][name] == pytest.approx((present > found["threshold"][name]).mean())


def test_half_of_the_people_leave_with_all_their_queries():
    identity = np.repeat([3, 8, 5, 9, 7], 4)
    away = open_set.people_left_out(identity, seed=1)
    assert len(set(identity[away])) == 2
    assert not set(identity[away]) & set(identity[~away])
    assert (open_set.people_left_out(identity, seed=1) == away).all()
    assert any((open_set.people_left_out(identity, seed) != away).any() for seed in range(2, 9))


@pytest.fixture
def circle():
    """Embeds a set of which some queries and gallery images are kept.

    People 0 to 3 are at 0, 40, 80 and 120 degrees, and person 4, who is no query, at 300. The queries of 0 to 3 are at
    25, 45, 70 and 118 degrees; one of person 9 is nobody in the gallery."""

    def at(*degrees):
        turns = np.deg2rad(degrees)
        return np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)

    def records(identity, camera):
        return Records.of(identity=identity, camera=np.full(len(identity), camera))

    def embedded(queries=slice(None), images=slice(None)):
        query, gallery = records([0, 1, 2, 3, 9][queries], 0), records([0, 1, 2, 3, 4][images], 1)
        pair = at(25, 45, 70, 118, 210)[queries], at(0, 40, 80, 120, 300)[images]
        task = types.SimpleNamespace(name="trad")
        test = types.SimpleNamespace(name="circle", task=task, cases=(prepare(MARKET, query, gallery),))
        features = types.SimpleNamespace(pair=lambda *_: pair, caption=False)
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        return EmbeddedSet(test, features, Options(query_block=8, top_k=3, seed=SEED), mesh)

    return embedded


def test_left_out_people_are_in_nobodys_gallery(circle):
    """People 1 and 2 leave. Query 0 then finds its own image 25 degrees away, not that of person 1, who stands nearer;
    query 1 finds person 0 at 45 degrees and query 2 person 3 at 50, not each other's images at 35 and 30. Person 9 is
    neither left out nor there: it counts on no side."""
    embedded = circle()
    assert open_set.people_left_out(embedded.test.cases[0].query.identity, SEED).tolist() == [
        False, True, True, False, False,
    ]  # fmt: skip
    found = rank_open_set(embedded)
    assert (found.test_set, found.task, found.protocol) == ("circle", "trad", "market")
    assert (found.present, found.absent) == (2, 2)
    assert found.threshold["0.01"] == pytest.approx(np.cos(np.deg2rad(45)))
    assert (found.tpr["0.01"], found.identified["0.01"], found.auc) == (1, 1, 1)


def test_no_open_set_where_nobody_is_left(circle):
    assert rank_open_set(circle(queries=slice(1))) is None  # half of one person is nobody
    assert rank_open_set(circle(images=slice(1, 3))) is None
