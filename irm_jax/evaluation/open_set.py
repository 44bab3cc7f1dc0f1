"""Open-set figures: can the score of the best match tell that a query's person is not in the gallery at all?

Half of the queries' people, drawn with a seed, are taken out of the gallery, for all queries (leave-identity-out). A
query of theirs should be turned away, a query of the other half should be answered. ROC: over thresholds on the score
of the best match, FPR is the share of the former that are answered, TPR the share of the latter that are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

FPRS = (0.01, 0.001)
ROC_POINTS = 200


def people_left_out(identity: np.ndarray, seed: int) -> np.ndarray:
    """bool[Q]: queries of the half of the people (rounded down) that is taken out of the gallery."""
    people = np.random.default_rng(seed).permutation(np.unique(identity))
    return np.isin(identity, people[: len(people) // 2])


def figures(
    present: np.ndarray, right: np.ndarray, absent: np.ndarray, fprs: Sequence[float] = FPRS
) -> dict[str, Any] | None:
    """Figures from the best scores f[P] of queries whose person is in the gallery (`right` bool[P]: that best match is
    a positive) and those of queries whose person is not, f[A]. None if either side is empty.

    At each FPR, by its name: `threshold`, a query is answered if its best score is above it, and no lower one keeps the
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
