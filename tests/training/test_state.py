"""The state of a training before its first step."""

from types import SimpleNamespace

import jax
import numpy as np
import optax

from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import loop, state


def test_no_seed_starts_from_the_numbers_that_another_one_drops_by():
    """Parameters of seed s + 1 were drawn from the key of the steps of seed s."""
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])

    def init(key, tokens, method):
        return {"params": {"temperature": jax.random.key_data(key)}, "batch_stats": {}}

    model = SimpleNamespace(init=init, config=SimpleNamespace(width=2, projection_width=2))
    found = []
    for seed in (0, 1, 2, 2**32 - 1):
        found.append(np.asarray(state.create_state(model, optax.identity(), [[0]], seed, mesh).params["temperature"]))
        plan = SimpleNamespace(constant_tokens=[[0]])
        run = SimpleNamespace(
            train_step=None, mesh=mesh, config=SimpleNamespace(seed=seed), data=SimpleNamespace(plan=plan)
        )
        found.append(np.asarray(jax.random.key_data(loop._Step(run)._same[1])))
    assert len(np.unique(np.stack(found), axis=0)) == len(found) == 8
