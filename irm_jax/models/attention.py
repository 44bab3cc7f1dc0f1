"""Attention of queries over keys and values, in the form that the platform computes fastest.

Arrays are [B, H, N, d]: rows, heads, tokens, width of a head. All forms compute the same numbers, up to rounding:

    CPU         softmax(scores) @ value with the division last (`attend`)
    GPU         cuDNN's flash attention, for what it takes (`takes_fused`): no scores are written to memory
    TPU, others softmax(scores) @ value. Splash attention pads the keys to 128s: of a ViT's 132 tokens it would compute
                256, and a head's array [Q, d] is not smaller than its scores [Q, N].

Attention dropout, masked keys and float32 have the plain form everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float

from irm_jax.models import plain_forms

Drop = Callable[[Array], Array]
"""Drops attention weights."""


def at_least_f32(dtype: Any) -> Any:
    """The dtype of sums and statistics: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def mix(
    query: Float[Array, "B H Q d"],
    key: Float[Array, "B H N d"],
    value: Float[Array, "B H N d"],
    mask: Bool[Array, "B N"] | None,
    drop: Drop | None = None,
) -> Float[Array, "B Q H d"]:
    """Averages values by the attention weights of scaled queries; keys whose `mask` is False are not attended to."""
    if mask is None and drop is None and not plain_forms.active() and takes_fused(query.dtype, query.shape[-1]):
        return fused(query, key, value, "cudnn")
    scores = attention_scores(query, key, mask)
    if drop is not None:
        mixed = _attend(scores, value, drop)
    else:
        mixed = (_attend if plain_forms.active() else attend)(scores, value)
    return jnp.swapaxes(mixed, 1, 2)


def takes_fused(dtype: Any, width: int) -> bool:
    """Whether cuDNN's flash attention is here and takes heads of this dtype and width, backward pass included."""
    return dtype in (jnp.bfloat16, jnp.float16) and width % 8 == 0 and width <= 128 and _has_cudnn()


@functools.cache
def _has_cudnn() -> bool:
    if jax.default_backend() != "gpu":
        return False
    one = jax.ShapeDtypeStruct((1, 1, 16, 64), jnp.bfloat16)
    try:
        jax.eval_shape(lambda x: fused(x, x, x, "cudnn"), one)
    except Exception as error:  # cuDNN is missing, or too old for this GPU
        logging.warning("attention without cuDNN: %s", str(error).splitlines()[0])
        return False
    return True


def fused(
    query: Float[Array, "B H Q d"], key: Float[Array, "B H N d"], value: Float[Array, "B H N d"], implementation: Any
) -> Float[Array, "B Q H d"]:
    """`jax.nn.dot_product_attention` of scaled queries; `implementation` as there ("cudnn" or "xla")."""
    arrays = [jnp.swapaxes(x, 1, 2) for x in (query, key, value)]
    return jax.nn.dot_product_attention(*arrays, scale=1.0, implementation=implementation)


def softmax(scores: Float[Array, "*S N"]) -> Float[Array, "*S N"]:
    """Attention weights, in at least float32."""
    return jax.nn.softmax(scores.astype(at_least_f32(scores.dtype)), axis=-1)


def _attend(scores: Array, value: Array, drop: Drop = lambda weights: weights) -> Array:
    return jnp.einsum("bhqk,bhkd->bhqd", drop(softmax(scores).astype(value.dtype)), value)


def _attend_on_cpu(scores: Array, value: Array) -> Array:
    wide = at_least_f32(scores.dtype)
    weights = jnp.exp(scores.astype(wide) - jnp.max(scores, axis=-1, keepdims=True).astype(wide))
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
    return (mixed.astype(wide) / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)


@jax.custom_vjp
def attend(scores: Float[Array, "B H Q N"], value: Float[Array, "B H N d"]) -> Float[Array, "B H Q d"]:
    """Computes softmax(scores) @ value, both of one dtype.

    On a CPU the division by the sum comes after the product, as in flash attention: XLA then makes one pass of scores,
    exponentials and product, and a ViT-B/16 embeds faster ("jax, plain" in benchmarks/torch_speed.py is without it).
    Other platforms compute the plain form, whose gradient is used everywhere. Compiled for TPUs, flash attention's
    order moved more memory.
    """
    return jax.lax.platform_dependent(scores, value, cpu=_attend_on_cpu, default=_attend)


def _attend_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    scores, value = kept
    weights, to_scores = jax.vjp(lambda scores: softmax(scores).astype(value.dtype), scores)
    to_weights = jnp.einsum("bhqd,bhkd->bhqk", gradient, value)
    return *to_scores(to_weights), jnp.einsum("bhqk,bhqd->bhkd", weights, gradient)


attend.defvjp(lambda scores, value: (attend(scores, value), (scores, value)), _attend_backward)


def attention_scores(
    query: Float[Array, "B H Q d"], key: Float[Array, "B H N d"], mask: Bool[Array, "B N"] | None = None
) -> Float[Array, "B H Q N"]:
    """Scores of scaled queries; keys whose `mask` is False are not attended to.

    Products of bfloat16 are added in float32 and rounded to bfloat16, as under torch's autocast. They are the largest
    arrays of a block: half as wide, they take a tenth off the memory traffic of a step at paper scale.
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key)
    return scores if mask is None else jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
