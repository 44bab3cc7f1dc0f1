"""Contrastive losses of images and captions: within the batch, and against momentum keys and their queue."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import keep_rows, loss_dtype, unit_rows
from irm_jax.losses.key_products import key_products
from irm_jax.losses.reductions import log_sum_exp, total

TEMPERATURE_BOUNDS = (0.01, 0.5)


@jax.custom_vjp
def clip_temperature(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """Returns the temperature kept in [0.01, 0.5].

    The gradient passes unchanged, except where it would lead further out. A plain clip has no gradient outside the
    bounds, so a parameter that an update carried over one would stay there; with the whole gradient it would run away
    while the loss does not change.
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
    """Returns which keys are positives of a query, and which show its person in an outfit known to be another one.

    A caption describes the clothes, so the latter are no positives. They are no negatives either, since the caption may
    fit the rest of the person, and are left out. Outfits are numbered per person; where one is unknown (-1), as in
    every published data set, all pictures of the person are positives (the paper's rule).
    """
    one = query_identity[:, None] == key_identity[None, :]
    known = (query_clothes[:, None] >= 0) & (key_clothes[None, :] >= 0)
    other = one & known & (query_clothes[:, None] != key_clothes[None, :])
    return one & ~other, other


def spread(positive: Bool[Array, "B K"], dtype: jnp.dtype) -> Float[Array, "B K"]:
    """Returns targets: each row spread evenly over its positives, 0 for a row without one."""
    same = positive.astype(dtype)
    return same / jnp.maximum(jnp.sum(same, axis=1, keepdims=True), 1.0)


def direction_loss(
    logits: Float[Array, "B K"], targets: Float[Array, "B K"], usable: Bool[Array, "B K"]
) -> Float[Array, " B"]:
    """Returns the cross-entropy of each query's targets over its usable keys, in nats."""
    # A finite mask: without a usable key the result must be finite for the caller to mask.
    masked = jnp.where(usable, logits, jnp.finfo(logits.dtype).min / 2)
    return -jnp.sum(jnp.where(targets > 0, targets * jax.nn.log_softmax(masked, axis=1), 0.0), axis=1)


