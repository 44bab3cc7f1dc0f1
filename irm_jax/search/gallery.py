"""Vectors of an index on the devices, in bfloat16, and the exact best of them for queries.

The evaluation's exact ranking on half the memory: the same layout over the devices and the same selection of the best,
ties by position. Vectors of an index are numbers that bfloat16 holds (`rounded`), so nothing is lost, and products are
summed in float32.
"""

from __future__ import annotations

import gc
import sys
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, BFloat16, Bool, Float32

from irm_jax.evaluation.ranking import device
from irm_jax.evaluation.ranking.scores import Buffer

LANES = 32
"""Vectors are padded to a multiple of this: products are summed in so many lanes, which XLA makes vector code of."""
CHUNK = 8192
"""Most vectors that are converted to float32 at a time."""
BUFFER_BYTES = 1 << 30
"""Of one device's block of scores."""
BUCKETS = (1, 16, 64, 256, 1024)
"""Numbers of queries that are compiled for."""
TOPS = (32, 256, 1024)
"""Numbers of best images that are compiled for; beyond, the next power of two."""
UPPER = 1 if sys.byteorder == "little" else 0
"""Which 16 bits of a float32 are its upper ones."""
STEPS = 32
"""Memory is taken for a number of vectors rounded up by at most this part: programs are compiled for few numbers, and
an index that grows keeps them."""


def rounded(vectors: np.ndarray) -> np.ndarray:
    """The nearest vectors f16[n,d] whose numbers bfloat16 holds too: eight bits, which cost a cosine about 1e-4."""
    return np.asarray(vectors, np.float32).astype(ml_dtypes.bfloat16).astype(np.float32).astype(np.float16)


