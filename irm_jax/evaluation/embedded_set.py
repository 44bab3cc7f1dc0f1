"""A test set with its features, ready to be ranked, and what a ranking of it leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int, Int64

from irm_jax.evaluation.case import Case
from irm_jax.evaluation.features import OWN, SetFeatures
from irm_jax.evaluation.figures import Figure, label
from irm_jax.evaluation.ranking import rank
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.scores import EmbeddingScores, Scores
from irm_jax.evaluation.records import Records
from irm_jax.evaluation.test_sets import TestSet


@dataclasses.dataclass(frozen=True)
class Options:
    """How an evaluation ranks, and what it computes beside the plain figures; see `config.evaluation`.

    tau_similarity: "attributes" | "clothes" | "model". overlaps: pairs of data sets that share people who are not
    linked. rescore_top: images per caption judged by the matching head; 0: the model has none. two_stage: images
    per query embedded again under its instruction; 0: none. seed: of the controls and the open set.
    threads, workers: of reading images.
    """

    metric: str = "cosine"
    query_block: int = 0
    top_k: int = 10
    taus: tuple[float, ...] = ()
    tau_similarity: str = "attributes"
    task_free: bool = True
    overlaps: tuple[tuple[str, str], ...] = ()
    controls: bool = True
    top500: bool = True
    flip: bool = False
    rerank: bool = False
    rescore_top: int = 0
    two_stage: int = 0
    open_set: bool = True
    seed: int = 0
    threads: int = 2
    workers: int = 0

    def ranking(self, **changes: Any) -> rank.Options:
        """The options of one ranking."""
        return rank.Options(top_k=self.top_k, query_block=self.query_block or None, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """One ranking: its figure, the results per query, and what was ranked.

    source: (test set number, gallery record) of each gallery image of the case, i64[n,2].
    """

    figure: Figure
    ranking: Ranking
    case: Case
    source_of_case: Int64[np.ndarray, "n 2"]

    @property
    def record(self) -> Int64[np.ndarray, " Q"]:
        """The record in the query split of each query of the ranking."""
        return self.case.selection.query

    @property
    def source(self) -> Int64[np.ndarray, "G 2"]:
        """(test set number, gallery record) of each gallery image of the ranking, which its `top_ids` index."""
        return self.source_of_case[self.case.selection.gallery]

    @property
    def query(self) -> Records:
        """The queries of the ranking."""
        return self.case.query.take(self.case.selection.query)

    @property
    def gallery(self) -> Records:
        """The gallery images of the ranking."""
        return self.case.gallery.take(self.case.selection.gallery)

    def pair(self, query: int, images: Int[np.ndarray, " n"]) -> tuple[Records, Records]:
        """A query and some gallery images of the ranking: what `Protocol.relate` reads."""
        selection = self.case.selection
        return self.case.query.take(selection.query[[query]]), self.case.gallery.take(selection.gallery[images])


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddedSet:
    """A test set with its features; galleries are cut over the devices of `mesh`."""

    test: TestSet
    features: SetFeatures
    options: Options
    mesh: Mesh

    @property
    def metric(self) -> str:
        """Captions are always compared by cosine."""
        return "cosine" if self.features.caption else self.options.metric

    def scores(self, query: str, gallery: str) -> EmbeddingScores:
        """Scores of queries against the own gallery, embedded under the named variants."""
        return EmbeddingScores(*self.features.pair(query, gallery), self.metric, self.mesh)

    @functools.cached_property
    def own(self) -> EmbeddingScores:
        """The scores of the plain figures; the gallery stays on the devices as long as this set is kept."""
        return self.scores(OWN, OWN)

    @property
    def source(self) -> Int64[np.ndarray, "n 2"]:
        """(test set number, gallery record) of each gallery record."""
        count = len(self.test.gallery_records)
        return np.stack([np.full(count, self.test.number), np.arange(count)], axis=1)

    def row(self, case: Case, metrics: Mapping[str, Any], words: str = "", **fields: Any) -> Figure:
        """The figure of a ranking of `case`; `words` follow the description of the rule."""
        description = "; ".join(filter(None, (case.protocol.description, words)))
        figure = Figure(
            test_set=self.test.name, task=self.test.task.name, protocol=case.protocol.name, description=description,
            distractors=case.distractors, **{"metric": self.metric, **fields, **metrics},
        )  # fmt: skip
        if figure.queries == 0:
            logging.warning("%s: no query has a positive; its figures are null", label(figure))
        return figure

    def outcome(self, case: Case, scores: Scores, options: rank.Options, words: str = "", **fields: Any) -> Outcome:
        """Ranks a case over the set's own gallery; `fields` are those of the figure."""
        return self.outcome_of(case, case.rank(scores, options), words, **fields)

    def outcome_of(self, case: Case, ranking: Ranking, words: str = "", **fields: Any) -> Outcome:
        """The outcome of a ranking over the set's own gallery."""
        return Outcome(self.row(case, summarize(ranking), words, **fields), ranking, case, self.source)