def contrastive_loss(
    image_proj: Inexact[Array, "B d"],
    text_proj: Inexact[Array, "B d"],
    identity: Int[Array, " B"],
    clothes: Int[Array, " B"],
    valid: Bool[Array, " B"],
    temperature: Float[Array, ""] | float,
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Mean of image-to-text and text-to-image cross-entropy of cosines / temperature; row i of both is one pair.

    The target of a query is spread evenly over its positives, see `same_and_other_outfit`. Keys are the rows of the
    batch; `momentum_contrastive_loss` is the full objective.

    Args:
        image_proj, text_proj: projections, not normalised.
        identity: global identities.
        clothes: the outfit that a pair shows and describes, numbered per person; -1 unknown.
        valid: False for padding, which is neither query nor key.
        temperature: positive (see `clip_temperature`); may be a parameter and gets a gradient.

    Returns:
        loss: one value per pair, float32 or float64; 0 for invalid rows.
        correct: whether the caption's best image shows its person; False for invalid rows.

    Source: docs/method.md, "Text-to-image objectives", contrast, without queue and momentum.
    """
    dtype = loss_dtype(image_proj, text_proj)
    image = unit_rows(keep_rows(image_proj, valid, dtype))
    text = unit_rows(keep_rows(text_proj, valid, dtype))
    positive, other = same_and_other_outfit(identity, clothes, identity, clothes)
    usable = valid[None, :] & ~other
    targets = spread(positive & usable, dtype)
    scale = jnp.asarray(temperature).astype(dtype)

    def logits(query: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.einsum("bd,kd->bk", query, key, precision=jax.lax.Precision.HIGHEST) / scale

    of_images, of_captions = logits(image, text), logits(text, image)
    image_to_text, text_to_image = (direction_loss(x, targets, usable) for x in (of_images, of_captions))
    best = jnp.argmax(jnp.where(usable, of_captions, -jnp.inf), axis=1)
    correct = valid & (jnp.take(identity, best, mode="clip") == identity)
    return jnp.where(valid, (image_to_text + text_to_image) / 2, jnp.zeros((), dtype)), correct


@runtime_checkable
class PairKeys(Protocol):
    """Momentum keys of pairs, see `objectives.lanes.CaptionKeys`. Identity -1: padding or an empty slot."""

    image: jax.Array  # [N, d], unit rows
    text: jax.Array  # [N, d], unit rows
    identity: jax.Array  # int32[N]
    clothes: jax.Array  # int32[N], numbered per person; -1 unknown


class Pairs(NamedTuple):
    """B pairs of an image and its caption.

    Attributes:
        image, text: projections [B, d], not normalised.
        keys: the pairs' own momentum keys, identities and outfits.
        valid: bool[B], False for padding.
    """

    image: jax.Array
    text: jax.Array
    keys: PairKeys
    valid: jax.Array


class _Sources(NamedTuple):
    """Keys of the batch and of the queue: which are usable and which positives, bool[B, N] per source.

    `positives` float[B] is the number of positives of each anchor in all sources.
    """

    keys: list[PairKeys]
    usable: list[jax.Array]
    positive: list[jax.Array]
    positives: jax.Array


def momentum_contrastive_loss(
    pairs: Pairs,
    batch: PairKeys,
    queue: PairKeys | None,
    temperature: Float[Array, ""] | float,
    soft_share: Float[Array, ""] | float,
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Mean of four cross-entropies over momentum keys: image to text, text to image, and within each.

    A query is compared with all keys of the batch, its own among them, and of the queue. Let s be the cosines of the
    query, s' the cosines of its own momentum key, and t the temperature. The target over the keys is

        soft_share * softmax(s'/t) + (1 - soft_share) * (positives, rows normalised)

    `same_and_other_outfit` says which keys are positives and which are left out.

    Args:
        pairs: the queries.
        batch, queue: the keys; identity -1 stands for none.
        temperature: positive (see `clip_temperature`); may be a parameter. Its gradient passes through s, not s'.
        soft_share: between 0 and 1.

    Returns:
        loss: one value per pair, float32 or float64; 0 for invalid rows.
        correct: whether the caption's best image among the keys of the batch shows its person; False for invalid rows.

    Source: docs/method.md, "Text-to-image objectives", contrast; ALBEF's image-text contrastive loss with RaSa's two
    directions within one modality.
    """
    dtype = loss_dtype(pairs.image, pairs.text)
    scale = jnp.asarray(temperature).astype(dtype)
    share = jnp.asarray(soft_share).astype(dtype)
    query = {
        "image": unit_rows(keep_rows(pairs.image, pairs.valid, dtype)),
        "text": unit_rows(keep_rows(pairs.text, pairs.valid, dtype)),
    }
    anchor, keys = jax.lax.stop_gradient((pairs.keys, [batch] if queue is None else [batch, queue]))
    teacher = {name: keep_rows(getattr(anchor, name), pairs.valid, dtype) for name in query}
    sources = _related(anchor, keys, dtype)
    directions = (("image", "text"), ("text", "image"), ("image", "image"), ("text", "text"))
    losses, best = zip(
        *[_direction(query[one], teacher[one], sources, other, scale, share) for one, other in directions], strict=True
    )
    of_captions = best[directions.index(("text", "image"))]
    correct = pairs.valid & (jnp.take(batch.identity, of_captions, mode="clip") == anchor.identity)
    return jnp.where(pairs.valid, total(losses) / len(directions), jnp.zeros((), dtype)), correct


def _related(anchor: PairKeys, keys: list[PairKeys], dtype: jnp.dtype) -> _Sources:
    """The keys with their relation to each anchor."""
    related = [same_and_other_outfit(anchor.identity, anchor.clothes, key.identity, key.clothes) for key in keys]
    usable = [(key.identity >= 0)[None, :] & ~other for key, (_, other) in zip(keys, related, strict=True)]
    positive = [same & mask for (same, _), mask in zip(related, usable, strict=True)]
    return _Sources(keys, usable, positive, total([jnp.sum(mask, axis=1).astype(dtype) for mask in positive]))


def _direction(
    query: Float[Array, "B d"], teacher: Float[Array, "B d"], sources: _Sources, side: str, scale: jax.Array,
    share: jax.Array,
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:  # fmt: skip
    """Cross-entropy of the queries over the keys of one side, image or text, and the best key of the batch."""
    dtype = query.dtype
    low = jnp.finfo(dtype).min / 2  # finite: padding gives a finite number, masked below
    keys = [getattr(source, side) for source in sources.keys]

    def similarities(rows: jax.Array, unit: jax.Array) -> list[jax.Array]:
        products = [key_products(rows, key) / unit for key in keys]
        return [jnp.where(mask, p, low) for p, mask in zip(products, sources.usable, strict=True)]

    scores, taught = similarities(query, scale), similarities(teacher, jax.lax.stop_gradient(scale))
    normalizer, teacher_sum = log_sum_exp(scores), log_sum_exp(taught)
    expected = []
    for s, t, own, mask in zip(scores, taught, sources.positive, sources.usable, strict=True):
        hard = own.astype(dtype) / jnp.maximum(sources.positives, 1.0)[:, None]
        target = share * jnp.exp(t - teacher_sum[:, None]) + (1.0 - share) * hard
        expected.append(jnp.sum(jnp.where(mask, target * s, jnp.zeros((), dtype)), axis=1))
    return normalizer - total(expected), jnp.argmax(scores[0], axis=1)
