"""Open-set figures on scores and people laid out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from irm_jax.evaluation import open_set, protocols
from irm_jax.evaluation.trials import rank_trials


def test_figures_by_hand():
    """Absent people score .1 to .9 and one .95; present ones score .99 (right), .92 (wrong), .85 (right) and .05."""
    absent = np.array([0.95, *np.arange(1, 10) / 10])
    present, right = np.array([0.92, 0.99, 0.05, 0.85]), np.array([False, True, True, True])
    found = open_set.figures(present, right, absent, fprs=(0.2, 0.1, 0.001))
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
    found = open_set.figures(np.ones(3), np.ones(3, bool), np.ones(5))
    assert found["tpr"] == {"0.01": 0.0, "0.001": 0.0}
    assert found["auc"] == 0.5


def test_nothing_to_compare():
    assert open_set.figures(np.ones(0), np.ones(0, bool), np.ones(5)) is None
    assert open_set.figures(np.ones(5), np.ones(5, bool), np.ones(0)) is None


def test_the_roc_of_many_scores_keeps_its_ends():
    random = np.random.default_rng(0)
    present, absent = random.normal(1, 1, 5000), random.normal(0, 1, 3000)
    found = open_set.figures(present, np.ones(5000, bool), absent)
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


def test_without_mates_the_best_match_is_a_stranger():
    """Query of person 1; nearest are its own image of the same camera, its other image, then a stranger."""
    columns = {"identity": np.array([1, 1, 2]), "camera": np.array([0, 1, 1])}
    query = {"identity": np.array([1]), "camera": np.array([0])}
    rule = open_set.without_mates(protocols.protocol_of("market1501"))
    ranking, _ = rank_trials(np.float32([[0.0]]), np.float32([[1], [2], [3]]), query, columns, rule, metric="euclidean")
    assert ranking.top_ids[0].tolist() == [2, -1, -1]
    assert ranking.top_scores[0, 0] == -3
    assert ranking.drop_cause.tolist() == ["no_positive"]
