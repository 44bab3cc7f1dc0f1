"""Re-scoring of captions' rankings: the best images by cosine are judged again by the matching head (method.md 6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.parallel import mesh as mesh_lib

PAIRS_AT_ONCE = 256


class CaptionMatcher:
    """Called with i[P] captions and i[P] images it gives f32[P], larger for pairs that belong together more.

    `captions`: the sentences; `image_tokens` f32[G, K, D]. Pairs are judged in batches of one size, and each pair of
    a sentence and an image once: several protocols ask for the same ones.
    """

    def __init__(self, embedder: EmbeddingModel, captions: list[str], image_tokens: np.ndarray) -> None:
        distinct, self._which = np.unique(np.asarray(captions, object).astype(str), return_inverse=True)
        self._embedder, self._images = embedder, image_tokens
        self._tokens, self._mask = embedder.caption_tokens([str(s) for s in distinct])
        pieces = mesh_lib.row_shards(embedder.mesh)
        self._at_once = -(-PAIRS_AT_ONCE // pieces) * pieces
        self._pairs, self._scores = np.empty(0, np.int64), np.empty(0, np.float32)  # judged so far, in order of pairs

    def __call__(self, captions: np.ndarray, images: np.ndarray) -> np.ndarray:
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


class Rescored:
    """Scores for `ranking.rank`: called with query indices [n] it gives f32[n, G].

    Cosine of `query` f32[Q, P] and `gallery` f32[G, P], but the `top` best images of each query come first, in the
    order of `match(query indices, gallery indices)`; equals keep the order of the gallery. The rest follow by cosine.
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        match: Callable[[np.ndarray, np.ndarray], np.ndarray],
        top: int,
    ) -> None:
        self._query, self._gallery = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (query, gallery)
        )
        self._match, self._top = match, min(top, len(gallery))

    def __call__(self, block: np.ndarray) -> np.ndarray:
        scores = (self._query[block] @ self._gallery.T).astype(np.float32)
        best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, : self._top], axis=1)
        judged = self._match(np.repeat(block, self._top), best.ravel()).reshape(best.shape)
        place = np.argsort(np.argsort(-judged, axis=1, kind="stable"), axis=1)
        # A cosine is at most 1: places count down from 3 to above 2, so that their order is exact in float32.
        np.put_along_axis(scores, best, (3.0 - place / self._top).astype(np.float32), axis=1)
        return scores
