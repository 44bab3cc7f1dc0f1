"""States and checkpoints of `small_state`."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from small_state import State, abstract, build, mesh_of

from irm_jax.checkpoint import Checkpointer


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    return mesh_of(2, 4)


@pytest.fixture(scope="session")
def states(mesh: Mesh) -> list[State]:
    create = jax.jit(build, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract(mesh)))
    return [create(jnp.int32(seed)) for seed in range(6)]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, states: list[State]) -> Path:
    """A directory with steps 1 and 2 for tests that only read."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpointer(folder, keep=5, best_metric="mAP") as checkpointer:
        checkpointer.save(1, states[1], {"metrics": {"mAP": 0.5}, "config": {"model": "tiny"}, "fingerprint": {}})
        checkpointer.save(2, states[2], {"metrics": {"mAP": 0.4}, "config": {"model": "tiny"}, "fingerprint": {}})
    return folder
