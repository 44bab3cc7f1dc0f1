"""The loss of IRM: identity classification and adaptive triplets of the rows with an instruction, and composed rows.

Source: docs/method.md, "Losses of IRM".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from irm_jax.losses.adaptive_triplet import AdaptiveTripletAux, adaptive_triplet_loss
from irm_jax.losses.composed_triplet import composed_triplet_loss
from irm_jax.losses.geometry import LabelledRows, group_spread
from irm_jax.losses.identity import identity_loss
from irm_jax.losses.instruction_similarity import InstructionMean, current_mean, similarity, update_mean
from irm_jax.models.irm import EDITED_GROUPS, EditedRows
from irm_jax.objectives.base import Batch, LossInputs, Metrics, Objective, Term, TrainingMix
from irm_jax.objectives.rows import INSTRUCTION_KINDS, composed_columns, flat, join, per_task, row_weights

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class IdentityTripletOptions:
    """Weights and margins of `config.loss`, see there."""

    alpha: float
    triplet_unit: Literal["feature", "spread"]
    margin: float
    rank_weight: float
    instruction_similarity: Literal["centered", "raw"]
    instruction_mean_momentum: float
    composed_weight: float


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Columns [B] of the plain rows of all groups that carry an instruction; `attributes` [B, slots]."""

    identity: Array
    dataset: Array
    task: Array
    attributes: Array
    valid: Array
    instruction_key: Array
    kind: Array
    own_instruction: Array

    @classmethod
    def of(cls, batch: Batch, groups: list[str]) -> _Rows:
        names = ("identity", "dataset", "task", "attributes", "valid", "instruction_key")
        fields = {name: join([batch[g][name] for g in groups]) for name in names}
        # A row whose instruction is a constant sentence is of kind text, whatever its group.
        visual = INSTRUCTION_KINDS.index("visual")
        kind = join([jnp.where((batch[g]["instruction"] >= 0) & (g == "visual"), visual, 0) for g in groups])
        own = join([batch[g]["instruction"] for g in groups]) >= 0
        return cls(**fields, kind=kind.astype(jnp.int32), own_instruction=own)

    def labelled(self, features: Array, unit: Array) -> LabelledRows:
        """The rows with features [B, D] divided by the unit of their data set."""
        return LabelledRows(_in_units(features, self.dataset, unit), self.identity, self.dataset, self.valid)


