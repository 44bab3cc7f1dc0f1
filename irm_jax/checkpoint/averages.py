"""The averaged parameters of a schedule-free optimizer: its state holds what they are computed from.

`optax.contrib.schedule_free` trains y = (1 - b1) z + b1 x and keeps z; the averages x are what is evaluated and
exported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from optax import contrib


@jax.jit
def averaged(params: Any, z: Any, b1: Any) -> Any:
    """The averages x of parameters y."""
    return contrib.schedule_free_eval_params(SimpleNamespace(z=z, b1=b1), params)


def averages_prefix(saved: Mapping[str, Any]) -> str | None:
    """Where a saved state holds z and b1, say `opt_state/1/`, from its array paths; None if it holds no averages."""
    found = (re.match(r"(opt_state/(?:[^/]+/)*)b1$", path) for path in saved)
    return next((m[1] for m in found if m and f"{m[1]}weight_sum" in saved), None)


def read_averages(folder: epath.Path, prefix: str, params: Any) -> Any:
    """The averages of restored parameters, in their layout; z and b1 are read from the state in `folder`."""
    handler = ocp.PyTreeCheckpointHandler()
    wanted = {
        f"{prefix}z/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    whole = next(iter(wanted.values()))
    if isinstance(whole, jax.sharding.NamedSharding):
        whole = jax.sharding.NamedSharding(whole.mesh, jax.sharding.PartitionSpec())
    wanted[f"{prefix}b1"] = whole

    def target(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in wanted:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted[name])

    item = jax.tree_util.tree_map_with_path(target, {"opt_state": handler.metadata(folder).tree["opt_state"]})
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            folder, args=ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        )
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }
    z = jax.tree_util.tree_map_with_path(
        lambda path, _: found[f"{prefix}z/{jax.tree_util.keystr(path, simple=True, separator='/')}"], params
    )
    return averaged(params, z, found[f"{prefix}b1"])
