"""Scores of queries against a gallery, as ranking reads them: from embeddings, or computed elsewhere.

A gallery lies on the devices, cut over all of them, and a block of queries has one buffer of scores, whose columns are
cut likewise. `Scores` is what may be ranked; it is placed on the devices for the records that a trial selects.
"""

from __future__ import annotations

import abc
import dataclasses
import gc
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32

from irm_jax.evaluation.ranking import device


@dataclasses.dataclass(frozen=True)
class Selection:
    """Indices of queries i64[Q] and gallery images i64[G]: those that take part in a ranking."""

    query: np.ndarray
    gallery: np.ndarray

    @classmethod
    def whole(cls, queries: int, images: int) -> Selection:
        return cls(np.arange(queries), np.arange(images))

    def equals(self, other: Selection) -> bool:
        """Whether both select the same records."""
        return np.array_equal(self.query, other.query) and np.array_equal(self.gallery, other.gallery)


class Buffer:
    """Blocks of scores against G gallery images on the devices, and what is read from them: ranks, the best images.

    `mesh`: all its devices are used, as a 1-D view; None stands for all devices.
    """

    def __init__(self, images: int, mesh: Mesh | None = None) -> None:
        devices = np.array(jax.devices()) if mesh is None else mesh.devices.reshape(-1)
        self.mesh = Mesh(devices, (device.AXIS,), axis_types=(AxisType.Auto,))
        self.images = images
        self.layout = device.Layout.of(images, devices.size)

    def place(self, rows: np.ndarray, spec: P) -> jax.Array:
        """Rows cut over the devices and padded with zeros, or whole on each."""
        shape = (self.layout.width * self.layout.shards if spec == P(device.AXIS) else len(rows), *rows.shape[1:])

        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[0] if index else slice(None)).indices(shape[0])
            piece = _aligned_zeros((stop - start, *rows.shape[1:]), rows.dtype)
            part = rows[start:stop]
            piece[: len(part)] = part
            return piece

        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, spec), piece)

    def given(self, scores: Float32[np.ndarray, "n G"], rows: int) -> Float32[Array, "q W"]:
        """The buffer of `rows` queries whose scores were computed on the host."""
        padded = np.empty((rows, self.layout.width * self.layout.shards), np.float32)
        padded[: len(scores), : self.images] = scores
        padded[: len(scores), self.images :] = -np.inf
        padded[len(scores) :] = -np.inf
        spec = NamedSharding(self.mesh, P(None, device.AXIS))
        placed = jax.make_array_from_callback(padded.shape, spec, lambda index: padded[index])
        return device.of_host(placed, mesh=self.mesh)

    def on_host(self, scores: jax.Array) -> Float32[np.ndarray, "q G"]:
        """The buffer without its padding columns, on every host."""
        return np.asarray(device.gather(scores, mesh=self.mesh))[:, : self.images]

    def remove(self, scores: jax.Array, columns: Int32[np.ndarray, "n J"]) -> jax.Array:
        """The buffer without the given images (-1: none): they precede nothing. The old buffer is used up."""
        padded = self._pad(columns, scores.shape[0], 1 << max(3, (columns.shape[1] - 1).bit_length()))
        return device.remove(scores, padded, mesh=self.mesh, layout=self.layout)

    def preceding(
        self, scores: jax.Array, columns: Int32[np.ndarray, "n p"], sort_above: int
    ) -> Int32[np.ndarray, "n p"]:
        """How many images precede each of the given ones. The value is meaningless where the column is -1.

        Up to `sort_above` images per row are ranked by counting; beyond, it is cheaper to sort the row, on the host.
        """
        rows, wanted = columns.shape
        result = np.zeros(columns.shape, np.int32)
        if wanted <= sort_above:
            for start in range(0, wanted, device.TILE):
                tile = columns[:, start : start + device.TILE]
                padded = self._pad(tile, scores.shape[0], device.TILE)
                # Waits for each result: simulated CPU devices deadlock when many collectives are under way at once.
                count = np.asarray(device.count(scores, padded, mesh=self.mesh, layout=self.layout))
                result[:, start : start + device.TILE] = count[:rows, : tile.shape[1]]
            return result
        host = self.on_host(scores)
        place = np.empty(host.shape[1], np.int32)
        for i in range(rows):
            place[np.argsort(-host[i], kind="stable")] = np.arange(host.shape[1], dtype=np.int32)
            result[i] = place[columns[i]]
        return result

    def top(self, scores: jax.Array, k: int) -> tuple[Float32[np.ndarray, "q k"], Int32[np.ndarray, "q k"]]:
        """The k <= G best scores of each row and their gallery indices; (-inf, -1) where fewer images are left."""
        best, column = device.top(scores, k=k, mesh=self.mesh, layout=self.layout)
        score = np.asarray(best)
        return score, np.where(np.isneginf(score), np.int32(-1), np.asarray(column))

    def _pad(self, columns: np.ndarray, rows: int, width: int) -> jax.Array:
        padded = np.full((rows, width), -1, np.int32)
        padded[: columns.shape[0], : columns.shape[1]] = columns
        return self.place(padded, P())


