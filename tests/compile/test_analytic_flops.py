"""FLOPs counted in a jaxpr: hand-made answers, loops, and XLA's own count of a model without loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from irm_jax.compile.analytic_flops import count
from irm_jax.models import transformer


def flops(function, *arrays):
    return dict(count(jax.make_jaxpr(function)(*arrays)))


A, B = np.ones((4, 6), np.float32), np.ones((6, 5), np.float32)


def test_a_product():
    assert flops(jnp.matmul, A, B) == {"f32": 2 * 4 * 6 * 5}
    assert flops(lambda a, b: jnp.matmul(a, b, precision="highest"), A, B) == {"f32_highest": 240}
    assert flops(jnp.matmul, A.astype(jnp.bfloat16), B.astype(jnp.bfloat16)) == {"bf16": 240}


def test_a_batched_product():
    assert flops(lambda x, y: jnp.einsum("bhqd,bhkd->bhqk", x, y), *np.ones((2, 3, 2, 7, 5), np.float32)) == {
        "f32": 2 * (3 * 2 * 7 * 7) * 5
    }


def test_loops_times_their_trips():
    square = np.ones((5, 5), np.float32)

    def three(x):
        return lax.scan(lambda c, _: (c @ c, None), x, None, length=3)[0]

    assert flops(three, square) == {"f32": 3 * 250}
    assert flops(lambda x: lax.fori_loop(0, 4, lambda _, c: three(c), x), square) == {"f32": 12 * 250}


def test_remat_computes_again_and_a_branch_counts_once():
    square = np.ones((5, 5), np.float32)
    plain = flops(jax.grad(lambda x: jnp.sum(jnp.sin(x @ x) @ x)), square)
    again = flops(jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(x @ x) @ x))), square)
    assert plain["f32"] == 6 * 250
    assert again["f32"] == 7 * 250  # the first product once more; the backward pass does not need the second
    assert flops(lambda p, x: lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x), True, square) == {"f32": 500}


def test_a_convolution_and_its_gradient():
    image, kernel = np.ones((2, 8, 8, 3), np.float32), np.ones((4, 4, 3, 16), np.float32)

    def patches(x, k):
        return lax.conv_general_dilated(x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    once = 2 * (2 * 2 * 2 * 16) * (4 * 4 * 3)
    assert flops(patches, image, kernel) == {"f32": once}
    assert flops(jax.grad(lambda k: patches(image, k).sum()), kernel)["f32"] == 2 * once


def test_devices_of_a_shard_map_add_up():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",), axis_types=(AxisType.Auto,))

    def rows(a, b):
        return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"))(a, b)

    assert flops(rows, A, B) == flops(jnp.matmul, A, B)


@pytest.mark.parametrize("scan", [False, True])
def test_a_transformers_gradient_as_xla_counts_it(scan):
    """Two blocks: XLA's figure of the unrolled ones (all its operations, products most of them), scanned or not."""
    config = transformer.BlockConfig(width=64, heads=2)
    x = jnp.ones((4, 24, 64))

    def gradient(scan):
        stack = transformer.Stack(config, 2, scan_layers=scan)
        variables = stack.init(jax.random.key(0), x, deterministic=True)
        return jax.grad(lambda v: jnp.sum(jnp.square(stack.apply(v, x, deterministic=True)))), variables

    function, variables = gradient(False)
    unrolled = jax.jit(function).lower(variables).compile().cost_analysis()["flops"]
    found = sum(flops(*gradient(scan)).values())
    assert found <= unrolled
    assert found == pytest.approx(unrolled, rel=0.12)
