"""Learning with a memory bank: each row against the momentum keys of its batch and of the batches before.

Source: docs/method.md, "IRM++: memory bank".
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.errors import ConfigError
from irm_jax.losses.geometry import unit_rows
from irm_jax.losses.instruction_similarity import InstructionMean, current_mean
from irm_jax.losses.memory_bank_loss import Anchors, Rules, memory_bank_loss
from irm_jax.models.irm import EDITED_GROUPS, EditedRows, KeyRows
from irm_jax.objectives import lanes
from irm_jax.objectives.base import (
    Batch,
    KeyRequest,
    LossInputs,
    Metrics,
    Objective,
    Prepared,
    Term,
    TrainingMix,
)
from irm_jax.objectives.lanes import BankLanes, MomentumKeys
from irm_jax.objectives.rows import (
    INSTRUCTION_KINDS,
    composed_columns,
    flat,
    join,
    joint_features,
    per_task,
    row_weights,
)
from irm_jax.parallel import mesh as mesh_lib

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from irm_jax.training.state import TrainState

Array = jax.Array
NO_KIND = -1
"""The instruction kind of a key whose row has no instruction of its own."""


@dataclasses.dataclass(frozen=True)
class MemoryBankOptions:
    """Settings of `config.memory_bank`, see there.

    Attributes:
        soft_ramp_pushes: batches over which soft supervision rises, once the bank is full.
        task_negatives: whether only keys of the anchor's own task are negatives.
        neutral_keys: whether keys are embedded under the neutral sentence.
        composed_weight: of the composed rows' hard supervision.
        known_overlap: pairs of data-set numbers, see `Rules`.
        instruction_similarity: whether instruction features are centred before they are kept.
    """

    temperature: float
    weight: float
    ramp_steps: int
    hard_weight: float
    soft_weight: float
    soft_ramp_pushes: int
    task_negatives: bool
    neutral_keys: bool
    composed_weight: float
    known_overlap: tuple[tuple[int, int], ...]
    instruction_similarity: Literal["centered", "raw"]


@dataclasses.dataclass(frozen=True)
class MemoryBank(Objective):
    """L_bank of the rows with an instruction; all rows of a batch become keys.

    With `composed_weight` the composed rows are anchors too (ours): their positives are the keys of their person whose
    instruction agrees with theirs, and have an instruction of the same kind.
    """

    name: ClassVar[str] = "memory_bank"
    kinds: ClassVar[tuple[str, ...]] = EDITED_GROUPS
    stored: ClassVar[str | None] = "memory_bank"

    mix: TrainingMix
    options: MemoryBankOptions

    @classmethod
    def from_config(cls, config: ConfigDict, mix: TrainingMix) -> MemoryBank | None:
        """Raises ConfigError for an overlap of data sets that are not trained on."""
        b = config.memory_bank
        if not b.size:
            return None
        pairs = [tuple(pair.split(":")) for pair in b.overlaps]
        for name in {name for pair in pairs for name in pair} - set(mix.data_sets):
            raise ConfigError(
                f"config.memory_bank.overlaps names {name}, which is not trained on; the training sets are "
                f"{', '.join(mix.data_sets)}"
            )
        numbers = {name: number for number, name in enumerate(mix.data_sets)}
        options = MemoryBankOptions(
            temperature=b.temperature, weight=b.weight, ramp_steps=b.ramp_steps, hard_weight=b.hard_weight,
            soft_weight=b.soft_weight, soft_ramp_pushes=b.soft_ramp_steps * config.optimizer.accumulate,
            task_negatives=b.negatives == "task", neutral_keys=b.neutral_keys, composed_weight=b.composed_weight,
            known_overlap=tuple((numbers[one], numbers[other]) for one, other in pairs),
            instruction_similarity=config.loss.instruction_similarity,
        )  # fmt: skip
        return cls(mix, options)

    @property
    def key_request(self) -> KeyRequest:
        return KeyRequest(embeddings=True, neutral=self.options.neutral_keys)

    def make_keys(
        self, batch: Batch, rows: KeyRows, drawn: Any, state: TrainState, key: Array
    ) -> tuple[Batch, Prepared]:
        del drawn, key
        return batch, Prepared(keys=self.keys_of(rows, state.instruction_mean, batch))

    def keys_of(self, rows: KeyRows, mean: InstructionMean, batch: Batch) -> MomentumKeys:
        """The momentum keys [R * B, ...] of all rows of a batch, in the order (block; text, visual, caption).

        Instructions are centred by `mean`, the mean of the model's own instruction features over the steps before (zero
        in the first step). A key does not name its instruction, so an equal instruction counts by its cosine, which is
        a little less than the 1 that it has within a batch.
        """
        assert rows.embedding is not None
        assert rows.instruction is not None
        groups = [name for name in (*EDITED_GROUPS, "caption") if name in batch]
        own = [(g, batch[g]["instruction"] >= 0 if g in EDITED_GROUPS else None) for g in groups]
        blank = {g: jnp.full_like(batch[g]["identity"], NO_KIND) for g in groups}
        kind = join([blank[g] if o is None else jnp.where(o, INSTRUCTION_KINDS.index(g), NO_KIND) for g, o in own])
        kind = kind.astype(jnp.int32)
        valid = join([batch[g]["valid"] for g in groups])
        identity = join([batch[g]["identity"] for g in groups])
        keys = MomentumKeys(
            key=unit_rows(flat(rows.embedding)),
            instruction=self._centred(flat(rows.instruction), kind, mean),
            identity=jnp.where(valid, identity, lanes.EMPTY),
            dataset=join([batch[g]["dataset"] for g in groups]),
            task=join([batch[g]["task"] for g in groups]),
            kind=kind,
        )
        return jax.lax.stop_gradient(keys)

    def loss(self, inputs: LossInputs) -> Term:
        bank, rows = inputs.state.memory_bank, inputs.output.edited
        assert bank is not None
        assert rows is not None  # the configuration is checked
        batch, keys = inputs.batch, inputs.prepared.keys
        term = self._of_plain_rows(rows, batch, keys, bank)
        if self.options.composed_weight and rows.person.shape[1] > rows.cls.shape[1]:
            composed = self._of_composed_rows(rows, batch, keys, inputs.state)
            term = Term(term.loss + composed.loss, {**term.metrics, **composed.metrics})
        ramp = jnp.minimum((inputs.state.step.astype(jnp.float32) + 1.0) / max(self.options.ramp_steps, 1), 1.0)
        return Term(self.options.weight * ramp.astype(term.loss.dtype) * term.loss, term.metrics)

    def _of_plain_rows(self, rows: EditedRows, batch: Batch, keys: MomentumKeys, bank: BankLanes) -> Term:
        """The loss of the plain rows against the batch's `keys` and the bank, weighted by data set."""
        o = self.options
        groups = [name for name in EDITED_GROUPS if name in batch]
        anchors = self._anchors(rows, batch, keys)
        hard, soft, aux = memory_bank_loss(
            anchors, keys, lanes.flat(bank), self._rules(), temperature=o.temperature, soft=o.soft_weight > 0
        )
        soft_share = o.soft_weight * lanes.full_share(bank, o.soft_ramp_pushes)
        per_row = o.hard_weight * hard + soft_share.astype(hard.dtype) * soft
        dataset, task, valid = anchors.keys.dataset, anchors.keys.task, anchors.valid
        weight = row_weights(dataset, valid, self.mix.data_set_weight, self.mix.total_weight).astype(hard.dtype)
        measured = {
            "bank_hard_loss": hard,
            "bank_dropped": aux.dropped.astype(hard.dtype),
            "bank_positives": aux.positives,
            "bank_negatives": aux.negatives,
        }
        if o.soft_weight > 0:
            measured |= {"bank_soft_loss": soft, "bank_same_identity_mass": aux.same_identity_mass}
        metrics: Metrics = per_task(measured, task, valid, self.mix.tasks_of(tuple(groups)))
        metrics["bank_filled"] = jnp.mean((bank.entries.identity >= 0).astype(jnp.float32))
        return Term(jnp.sum(weight * per_row), metrics)

    def _of_composed_rows(self, rows: EditedRows, batch: Batch, keys: MomentumKeys, state: TrainState) -> Term:
        """The hard supervision of the composed rows, weighted by data set."""
        o = self.options
        assert state.memory_bank is not None
        anchors = self._composed_anchors(rows, batch, keys, state.instruction_mean)
        rules = self._rules()._replace(instructed_positives=True)
        bank = lanes.flat(state.memory_bank)
        hard, _, aux = memory_bank_loss(anchors, keys, bank, rules, temperature=o.temperature, soft=False)
        dataset, task, valid = anchors.keys.dataset, anchors.keys.task, anchors.valid
        weight = row_weights(dataset, valid, self.mix.data_set_weight, self.mix.total_weight).astype(hard.dtype)
        present = [spec for spec in self.mix.tasks if spec.name in self.mix.composed_tasks]
        measured = {"bank_composed_loss": hard, "bank_composed_dropped": aux.dropped.astype(hard.dtype)}
        return Term(o.composed_weight * jnp.sum(weight * hard), per_task(measured, task, valid, present))

    def _anchors(self, rows: EditedRows, batch: Batch, keys: MomentumKeys) -> Anchors:
        """The plain rows with their own keys, whole on every device: anchors go to the keys, never keys to anchors."""
        groups = [name for name in EDITED_GROUPS if name in batch]
        blocks, plain = rows.cls.shape[:2]
        per_block = keys.identity.shape[0] // blocks
        # The anchors' own keys stand first in each block: a slice, which moves nothing between devices.
        own = jax.tree.map(lambda x: flat(x.reshape(blocks, per_block, *x.shape[1:])[:, :plain]), keys)
        own_row = (jnp.arange(blocks)[:, None] * per_block + jnp.arange(plain)[None, :]).reshape(-1)
        valid = join([batch[g]["valid"] for g in groups])
        embedding = joint_features(rows, slice(plain))
        embedding, own = jax.tree.map(mesh_lib.constrain_replicated, (embedding, own))
        return Anchors(embedding, own, own_row.astype(jnp.int32), valid)

    def _composed_anchors(self, rows: EditedRows, batch: Batch, keys: MomentumKeys, mean: InstructionMean) -> Anchors:
        """The composed rows; in the place of a momentum key, which they lack, stands their embedding.

        A row's own key is that of the image that it shows.
        """
        plain = rows.cls.shape[1]
        columns = composed_columns(batch, ("identity", "dataset", "task"))
        kinds, own_rows, first = [], [], 0
        blocks = rows.cls.shape[0]
        start = jnp.arange(blocks, dtype=jnp.int32)[:, None] * (keys.identity.shape[0] // blocks)
        for name in (name for name in EDITED_GROUPS if name in batch):
            group = batch[name]
            if group["composed_row"].shape[1]:
                number = INSTRUCTION_KINDS.index(name)
                kinds.append(jnp.where(group["composed_instruction"] >= 0, number, NO_KIND))
                own_rows.append(start + first + group["composed_row"])
            first += group["identity"].shape[1]
        kind = join(kinds).astype(jnp.int32)
        instruction = self._centred(flat(rows.instruction[:, plain:]), kind, mean)
        embedding = joint_features(rows, slice(plain, None))
        embedding, instruction = jax.tree.map(mesh_lib.constrain_replicated, (embedding, instruction))
        own = MomentumKeys(
            key=embedding, instruction=instruction, identity=columns["identity"], dataset=columns["dataset"],
            task=columns["task"], kind=kind,
        )  # fmt: skip
        return Anchors(embedding, own, join(own_rows).astype(jnp.int32), columns["valid"])

    def _centred(self, instruction: Array, kind: Array, mean: InstructionMean) -> Array:
        """Unit rows of instruction features [N, D] less the running mean of their kind."""
        if self.options.instruction_similarity == "centered":
            centre = current_mean(mean).astype(instruction.dtype)
            instruction = instruction - jnp.take(centre, jnp.maximum(kind, 0), axis=0)
        return unit_rows(instruction)

    def _rules(self) -> Rules:
        overlap = np.zeros((len(self.mix.data_sets),) * 2, bool)
        for one, other in self.options.known_overlap:
            overlap[one, other] = overlap[other, one] = True
        captions = tuple(spec.id for spec in self.mix.tasks if not spec.has_query_image)
        return Rules(jnp.asarray(overlap), captions, self.options.task_negatives)
