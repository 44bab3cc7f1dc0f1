"""The training state: one pytree that holds everything a step changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from irm_jax import sharding
from irm_jax.losses.instruction_similarity import InstructionMean, init_mean
from irm_jax.models.irm import IRM, initialise

KINDS = ("text", "visual")
"""Instruction kinds, each with its own mean of instruction features."""


@struct.dataclass
class TrainState:
    """`step` i32[]: updates done. `instruction_mean`: momentum mean of instruction features a kind (method section 5).

    The model and the optimizer are arguments of the functions that need them, never fields.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    instruction_mean: InstructionMean
    opt_state: Any


def create_state(
    model: IRM, optimizer: optax.GradientTransformation, constant_tokens: Any, seed: int, mesh: Mesh
) -> TrainState:
    """A fresh state, created under jit directly in its final layout: the same numbers on any mesh."""
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def abstract_state(model: IRM, optimizer: optax.GradientTransformation, constant_tokens: Any, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing allocated: what a checkpoint is restored into."""
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _initialiser(model: IRM, optimizer: optax.GradientTransformation, constant_tokens: Any, mesh: Mesh) -> Any:
    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.asarray(constant_tokens), method=initialise)
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimizer.init(variables["params"])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            instruction_mean=init_mean(len(KINDS), model.config.width),
            opt_state=opt_state,
        )

    return init, sharding.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
