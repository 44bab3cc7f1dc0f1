"""A test set ranked by the controls, and by the model under swapped instructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from irm_jax.evaluation import controls, protocols
from irm_jax.evaluation.ranking.metrics import METRICS, summarize
from irm_jax.evaluation.ranking.trials import Scorer, taken
from irm_jax.evaluation.rankings import Rankings
from irm_jax.evaluation.test_sets import Columns, EvaluationSet


def rank_controls(run: Rankings, test: EvaluationSet) -> None:
    """Every control under each of the set's protocols; in colours, and of parts of the query, where it has an image."""
    o = run.options
    query, gallery, features = dict(test.query.columns), dict(test.gallery_columns), run.features[test.name]
    image = test.task.has_query_image
    judges = {
        "perfect_identity": controls.perfect_identity(query, gallery, o.seed, query_is_image=image),
        "oracle": controls.perfect_oracle(query, gallery),
    }
    nothing = np.zeros((len(test.query), 1), np.float32), np.zeros((len(gallery["identity"]), 1), np.float32)
    pairs = dict.fromkeys(judges, nothing)
    if image:
        sides = [
            [controls.color_histogram(part.dataset, part.split, threads=o.threads) for part in parts]
            for parts in ([test.query], test.parts)
        ]
        pairs["color_histogram"] = np.concatenate(sides[0]), np.concatenate(sides[1])
        pairs["image_only"] = features.pair("neutral", "neutral")
        pairs["instruction_only"] = features.pair("grey", "grey")
    for name in test.protocols:
        run.chance(query, gallery, protocols.protocol_of(name))
    for baseline, pair in pairs.items():
        table = run.results["baselines"].setdefault(baseline, {})
        for name in test.protocols:
            metric = None if baseline in ("image_only", "instruction_only") else "cosine"
            scorer = _scorer(judges[baseline]) if baseline in judges else None
            ranking, _ = run.rank(pair, query, gallery, protocols.protocol_of(name), metric=metric, scorer=scorer)
            table[name] = _short(summarize(ranking))
    if test.task.sentence is None:
        _swapped(run, test, query, gallery)


def _scorer(judge: controls.Judge) -> Scorer:
    return lambda _query, _gallery, trial: lambda block: judge(trial.query[block], trial.gallery)


def _swapped(run: Rankings, test: EvaluationSet, query: Columns, gallery: Columns) -> None:
    """The same targets under a wrong instruction; the follow rate looks for what that instruction asks.

    `mAP_own`: of the same queries, those that have another instruction to be asked by, under their own one.
    """
    name, caption = test.protocols[0], test.task.kind == "caption"
    protocol, features = protocols.protocol_of(name), run.features[test.name]
    other = controls.another_person(query["identity"]) if caption else features.swaps
    if other is None or (other < 0).all():  # nobody owns a second outfit
        return
    keep = np.flatnonzero(other >= 0)
    own, searched = features.pair("own", "own")
    wrong = own[other[keep]] if caption else features.asking("swapped")[keep]
    asking = taken(query, keep)
    before, after = (
        summarize(run.rank((embedding, searched), asking, gallery, protocol)[0]) for embedding in (own[keep], wrong)
    )
    entry = {"mAP": after["mAP"], "mAP_own": before["mAP"], "queries": after["queries"]}
    if caption:
        entry |= {"follow_rate": None, "by": "another person's caption"}
    else:
        for key in ("instruction_clothes", "instruction_attributes", "instruction_outfit", "instruction_key"):
            asking[key] = gallery[key][other[keep]]
        followed, _ = run.rank((wrong, searched), asking, gallery, protocol, follow=True)
        entry |= {"follow_rate": summarize(followed)["follow_rate"], "by": "another outfit of the same person"}
    run.results["swapped_instructions"][name] = entry


def _short(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in METRICS}
