"""A small made-up training state over eight devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    instruction_mean: Any
    opt_state: Any


def mesh_of(data: int, fsdp: int) -> Mesh:
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def optimizer() -> optax.GradientTransformation:
    """Masked decay and clipping, as in training: their states hold empty nodes."""
    mask = {"encoder": {"kernel": True, "bias": False}, "heads": {"kernel": True}}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=mask))


def build(seed: jax.Array | int, width: int = 32) -> State:
    def draw(number: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape)

    params = {
        "encoder": {"kernel": draw(0, 16, width), "bias": draw(1, width)},
        "heads": {"kernel": draw(2, width, 24)},
    }
    opt_state = jax.tree.map(lambda x: x + jnp.ones_like(x), optimizer().init(params))
    return State(jnp.asarray(seed, jnp.int32), params, {"neck": {"mean": draw(3, width)}}, draw(4, 2, width), opt_state)


def abstract(mesh: Mesh, width: int = 32) -> State:
    shapes = jax.eval_shape(lambda: build(0, width))

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P(None, "fsdp") if len(leaf.shape) == 2 and leaf.shape[0] > 2 else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)


def assert_same(left: Any, right: Any) -> None:
    assert str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    jax.tree.map(np.testing.assert_array_equal, left, right)
