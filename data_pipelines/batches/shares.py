"""Dividing the rows of a batch among data sets whose rows come in steps (whole identities in every block)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def valid_sizes(steps: Sequence[int], limit: int) -> np.ndarray:
    """bool[limit + 1]: which totals are a sum of positive multiples of all `steps` (rows a unit may grow by)."""
    reachable = np.zeros(limit + 1, bool)
    if sum(steps) <= limit:
        reachable[sum(steps)] = True
        for step in set(steps):
            for size in range(step, limit + 1):
                reachable[size] |= reachable[size - step]
    return reachable


def apportion(quotas: Sequence[float], steps: Sequence[int], total: int) -> list[int] | None:
    """Positive multiples m_d with sum m_d * steps_d = total and least sum (m_d * steps_d - quotas_d)^2; None: no such.

    With equal steps this is the largest-remainder rule (with at least one each); with unequal ones it stays exact where
    the rule would leave rows over. Ties go to the earlier unit.
    """
    unit_rows = math.gcd(*steps)
    if total % unit_rows:
        return None
    cells = total // unit_rows
    cost = np.full(cells + 1, np.inf)
    cost[0] = 0.0
    choices = []
    for quota, step in zip(reversed(quotas), reversed(steps), strict=True):
        best, choice = np.full(cells + 1, np.inf), np.zeros(cells + 1, np.int64)
        width = step // unit_rows
        for count in range(cells // width, 0, -1):  # downwards with a strict comparison: the larger count wins a tie
            candidate = cost[: cells + 1 - count * width] + (count * step - quota) ** 2
            better = candidate < best[count * width :] - 1e-6
            best[count * width :][better] = candidate[better]
            choice[count * width :][better] = count
        cost = best
        choices.append(choice)
    if not np.isfinite(cost[cells]):
        return None
    counts = []
    for choice, step in zip(reversed(choices), steps, strict=True):
        counts.append(int(choice[cells]))
        cells -= counts[-1] * step // unit_rows
    return counts
