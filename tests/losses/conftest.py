"""The same function on one device and on eight."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


@pytest.fixture
def assert_same_when_sharded() -> Callable[..., None]:
    """Returns check(function, arrays, specs, tolerance): outputs on 8 devices equal those on 1.

    `specs` shards each argument (default: axis 0); differences are measured against the largest value of an output.
    """

    def check(
        function: Callable[..., Any], arrays: tuple[Any, ...], tolerance: float, specs: tuple[P, ...] | None = None
    ) -> None:
        mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
        specs = specs or tuple(P("data") for _ in arrays)
        one = jax.jit(function)(*[jax.device_put(array, jax.devices()[0]) for array in arrays])
        placed = [jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip(arrays, specs, strict=True)]
        assert len(placed[0].sharding.device_set) == 8
        eight = jax.jit(function)(*placed)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == b.dtype
            if a.dtype == bool:
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())

    return check
