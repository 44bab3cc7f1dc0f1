"""The figures of a ranking: results per query, average precision from ranks, and their summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from irm_jax.evaluation.figures import METRICS, TAU_TABLES

CMC_RANKS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What one ranking gave for each of Q queries, in their order.

    gallery: images ranked per query.
    ap, inp: f64[Q], NaN for a dropped query.
    first_positive_rank: i32[Q], from 1; 0 for a dropped query, and if a cut ranking has no positive. It counts people
      if CMC does (`Protocol.distinct_identities`).
    num_positives: i32[Q]. drop_cause: str[Q], "" | "no_positive" | "all_junk" | "not_drawn".
    top_ids: i32[Q,k], gallery indices of the best images without junk, -1 beyond the last.
    top_scores: f32[Q,k], their cosine, or minus their Euclidean distance (-inf beyond).
    tau_ap: f64[Q,taus], NaN if the query has no positive left. tau_kept: i32[Q,taus], how many it has left.
    follows: bool[Q], the best of all images of the right person (junk left out) is a positive; False if dropped.
    trials: the rankings of a drawn protocol, see `merge`. trial_ranks: i32[Q,trials], the first positive's rank in
      each, -1 if the query was not drawn or was dropped. `ap` and `inp` are then means over the trials that ranked the
      query, the other fields are of its first such trial; "not_drawn" is the cause of a query that no trial drew.
    """

    gallery: int
    ap: np.ndarray
    inp: np.ndarray
    first_positive_rank: np.ndarray
    num_positives: np.ndarray
    drop_cause: np.ndarray
    top_ids: np.ndarray
    top_scores: np.ndarray
    taus: tuple[float, ...] = ()
    tau_source: str | None = None
    tau_ap: np.ndarray | None = None
    tau_kept: np.ndarray | None = None
    follows: np.ndarray | None = None
    trials: tuple[Ranking, ...] = ()
    trial_ranks: np.ndarray | None = None

    @property
    def valid(self) -> np.ndarray:
        """bool[Q]: the queries that the figures are means over."""
        return self.drop_cause == ""

    @property
    def rank1(self) -> np.ndarray:
        """f64[Q]: 1 if the best image is a positive, 0 if not; with trials, the share of those that ranked it."""
        if self.trial_ranks is None:
            return (self.first_positive_rank == 1).astype(np.float64)
        return (self.trial_ranks == 1).sum(axis=1) / np.maximum((self.trial_ranks >= 0).sum(axis=1), 1)


def merge(
    trials: Sequence[Ranking], query: Sequence[np.ndarray], gallery: Sequence[np.ndarray], queries: int
) -> Ranking:
    """Joins the rankings of trials into one of all `queries` queries.

    Trial t ranked the queries `query[t]` i[n] against the images `gallery[t]` i[m], indices into all that take part.
    """
    top_k = max(trial.top_ids.shape[1] for trial in trials)
    ranks = np.full((queries, len(trials)), -1, np.int32)
    total, ranked = np.zeros((2, queries)), np.zeros(queries, np.int64)
    result = Ranking(
        gallery=trials[0].gallery,
        ap=np.full(queries, np.nan),
        inp=np.full(queries, np.nan),
        first_positive_rank=np.zeros(queries, np.int32),
        num_positives=np.zeros(queries, np.int32),
        drop_cause=np.full(queries, "not_drawn", "<U11"),
        top_ids=np.full((queries, top_k), -1, np.int32),
        top_scores=np.full((queries, top_k), -np.inf, np.float32),
        trials=tuple(trials),
        trial_ranks=ranks,
    )
    for t, (trial, rows, images) in enumerate(zip(trials, query, gallery, strict=True)):
        valid = trial.valid
        ranks[rows[valid], t] = trial.first_positive_rank[valid]
        total[:, rows[valid]] += trial.ap[valid], trial.inp[valid]
        new = (result.drop_cause[rows] == "not_drawn") | (valid & (ranked[rows] == 0))
        ranked[rows[valid]] += 1
        for name in ("first_positive_rank", "num_positives", "drop_cause"):
            getattr(result, name)[rows[new]] = getattr(trial, name)[new]
        ids = trial.top_ids[new]
        result.top_ids[rows[new], : ids.shape[1]] = np.where(ids >= 0, images[ids], -1)
        result.top_scores[rows[new], : ids.shape[1]] = trial.top_scores[new]
    result.ap[ranked > 0], result.inp[ranked > 0] = total[:, ranked > 0] / ranked[ranked > 0]
    return result