class Gallery(Buffer):
    """Gallery embeddings f32[G,D] on the devices. `metric`: "cosine" | "euclidean".

    Scores are larger for better images: the cosine, or 2 q.g - |g|^2, which orders as the Euclidean distance does
    (|q|^2 is the same for the whole row). A zero vector has cosine 0 with everything. f32, highest matmul precision.

    Raises ValueError for another metric, and for an embedding that is not finite.
    """

    def __init__(self, embedding: Float32[np.ndarray, "G D"], metric: str, mesh: Mesh | None = None) -> None:
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric {metric!r} is unknown; use 'cosine' or 'euclidean'")
        super().__init__(len(embedding), mesh)
        self.metric = metric
        squared = squared_norms(embedding, "gallery")
        # JAX returns host memory it took over only when Python collects garbage: let an earlier gallery's go first.
        gc.collect(0)
        self.embedding = self.place(embedding, P(device.AXIS))
        if metric == "cosine":
            scale, offset = inverse_root(squared), np.zeros_like(squared)
        else:
            scale, offset = np.full_like(squared, 2), squared
        self.of_images = self.place(scale, P(device.AXIS)), self.place(offset, P(device.AXIS))

    def scores(
        self, query: Float32[np.ndarray, "n D"], rows: int, used: Float32[Array, "q G"] | None = None
    ) -> Float32[Array, "q G"]:
        """The score buffer of up to `rows` queries (padded to so many), its columns cut over the devices.

        `used`: the buffer of an earlier block of as many rows, whose memory is taken over.
        """
        padded = np.zeros((rows, query.shape[1]), np.float32)
        padded[: len(query)] = query
        scale = np.ones(rows, np.float32)
        if self.metric == "cosine":
            scale = inverse_root(np.einsum("qd,qd->q", padded, padded))
        products = device.products(self.place(padded, P()), self.embedding, used, mesh=self.mesh)
        return device.to_scores(
            products, self.place(scale, P()), self.of_images, np.int32(self.images), mesh=self.mesh,
            layout=self.layout,
        )  # fmt: skip


class Placed(abc.ABC):
    """Scores of selected queries against selected gallery images, ready to be ranked block by block.

    buffer: where the blocks lie. queries: how many queries there are.
    """

    buffer: Buffer
    queries: int

    @abc.abstractmethod
    def block(self, queries: np.ndarray, rows: int, used: jax.Array | None) -> Float32[Array, "q G"]:
        """The buffer of the queries i[n], padded to `rows`; `used`: an earlier block's, whose memory may be taken."""

    def reported(self, queries: np.ndarray, best: np.ndarray) -> np.ndarray:
        """The best scores [n,k] of the queries i[n] as they are reported: cosine, or minus the Euclidean distance."""
        del queries
        return best


class Scores(abc.ABC):
    """Scores of Q queries against G gallery images, larger for better ones, from whatever source."""

    @abc.abstractmethod
    def place(self, selection: Selection) -> Placed:
        """The scores between the selected records."""


