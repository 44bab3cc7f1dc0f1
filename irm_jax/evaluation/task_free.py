"""The task-free setting: queries of every task against the union of all galleries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from irm_jax.evaluation import protocols, test_sets
from irm_jax.evaluation.ranking.trials import taken
from irm_jax.evaluation.rankings import Rankings, named
from irm_jax.evaluation.test_sets import EvaluationSet


def rank_task_free(run: Rankings) -> None:
    """Every set's queries against the union of all galleries, gallery images under the neutral sentence.

    `@own`: gallery images under their own instructions (they reveal the source). `@test_set`: the domain control, the
    neutral gallery of the query's own test set alone: what the other galleries cost. (Not all images of one namespace:
    several test sets may show the same people, as the procedural ones do.) Protocols that differ in what they draw only
    are one here.
    Images of people who may be the query's own, but are not linked, are junk: they leave the union (`overlap_junk`
    counts them).
    """
    sets = [test for test in run.sets if test.task_free]
    columns = test_sets.concatenate([test.gallery_columns for test in sets])
    source = np.concatenate([run.source(test) for test in sets])
    by_instruction = columns["content"].astype(np.uint64) * np.uint64(31) + columns["instruction_key"]
    for test in sets:
        query = dict(test.query.columns)
        asking = run.features[test.name].asking("own")
        # Of equal images the own source's copy stays: its identity and camera are what the rule is about.
        order = 2 * columns["distractor"] + (columns["source"] != query["source"][0])
        clear = np.flatnonzero(~test_sets.possibly_same(test, sets, run.options.overlaps))
        neutral = clear[_first_of_each(columns["content"][clear], order[clear])]
        own = clear[_first_of_each(by_instruction[clear], order[clear])]
        junk = len(np.unique(columns["content"])) - len(neutral)
        union, gallery = _union(run, sets, test, "neutral", neutral), taken(columns, neutral)
        done: list[tuple[Any, ...]] = []
        for name in test.protocols:
            rule = protocols.protocol_of(name)
            protocol = protocols.task_free(rule)
            if junk:
                protocol = named(protocol, "", f"{junk} images of people who may be the same, unlinked, are junk")
            same = (rule.relate, rule.queries, rule.gallery, rule.distractors, rule.ap_topk)
            if rule.draw_from == "query" or same in done:
                continue
            done.append(same)
            run.keep(protocol, run.rank((asking, union), query, gallery, protocol), query, gallery, source[neutral])
            run.results["protocols"][protocol.name]["overlap_junk"] = junk
            run.chance(query, gallery, protocol)
            if name != test.protocols[0]:
                continue
            if test.task.kind != "caption":
                variant = named(protocol, "@own", "gallery under its own instructions, which reveal the source")
                everything, shown = _union(run, sets, test, "own", own), taken(columns, own)
                ranked = run.rank((asking, everything), query, shown, variant)
                run.keep(variant, ranked, query, shown, source[own])
            variant = named(protocol, "@test_set", "domain control: only the gallery of the query's own test set")
            alone = run.features[test.name].pair("own", "neutral")
            ranked = run.rank(alone, query, test.gallery_columns, variant)
            run.keep(variant, ranked, query, test.gallery_columns, run.source(test))


def _union(
    run: Rankings, sets: Sequence[EvaluationSet], asking: EvaluationSet, variant: str, records: np.ndarray
) -> np.ndarray:
    """Some gallery records, numbered one set after the other, as the queries of `asking` compare them."""
    by_caption = asking.task.kind == "caption"
    parts = [run.features[test.name].searched(variant, by_caption=by_caption) for test in sets]
    ends = np.cumsum([len(part) for part in parts])
    pieces = np.split(records, np.searchsorted(records, ends[:-1]))
    return np.concatenate(
        [part[piece - (end - len(part))] for part, piece, end in zip(parts, pieces, ends, strict=True)]
    )


def _first_of_each(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Indices of one record of each key, ascending: the first one of those lowest in `order`."""
    by_order = np.argsort(order, kind="stable")
    return np.sort(by_order[np.unique(keys[by_order], return_index=True)[1]])
