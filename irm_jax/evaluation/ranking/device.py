"""Device functions of exact ranking: scores of a block of queries, and ranks by counting instead of sorting.

The rank of a gallery image is the number of images that precede it: images of a higher score, and images of the same
score that come before it in the gallery. Everything is read from one buffer of scores per block of queries, because
scores computed a second time (by a gather, or in a block of another width) are rarely the same bits, and ties would be
lost. The gallery, and with it the buffer's columns, is cut over the devices of a 1-D mesh.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32

LANES = 128
"""Columns of a chunk. Counts are kept per lane and summed at the end: XLA:CPU makes vector code of this, but not of a
reduction over the compared columns (16 against 0.6 comparisons per nanosecond, measured)."""
UNROLL = 32
"""Chunks compared in one fused loop. More compile longer; fewer make the array of lane counts larger."""
TILE = 8
"""Gallery images of each query that one call ranks: one compiled shape serves any number of positives."""
SMALLEST = float(np.finfo(np.float32).tiny)
"""The smallest normal number."""
AXIS = "gallery"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a gallery lies on `shards` devices: [outer, inner, LANES] columns on each, padded at the end."""

    shards: int
    outer: int
    inner: int

    @property
    def width(self) -> int:
        """Columns of one device."""
        return self.outer * self.inner * LANES

    @classmethod
    def of(cls, gallery: int, shards: int) -> Layout:
        chunks = -(-gallery // (shards * LANES))
        outer = -(-chunks // UNROLL)
        return cls(shards, outer, -(-chunks // outer))


def _on_shards(mesh: Mesh, inputs: tuple[P, ...], outputs: P) -> partial:
    return partial(jax.shard_map, mesh=mesh, in_specs=inputs, out_specs=outputs)


@partial(jax.jit, static_argnames="mesh", donate_argnums=2, keep_unused=True)
def products(
    query: Float32[Array, "q D"], gallery: Float32[Array, "G D"], used: Float32[Array, "q G"] | None, mesh: Mesh
) -> Float32[Array, "q G"]:
    """Inner products at full f32 precision. By itself, so that nothing keeps a second buffer of this size alive.

    `used`: a buffer whose scores are no longer needed; its memory is written again. A host's system hands out a new one
    page by page, which took a tenth of the matmul's time (measured).
    """

    @_on_shards(mesh, (P(), P(AXIS)), P(None, AXIS))
    def run(query: jax.Array, gallery: jax.Array) -> jax.Array:
        return jnp.einsum("qd,gd->qg", query, gallery, precision=jax.lax.Precision.HIGHEST)

    return run(query, gallery)


@partial(jax.jit, static_argnames=("mesh", "layout"), donate_argnums=0)
def to_scores(
    products: Float32[Array, "q G"],
    query_scale: Float32[Array, " q"],
    of_images: tuple[Float32[Array, " G"], Float32[Array, " G"]],
    images: Int32[Array, ""],
    mesh: Mesh,
    layout: Layout,
) -> Float32[Array, "q G"]:
    """In place: products * query_scale * scale - offset; 0 for -0 and subnormal numbers; -inf beyond `images`.

    `of_images`: scale and offset of each gallery image.
    """

    @_on_shards(mesh, (P(None, AXIS), P(), P(AXIS), P(AXIS), P()), P(None, AXIS))
    def run(
        products: jax.Array, query_scale: jax.Array, scale: jax.Array, offset: jax.Array, images: jax.Array
    ) -> jax.Array:
        score = products * query_scale[:, None] * scale[None] - offset[None]
        # Devices differ in whether they flush subnormal numbers when comparing: without any, `_below` is exact.
        score = jnp.where(jnp.abs(score) < SMALLEST, 0.0, score)
        column = jax.lax.axis_index(AXIS) * layout.width + jnp.arange(layout.width, dtype=jnp.int32)
        return jnp.where(column[None] < images, score, -jnp.inf)

    return run(products, query_scale, *of_images, images)


@partial(jax.jit, static_argnames="mesh")
def of_host(scores: Float32[Array, "q G"], mesh: Mesh) -> Float32[Array, "q G"]:
    """The same scores in memory of their own, which the next functions may write to; 0 for -0 and subnormal numbers."""

    @_on_shards(mesh, (P(None, AXIS),), P(None, AXIS))
    def run(scores: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(scores) < SMALLEST, 0.0, scores)

    return run(scores)


@partial(jax.jit, static_argnames=("mesh", "layout"), donate_argnums=0)
def remove(
    scores: Float32[Array, "q G"], columns: Int32[Array, "q J"], mesh: Mesh, layout: Layout
) -> Float32[Array, "q G"]:
    """In place: -inf at the given gallery columns (-1: none)."""

    @_on_shards(mesh, (P(None, AXIS), P()), P(None, AXIS))
    def run(scores: jax.Array, columns: jax.Array) -> jax.Array:
        local = columns - jax.lax.axis_index(AXIS) * layout.width
        # A negative index would count from the end.
        local = jnp.where((columns >= 0) & (local >= 0), local, layout.width)
        row = jnp.arange(scores.shape[0], dtype=jnp.int32)[:, None]
        return scores.at[row, local].set(-jnp.inf, mode="drop")

    return run(scores, columns)


def _below(score: jax.Array) -> jax.Array:
    """The next smaller normal number (or 0): `s > _below(t)` is `s >= t` for scores without subnormal numbers."""
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    below = jax.lax.bitcast_convert_type(jnp.where(score > 0, bits - 1, bits + 1), jnp.float32)
    below = jnp.where(score == SMALLEST, 0.0, below)
    return jnp.where(score == 0, -SMALLEST, below)


@partial(jax.jit, static_argnames=("mesh", "layout"))
def count(
    scores: Float32[Array, "q G"], columns: Int32[Array, "q t"], mesh: Mesh, layout: Layout
) -> Int32[Array, "q t"]:
    """How many gallery images precede each given one (-1: the result is meaningless)."""

    @_on_shards(mesh, (P(None, AXIS), P()), P())
    def run(scores: jax.Array, columns: jax.Array) -> jax.Array:
        rows, wanted = columns.shape
        local = columns - jax.lax.axis_index(AXIS) * layout.width
        own = (local >= 0) & (local < layout.width)
        inside = jnp.clip(local, 0, layout.width - 1)
        score = jnp.where(own, jnp.take_along_axis(scores, inside, axis=1), -jnp.inf)
        score = jax.lax.pmax(score, AXIS)
        # A chunk before the image's own counts scores >= its score, the own chunk and those after it count scores >.
        chunk = local // LANES  # below 0 or beyond the last where the image stands on another device
        below = _below(score)
        chunked = scores.reshape(rows, layout.outer, layout.inner, LANES)
        first = jnp.arange(layout.outer, dtype=jnp.int32) * layout.inner
        lanes = jnp.zeros((rows, layout.outer, wanted, LANES), jnp.int32)
        for i in range(layout.inner):
            before = (first + i)[None, :, None] < chunk[:, None, :]
            bound = jnp.where(before, below[:, None, :], score[:, None, :])
            lanes = lanes + (chunked[:, :, None, i, :] > bound[:, :, :, None]).astype(jnp.int32)
        count = lanes.sum(axis=(1, 3))
        # What the own chunk still lacks: equal scores on lanes before the image.
        chunks = scores.reshape(rows, layout.outer * layout.inner, LANES)
        near = jnp.take_along_axis(chunks, (inside // LANES)[:, :, None], axis=1)
        lane = jnp.arange(LANES, dtype=jnp.int32)[None, None]
        tied = (near == score[:, :, None]) & (lane < (inside % LANES)[:, :, None]) & own[:, :, None]
        return jax.lax.psum(count + tied.astype(jnp.int32).sum(axis=2), AXIS)

    return run(scores, columns)


@partial(jax.jit, static_argnames=("k", "mesh", "layout"))
def top(
    scores: Float32[Array, "q G"], k: int, mesh: Mesh, layout: Layout
) -> tuple[Float32[Array, "q k"], Int32[Array, "q k"]]:
    """The k best scores and their columns, ties in gallery order (lax.top_k keeps the lower index)."""
    local_k = min(k, layout.width)

    @partial(jax.shard_map, mesh=mesh, in_specs=P(None, AXIS), out_specs=(P(None, AXIS), P(None, AXIS)))
    def run(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows, chunks = scores.shape[0], layout.outer * layout.inner
        if local_k < chunks:
            # The k best images stand in the k chunks of best maximum. The chunks are folded to 8 lanes by selection,
            # because XLA:CPU makes slow code of `maximum` (it keeps NaN; there is none here).
            lanes = scores.reshape(rows, chunks, LANES // 8, 8)
            folded = lanes[:, :, 0]
            for i in range(1, LANES // 8):
                folded = jnp.where(lanes[:, :, i] > folded, lanes[:, :, i], folded)
            best = folded.max(axis=-1)
            chosen = jnp.sort(jax.lax.top_k(best, local_k)[1], axis=1)  # gallery order again, for the ties
            near = jnp.take_along_axis(scores.reshape(rows, chunks, LANES), chosen[:, :, None], axis=1)
            best, place = jax.lax.top_k(near.reshape(rows, -1), local_k)
            column = jnp.take_along_axis(chosen, place // LANES, axis=1) * LANES + place % LANES
        else:
            best, column = jax.lax.top_k(scores, local_k)
        return best, column + jax.lax.axis_index(AXIS) * layout.width

    best, column = run(scores)
    whole = NamedSharding(mesh, P())
    best, place = jax.lax.top_k(jax.lax.with_sharding_constraint(best, whole), k)
    column = jnp.take_along_axis(jax.lax.with_sharding_constraint(column, whole), place, axis=1)
    return jax.lax.with_sharding_constraint(best, whole), jax.lax.with_sharding_constraint(column, whole)


@partial(jax.jit, static_argnames="mesh")
def gather(scores: Float32[Array, "q G"], mesh: Mesh) -> Float32[Array, "q G"]:
    """The buffer whole on every device (and so readable in every process)."""
    return jax.lax.with_sharding_constraint(scores, NamedSharding(mesh, P()))
