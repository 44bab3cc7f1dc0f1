"""Evaluates one model on all test sets: task-specific, task-free, with its controls. Reads, never writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from irm_jax.evaluation.case import rank_cases
from irm_jax.evaluation.controls import control_rows, swapped_instruction, swapped_row
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.embedded_set import EmbeddedSet, Options, Outcome
from irm_jax.evaluation.features import FLIP, NEUTRAL, OWN, EmbedOptions, embed_set, grey_features
from irm_jax.evaluation.figures import MEAN, Figure, OpenSetFigure, Results, counterpart, headlines
from irm_jax.evaluation.open_set import rank_open_set
from irm_jax.evaluation.protocols import MARKET, protocol_of
from irm_jax.evaluation.ranking.rerank import KReciprocal
from irm_jax.evaluation.ranking.rescore import Rescored
from irm_jax.evaluation.ranking.scores import Scores
from irm_jax.evaluation.ranking.tau_similarity import InstructionSimilarity
from irm_jax.evaluation.task_free import rank_task_free
from irm_jax.evaluation.test_sets import TestSet
from irm_jax.models.encoders.features import ImageFeatures

__all__ = ["Evaluation", "Evaluator", "Options", "Outcome"]


CUT = 500
"""Where the released code cuts its rankings."""


@dataclasses.dataclass
class Evaluation:
    """The figures of one model, and for pictures and per-query files the model's rankings that they are made of."""

    sets: list[TestSet]
    figures: list[Figure]
    open_set: list[OpenSetFigure]
    outcomes: list[Outcome]

    @property
    def results(self) -> Results:
        """The figures in the form of results.json."""
        return Results(tuple(self.figures), tuple(self.open_set))

    def headline(self, test: TestSet) -> Outcome:
        """The plain ranking of a test set under its first protocol."""
        figure = headlines(self.figures)[test.name]
        return next(outcome for outcome in self.outcomes if outcome.figure is figure)

    def score(self, name: str) -> float:
        """What chooses the best checkpoint: "mean_mAP" over the test sets' first protocols, or the mAP of one figure,
        "TEST_SET" (its first protocol) or "TEST_SET/PROTOCOL". An undefined mAP counts as 0, and not in the mean."""
        first = headlines(self.figures)
        if name == MEAN:
            return float(np.mean([f.mAP for f in first.values() if f.mAP is not None] or [0.0]))
        test_set, _, rule = name.partition("/")
        figure: Figure | None = first[test_set]
        if rule:
            figure = counterpart(self.figures, first[test_set], protocol=protocol_of(rule).name)
        if figure is None:
            raise KeyError(f"test set {test_set} is not ranked by {rule}")
        return float(figure.mAP or 0.0)


class Evaluator:
    """Embeds every test set once, then ranks it under every protocol and setting."""

    def __init__(self, embedder: EmbeddingModel, sets: Sequence[TestSet], options: Options) -> None:
        self.embedder, self.sets, self.options = embedder, list(sets), options

    def run(self) -> Evaluation:
        """Computes all figures. Progress is logged per test set."""
        options, found = self.options, Evaluation(self.sets, [], [], [])
        grey = grey_features(self.embedder) if options.controls else None
        free: list[EmbeddedSet] = []
        beside: list[Figure] = []
        for number, test in enumerate(self.sets, 1):
            logging.info("evaluating %s (%d of %d)", test.name, number, len(self.sets))
            embedded = self._embed(test, grey)
            found.outcomes += rank_task_specific(embedded)
            if options.controls:
                beside += control_rows(embedded)
                if test.task.sentence is None and (row := swapped_row(embedded)):
                    beside.append(row)
            if options.open_set and (figure := rank_open_set(embedded)):
                found.open_set.append(figure)
            if options.task_free and test.task_free:
                # Without what the set has placed on the devices.
                free.append(dataclasses.replace(embedded))
        if free:
            outcomes, chance = rank_task_free(free)
            found.outcomes += outcomes
            beside += chance
        found.figures = [*(outcome.figure for outcome in found.outcomes), *beside]
        return found

    def _embed(self, test: TestSet, grey: ImageFeatures | None) -> EmbeddedSet:
        o = self.options
        swaps = None
        if o.controls and test.task.sentence is None and test.task.has_query_image:
            swaps = swapped_instruction(test.query.records, test.gallery.records, test.protocols[0])
        neutral = o.task_free and test.task_free
        caption = test.task.kind == "caption"
        two_stage = o.two_stage > 0 and not caption
        features = embed_set(
            self.embedder, test,
            EmbedOptions(
                neutral or two_stage, o.controls, o.flip, judged=o.rescore_top > 0 if caption else two_stage,
                workers=o.workers, threads=o.threads, instruction=o.tau_similarity == "model", grey=grey,
            ), swaps,
        )  # fmt: skip
        return EmbeddedSet(test, features, o, self.embedder.mesh)


