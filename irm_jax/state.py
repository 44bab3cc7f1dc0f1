"""The training state: one pytree that holds everything a step changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from irm_jax import memory_bank, momentum, sharding
from irm_jax.losses.instruction_similarity import InstructionMean, init_mean
from irm_jax.memory_bank import MemoryBank
from irm_jax.models.irm import IRM, initialise

KINDS = ("text", "visual")
"""Instruction kinds, each with its own mean of instruction features."""


@struct.dataclass
class TrainState:
    """`step` i32[]: updates done. `instruction_mean`: momentum mean of instruction features a kind (method section 5).
    `momentum_params` and `memory_bank`: of IRM++, None for IRM.

    The model and the optimizer are arguments of the functions that need them, never fields.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    instruction_mean: InstructionMean
    opt_state: Any
    momentum_params: Any = None
    memory_bank: MemoryBank | None = None


@dataclasses.dataclass(frozen=True)
class BankShape:
    """Sizes of the memory bank: at least `size` entries, for batches of `blocks` blocks of `rows` rows; key dtype."""

    size: int
    blocks: int
    rows: int
    dtype: str


def create_state(
    model: IRM,
    optimizer: optax.GradientTransformation,
    constant_tokens: Any,
    seed: int,
    mesh: Mesh,
    bank: BankShape | None = None,
) -> TrainState:
    """A fresh state, created under jit directly in its final layout: the same numbers on any mesh.

    With `bank` it holds the momentum model and an empty memory bank.
    """
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh, bank)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


def abstract_state(
    model: IRM,
    optimizer: optax.GradientTransformation,
    constant_tokens: Any,
    mesh: Mesh,
    bank: BankShape | None = None,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing allocated: what a checkpoint is restored into."""
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh, bank)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _initialiser(
    model: IRM, optimizer: optax.GradientTransformation, constant_tokens: Any, mesh: Mesh, bank: BankShape | None
) -> Any:
    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.asarray(constant_tokens), method=initialise)
        params = variables["params"]
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimizer.init(params)
        width = model.config.width
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            instruction_mean=init_mean(len(KINDS), width),
            opt_state=opt_state,
            momentum_params=momentum.start(params) if bank else None,
            memory_bank=memory_bank.create(bank.size, bank.blocks, bank.rows, 2 * width, width, jnp.dtype(bank.dtype))
            if bank
            else None,
        )

    return init, sharding.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)


def with_saved_bank(abstract: TrainState, saved: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
    """The state to restore into where the saved memory bank has other lanes or another key type: that bank, whole on
    every device. `abstract` itself where nothing differs, or where one of the two has no bank (an error to come).

    `saved`: shapes and dtypes of a checkpoint's arrays by path (`checkpoint.array_shapes`).
    """
    bank = abstract.memory_bank
    if bank is None:
        return abstract
    there = {name: saved[f"memory_bank/{name}"] for name in vars(bank) if f"memory_bank/{name}" in saved}
    same = all((leaf.shape, leaf.dtype) == (vars(bank)[n].shape, vars(bank)[n].dtype) for n, leaf in there.items())
    if same or len(there) < len(vars(bank)):
        return abstract
    whole = bank.pushes.sharding
    leaves: Any = {n: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole) for n, leaf in there.items()}
    return dataclasses.replace(abstract, memory_bank=MemoryBank(**leaves))


def with_relaid_bank(state: TrainState, abstract: TrainState) -> TrainState:
    """A state restored by way of `with_saved_bank`, its bank brought into the lanes and shardings of `abstract`."""
    target = abstract.memory_bank
    assert state.memory_bank is not None
    assert target is not None
    blocks, rows, slots = target.identity.shape
    laid = memory_bank.relay(state.memory_bank, (blocks, rows, slots))

    def place(host: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        host = host.astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])

    return dataclasses.replace(state, memory_bank=jax.tree.map(place, laid, target))
