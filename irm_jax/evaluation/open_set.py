"""Open-set figures: can the score of the best match tell that a query's person is not in the gallery at all?

Half of the queries' people, drawn with a seed, are taken out of the gallery, for all queries (leave-identity-out). A
query of theirs should be rejected, a query of the other half should be answered. ROC: over thresholds on the score of
the best match, FPR is the share of the former that are answered, TPR the share of the latter that are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from irm_jax.evaluation.embedded_set import EmbeddedSet
from irm_jax.evaluation.figures import OpenSetFigure
from irm_jax.evaluation.ranking.scores import Selection

FPRS = (0.01, 0.001)
ROC_POINTS = 200


def rank_open_set(embedded: EmbeddedSet) -> OpenSetFigure | None:
    """Ranks the set under its first protocol, or under what the first trial draws; None if a side would be empty."""
    test = embedded.test
    case = test.cases[0]
    first = case.trials[0].selection
    person = case.query.identity[first.query]
    absent = people_left_out(person, embedded.options.seed)
    images = first.gallery[~np.isin(case.gallery.identity[first.gallery], person[absent])]
    if not absent.any() or not len(images):
        return None
    narrowed = case.narrowed(Selection(first.query, images))
    ranking = narrowed.rank(embedded.own, embedded.options.ranking())
    best, present = ranking.top_scores[:, 0], ranking.valid & ~absent
    rejected = best[absent & np.isfinite(best)]  # a query whose images are all junk has no score
    found = roc_figures(best[present], ranking.first_positive_rank[present] == 1, rejected)
    if found is None:
        return None
    return OpenSetFigure(test_set=test.name, task=test.task.name, protocol=case.protocol.name, **found)


def people_left_out(identity: Int[np.ndarray, " Q"], seed: int) -> Bool[np.ndarray, " Q"]:
    """Queries of the half of the people (rounded down) that is taken out of the gallery."""
    people = np.random.default_rng(seed).permutation(np.unique(identity))
    return np.isin(identity, people[: len(people) // 2])


def roc_figures(
    present: Float[np.ndarray, " P"],
    right: Bool[np.ndarray, " P"],
    absent: Float[np.ndarray, " A"],
    fprs: Sequence[float] = FPRS,
) -> dict[str, Any] | None:
    """Figures from the best scores of queries whose person is in the gallery, and of those whose person is not.

    right: the best match is a positive. Returns None if either side is empty.

    At each FPR, by its text: `threshold`, a query is answered if its best score is above it, and no lower one keeps the
    share of absent ones that are answered at or below the FPR; `tpr`, the share of present ones that are answered;
    `identified`, the share that is answered rightly. With fewer than 1 / FPR absent queries none of them is answered.
    `auc`: the chance that a present query scores above an absent one. `roc`: at most ROC_POINTS points.
    """
    if not len(present) or not len(absent):
        return None
    absent, present_sorted = np.sort(absent)[::-1], np.sort(present)
    result: dict[str, Any] = {"present": len(present), "absent": len(absent)}
    tables: dict[str, dict[str, float]] = {"tpr": {}, "identified": {}, "threshold": {}}
    for fpr in fprs:
        allowed = min(int(np.floor(fpr * len(absent) + 1e-9)), len(absent) - 1)
        threshold, name = absent[allowed], f"{fpr:g}"
        tables["threshold"][name] = float(threshold)
        tables["tpr"][name] = float((present > threshold).mean())
        tables["identified"][name] = float(((present > threshold) & right).mean())
    below = np.searchsorted(present_sorted, absent, "left")
    not_above = np.searchsorted(present_sorted, absent, "right")
    tpr = np.concatenate([[0.0], 1 - below / len(present), [1.0]])
    fpr_of = np.concatenate([[0.0], np.searchsorted(-absent, -absent, "right") / len(absent), [1.0]])
    tpr[0] = (present > absent[0]).mean()
    points = np.unique(np.linspace(0, len(tpr) - 1, min(ROC_POINTS, len(tpr))).round().astype(int))
    auc = float(1 - (below + not_above).mean() / 2 / len(present))
    return {**result, "auc": auc, **tables, "roc": {"fpr": fpr_of[points].tolist(), "tpr": tpr[points].tolist()}}
