"""Text-to-image objectives of the caption rows (method section 6): contrast, matching, hidden and replaced words.

The order in a step: words are hidden; the momentum model reads the hidden captions and makes keys; from its guesses
words are replaced; the model reads all of it, and `caption_loss` judges. Every draw comes from the step's key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from irm_jax.losses.contrastive import clip_temperature, contrastive_loss, momentum_contrastive_loss
from irm_jax.losses.geometry import unit_rows
from irm_jax.losses.matching import draw_negatives, matching_loss
from irm_jax.losses.words import draw_words, is_word, mask_words, masked_word_loss, replaced_word_loss
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.irm import CaptionKeyRows, CaptionRows, FusedCaptions, take_in_blocks
from irm_jax.objectives import lanes
from irm_jax.objectives.lanes import CaptionKeys, MemoryBank
from irm_jax.objectives.options import CaptionOptions, LossOptions
from irm_jax.objectives.rows import Metrics, flat, join, per_task, row_weights
from irm_jax.parallel import mesh as mesh_lib

Array = jax.Array
Batch = Mapping[str, Mapping[str, Array]]
Pairs = tuple[Instruction, Array]
Fuse = Callable[[Pairs | None, Pairs | None, Pairs | None], FusedCaptions]


@struct.dataclass
class Draws:
    """What was drawn for the captions of a batch: `selected` bool[R, b, L] the hidden words that are to be guessed,
    `replaced` bool[R, b, L] where another word stands, `taught` [R, b, L, V] the momentum model's guesses of the
    hidden words; None where the objective is off."""

    selected: Array | None = None
    replaced: Array | None = None
    taught: Array | None = None


def hide_words(batch: Batch, key: Array, options: CaptionOptions) -> tuple[Batch, Draws]:
    """Adds `masked_tokens` (masked language modelling) and `hidden_tokens` (where replacements are drawn) to the
    captions i32[R, b, L], each if its objective is on."""
    group, draws = dict(batch["caption"]), Draws()
    masked_key, hidden_key = jax.random.split(key)
    words: dict[str, Any] = {"vocabulary": options.vocabulary, "count_sep": options.release_mask_sep}
    if options.masked_weight > 0:
        group["masked_tokens"], selected = mask_words(masked_key, group["tokens"], options.masked_probability, **words)
        draws = Draws(selected=selected)
    if options.replaced_weight > 0:
        group["hidden_tokens"], _ = mask_words(hidden_key, group["tokens"], options.replaced_probability, **words)
    return {**batch, "caption": group}, draws


def replace_words(
    batch: Batch, draws: Draws, keys: CaptionKeyRows, key: Array, options: CaptionOptions
) -> tuple[Batch, Draws]:
    """Adds `replaced_tokens`, every word drawn from the momentum model's guesses, and notes where they differ."""
    group = dict(batch["caption"])
    hidden = group.pop("hidden_tokens", None)  # read by the momentum model only
    replaced = None
    if hidden is not None:
        assert keys.hidden is not None
        tokens = draw_words(key, group["tokens"], keys.hidden, options.vocabulary, count_sep=options.release_mask_sep)
        group["replaced_tokens"] = tokens
        replaced = tokens != group["tokens"]
    return {**batch, "caption": group}, Draws(draws.selected, replaced, keys.masked)


def caption_keys(image: Array, text: Array, group: Mapping[str, Array]) -> CaptionKeys:
    """The momentum model's projections [R, b, P] of the caption rows as unit keys [R*b, P]."""
    identity = jnp.where(join([group["valid"]]), join([group["identity"]]), lanes.EMPTY)
    return CaptionKeys(unit_rows(flat(image)), unit_rows(flat(text)), identity, join([group["clothes"]]))


