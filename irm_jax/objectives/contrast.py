"""Supervised contrast within the batch, of rows under their own instruction and of composed rows (ours).

Cross-entropy and triplets compare a row with one class or with the hardest row; this compares it with all rows.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp

from data_pipelines import tasks
from irm_jax.losses.composed_triplet import compare_attributes
from irm_jax.losses.geometry import keep_rows, loss_dtype
from irm_jax.losses.supervised_contrast import supervised_contrast
from irm_jax.models.irm import EDITED_GROUPS, EditedRows
from irm_jax.objectives.base import Batch, LossInputs, Metrics, Objective, Term, TrainingMix
from irm_jax.objectives.rows import composed_columns, flat, join, joint_features, per_task, row_weights
from irm_jax.parallel.mesh import constrain_replicated, constrain_rows

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Array = jax.Array
_COLUMNS = ("identity", "dataset", "task", "modality", "attributes", "valid")


@dataclasses.dataclass(frozen=True)
class Contrast(Objective):
    """weight * 1/2 [C(joint) + C(neck)] + composed_weight * C(joint of composed rows), weighted by data set.

    C is `supervised_contrast`; joint is the feature that retrieval compares, [person, guided], and neck the class token
    behind its neck. All other people of the batch are negatives, whatever their data set. A row's positives are the
    other rows of its person; across modalities only the rows of the other modality count. A composed row's positives
    show its person in the outfit that its instruction names; the person in other outfits is a negative.

    Attributes:
        weight, composed_weight: of the two terms.
        temperature: of both.
    """

    name: ClassVar[str] = "contrast"
    kinds: ClassVar[tuple[str, ...]] = EDITED_GROUPS

    mix: TrainingMix
    weight: float
    composed_weight: float
    temperature: float

    @classmethod
    def from_config(cls, config: ConfigDict, mix: TrainingMix) -> Contrast | None:
        loss = config.loss
        weight, composed = loss.contrast_weight, loss.composed_contrast_weight
        return cls(mix, weight, composed, loss.contrast_temperature) if weight or composed else None

    def loss(self, inputs: LossInputs) -> Term:
        edited, batch = inputs.output.edited, inputs.batch
        assert edited is not None
        groups = [name for name in EDITED_GROUPS if name in batch]
        rows = {name: join([batch[g][name] for g in groups]) for name in _COLUMNS}
        plain = edited.cls.shape[1]
        joint = _joint(edited, slice(None, plain), rows["valid"])
        loss, metrics = self._plain(joint, edited, rows, groups)
        if self.composed_weight and edited.person.shape[1] > plain:
            extra, part = self._composed(joint, edited, batch, rows)
            loss, metrics = loss + extra, {**metrics, **part}
        return Term(loss, metrics)

    def _plain(
        self, joint: Array, edited: EditedRows, rows: dict[str, Array], groups: list[str]
    ) -> tuple[Array, Metrics]:
        """The weighted loss of rows under their own instruction, and its mean per task."""
        necked = keep_rows(flat(edited.cls_neck), rows["valid"], loss_dtype(edited.cls_neck))
        comparable = rows["valid"][:, None] & rows["valid"][None, :]
        same = rows["identity"][:, None] == rows["identity"][None, :]
        positive = comparable & same & ~jnp.eye(len(joint), dtype=bool)
        across = [spec.id for spec in tasks.TASKS.values() if spec.balance_modality]
        one_modality = rows["modality"][:, None] == rows["modality"][None, :]
        positive &= ~(jnp.isin(rows["task"], jnp.asarray(across, rows["task"].dtype))[:, None] & one_modality)
        both = [
            supervised_contrast(
                constrain_rows(x), constrain_replicated(x), positive, comparable & ~same, self.temperature
            )
            for x in (joint, necked)
        ]
        per_row = 0.5 * (both[0] + both[1])
        weight = row_weights(rows["dataset"], rows["valid"], self.mix.data_set_weight, self.mix.total_weight)
        loss = self.weight * jnp.sum(weight.astype(per_row.dtype) * per_row)
        present = self.mix.tasks_of(tuple(groups))
        return loss, per_task({"contrast_loss": per_row}, rows["task"], rows["valid"], present)

    def _composed(
        self, joint: Array, edited: EditedRows, batch: Batch, rows: dict[str, Array]
    ) -> tuple[Array, Metrics]:
        """The weighted loss of composed rows, and its mean per task."""
        columns = composed_columns(batch, ("identity", "dataset", "task"))
        anchors = _joint(edited, slice(edited.cls.shape[1], None), columns["valid"])
        matches, differs = compare_attributes(columns["wanted"], rows["attributes"])
        comparable = columns["valid"][:, None] & rows["valid"][None, :]
        same = columns["identity"][:, None] == rows["identity"][None, :]
        per_row = supervised_contrast(
            constrain_rows(anchors), constrain_replicated(joint),
            comparable & same & matches, comparable & (~same | differs), self.temperature,
        )  # fmt: skip
        weight = row_weights(columns["dataset"], columns["valid"], self.mix.data_set_weight, self.mix.total_weight)
        loss = self.composed_weight * jnp.sum(weight.astype(per_row.dtype) * per_row)
        present = [spec for spec in self.mix.tasks if spec.name in self.mix.composed_tasks]
        return loss, per_task({"composed_contrast_loss": per_row}, columns["task"], columns["valid"], present)


def _joint(edited: EditedRows, which: slice, valid: Array) -> Array:
    """[rows, 2 D]: the features that retrieval compares, 0 where a row is padding."""
    rows = joint_features(edited, which)
    return keep_rows(rows, valid, loss_dtype(rows))
