"""Transformer blocks: options that must not change the result, exact forms, and what bfloat16 rounds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.compile import analytic_flops
from irm_jax.models import transformer
from irm_jax.models.config import REMAT
from irm_jax.models.plain_forms import plain_forms

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.mark.parametrize("norm_first", [True, False])
def test_scan_and_remat_equal_the_plain_stack(norm_first):
    config = transformer.BlockConfig(width=16, heads=2, norm_first=norm_first)
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    plain = transformer.Stack(config, 3)
    params = plain.init(jax.random.key(1), x, mask, deterministic=True)["params"]
    layers = [params[f"layer_{i}"] for i in range(3)]
    stacked = {"layers": {"block": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}}

    def loss(stack, params):
        return jnp.sum(stack.apply({"params": params}, x, mask, deterministic=True) ** 3)

    expected, gradient = jax.jit(jax.value_and_grad(lambda p: loss(plain, p)))(params)
    for stack in (
        *(transformer.Stack(config, 3, remat=remat) for remat in ("minimal", "full")),
        *(transformer.Stack(config, 3, scan_layers=True, remat=remat) for remat in REMAT),
    ):
        own = stacked if stack.scan_layers else params
        value, found = jax.jit(jax.value_and_grad(lambda p, s=stack: loss(s, p)))(own)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        if stack.scan_layers:
            found = {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], found["layers"]["block"]) for i in range(3)}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, gradient)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_first_tokens_alone_are_the_same(scan_layers):
    stack = transformer.Stack(transformer.BlockConfig(width=16, heads=2), 2, scan_layers=scan_layers)
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    variables = stack.init(jax.random.key(1), x, deterministic=True)
    first = stack.apply(variables, x, queries=2, deterministic=True)
    np.testing.assert_allclose(first, stack.apply(variables, x, deterministic=True)[:, :2], rtol=1e-5)


def test_queries_keys_and_values_are_one_product_cut_in_three():
    config = transformer.BlockConfig(width=16, heads=2)
    layer = transformer.QueryKeyValue(config)
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    params = layer.init(jax.random.key(1), x, None)["params"]
    params = {"kernel": params["kernel"], "bias": jax.random.normal(jax.random.key(2), (3, 2, 8))}
    whole = jnp.einsum("bnd,dkhe->kbhne", x, params["kernel"]) + params["bias"][:, None, :, None]
    query, key, value = layer.apply({"params": params}, x, 2)
    assert query.shape == (3, 2, 2, 8)
    for found, expected in zip((query, key, value), (whole[0, :, :, :2], whole[1], whole[2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gelu_of_bfloat16_is_as_exact_as_that_type():
    """A relative rounding of 2^-8 in x moves the tail, about exp(-x^2 / 2), by x^2 2^-8: 1/16 at 4."""
    x = jnp.linspace(-4, 4, 257).astype(jnp.bfloat16)
    exact = [float(v) * 0.5 * math.erfc(-float(v) / math.sqrt(2)) for v in x]
    np.testing.assert_allclose(transformer.gelu(x).astype(jnp.float32), exact, rtol=1 / 16)
    assert float(transformer.gelu(jnp.bfloat16(-3.094))) == pytest.approx(-0.00306, rel=0.01)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 25, dtype=np.float32)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    np.testing.assert_allclose(transformer.gelu(jnp.asarray(x)), exact, rtol=1e-6, atol=1e-6)


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    config = transformer.BlockConfig(width=8, heads=2)
    stack = transformer.Stack(config, 1, drop_path=(0.5,))
    x = jax.random.normal(jax.random.key(0), (400, 3, 8))
    variables = stack.init(jax.random.key(1), x, deterministic=True)
    quiet = stack.apply(variables, x, deterministic=True)
    noisy = stack.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(2)})
    untouched = np.isclose(np.asarray(noisy), np.asarray(x)).all(axis=(1, 2)).mean()
    assert 0.15 < untouched < 0.35  # both branches dropped: 1/4
    assert not np.allclose(noisy, quiet)


def test_a_drop_path_of_nothing_drops_nothing_in_bfloat16():
    """A draw of .9990 is 1.0 in bfloat16, which is not below 1."""
    config = transformer.BlockConfig(width=4, heads=2, dtype=jnp.bfloat16)
    block = transformer.Block(config, stochastic_depth=True, deterministic=False)
    x = jax.random.normal(jax.random.key(0), (8000, 2, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms promote bf16 with f32
        noisy, variables = block.init_with_output(jax.random.key(1), x, None, jnp.float32(0.0))
        quiet = block.clone(deterministic=True).apply(variables, x, None, jnp.float32(0.0))
    np.testing.assert_array_equal(np.asarray(noisy, np.float32), np.asarray(quiet, np.float32))


def test_plain_forms_ask_for_no_platform():
    """What exporters to other formats can follow; it computes the same."""
    block = transformer.Block(transformer.BlockConfig(width=16, heads=2))
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    expected, variables = block.init_with_output(jax.random.key(1), x, None, jnp.float32(0.0))

    def apply(x):
        return block.apply(variables, x, None, jnp.float32(0.0))

    with plain_forms():
        program = str(jax.make_jaxpr(apply)(x))
        np.testing.assert_allclose(apply(x), expected, rtol=1e-6, atol=1e-6)
    assert "platform_index" not in program
    assert "custom_vjp" not in program
    assert "platform_index" in str(jax.make_jaxpr(lambda x: apply(x))(x))  # another function: the trace of one is kept


def test_every_product_of_a_bfloat16_block_is_one_of_bfloat16():
    """Backward as well: a float32 cotangent would make the largest products float32's, at half the rate or less."""
    block = transformer.Block(transformer.BlockConfig(width=16, heads=2, dtype=jnp.bfloat16))
    x, context = (jnp.zeros((2, n, 16), jnp.bfloat16) for n in (5, 7))

    def loss(params):
        return jnp.sum(block.apply(params, x, jnp.ones((2, 5), bool), jnp.float32(0.0), context).astype(jnp.float32))

    with jax.numpy_dtype_promotion("standard"):  # flax's norms promote bf16 with f32
        params = block.init(jax.random.key(0), x, None, jnp.float32(0.0), context)
        flops = analytic_flops.count(jax.make_jaxpr(jax.grad(loss))(params))
    assert set(flops) == {"bf16"}
    assert flops.total() > 0
