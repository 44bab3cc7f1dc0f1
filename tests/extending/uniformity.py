"""An objective: features of different people spread over the unit sphere (Wang and Isola, ICML 2020)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import jax.numpy as jnp

from irm_jax.losses.geometry import unit_rows
from irm_jax.models.irm import EDITED_GROUPS
from irm_jax.objectives.base import LossInputs, Objective, Term, TrainingMix
from irm_jax.objectives.rows import flat, join

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Uniformity(Objective):
    """weight * log of the mean of exp(-2 |x - y|^2) over pairs of rows of two identities, of the feature `person`."""

    name: ClassVar[str] = "uniformity"
    kinds: ClassVar[tuple[str, ...]] = EDITED_GROUPS

    weight: float

    @classmethod
    def from_config(cls, config: ConfigDict, mix: TrainingMix) -> Uniformity:
        return cls(**config.objectives.uniformity)

    def loss(self, inputs: LossInputs) -> Term:
        rows, groups = inputs.output.edited, [kind for kind in EDITED_GROUPS if kind in inputs.batch]
        identity, valid = (join([inputs.batch[group][name] for group in groups]) for name in ("identity", "valid"))
        feature = unit_rows(flat(rows.person[:, : rows.cls.shape[1]]))  # composed rows follow the plain ones
        pairs = (identity[:, None] != identity[None, :]) & valid[:, None] & valid[None, :]
        near = jnp.exp(4.0 * (feature @ feature.T) - 4.0)  # |x - y|^2 = 2 - 2 x.y of unit rows
        mean = jnp.sum(jnp.where(pairs, near, 0.0)) / jnp.maximum(jnp.sum(pairs), 1).astype(near.dtype)
        value = jnp.log(jnp.maximum(mean, 1e-12))
        return Term(self.weight * value, {"uniformity": value})
