"""Products of anchors and momentum keys, which a bank or queue may keep in a narrower type."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

EXACT = jax.lax.Precision.HIGHEST


@jax.custom_vjp
def key_products(rows: Float[Array, "A W"], keys: Inexact[Array, "N W"]) -> Float[Array, "A N"]:
    """Products of every row and every key, in the rows' type: f32 or f64. Keys have no gradient."""
    return _contracted(rows, keys, 1)


def _forward(rows: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _contracted(rows, keys, 1), keys


def _backward(keys: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _contracted(gradient, keys, 0), None


key_products.defvjp(_forward, _backward)


def _contracted(rows: jax.Array, keys: jax.Array, axis: int) -> jax.Array:
    """Rows times keys over the rows' last axis and that axis of the keys, exact to the rows' type.

    f32 rows go to bfloat16 keys as the three bfloat16 numbers that each of their numbers is the sum of: such products
    are exact, and a bank kept narrow to be small is not made anew in f32, twice its size.
    """
    over = (((1,), (axis,)), ((), ()))
    if (rows.dtype, keys.dtype) != (jnp.float32, jnp.bfloat16):
        return jax.lax.dot_general(rows, keys.astype(rows.dtype), over, precision=EXACT)
    parts, rest = [], rows
    for _ in range(3):
        # Not a cast there and back, which XLA may leave out.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    found = jax.lax.dot_general(jnp.concatenate(parts), keys, over, preferred_element_type=jnp.float32)
    return jnp.sum(found.reshape(3, rows.shape[0], -1), axis=0)
