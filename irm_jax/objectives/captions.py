"""The text-to-image objectives of the caption rows: contrast, matching, masked words and replaced words.

Words are hidden first; the momentum model reads the hidden captions and makes keys; words are replaced by its guesses;
then the model reads all of it. Every draw comes from the key of the step.

Source: docs/method.md, "Text-to-image objectives".
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from irm_jax.losses import contrastive
from irm_jax.losses.contrastive import clip_temperature, contrastive_loss, momentum_contrastive_loss
from irm_jax.losses.geometry import unit_rows
from irm_jax.losses.matching import draw_negatives, matching_loss
from irm_jax.losses.words import (
    CaptionWords,
    Guesses,
    draw_words,
    guessed_places,
    guessed_word_loss,
    is_word,
    mask_words,
    masked_word_loss,
    replaced_word_loss,
)
from irm_jax.models.irm import CaptionRows, FusedCaptions, KeyRows, take_in_blocks
from irm_jax.objectives import lanes
from irm_jax.objectives.base import Batch, KeyRequest, LossInputs, Metrics, Objective, Prepared, Term, TrainingMix
from irm_jax.objectives.lanes import CaptionKeys
from irm_jax.objectives.rows import flat, join, per_task, row_weights
from irm_jax.parallel import mesh as mesh_lib

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from irm_jax.training.state import TrainState

Array = jax.Array
# Numbers folded into the key of a step, one per draw.
FUSION_DROPOUT, NEGATIVES, WORDS, REPLACEMENTS = 1 << 20, (1 << 20) + 1, (1 << 20) + 2, (1 << 20) + 3


@dataclasses.dataclass(frozen=True)
class CaptionOptions:
    """Settings of `config.loss` and `config.text_to_image`, see there. A weight of 0 leaves an objective out.

    `momentum_contrast`: contrast over momentum keys and a queue of them in four directions; False stands for the keys
    of the batch in two directions.
    """

    contrastive_weight: float
    matching_weight: float
    masked_weight: float
    replaced_weight: float
    momentum_contrast: bool
    soft_weight: float
    soft_ramp_steps: int
    masked_probability: float
    replaced_probability: float
    release_mlm_axis: bool

    @property
    def needs_momentum(self) -> bool:
        """Whether the momentum model reads the captions."""
        return self.momentum_contrast or self.masked_weight > 0 or self.replaced_weight > 0

    @property
    def needs_fusion(self) -> bool:
        """Whether captions read images."""
        return self.matching_weight > 0 or self.masked_weight > 0 or self.replaced_weight > 0


@struct.dataclass
class MaskDraws:
    """What was drawn for the captions of a batch; None where an objective is off.

    Attributes:
        selected: bool[R, b, L], the hidden words that are to be guessed.
        guesses: their places, at which alone words are guessed; None: at every place.
        replaced: bool[R, b, L], where another word stands.
        taught: the momentum model's logits of the hidden words, [R, C, V] at those places, or [R, b, L, V].
    """

    selected: Array | None = None
    guesses: Guesses | None = None
    replaced: Array | None = None
    taught: Array | None = None


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Columns [B] of the caption rows; `tokens` [B, L]."""

    identity: Array
    dataset: Array
    task: Array
    clothes: Array
    valid: Array
    tokens: Array

    @classmethod
    def of(cls, batch: Batch) -> _Columns:
        return cls(**{field.name: join([batch["caption"][field.name]]) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Captions(Objective):
    """L_T2I = w_c contrast + w_m matching + w_w masked words + w_r replaced words, weighted by data set."""

    name: ClassVar[str] = "captions"
    kinds: ClassVar[tuple[str, ...]] = ("caption",)
    stored: ClassVar[str | None] = "caption_queue"

    mix: TrainingMix
    options: CaptionOptions

    @classmethod
    def from_config(cls, config: ConfigDict, mix: TrainingMix) -> Captions:
        names = [field.name for field in dataclasses.fields(CaptionOptions)]
        settings = {**config.loss, **config.text_to_image}
        return cls(mix, CaptionOptions(**{name: settings[name] for name in names}))

    @property
    def key_request(self) -> KeyRequest:
        o = self.options
        return KeyRequest(captions=o.needs_momentum, contrast=o.momentum_contrast)

    def draw(self, batch: Batch, key: Array) -> tuple[Batch, MaskDraws]:
        """Adds `masked_tokens` (masked words) and `hidden_tokens` (where replacements are drawn) to the captions.

        Both are int32[R, b, L], each there if its objective is on; `guessed` int32[R, C] are places of hidden words.
        """
        o, group, draws = self.options, dict(batch["caption"]), MaskDraws()
        masked_key, hidden_key = jax.random.split(jax.random.fold_in(key, WORDS))
        vocabulary = self.mix.vocabulary
        if o.masked_weight > 0:
            group["masked_tokens"], selected = mask_words(masked_key, group["tokens"], o.masked_probability, vocabulary)
            draws = MaskDraws(selected=selected)
            if not o.release_mlm_axis:  # which reads the logits of every place
                guesses, selected = guessed_places(selected, o.masked_probability)
                group["guessed"], draws = guesses.place, MaskDraws(selected, guesses)
        if o.replaced_weight > 0:
            group["hidden_tokens"], _ = mask_words(hidden_key, group["tokens"], o.replaced_probability, vocabulary)
        return {**batch, "caption": group}, draws

    def make_keys(
        self, batch: Batch, rows: KeyRows, drawn: MaskDraws, state: TrainState, key: Array
    ) -> tuple[Batch, Prepared]:
        """Adds `replaced_tokens`, every word drawn from the momentum model's guesses, to the captions."""
        del state
        assert rows.caption is not None
        keys, replaced = None, None
        if rows.caption.projections is not None:
            image, text = rows.caption.projections
            columns = _Columns.of(batch)
            identity = jnp.where(columns.valid, columns.identity, lanes.EMPTY)
            keys = CaptionKeys(unit_rows(flat(image)), unit_rows(flat(text)), identity, columns.clothes)
        group = dict(batch["caption"])
        hidden = group.pop("hidden_tokens", None)  # read by the momentum model only
        if hidden is not None:
            assert rows.caption.hidden is not None
            group["replaced_tokens"] = draw_words(
                jax.random.fold_in(key, REPLACEMENTS), group["tokens"], rows.caption.hidden, self.mix.vocabulary
            )  # fmt: skip
            replaced = group["replaced_tokens"] != group["tokens"]
        draws = MaskDraws(drawn.selected, drawn.guesses, replaced, rows.caption.masked)
        return {**batch, "caption": group}, Prepared(keys, draws)

    def loss(self, inputs: LossInputs) -> Term:
        o, rows = self.options, inputs.output.caption
        assert rows is not None
        columns = _Columns.of(inputs.batch)
        temperature = clip_temperature(rows.temperature)
        ramp = jnp.minimum(inputs.state.step.astype(jnp.float32) / max(o.soft_ramp_steps, 1), 1.0)
        share = o.soft_weight * ramp
        per_row, measured, metrics = self._contrast(rows, columns, inputs, temperature, share)
        if o.needs_fusion:
            fused, counted = self._fused(rows, inputs, temperature)
            draws = inputs.prepared.draws
            for name, factor, part in (
                ("matching", o.matching_weight, self._matching(fused, counted)),
                ("masked", o.masked_weight, self._masked(fused, columns, draws, share)),
                ("replaced", o.replaced_weight, self._replaced(fused, columns, draws)),
            ):
                if part is not None:
                    value, right = part
                    per_row += factor * value
                    measured |= {f"{name}_loss": value, f"{name}_accuracy": right}
        weight = row_weights(columns.dataset, columns.valid, self.mix.caption_weight, self.mix.total_weight)
        metrics |= per_task({**measured, "loss": per_row}, columns.task, columns.valid, self.mix.tasks_of(self.kinds))
        return Term(jnp.sum(weight.astype(per_row.dtype) * per_row), metrics)

    def _contrast(
        self, rows: CaptionRows, columns: _Columns, inputs: LossInputs, temperature: Array, share: Array
    ) -> tuple[Array, Metrics, Metrics]:
        """The weighted contrast per row, its measures per row, and the metrics of the batch."""
        metrics: Metrics = {"temperature": temperature}
        image, text = flat(rows.image), flat(rows.text)
        if self.options.momentum_contrast:
            keys, queue = inputs.prepared.keys, inputs.state.caption_queue
            # Queries go to the keys: [B, P] is moved, the queue stays.
            image, text, anchor = jax.tree.map(mesh_lib.constrain_replicated, (image, text, keys))
            pairs = contrastive.Pairs(image, text, anchor, columns.valid)
            past = lanes.flat(queue) if queue is not None else None
            loss, correct = momentum_contrastive_loss(pairs, keys, past, temperature, share)
            if queue is not None:
                metrics["queue_filled"] = jnp.mean((queue.entries.identity >= 0).astype(jnp.float32))
        else:
            loss, correct = contrastive_loss(image, text, columns.identity, columns.clothes, columns.valid, temperature)
        measured = {"contrastive_loss": loss, "retrieval_accuracy": correct.astype(loss.dtype)}
        return self.options.contrastive_weight * loss, measured, metrics

    def _matching(self, fused: FusedCaptions, counted: Array) -> tuple[Array, Array] | None:
        """The matching loss and the share judged right, float[B] each; None if the objective is off."""
        if fused.matching is None:
            return None
        blocks, count = counted.shape[:2]
        logits = jnp.swapaxes(fused.matching.reshape(blocks, 3, count, 2), 1, 2)
        return matching_loss(flat(logits), jnp.array([True, False, False]), flat(counted))

    def _masked(
        self, fused: FusedCaptions, columns: _Columns, draws: MaskDraws, share: Array
    ) -> tuple[Array, Array] | None:
        """The loss of the masked words and the share guessed right, float[B] each; None if the objective is off."""
        if fused.words is None:
            return None
        assert draws.selected is not None
        words = CaptionWords(columns.tokens, flat(draws.selected), columns.valid, columns.dataset)
        if draws.guesses is not None:
            return guessed_word_loss(fused.words, draws.guesses, words, draws.taught, share, self.mix.vocabulary)
        taught = flat(draws.taught) if draws.taught is not None else None
        return masked_word_loss(
            flat(fused.words), words, taught, share, self.mix.vocabulary, release_axis=self.options.release_mlm_axis
        )

    def _replaced(self, fused: FusedCaptions, columns: _Columns, draws: MaskDraws) -> tuple[Array, Array] | None:
        """The loss of the replaced words and the share judged right, float[B] each; None if the objective is off."""
        if fused.replaced is None:
            return None
        assert draws.replaced is not None
        word = is_word(columns.tokens, self.mix.vocabulary)
        words = CaptionWords(columns.tokens, word, columns.valid, columns.dataset)
        return replaced_word_loss(flat(fused.replaced), flat(draws.replaced), words)

    def _fused(self, rows: CaptionRows, inputs: LossInputs, temperature: Array) -> tuple[FusedCaptions, Array]:
        """One pass of the fusion encoder for all objectives, and which of a row's three pairs count: bool[R, b, 3].

        The pairs of a row: its caption and image, its caption and a negative image, its image and a negative caption.
        """
        group, pairs = inputs.batch["caption"], None
        valid = group["valid"]
        counted = jnp.stack([valid] * 3, axis=2)
        if self.options.matching_weight > 0:
            key = jax.random.fold_in(inputs.key, NEGATIVES)
            negative = draw_negatives(key, rows.image, rows.text, group["identity"], valid, temperature)
            counted = jnp.stack([valid, negative.found, negative.found], axis=2)
            other_text = jax.tree.map(lambda x: take_in_blocks(x, negative.text), rows.caption)
            sentence = jax.tree.map(
                lambda own, other: jnp.concatenate([own, own, other], axis=1), rows.caption, other_text
            )
            other_image = take_in_blocks(rows.tokens, negative.image)
            pairs = (sentence, jnp.concatenate([rows.tokens, other_image, rows.tokens], axis=1))
        masked = (rows.masked, rows.tokens) if rows.masked is not None else None
        replaced = (rows.replaced, rows.tokens) if rows.replaced is not None else None
        guessed = group.get("guessed")
        fused = inputs.apply(pairs, masked, replaced, guessed, method="fuse_captions", dropout=FUSION_DROPOUT)
        return fused, counted
