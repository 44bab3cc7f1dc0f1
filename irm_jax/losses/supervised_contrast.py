"""Supervised contrast: every positive of an anchor against all of the anchor's negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from irm_jax.losses.geometry import loss_dtype, unit_rows

_NO_NEGATIVE = -1e9
"""Similarity that stands where a row is no negative; finite, so that gradients are."""


def supervised_contrast(
    anchors: Inexact[Array, "A D"],
    candidates: Inexact[Array, "B D"],
    positive: Bool[Array, "A B"],
    negative: Bool[Array, "A B"],
    temperature: float = 0.1,
) -> Float[Array, " A"]:
    """Mean over the positives p of -log(e^s_p / (e^s_p + sum over negatives e^s_n)), s = cosine / temperature.

    Positives do not compete with each other, unlike in Khosla et al. (NeurIPS 2020, arXiv:2004.11362), where an anchor
    with ten pictures of its person never reaches a loss of 0. Rows that are neither, such as padding, must be finite
    and have no effect. Candidates get a gradient as well.

    Returns:
        float32 or float64 [A]; 0 for an anchor without a positive.
    """
    dtype = loss_dtype(anchors, candidates)
    own, others = unit_rows(anchors.astype(dtype)), unit_rows(candidates.astype(dtype))
    similarity = jnp.einsum("ad,bd->ab", own, others, precision=jax.lax.Precision.HIGHEST) / temperature
    against = jax.nn.logsumexp(jnp.where(negative, similarity, jnp.asarray(_NO_NEGATIVE, dtype)), axis=1)
    each = jnp.where(positive, jax.nn.softplus(against[:, None] - similarity), jnp.zeros((), dtype))
    count = jnp.maximum(jnp.sum(positive, axis=1), 1).astype(dtype)
    return jnp.sum(each, axis=1) / count
