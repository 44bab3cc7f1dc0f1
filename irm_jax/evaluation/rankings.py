"""What one evaluation knows and has ranked so far; every figure of it is made by `Rankings.rank`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from irm_jax.evaluation import controls, protocols
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.selection import Selection
from irm_jax.evaluation.ranking.tau_similarity import similarity_of
from irm_jax.evaluation.ranking.trials import Scorer, rank_trials, taken
from irm_jax.evaluation.set_features import SetFeatures
from irm_jax.evaluation.test_sets import Columns, EvaluationSet


@dataclasses.dataclass(frozen=True)
class Options:
    """How to rank and what to print beside it; see `config.evaluation`."""

    metric: str
    query_block: int
    top_k: int
    taus: tuple[float, ...]
    tau_similarity: str  # "attributes" | "clothes" | "model"
    task_free: bool
    overlaps: tuple[tuple[str, str], ...]  # pairs of data sets that share people who are not linked
    controls: bool
    top500: bool
    flip: bool
    rerank: bool
    rescore_top: int  # images of a caption judged by the matching head; 0: the model has none
    open_set: bool
    seed: int
    threads: int
    workers: int


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One ranking with what it was made of: the columns of its queries and gallery images, each query's record in the
    query split, and for each gallery image its (set number, gallery record)."""

    summary: dict[str, Any]
    ranking: Ranking
    query: Columns
    gallery: Columns
    record: np.ndarray  # i64[Q]
    source: np.ndarray  # i64[G, 2]


class Rankings:
    """The test sets and their embeddings; figures in the form of results.json, and rankings by protocol name."""

    def __init__(self, embedder: EmbeddingModel, sets: Sequence[EvaluationSet], options: Options) -> None:
        self.embedder, self.sets, self.options = embedder, list(sets), options
        self.results: dict[str, Any] = {
            "protocols": {}, "baselines": {}, "swapped_instructions": {}, "open_set": {},
        }  # fmt: skip
        self.ranked: dict[str, Ranked] = {}
        self.features: dict[str, SetFeatures] = {}

    def rank(
        self,
        embeddings: tuple[np.ndarray, np.ndarray],
        query: Columns,
        gallery: Columns,
        protocol: protocols.Protocol,
        *,
        taus: bool = False,
        follow: bool = False,
        metric: str | None = None,
        scorer: Scorer | None = None,
    ) -> tuple[Ranking, Selection]:
        """Ranks (queries, gallery) embeddings under a protocol; captions always by cosine. See `rank_trials`."""
        o = self.options
        caption = not protocol.gallery_has_instruction
        return rank_trials(
            *embeddings, query, gallery, protocol,
            metric=metric or ("cosine" if caption else o.metric), scorer=scorer,
            mesh=self.embedder.mesh, query_block=o.query_block or None, top_k=o.top_k,
            taus=o.taus if taus else (), follow=follow,
            tau_similarity=similarity_of(o.tau_similarity) if taus else None,
        )  # fmt: skip

    def keep(
        self,
        protocol: protocols.Protocol,
        ranked: tuple[Ranking, Selection],
        query: Columns,
        gallery: Columns,
        source: np.ndarray,
    ) -> None:
        """Enters a ranking under its protocol's name. `source`: of the whole gallery, as `source` gives it."""
        ranking, chosen = ranked
        summary = {
            "task": protocol.task, "setting": protocol.setting, "description": protocol.description,
            **summarize(ranking),
        }  # fmt: skip
        self.results["protocols"][protocol.name] = summary
        self.ranked[protocol.name] = Ranked(
            summary, ranking, taken(query, chosen.query), taken(gallery, chosen.gallery), chosen.query,
            source[chosen.gallery],
        )  # fmt: skip

    def source(self, test: EvaluationSet) -> np.ndarray:
        """(set number, gallery record) of each gallery record of a set."""
        count = len(test.gallery_columns["identity"])
        return np.stack([np.full(count, self.sets.index(test)), np.arange(count)], axis=1)

    def chance(self, query: Columns, gallery: Columns, protocol: protocols.Protocol) -> None:
        """Enters what a random ranking gives under a protocol."""
        if self.options.controls and protocol.ap_topk is None:  # a cut ranking has no closed form
            table = self.results["baselines"].setdefault("random", {})
            table[protocol.name] = controls.random_ranking(query, gallery, protocol)


def named(protocol: protocols.Protocol, label: str, words: str) -> protocols.Protocol:
    """The same rule over another gallery or other scores, as NAME and the label."""
    return dataclasses.replace(protocol, name=f"{protocol.name}{label}", description=f"{protocol.description}; {words}")
