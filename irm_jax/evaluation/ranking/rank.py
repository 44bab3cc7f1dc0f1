"""Exact retrieval figures: CMC, mAP, mINP, mAP_tau (method.md section 9), streamed over blocks of queries.

No [Q,G] matrix exists: a block of queries has one score buffer, cut over the devices, from which `counting` reads the
ranks of the positives. All figures follow from those ranks, in float64 on the host. Queries are taken in the order of
their number of positives, so that a block has few ranks to pad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from irm_jax.evaluation.protocols import Columns, Protocol
from irm_jax.evaluation.ranking.device import Gallery, squared_norms
from irm_jax.evaluation.ranking.metrics import Ranking, average_precision, summarize
from irm_jax.evaluation.ranking.related_pairs import RelatedPairs

__all__ = ["Ranking", "default_block", "rank", "summarize"]

BUFFER_BYTES = 1 << 28
"""Of one device's score buffer, from which the default number of queries in a block follows."""
MOST_ROWS = 256
RANKS_AT_ONCE = 1 << 22
"""Most ranks (or junk images) of a block, padding included; a block of one query may have more."""
SORT_ABOVE = 1024
"""More positives than this are ranked by sorting the row: one sort costs as much as counting for about so many."""


def rank(
    query_embedding: np.ndarray,
    gallery_embedding: np.ndarray,
    query_columns: Columns,
    gallery_columns: Columns,
    protocol: Protocol | None,
    *,
    metric: str = "cosine",
    mesh: Mesh | None = None,
    query_block: int | None = None,
    top_k: int = 10,
    taus: Sequence[float] = (),
    tau_similarity: Callable[[Columns, Columns], Any] | None = None,
    follow: bool = False,
    sort_above: int = SORT_ABOVE,
    scores_of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Ranking:
    """Ranks G gallery images for each of Q queries.

    Args:
      query_embedding, gallery_embedding: f32[Q,D], f32[G,D], any D (other types are converted; scores are f32).
      query_columns, gallery_columns: what the protocol's rule reads, one entry a record.
      protocol: the rule, or None to retrieve only (columns are then not read and every query counts as `no_positive`).
      metric: "cosine" | "euclidean".
      mesh: the gallery is cut over all its devices as a 1-D view; None: over all devices.
      query_block: queries a block; None: as many as fit BUFFER_BYTES, at most MOST_ROWS.
      top_k: how many retrieved ids to keep (at most G are).
      taus, tau_similarity: for mAP_tau, positives with a similarity below tau become negatives. Ignored where the
        protocol's gallery has no instruction.
      follow: also find whether the best image of the right person is a positive (needs the column `identity`).
      sort_above: a query with more positives is ranked by sorting.
      scores_of: query indices [n] -> f32[n,G], larger for better images: ranks these scores instead of the metric's.

    `protocol` is taken as a rule over all that is given: what it selects and draws is `trials.rank_trials`' matter.

    Ties of computed scores are broken by gallery index, as a stable descending sort does. Raises ValueError for empty
    or mismatched input, embeddings that are not finite, and columns that are missing or of another length.
    """
    query, gallery = _matrix(query_embedding, "query"), _matrix(gallery_embedding, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query embeddings are {query.shape[1]} wide, gallery embeddings {gallery.shape[1]}")
    if len(taus) and tau_similarity is None:
        raise ValueError("taus are given without tau_similarity: name its source, e.g. protocols.ATTRIBUTES")
    if protocol is None or not protocol.gallery_has_instruction:
        taus, tau_similarity = (), None
    squared = squared_norms(query, "query")
    placed = Gallery(gallery, metric, mesh)
    rows = query_block or default_block(len(query), placed.layout.width)
    result = _empty(len(query), len(gallery), protocol, metric, top_k, tuple(taus), tau_similarity, follow)
    people = _runs(np.asarray(gallery_columns["identity"])) if protocol and protocol.distinct_identities else None
    pairs, junk, ranked = None, np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
    if protocol is not None:
        pairs = RelatedPairs(protocol, query_columns, gallery_columns, (len(query), len(gallery)), person=follow)
        result.num_positives[:], junk, ranked = pairs.counts()
        result.drop_cause[result.num_positives > 0] = ""
        result.drop_cause[junk == len(gallery)] = "all_junk"
    scores = None
    # The gallery's own mesh, whatever mesh the caller is in (an evaluation during training).
    with jax.set_mesh(placed.mesh):
        for block in _blocks(ranked, junk, rows):
            scores = placed.given(scores_of(block), rows) if scores_of else placed.scores(query[block], rows, scores)
            if protocol is not None and pairs is not None:
                scores = _rank_block(placed, scores, block, pairs, protocol, tau_similarity, sort_above, people, result)
            if result.top_ids.shape[1]:
                best, ids = placed.top(scores, result.top_ids.shape[1])
                best, result.top_ids[block] = best[: len(block)], ids[: len(block)]
                if metric == "euclidean" and scores_of is None:
                    best = -np.sqrt(np.maximum(squared[block, None] - best, 0))
                result.top_scores[block] = best
    return result


def _rank_block(
    placed: Gallery,
    scores: jax.Array,
    block: np.ndarray,
    pairs: RelatedPairs,
    protocol: Protocol,
    tau_similarity: Callable[[Columns, Columns], Any] | None,
    sort_above: int,
    people: tuple[np.ndarray, np.ndarray] | None,
    result: Ranking,
) -> jax.Array:
    """Fills the figures of one block of queries into `result`; returns the score buffer without the junk.

    `people`: see `_runs`; given where CMC counts distinct people.
    """
    found = pairs.of(block)
    ranked = found.positive | found.person
    column, place = found.padded(ranked, len(block))
    at = found.row[ranked], place
    positive = np.zeros(column.shape, bool)
    positive[at] = found.positive[ranked]
    if protocol.ap_topk is not None:
        # [release] cuts the ranking with the junk still in it.
        positive &= placed.preceding(scores, column, sort_above) < protocol.ap_topk
    if found.junk.any():
        scores = placed.remove(scores, found.padded(found.junk, len(block))[0])
    if not column.shape[1]:
        return scores
    position = placed.preceding(scores, column, sort_above)
    position[column < 0] = np.iinfo(np.int32).max
    order = np.argsort(position, axis=1)
    position, positive = np.take_along_axis(position, order, axis=1), np.take_along_axis(positive, order, axis=1)

    valid = result.drop_cause[block] == ""
    row, kept = np.arange(len(block)), positive.sum(axis=1)
    first_rank = position[row, positive.argmax(axis=1)].astype(np.int64) + 1
    last_rank = position[row, column.shape[1] - 1 - positive[:, ::-1].argmax(axis=1)] + 1.0
    # A cut ranking without a positive has AP 0; every other valid query has a positive.
    result.ap[block] = np.where(valid, np.nan_to_num(average_precision(position, positive)), np.nan)
    result.inp[block] = np.where(valid, kept / last_rank, np.nan)
    if people is not None:
        first = np.take_along_axis(column, order, axis=1)[row, positive.argmax(axis=1)]
        first_rank = 1 + _people_before(placed.on_host(scores)[: len(block)], first, people)
    result.first_positive_rank[block] = np.where(kept > 0, first_rank, 0)
    if result.follows is not None:
        result.follows[block] = valid & positive[:, 0]
    if result.tau_ap is not None and result.tau_kept is not None and tau_similarity is not None:
        similarity = np.zeros(column.shape)
        similarity[at] = pairs.evaluate(tau_similarity, block, found, ranked)
        similarity = np.take_along_axis(similarity, order, axis=1)
        for i, tau in enumerate(result.taus):
            above = positive & (similarity >= tau)
            result.tau_ap[block, i] = average_precision(position, above)
            result.tau_kept[block, i] = above.sum(axis=1)
    return scores


def _runs(identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images sorted by person, and where each person begins among them."""
    order = np.argsort(identity, kind="stable")
    return order, np.flatnonzero(np.diff(identity[order], prepend=identity[order[0]] - 1))


def _people_before(scores: np.ndarray, image: np.ndarray, people: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """i64[n]: of how many people an image precedes the given one, by scores f32[n,G]; junk (-inf) precedes nothing."""
    score = np.take_along_axis(scores, np.maximum(image, 0)[:, None].astype(np.int64), axis=1)
    before = (scores > score) | ((scores == score) & (np.arange(scores.shape[1]) < image[:, None]))
    order, first = people
    return np.logical_or.reduceat(before[:, order], first, axis=1).sum(axis=1)


def default_block(queries: int, width: int) -> int:
    """Queries a block: a power of two (few shapes to compile) whose buffer of `width` columns fits BUFFER_BYTES."""
    fit = 1 << max(3, (BUFFER_BYTES // (4 * width)).bit_length() - 1)
    return min(MOST_ROWS, fit, 1 << max(3, (queries - 1).bit_length()))


def _blocks(ranked: np.ndarray, junk: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Query indices of each block: at most `rows`, fewest ranks first, and so few that tables of ranks stay small."""
    order = np.argsort(ranked, kind="stable")
    start = 0
    while start < len(order):
        block = order[start : start + rows]
        while len(block) > 1 and len(block) * max(ranked[block].max(), junk[block].max()) > RANKS_AT_ONCE:
            block = block[: len(block) // 2]
        yield block
        start += len(block)


def _matrix(embedding: Any, name: str) -> np.ndarray:
    matrix = np.asarray(embedding)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} embeddings must be a matrix [records, width] that is not empty, not {matrix.shape}")
    return np.ascontiguousarray(matrix, np.float32)


def _empty(
    queries: int,
    gallery: int,
    protocol: Protocol | None,
    metric: str,
    top_k: int,
    taus: tuple[float, ...],
    tau_similarity: Callable[[Columns, Columns], Any] | None,
    follow: bool,
) -> Ranking:
    """The result before any query is ranked: all of them dropped."""
    top_k = min(top_k, gallery)
    return Ranking(
        protocol=protocol.name if protocol else "retrieval",
        metric=metric,
        gallery=gallery,
        ap=np.full(queries, np.nan),
        inp=np.full(queries, np.nan),
        first_positive_rank=np.zeros(queries, np.int32),
        num_positives=np.zeros(queries, np.int32),
        drop_cause=np.full(queries, "no_positive"),
        top_ids=np.full((queries, top_k), -1, np.int32),
        top_scores=np.full((queries, top_k), -np.inf, np.float32),
        taus=taus,
        tau_source=getattr(tau_similarity, "source", getattr(tau_similarity, "__name__", None)) if taus else None,
        tau_ap=np.full((queries, len(taus)), np.nan) if taus else None,
        tau_kept=np.zeros((queries, len(taus)), np.int32) if taus else None,
        follows=np.zeros(queries, bool) if follow else None,
    )
