"""Rescoring of captions: the matching head judges the best images by cosine again (docs/method.md, captions)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from irm_jax.evaluation.embed import EmbeddingModel, of_length_one
from irm_jax.evaluation.ranking.scores import Placed, PlacedOnHost, Scores, Selection, rows_of
from irm_jax.parallel import mesh as mesh_lib

PAIRS_AT_ONCE = 256


class CaptionMatcher:
    """Scores f32[P] of pairs of captions i[P] and images i[P], by the matching head.

    `captions`: the sentences; `image_tokens`: f32[G,T,D]. Pairs are judged in batches of one size, and each pair of
    a sentence and an image once: several protocols need the same ones.
    """

    def __init__(self, embedder: EmbeddingModel, captions: list[str], image_tokens: np.ndarray) -> None:
        distinct, self._which = np.unique(np.asarray(captions, object).astype(str), return_inverse=True)
        self._embedder, self._images = embedder, image_tokens
        self._tokens, self._mask = embedder.caption_tokens([str(s) for s in distinct])
        pieces = mesh_lib.row_shards(embedder.mesh)
        self._at_once = -(-PAIRS_AT_ONCE // pieces) * pieces
        self._pairs, self._scores = np.empty(0, np.int64), np.empty(0, np.float32)  # judged so far, in order of pairs

    def __call__(self, captions: Int[np.ndarray, " P"], images: Int[np.ndarray, " P"]) -> Float32[np.ndarray, " P"]:
        pairs = self._which[captions].astype(np.int64) * len(self._images) + images
        new = np.setdiff1d(pairs, self._pairs)
        if len(new):
            known = np.concatenate([self._pairs, new])
            order = np.argsort(known)
            self._pairs, self._scores = known[order], np.concatenate([self._scores, self._judge(new)])[order]
        return self._scores[np.searchsorted(self._pairs, pairs)]

    def _judge(self, pairs: np.ndarray) -> np.ndarray:
        captions, images = np.divmod(pairs, len(self._images))
        found = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), self._at_once):
            rows = slice(start, min(start + self._at_once, len(pairs)))
            caption, image = (np.resize(which[rows], self._at_once) for which in (captions, images))
            logits = self._embedder.match(self._tokens[caption], self._mask[caption], self._images[image])
            found[rows] = logits[: rows.stop - rows.start]
        return found


class Rescored(Scores):
    """Cosine of query f32[Q,P] and gallery f32[G,P] embeddings, but the best images of each query are judged again.

    They come first, in the order of `match(queries i[n], gallery images i[n]) -> f32[n]` (numbers of all records);
    equal ones keep the order of the gallery. The rest follow by cosine. `top`: how many are judged.
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        match: Callable[[np.ndarray, np.ndarray], np.ndarray],
        top: int,
        mesh: Mesh | None = None,
    ) -> None:
        self._query, self._gallery = of_length_one(query), of_length_one(gallery)
        self._match, self._top, self._mesh = match, top, mesh

    def place(self, selection: Selection) -> Placed:
        gallery = rows_of(self._gallery, selection.gallery)
        top = min(self._top, len(gallery))

        def scores_of(queries: np.ndarray) -> Float32[np.ndarray, "n G"]:
            records = selection.query[queries]
            scores = (self._query[records] @ gallery.T).astype(np.float32)
            best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :top], axis=1)
            judged = self._match(np.repeat(records, top), selection.gallery[best.ravel()]).reshape(best.shape)
            place = np.argsort(np.argsort(-judged, axis=1, kind="stable"), axis=1)
            # A cosine is at most 1: places count down from 3 to above 2, so that their order is exact in float32.
            np.put_along_axis(scores, best, (3.0 - place / top).astype(np.float32), axis=1)
            return scores

        return PlacedOnHost(scores_of, selection, self._mesh)
