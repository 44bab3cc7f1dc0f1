"""Similarity of two rows' instructions (rho), and the running mean by which instruction features are centred."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import loss_dtype, unit_rows


class InstructionMean(NamedTuple):
    """Bias-corrected momentum mean of the instruction features of each kind: the mean is sum / weight."""

    sum: jax.Array  # float32[kinds, E]
    weight: jax.Array  # float32[kinds], 0 until the kind is first seen, then towards 1


def init_mean(kinds: int, width: int) -> InstructionMean:
    """Returns the mean before any row was seen."""
    return InstructionMean(jnp.zeros((kinds, width), jnp.float32), jnp.zeros((kinds,), jnp.float32))


def current_mean(state: InstructionMean) -> Float[Array, "kinds E"]:
    """Returns the mean of each kind, zeros for a kind that was never seen."""
    seen = state.weight > 0
    mean = state.sum / jnp.where(seen, state.weight, 1.0)[:, None]
    return jnp.where(seen[:, None], mean, jnp.zeros((), mean.dtype))


def update_mean(
    state: InstructionMean,
    feature: Inexact[Array, "B E"],
    kind: Int[Array, " B"],
    valid: Bool[Array, " B"],
    momentum: float,
) -> InstructionMean:
    """Moves the mean of each kind towards that of its valid rows; a kind without rows keeps its value. No gradient.

    The mean is updated before it is used: thanks to bias correction it is the first batch's own mean in step 0.
    """
    dtype = state.sum.dtype
    kinds = state.weight.shape[0]
    rows = jnp.where(valid[:, None], jax.lax.stop_gradient(feature).astype(dtype), jnp.zeros((), dtype))
    member = ((kind[None, :] == jnp.arange(kinds, dtype=kind.dtype)[:, None]) & valid[None, :]).astype(dtype)
    count = jnp.sum(member, axis=1)
    total = jnp.einsum("kb,be->ke", member, rows, precision=jax.lax.Precision.HIGHEST)
    batch_mean = total / jnp.maximum(count, 1.0)[:, None]
    present = count > 0
    return InstructionMean(
        sum=jnp.where(present[:, None], momentum * state.sum + (1 - momentum) * batch_mean, state.sum),
        weight=jnp.where(present, momentum * state.weight + (1 - momentum), state.weight),
    )


def similarity(
    feature: Inexact[Array, "B E"],
    key: Int[Array, " B *words"],
    kind: Int[Array, " B"],
    mean: Inexact[Array, "kinds E"],
    mode: Literal["centered", "raw"] = "centered",
) -> Float[Array, "B B"]:
    """Returns rho in [-1, 1] without gradient: exactly 1 where two rows have one instruction, else their cosine.

    Args:
        feature: instruction features.
        key: equal keys, of one or more words, are one instruction if the kind is equal too.
        kind: index into `mean`; instructions of different kinds are never one.
        mean: of each kind, see `current_mean`.
        mode: "centered" takes cosines of features minus the mean of their kind, "raw" (the paper) of the features.

    All rows of one instruction, padding included, must carry one feature. The column of the first such row stands for
    all of them, so that an anchor's similarities to them are equal to the last bit: the rank term of the adaptive
    triplet loss tells > from =, and the columns of a matmul need not round alike. A feature of length 0 has cosine 0.

    Raises:
        ValueError: for another mode.

    Source: docs/method.md, "Losses of IRM" and "What is our formulation".
    """
    if mode not in ("centered", "raw"):
        raise ValueError(f"instruction similarity {mode!r} is unknown; use 'centered' or 'raw'")
    feature, mean = jax.lax.stop_gradient((feature, mean))
    dtype = loss_dtype(feature)
    rows = feature.astype(dtype)
    if mode == "centered":
        rows = rows - jnp.take(mean.astype(dtype), kind, axis=0, mode="clip")
    unit = unit_rows(rows)
    cosine = jnp.einsum("ae,be->ab", unit, unit, precision=jax.lax.Precision.HIGHEST)
    words = [kind, *jnp.moveaxis(key.reshape(len(key), -1), 1, 0)]
    equal = functools.reduce(jnp.logical_and, [word[:, None] == word[None, :] for word in words])
    representative = jnp.argmax(equal, axis=1)  # the first row of the same instruction
    cosine = jnp.take(cosine, representative, axis=1, mode="clip")
    return jnp.where(equal, jnp.ones((), dtype), jnp.clip(cosine, -1.0, 1.0))
