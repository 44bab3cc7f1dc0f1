"""Exact retrieval figures: CMC, mAP, mINP, mAP_tau (docs/method.md, evaluation), streamed over blocks of queries.

No [Q,G] matrix exists: a block of queries has one score buffer, cut over the devices, from which `device` reads the
ranks of the positives. All figures follow from those ranks, in float64 on the host. Queries are taken in the order of
their number of positives, so that a block has few ranks to pad.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from irm_jax.evaluation.ranking.metrics import Ranking, average_precision
from irm_jax.evaluation.ranking.pairs import Counts, RelatedPairs
from irm_jax.evaluation.ranking.scores import Placed

BUFFER_BYTES = 1 << 28
"""Of one device's score buffer, from which the default number of queries in a block follows."""
MOST_ROWS = 256
RANKS_AT_ONCE = 1 << 22
"""Most ranks (or junk images) of a block, padding included; a block of one query may have more."""
SORT_ABOVE = 1024
"""More positives than this are ranked by sorting the row: one sort costs as much as counting for about so many."""

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(queries i[n], gallery images i[n]) -> how far their instructions agree, f64[n]."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a ranking computes, and how.

    top_k: retrieved ids kept per query (at most G are).
    query_block: queries per block; None: as many as fit BUFFER_BYTES, at most MOST_ROWS.
    taus, similarity: for mAP_tau, positives with a similarity below tau become negatives. tau_source names it.
    follow: also find whether the best image of the right person is a positive.
    cut: the ranking is cut there before junk is removed, and every figure sees only the positives found there: AP
      divides by their number (0 if there is none). It inflates mAP: compat with the released `Evaluator.eval_func`.
    sort_above: a query with more positives is ranked by sorting.
    """

    top_k: int = 10
    query_block: int | None = None
    taus: tuple[float, ...] = ()
    similarity: Similarity | None = None
    tau_source: str | None = None
    follow: bool = False
    cut: int | None = None
    sort_above: int = SORT_ABOVE

    def __post_init__(self) -> None:
        if self.taus and self.similarity is None:
            raise ValueError("taus are given without a similarity: see `tau_similarity`")
        if self.cut is not None and self.cut < 1:
            raise ValueError(f"a ranking is cut at 1 or more images, not at {self.cut}")


def rank(scores: Placed, related: RelatedPairs | None, options: Options) -> Ranking:
    """Ranks G gallery images for each of Q queries.

    `related`: the protocol's pairs over the same records; None retrieves only, and every query counts as
    `no_positive`. Ties of computed scores are broken by gallery index, as a stable descending sort does.
    """
    return rank_together(scores, [(related, options)])[0]


def rank_together(scores: Placed, rules: Sequence[tuple[RelatedPairs | None, Options]]) -> list[Ranking]:
    """Ranks the same scores under several rules, as `rank` does under each; scores are computed once for all.

    The number of queries in a block is that of the first rule's options.
    """
    sizes = scores.queries, scores.buffer.images
    for related, _ in rules:
        if related is not None and related.sizes != sizes:
            raise ValueError(f"scores are of {sizes} queries and images, relations of {related.sizes}")
    rankers = [_Ranker(scores, related, options) for related, options in rules]
    rows = rules[0][1].query_block or default_block(scores.queries, scores.buffer.layout.width)
    ranked = np.max([ranker.counts.ranked for ranker in rankers], axis=0)
    junk = np.max([ranker.counts.junk for ranker in rankers], axis=0)
    buffer = None
    # The gallery's own mesh, whatever mesh the caller is in (an evaluation during training).
    with jax.set_mesh(scores.buffer.mesh):
        for block in _blocks(ranked, junk, rows):
            buffer = scores.block(block, rows, buffer)
            for ranker in rankers[:-1]:
                ranker.enter(block, buffer, keep=True)
            buffer = rankers[-1].enter(block, buffer, keep=False)
    return [ranker.result for ranker in rankers]


class _Ranker:
    """One rule's ranking in the making: `result` is filled block by block."""

    def __init__(self, scores: Placed, related: RelatedPairs | None, options: Options) -> None:
        self.scores, self.related, self.options = scores, related, options
        self.result = _empty(scores, options)
        nothing = np.zeros(scores.queries, np.int64)
        counts = related.counts if related else Counts(nothing, nothing, nothing)
        self.counts = counts
        self.result.num_positives[:] = counts.positives
        self.result.drop_cause[counts.positives > 0] = ""
        self.result.drop_cause[counts.junk == scores.buffer.images] = "all_junk"
        distinct = related is not None and related.protocol.distinct_identities
        self._people = _runs(np.asarray(related.gallery["identity"])) if related and distinct else None

    def enter(self, block: np.ndarray, buffer: jax.Array, *, keep: bool) -> jax.Array:
        """Fills the results of one block of queries; returns its buffer without the junk.

        keep: `buffer` is read again, and must not be changed in place.
        """
        scores, result = self.scores, self.result
        if self.related is not None:
            buffer = self._rank_block(self.related, block, buffer, keep=keep)
        if result.top_ids.shape[1]:
            best, ids = scores.buffer.top(buffer, result.top_ids.shape[1])
            result.top_ids[block] = ids[: len(block)]
            result.top_scores[block] = scores.reported(block, best[: len(block)])
        return buffer

    def _rank_block(self, related: RelatedPairs, block: np.ndarray, buffer: jax.Array, *, keep: bool) -> jax.Array:
        """Fills the figures of one block of queries; returns its buffer without the junk."""
        options, placed = self.options, self.scores.buffer
        found = related.of(block)
        ranked = found.positive | found.person
        column, place = found.padded(ranked, len(block))
        at = found.row[ranked], place
        positive = np.zeros(column.shape, bool)
        positive[at] = found.positive[ranked]
        if options.cut is not None:
            # The released code cuts the ranking with the junk still in it.
            positive &= placed.preceding(buffer, column, options.sort_above) < options.cut
        if found.junk.any():
            buffer = placed.remove(buffer.copy() if keep else buffer, found.padded(found.junk, len(block))[0])
        if not column.shape[1]:
            return buffer
        position = placed.preceding(buffer, column, options.sort_above)
        position[column < 0] = np.iinfo(np.int32).max
        order = np.argsort(position, axis=1)
        position, positive = np.take_along_axis(position, order, axis=1), np.take_along_axis(positive, order, axis=1)
        self._enter_precision(block, position, positive)
        if self._people is not None:
            first = np.take_along_axis(column, order, axis=1)[np.arange(len(block)), positive.argmax(axis=1)]
            before = _people_before(placed.on_host(buffer)[: len(block)], first, self._people)
            self.result.first_positive_rank[block] = np.where(positive.any(axis=1), 1 + before, 0)
        if options.similarity is not None and options.taus:
            similarity = np.zeros(column.shape)
            similarity[at] = related.evaluate(options.similarity, block, found, ranked)
            self._enter_taus(block, position, positive, np.take_along_axis(similarity, order, axis=1))
        return buffer

    def _enter_precision(self, block: np.ndarray, position: np.ndarray, positive: np.ndarray) -> None:
        """AP, INP, the first positive's rank and `follows`, from ascending 0-based ranks [n,P]."""
        result = self.result
        valid = result.drop_cause[block] == ""
        row, kept = np.arange(len(block)), positive.sum(axis=1)
        first_rank = position[row, positive.argmax(axis=1)].astype(np.int64) + 1
        last_rank = position[row, position.shape[1] - 1 - positive[:, ::-1].argmax(axis=1)] + 1.0
        # A cut ranking without a positive has AP 0; every other valid query has a positive.
        result.ap[block] = np.where(valid, np.nan_to_num(average_precision(position, positive)), np.nan)
        result.inp[block] = np.where(valid, kept / last_rank, np.nan)
        result.first_positive_rank[block] = np.where(kept > 0, first_rank, 0)
        if result.follows is not None:
            result.follows[block] = valid & positive[:, 0]

    def _enter_taus(
        self, block: np.ndarray, position: np.ndarray, positive: np.ndarray, similarity: np.ndarray
    ) -> None:
        result = self.result
        if result.tau_ap is None or result.tau_kept is None:
            return
        for i, tau in enumerate(result.taus):
            above = positive & (similarity >= tau)
            result.tau_ap[block, i] = average_precision(position, above)
            result.tau_kept[block, i] = above.sum(axis=1)


def _empty(scores: Placed, options: Options) -> Ranking:
    """The result before any query is ranked: all of them dropped."""
    queries, images, taus = scores.queries, scores.buffer.images, options.taus
    top_k = min(options.top_k, images)
    return Ranking(
        gallery=images,
        ap=np.full(queries, np.nan),
        inp=np.full(queries, np.nan),
        first_positive_rank=np.zeros(queries, np.int32),
        num_positives=np.zeros(queries, np.int32),
        drop_cause=np.full(queries, "no_positive"),
        top_ids=np.full((queries, top_k), -1, np.int32),
        top_scores=np.full((queries, top_k), -np.inf, np.float32),
        taus=taus,
        tau_source=options.tau_source if taus else None,
        tau_ap=np.full((queries, len(taus)), np.nan) if taus else None,
        tau_kept=np.zeros((queries, len(taus)), np.int32) if taus else None,
        follows=np.zeros(queries, bool) if options.follow else None,
    )


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
    """Queries per block: a power of two (few shapes to compile) whose buffer of `width` columns fits BUFFER_BYTES."""
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
