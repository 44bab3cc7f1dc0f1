"""Adaptive triplet loss against a slow NumPy twin, hand-made answers and the plain batch-hard loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from irm_jax.losses.adaptive_triplet import AdaptiveTripletAux, adaptive_triplet_loss
from irm_jax.losses.geometry import LabelledRows
from irm_jax.losses.instruction_similarity import similarity

B = 16


def of_columns(features: Any, identity: Any, dataset: Any, valid: Any, *others: Any) -> Any:
    """The loss of rows that are given as one array per column, then the loss's other arguments."""
    return adaptive_triplet_loss(LabelledRows(features, identity, dataset, valid), *others)


jitted = jax.jit(of_columns)
value_and_gradient = jax.jit(jax.value_and_grad(lambda *arguments: jnp.sum(of_columns(*arguments)[0])))


def twin(
    features: np.ndarray,
    identity: np.ndarray,
    dataset: np.ndarray,
    valid: np.ndarray,
    rho: np.ndarray,
    margin: float = 0.3,
    rank_weight: float = 0.1,
) -> Any:
    """The formula of docs/method.md, one anchor at a time; also counts the cases that occur."""
    n_rows = len(features)
    loss = np.zeros(n_rows)
    aux: Any = AdaptiveTripletAux(np.zeros(n_rows, bool), np.zeros(n_rows, bool), np.zeros(n_rows))
    met = dict.fromkeys(("single", "no_negative", "tie", "p1_agrees", "p2_agrees", "equal", "self_is_p2"), 0)
    wide = features.astype(np.float64)
    for i in np.flatnonzero(valid):
        d = np.sqrt(np.maximum(np.sum((wide[i] - wide) ** 2, axis=1), 1e-12)).tolist()
        same = [j for j in range(n_rows) if valid[j] and identity[j] == identity[i]]
        other = [j for j in range(n_rows) if valid[j] and identity[j] != identity[i] and dataset[j] == dataset[i]]
        met["single"] += len(same) == 1
        met["no_negative"] += not other
        if len(same) < 2 or not other:
            aux.dropped[i] = True
            continue
        p1, p2 = sorted(same, key=lambda j: -d[j])[:2]  # a stable sort: ties keep the lowest row first
        n = min(other, key=lambda j: d[j])
        b1, b2 = float(rho[i, p1]), float(rho[i, p2])
        rank = 0.0
        if b1 > b2:
            rank = max(0.0, d[p1] - d[p2] + margin * (b1 - b2))
        elif b1 < b2:
            rank = max(0.0, d[p2] - d[p1] + margin * (b2 - b1))
        hard = d[p1] - d[n] + margin * b1
        loss[i] = max(0.0, hard) + rank_weight * rank
        aux.active[i] = hard > 0
        aux.beta_1[i] = b1
        met["tie"] += d[p1] == d[p2] or sum(d[j] == d[n] for j in other) > 1
        met["p1_agrees"] += b1 > b2
        met["p2_agrees"] += b1 < b2
        met["equal"] += b1 == b2
        met["self_is_p2"] += p2 == i
    return loss, aux, met


def tied_batch(rng: np.random.Generator) -> Any:
    """Small integer features (many equal distances), few or many people, one to three data sets, some padding."""
    people = int(rng.choice([1, 2, 3, 6, 20]))
    datasets = int(rng.integers(1, 4))
    identity = rng.integers(0, people, B).astype(np.int32)
    # Half the time a person belongs to one data set, else the same person appears in several.
    dataset = identity % datasets if rng.random() < 0.5 else rng.integers(0, datasets, B)
    return (
        rng.integers(-1, 2, (B, 2)).astype(np.float32),
        identity,
        dataset.astype(np.int32),
        rng.random(B) < rng.choice([0.3, 0.8, 1.0]),
        rng.choice(np.array([-0.5, 0.0, 0.25, 0.5, 1.0], np.float32), (B, B)),
    )


