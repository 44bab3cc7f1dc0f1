"""Distances and unit rows that the losses share: float32 or wider, with finite gradients at zero length."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

SQUARED_DISTANCE_FLOOR = 1e-12
"""Squared distances below this count as this (a distance of 1e-6) and pass no gradient."""
SQUARED_NORM_FLOOR = 1e-24


class LabelledRows(NamedTuple):
    """B rows of features with what decides who competes with whom.

    Attributes:
        features: [B, D].
        identity: global identities.
        dataset: data-set numbers; only rows of one data set are each other's negatives.
        valid: False for padding.
    """

    features: Inexact[Array, "B D"]
    identity: Int[Array, " B"]
    dataset: Int[Array, " B"]
    valid: Bool[Array, " B"]


def loss_dtype(*arrays: Inexact[Array, "..."]) -> jnp.dtype:
    """Returns the dtype in which a loss of these arrays is computed: float64 if any of them is, else float32."""
    # Not jnp.promote_types: under strict promotion that refuses bfloat16 with float32.
    wide = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def keep_rows(rows: Inexact[Array, "B D"], valid: Bool[Array, " B"], dtype: jnp.dtype) -> Float[Array, "B D"]:
    """Returns the rows in `dtype` with zeros for invalid ones: padding, even NaN, reaches no value and no gradient."""
    return jnp.where(valid[:, None], rows.astype(dtype), jnp.zeros((), dtype))


def pairwise_squared_distance(a: Float[Array, "A D"], b: Float[Array, "B D"]) -> Float[Array, "A B"]:
    """Returns clamped squared Euclidean distances without gradient, for mining.

    They are summed from differences. The form |x|^2 + |y|^2 - 2xy loses the small distances that hard mining looks
    for, and it rounds by how a matmul of that shape is tiled: equal rows could tie on one mesh and not on another.
    The compiler fuses the differences into the sum, so nothing of size A x B x D is stored.
    """
    a, b = jax.lax.stop_gradient((a, b))
    squared = jnp.sum(jnp.square(a[:, None, :] - b[None, :, :]), axis=-1)
    return jnp.maximum(squared, SQUARED_DISTANCE_FLOOR)


def chosen_distances(
    anchors: Float[Array, "A D"], rows: Float[Array, "B D"], *chosen: Int[Array, " A"]
) -> list[Float[Array, " A"]]:
    """Returns the Euclidean distances of anchors[i] to rows[index[i]] for each array of chosen row numbers.

    A distance is at least 1e-6, with gradient 0 below that. All rows are taken at once, so that their gradients are
    added where the anchors lie and then summed over devices once.
    """
    taken = jnp.take(rows, jnp.stack(chosen, axis=1), axis=0, mode="clip")
    squared = jnp.sum(jnp.square(anchors[:, None, :] - taken), axis=-1)
    distance = jnp.sqrt(jnp.maximum(squared, SQUARED_DISTANCE_FLOOR))
    return [distance[:, number] for number in range(len(chosen))]


def unit_rows(rows: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """Returns rows of length 1; a row of zeros stays zeros, with a gradient of 0."""
    squared = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    # Both the root and the division see 1 where there is no direction, so that neither makes an infinite gradient.
    has_direction = squared > SQUARED_NORM_FLOOR
    norm = jnp.sqrt(jnp.where(has_direction, squared, 1.0))
    return jnp.where(has_direction, rows / norm, jnp.zeros((), rows.dtype))


def group_spread(
    rows: Inexact[Array, "B D"], group: Int[Array, " B"], valid: Bool[Array, " B"], groups: int
) -> Float[Array, " groups"]:
    """Returns the spread of each group: the root mean square of its valid rows' differences from their mean.

    A batch-normalised group has spread 1. Groups without rows, and groups whose rows coincide, get 1 as well, so that
    a division stays finite. The gradient passes: a feature divided by its spread gains nothing by shrinking.
    """
    dtype = loss_dtype(rows)
    rows = keep_rows(rows, valid, dtype)
    member = ((group[None, :] == jnp.arange(groups, dtype=group.dtype)[:, None]) & valid[None, :]).astype(dtype)
    count = jnp.maximum(jnp.sum(member, axis=1), 1.0)
    exact = jax.lax.Precision.HIGHEST
    mean = jnp.einsum("gb,bd->gd", member, rows, precision=exact) / count[:, None]
    away = jnp.mean(jnp.square(rows - jnp.take(mean, group, axis=0, mode="clip")), axis=1)
    variance = jnp.einsum("gb,b->g", member, away, precision=exact) / count
    return jnp.sqrt(jnp.where(variance > SQUARED_DISTANCE_FLOOR, variance, 1.0))
