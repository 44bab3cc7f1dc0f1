"""Embeds a test set once, under every instruction that its figures and controls ask by."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.evaluation import controls, protocols
from irm_jax.evaluation.embed import EmbeddingModel, SplitFeatures, Variant, embed_split
from irm_jax.evaluation.ranking.rescore import CaptionMatcher
from irm_jax.evaluation.test_sets import EvaluationSet, SplitData

FLIP = "own+flip"
"""The variant "own" averaged over each image and its mirror."""


@dataclasses.dataclass(frozen=True)
class SetFeatures:
    """Features of queries and gallery records (those of all parts). `swaps`: see `controls.swapped_instruction`.
    `matcher`: of the set's captions and images, where these are to be re-scored."""

    caption: bool
    query: SplitFeatures
    gallery: SplitFeatures
    swaps: np.ndarray | None
    matcher: CaptionMatcher | None = None

    def asking(self, variant: str) -> np.ndarray:
        """Embeddings of the queries under an instruction variant (captions: projections)."""
        return self.query.projection if self.caption else self.query.embedding[variant]

    def searched(self, variant: str, *, by_caption: bool) -> np.ndarray:
        """Embeddings of the gallery, as captions compare them (the projection) or as images do."""
        if not by_caption:
            return self.gallery.embedding[variant]
        flipped = self.gallery.projection_flip if variant == FLIP else None
        return self.gallery.projection if flipped is None else flipped

    def pair(self, query: str, gallery: str) -> tuple[np.ndarray, np.ndarray]:
        """Both sides of the set's own comparison, under the named variants."""
        return self.asking(query), self.searched(gallery, by_caption=self.caption)


def embed_set(
    embedder: EmbeddingModel,
    test: EvaluationSet,
    *,
    neutral: bool,
    with_controls: bool,
    flip: bool,
    rescore: bool,
    workers: int,
    threads: int,
) -> SetFeatures:
    """Variants: "own"; "neutral" if asked for; for controls it, "grey" and (where instructions differ) "swapped"; with
    `flip` FLIP. `rescore`: captions get a matcher."""
    caption = test.task.kind == "caption"
    rescore = rescore and caption

    def embed(split: SplitData, *more: Variant) -> SplitFeatures:
        variants = [split.variant()]
        if neutral or with_controls:
            variants.append(split.constant("neutral", NEUTRAL_SENTENCE))
        if with_controls and not caption:
            variants.append(split.variant("grey", grey=True))
        return embed_split(
            embedder, split.dataset, split.split, [*variants, *more], workers=workers, threads=threads, flip=flip,
            tokens=rescore,
        )  # fmt: skip

    gallery = SplitFeatures.joined([embed(part) for part in test.parts])
    swaps, matcher = None, None
    if test.one_split and len(test.parts) == 1:
        query = gallery
    elif caption:
        captions = [str(test.query.asks[i]) for i in test.query.own]
        query = SplitFeatures({}, {}, embedder.project_sentences(captions))
        if gallery.tokens is not None:
            matcher = CaptionMatcher(embedder, captions, gallery.tokens)
    elif with_controls and test.task.sentence is None:
        protocol = protocols.protocol_of(test.protocols[0])
        swaps = controls.swapped_instruction(test.query.columns, test.gallery.columns, protocol)
        index = np.where(swaps >= 0, test.gallery.own[np.maximum(swaps, 0)], 0).astype(np.int32)
        query = embed(test.query, Variant("swapped", test.gallery.asks, index))
    else:
        query = embed(test.query)
    return SetFeatures(caption, query, gallery, swaps, matcher)