def rank_task_specific(embedded: EmbeddedSet) -> list[Outcome]:
    """Ranks a set under each protocol, plain and with flips, rescoring and re-ranking; and once cut at CUT.

    Cut is the ranking by identity alone, as in the released code, if the set has such a protocol.
    """
    test, options = embedded.test, embedded.options
    fields, tau_options = _taus(embedded)
    plain = options.ranking(follow=test.task.sentence is None, **tau_options)
    cases, ranked_as = [*test.cases], [plain] * len(test.cases)
    if options.top500 and test.task.has_query_image:
        cases.append(next((case for case in test.cases if case.protocol.name == MARKET.name), test.cases[0]))
        ranked_as.append(options.ranking(cut=CUT))
    rankings = rank_cases(cases, embedded.own, ranked_as)
    rows = [[embedded.outcome_of(c, ranking, **fields)] for c, ranking in zip(test.cases, rankings, strict=False)]
    words = f"ranking cut at {CUT} before junk removal, AP over the positives found there"
    cut = [embedded.outcome_of(cases[-1], ranking, words, cut=CUT) for ranking in rankings[len(rows) :]]
    for scoring, words, scores in _processed(embedded):
        metric = {"metric": "cosine"} if scoring == ("two_stage",) else {}
        rankings = rank_cases(test.cases, scores, [options.ranking()] * len(test.cases))
        for row, case, ranking in zip(rows, test.cases, rankings, strict=True):
            row.append(embedded.outcome_of(case, ranking, words, scoring=scoring, **metric))
    return [outcome for row in rows for outcome in row] + cut


def _taus(embedded: EmbeddedSet) -> tuple[dict[str, str], dict[str, object]]:
    """Fields of a figure and options of its ranking for mAP_tau; if it would say nothing, `tau_missing` says why."""
    test, features, options = embedded.test, embedded.features, embedded.options
    if features.caption or not options.taus:
        return {}, {}
    own = None
    if options.tau_similarity == "model":
        own = features.query.instruction[OWN], features.gallery.instruction[OWN]
    similarity = InstructionSimilarity(options.tau_similarity, test.query.records, test.gallery_records, own)
    if missing := similarity.missing():
        return {"tau_missing": missing}, {}
    return {}, {"taus": options.taus, "similarity": similarity, "tau_source": similarity.source}


def _processed(embedded: EmbeddedSet) -> Iterator[tuple[tuple[str, ...], str, Scores]]:
    """(scoring, words, scores) of what else is made of the same model: flips, rescoring, two stages, re-ranking."""
    options, mesh, features = embedded.options, embedded.mesh, embedded.features
    flip = "embeddings averaged over image and mirror"
    if options.flip:
        yield ("flip",), flip, embedded.scores(FLIP, FLIP)
    if features.matcher is not None and features.caption:
        words = f"the {options.rescore_top} best by cosine judged again by the matching head, before the rest"
        yield ("rescored",), words, Rescored(*features.pair(OWN, OWN), features.matcher, options.rescore_top, mesh)
    elif features.matcher is not None:
        words = (
            f"by cosine with the gallery under the neutral sentence, the {options.two_stage} best embedded again under "
            "the query's instruction, before the rest"
        )
        pair = features.pair(OWN, NEUTRAL)
        yield ("two_stage",), words, Rescored(*pair, features.matcher, options.two_stage, mesh)
    if options.rerank and not features.caption:  # captions are no neighbours of captions
        words = "k-reciprocal re-ranking"
        yield ("rerank",), words, KReciprocal(*features.pair(OWN, OWN), metric=options.metric, mesh=mesh)
        if options.flip:
            scores = KReciprocal(*features.pair(FLIP, FLIP), metric=options.metric, mesh=mesh)
            yield ("flip", "rerank"), f"{flip}, {words}", scores
