"""A hook: logs the length of each tower's parameters beside the losses."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from irm_jax.training.hooks import Hook, Metrics, Training
from irm_jax.training.state import TrainState


class TowerNorms(Hook):
    """Adds `norm/TOWER` to the metrics of each step."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._norms: dict[int, dict[str, jax.Array]] = {}

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._norms[step] = _norms(state.params)  # starts on the device; the loop does not wait

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        values.update({f"norm/{tower}": float(norm) for tower, norm in self._norms.pop(step).items()})


@jax.jit
def _norms(params: Any) -> dict[str, jax.Array]:
    def length(tree: Any) -> jax.Array:
        return jnp.sqrt(functools.reduce(jnp.add, [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]))

    return {tower: length(tree) for tower, tree in params.items()}
