"""Evaluates one model on all test sets: task-specific, task-free, with its controls. Reads, never writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from irm_jax.evaluation.control_rankings import rank_controls
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.rankings import Options, Ranked, Rankings
from irm_jax.evaluation.set_features import embed_set
from irm_jax.evaluation.task_free import rank_task_free
from irm_jax.evaluation.task_specific import rank_task_specific
from irm_jax.evaluation.test_sets import EvaluationSet

__all__ = ["Evaluation", "Evaluator", "Options", "Ranked"]


@dataclasses.dataclass
class Evaluation:
    """Figures in the form of results.json, and the rankings by protocol name for pictures and per-query files."""

    sets: list[EvaluationSet]
    results: dict[str, Any]
    ranked: dict[str, Ranked]

    def score(self, name: str) -> float:
        """What chooses the best checkpoint: `mean_mAP` over the test sets' first protocols, or a protocol's mAP."""
        if name != "mean_mAP":
            return float(self.results["protocols"][name]["mAP"] or 0.0)
        values = [self.results["protocols"][s.protocols[0]]["mAP"] for s in self.sets]
        return float(np.mean([v for v in values if v is not None] or [0.0]))


class Evaluator:
    """Embeds every test set once, then ranks it under every protocol and setting."""

    def __init__(self, embedder: EmbeddingModel, sets: Sequence[EvaluationSet], options: Options) -> None:
        self.embedder, self.sets, self.options = embedder, list(sets), options

    def run(self) -> Evaluation:
        """All figures. Progress is logged a test set."""
        o, rankings = self.options, Rankings(self.embedder, self.sets, self.options)
        for number, test in enumerate(self.sets, 1):
            logging.info("evaluating %s (%d of %d)", test.name, number, len(self.sets))
            rankings.features[test.name] = embed_set(
                self.embedder, test, neutral=o.task_free and test.task_free, with_controls=o.controls, flip=o.flip,
                rescore=o.rescore_top > 0,
                workers=o.workers, threads=o.threads,
            )  # fmt: skip
            rank_task_specific(rankings, test)
            if o.controls:
                rank_controls(rankings, test)
        if o.task_free and any(test.task_free for test in self.sets):
            rank_task_free(rankings)
        return Evaluation(self.sets, rankings.results, rankings.ranked)
