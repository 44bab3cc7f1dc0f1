import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from optax import contrib

from irm_jax.training import muon

SHAPES = {  # of every form of kernel, wide and tall, and of other parameters
    "blocks/layer_0/attention/query_key_value/kernel": (8, 3, 2, 4),
    "blocks/layer_0/attention/output/kernel": (2, 4, 8),
    "blocks/layer_0/mlp/expand/kernel": (8, 16),
    "blocks/layer_0/mlp/contract/kernel": (16, 8),
    "blocks/layers/block/mlp/expand/kernel": (2, 8, 16),
    "blocks/layers/block/cross_attention/query/kernel": (2, 8, 2, 4),
    "patch_embedding/conv_0/kernel": (3, 3, 2, 8),
    "pooled_class/kernel": (12, 8),
    "word_embedding": (8, 16),
    "norm/scale": (8,),
}


def rate(step):
    return 1e-2 / (1 + step)


@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False, "ns_steps": 3, "beta": 0.8}, {"preconditioning": "aol", "consistent_rms": 1.0}]
)
@pytest.mark.parametrize("stack", [2**24, 200])
def test_steps_and_states_are_those_of_optax(options, stack, monkeypatch):
    monkeypatch.setattr(muon, "STACK", stack)
    rng = np.random.default_rng(0)
    params = unflatten_dict({k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}, sep="/")
    options = {"adam_b2": 0.95, "consistent_rms": 0.2, **options}
    chains = contrib.muon(rate, muon_weight_dimension_numbers=muon.dimensions, **options), muon.muon(rate, **options)
    states = [chain.init(params) for chain in chains]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for number in range(3):
        gradient = jax.tree.map(lambda x: jnp.sin(x + number), params)  # noqa: B023
        with jax.numpy_dtype_promotion("standard"):
            steps = [chain.update(gradient, state, params) for chain, state in zip(chains, states, strict=True)]
        (expected, _), (found, _) = steps
        states = [state for _, state in steps]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected)
    jax.tree.map(np.testing.assert_array_equal, states[1], states[0])  # the moments, and the numbers of steps


def test_matrices_of_one_size_share_their_products(monkeypatch):
    """An iteration, which JAX prints once, takes three for one such matrix, and for more of them, wide or tall."""

    def products(shapes):
        params = {f"layer_{i}": {"mlp": {"expand": {"kernel": jnp.ones(shape)}}} for i, shape in enumerate(shapes)}
        chain = muon.muon(rate)
        with jax.numpy_dtype_promotion("standard"):
            return str(jax.make_jaxpr(chain.update)(params, chain.init(params), params)).count("dot_general")

    assert products([(8, 16)]) == products([(8, 16), (16, 8), (3, 8, 16)]) == products([(8, 16), (8, 8)]) / 2 == 3
    monkeypatch.setattr(muon, "STACK", 300)  # two of 128 numbers
    assert products([(8, 16)] * 2) == products([(8, 16)] * 3) / 2 == products([(3, 8, 16)]) == 3
