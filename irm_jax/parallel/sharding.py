"""The mesh and the one rule table that says how every array of the training state is laid out on it.

Axes: `data` (rows), `fsdp` (rows and parameters), `model` (heads, hidden units, identities). Batch blocks lie over
(data, fsdp).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")
Layout = tuple[str | tuple[str, ...] | None, ...]

# Regular expression on the path -> the layout of the *last* axes (earlier ones, such as scanned layers, are not split).
RULES: tuple[tuple[str, Layout], ...] = (
    (r"(memory_bank|caption_queue)/entries/(key|instruction|image|text)$", (ROWS, None, None, None)),
    (r"(memory_bank|caption_queue)/entries/(identity|clothes|dataset|task|kind)$", (ROWS, None, None)),
    (r"query_key_value/kernel$", ("fsdp", None, "model", None)),
    (r"query_key_value/bias$", (None, "model", None)),
    (r"cross_attention/(query|key|value)/kernel$", ("fsdp", "model", None)),
    (r"cross_attention/(query|key|value)/bias$", ("model", None)),
    (r"attention/output/kernel$", ("model", None, "fsdp")),
    (r"mlp/expand/kernel$", ("fsdp", "model")),
    (r"mlp/expand/bias$", ("model",)),
    (r"mlp/contract/kernel$", ("model", "fsdp")),
    (r"word_embedding$", ("model", "fsdp")),
    (r"head_(cls|person|guided)$", ("fsdp", "model")),
    (r"(image|text)_projection/kernel$", ("fsdp", None)),
    (r"(matching_head|replaced_head|word_head/transform)/kernel$", ("fsdp", None)),
    (r"word_head/word_bias$", ("model",)),
    (r"patch_embedding/\w+/kernel$", (None, "fsdp")),
    (r"(special_tokens|special_positions|grid_positions|position_embedding|type_embedding)$", (None,)),
    (r"(/bias|/scale|/temperature)$", (None,)),
    (r"batch_stats/.*(mean|var)$", (None,)),
    (r"instruction_mean/", (None,)),
    (r"(^|/)(step|count|mini_step|gradient_step|pushes)$", ()),
)
SMALL = 1 << 14
"""Arrays of fewer elements stay whole on every device: moving them costs more than holding them."""


class ShardingError(ValueError):
    """A leaf has no rule, or a rule does not fit the leaf on this mesh."""


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes (data, fsdp, model). One size may be -1: the rest of the devices.

    Raises ShardingError if the sizes do not multiply to the number of devices.
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
    return Mesh(_placed(sizes, devices), AXES, axis_types=(AxisType.Auto,) * 3)


def _placed(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices [data, fsdp, model], so that neighbours in the mesh are neighbours on the network.

    Of several slices (TPU) or nodes (GPU) the data axis goes over them, outermost: what crosses the slower network
    between them is then one sum of gradients a step. If its size does not divide, another axis crosses it, with a
    warning.
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
    """Into how many pieces the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options of the compiler for a training step on this mesh, None for its own.

    Where parameters are cut over `fsdp`, the TPU compiler would multiply while it gathers them, and add to the product
    once for each part: at paper scale that doubles a step's memory traffic on 16 chips (docs/scaling.md). A product
    smaller than this many MiB is left whole.
    """
    if mesh.devices.flat[0].platform != "tpu" or mesh.shape["fsdp"] == 1:
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def path_string(path: Sequence[Any]) -> str:
    """A key path of jax.tree_util as `a/b/c`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The layout of one leaf. Raises ShardingError for a leaf that no rule names or that does not divide."""
    found = next((layout for pattern, layout in RULES if re.search(pattern, path)), None)
    if found is None:
        raise ShardingError(f"no sharding rule matches {path} {shape}; add one to irm_jax/parallel/sharding.py")
    if math.prod(shape) < SMALL and ROWS not in found:
        return P()  # what lies in blocks of the batch stays with its rows whatever its size
    layout = found[-len(shape) :] if shape else ()
    full = (None,) * (len(shape) - len(layout)) + layout
    for size, axis in zip(shape, full, strict=True):
        pieces = math.prod(mesh.shape[name] for name in (axis if isinstance(axis, tuple) else (axis,)) if name)
        if size % pieces:
            raise ShardingError(
                f"{path} {shape}: size {size} does not divide over mesh axis {axis!r} of {pieces}; "
                "choose another mesh, or pad the size (config.model.identity_multiple, config.model.vocab_multiple)"
            )
    return P(*full)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """NamedSharding of every leaf of a tree of arrays or ShapeDtypeStructs, by the rule table."""

    def one(path: Sequence[Any], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, leaf_spec(path_string(path), tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Layout of block arrays [R, b, ...]; `leading` axes before R (accumulated batches) are not split."""
    return NamedSharding(mesh, P(*(None,) * leading, ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def everywhere(tree: Any) -> NamedSharding | None:
    """Whole on every device of the mesh that the tree's arrays lie on, so that every process can read it; None where
    they lie on no mesh."""
    layout = getattr(jax.tree.leaves(tree)[0], "sharding", None)
    return NamedSharding(layout.mesh, P()) if isinstance(layout, NamedSharding) else None


def constrain_rows(x: jax.Array) -> jax.Array:
    """Keeps axis 0 over the data axes. Without a mesh in scope (a single query, a unit test) x passes unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS))


def stay_with_rows(x: jax.Array) -> jax.Array:
    """Keeps axis 0 over the data axes and leaves the others to the compiler.

    For what is computed within a transformer block: where parameters are cut over `fsdp` as well, the compiler may
    otherwise leave them where they are and move the activations, a hundred times as much. Without a mesh in scope, or
    if axis 0 does not divide (a few constant sentences), x passes unchanged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % row_shards(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(ROWS, *(P.UNCONSTRAINED,) * (x.ndim - 1)))


def constrain_whole(x: jax.Array) -> jax.Array:
    """Brings x whole to every device; without a mesh in scope it passes unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P())


def to_global(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays that hold this process's rows -> global arrays of the given layout."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that is the same in every process -> a global array of the given layout."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def addressable_blocks(mesh: Mesh, blocks: int) -> list[int]:
    """The batch blocks (0 <= r < blocks) whose rows this process's devices hold, in order."""
    sharding = NamedSharding(mesh, P(ROWS))
    found: set[int] = set()
    for index in sharding.addressable_devices_indices_map((blocks,)).values():
        if index is not None:
            found.update(range(*index[0].indices(blocks)))
    return sorted(found)
