"""Identity classification: each row among the identities of its own data set."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import loss_dtype


def identity_loss(
    features: Inexact[Array, "B D"],
    weight: Inexact[Array, "D I"],
    identity: Int[Array, " B"],
    allowed: Bool[Array, "B I"],
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Cross-entropy of a bias-free linear head, one weight matrix over the identities of all data sets.

    Args:
        features: one feature per row.
        weight: column i belongs to global identity i; I is padded, and padded columns are never allowed.
        identity: global identities.
        allowed: the identities of the row's data set; logits of all others are masked.

    Returns:
        loss: nats; float32, or float64 if an input is.
        correct: whether the row's own identity has the highest allowed logit (at a tie the lowest column wins).
        A row whose identity is not among its allowed ones (padding, -1) has loss 0, no gradient, and is not correct.

    Source: docs/method.md, "Losses of IRM", identity.
    """
    dtype = loss_dtype(features, weight)
    columns = weight.shape[1]
    column = jnp.arange(columns, dtype=identity.dtype)[None, :]
    own = (identity[:, None] == column) & allowed
    has_target = jnp.any(own, axis=1)
    # Rows without a target are cleared before the product: what padding holds must not reach the gradient.
    rows = jnp.where(has_target[:, None], features.astype(dtype), jnp.zeros((), dtype))
    logits = jnp.einsum("bd,di->bi", rows, weight.astype(dtype), precision=jax.lax.Precision.HIGHEST)
    # A finite mask: a row without any allowed column must give a finite number (masked below), not inf - inf.
    logits = jnp.where(allowed, logits, jnp.finfo(dtype).min / 2)
    # The target is summed out by mask, not gathered, and the winner found without argmax: both stay reductions over a
    # class axis that may be sharded.
    target = jnp.sum(jnp.where(own, logits, jnp.zeros((), dtype)), axis=1)
    loss = jnp.where(has_target, jax.nn.logsumexp(logits, axis=1) - target, jnp.zeros((), dtype))
    ahead = logits > target[:, None]
    tied_before = (logits == target[:, None]) & (column < identity[:, None])
    beaten = jnp.any(ahead | tied_before, axis=1)
    return loss, has_target & jnp.isfinite(target) & ~beaten
