"""Instruction similarity and its running mean against hand-made answers and slow twins."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from irm_jax.losses.instruction_similarity import InstructionMean, current_mean, init_mean, similarity, update_mean

B, E, KINDS = 24, 6, 2
compare = jax.jit(similarity, static_argnames="mode")
update = jax.jit(update_mean)
mean_of = jax.jit(current_mean)


def batch(seed: int, rows: int = B) -> Any:
    """Rows of both kinds; keys 0-4 occur in both kinds and mean different instructions there."""
    rng = np.random.default_rng(seed)
    key, kind = rng.integers(0, 5, rows).astype(np.int32), rng.integers(0, KINDS, rows).astype(np.int32)
    table = rng.normal(size=(KINDS, 5, E)).astype(np.float32)
    mean = rng.normal(size=(KINDS, E)).astype(np.float32)
    return table[kind, key], key, kind, mean


@pytest.mark.parametrize("mode", ["centered", "raw"])
def test_similarity_equals_the_slow_twin(mode: str) -> None:
    for seed in range(20):
        feature, key, kind, mean = batch(seed)
        rho = compare(feature, key, kind, mean, mode=mode)
        expected = np.ones((B, B))
        for i in range(B):
            for j in range(B):
                if key[i] == key[j] and kind[i] == kind[j]:
                    assert float(rho[i, j]) == 1.0
                    continue
                u, v = feature[i].astype(np.float64), feature[j].astype(np.float64)
                if mode == "centered":
                    u, v = u - mean[kind[i]], v - mean[kind[j]]
                expected[i, j] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        np.testing.assert_allclose(rho, expected, atol=1e-6)
        assert np.abs(rho).max() <= 1.0


def test_hand_made() -> None:
    feature = np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], np.float32)
    key, kind = np.arange(5, dtype=np.int32), np.zeros(5, np.int32)
    key[4] = 3
    rho = compare(feature, key, kind, np.array([[1.0, 1.0]], np.float32))
    np.testing.assert_allclose(
        rho,  # centred: east, north, south, nothing, nothing
        [[1, 0, 0, 0, 0], [0, 1, -1, 0, 0], [0, -1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]],
        atol=1e-6,
    )


def test_rows_of_one_instruction_are_equally_similar_to_the_last_bit() -> None:
    # The rank term of the triplet loss tells > from =. A last-bit difference between the rows of one instruction stands
    # for the columns of a matmul that round differently on another mesh or device.
    feature, key, kind, mean = batch(6)
    rounded = np.nextafter(feature, np.where(np.arange(B)[:, None] % 2 == 0, np.inf, -np.inf).astype(np.float32))
    rho = np.asarray(compare(rounded, key, kind, mean))
    compared = 0
    for k, g in zip(key, kind, strict=True):
        columns = rho[:, (key == k) & (kind == g)]
        compared += columns.shape[1] - 1
        np.testing.assert_array_equal(columns, np.repeat(columns[:, :1], columns.shape[1], axis=1))
    assert compared > B


def test_similarity_has_no_gradient() -> None:
    feature, key, kind, mean = batch(0)
    feature[0] = mean[kind[0]]  # no direction once centred
    gradients = jax.jit(jax.grad(lambda f, m: jnp.sum(similarity(f, key, kind, m)), argnums=(0, 1)))(feature, mean)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_half_precision_features_are_compared_in_float32() -> None:
    feature, key, kind, mean = batch(1)
    half = jnp.asarray(feature).astype(jnp.bfloat16)
    rho = compare(half, key, kind, mean)
    assert rho.dtype == jnp.float32
    np.testing.assert_allclose(rho, compare(half.astype(jnp.float32), key, kind, mean), atol=1e-7)


def test_unknown_mode_is_an_error() -> None:
    feature, key, kind, mean = batch(0)
    with pytest.raises(ValueError, match="'centred' is unknown; use 'centered' or 'raw'"):
        similarity(feature, key, kind, mean, mode="centred")  # type: ignore[arg-type]


def test_first_update_gives_the_batch_mean() -> None:
    feature, _, kind, _ = batch(2)
    valid = np.arange(B) % 3 != 0
    feature[~valid] = np.nan
    state = update(init_mean(KINDS, E), feature, kind, valid, 0.99)
    expected = np.stack([feature[valid & (kind == k)].mean(axis=0) for k in range(KINDS)])
    np.testing.assert_allclose(mean_of(state), expected, atol=1e-5)


def test_updates_equal_the_weighted_mean_of_batch_means() -> None:
    momentum, steps = 0.8, 12
    state = init_mean(KINDS, E)
    weights, means = [], []
    for step in range(steps):
        feature, _, kind, _ = batch(step)
        state = update(state, feature, kind, np.ones(B, bool), momentum)
        weights.append(momentum ** (steps - 1 - step))
        means.append(np.stack([feature[kind == k].mean(axis=0) for k in range(KINDS)]))
    expected = np.einsum("t,tke->ke", np.array(weights) / np.sum(weights), np.stack(means))
    np.testing.assert_allclose(mean_of(state), expected, atol=1e-5)


def test_kind_without_a_row_keeps_its_value() -> None:
    feature, _, kind, _ = batch(3)
    everything = np.ones(B, bool)
    empty = init_mean(KINDS, E)
    np.testing.assert_array_equal(mean_of(empty), np.zeros((KINDS, E)))
    first = update(empty, feature, np.zeros(B, np.int32), everything, 0.9)
    np.testing.assert_array_equal(mean_of(first)[1], np.zeros(E))
    both = update(first, feature + 1, kind, everything, 0.9)
    again = update(both, feature - 1, kind, kind == 0, 0.9)  # kind 1 present, but not valid
    np.testing.assert_array_equal(again.sum[1], both.sum[1])
    np.testing.assert_array_equal(again.weight[1], both.weight[1])
    assert not np.array_equal(again.sum[0], both.sum[0])


def test_mean_has_no_gradient() -> None:
    feature, _, kind, _ = batch(4)
    state = init_mean(KINDS, E)
    gradient = jax.grad(lambda f: jnp.sum(update(state, f, kind, np.ones(B, bool), 0.9).sum))(feature)
    np.testing.assert_array_equal(gradient, np.zeros((B, E)))


def test_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None]) -> None:
    def function(feature: jax.Array, key: jax.Array, kind: jax.Array, *state: jax.Array) -> Any:
        after = update_mean(InstructionMean(*state), feature, kind, key > 0, 0.9)
        return similarity(feature, key, kind, current_mean(after)), after

    feature, key, kind, _ = batch(5, rows=64)
    specs = (P("data"), P("data"), P("data"), P(), P())
    assert_same_when_sharded(function, (feature, key, kind, *init_mean(KINDS, E)), 1e-6, specs)
    with jax.enable_x64(True):
        wide = (feature.astype(np.float64), key, kind, np.zeros((KINDS, E)), np.zeros(KINDS))
        assert_same_when_sharded(function, wide, 1e-12, specs)
