"""A gallery on the devices, as ranking and retrieval use it: scores of a block of queries, ranks, best images."""

from __future__ import annotations

import gc

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32

from irm_jax.evaluation.ranking import counting


class Gallery:
    """Gallery embeddings f32[G,D], cut over all devices of a mesh as a 1-D view. `metric`: "cosine" | "euclidean".

    Scores are larger for better images: the cosine, or 2 q.g - |g|^2, which orders as the Euclidean distance does
    (|q|^2 is the same for the whole row). A zero vector has cosine 0 with everything. f32, highest matmul precision.
    """

    def __init__(self, embedding: Float32[np.ndarray, "G D"], metric: str, mesh: Mesh | None = None):
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric {metric!r} is unknown; use 'cosine' or 'euclidean'")
        devices = np.array(jax.devices()) if mesh is None else mesh.devices.reshape(-1)
        self.mesh = Mesh(devices, (counting.AXIS,), axis_types=(AxisType.Auto,))
        self.metric = metric
        self.images = len(embedding)
        self.layout = counting.Layout.of(self.images, devices.size)
        squared = squared_norms(embedding, "gallery")
        # JAX returns host memory it took over only when Python collects garbage: let an earlier gallery's go first.
        gc.collect(0)
        self._embedding = self._place(embedding, P(counting.AXIS))
        if metric == "cosine":
            scale, offset = inverse_root(squared), np.zeros_like(squared)
        else:
            scale, offset = np.full_like(squared, 2), squared
        self._scale, self._offset = self._place(scale, P(counting.AXIS)), self._place(offset, P(counting.AXIS))

    def _place(self, rows: np.ndarray, spec: P) -> jax.Array:
        """Rows cut over the devices and padded with zeros, or whole on each."""
        shape = (self.layout.width * self.layout.shards if spec == P(counting.AXIS) else len(rows), *rows.shape[1:])

        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[0] if index else slice(None)).indices(shape[0])
            piece = aligned_zeros((stop - start, *rows.shape[1:]), rows.dtype)
            part = rows[start:stop]
            piece[: len(part)] = part
            return piece

        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, spec), piece)

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
        products = counting.products(self._place(padded, P()), self._embedding, used, mesh=self.mesh)
        images = np.int32(self.images)
        return counting.to_scores(
            products, self._place(scale, P()), self._scale, self._offset, images, mesh=self.mesh, layout=self.layout
        )

    def given(self, scores: Float32[np.ndarray, "n G"], rows: int) -> Float32[Array, "q G"]:
        """A score buffer like that of `scores`, of numbers that were computed elsewhere."""
        padded = np.full((rows, self.layout.width * self.layout.shards), -np.inf, np.float32)
        padded[: len(scores), : self.images] = np.where(np.abs(scores) < counting.SMALLEST, 0, scores)
        spec = NamedSharding(self.mesh, P(None, counting.AXIS))
        # A copy of its own: the buffer is changed in place, which must not reach the host's memory.
        return jax.make_array_from_callback(padded.shape, spec, lambda index: padded[index]).copy()

    def on_host(self, scores: jax.Array) -> Float32[np.ndarray, "q G"]:
        """The buffer without its padding columns, on every host."""
        return np.asarray(counting.gather(scores, mesh=self.mesh))[:, : self.images]

    def remove(self, scores: jax.Array, columns: Int32[np.ndarray, "n J"]) -> jax.Array:
        """The buffer without the given images (-1: none): they precede nothing. The old buffer is used up."""
        padded = self._pad(columns, scores.shape[0], 1 << max(3, (columns.shape[1] - 1).bit_length()))
        return counting.remove(scores, padded, mesh=self.mesh, layout=self.layout)

    def _pad(self, columns: np.ndarray, rows: int, width: int) -> jax.Array:
        padded = np.full((rows, width), -1, np.int32)
        padded[: columns.shape[0], : columns.shape[1]] = columns
        return self._place(padded, P())

    def preceding(
        self, scores: jax.Array, columns: Int32[np.ndarray, "n p"], sort_above: int
    ) -> Int32[np.ndarray, "n p"]:
        """How many images precede each of the given ones. The value is meaningless where the column is -1.

        Up to `sort_above` images a row are ranked by counting; beyond, it is cheaper to sort the row, on the host.
        """
        rows, wanted = columns.shape
        if wanted <= sort_above:
            result = np.zeros(columns.shape, np.int32)
            for start in range(0, wanted, counting.TILE):
                tile = columns[:, start : start + counting.TILE]
                padded = self._pad(tile, scores.shape[0], counting.TILE)
                # Waits for each result: simulated CPU devices deadlock when many collectives are under way at once.
                count = np.asarray(counting.count(scores, padded, mesh=self.mesh, layout=self.layout))
                result[:, start : start + counting.TILE] = count[:rows, : tile.shape[1]]
            return result
        host = self.on_host(scores)
        result = np.zeros(columns.shape, np.int32)
        place = np.empty(host.shape[1], np.int32)
        for i in range(rows):
            place[np.argsort(-host[i], kind="stable")] = np.arange(host.shape[1], dtype=np.int32)
            result[i] = place[columns[i]]
        return result

    def top(self, scores: jax.Array, k: int) -> tuple[Float32[np.ndarray, "q k"], Int32[np.ndarray, "q k"]]:
        """The k <= G best scores of each row and their gallery indices; (-inf, -1) where fewer images are left."""
        best, column = counting.top(scores, k=k, mesh=self.mesh, layout=self.layout)
        score = np.asarray(best)
        return score, np.where(np.isneginf(score), np.int32(-1), np.asarray(column))


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros whose memory a CPU device takes over without a copy (it wants 64-byte alignment; NumPy gives 16)."""
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
