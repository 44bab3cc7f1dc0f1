"""The training state: one pytree of everything that a step changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from irm_jax.losses.instruction_similarity import InstructionMean, init_mean
from irm_jax.models.irm import IRM, initialise
from irm_jax.objectives import lanes
from irm_jax.objectives.base import Objective
from irm_jax.objectives.lanes import BankLanes, CaptionKeys, MomentumKeys
from irm_jax.objectives.rows import INSTRUCTION_KINDS
from irm_jax.parallel import rules
from irm_jax.training import momentum

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from data_pipelines.batches.layout import BatchPlan


@struct.dataclass
class TrainState:
    """Everything that a step changes. Model and optimizer are arguments of the functions that need them, not fields.

    Attributes:
        step: int32[], updates done.
        params, batch_stats: variables of the model.
        instruction_mean: momentum mean of instruction features per kind.
        opt_state: state of the optimizer.
        momentum_params: the momentum model, None without one.
        memory_bank, caption_queue: momentum keys of past batches, None without.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    instruction_mean: InstructionMean
    opt_state: Any
    momentum_params: Any = None
    memory_bank: BankLanes | None = None
    caption_queue: BankLanes | None = None


PARAMETERS, STEPS = range(2)
"""Streams of random numbers of a seed: the first parameters; what steps draw (dropout, hidden words, negatives)."""


def random_key(seed: int, stream: int) -> jax.Array:
    """The key of one stream of a seed. No stream of another seed has it, as `key(seed + 1)` would."""
    return jax.random.fold_in(jax.random.key(seed), stream)


BANKS = ("memory_bank", "caption_queue")
"""The fields that hold keys in lanes, which follow the layout of the batch."""


@dataclasses.dataclass(frozen=True)
class BankShape:
    """Sizes of a bank: at least `size` keys of type `dtype`, for batches of `blocks` blocks of `rows` rows."""

    size: int
    blocks: int
    rows: int
    dtype: str

    def create(self, spec: Any) -> BankLanes:
        """Empty lanes for keys like `spec`."""
        return lanes.create(spec, self.size, self.blocks, self.rows)


@dataclasses.dataclass(frozen=True)
class MemoryShapes:
    """What a state holds beside the parameters: a momentum model, the memory bank, the caption queue."""

    momentum: bool = False
    bank: BankShape | None = None
    queue: BankShape | None = None

    @classmethod
    def of(cls, config: ConfigDict, plan: BatchPlan, objectives: Sequence[Objective]) -> MemoryShapes:
        """What these objectives need for the batches of the plan."""
        used = [o for o in objectives if any(kind in plan.kinds for kind in o.kinds)]
        b, queue = config.memory_bank, config.text_to_image.queue_size
        momentum = any(not o.key_request.empty for o in used)
        contrast = any(o.key_request.contrast for o in used)
        rows = sum(plan.rows(kind) for kind in plan.kinds)
        return cls(
            momentum=momentum,
            bank=BankShape(b.size, plan.batch_blocks, rows, b.dtype) if b.size else None,
            queue=BankShape(queue, plan.batch_blocks, plan.rows("caption"), b.dtype) if queue and contrast else None,
        )


def create_state(
    model: IRM,
    optimizer: optax.GradientTransformation,
    constant_tokens: Any,
    seed: int,
    mesh: Mesh,
    memory: MemoryShapes = MemoryShapes(),
) -> TrainState:
    """Returns a fresh state, created under jit directly in its final layout, with the same numbers on any mesh."""
    init, shardings = _initialiser(model, optimizer, constant_tokens, mesh, memory)
    # It runs once, and XLA:CPU compiles it in half the time at its first level, to the same numbers.
    options = {"xla_backend_optimization_level": "1"} if mesh.devices.flat[0].platform == "cpu" else None
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(random_key(seed, PARAMETERS))


def with_variables(
    state: TrainState, variables: Mapping[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:  # fmt: skip
    """The state with other `params` and `batch_stats`, from which optimizer and momentum model start again."""
    if variables["params"] is state.params:
        return state
    params = variables["params"]
    layout = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
    with jax.numpy_dtype_promotion("standard"):
        opt_state = jax.jit(optimizer.init, out_shardings=layout)(params)
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=opt_state,
        momentum_params=momentum.start(params) if state.momentum_params is not None else None,
    )


def abstract_state(
    model: IRM,
    optimizer: optax.GradientTransformation,
    constant_tokens: Any,
    mesh: Mesh,
    memory: MemoryShapes = MemoryShapes(),
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, nothing allocated: what a checkpoint is restored into."""
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
            instruction_mean=init_mean(len(INSTRUCTION_KINDS), width),
            opt_state=opt_state,
            momentum_params=momentum.start(params) if memory.momentum else None,
            memory_bank=bank.create(MomentumKeys.spec(2 * width, width, jnp.dtype(bank.dtype))) if bank else None,
            caption_queue=queue.create(CaptionKeys.spec(projection, jnp.dtype(queue.dtype))) if queue else None,
        )

    return init, rules.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)


def with_saved_banks(abstract: TrainState, saved: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
    """Returns the state to restore into: banks that were saved in other lanes or another key type, whole per device.

    It is `abstract` itself where nothing differs, or where only one of the two has such a bank (restoring reports it).

    Args:
        abstract: the state of this run.
        saved: shape and dtype of a checkpoint's arrays by path (`checkpoint.array_shapes`).
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
        found = [saved[path] for path in paths]
        if all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(found, leaves, strict=True)):
            continue
        whole = bank.pushes.sharding
        found = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole) for leaf in found]
        changed[name] = jax.tree.unflatten(structure, found)
    return dataclasses.replace(abstract, **changed) if changed else abstract


def with_saved_moments(abstract: TrainState, saved: Mapping[str, jax.ShapeDtypeStruct]) -> TrainState:
    """Returns the state to restore into: `abstract`, but with moments in the shape in which they were saved.

    A frozen parameter has one number for a moment, so shapes differ where it was not frozen then and is now. Returns
    `abstract` itself where none differ.
    """

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        found = saved.get("opt_state/" + jax.tree_util.keystr(path, simple=True, separator="/"))
        if found is None or found.shape == leaf.shape or 1 not in (math.prod(found.shape), math.prod(leaf.shape)):
            return leaf
        return jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=abstract.step.sharding)

    changed = jax.tree_util.tree_map_with_path(one, abstract.opt_state)
    same = all(a is b for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(abstract.opt_state), strict=True))
    return abstract if same else dataclasses.replace(abstract, opt_state=changed)


def with_fresh_moments(state: TrainState, target: TrainState) -> tuple[TrainState, int]:
    """Returns the state with zeros for the moments that have another shape than in `target`, and how many they are."""
    count = 0

    def one(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        nonlocal count
        if leaf.shape == wanted.shape:
            return leaf
        count += 1
        zeros = np.zeros(wanted.shape, wanted.dtype)
        return jax.make_array_from_callback(wanted.shape, wanted.sharding, lambda index: zeros[index])

    return dataclasses.replace(state, opt_state=jax.tree.map(one, state.opt_state, target.opt_state)), count


def with_relaid_banks(state: TrainState, target: TrainState) -> tuple[TrainState, dict[str, int]]:
    """Lays the banks of a state that was restored by `with_saved_banks` out as in `target`.

    Returns the state, and the number of keys kept by the name of each bank that was laid out anew.
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
        laid = lanes.relayout(bank, wanted.lanes)
        kept[name] = int((laid.entries.identity != lanes.EMPTY).sum())
        changed[name] = jax.tree.map(place, laid, wanted)
    return dataclasses.replace(state, **changed), kept