def smooth_batch(seed: int) -> Any:
    """Continuous features without ties: people of 4 rows, two data sets, instructions shared by pairs of rows."""
    rng = np.random.default_rng(seed)
    identity = (np.arange(B) // 4).astype(np.int32)
    key = np.arange(B) // 2
    rho = np.clip(rng.normal(size=(B // 2, B // 2)), -1, 1)[key][:, key].astype(np.float32)
    np.fill_diagonal(rho, 1.0)
    return (
        rng.normal(size=(B, 6)).astype(np.float32),
        identity,
        (identity % 2).astype(np.int32),
        np.ones(B, bool),
        rho,
    )


def test_equals_the_slow_twin_on_1000_batches() -> None:
    rng = np.random.default_rng(0)
    batches = [tied_batch(rng) for _ in range(1000)]
    losses, auxes = jax.jit(jax.vmap(of_columns))(*map(np.stack, zip(*batches, strict=True)))
    total: dict[str, int] = {}
    for k, one in enumerate(batches):
        expected, expected_aux, met = twin(*one)
        np.testing.assert_allclose(losses[k], expected, atol=1e-6)
        for name, value, wanted in zip(auxes._fields, auxes, expected_aux, strict=True):
            np.testing.assert_allclose(value[k], wanted, atol=1e-6, err_msg=name)
        total = {name: total.get(name, 0) + count for name, count in met.items()}
    assert all(count > 100 for count in total.values()), total


def test_beta_1_is_the_plain_batch_hard_loss() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        features, identity, dataset, valid, rho = tied_batch(rng)
        features += rng.normal(size=features.shape).astype(np.float32)
        dataset[:], valid[:] = 0, True
        squared = np.sum((features[:, None].astype(np.float64) - features[None]) ** 2, axis=-1)
        d = np.sqrt(np.maximum(squared, 1e-12))
        same = identity[:, None] == identity[None]
        farthest = np.where(same, d, -np.inf).max(axis=1)
        nearest = np.where(same, np.inf, d).min(axis=1)
        plain = np.where(same.sum(axis=1) > 1, np.maximum(farthest - nearest + 0.3, 0.0), 0.0)
        loss, _ = jitted(features, identity, dataset, valid, np.ones_like(rho))
        np.testing.assert_allclose(loss, plain, atol=2e-6)


@pytest.mark.parametrize(
    ("beta_near", "beta_far", "expected"),
    [
        (0.5, 0.25, (3 - 3.05 + 0.3 * 0.25) + 0.1 * 0.0),  # the nearer agrees more, and is nearer by enough
        (0.25, 0.5, (3 - 3.05 + 0.3 * 0.5) + 0.1 * (3 - 2 + 0.3 * 0.25)),  # the farther agrees more: it must come
        (0.5, 0.5, (3 - 3.05 + 0.3 * 0.5)),
        (1.0, 0.0, 0.0),  # no margin left: 3 - 3.05 < 0
    ],
)
def test_hand_made(beta_near: float, beta_far: float, expected: float) -> None:
    features = jnp.asarray([[0.0], [2.0], [3.0], [3.05]])
    identity = jnp.asarray([0, 0, 0, 1])
    rho = jnp.ones((4, 4)).at[0, 1].set(beta_near).at[0, 2].set(beta_far)
    loss, aux = jitted(features, identity, jnp.zeros(4, jnp.int32), jnp.ones(4, bool), rho)
    np.testing.assert_allclose(loss[0], expected, atol=1e-6)
    np.testing.assert_allclose(aux.beta_1[0], beta_far)
    np.testing.assert_array_equal(aux.dropped, [False, False, False, True])  # row 3 is alone


def test_margin_and_rank_weight_are_used() -> None:
    features, identity, dataset, valid, rho = smooth_batch(2)
    for margin, rank_weight in ((0.0, 0.0), (1.5, 0.7)):
        loss, _ = jitted(features, identity, dataset, valid, rho, margin, rank_weight)
        np.testing.assert_allclose(
            loss, twin(features, identity, dataset, valid, rho, margin, rank_weight)[0], atol=2e-6
        )


def test_people_of_another_data_set_are_no_negatives() -> None:
    features, identity, _, valid, rho = smooth_batch(3)
    loss, aux = jitted(features, identity, identity, valid, rho)
    np.testing.assert_array_equal(loss, np.zeros(B))
    assert np.all(aux.dropped)


def test_numerical_gradients() -> None:
    with jax.enable_x64(True):
        for seed in range(3):
            features, identity, dataset, valid, rho = smooth_batch(seed)
            valid[5] = False
            check_grads(
                lambda x: jitted(x, identity, dataset, valid, rho, 1.0)[0],  # noqa: B023
                (jnp.asarray(features, jnp.float64),),
                order=1,
                modes=["rev"],
            )


def test_no_gradient_through_the_similarity() -> None:
    features, identity, dataset, valid, rho = smooth_batch(4)
    gradient = jax.grad(lambda r: jnp.sum(jitted(features, identity, dataset, valid, r)[0]))(rho)
    np.testing.assert_array_equal(gradient, np.zeros((B, B)))


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e-7])
def test_finite_gradients_at_zero_distance(scale: float) -> None:
    features, identity, dataset, valid, rho = smooth_batch(5)
    features = 1.0 + np.float32(scale) * features
    loss, _ = jitted(features, identity, dataset, valid, np.ones_like(rho))
    np.testing.assert_allclose(loss, np.full(B, 0.3), atol=1e-5)
    _, gradient = value_and_gradient(features, identity, dataset, valid, rho)
    assert np.isfinite(gradient).all()


def test_finite_gradients_with_some_duplicates() -> None:
    features, identity, dataset, valid, rho = smooth_batch(6)
    features[1] = features[0]  # the same image twice
    features[8] = features[2]  # another person, the same data set, the same picture
    loss, _ = jitted(features, identity, dataset, valid, rho)
    np.testing.assert_allclose(loss, twin(features, identity, dataset, valid, rho)[0], atol=2e-6)
    _, gradient = value_and_gradient(features, identity, dataset, valid, rho)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_padding_reaches_nothing() -> None:
    features, identity, dataset, valid, rho = smooth_batch(7)
    features[::3], rho[::3], rho[:, ::3], valid[::3] = np.nan, np.nan, np.nan, False
    value, gradient = value_and_gradient(features, identity, dataset, valid, rho)
    k = np.flatnonzero(valid)
    expected, expected_gradient = value_and_gradient(features[k], identity[k], dataset[k], valid[k], rho[k][:, k])
    assert float(expected) > 0
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[k], expected_gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient[~valid], np.zeros_like(features[~valid]))


def test_small_distances_far_from_the_origin() -> None:
    features, *rest = smooth_batch(8)
    features = (1000 + features * 0.01).astype(np.float32)  # |x|^2 is 1e10 times the squared distances
    loss, _ = jitted(features, *rest)
    np.testing.assert_allclose(loss, twin(features, *rest)[0], atol=1e-6)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    features, *rest = smooth_batch(9)
    half = jnp.asarray(features).astype(jnp.bfloat16)
    loss, aux = jitted(half, *rest)
    assert loss.dtype == aux.beta_1.dtype == jnp.float32
    np.testing.assert_allclose(loss, twin(np.asarray(half, np.float32), *rest)[0], atol=2e-6)


def test_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None]) -> None:
    rows, width = 64, 48
    rng = np.random.default_rng(10)
    identity = (np.arange(rows) // 4).astype(np.int32)
    key = np.arange(rows, dtype=np.int32) // 2
    instruction = rng.normal(size=(rows // 2, 24))[key]
    features = rng.normal(size=(rows, width))
    features[1], features[9] = features[0], features[8]
    small = (identity, (identity % 2).astype(np.int32), rng.random(rows) < 0.95, key)

    def function(x: jax.Array, u: jax.Array, *small: jax.Array) -> Any:
        identity, dataset, valid, key = small
        rho = similarity(u, key, dataset, jnp.zeros((2, u.shape[1]), u.dtype))

        def total(x: jax.Array) -> tuple:
            loss, aux = of_columns(x, identity, dataset, valid, rho)
            return jnp.sum(loss), (loss, aux)

        (value, aux), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return value, aux, gradient

    assert_same_when_sharded(function, (features.astype(np.float32), instruction.astype(np.float32), *small), 1e-6)
    with jax.enable_x64(True):
        assert_same_when_sharded(function, (features, instruction, *small), 1e-12)