@dataclasses.dataclass(frozen=True)
class IdentityTriplet(Objective):
    """L_IRM of the rows with an instruction, plus the triplet loss of composed rows, weighted by data set."""

    name: ClassVar[str] = "identity_triplet"
    kinds: ClassVar[tuple[str, ...]] = EDITED_GROUPS

    mix: TrainingMix
    options: IdentityTripletOptions

    @classmethod
    def from_config(cls, config: ConfigDict, mix: TrainingMix) -> IdentityTriplet:
        names = [field.name for field in dataclasses.fields(IdentityTripletOptions)]
        return cls(mix, IdentityTripletOptions(**{name: config.loss[name] for name in names}))

    def loss(self, inputs: LossInputs) -> Term:
        edited = inputs.output.edited
        assert edited is not None
        loss, mean, metrics = self.of_rows(edited, inputs.output.heads, inputs.batch, inputs.state.instruction_mean)
        return Term(loss, metrics, {"instruction_mean": mean})

    def of_rows(
        self, edited: EditedRows, heads: Mapping[str, Array], batch: Batch, mean: InstructionMean
    ) -> tuple[Array, InstructionMean, Metrics]:
        """Returns the loss float[], the moved mean of instruction features, and the metrics.

        L = 1/2 [CE(person) + CE(guided)] + CE(cls) + alpha (1/2 [T(person) + T(guided)] + T(cls)), where T(cls) takes
        the feature before its neck.
        """
        o = self.options
        groups = [name for name in EDITED_GROUPS if name in batch]
        rows = _Rows.of(batch, groups)
        plain = edited.cls.shape[1]
        person, guided = flat(edited.person[:, :plain]), flat(edited.guided[:, :plain])
        instruction = flat(edited.instruction[:, :plain])
        # Constant sentences would draw the mean of texts to themselves; their similarity (1) needs no centring.
        counted = rows.valid & rows.own_instruction
        mean = update_mean(mean, instruction, rows.kind, counted, o.instruction_mean_momentum)
        rho = similarity(
            instruction, rows.instruction_key, rows.kind, current_mean(mean), mode=o.instruction_similarity
        )
        necked = {"cls": flat(edited.cls_neck), "person": person, "guided": guided}
        identity, correct = self._identity(necked, heads, rows)
        triplet, aux = self._triplet({**necked, "cls": flat(edited.cls)}, rows, rho)
        per_row = identity + o.alpha * triplet
        weight = row_weights(rows.dataset, rows.valid, self.mix.data_set_weight, self.mix.total_weight)
        loss = jnp.sum(weight.astype(per_row.dtype) * per_row)
        measured = {
            "identity_loss": identity,
            "triplet_loss": triplet,
            "identity_accuracy": correct.astype(identity.dtype),
            "dropped_anchors": aux.dropped.astype(identity.dtype),
            "loss": per_row,
        }
        present = self.mix.tasks_of(tuple(groups))
        metrics = per_task(measured, rows.task, rows.valid, present)
        anchors = {"mean_beta": aux.beta_1, "active_triplets": aux.active.astype(per_row.dtype)}
        metrics |= per_task(anchors, rows.task, rows.valid & ~aux.dropped, present)
        if edited.person.shape[1] > plain:
            extra, part = self._composed(edited, heads, batch, rows)
            loss, metrics = loss + extra, {**metrics, **part}
        return loss, mean, metrics

    def _identity(self, features: Mapping[str, Array], heads: Mapping[str, Array], rows: _Rows) -> tuple[Array, Array]:
        """float[B] identity losses of the three heads summed, and bool[B]: is the person feature classified right."""
        allowed = jnp.take(jnp.asarray(self.mix.head_members), rows.dataset, axis=0)
        loss, correct = {}, {}
        for name, feature in features.items():
            loss[name], correct[name] = identity_loss(feature, heads[name], rows.identity, allowed)
        return 0.5 * (loss["person"] + loss["guided"]) + loss["cls"], correct["person"]

    def _triplet(self, features: Mapping[str, Array], rows: _Rows, rho: Array) -> tuple[Array, AdaptiveTripletAux]:
        """float[B] triplet losses of the three features summed, and what the loss of the person feature saw."""
        o = self.options
        loss: dict[str, Array] = {}
        aux: dict[str, Any] = {}
        for name, feature in features.items():
            unit = self.distance_unit(feature, rows.dataset, rows.valid)
            loss[name], aux[name] = adaptive_triplet_loss(
                rows.labelled(feature, unit), rho, margin=o.margin, rank_weight=o.rank_weight
            )
        return 0.5 * (loss["person"] + loss["guided"]) + loss["cls"], aux["person"]

    def _composed(
        self, edited: EditedRows, heads: Mapping[str, Array], batch: Batch, rows: _Rows
    ) -> tuple[Array, Metrics]:
        """Rows under the instruction of another outfit of their person: the person in that outfit must be nearest."""
        o = self.options
        plain = edited.cls.shape[1]
        columns = composed_columns(batch, ("identity", "dataset", "task"))
        identity, dataset, valid = columns["identity"], columns["dataset"], columns["valid"]
        allowed = jnp.take(jnp.asarray(self.mix.head_members), dataset, axis=0)
        classified, triplet, aux = [], [], []
        for name, feature in (("person", edited.person), ("guided", edited.guided)):
            anchor, candidate = flat(feature[:, plain:]), flat(feature[:, :plain])
            classified.append(identity_loss(anchor, heads[name], identity, allowed)[0])
            unit = self.distance_unit(candidate, rows.dataset, rows.valid)
            anchors = LabelledRows(_in_units(anchor, dataset, unit), identity, dataset, valid)
            loss, info = composed_triplet_loss(
                anchors, columns["wanted"], rows.labelled(candidate, unit), rows.attributes, margin=o.margin
            )
            triplet.append(loss)
            aux.append(info)
        per_row = 0.5 * (classified[0] + classified[1]) + o.alpha * 0.5 * (triplet[0] + triplet[1])
        weight = row_weights(dataset, valid, self.mix.data_set_weight, self.mix.total_weight).astype(per_row.dtype)
        measured = {
            "composed_loss": per_row,
            "composed_active": aux[0].active.astype(per_row.dtype),
            "composed_dropped": aux[0].dropped.astype(per_row.dtype),
        }
        metrics = per_task(
            measured, columns["task"], valid, [t for t in self.mix.tasks if t.name in self.mix.composed_tasks]
        )
        return o.composed_weight * jnp.sum(weight * per_row), metrics

    def distance_unit(self, features: Array, dataset: Array, valid: Array) -> Array:
        """float[data sets]: what the features [B, D] of each data set are divided by before triplets are mined."""
        sets = len(self.mix.data_sets)
        if self.options.triplet_unit == "feature":
            return jnp.ones((sets,), features.dtype)
        return group_spread(features, dataset, valid, sets)


def _in_units(features: Array, dataset: Array, unit: Array) -> Array:
    return features / jnp.take(unit, dataset, mode="clip")[:, None]
