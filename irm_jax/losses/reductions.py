"""Sums over candidates that lie in several arrays, the batch's and a bank's, without joining them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_sum_exp(parts: Sequence[Float[Array, "A N"]]) -> Float[Array, " A"]:
    """Over the columns of all parts (at least one): a bank stays where it lies."""
    found = [jax.nn.logsumexp(part, axis=1) for part in parts]
    total = found[0]
    for one in found[1:]:
        total = jnp.logaddexp(total, one)
    return total


def total(parts: Sequence[jax.Array]) -> jax.Array:
    """Sum of arrays of one shape (at least one)."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
