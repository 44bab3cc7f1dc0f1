"""Contrastive loss of images and captions within the batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import keep_rows, loss_dtype, unit_rows

TEMPERATURE_BOUNDS = (0.01, 0.5)


class ContrastiveAux(NamedTuple):
    """Retrieval in the batch, a row (no gradient): does the best key show the row's identity; False if invalid."""

    image_to_text_correct: jax.Array  # bool[B]
    text_to_image_correct: jax.Array  # bool[B]


def clip_temperature(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the temperature kept in [0.01, 0.5] [ours]; the gradient passes as if it were not.

    A plain clip has no gradient outside the bounds, so a parameter that an update carried over one would stay there.
    """
    clipped = jnp.clip(temperature, *TEMPERATURE_BOUNDS)
    return jax.lax.stop_gradient(clipped) + (temperature - jax.lax.stop_gradient(temperature))


def identity_targets(
    query_identity: Int[Array, "B"], key_identity: Int[Array, "K"], key_valid: Bool[Array, "K"], dtype: jnp.dtype
) -> Float[Array, "B K"]:
    """Returns the same-identity indicator with rows summing to 1 (to 0 where no valid key has the query's identity)."""
    same = ((query_identity[:, None] == key_identity[None, :]) & key_valid[None, :]).astype(dtype)
    return same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1.0)


def direction_loss(
    logits: Float[Array, "B K"], targets: Float[Array, "B K"], key_valid: Bool[Array, "K"]
) -> Float[Array, "B"]:
    """Returns the cross-entropy of each query's targets over the valid keys, in nats; keys may be of any origin."""
    # Finite, as in the identity loss: without a valid key the result must be finite for the caller to mask.
    masked = jnp.where(key_valid[None, :], logits, jnp.finfo(logits.dtype).min / 2)
    return -jnp.sum(jnp.where(targets > 0, targets * jax.nn.log_softmax(masked, axis=1), 0.0), axis=1)


def contrastive_loss(
    image_proj: Inexact[Array, "B d"],
    text_proj: Inexact[Array, "B d"],
    identity: Int[Array, "B"],
    valid: Bool[Array, "B"],
    temperature: Float[Array, ""] | float,
) -> tuple[Float[Array, "B"], ContrastiveAux]:
    """Mean of image-to-text and text-to-image cross-entropy of cosines / temperature, row i of both being one pair.

    The target of a query is spread evenly over all valid keys of its identity. Keys are the rows of the batch; the
    momentum queue, its soft targets and the image-image and text-text directions belong to the full text-to-image
    objectives, where they are further keys, targets and directions of `direction_loss`.

    Args:
      image_proj, text_proj: projections, not normalised. valid: False for padding, neither query nor key.
      temperature: positive (see `clip_temperature`); may be a parameter and gets a gradient.

    Returns:
      loss: one value a pair, f32 or f64; 0 for invalid rows. aux: see its class.

    Source: method.md section 6 (contrastive), without queue and momentum.
    """
    dtype = loss_dtype(image_proj, text_proj)
    image = unit_rows(keep_rows(image_proj, valid, dtype))
    text = unit_rows(keep_rows(text_proj, valid, dtype))
    targets = identity_targets(identity, identity, valid, dtype)
    scale = jnp.asarray(temperature).astype(dtype)

    def direction(query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum("bd,kd->bk", query, key, precision=jax.lax.Precision.HIGHEST) / scale
        best = jnp.argmax(jnp.where(valid[None, :], logits, -jnp.inf), axis=1)
        correct = valid & (jnp.take(identity, best, mode="clip") == identity)
        return direction_loss(logits, targets, valid), correct

    image_to_text, image_to_text_correct = direction(image, text)
    text_to_image, text_to_image_correct = direction(text, image)
    loss = jnp.where(valid, (image_to_text + text_to_image) / 2, jnp.zeros((), dtype))
    return loss, ContrastiveAux(image_to_text_correct, text_to_image_correct)
