"""The task-specific setting: a test set's queries against its own gallery, under each of its protocols."""

from __future__ import annotations

import dataclasses

import numpy as np

from irm_jax.evaluation import open_set, protocols
from irm_jax.evaluation.ranking import selection
from irm_jax.evaluation.ranking.rerank import KReciprocal
from irm_jax.evaluation.ranking.rescore import Rescored
from irm_jax.evaluation.ranking.selection import Selection
from irm_jax.evaluation.ranking.tau_similarity import similarity_of
from irm_jax.evaluation.ranking.trials import Scorer, taken
from irm_jax.evaluation.rankings import Rankings, named
from irm_jax.evaluation.set_features import FLIP
from irm_jax.evaluation.test_sets import Columns, EvaluationSet


def rank_task_specific(run: Rankings, test: EvaluationSet) -> None:
    """The set under its protocols, as it is and processed (`_processed`); the open set; `@top500`.

    Where mAP_tau would say nothing it is null, and `tau_missing` says why.
    """
    features, source = run.features[test.name], run.source(test)
    query, gallery = dict(test.query.columns), dict(test.gallery_columns)
    if run.options.tau_similarity == "model" and test.task.kind != "caption":
        query["instruction_feature"] = features.query.instruction["own"]
        gallery["instruction_feature"] = features.gallery.instruction["own"]
    follow = test.task.sentence is None
    no_tau = None if test.task.kind == "caption" else similarity_of(run.options.tau_similarity).missing(query, gallery)
    for name in test.protocols:
        protocol = protocols.protocol_of(name)
        ranked = run.rank(features.pair("own", "own"), query, gallery, protocol, taus=not no_tau, follow=follow)
        run.keep(protocol, ranked, query, gallery, source)
        if no_tau:
            run.results["protocols"][name]["tau_missing"] = no_tau
        for label, words, variant, scorer in _processed(run, test):
            processed = named(protocol, label, words)
            ranked = run.rank(features.pair(variant, variant), query, gallery, processed, scorer=scorer)
            run.keep(processed, ranked, query, gallery, source)
    if run.options.open_set:
        rank_open_set(run, test, query, gallery)
    if run.options.top500 and test.task.has_query_image:  # there identity alone counts
        name = next((name for name in test.protocols if name.endswith("+identity")), test.protocols[0])
        protocol = protocols.cut(protocols.protocol_of(name))
        ranked = run.rank(features.pair("own", "own"), query, gallery, protocol)
        run.keep(protocol, ranked, query, gallery, source)


def _processed(run: Rankings, test: EvaluationSet) -> list[tuple[str, str, str, Scorer | None]]:
    """(label, words, variant, scores) of what else is made of the same model: flips, re-ranking, both; of captions
    the matching head's judgement of the best."""
    o, metric, mesh = run.options, run.options.metric, run.embedder.mesh
    flip = [("+flip", "embeddings averaged over image and mirror", FLIP)] if o.flip else []
    processed: list[tuple[str, str, str, Scorer | None]] = [(*item, None) for item in flip]
    matcher = run.features[test.name].matcher
    if matcher is not None:

        def judge(query: np.ndarray, gallery: np.ndarray, trial: Selection) -> Rescored:
            pairs = lambda q, g: matcher(trial.query[q], trial.gallery[g])  # noqa: E731
            return Rescored(query, gallery, pairs, o.rescore_top)

        words = f"the {o.rescore_top} best by cosine judged again by the matching head, before the rest"
        processed.append(("+rescored", words, "own", judge))
    if o.rerank and test.task.has_query_image:  # captions are no neighbours of captions

        def neighbours(query: np.ndarray, gallery: np.ndarray, trial: Selection) -> KReciprocal:
            del trial
            return KReciprocal(query, gallery, metric=metric, mesh=mesh)

        words = "k-reciprocal re-ranking"
        processed.append(("+rerank", words, "own", neighbours))
        processed += [(f"{label}+rerank", f"{said}, {words}", variant, neighbours) for label, said, variant in flip]
    return processed


def rank_open_set(run: Rankings, test: EvaluationSet, query: Columns, gallery: Columns) -> None:
    """Under the set's first protocol; where that draws, what its first trial draws."""
    protocol = protocols.protocol_of(test.protocols[0])
    first = selection.trials(protocol, query, gallery)[0]
    person = query["identity"][first.query]
    away = open_set.people_left_out(person, run.options.seed)
    images = first.gallery[~np.isin(gallery["identity"][first.gallery], person[away])]
    if not away.any() or not len(images):
        return
    asking, searched = run.features[test.name].pair("own", "own")
    ranking, _ = run.rank(
        (asking[first.query], searched[images]), taken(query, first.query), taken(gallery, images),
        dataclasses.replace(protocol, draw=(), trials=1),
    )  # fmt: skip
    best, present = ranking.top_scores[:, 0], ranking.valid & ~away
    absent = best[away & np.isfinite(best)]  # of a query without any image that is not junk there is no score
    found = open_set.figures(best[present], ranking.first_positive_rank[present] == 1, absent)
    if found is not None:
        run.results["open_set"][protocol.name] = found
