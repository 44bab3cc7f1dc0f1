"""Ranks what a protocol selects, once a trial, from embeddings that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from irm_jax.evaluation.protocols import Columns, Protocol
from irm_jax.evaluation.ranking import selection
from irm_jax.evaluation.ranking.metrics import Ranking, merge
from irm_jax.evaluation.ranking.rank import rank
from irm_jax.evaluation.ranking.selection import Selection

Scorer = Callable[[np.ndarray, np.ndarray, Selection], Callable[[np.ndarray], np.ndarray]]
"""(query embeddings, gallery embeddings, which records they are of) -> `scores_of` of `ranking.rank`."""


def rank_trials(
    query_embedding: np.ndarray,
    gallery_embedding: np.ndarray,
    query_columns: Columns,
    gallery_columns: Columns,
    protocol: Protocol,
    *,
    scorer: Scorer | None = None,
    **options: Any,
) -> tuple[Ranking, Selection]:
    """Ranks the queries that take part against the gallery images that do; `options` are those of `ranking.rank`.

    Returns the Ranking, over the Selection that stands beside it: `top_ids` index its gallery, the queries its queries,
    whatever the trials drew of them. `scorer` makes other scores than the metric's, see its type.
    """
    whole = selection.select(protocol, query_columns, gallery_columns)
    drawn = selection.trials(protocol, query_columns, gallery_columns)
    rankings = []
    for trial in drawn:
        query, gallery = _rows(query_embedding, trial.query), _rows(gallery_embedding, trial.gallery)
        if scorer is not None:
            options["scores_of"] = scorer(query, gallery, trial)
        rankings.append(
            rank(
                query, gallery, taken(query_columns, trial.query), taken(gallery_columns, trial.gallery), protocol,
                **options,
            )
        )  # fmt: skip
    if not protocol.draw:
        return rankings[0], whole
    asked = [np.searchsorted(whole.query, trial.query) for trial in drawn]
    searched = [np.searchsorted(whole.gallery, trial.gallery) for trial in drawn]
    return merge(rankings, asked, searched, len(whole.query)), whole


def taken(columns: Columns, records: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of some records."""
    return {name: _rows(np.asarray(column), records) for name, column in columns.items()}


def _rows(array: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Some rows; the array itself, not a copy, if they are all its rows in order."""
    return array if len(records) == len(array) and (np.diff(records) == 1).all() else array[records]