class EmbeddingScores(Scores):
    """Cosine, or minus the Euclidean distance, of query f32[Q,D] and gallery f32[G,D] embeddings.

    The selected part of the gallery stays on the devices until another part is selected.
    Raises ValueError for embeddings that are no matrices of one width.
    """

    def __init__(
        self, query: np.ndarray, gallery: np.ndarray, metric: str = "cosine", mesh: Mesh | None = None
    ) -> None:
        self.query, self.gallery = _matrix(query, "query"), _matrix(gallery, "gallery")
        if self.query.shape[1] != self.gallery.shape[1]:
            widths = self.query.shape[1], self.gallery.shape[1]
            raise ValueError(f"query embeddings are {widths[0]} wide, gallery embeddings {widths[1]}")
        self.metric, self.mesh = metric, mesh
        self._placed: list[tuple[np.ndarray, Gallery]] = []  # shared by all queries of this gallery, at most one

    def with_queries(self, query: np.ndarray) -> EmbeddingScores:
        """Scores of other queries against the same gallery, which is not placed again."""
        scores = EmbeddingScores(query, self.gallery, self.metric, self.mesh)
        scores._placed = self._placed
        return scores

    def place(self, selection: Selection) -> Placed:
        if not (self._placed and np.array_equal(self._placed[0][0], selection.gallery)):
            self._placed.clear()
            gallery = Gallery(rows_of(self.gallery, selection.gallery), self.metric, self.mesh)
            self._placed.append((selection.gallery, gallery))
        return _PlacedEmbeddings(rows_of(self.query, selection.query), self._placed[0][1])


class _PlacedEmbeddings(Placed):
    def __init__(self, query: np.ndarray, gallery: Gallery) -> None:
        self._query, self.buffer, self._gallery = query, gallery, gallery
        self.queries = len(query)
        self._squared = squared_norms(query, "query")

    def block(self, queries: np.ndarray, rows: int, used: jax.Array | None) -> Float32[Array, "q G"]:
        return self._gallery.scores(self._query[queries], rows, used)

    def reported(self, queries: np.ndarray, best: np.ndarray) -> np.ndarray:
        if self._gallery.metric == "cosine":
            return best
        return -np.sqrt(np.maximum(self._squared[queries, None] - best, 0))


class HostScores(Scores):
    """Scores computed on the host: `function(queries i[n], gallery images i[m]) -> f32[n,m]`."""

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], np.ndarray], mesh: Mesh | None = None) -> None:
        self._function, self._mesh = function, mesh

    def place(self, selection: Selection) -> Placed:
        return PlacedOnHost(lambda queries: self._function(selection.query[queries], selection.gallery), selection,
                            self._mesh)  # fmt: skip


class PlacedOnHost(Placed):
    """`function(queries i[n]) -> f32[n,G]`, the queries and images counted within the selection."""

    def __init__(
        self, function: Callable[[np.ndarray], np.ndarray], selection: Selection, mesh: Mesh | None = None
    ) -> None:
        self._function, self.buffer = function, Buffer(len(selection.gallery), mesh)
        self.queries = len(selection.query)

    def block(self, queries: np.ndarray, rows: int, used: jax.Array | None) -> Float32[Array, "q G"]:
        del used
        return self.buffer.given(self._function(queries), rows)


def rows_of(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Some rows; the array itself, not a copy, if they are all its rows in order."""
    return array if len(index) == len(array) and (np.diff(index) == 1).all() else array[index]


def _matrix(embedding: np.ndarray, name: str) -> Float32[np.ndarray, "n D"]:
    matrix = np.asarray(embedding)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} embeddings must be a matrix [records, width] that is not empty, not {matrix.shape}")
    return np.ascontiguousarray(matrix, np.float32)


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Host memory that a CPU device takes over without a copy (it wants 64-byte alignment; NumPy gives 16)."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def squared_norms(embedding: Float32[np.ndarray, "n D"], name: str) -> Float32[np.ndarray, " n"]:
    """|x|^2 of each row. Raises ValueError naming the first row that is not finite, or too long for f32 scores."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("nd,nd->n", embedding, embedding)
    bad = np.flatnonzero(~(squared < 1e37))  # so that 2 q.g - |g|^2 stays finite
    if len(bad):
        raise ValueError(
            f"{name} embedding: row {bad[0]} (and {len(bad) - 1} more) has squared length {squared[bad[0]]}; it must "
            "be finite and shorter than 1e18. Look for NaN or inf in the model's output (a diverged checkpoint?)"
        )
    return squared


def inverse_root(squared: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """1 / sqrt, and 0 for 0."""
    return np.divide(1, np.sqrt(squared), out=np.zeros_like(squared), where=squared > 0)
