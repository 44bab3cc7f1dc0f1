"""k-reciprocal re-ranking (Zhong et al., CVPR 2017): images whose neighbours are mutual come closer.

In the paper's terms: R(p,k) holds each of p's k nearest that has p among its own k nearest; R*(p,k) adds R(q,k/2) for
every q in R(p,k) with which it shares over two thirds of R(q,k/2). V_p weighs R*(p,k) by e^-d, is averaged over the k2
nearest (local query expansion), and the Jaccard distance 1 - sum min(V_p,V_g) / sum max(V_p,V_g) is mixed with the
original distance d: d* = (1 - lambda) d_J + lambda d. As in the authors' code, from which published figures come: an
image counts among its own nearest (so k1 + 1 are taken), d is the squared Euclidean distance divided by the largest of
its row, V_p sums to 1 before the averaging, and the share must exceed 2/3.

No matrix over all pairs exists: neighbours come from blocks of scores, V is kept as sparse rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from irm_jax.evaluation.ranking.rank import default_block
from irm_jax.evaluation.ranking.scores import (
    Gallery,
    Placed,
    PlacedOnHost,
    Scores,
    Selection,
    inverse_root,
    rows_of,
    squared_norms,
)
from irm_jax.parallel import mesh as mesh_lib

ROWS_AT_ONCE = 1024
"""Rows whose neighbour sets are worked out together."""
PAIRS_AT_ONCE = 1 << 15
"""Pairs whose distance is computed together, from embeddings that may be thousands of numbers wide."""


@jax.jit
def _lowest(scores: Float32[Array, "q G"]) -> Float32[Array, " q"]:
    """Of each row, padding (-inf) left out."""
    return mesh_lib.constrain_replicated(jnp.where(jnp.isneginf(scores), jnp.inf, scores).min(axis=1))


@dataclasses.dataclass(frozen=True)
class Parameters:
    """k1, k2 and lambda (`weight`) of the paper."""

    k1: int = 20
    k2: int = 6
    weight: float = 0.3


class KReciprocal(Scores):
    """-d* of query f32[Q,D] and gallery f32[G,D] embeddings, over the neighbours among the selected ones.

    `metric`: "cosine" (of embeddings made to length 1) | "euclidean".
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        metric: str = "cosine",
        mesh: Mesh | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        self._query, self._gallery, self._metric, self._mesh = query, gallery, metric, mesh
        self._parameters = parameters or Parameters()

    def place(self, selection: Selection) -> Placed:
        query, gallery = rows_of(self._query, selection.query), rows_of(self._gallery, selection.gallery)
        distances = Distances(query, gallery, self._metric, self._mesh, self._parameters)
        return PlacedOnHost(lambda queries: -distances(queries), selection, self._mesh)


