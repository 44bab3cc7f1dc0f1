"""The product of dense layers: its values and gradients by NumPy, and what each platform is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.models import dense


def numbers(count, rank):
    return ((tuple(range(rank - count, rank)), tuple(range(count))), ((), ()))


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "count"),
    [((6, 4), (4, 9), 1), ((2, 3, 9), (9, 4), 1), ((2, 3, 5), (5, 5), 1), ((2, 3, 5), (5, 2, 7), 1),
     ((2, 3, 2, 4), (2, 4, 3), 2), ((2, 1, 2, 4), (2, 4, 9), 2)],
)  # fmt: skip
def test_product_and_gradients_equal_those_of_flat_matrices(x_shape, kernel_shape, count):
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal(x_shape), random.standard_normal(kernel_shape)
    wide = int(np.prod(kernel_shape[:count]))
    weight = random.standard_normal((*x_shape[: x.ndim - count], *kernel_shape[count:]))
    rows, matrix, up = x.reshape(-1, wide), kernel.reshape(wide, -1), weight.reshape(-1, kernel.size // wide)

    def loss(x, kernel):
        return (weight * dense.product(x, kernel, numbers(count, x.ndim))).sum()

    with jax.enable_x64(True):
        arrays = jnp.asarray(x), jnp.asarray(kernel)
        np.testing.assert_allclose(
            dense.product(*arrays, numbers(count, x.ndim)), (rows @ matrix).reshape(weight.shape)
        )
        to_x, to_kernel = jax.jit(jax.grad(loss, argnums=(0, 1)))(*arrays)
    np.testing.assert_allclose(to_x, (up @ matrix.T).reshape(x_shape), rtol=1e-12)
    np.testing.assert_allclose(to_kernel, (rows.T @ up).reshape(kernel_shape), rtol=1e-12)


@pytest.mark.parametrize(("platform", "turned"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_the_smaller_matrix_is_turned_on_a_cpu_only(platform, turned):
    gradient = jax.jit(jax.grad(lambda x, kernel: dense.product(x, kernel, numbers(1, 3)).sum(), argnums=1))
    program = gradient.trace(jnp.ones((2, 3, 4)), jnp.ones((4, 8))).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in program) == turned


def test_what_a_dense_layer_does_not_ask_for_is_refused():
    x, kernel = jnp.ones((2, 3)), jnp.ones((3, 3))
    with pytest.raises(ValueError, match="last axes of x"):
        dense.product(x, kernel, (((0,), (0,)), ((), ())))
    with pytest.raises(ValueError, match="last axes of x"):
        dense.product(x, kernel, (((1,), (1,)), ((), ())))
    with pytest.raises(ValueError, match="default precision"):
        dense.product(x, kernel, numbers(1, 2), precision="highest")
