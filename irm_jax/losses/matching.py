"""Image-caption matching: hard negatives drawn within a batch block, and the two-way loss of the pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import loss_dtype, unit_rows


class HardNegatives(NamedTuple):
    """Hard negatives of every row of a block, each a row of the same block that shows another person.

    Attributes:
        image: the row whose image is paired with this row's caption.
        text: the row whose caption is paired with this row's image.
        found: False where the block has no other person.
    """

    image: jax.Array  # int32[R, b]
    text: jax.Array  # int32[R, b]
    found: jax.Array  # bool[R, b]


def draw_negatives(
    key: jax.Array,
    image_proj: Inexact[Array, "R b d"],
    text_proj: Inexact[Array, "R b d"],
    identity: Int[Array, "R b"],
    valid: Bool[Array, "R b"],
    temperature: Float[Array, ""] | float,
) -> HardNegatives:
    """Draws one negative image and one negative caption per row, in proportion to softmax(cosine / temperature).

    They are drawn among the rows of the same block (the released code: of the same process). So the draw does not
    depend on the mesh, and nothing moves between devices. No gradient.

    Source: docs/method.md, "Text-to-image objectives", matching; ALBEF.
    """
    dtype = loss_dtype(image_proj, text_proj)
    image_proj, text_proj = jax.lax.stop_gradient((image_proj, text_proj))
    blocks, rows, width = image_proj.shape

    def unit(x: jax.Array) -> jax.Array:
        return unit_rows(x.astype(dtype).reshape(-1, width)).reshape(blocks, rows, width)

    scale = jax.lax.stop_gradient(jnp.asarray(temperature)).astype(dtype)
    to_text = jnp.einsum("rid,rtd->rit", unit(image_proj), unit(text_proj), precision=jax.lax.Precision.HIGHEST) / scale
    other = (identity[:, :, None] != identity[:, None, :]) & valid[:, None, :]
    low = jnp.finfo(dtype).min / 2
    image_key, text_key = jax.random.split(key)

    def draw(random: jax.Array, logits: jax.Array) -> jax.Array:
        # float32 noise for every dtype, so that float32 and float64 runs draw the same.
        noise = jax.random.gumbel(random, logits.shape, jnp.float32).astype(dtype)
        return jnp.argmax(jnp.where(other, logits + noise, low), axis=2).astype(jnp.int32)

    images = draw(image_key, jnp.swapaxes(to_text, 1, 2))
    return HardNegatives(images, draw(text_key, to_text), jnp.any(other, axis=2) & valid)


def matching_loss(
    logits: Inexact[Array, "B P 2"], matched: Bool[Array, " P"], counted: Bool[Array, "B P"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Returns per row the mean two-way cross-entropy of its counted pairs, and the share of them that is judged right.

    Both are 0 for a row without a counted pair.

    Args:
        logits: per pair, 1 for "belong together".
        matched: which of the P pairs of a row belong together.
        counted: which pairs count.

    Source: docs/method.md, "Text-to-image objectives", matching; ALBEF's image-text matching.
    """
    dtype = loss_dtype(logits)
    log_p = jax.nn.log_softmax(logits.astype(dtype), axis=-1)
    nats = -jnp.where(matched[None, :], log_p[..., 1], log_p[..., 0])
    right = (log_p[..., 1] > log_p[..., 0]) == matched[None, :]
    pairs = jnp.maximum(jnp.sum(counted, axis=1).astype(dtype), 1.0)
    zero = jnp.zeros((), dtype)
    loss = jnp.sum(jnp.where(counted, nats, zero), axis=1) / pairs
    return loss, jnp.sum(jnp.where(counted, right.astype(dtype), zero), axis=1) / pairs
