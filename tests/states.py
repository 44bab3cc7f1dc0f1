"""Training states filled by NumPy, which need no program to be compiled."""

import zlib

import jax
import numpy as np

from irm_jax.objectives.lanes import EMPTY
from irm_jax.parallel import rules
from irm_jax.training import momentum


def filled_state(run, *, double=False):
    """A state of `run` in its layout, with kernels and tables drawn by path, about as large as at a real start.

    `double`: float64 in place of float32.
    """
    abstract = run.abstract_state()

    def array(path, leaf):
        name = rules.path_string(path)
        if name.startswith(("opt_state/", "step", "instruction_mean/")) or name.endswith("/pushes"):
            return np.zeros(leaf.shape, leaf.dtype)
        if "/entries/" in name:
            return np.full(leaf.shape, EMPTY if np.issubdtype(leaf.dtype, np.integer) else 0, leaf.dtype)
        if name.endswith(("/scale", "/var")):
            return np.ones(leaf.shape, leaf.dtype)
        if name.endswith(("bias", "/mean")):
            return np.zeros(leaf.shape, leaf.dtype)
        if name.endswith("temperature"):
            return np.full(leaf.shape, run.model.config.temperature, leaf.dtype)
        seed = zlib.crc32(name.removeprefix("momentum_params/").removeprefix("params/").encode())
        if name.endswith("kernel"):
            size = (leaf.shape[-4] if "query_key_value" in name else leaf.size // leaf.shape[-1]) ** -0.5
        else:
            size = 0.001 if "head_" in name else 0.02
        return np.random.default_rng(seed).normal(0, size, leaf.shape).astype(leaf.dtype)

    host = jax.tree_util.tree_map_with_path(array, abstract)
    if host.momentum_params is not None:
        same = jax.tree.map(np.array_equal, host.momentum_params, momentum.averaged_part(host.params))
        assert all(jax.tree.leaves(same))
    if double:
        host = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, host)
    return jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), host, abstract)
