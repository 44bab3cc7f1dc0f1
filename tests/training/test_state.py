"""The state of a training before its first step, and what is restored into it."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from irm_jax.config.layer_rates import LayerRates
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import loop, optimizer, state


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


@pytest.mark.parametrize(
    ("name", "frozen"), [("adamw", ""), ("cocob", ""), ("dog", ""), ("schedule_free", ""), ("schedule_free", "^a$")]
)
def test_the_optimizer_starts_from_the_weights_that_are_handed_over(name: str, frozen: str) -> None:
    """Several optimizers keep what they start from; without a gradient their steps led back to it."""
    options = optimizer.OptimizerOptions(0.1, 10, 0, name=name, rates=LayerRates(frozen=frozen))
    chain = optimizer.make_optimizer(options)
    drawn = {"a": jnp.linspace(0.0, 1.0, 64).reshape(8, 8), "b": jnp.ones(2)}
    given = jax.tree.map(lambda x: 3.1 * x + 1, drawn)
    before = state.TrainState(jnp.zeros((), jnp.int32), drawn, {}, None, jax.jit(chain.init)(drawn))
    started = state.with_variables(before, {"params": given, "batch_stats": {}}, chain)

    def step(params: Any, opt_state: Any, gradient: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = chain.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

    expected = jax.tree.map(np.array, given)
    params, opt_state = started.params, started.opt_state
    for _ in range(3):
        gradient = {"a": jnp.full((8, 8), 1.0 if frozen else 0.0), "b": jnp.zeros(2)}
        params, opt_state = jax.jit(step, donate_argnums=(0, 1))(params, opt_state, gradient)
    for path in expected:
        tolerance = 0 if frozen and path == "a" else 1e-6
        np.testing.assert_allclose(params[path], expected[path], rtol=tolerance, err_msg=path)


def moments_state(frozen: str) -> state.TrainState:
    """A state of AdamW with moments of 1, without a model: parameters `a` and `b`, of which some are frozen."""
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    options = optimizer.OptimizerOptions(0.1, 10, 1, rates=LayerRates(frozen=frozen) if frozen else LayerRates())
    opt_state = jax.tree.map(jnp.ones_like, optimizer.make_optimizer(options).init(params))
    return state.TrainState(jnp.zeros((), jnp.int32), params, {}, None, opt_state)


def test_moments_of_parameters_that_are_frozen_now_are_dropped() -> None:
    saved, wanted = moments_state(""), moments_state("^a$")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), wanted)
    paths = jax.tree_util.tree_flatten_with_path(saved.opt_state)[0]
    shapes = {
        "opt_state/" + jax.tree_util.keystr(path, simple=True, separator="/"): jax.ShapeDtypeStruct(x.shape, x.dtype)
        for path, x in paths
    }
    target = state.with_saved_moments(abstract, shapes)
    assert [x.shape for x in jax.tree.leaves(target.opt_state)] == [x.shape for _, x in paths]
    restored, fresh = state.with_fresh_moments(saved, abstract)
    assert fresh == 2, "first and second moment of a"
    leaves = zip(jax.tree.leaves(restored.opt_state), paths, jax.tree.leaves(wanted.opt_state), strict=True)
    for found, (_, kept), full in leaves:
        assert found.shape == full.shape
        np.testing.assert_array_equal(found, kept if kept.shape == full.shape else np.zeros(full.shape))
    assert state.with_saved_moments(target, shapes) is target