class Distances:
    """d* of Q queries and G gallery images; called with query indices i[n] it gives f32[n,G]."""

    def __init__(
        self, query: np.ndarray, gallery: np.ndarray, metric: str, mesh: Mesh | None, parameters: Parameters
    ) -> None:
        k1, k2 = parameters.k1, parameters.k2
        self._images = np.concatenate([query, gallery]).astype(np.float32)
        self._queries, self._weight = len(query), parameters.weight
        squared = squared_norms(self._images, "query or gallery")
        self._squared = squared if metric == "euclidean" else np.ones_like(squared)
        self._scale = np.ones_like(squared) if metric == "euclidean" else inverse_root(squared)
        self._placed = Gallery(self._images, metric, mesh)
        self._rows = default_block(len(self._images), self._placed.layout.width)
        near, self._farthest = self._neighbours(k1 + 1)
        encoded = self._encoded(near, int(np.around(k1 / 2)) + 1)
        if k2 > 1:
            encoded = _averaged(encoded, near[:, :k2])
        self._encoded_queries = encoded
        self._inverted = _inverted(encoded, self._queries)

    def _neighbours(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest images of each image, itself among them, i32[N,k]; its largest squared distance, f32[N]."""
        count = len(self._images)
        near, farthest = np.empty((count, min(k, count)), np.int32), np.empty(count, np.float32)
        scores = None
        with jax.set_mesh(self._placed.mesh):
            for start in range(0, count, self._rows):
                block = slice(start, min(start + self._rows, count))
                scores = self._placed.scores(self._images[block], self._rows, scores)
                near[block] = self._placed.top(scores, near.shape[1])[1][: block.stop - start]
                farthest[block] = self._distance(np.asarray(_lowest(scores))[: block.stop - start], block)
        return near, np.maximum(farthest, np.finfo(np.float32).tiny)

    def _distance(self, score: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
        """Squared Euclidean distance of the scores of some rows, [n] or [n,N]."""
        squared = self._squared[rows].reshape(-1, *[1] * (score.ndim - 1))
        # Cosine of lengths made 1: 2 - 2 cos. Otherwise the score is 2 p.g - |g|^2.
        return np.maximum(squared - score if self._placed.metric == "euclidean" else 2 - 2 * score, 0)

    def _encoded(self, near: np.ndarray, half: int) -> Rows:
        """V of every image before the averaging."""
        mutual, mutual_half = _mutual(near), _mutual(near[:, :half])
        near_half = near[:, :half]
        parts = []
        for start in range(0, len(near), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            own = np.where(mutual[block], near[block], -1)
            neighbours = np.where(mutual_half[near[block]], near_half[near[block]], -2)  # [b, k, half]
            shared = (neighbours[..., None] == own[:, None, None, :]).any(axis=-1).sum(axis=-1)
            joins = mutual[block] & (shared > 2 / 3 * (neighbours >= 0).sum(axis=-1))
            added = np.where(joins[..., None] & (neighbours >= 0), neighbours, -1)
            members = np.sort(np.concatenate([own, added.reshape(len(own), -1)], axis=1), axis=1)
            row, place = np.nonzero((members >= 0) & (np.diff(members, axis=1, prepend=-1) != 0))
            column = members[row, place]
            value = np.exp(-self._pairs(row + start, column) / self._farthest[row + start])
            total = np.bincount(row, value, len(own))
            parts.append(Rows.of(row, column, value / total[row], len(own)))
        return Rows.joined(parts)

    def _pairs(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """f32[n]: squared distances of pairs."""
        score = np.empty(len(row), np.float32)
        for start in range(0, len(row), PAIRS_AT_ONCE):
            a, b = row[start : start + PAIRS_AT_ONCE], column[start : start + PAIRS_AT_ONCE]
            score[start : start + len(a)] = np.einsum("nd,nd->n", self._images[a], self._images[b])
        if self._placed.metric == "euclidean":
            score = 2 * score - self._squared[column]
        else:
            score *= self._scale[row] * self._scale[column]
        return self._distance(score, row)

    def __call__(self, queries: np.ndarray) -> Float32[np.ndarray, "n G"]:
        with jax.set_mesh(self._placed.mesh):
            buffer = self._placed.scores(self._images[queries], max(self._rows, len(queries)))
            scores = self._placed.on_host(buffer)[: len(queries), self._queries :]
        result = self._distance(scores, queries) / self._farthest[queries, None] * self._weight
        for place, query in enumerate(queries):
            shared = np.zeros(scores.shape[1])
            columns, values = self._encoded_queries.row(query)
            for column, value in zip(columns, values, strict=True):
                images, weights = self._inverted.row(column)
                shared[images] += np.minimum(value, weights)
            result[place] += (1 - self._weight) * (1 - shared / (2 - shared))
        return result


class Rows:
    """A sparse matrix by rows: `row(i)` gives the columns that are not 0, ascending, and their values."""

    def __init__(self, start: np.ndarray, column: np.ndarray, value: np.ndarray) -> None:
        self.start, self.column, self.value = start, column, value

    @classmethod
    def of(cls, row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int) -> Rows:
        """Makes the matrix from its entries, which are in order of row."""
        start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
        return cls(start, column.astype(np.int32), value.astype(np.float32))

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        """The rows of several matrices, one matrix after the other."""
        lengths = np.concatenate([np.diff(part.start) for part in parts])
        columns, values = (np.concatenate([getattr(part, name) for part in parts]) for name in ("column", "value"))
        return cls(np.concatenate([[0], np.cumsum(lengths)]), columns, values)

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values of a row."""
        entries = slice(self.start[i], self.start[i + 1])
        return self.column[entries], self.value[entries]

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of some rows, one row after the other: which of these rows, and the number of the entry."""
        counts = self.start[rows + 1] - self.start[rows]
        of = np.repeat(np.arange(len(rows)), counts)
        return of, np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts - self.start[rows], counts)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, count))


def _mutual(near: np.ndarray) -> np.ndarray:
    """bool[N,k]: does a neighbour have the image among its own neighbours?"""
    result = np.empty(near.shape, bool)
    for block in _blocks(len(near)):
        image = np.arange(block.start, block.stop, dtype=np.int32)
        result[block] = (near[near[block]] == image[:, None, None]).any(axis=-1)
    return result


def _averaged(rows: Rows, near: np.ndarray) -> Rows:
    """Averages each row over the rows of its nearest images."""
    parts, count = [], len(near)
    for block in _blocks(count):
        wanted = near[block]
        of, entry = rows.entries(wanted.ravel())
        key = of // near.shape[1] * count + rows.column[entry]
        pair, place = np.unique(key, return_inverse=True)
        value = np.bincount(place, rows.value[entry]) / near.shape[1]
        parts.append(Rows.of(pair // count, pair % count, value, len(wanted)))
    return Rows.joined(parts)


def _inverted(rows: Rows, first: int) -> Rows:
    """The transposed matrix of the rows from `first` on (the gallery's, which then count from 0)."""
    entries = slice(rows.start[first], None)
    column = rows.column[entries]
    row = np.repeat(np.arange(len(rows.start) - 1 - first), np.diff(rows.start[first:]))
    order = np.argsort(column, kind="stable")
    return Rows.of(column[order], row[order], rows.value[entries][order], len(rows.start) - 1)
