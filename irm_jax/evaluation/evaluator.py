"""Evaluates one model on all test sets: task-specific, task-free, with its controls. Reads, never writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.evaluation import controls, evaluation_sets, protocols
from irm_jax.evaluation.embed import EmbeddingModel, SplitFeatures, Variant, embed_split
from irm_jax.evaluation.evaluation_sets import Columns, EvaluationSet
from irm_jax.evaluation.figures import Ranking, summarize
from irm_jax.evaluation.ranking import rank


@dataclasses.dataclass(frozen=True)
class Options:
    """How to rank and what to print beside it; see `config.evaluation`."""

    metric: str
    query_block: int
    top_k: int
    taus: tuple[float, ...]
    tau_similarity: str  # "attributes" | "clothes" | "model"
    task_free: bool
    controls: bool
    top500: bool
    seed: int
    threads: int
    workers: int


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One ranking with what it was made of: `gallery` columns and, for each gallery row, its (set number, record)."""

    summary: dict[str, Any]
    ranking: Ranking
    query: Columns
    gallery: Columns
    source: np.ndarray  # i32[G, 2]


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
        self._results: dict[str, Any] = {"protocols": {}, "baselines": {}, "swapped_instructions": {}}
        self._ranked: dict[str, Ranked] = {}
        self._features: dict[tuple[str, str], SplitFeatures] = {}
        self._swaps: dict[str, np.ndarray] = {}

    def run(self) -> Evaluation:
        """All figures. Progress is logged a test set."""
        for number, test in enumerate(self.sets):
            logging.info("evaluating %s (%d of %d)", test.name, number + 1, len(self.sets))
            self._embed(test)
            self._task_specific(number, test)
            if self.options.controls:
                self._controls(test)
        if self.options.task_free and any(test.task_free for test in self.sets):
            self._task_free()
        return Evaluation(self.sets, self._results, self._ranked)

    # Features

    def _embed(self, test: EvaluationSet) -> None:
        o = self.options
        if test.task.group == "caption":
            captions = [str(test.query.asks[i]) for i in test.query.own]
            query = SplitFeatures({}, {}, self.embedder.project_sentences(captions))
        else:
            variants = [test.query.variant(), test.query.constant("neutral", NEUTRAL_SENTENCE)]
            if o.controls:
                variants += [test.query.variant("grey", grey=True), *self._swapped_variant(test)]
            query = embed_split(
                self.embedder, test.query.dataset, "query", variants, workers=o.workers, threads=o.threads
            )
        self._features[test.name, "query"] = query
        variants = [test.gallery.variant(), test.gallery.constant("neutral", NEUTRAL_SENTENCE)]
        if o.controls and test.task.group != "caption":
            variants.append(test.gallery.variant("grey", grey=True))
        self._features[test.name, "gallery"] = embed_split(
            self.embedder, test.gallery.dataset, "gallery", variants, workers=o.workers, threads=o.threads
        )

    def _swapped_variant(self, test: EvaluationSet) -> list[Variant]:
        """The queries under the instruction of another outfit of the same person, for sets with instructions."""
        if test.task.sentence is not None:
            return []
        protocol = protocols.protocol_of(test.protocols[0])
        chosen = controls.swapped_instruction(test.query.columns, test.gallery.columns, protocol)
        self._swaps[test.name] = chosen
        index = np.where(chosen >= 0, test.gallery.own[np.maximum(chosen, 0)], 0).astype(np.int32)
        return [Variant("swapped", test.gallery.asks, index)]

    def _pair(self, test: EvaluationSet, query: str, gallery: str) -> tuple[np.ndarray, np.ndarray]:
        """Query and gallery embeddings under the named instruction variants (captions: projections)."""
        q, g = self._features[test.name, "query"], self._features[test.name, "gallery"]
        if test.task.group == "caption":
            return q.projection, g.projection
        return q.embedding[query], g.embedding[gallery]

    # Rankings

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
    ) -> Ranking:
        o = self.options
        caption = not protocol.gallery_has_instruction
        return rank(
            *embeddings, query, gallery, protocol,
            metric=metric or ("cosine" if caption else o.metric),
            mesh=self.embedder.mesh, query_block=o.query_block or None, top_k=o.top_k,
            taus=o.taus if taus else (), tau_similarity=_similarity(o.tau_similarity) if taus else None, follow=follow,
        )  # fmt: skip

    def _task_specific(self, number: int, test: EvaluationSet) -> None:
        query, gallery = dict(test.query.columns), dict(test.gallery.columns)
        if self.options.tau_similarity == "model" and test.task.group != "caption":
            query["instruction_feature"] = self._features[test.name, "query"].instruction["own"]
            gallery["instruction_feature"] = self._features[test.name, "gallery"].instruction["own"]
        source = np.stack([np.full(len(test.gallery), number), np.arange(len(test.gallery))], axis=1)
        for name in test.protocols:
            protocol = protocols.protocol_of(name)
            follow = test.task.sentence is None
            ranking = self._rank(self._pair(test, "own", "own"), query, gallery, protocol, taus=True, follow=follow)
            self._keep(protocol, ranking, query, gallery, source)
        if self.options.top500 and test.task.has_query_image:
            protocol = protocols.cut(protocols.protocol_of(test.protocols[-1]))
            ranking = self._rank(self._pair(test, "own", "own"), query, gallery, protocol)
            self._keep(protocol, ranking, query, gallery, source)

    def _keep(
        self,
        protocol: protocols.Protocol,
        ranking: Ranking,
        query: Columns,
        gallery: Columns,
        source: np.ndarray,
        **extra: Any,
    ) -> None:
        summary = {
            "task": protocol.task, "setting": protocol.setting, "description": protocol.description,
            **summarize(ranking), **extra,
        }  # fmt: skip
        self._results["protocols"][protocol.name] = summary
        self._ranked[protocol.name] = Ranked(summary, ranking, query, gallery, source)

    def _task_free(self) -> None:
        """Every set's queries against the union of all galleries, gallery images under the neutral sentence.

        `@own`: gallery images under their own instructions (they reveal the source). `@source`: the domain control,
        the same neutral gallery of the query's own source.
        """
        sets = [test for test in self.sets if test.task_free]
        columns = evaluation_sets.concatenate([test.gallery.columns for test in sets])
        source = np.concatenate(
            [np.stack([np.full(len(t.gallery), self.sets.index(t)), np.arange(len(t.gallery))], axis=1) for t in sets]
        )
        neutral = _first_of_each(columns["content"])
        own = _first_of_each(columns["content"].astype(np.uint64) * np.uint64(31) + columns["instruction_key"])
        for test in sets:
            for name in test.protocols:
                protocol = protocols.task_free(protocols.protocol_of(name))
                union = self._union(sets, test, "neutral")
                query = dict(test.query.columns)
                gallery = evaluation_sets.rows(columns, neutral)
                ranking = self._rank((self._query(test, "own"), union[neutral]), query, gallery, protocol)
                self._keep(protocol, ranking, query, gallery, source[neutral])
                self._chance(query, gallery, protocol)
                if name != test.protocols[0]:
                    continue
                if test.task.group != "caption":
                    variant = _named(protocol, "own", "gallery under its own instructions, which reveal the source")
                    everything = self._union(sets, test, "own")[own]
                    gallery = evaluation_sets.rows(columns, own)
                    ranking = self._rank((self._query(test, "own"), everything), query, gallery, variant)
                    self._keep(variant, ranking, query, gallery, source[own])
                variant = _named(protocol, "source", "domain control: only the gallery of the query's own source")
                gallery = dict(test.gallery.columns)
                pair = self._query(test, "own"), self._gallery(test, test, "neutral")
                ranking = self._rank(pair, query, gallery, variant)
                number = np.full(len(test.gallery), self.sets.index(test))
                self._keep(variant, ranking, query, gallery, np.stack([number, np.arange(len(test.gallery))], axis=1))

    def _query(self, test: EvaluationSet, variant: str) -> np.ndarray:
        features = self._features[test.name, "query"]
        return features.projection if test.task.group == "caption" else features.embedding[variant]

    def _gallery(self, asking: EvaluationSet, holding: EvaluationSet, variant: str) -> np.ndarray:
        """Images of `holding` as the queries of `asking` compare them: caption queries use the projection."""
        features = self._features[holding.name, "gallery"]
        return features.projection if asking.task.group == "caption" else features.embedding[variant]

    def _union(self, sets: Sequence[EvaluationSet], asking: EvaluationSet, variant: str) -> np.ndarray:
        return np.concatenate([self._gallery(asking, holding, variant) for holding in sets])

    # Controls

    def _controls(self, test: EvaluationSet) -> None:
        o = self.options
        query, gallery = dict(test.query.columns), dict(test.gallery.columns)
        pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {
            "perfect_identity": controls.perfect_identity(
                query, gallery, o.seed, query_is_image=test.task.has_query_image
            ),
            "oracle": controls.perfect_oracle(query, gallery),
        }
        if test.task.has_query_image:
            pairs["color_histogram"] = (
                controls.color_histogram(test.query.dataset, "query", threads=o.threads),
                controls.color_histogram(test.gallery.dataset, "gallery", threads=o.threads),
            )
            pairs["image_only"] = self._pair(test, "neutral", "neutral")
            pairs["instruction_only"] = self._pair(test, "grey", "grey")
        for name in test.protocols:
            self._chance(query, gallery, protocols.protocol_of(name))
        for baseline, pair in pairs.items():
            table = self._results["baselines"].setdefault(baseline, {})
            for name in test.protocols:
                metric = None if baseline in ("image_only", "instruction_only") else "cosine"
                ranking = self._rank(pair, query, gallery, protocols.protocol_of(name), metric=metric)
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
        protocol = protocols.protocol_of(name)
        if test.task.group == "caption":
            other = controls.another_person(query["identity"])
            keep = np.flatnonzero(other >= 0)
            if not len(keep):
                return
            projection = self._features[test.name, "query"].projection[other[keep]]
            pair = projection, self._features[test.name, "gallery"].projection
            ranking = self._rank(pair, evaluation_sets.rows(query, keep), gallery, protocol)
            entry = {"mAP": summarize(ranking)["mAP"], "follow_rate": None, "by": "another person's caption"}
        else:
            chosen = self._swaps[test.name]
            keep = np.flatnonzero(chosen >= 0)
            if not len(keep):  # nobody owns a second outfit
                return
            embedding = self._features[test.name, "query"].embedding["swapped"][keep]
            pair = embedding, self._features[test.name, "gallery"].embedding["own"]
            ranking = self._rank(pair, evaluation_sets.rows(query, keep), gallery, protocol)
            asked = evaluation_sets.rows(query, keep)
            for key in ("instruction_clothes", "instruction_attributes", "instruction_key"):
                asked[key] = gallery[key][chosen[keep]]
            followed = self._rank(pair, asked, gallery, protocol, follow=True)
            entry = {
                "mAP": summarize(ranking)["mAP"],
                "follow_rate": summarize(followed)["follow_rate"],
                "by": "another outfit of the same person",
            }
        self._results["swapped_instructions"][name] = entry


def _named(protocol: protocols.Protocol, variant: str, words: str) -> protocols.Protocol:
    """The same rule over another gallery, as `NAME@variant`."""
    return dataclasses.replace(
        protocol, name=f"{protocol.name}@{variant}", description=f"{protocol.description}; {words}"
    )


def _similarity(source: str) -> protocols.InstructionSimilarity:
    table = {"attributes": protocols.ATTRIBUTES, "clothes": protocols.CLOTHES}
    return table[source] if source in table else protocols.feature_similarity(source)


def _short(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("mAP", "rank1", "rank5", "rank10", "mINP")}


def _first_of_each(keys: np.ndarray) -> np.ndarray:
    """Indices of the first occurrence of each key, in order."""
    return np.sort(np.unique(keys, return_index=True)[1])
