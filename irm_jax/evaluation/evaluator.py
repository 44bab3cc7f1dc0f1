"""Evaluates one model on all test sets: task-specific, task-free, with its controls. Reads, never writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from irm_jax.evaluation import controls, evaluation_sets, open_set, protocols, tau_similarity
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluation_sets import Columns, EvaluationSet
from irm_jax.evaluation.figures import METRICS, Ranking, summarize
from irm_jax.evaluation.rerank import KReciprocal
from irm_jax.evaluation.rescoring import Rescored
from irm_jax.evaluation.selection import Selection
from irm_jax.evaluation.set_features import FLIP, SetFeatures, embed_set
from irm_jax.evaluation.trials import Scorer, rank_trials, taken


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
        self._results: dict[str, Any] = {
            "protocols": {}, "baselines": {}, "swapped_instructions": {}, "open_set": {},
        }  # fmt: skip
        self._ranked: dict[str, Ranked] = {}
        self._features: dict[str, SetFeatures] = {}

    def run(self) -> Evaluation:
        """All figures. Progress is logged a test set."""
        o = self.options
        for number, test in enumerate(self.sets, 1):
            logging.info("evaluating %s (%d of %d)", test.name, number, len(self.sets))
            self._features[test.name] = embed_set(
                self.embedder, test, neutral=o.task_free and test.task_free, with_controls=o.controls, flip=o.flip,
                rescore=o.rescore_top > 0,
                workers=o.workers, threads=o.threads,
            )  # fmt: skip
            self._task_specific(test)
            if o.controls:
                self._controls(test)
        if o.task_free and any(test.task_free for test in self.sets):
            self._task_free()
        return Evaluation(self.sets, self._results, self._ranked)

    def _rank(
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
        o = self.options
        caption = not protocol.gallery_has_instruction
        return rank_trials(
            *embeddings, query, gallery, protocol,
            metric=metric or ("cosine" if caption else o.metric), scorer=scorer,
            mesh=self.embedder.mesh, query_block=o.query_block or None, top_k=o.top_k,
            taus=o.taus if taus else (), tau_similarity=_similarity(o.tau_similarity) if taus else None, follow=follow,
        )  # fmt: skip

    def _keep(
        self,
        protocol: protocols.Protocol,
        ranked: tuple[Ranking, Selection],
        query: Columns,
        gallery: Columns,
        source: np.ndarray,
    ) -> None:
        ranking, chosen = ranked
        summary = {
            "task": protocol.task, "setting": protocol.setting, "description": protocol.description,
            **summarize(ranking),
        }  # fmt: skip
        self._results["protocols"][protocol.name] = summary
        self._ranked[protocol.name] = Ranked(
            summary, ranking, taken(query, chosen.query), taken(gallery, chosen.gallery), chosen.query,
            source[chosen.gallery],
        )  # fmt: skip

    def _source(self, test: EvaluationSet) -> np.ndarray:
        """(set number, gallery record) of each gallery record of a set."""
        count = len(test.gallery_columns["identity"])
        return np.stack([np.full(count, self.sets.index(test)), np.arange(count)], axis=1)

    # Task-specific

    def _task_specific(self, test: EvaluationSet) -> None:
        features, source = self._features[test.name], self._source(test)
        query, gallery = dict(test.query.columns), dict(test.gallery_columns)
        if self.options.tau_similarity == "model" and test.task.group != "caption":
            query["instruction_feature"] = features.query.instruction["own"]
            gallery["instruction_feature"] = features.gallery.instruction["own"]
        follow = test.task.sentence is None
        for name in test.protocols:
            protocol = protocols.protocol_of(name)
            ranked = self._rank(features.pair("own", "own"), query, gallery, protocol, taus=True, follow=follow)
            self._keep(protocol, ranked, query, gallery, source)
            for label, words, variant, scorer in self._processed(test):
                processed = _named(protocol, label, words)
                ranked = self._rank(features.pair(variant, variant), query, gallery, processed, scorer=scorer)
                self._keep(processed, ranked, query, gallery, source)
        if self.options.open_set:
            self._open_set(test, query, gallery)
        if self.options.top500 and test.task.has_query_image:  # there identity alone counts
            name = next((name for name in test.protocols if name.endswith("+identity")), test.protocols[0])
            protocol = protocols.cut(protocols.protocol_of(name))
            ranked = self._rank(features.pair("own", "own"), query, gallery, protocol)
            self._keep(protocol, ranked, query, gallery, source)

    def _processed(self, test: EvaluationSet) -> list[tuple[str, str, str, Scorer | None]]:
        """(label, words, variant, scores) of what else is made of the same model: flips, re-ranking, both; of captions
        the matching head's judgement of the best."""
        o, metric, mesh = self.options, self.options.metric, self.embedder.mesh
        flip = [("+flip", "embeddings averaged over image and mirror", FLIP)] if o.flip else []
        processed: list[tuple[str, str, str, Scorer | None]] = [(*item, None) for item in flip]
        matcher = self._features[test.name].matcher
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

    def _open_set(self, test: EvaluationSet, query: Columns, gallery: Columns) -> None:
        """Under the set's first protocol; where that draws, its first trial."""
        protocol = protocols.protocol_of(test.protocols[0])
        known = self._ranked[protocol.name]
        ranking, valid = known.ranking, known.ranking.valid
        away = valid & open_set.people_left_out(known.query["identity"], self.options.seed)
        if not away.any():
            return
        present = valid & ~away
        asking, searched = self._features[test.name].pair("own", "own")
        records = known.record[away]
        alone = dataclasses.replace(open_set.without_mates(protocol), trials=1)
        ranked, _ = self._rank((asking[records], searched), taken(query, records), gallery, alone)
        absent = ranked.top_scores[:, 0]
        found = open_set.figures(
            ranking.top_scores[present, 0], ranking.first_positive_rank[present] == 1, absent[np.isfinite(absent)]
        )
        if found is not None:
            self._results["open_set"][protocol.name] = found

    # Task-free

    def _task_free(self) -> None:
        """Every set's queries against the union of all galleries, gallery images under the neutral sentence.

        `@own`: gallery images under their own instructions (they reveal the source). `@source`: the domain control,
        the same neutral gallery of the query's own source. Protocols that differ in what they draw only are one here.
        Images of people who may be the query's own, but are not linked, are junk: they leave the union (`overlap_junk`
        counts them).
        """
        sets = [test for test in self.sets if test.task_free]
        columns = evaluation_sets.concatenate([test.gallery_columns for test in sets])
        source = np.concatenate([self._source(test) for test in sets])
        by_instruction = columns["content"].astype(np.uint64) * np.uint64(31) + columns["instruction_key"]
        for test in sets:
            query = dict(test.query.columns)
            asking = self._features[test.name].asking("own")
            # Of equal images the own source's copy stays: its identity and camera are what the rule is about.
            order = 2 * columns["distractor"] + (columns["source"] != query["source"][0])
            clear = np.flatnonzero(~evaluation_sets.possibly_same(test, sets, self.options.overlaps))
            neutral = clear[_first_of_each(columns["content"][clear], order[clear])]
            own = clear[_first_of_each(by_instruction[clear], order[clear])]
            junk = len(np.unique(columns["content"])) - len(neutral)
            union, gallery = self._union(sets, test, "neutral", neutral), taken(columns, neutral)
            done: list[tuple[Any, ...]] = []
            for name in test.protocols:
                rule = protocols.protocol_of(name)
                protocol = protocols.task_free(rule)
                if junk:
                    protocol = _named(protocol, "", f"{junk} images of people who may be the same, unlinked, are junk")
                same = (rule.relate, rule.queries, rule.gallery, rule.distractors, rule.ap_topk)
                if rule.draw_from == "query" or same in done:
                    continue
                done.append(same)
                self._keep(
                    protocol, self._rank((asking, union), query, gallery, protocol), query, gallery, source[neutral]
                )
                self._results["protocols"][protocol.name]["overlap_junk"] = junk
                self._chance(query, gallery, protocol)
                if name != test.protocols[0]:
                    continue
                if test.task.group != "caption":
                    variant = _named(protocol, "@own", "gallery under its own instructions, which reveal the source")
                    everything, shown = self._union(sets, test, "own", own), taken(columns, own)
                    ranked = self._rank((asking, everything), query, shown, variant)
                    self._keep(variant, ranked, query, shown, source[own])
                variant = _named(protocol, "@source", "domain control: only the gallery of the query's own source")
                alone = self._features[test.name].pair("own", "neutral")
                ranked = self._rank(alone, query, test.gallery_columns, variant)
                self._keep(variant, ranked, query, test.gallery_columns, self._source(test))

    def _union(
        self, sets: Sequence[EvaluationSet], asking: EvaluationSet, variant: str, records: np.ndarray
    ) -> np.ndarray:
        """Some gallery records, numbered one set after the other, as the queries of `asking` compare them."""
        by_caption = asking.task.group == "caption"
        parts = [self._features[test.name].searched(variant, by_caption=by_caption) for test in sets]
        ends = np.cumsum([len(part) for part in parts])
        pieces = np.split(records, np.searchsorted(records, ends[:-1]))
        return np.concatenate(
            [part[piece - (end - len(part))] for part, piece, end in zip(parts, pieces, ends, strict=True)]
        )

    # Controls

    def _controls(self, test: EvaluationSet) -> None:
        o = self.options
        query, gallery, features = dict(test.query.columns), dict(test.gallery_columns), self._features[test.name]
        pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {
            "perfect_identity": controls.perfect_identity(
                query, gallery, o.seed, query_is_image=test.task.has_query_image
            ),
            "oracle": controls.perfect_oracle(query, gallery),
        }
        if test.task.has_query_image:
            sides = [
                [controls.color_histogram(part.dataset, part.split, threads=o.threads) for part in parts]
                for parts in ([test.query], test.parts)
            ]
            pairs["color_histogram"] = np.concatenate(sides[0]), np.concatenate(sides[1])
            pairs["image_only"] = features.pair("neutral", "neutral")
            pairs["instruction_only"] = features.pair("grey", "grey")
        for name in test.protocols:
            self._chance(query, gallery, protocols.protocol_of(name))
        for baseline, pair in pairs.items():
            table = self._results["baselines"].setdefault(baseline, {})
            for name in test.protocols:
                metric = None if baseline in ("image_only", "instruction_only") else "cosine"
                ranking, _ = self._rank(pair, query, gallery, protocols.protocol_of(name), metric=metric)
                table[name] = _short(summarize(ranking))
        if test.task.sentence is None:
            self._swapped(test, query, gallery)

    def _chance(self, query: Columns, gallery: Columns, protocol: protocols.Protocol) -> None:
        if self.options.controls and protocol.ap_topk is None:  # a cut ranking has no closed form
            table = self._results["baselines"].setdefault("random", {})
            table[protocol.name] = controls.random_ranking(query, gallery, protocol)

    def _swapped(self, test: EvaluationSet, query: Columns, gallery: Columns) -> None:
        """The same targets under a wrong instruction; the follow rate looks for what that instruction asks."""
        name = test.protocols[0]
        protocol, features = protocols.protocol_of(name), self._features[test.name]
        if test.task.group == "caption":
            other = controls.another_person(query["identity"])
            keep = np.flatnonzero(other >= 0)
            if not len(keep):
                return
            asking, searched = features.pair("own", "own")
            ranking, _ = self._rank((asking[other[keep]], searched), taken(query, keep), gallery, protocol)
            entry = {"mAP": summarize(ranking)["mAP"], "follow_rate": None, "by": "another person's caption"}
        else:
            chosen = features.swaps if features.swaps is not None else np.full(len(test.query), -1)
            keep = np.flatnonzero(chosen >= 0)
            if not len(keep):  # nobody owns a second outfit
                return
            asking, searched = features.pair("swapped", "own")
            pair = asking[keep], searched
            ranking, _ = self._rank(pair, taken(query, keep), gallery, protocol)
            asked = taken(query, keep)
            for key in ("instruction_clothes", "instruction_attributes", "instruction_key"):
                asked[key] = gallery[key][chosen[keep]]
            followed, _ = self._rank(pair, asked, gallery, protocol, follow=True)
            entry = {
                "mAP": summarize(ranking)["mAP"],
                "follow_rate": summarize(followed)["follow_rate"],
                "by": "another outfit of the same person",
            }
        self._results["swapped_instructions"][name] = entry


def _named(protocol: protocols.Protocol, label: str, words: str) -> protocols.Protocol:
    """The same rule over another gallery or other scores, as NAME and the label."""
    return dataclasses.replace(protocol, name=f"{protocol.name}{label}", description=f"{protocol.description}; {words}")


def _similarity(source: str) -> tau_similarity.InstructionSimilarity:
    table = {"attributes": tau_similarity.ATTRIBUTES, "clothes": tau_similarity.CLOTHES}
    return table[source] if source in table else tau_similarity.feature_similarity(source)


def _short(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in METRICS}


def _first_of_each(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Indices of one record of each key, ascending: the first one of those lowest in `order`."""
    by_order = np.argsort(order, kind="stable")
    return np.sort(by_order[np.unique(keys[by_order], return_index=True)[1]])