def capacity(count: int) -> int:
    """For how many vectors there is memory, of `count`."""
    step = max(1024, (1 << count.bit_length()) // (2 * STEPS))
    return -(-count // step) * step


def on_host(mesh: Mesh) -> bool:
    """Whether several queries are ranked by the host: XLA on a CPU takes four times as long as BLAS."""
    return jax.process_count() == 1 and mesh.devices.flat[0].platform == "cpu"


class VectorBuffer(Buffer):
    """Vectors bf16[G,D] on the devices, filled row by row; then `top` ranks them.

    The host's memory is filled once and handed over, so that a million vectors are never held twice on a CPU.
    """

    def __init__(self, count: int, width: int, mesh: Mesh | None = None) -> None:
        super().__init__(count, mesh)
        self.layout = device.Layout.of(capacity(count), self.layout.shards)
        self.width = width
        self._padded_width = -(-width // LANES) * LANES
        rows = self.layout.width * self.layout.shards
        size = rows * self._padded_width
        raw = np.zeros(2 * size + 64, np.uint8)
        start = -raw.ctypes.data % 64  # a CPU device takes memory over that is aligned so
        self._host = raw[start : start + 2 * size].view(ml_dtypes.bfloat16).reshape(rows, self._padded_width)
        self._vectors: jax.Array | None = None

    def fill(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Puts vectors [n,D] at the rows i[n]."""
        self._host[rows, : self.width] = vectors.astype(np.float32).astype(ml_dtypes.bfloat16)

    def filled(self) -> np.ndarray:
        """f16[G,D]: what was filled in, before `finish`."""
        return self._host[: self.images, : self.width].astype(np.float32).astype(np.float16)

    def finish(self) -> None:
        """Moves the vectors to the devices."""
        host = self._host
        del self._host
        gc.collect(0)
        spec = jax.sharding.NamedSharding(self.mesh, P(device.AXIS))
        self._vectors = jax.make_array_from_callback(host.shape, spec, lambda index: host[index])
        self._scale = self.place(np.ones(self.images, np.float32), P(device.AXIS))
        self._open = self.place(np.zeros(self.images, np.float32), P(device.AXIS))

    def host_vectors(self, rows: np.ndarray) -> np.ndarray:
        """f32[n,D]: some of the vectors."""
        assert self._vectors is not None
        return np.asarray(self._vectors[jnp.asarray(rows)], np.float32)[:, : self.width]

    def top(  # type: ignore[override]
        self, query: Float32[np.ndarray, "Q D"], k: int, passes: Bool[np.ndarray, " G"] | None = None
    ) -> tuple[Float32[np.ndarray, "Q k"], np.ndarray]:
        """The k best products of each query and their rows; (-inf, -1) where fewer pass. Ties in order of rows."""
        k = min(k, self.images)
        if len(query) > 1 and on_host(self.mesh):
            return self._top_on_host(query, k, passes)
        wide = next((top for top in TOPS if top >= k), 1 << (k - 1).bit_length())
        wide = min(wide, self.layout.width * self.layout.shards)
        offset = self._open
        if passes is not None:
            offset = self.place(np.where(passes, 0, np.inf).astype(np.float32), P(device.AXIS))
        fit = max(1, BUFFER_BYTES // (4 * self.layout.width))
        most = max(size for size in BUCKETS if size <= fit or size == 1)
        scores, rows = [], []
        buffer = None
        for start in range(0, len(query), most):
            part = query[start : start + most]
            size = next(bucket for bucket in BUCKETS if bucket >= len(part))
            if buffer is not None and buffer.shape[0] != size:
                buffer = None
            buffer = self._scores(part, size, offset, buffer)
            best, column = super().top(buffer, wide)
            scores.append(best[: len(part), :k])
            rows.append(column[: len(part), :k])
        return np.concatenate(scores), np.concatenate(rows)

    def _top_on_host(self, query: np.ndarray, k: int, passes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """`top` by NumPy's matrix product, chunk by chunk, keeping the k best so far."""
        bits = np.asarray(self._vectors).view(np.uint16)  # of one CPU device: the same memory
        padded = np.zeros((len(query), bits.shape[1]), np.float32)
        padded[:, : self.width] = query
        # Memory of all chunks: a system hands out new memory page by page, which takes a tenth of the time.
        most = min(CHUNK, self.images)
        chunk = np.zeros((most, bits.shape[1]), np.float32)
        products, above = np.empty(len(query) * most, np.float32), np.empty(len(query) * most, bool)
        best = np.full((len(query), k), -np.inf, np.float32)
        rows = np.full((len(query), k), -1, np.int32)
        for start in range(0, self.images, CHUNK):
            count = min(CHUNK, self.images - start)
            # A bfloat16 is the upper half of a float32; the lower halves stay zero.
            chunk.view(np.uint16)[:count, UPPER::2] = bits[start : start + count]
            scores = products[: len(query) * count].reshape(len(query), count)
            np.matmul(padded, chunk[:count].T, out=scores)
            if passes is not None:
                scores[:, ~passes[start : start + count]] = -np.inf
            least = best[:, -1:]
            if not start and k < count:  # the k-th best of the first chunk
                least = np.nextafter(np.partition(scores, -k, axis=1)[:, -k:][:, :1], np.float32(-np.inf))
            found = np.greater(scores, least, out=above[: scores.size].reshape(scores.shape))
            asked, column = np.divmod(np.flatnonzero(found), count)
            of = np.concatenate([np.repeat(np.arange(len(query)), k), asked])
            score = np.concatenate([best.ravel(), scores[asked, column]])
            row = np.concatenate([rows.ravel(), (column + start).astype(np.int32)])
            order = np.lexsort((row, -score, of))
            first = np.searchsorted(of[order], np.arange(len(query)))
            kept = order[first[:, None] + np.arange(k)]
            best, rows = score[kept], row[kept]
        return best, rows

    def _scores(self, query: np.ndarray, size: int, offset: jax.Array, used: jax.Array | None) -> jax.Array:
        assert self._vectors is not None
        padded = np.zeros((size, self._padded_width), np.float32)
        padded[: len(query), : self.width] = query
        placed, ones = self.place(padded, P()), self.place(np.ones(size, np.float32), P())
        with jax.set_mesh(self.mesh):
            if size == 1:
                products = _product_of_one(placed, self._vectors, mesh=self.mesh)
            else:
                products = (
                    used if used is not None else _empty(size, self.layout.width * self.layout.shards, mesh=self.mesh)
                )
                for start in range(0, self.layout.width, CHUNK):
                    # Near the end the chunk begins earlier and some columns are written twice, with the same numbers.
                    at = np.int32(max(0, min(start, self.layout.width - CHUNK)))
                    products = _product_of_chunk(placed, self._vectors, products, at, mesh=self.mesh)
            return device.to_scores(
                products, ones, (self._scale, offset), np.int32(self.images), mesh=self.mesh, layout=self.layout
            )


@partial(jax.jit, static_argnames="mesh")
def _product_of_one(query: Float32[Array, "1 D"], vectors: BFloat16[Array, "G D"], mesh: Mesh) -> Float32[Array, "1 G"]:
    """One query's products, at the speed of reading the vectors: no float32 copy of them is made."""

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(device.AXIS)), out_specs=P(None, device.AXIS))
    def run(query: jax.Array, vectors: jax.Array) -> jax.Array:
        terms = vectors.astype(jnp.float32) * query[0][None]
        return terms.reshape(len(vectors), -1, LANES).sum(axis=1).sum(axis=1)[None]

    return run(query, vectors)


@partial(jax.jit, static_argnames=("size", "columns", "mesh"))
def _empty(size: int, columns: int, mesh: Mesh) -> Float32[Array, "q G"]:
    spec = jax.sharding.NamedSharding(mesh, P(None, device.AXIS))
    return jax.lax.with_sharding_constraint(jnp.zeros((size, columns), jnp.float32), spec)


@partial(jax.jit, static_argnames="mesh", donate_argnums=2)
def _product_of_chunk(
    query: Float32[Array, "q D"], vectors: BFloat16[Array, "G D"], products: Float32[Array, "q G"],
    start: Array, mesh: Mesh,
) -> Float32[Array, "q G"]:  # fmt: skip
    """In place: the products with CHUNK vectors of each device from `start` on, at full float32 precision."""

    specs = (P(), P(device.AXIS), P(None, device.AXIS), P())

    @partial(jax.shard_map, mesh=mesh, in_specs=specs, out_specs=P(None, device.AXIS))
    def run(query: jax.Array, vectors: jax.Array, products: jax.Array, start: jax.Array) -> jax.Array:
        chunk = jax.lax.dynamic_slice_in_dim(vectors, start, min(CHUNK, len(vectors)))
        # XLA:CPU makes slow code of a product of mixed types.
        whole = jax.lax.optimization_barrier(chunk.astype(jnp.float32))
        part = jnp.einsum("qd,gd->qg", query, whole, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(products, part, start, axis=1)

    return run(query, vectors, products, start)