def average_precision(position: Int[np.ndarray, "n P"], positive: Bool[np.ndarray, "n P"]) -> Float64[np.ndarray, " n"]:
    """AP of each row from ascending 0-based ranks: the mean over positives of (positives up to it) / (its rank from 1).

    Ranks that are not positive are skipped. NaN if a row has no positive.
    """
    up_to = np.cumsum(positive, axis=1)
    # Summed in order, not pairwise: then the padding, which depends on the block, leaves the last bit alone too.
    total = np.cumsum(np.where(positive, up_to / (position + 1.0), 0), axis=1)[:, -1]
    return np.divide(total, up_to[:, -1], out=np.full(len(total), np.nan), where=up_to[:, -1] > 0)


def summarize(ranking: Ranking) -> dict[str, Any]:
    """The metrics of a `figures.Figure`: fractions, None if no query is left to average over.

    queries: how many the figures are means over. dropped: the others by cause; "tau" counts those that lose all
    positives at some tau (they are missing from `mAP_tau_common`, not from mAP). By tau, and None without taus:
    `mAP_tau`; `mAP_tau_common`, the mean over the queries valid at every tau; `mAP_tau_dropped`; `tau_positives_kept`,
    the share of all positives. `follow_rate`: only with `Options.follow`. With trials: the mean of their figures, and
    `trials`, how many they are, and `std`, the sample standard deviations of METRICS over them.
    """
    if ranking.trials:
        each = [summarize(trial) for trial in ranking.trials]
        known = {key: [value for entry in each if (value := entry[key]) is not None] for key in METRICS}
        std = {key: float(np.std(values, ddof=1)) if len(values) > 1 else None for key, values in known.items()}
        return {**_mean_of(each), "trials": len(each), "std": std}
    valid = ranking.valid
    first = ranking.first_positive_rank[valid]
    causes, counts = np.unique(ranking.drop_cause[~valid], return_counts=True)
    dropped = {"no_positive": 0, "all_junk": 0}
    dropped |= {str(cause): int(count) for cause, count in zip(causes, counts, strict=True)}
    summary: dict[str, Any] = {"mAP": _mean(ranking.ap[valid])}
    summary |= {f"rank{k}": _mean((first > 0) & (first <= k)) for k in CMC_RANKS}
    summary |= {"mINP": _mean(ranking.inp[valid]), "queries": int(valid.sum()), "gallery_size": ranking.gallery}
    by_tau, lost = _by_tau(ranking)
    summary |= by_tau | {"tau_source": ranking.tau_source, "dropped": dropped | lost}
    if ranking.follows is not None:
        summary["follow_rate"] = _mean(ranking.follows[valid])
    return summary


def _by_tau(ranking: Ranking) -> tuple[dict[str, Any], dict[str, int]]:
    """TAU_TABLES, and the number of queries that lose all positives at some tau."""
    tables: dict[str, Any] = dict.fromkeys(TAU_TABLES)
    if ranking.tau_ap is None or ranking.tau_kept is None:
        return tables, {}
    valid = ranking.valid
    left = ~np.isnan(ranking.tau_ap) & valid[:, None]
    common = left.all(axis=1)
    positives = int(ranking.num_positives[valid].sum())
    tables = {key: {} for key in TAU_TABLES}
    for i, tau in enumerate(ranking.taus):
        name = f"{tau:g}"
        tables["mAP_tau"][name] = _mean(ranking.tau_ap[left[:, i], i])
        tables["mAP_tau_common"][name] = _mean(ranking.tau_ap[common, i])
        tables["mAP_tau_dropped"][name] = int((valid & ~left[:, i]).sum())
        kept = int(ranking.tau_kept[valid, i].sum())
        tables["tau_positives_kept"][name] = kept / positives if positives else None
    return tables, {"tau": int((valid & ~common).sum())}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers (counts are rounded), None left out; of tables entry by entry; text as in the first one."""
    first = next((value for value in values if value is not None), None)
    if isinstance(first, dict):
        return {key: _mean_of([value[key] for value in values]) for key in first}
    if not isinstance(first, (int, float)):
        return first
    mean = float(np.mean([value for value in values if value is not None]))
    return round(mean) if isinstance(first, int) else mean
