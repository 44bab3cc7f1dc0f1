"""The device mesh, and how batches and activations lie on it; `rules` says how the training state does.

Axes: `data` (rows), `fsdp` (rows and parameters), `model` (heads, hidden units, identities). The blocks of a batch are
split over (data, fsdp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from irm_jax.errors import UserError

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")


class ShardingError(UserError, ValueError):
    """The mesh does not fit the devices, or an array does not fit the mesh; the message says how to mend it."""


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes (data, fsdp, model); one size may be -1, which takes the remaining devices.

    `devices` defaults to all. Raises ShardingError if the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [int(shape[axis]) for axis in AXES]
    if sizes.count(-1) > 1:
        raise ShardingError(f"mesh {dict(shape)}: only one axis may be -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise ShardingError(
            f"mesh {dict(shape)} needs {math.prod(abs(s) for s in sizes)} devices (a multiple with -1), but "
            f"{len(devices)} are here; set config.mesh.data, .fsdp and .model so that their product is {len(devices)}"
        )
    return Mesh(_arranged(sizes, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Returns devices [data, fsdp, model], arranged so that neighbours in the mesh are neighbours on the network.

    With several slices (TPU) or nodes (GPU) the data axis spans them, outermost: only one sum of gradients per step
    then crosses the slower network. If its size does not divide, another axis crosses it, with a warning.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and devices[0].platform != "cpu":
        if sizes[0] % slices == 0:
            within = (sizes[0] // slices, *sizes[1:])
            return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
        logging.warning(
            "mesh.data = %d does not divide over %d slices: another axis crosses the network between them, which is "
            "slow; make mesh.data a multiple of %d",
            sizes[0], slices, slices,
        )  # fmt: skip
        return np.array(devices).reshape(sizes)
    if devices[0].platform == "tpu" or len(devices) == jax.device_count():
        return mesh_utils.create_device_mesh(sizes, devices)
    return np.array(devices).reshape(sizes)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of pieces that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """XLA options of a training step on this mesh; None for the defaults.

    Where parameters are split over `fsdp`, the TPU compiler would overlap their gathering with the products (windowed
    einsum) and add to the product once per part: at paper scale this doubles a step's memory traffic on 16 chips
    (docs/scaling.md). Products smaller than the given number of MiB are left whole.
    """
    if mesh.devices.flat[0].platform != "tpu" or mesh.shape["fsdp"] == 1:
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Sharding of block arrays [R, b, ...] over R; `leading` axes before R (accumulated batches) are not split."""
    return NamedSharding(mesh, P(*(None,) * leading, ROWS))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Sharding that puts a whole copy on every device of the mesh."""
    return NamedSharding(mesh, P())


def replicated_like(tree: Any) -> NamedSharding | None:
    """The replicated sharding on the mesh that the tree's arrays lie on, under which every process can read an array.

    None where they lie on no mesh. The first leaf is looked at.
    """
    layout = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    return replicated(layout.mesh) if isinstance(layout, NamedSharding) else None


def constrain_rows(x: jax.Array) -> jax.Array:
    """Constrains axis 0 of x to the data axes and the other axes to be whole; without a mesh in scope, returns x."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS))


def constrain_first_axis(x: jax.Array) -> jax.Array:
    """Constrains axis 0 of x to the data axes and leaves the other axes to the compiler.

    For activations within a transformer block: where parameters are split over `fsdp` as well, the compiler may
    otherwise keep the parameters in place and move the activations, a hundred times as much. Returns x unchanged
    without a mesh in scope, and if axis 0 does not divide (a few constant sentences).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS, *(P.UNCONSTRAINED,) * (x.ndim - 1)))


def constrain_replicated(x: jax.Array) -> jax.Array:
    """Constrains x to be whole on every device; without a mesh in scope, returns x."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())


def to_global(tree: Any, sharding: NamedSharding) -> Any:
    """Makes global arrays of the given sharding from host arrays that hold this process's rows."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def distribute(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Makes a global array of the given sharding from a host array that is the same in every process."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def addressable_blocks(mesh: Mesh, blocks: int) -> list[int]:
    """The batch blocks (0 <= r < blocks) whose rows lie on this process's devices, in ascending order."""
    sharding = NamedSharding(mesh, P(ROWS))
    found: set[int] = set()
    for index in sharding.addressable_devices_indices_map((blocks,)).values():
        if index is not None:
            found.update(range(*index[0].indices(blocks)))
    return sorted(found)
