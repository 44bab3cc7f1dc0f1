"""The task-free setting: queries of every task against the union of all galleries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from irm_jax.evaluation.case import Case, prepare, rank_cases
from irm_jax.evaluation.controls import random_row
from irm_jax.evaluation.embedded_set import EmbeddedSet, Outcome
from irm_jax.evaluation.features import NEUTRAL, OWN
from irm_jax.evaluation.figures import Figure
from irm_jax.evaluation.protocols import Protocol
from irm_jax.evaluation.ranking.metrics import summarize
from irm_jax.evaluation.ranking.scores import EmbeddingScores
from irm_jax.evaluation.records import Records
from irm_jax.evaluation.test_sets import possibly_same


def rank_task_free(sets: Sequence[EmbeddedSet]) -> tuple[list[Outcome], list[Figure]]:
    """Ranks every set's queries against the union of all galleries; returns the outcomes and the rows of chance.

    Gallery images are embedded under the neutral sentence. Under the first protocol also: the union under the images'
    own instructions (which reveal the source), and the own gallery alone under the neutral sentence, the domain control
    (not all images of one namespace: several test sets may show the same people, as the procedural ones do).
    Protocols that differ only in what they draw are one here.
    Images of people who may be the query's own, but are not linked, leave the union (`overlap_junk` counts them).
    """
    union = _Union(sets)
    found: dict[str, list[Outcome]] = {embedded.test.name: [] for embedded in sets}
    chance: dict[str, list[Figure]] = {embedded.test.name: [] for embedded in sets}
    # Queries that read the same gallery follow each other: it is placed on the devices once.
    for embedded in sorted(sets, key=lambda embedded: embedded.features.caption):
        fields: dict[str, Any] = {"setting": "task_free", "gallery": "union", "gallery_instruction": "neutral"}
        records, junk = union.distinct(embedded, by_instruction=False)
        words = "against the union of all galleries"
        if junk:
            words += f"; {junk} images of people who may be the same, unlinked, are junk"
        cases = list(union.cases(embedded, records))
        found[embedded.test.name] += union.rank(embedded, cases, records, words, {**fields, "overlap_junk": junk})
        if embedded.options.controls:
            chance[embedded.test.name] += [random_row(embedded, case, **fields) for case in cases]
    for embedded in sets:
        rule = embedded.test.protocols[0]
        if rule.draw_from == "query":
            continue
        if not embedded.features.caption:
            fields = {"setting": "task_free", "gallery": "union", "gallery_instruction": "own"}
            records, _ = union.distinct(embedded, by_instruction=True)
            cases = [union.case(embedded, rule, records)]
            words = "against the union of all galleries under their own instructions, which reveal the source"
            found[embedded.test.name] += union.rank(embedded, cases, records, words, fields)
        found[embedded.test.name].append(_own_gallery(embedded, rule))
    return [o for rows in found.values() for o in rows], [row for rows in chance.values() for row in rows]


def _own_gallery(embedded: EmbeddedSet, rule: Protocol) -> Outcome:
    """The domain control: what the other galleries cost."""
    test = embedded.test
    rule = rule.against_union(query_is_image=test.task.has_query_image)
    case = prepare(rule, test.query.records, test.gallery_records, union=True)
    return embedded.outcome(
        case, embedded.scores(OWN, NEUTRAL), embedded.options.ranking(),
        "domain control: only the gallery of the query's own test set", setting="task_free", gallery="own",
        gallery_instruction="neutral",
    )  # fmt: skip


class _Union:
    """The galleries of all sets, one set after the other."""

    def __init__(self, sets: Sequence[EmbeddedSet]) -> None:
        self.sets = sets
        self.records = Records.concat([embedded.test.gallery_records for embedded in sets])
        self.source = np.concatenate([embedded.source for embedded in sets])
        self._last: tuple[tuple[Any, ...], np.ndarray, EmbeddingScores] | None = None

    def distinct(self, embedded: EmbeddedSet, *, by_instruction: bool) -> tuple[Int64[np.ndarray, " n"], int]:
        """The records of distinct images (under distinct instructions), and how many images leave for overlaps.

        Of equal images the own source's copy stays: its identity and camera are what the rule is about.
        """
        records, test = self.records, embedded.test
        sets = [other.test for other in self.sets]
        order = 2 * records.distractor + (records.source != test.query.records.source[0])
        clear = np.flatnonzero(~possibly_same(test, sets, embedded.options.overlaps))
        keys = records.content
        if by_instruction:
            keys = keys * np.uint64(31) + records.instruction_key
        kept = clear[_first_of_each(keys[clear], order[clear])]
        return kept, 0 if by_instruction else len(np.unique(keys)) - len(kept)

    def case(self, embedded: EmbeddedSet, rule: Protocol, records: np.ndarray, *, distractors: bool = False) -> Case:
        """A rule over some records of the union."""
        rule = rule.against_union(query_is_image=embedded.test.task.has_query_image)
        return prepare(
            rule, embedded.test.query.records, self.records.take(records), union=True, distractors=distractors
        )

    def cases(self, embedded: EmbeddedSet, records: np.ndarray) -> Iterator[Case]:
        """The set's distinct rules over some records of the union."""
        done: list[tuple[Any, ...]] = []
        for case in embedded.test.cases:
            rule = case.protocol
            key = (rule.positive, rule.junk, rule.queries, rule.gallery, case.distractors)
            if rule.draw_from == "query" or key in done:
                continue
            done.append(key)
            yield self.case(embedded, rule, records, distractors=case.distractors)

    def rank(
        self, embedded: EmbeddedSet, cases: Sequence[Case], records: np.ndarray, words: str, fields: dict[str, Any]
    ) -> list[Outcome]:
        """Ranks cases over some records of the union, embedded as the `fields` of the figure say."""
        scores = self._scores(embedded, fields["gallery_instruction"], records)
        rankings = rank_cases(cases, scores, [embedded.options.ranking()] * len(cases))
        return [
            Outcome(embedded.row(case, summarize(ranking), words, **fields), ranking, case, self.source[records])
            for case, ranking in zip(cases, rankings, strict=True)
        ]

    def _scores(self, embedded: EmbeddedSet, variant: str, records: np.ndarray) -> EmbeddingScores:
        query = embedded.features.of_queries(OWN)
        key = (variant, embedded.features.caption)
        if self._last is None or self._last[0] != key or not np.array_equal(self._last[1], records):
            self._last = None  # lets the earlier gallery go first
            gallery = self._embeddings(variant, records, by_caption=embedded.features.caption)
            scores = EmbeddingScores(query, gallery, embedded.metric, embedded.mesh)
            self._last = (key, records, scores)
        return self._last[2].with_queries(query)

    def _embeddings(self, variant: str, records: np.ndarray, *, by_caption: bool) -> np.ndarray:
        """Embeddings of some gallery records, as captions or images compare them."""
        parts = [embedded.features.of_gallery(variant, by_caption=by_caption) for embedded in self.sets]
        ends = np.cumsum([len(part) for part in parts])
        pieces = np.split(records, np.searchsorted(records, ends[:-1]))
        return np.concatenate(
            [part[piece - (end - len(part))] for part, piece, end in zip(parts, pieces, ends, strict=True)]
        )


def _first_of_each(keys: np.ndarray, order: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """Indices of one record of each key, ascending: the first one of those lowest in `order`."""
    by_order = np.argsort(order, kind="stable")
    return np.sort(by_order[np.unique(keys[by_order], return_index=True)[1]])
