"""Shared distances: exact where a matmul form is not, finite gradients, nothing of size A x B x D stored."""

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.losses import geometry


def test_small_distances_survive_a_large_common_offset() -> None:
    offset = np.float32(1000.0)
    rows = jnp.asarray(offset + np.array([[0.0, 0.0], [2.0**-10, 0.0], [0.0, 2.0**-9]], np.float32))
    squared = geometry.pairwise_squared_distance(rows, rows)
    a, b = 2.0**-20, 2.0**-18
    floor = geometry.SQUARED_DISTANCE_FLOOR
    np.testing.assert_allclose(squared, [[floor, a, b], [a, floor, a + b], [b, a + b, floor]], rtol=1e-6)
    # The form that is avoided does lose them, so the case above tells the two apart.
    norm = jnp.sum(rows * rows, axis=1)
    expanded = norm[:, None] + norm[None, :] - 2 * jnp.matmul(rows, rows.T, precision="highest")
    assert float(jnp.max(jnp.abs(expanded - squared))) > 1e-3


def test_pairwise_distances_store_no_differences() -> None:
    a, b, width = 64, 96, 128
    compiled = (
        jax.jit(geometry.pairwise_squared_distance)
        .lower(jax.ShapeDtypeStruct((a, width), jnp.float32), jax.ShapeDtypeStruct((b, width), jnp.float32))
        .compile()
    )
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < a * b * width  # a quarter of the differences' size


def test_chosen_distances_have_finite_gradients_at_and_near_zero() -> None:
    a = jnp.asarray([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    b = jnp.asarray([[0.0, 0.0], [1.0, 2.0 + 1e-30], [1.0, 2.0]])
    index = jnp.asarray([2, 1, 0]), jnp.asarray([0, 0, 0])
    near, far = geometry.chosen_distances(a, b, *index)
    np.testing.assert_allclose(near, [1e-6, 1e-6, 5.0], rtol=1e-6)
    np.testing.assert_allclose(far, [5**0.5, 5**0.5, 5.0], rtol=1e-6)
    first = jax.jit(jax.grad(lambda a, b: jnp.sum(geometry.chosen_distances(a, b, *index)[0]), argnums=(0, 1)))
    np.testing.assert_allclose(first(a, b)[0], [[0.0, 0.0], [0.0, 0.0], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(first(a, b)[1], [[-0.6, -0.8], [0.0, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_unit_rows_of_zeros_stay_zero_with_zero_gradient() -> None:
    rows = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]])
    np.testing.assert_allclose(jax.jit(geometry.unit_rows)(rows), [[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(geometry.unit_rows(x)[:, 0])))(rows)
    np.testing.assert_allclose(gradient, [[0.128, -0.096], [0.0, 0.0], [0.0, 0.0]], rtol=1e-5)


def test_loss_dtype_is_at_least_float32() -> None:
    half, single = jnp.zeros(1, jnp.bfloat16), jnp.zeros(1, jnp.float32)
    assert geometry.loss_dtype(half) == jnp.float32
    assert geometry.loss_dtype(half, single) == jnp.float32
    with jax.enable_x64(True):
        assert geometry.loss_dtype(half, jnp.zeros(1, jnp.float64)) == jnp.float64


def test_group_spread_is_the_root_mean_square_around_each_groups_mean() -> None:
    rng = np.random.default_rng(0)
    rows, group = rng.normal(3.0, 2.0, (40, 6)), np.arange(40) % 3
    valid = rng.random(40) < 0.8
    rows[~valid] = np.nan
    group[valid & (group == 1)] = 4  # group 1 is empty now, 3 always was
    want = np.ones(5)
    for g in (0, 2, 4):
        mine = rows[valid & (group == g)]
        want[g] = np.sqrt(np.mean((mine - mine.mean(axis=0)) ** 2))
    got = geometry.group_spread(jnp.asarray(rows), jnp.asarray(group), jnp.asarray(valid), 5)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_group_spread_takes_away_the_gain_from_shrinking() -> None:
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.float32)
    group, valid = jnp.zeros(8, jnp.int32), jnp.ones(8, bool)

    def distance(scale: jax.Array) -> jax.Array:
        scaled = scale * rows
        scaled = scaled / geometry.group_spread(scaled, group, valid, 1)[group][:, None]
        return jnp.sum(geometry.chosen_distances(scaled[:4], scaled[4:], jnp.arange(4))[0])

    value, slope = jax.value_and_grad(distance)(jnp.float32(0.01))
    np.testing.assert_allclose(value, distance(jnp.float32(1.0)), rtol=1e-5)
    assert abs(float(slope)) < 1e-3 * float(value) / 0.01  # without the unit it is value / 0.01


def test_group_spread_of_coinciding_rows_is_one_with_a_finite_gradient() -> None:
    rows, group, valid = jnp.ones((4, 3)), jnp.zeros(4, jnp.int32), jnp.ones(4, bool)
    value, gradient = jax.value_and_grad(lambda x: geometry.group_spread(x, group, valid, 1)[0])(rows)
    assert float(value) == 1.0
    np.testing.assert_array_equal(gradient, np.zeros((4, 3)))
