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

from irm_jax.losses.instruction_similarity import InstructionMean, init_mean
from irm_jax.models.irm import IRM, initialise
from irm_jax.objectives import lanes
from irm_jax.objectives.lanes import MemoryBank
from irm_jax.parallel import rules
from irm_jax.training import momentum

KINDS = ("text", "visual")
"""Instruction kinds, each with its own mean of instruction features."""


@struct.dataclass
class TrainState:
    """`step` i32[]: updates done. `instruction_mean`: momentum mean of instruction features a kind (method section 5).
    `momentum_params`, `memory_bank` and `caption_queue`: of IRM++ and of the text-to-image objectives, None without.

    The model and the optimizer are arguments of the functions that need them, never fields.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    instruction_mean: InstructionMean
    opt_state: Any
    momentum_params: Any = None
    memory_bank: MemoryBank | None = None
    caption_queue: MemoryBank | None = None


BANKS = ("memory_bank", "caption_queue")
"""The fields that hold entries in lanes, which follow the batch's layout."""


@dataclasses.dataclass(frozen=True)
class BankShape:
    """Sizes of a memory bank: at least `size` entries, for batches of `blocks` blocks of `rows` rows; key dtype."""

    size: int
    blocks: int
    rows: int
    dtype: str

    def create(self, spec: Any) -> MemoryBank:
        return lanes.create(spec, self.size, self.blocks, self.rows)


@dataclasses.dataclass(frozen=True)
class MemoryShapes:
    """What a state remembers beside the parameters: a momentum model, IRM++'s bank, the caption queue."""

    momentum: bool = False
    bank: BankShape | None = None
    queue: BankShape | None = None


def create_state(
    model: IRM,
    optimizer: optax.GradientTransformation,
    constant_tokens: Any,
    seed: int,
    mesh: Mesh,
    memory: MemoryShapes = MemoryShapes(),
) -> TrainState:
    """A fresh state, created under jit directly in its final layout: the same numbers on any mesh.

    `memory` says which momentum model and empty banks it holds.
    """
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh, memory)
    # It runs once: XLA:CPU compiles it in half the time at its first level, to the same numbers.
    options = {"xla_backend_optimization_level": "1"} if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(jax.random.key(seed))


def abstract_state(
    model: IRM,
    optimizer: optax.GradientTransformation,
    constant_tokens: Any,
    mesh: Mesh,
    memory: MemoryShapes = MemoryShapes(),
) -> TrainState:
    """Shapes, dtypes and shardings of the state, nothing allocated: what a checkpoint is restored into."""
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh, memory)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _initialiser(
    model: IRM, optimizer: optax.GradientTransformation, constant_tokens: Any, mesh: Mesh, memory: MemoryShapes
) -> Any:
    bank, queue = memory.bank, memory.queue

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.asarray(constant_tokens), method=initialise)
        params = variables["params"]
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimizer.init(params)
        width, projection = model.config.width, model.config.projection_width
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            instruction_mean=init_mean(len(KINDS), width),
            opt_state=opt_state,
            momentum_params=momentum.start(params) if memory.momentum else None,
            memory_bank=bank.create(lanes.entry_spec(2 * width, width, jnp.dtype(bank.dtype))) if bank else None,
            caption_queue=queue.create(lanes.caption_spec(projection, jnp.dtype(queue.dtype))) if queue else None,
        )

    return init, rules.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)


def with_saved_banks(abstract: TrainState, saved: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
    """The state to restore into where a saved bank has other lanes or another key type: that bank, whole on every
    device. `abstract` itself where nothing differs, or where one of the two has no such bank (an error to come).

    `saved`: shapes and dtypes of a checkpoint's arrays by path (`checkpoint.array_shapes`).
    """
    changed = {}
    for name in BANKS:
        bank = getattr(abstract, name)
        if bank is None:
            continue
        paths = [f"{name}/{rules.path_string(path)}" for path, _ in jax.tree_util.tree_flatten_with_path(bank)[0]]
        leaves, structure = jax.tree.flatten(bank)
        if not all(path in saved for path in paths):
            continue
        there = [saved[path] for path in paths]
        if all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(there, leaves, strict=True)):
            continue
        whole = bank.pushes.sharding
        there = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole) for leaf in there]
        changed[name] = jax.tree.unflatten(structure, there)
    return dataclasses.replace(abstract, **changed) if changed else abstract


def with_relaid_banks(state: TrainState, target: TrainState) -> tuple[TrainState, dict[str, int]]:
    """A state restored by way of `with_saved_banks`, its banks brought into the lanes and shardings of `target`.

    Returns it with the number of entries kept, by the name of each bank that was laid anew.
    """

    def place(host: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        host = host.astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: host[index])

    changed: dict[str, Any] = {}
    kept = {}
    for name in BANKS:
        bank, wanted = getattr(state, name), getattr(target, name)
        shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (bank, wanted)]
        if shapes[0] == shapes[1]:
            continue
        laid = lanes.relay(bank, wanted.lanes)
        kept[name] = int((laid.entries.identity != lanes.EMPTY).sum())
        changed[name] = jax.tree.map(place, laid, wanted)
    return dataclasses.replace(state, **changed), kept
