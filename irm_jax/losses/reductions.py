"""Sums over keys that lie in several arrays (batch and bank), without joining the arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_sum_exp(parts: Sequence[Float[Array, "A _"]]) -> Float[Array, " A"]:
    """Returns log sum exp over the columns of all parts."""
    found = [jax.nn.logsumexp(part, axis=1) for part in parts]
    total = found[0]
    for one in found[1:]:
        total = jnp.logaddexp(total, one)
    return total


def total(parts: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of arrays of one shape."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
