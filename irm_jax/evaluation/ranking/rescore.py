"""The best images of a first ranking judged again: captions by the matching head, images under the query's instruction.

Source: docs/method.md. `irm_jax.search` has the same two stages.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Integer

from irm_jax.evaluation.embed import TABLE_ROWS, EmbeddingModel, Instruction, finite, of_length_one
from irm_jax.evaluation.ranking.scores import Placed, PlacedOnHost, Scores, Selection, rows_of
from irm_jax.models.encoders.features import ImageFeatures
from irm_jax.parallel import mesh as mesh_lib

PAIRS_AT_ONCE, QUERIES_AT_ONCE = 256, 256


def order_again(judged: Float[np.ndarray, "*n k"]) -> Integer[np.ndarray, "*n k"]:
    """The order of images that were judged again, best first; equal ones stay as they were given, by their number."""
    return np.argsort(-judged, axis=-1, kind="stable")


class Judge(abc.ABC):
    """Scores f32[P] of pairs of queries i[P] and images i[P]; each pair is judged once, as several protocols need it.

    which: i[Q], the number of each query; queries of one number are judged alike. images: how many there are.
    """

    def __init__(self, which: Integer[np.ndarray, " Q"], images: int) -> None:
        self._which, self._count = which.astype(np.int64), images
        self._pairs, self._scores = np.empty(0, np.int64), np.empty(0, np.float32)  # judged so far, in order of pairs

    def __call__(
        self, queries: Integer[np.ndarray, " P"], images: Integer[np.ndarray, " P"]
    ) -> Float32[np.ndarray, " P"]:
        pairs = self._which[queries] * self._count + images
        new = np.setdiff1d(pairs, self._pairs)
        if len(new):
            known = np.concatenate([self._pairs, new])
            order = np.argsort(known)
            judged = self._judge(*np.divmod(new, self._count))
            self._pairs, self._scores = known[order], np.concatenate([self._scores, judged])[order]
        return self._scores[np.searchsorted(self._pairs, pairs)]

    @abc.abstractmethod
    def _judge(self, which: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Judges distinct pairs of a query's number and an image, in ascending order: f32[P]."""


class CaptionMatcher(Judge):
    """Judges captions and images by the matching head, in batches of one size.

    captions: the sentences. image_tokens: f32[G,T,D].
    """

    def __init__(self, embedder: EmbeddingModel, captions: list[str], image_tokens: np.ndarray) -> None:
        distinct, which = np.unique(np.asarray(captions, object).astype(str), return_inverse=True)
        super().__init__(which, len(image_tokens))
        self._embedder, self._images = embedder, image_tokens
        self._tokens, self._mask = embedder.caption_tokens([str(s) for s in distinct])
        pieces = mesh_lib.row_shards(embedder.mesh)
        self._at_once = -(-PAIRS_AT_ONCE // pieces) * pieces

    def _judge(self, which: np.ndarray, images: np.ndarray) -> np.ndarray:
        found = np.empty(len(which), np.float32)
        for start in range(0, len(which), self._at_once):
            rows = slice(start, min(start + self._at_once, len(which)))
            caption, image = (np.resize(one[rows], self._at_once) for one in (which, images))
            logits = self._embedder.match(self._tokens[caption], self._mask[caption], self._images[image])
            found[rows] = logits[: rows.stop - rows.start]
        return found


class InstructedMatcher(Judge):
    """Judges query images and gallery images by their cosine, both embedded under the query's own instruction.

    query: embeddings f32[Q,D2] under the own instructions. instructions: the distinct ones; which: i[Q], of each query.
    images: how many there are. batches: yields image numbers i[n] in ascending order and features, whose first n rows
    belong to these images. Each image is encoded once per TABLE_ROWS instructions.
    """

    def __init__(
        self, embedder: EmbeddingModel, query: np.ndarray, instructions: tuple[Sequence[Instruction], np.ndarray],
        images: int, batches: Callable[[np.ndarray], Iterator[tuple[np.ndarray, ImageFeatures]]],
    ) -> None:  # fmt: skip
        super().__init__(np.arange(len(query)), images)
        self._embedder, self._query, self._batches = embedder, of_length_one(query), batches
        self._instructions, self._own = instructions

    def _judge(self, which: np.ndarray, images: np.ndarray) -> np.ndarray:
        found = np.empty(len(which), np.float32)
        own = self._own[which]
        distinct = np.unique(own)
        for start in range(0, len(distinct), TABLE_ROWS):
            used = distinct[start : start + TABLE_ROWS]
            table = self._embedder.instructions([self._instructions[i] for i in used])
            pairs = np.flatnonzero(np.isin(own, used))
            pairs = pairs[np.argsort(images[pairs], kind="stable")]
            for numbers, features in self._batches(np.unique(images[pairs])):
                first, last = np.searchsorted(images[pairs], [numbers[0], numbers[-1] + 1])
                mine = pairs[first:last]
                rows, index = np.searchsorted(numbers, images[mine]), np.searchsorted(used, own[mine])
                embedded = of_length_one(finite(self._embedder.edit_pairs(features, rows, table, index)))
                found[mine] = np.einsum("pd,pd->p", self._query[which[mine]], embedded)
        return found


class Rescored(Scores):
    """Cosine of query f32[Q,P] and gallery f32[G,P] embeddings, but the best images of each query are judged again.

    They come first, in the order of `match(queries i[n], gallery images i[n]) -> f32[n]` (numbers of all records);
    equal ones keep the order of the gallery. The rest follow by cosine. `top`: how many are judged. at_once: `match` is
    first asked for the pairs of all queries, for one that reads each image once a call.
    """

    def __init__(
        self, query: np.ndarray, gallery: np.ndarray, match: Callable[[np.ndarray, np.ndarray], np.ndarray],
        top: int, mesh: Mesh | None = None, *, at_once: bool = False,
    ) -> None:  # fmt: skip
        self._query, self._gallery = of_length_one(query), of_length_one(gallery)
        self._match, self._top, self._mesh, self._at_once = match, top, mesh, at_once

    def place(self, selection: Selection) -> Placed:
        gallery = rows_of(self._gallery, selection.gallery)
        top = min(self._top, len(gallery))

        def best_of(records: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            scores = (self._query[records] @ gallery.T).astype(np.float32)
            best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :top], axis=1)
            return scores, best, selection.gallery[best.ravel()]

        if self._at_once:
            blocks = np.array_split(selection.query, -(-len(selection.query) // QUERIES_AT_ONCE))
            images = np.concatenate([best_of(block)[2] for block in blocks])
            self._match(np.repeat(selection.query, top), images)

        def scores_of(queries: np.ndarray) -> Float32[np.ndarray, "n G"]:
            records = selection.query[queries]
            scores, best, images = best_of(records)
            judged = self._match(np.repeat(records, top), images).reshape(best.shape)
            place = np.argsort(order_again(judged), axis=1)
            # A cosine is at most 1: places count down from 3 to above 2, so that their order is exact in float32.
            np.put_along_axis(scores, best, (3.0 - place / top).astype(np.float32), axis=1)
            return scores

        return PlacedOnHost(scores_of, selection, self._mesh)
