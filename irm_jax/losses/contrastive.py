"""Contrastive losses of images and captions: within the batch, and against momentum keys and their queue."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import keep_rows, loss_dtype, unit_rows
from irm_jax.losses.key_products import key_products
from irm_jax.losses.reductions import log_sum_exp, total

TEMPERATURE_BOUNDS = (0.01, 0.5)


class ContrastiveAux(NamedTuple):
    """Retrieval in the batch, a row (no gradient): does the best key show the row's identity; False if invalid."""

    image_to_text_correct: jax.Array  # bool[B]
    text_to_image_correct: jax.Array  # bool[B]


@jax.custom_vjp
def clip_temperature(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the temperature kept in [0.01, 0.5] [ours].

    The gradient passes as if it were not, but for a part that leads further out: a plain clip has none outside the
    bounds, so a parameter that an update carried over one would stay there; with all of it the parameter would run
    away while the loss does not change, and be long in coming back.
    """
    return jnp.clip(temperature, *TEMPERATURE_BOUNDS)


def _clip_forward(temperature: Array) -> tuple[Array, Array]:
    return clip_temperature(temperature), temperature


def _clip_backward(temperature: Array, gradient: Array) -> tuple[Array]:
    low, high = TEMPERATURE_BOUNDS
    # A step goes against the gradient.
    outwards = ((temperature <= low) & (gradient > 0)) | ((temperature >= high) & (gradient < 0))
    return (jnp.where(outwards, jnp.zeros_like(gradient), gradient),)


clip_temperature.defvjp(_clip_forward, _clip_backward)


def same_and_other_outfit(
    query_identity: Int[Array, " B"],
    query_clothes: Int[Array, " B"],
    key_identity: Int[Array, " K"],
    key_clothes: Int[Array, " K"],
) -> tuple[Bool[Array, "B K"], Bool[Array, "B K"]]:
    """Which keys are positives of a query, and which show its person in an outfit known to be another one.

    A caption tells the clothes, so the latter are no positives; nor are they negatives, as the caption may fit the rest
    of the person: they are left out [ours; the strict target of a test does the same]. Outfits are numbered a person;
    where one is unknown (-1), as in every published set, all pictures of the person are positives (the paper's rule).
    """
    one = query_identity[:, None] == key_identity[None, :]
    told = (query_clothes[:, None] >= 0) & (key_clothes[None, :] >= 0)
    other = one & told & (query_clothes[:, None] != key_clothes[None, :])
    return one & ~other, other


def spread(positive: Bool[Array, "B K"], dtype: jnp.dtype) -> Float[Array, "B K"]:
    """Returns targets: each row's weight spread evenly over its positives (0 where there is none)."""
    same = positive.astype(dtype)
    return same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1.0)


def direction_loss(
    logits: Float[Array, "B K"], targets: Float[Array, "B K"], usable: Bool[Array, "B K"]
) -> Float[Array, " B"]:
    """Returns the cross-entropy of each query's targets over its usable keys, in nats; keys may be of any origin."""
    # Finite, as in the identity loss: without a usable key the result must be finite for the caller to mask.
    masked = jnp.where(usable, logits, jnp.finfo(logits.dtype).min / 2)
    return -jnp.sum(jnp.where(targets > 0, targets * jax.nn.log_softmax(masked, axis=1), 0.0), axis=1)


def contrastive_loss(
    image_proj: Inexact[Array, "B d"],
    text_proj: Inexact[Array, "B d"],
    identity: Int[Array, " B"],
    clothes: Int[Array, " B"],
    valid: Bool[Array, " B"],
    temperature: Float[Array, ""] | float,
) -> tuple[Float[Array, " B"], ContrastiveAux]:
    """Mean of image-to-text and text-to-image cross-entropy of cosines / temperature, row i of both being one pair.

    The target of a query is spread evenly over its positives, see `same_and_other_outfit`. Keys are the rows of the
    batch; see `momentum_contrastive_loss` for the full objective.

    Args:
      image_proj, text_proj: projections, not normalised. valid: False for padding, neither query nor key.
      clothes: the outfit that a pair shows and tells, numbered a person; -1 unknown.
      temperature: positive (see `clip_temperature`); may be a parameter and gets a gradient.

    Returns:
      loss: one value a pair, f32 or f64; 0 for invalid rows. aux: see its class.

    Source: method.md section 6 (contrastive), without queue and momentum.
    """
    dtype = loss_dtype(image_proj, text_proj)
    image = unit_rows(keep_rows(image_proj, valid, dtype))
    text = unit_rows(keep_rows(text_proj, valid, dtype))
    positive, other = same_and_other_outfit(identity, clothes, identity, clothes)
    usable = valid[None, :] & ~other
    targets = spread(positive & usable, dtype)
    scale = jnp.asarray(temperature).astype(dtype)

    def direction(query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum("bd,kd->bk", query, key, precision=jax.lax.Precision.HIGHEST) / scale
        best = jnp.argmax(jnp.where(usable, logits, -jnp.inf), axis=1)
        correct = valid & (jnp.take(identity, best, mode="clip") == identity)
        return direction_loss(logits, targets, usable), correct

    image_to_text, image_to_text_correct = direction(image, text)
    text_to_image, text_to_image_correct = direction(text, image)
    loss = jnp.where(valid, (image_to_text + text_to_image) / 2, jnp.zeros((), dtype))
    return loss, ContrastiveAux(image_to_text_correct, text_to_image_correct)


class Keys(Protocol):
    """Momentum keys of pairs; see `memory_bank.CaptionKeys`. identity -1: padding or an empty slot."""

    image: jax.Array  # [N, d], unit rows
    text: jax.Array  # [N, d], unit rows
    identity: jax.Array  # i32[N]
    clothes: jax.Array  # i32[N], the outfit shown and told, numbered a person; -1 unknown


def momentum_contrastive_loss(
    image_proj: Inexact[Array, "B d"],
    text_proj: Inexact[Array, "B d"],
    anchor: Keys,
    valid: Bool[Array, " B"],
    batch: Keys,
    queue: Keys | None,
    temperature: Float[Array, ""] | float,
    soft_share: Float[Array, ""] | float,
) -> tuple[Float[Array, " B"], ContrastiveAux]:
    """Mean of four cross-entropies, image to text, text to image, image to image, text to text, over momentum keys.

    In each direction the keys are those of the batch, the query's own among them, and of the queue. With s the cosines
    of the query, s' those of its own momentum key, t the temperature, the target over the keys is

        soft_share * softmax(s'/t) + (1 - soft_share) * (positives, rows normalised)

    with the positives, and the keys that are left out, of `same_and_other_outfit`.

    Args:
      image_proj, text_proj: the pairs' projections, not normalised. valid: False for padding.
      anchor: the pairs' own momentum keys, identities and outfits.
      batch, queue: the keys, of which identity -1 is none.
      temperature: positive (see `clip_temperature`); may be a parameter and gets a gradient through s, not through s'.
      soft_share: between 0 and 1.

    Returns:
      loss: one value a pair, f32 or f64; 0 for invalid rows. aux: over the batch's keys; see its class.

    Source: method.md section 6; ALBEF's image-text contrastive loss with RaSa's two directions within one modality.
    """
    dtype = loss_dtype(image_proj, text_proj)
    scale = jnp.asarray(temperature).astype(dtype)
    fixed = jax.lax.stop_gradient(scale)
    low = jnp.finfo(dtype).min / 2  # finite: padding gives a finite number, masked below
    share = jnp.asarray(soft_share).astype(dtype)
    query = {
        "image": unit_rows(keep_rows(image_proj, valid, dtype)),
        "text": unit_rows(keep_rows(text_proj, valid, dtype)),
    }
    anchor, sources = jax.lax.stop_gradient((anchor, [batch] if queue is None else [batch, queue]))
    teacher = {name: keep_rows(getattr(anchor, name), valid, dtype) for name in query}
    related = [
        same_and_other_outfit(anchor.identity, anchor.clothes, source.identity, source.clothes) for source in sources
    ]
    usable = [(source.identity >= 0)[None, :] & ~other for source, (_, other) in zip(sources, related, strict=True)]
    same = [positive & mask for (positive, _), mask in zip(related, usable, strict=True)]
    positives = total([jnp.sum(s, axis=1).astype(dtype) for s in same])

    def direction(asking: str, asked: str) -> tuple[jax.Array, jax.Array]:
        keys = [getattr(source, asked) for source in sources]

        def similarities(rows: jax.Array, unit: jax.Array) -> list[jax.Array]:
            products = [key_products(rows, k) / unit for k in keys]
            return [jnp.where(mask, p, low) for p, mask in zip(products, usable, strict=True)]

        scores, taught = similarities(query[asking], scale), similarities(teacher[asking], fixed)
        normalizer, teacher_sum = log_sum_exp(scores), log_sum_exp(taught)
        expected = []
        for s, t, own, mask in zip(scores, taught, same, usable, strict=True):
            hard = own.astype(dtype) / jnp.maximum(positives, 1.0)[:, None]
            target = share * jnp.exp(t - teacher_sum[:, None]) + (1.0 - share) * hard
            expected.append(jnp.sum(jnp.where(mask, target * s, jnp.zeros((), dtype)), axis=1))
        best = jnp.argmax(scores[0], axis=1)
        correct = valid & (jnp.take(sources[0].identity, best, mode="clip") == anchor.identity)
        return normalizer - total(expected), correct

    pairs = (("image", "text"), ("text", "image"), ("image", "image"), ("text", "text"))
    losses, correct = zip(*[direction(*pair) for pair in pairs], strict=True)
    loss = jnp.where(valid, total(losses) / len(pairs), jnp.zeros((), dtype))
    return loss, ContrastiveAux(correct[0], correct[1])