def caption_loss(
    fuse: Fuse,
    rows: CaptionRows,
    group: Mapping[str, Array],
    draws: Draws | None,
    keys: CaptionKeys | None,
    queue: MemoryBank | None,
    step: Array,
    key: Array,
    options: LossOptions,
) -> tuple[Array, Metrics]:
    """L_T2I of the caption rows, weighted by data set -> (loss, metrics).

    L = w_c contrastive + w_m matching + w_w masked words + w_r replaced words; the paper's weights are .5, 1, 1, .5.
    """
    o = options.captions
    identity, dataset, valid, task = (join([group[name]]) for name in ("identity", "dataset", "valid", "task"))
    temperature = clip_temperature(rows.temperature)
    share = o.soft_weight * jnp.minimum(step.astype(jnp.float32) / max(o.soft_ramp_steps, 1), 1.0)
    metrics: Metrics = {"temperature": temperature}
    if o.queue:
        assert keys is not None
        # Queries go to the keys: [B, P] is moved, the queue stays.
        image, text, anchor = jax.tree.map(mesh_lib.constrain_replicated, (flat(rows.image), flat(rows.text), keys))
        past = lanes.flat(queue) if queue is not None else None
        contrast, aux = momentum_contrastive_loss(image, text, anchor, valid, keys, past, temperature, share)
        if queue is not None:
            metrics["queue_filled"] = jnp.mean((queue.entries.identity >= 0).astype(jnp.float32))
    else:
        clothes = join([group["clothes"]])
        contrast, aux = contrastive_loss(flat(rows.image), flat(rows.text), identity, clothes, valid, temperature)
    per_row = o.contrastive_weight * contrast
    measured = {
        "contrastive_loss": contrast,
        "retrieval_accuracy": aux.text_to_image_correct.astype(contrast.dtype),
    }
    if o.needs_fusion:
        assert draws is not None
        fused, counted = _fused(fuse, rows, group, temperature, key, o)
        if fused.matching is not None:
            blocks, count = group["identity"].shape
            logits = jnp.swapaxes(fused.matching.reshape(blocks, 3, count, 2), 1, 2)
            loss, right = matching_loss(flat(logits), jnp.array([True, False, False]), flat(counted))
            per_row += o.matching_weight * loss
            measured |= {"matching_loss": loss, "matching_accuracy": right}
        tokens = join([group["tokens"]])
        if fused.words is not None:
            assert draws.selected is not None
            taught = flat(draws.taught) if draws.taught is not None else None
            loss, right = masked_word_loss(
                flat(fused.words), tokens, flat(draws.selected), taught, share, valid, o.vocabulary,
                release_axis=o.release_mlm_axis,
            )  # fmt: skip
            per_row += o.masked_weight * loss
            measured |= {"masked_loss": loss, "masked_accuracy": right}
        if fused.replaced is not None:
            assert draws.replaced is not None
            word = is_word(tokens, o.vocabulary, count_sep=o.release_mask_sep)
            loss, right = replaced_word_loss(flat(fused.replaced), flat(draws.replaced), word, valid)
            per_row += o.replaced_weight * loss
            measured |= {"replaced_loss": loss, "replaced_accuracy": right}
    weight = row_weights(dataset, valid, options.caption_weight, options.total_weight).astype(per_row.dtype)
    tasks = [t for t in options.tasks if t.kind == "caption"]
    metrics |= per_task({**measured, "loss": per_row}, task, valid, tasks)
    return jnp.sum(weight * per_row), metrics


def _fused(
    fuse: Fuse, rows: CaptionRows, group: Mapping[str, Array], temperature: Array, key: Array, options: CaptionOptions
) -> tuple[FusedCaptions, Array]:
    """One pass of the fusion encoder for all objectives, and which of a row's three pairs count: bool[R, b, 3].

    The pairs of a row: its caption and image, its caption and a negative image, its image and a negative caption.
    """
    pairs = None
    valid = group["valid"]
    counted = jnp.stack([valid] * 3, axis=2)
    if options.matching_weight > 0:
        negative = draw_negatives(key, rows.image, rows.text, group["identity"], valid, temperature)
        counted = jnp.stack([valid, negative.found, negative.found], axis=2)
        other_text = jax.tree.map(lambda x: take_in_blocks(x, negative.text), rows.caption)
        sentence = jax.tree.map(lambda own, other: jnp.concatenate([own, own, other], axis=1), rows.caption, other_text)
        other_image = take_in_blocks(rows.tokens, negative.image)
        pairs = (sentence, jnp.concatenate([rows.tokens, other_image, rows.tokens], axis=1))
    masked = (rows.masked, rows.tokens) if rows.masked is not None else None
    replaced = (rows.replaced, rows.tokens) if rows.replaced is not None else None
    return fuse(pairs, masked, replaced), counted
