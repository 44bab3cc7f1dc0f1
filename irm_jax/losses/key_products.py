"""Products of anchors with momentum keys, which a bank or queue may keep in a narrower type."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

EXACT = jax.lax.Precision.HIGHEST


@jax.custom_vjp
def key_products(rows: Float[Array, "A W"], keys: Inexact[Array, "N W"]) -> Float[Array, "A N"]:
    """Products of every row with every key, in the rows' type, float32 or float64. Keys get no gradient."""
    return _contracted(rows, keys, 1)


def _forward(rows: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _contracted(rows, keys, 1), keys


def _backward(keys: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _contracted(gradient, keys, 0), None


key_products.defvjp(_forward, _backward)


def _contracted(rows: jax.Array, keys: jax.Array, axis: int) -> jax.Array:
    """Contracts the rows' last axis with `axis` of the keys, exact to the rows' type.

    For bfloat16 keys, each float32 number of the rows is split into the three bfloat16 numbers that it is the sum of.
    These products are exact, and a bank that is narrow to be small is not made again in float32 at twice its size.
    """
    over = (((1,), (axis,)), ((), ()))
    if (rows.dtype, keys.dtype) != (jnp.float32, jnp.bfloat16):
        return jax.lax.dot_general(rows, keys.astype(rows.dtype), over, precision=EXACT)
    parts, rest = [], rows
    for _ in range(3):
        # A cast to bfloat16 and back would do, but XLA may leave it out.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    found = jax.lax.dot_general(jnp.concatenate(parts), keys, over, preferred_element_type=jnp.float32)
    return jnp.sum(found.reshape(3, rows.shape[0], -1), axis=0)
