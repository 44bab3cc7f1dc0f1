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


Batches = Callable[[np.ndarray], Iterator[tuple[np.ndarray, ImageFeatures]]]
"""Of image numbers, ascending, yields some of them i[n], and features, whose first n rows belong to these images."""


class CaptionMatcher(Judge):
    """Judges captions and images by the matching head, in batches of one size.

    captions: the sentences, one per query. images: how many there are; batches: see `Batches`. Each image is encoded
    once per call, and the tokens of one batch are held at a time: those of a whole gallery are f32[G,T,D].
    """

    def __init__(self, embedder: EmbeddingModel, captions: list[str], images: int, batches: Batches) -> None:
        distinct, which = np.unique(np.asarray(captions, object).astype(str), return_inverse=True)
        super().__init__(which, images)
        self._embedder, self._batches = embedder, batches
        self._tokens, self._mask = embedder.caption_tokens([str(s) for s in distinct])
        pieces = mesh_lib.row_shards(embedder.mesh)
        self._at_once = -(-PAIRS_AT_ONCE // pieces) * pieces

    def _judge(self, which: np.ndarray, images: np.ndarray) -> np.ndarray:
        found = np.empty(len(which), np.float32)
        for mine, rows, features in _by_batch(self._batches, images):
            tokens = self._embedder.image_tokens(features)
            for start in range(0, len(mine), self._at_once):
                pairs = mine[start : start + self._at_once]
                caption = np.resize(which[pairs], self._at_once)
                image = np.resize(rows[start : start + self._at_once], self._at_once)
                logits = self._embedder.match(self._tokens[caption], self._mask[caption], tokens[image])
                found[pairs] = logits[: len(pairs)]
        return found


class InstructedMatcher(Judge):
    """Judges query images and gallery images by their cosine, both embedded under the query's own instruction.

    query: embeddings f32[Q,D2] under the own instructions. instructions: the distinct ones; which: i[Q], of each query.
    images: how many there are; batches: see `Batches`. Each image is encoded once per TABLE_ROWS instructions.
    """

    def __init__(
        self, embedder: EmbeddingModel, query: np.ndarray, instructions: tuple[Sequence[Instruction], np.ndarray],
        images: int, batches: Batches,
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
            for positions, rows, features in _by_batch(self._batches, images[pairs]):
                mine = pairs[positions]
                index = np.searchsorted(used, own[mine])
                embedded = of_length_one(finite(self._embedder.edit_pairs(features, rows, table, index)))
                found[mine] = np.einsum("pd,pd->p", self._query[which[mine]], embedded)
        return found


def _by_batch(batches: Batches, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, ImageFeatures]]:
    """Yields per batch: positions i[n] in `images` i[P], the row of the batch that each is at, the batch's features."""
    order = np.argsort(images, kind="stable")
    ordered = images[order]
    for numbers, features in batches(np.unique(images)):
        first, last = np.searchsorted(ordered, [numbers[0], numbers[-1] + 1])
        yield order[first:last], np.searchsorted(numbers, ordered[first:last]), features


class Rescored(Scores):
    """Cosine of query f32[Q,P] and gallery f32[G,P] embeddings, but the best images of each query are judged again.

    They come first, in the order of `match(queries i[n], gallery images i[n]) -> f32[n]` (numbers of all records);
    equal ones keep the order of the gallery. The rest follow by cosine. `top`: how many are judged. `match` is asked
    once for the pairs of all queries, as it may read each image once per call.
    """

    def __init__(
        self, query: np.ndarray, gallery: np.ndarray, match: Callable[[np.ndarray, np.ndarray], np.ndarray],
        top: int, mesh: Mesh | None = None,
    ) -> None:  # fmt: skip
        self._query, self._gallery = of_length_one(query), of_length_one(gallery)
        self._match, self._top, self._mesh = match, top, mesh

    def place(self, selection: Selection) -> Placed:
        gallery = rows_of(self._gallery, selection.gallery)
        top = min(self._top, len(gallery))

        def cosines(queries: np.ndarray) -> Float32[np.ndarray, "n G"]:
            return (self._query[selection.query[queries]] @ gallery.T).astype(np.float32)

        best = np.empty((len(selection.query), top), np.int32)
        for start in range(0, len(best), QUERIES_AT_ONCE):
            queries = np.arange(start, min(start + QUERIES_AT_ONCE, len(best)))
            best[queries] = np.sort(np.argsort(-cosines(queries), axis=1, kind="stable")[:, :top], axis=1)
        judged = self._match(np.repeat(selection.query, top), selection.gallery[best.ravel()]).reshape(best.shape)
        place = np.argsort(order_again(judged), axis=1)

        def scores_of(queries: np.ndarray) -> Float32[np.ndarray, "n G"]:
            scores = cosines(queries)
            # A cosine is at most 1: places count down from 3 to above 2, so that their order is exact in float32.
            np.put_along_axis(scores, best[queries], (3.0 - place[queries] / top).astype(np.float32), axis=1)
            return scores

        return PlacedOnHost(scores_of, selection, self._mesh)
