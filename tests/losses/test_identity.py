"""Identity loss against hand-made answers and a slow NumPy twin."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from irm_jax.losses.identity import identity_loss

B, D, I = 24, 5, 16  # noqa: E741 (the letters of the design)
jitted = jax.jit(identity_loss)
gradients = jax.jit(jax.grad(lambda *arguments: jnp.sum(identity_loss(*arguments)[0]), argnums=(0, 1)))


def twin(features: np.ndarray, weight: np.ndarray, identity: np.ndarray, allowed: np.ndarray) -> tuple:
    losses, correct = np.zeros(len(features)), np.zeros(len(features), bool)
    for i, x in enumerate(features.astype(np.float64)):
        columns = np.flatnonzero(allowed[i])
        if identity[i] not in columns:
            continue
        logits = x @ weight[:, columns].astype(np.float64)
        own = logits[columns == identity[i]][0]
        losses[i] = np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - own
        correct[i] = columns[np.argmax(logits)] == identity[i]
    return losses, correct


def batch(seed: int, integers: bool = False) -> Any:
    """Three data sets that own columns 0-4, 4-9 (4 is shared) and 10-13; 14 and 15 are padding."""
    rng = np.random.default_rng(seed)
    members = np.zeros((3, I), bool)
    members[0, 0:5] = members[1, 4:10] = members[2, 10:14] = True
    dataset = rng.integers(0, 3, B)
    identity = np.array([rng.choice(np.flatnonzero(members[d])) for d in dataset], np.int32)
    features, weight = rng.normal(size=(B, D)), rng.normal(size=(D, I))
    if integers:  # many equal logits
        features, weight = np.round(features), np.round(weight)
    return features.astype(np.float32), weight.astype(np.float32), identity, members[dataset]


def test_equals_the_slow_twin() -> None:
    ties = 0
    for seed in range(200):
        features, weight, identity, allowed = batch(seed, integers=seed % 2 == 0)
        if seed % 3 == 0:
            identity[::5] = -1
        loss, correct = jitted(features, weight, identity, allowed)
        expected_loss, expected_correct = twin(features, weight, identity, allowed)
        np.testing.assert_allclose(loss, expected_loss, atol=2e-6)
        np.testing.assert_array_equal(correct, expected_correct)
        logits = np.where(allowed, features @ weight, -np.inf)
        best = np.sort(logits, axis=1)
        ties += int(np.sum(best[:, -1] == best[:, -2]))
    assert ties > 100


def test_hand_made() -> None:
    features = jnp.asarray([[0.0], [np.log(3.0)], [1.0]], jnp.float32)
    weight = jnp.asarray([[1.0, 0.0, 50.0]], jnp.float32)
    allowed = jnp.asarray([[True, True, False], [True, True, False], [False, False, True]])
    loss, correct = jitted(features, weight, jnp.asarray([1, 0, 2]), allowed)
    np.testing.assert_allclose(loss, [np.log(2.0), np.log(4.0 / 3.0), 0.0], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(correct, [False, True, True])  # row 0 ties with the lower column 0


def test_huge_logits_stay_finite() -> None:
    features, weight, identity, allowed = batch(0)
    loss, _ = jitted(features * 1e6, weight * 1e6, identity, allowed)
    gradient = gradients(features * 1e6, weight * 1e6, identity, allowed)[0]
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()


def test_only_the_own_data_set_gets_a_gradient() -> None:
    features, weight, identity, allowed = batch(1)
    allowed[:] = allowed[0]
    identity[:] = identity[0]
    gradient = gradients(features, weight, identity, allowed)[1]
    np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=0), allowed[0])


@pytest.mark.parametrize("why", ["identity -1", "identity of another data set", "no identity allowed"])
def test_row_without_target_contributes_nothing(why: str) -> None:
    features, weight, identity, allowed = batch(2)
    features[3] = np.nan
    if why == "identity -1":
        identity[3] = -1
    elif why == "no identity allowed":
        allowed[3] = False
    else:
        identity[3] = np.flatnonzero(~allowed[3])[0]
    loss, correct = jitted(features, weight, identity, allowed)
    assert float(loss[3]) == 0.0
    assert not bool(correct[3])
    to_features, to_weight = gradients(features, weight, identity, allowed)
    np.testing.assert_array_equal(to_features[3], np.zeros(D))
    clean = features.copy()
    clean[3] = 0.0  # a real row of zeros would give the weight no gradient either
    np.testing.assert_array_equal(to_weight, gradients(clean, weight, identity, allowed)[1])
    assert np.abs(to_weight).max() > 0


def test_non_finite_features_of_a_real_row_are_not_hidden() -> None:
    features, weight, identity, allowed = batch(3)
    features[3] = np.nan
    loss, correct = jitted(features, weight, identity, allowed)
    np.testing.assert_array_equal(np.isnan(loss), np.arange(B) == 3)
    assert not bool(correct[3])


def test_half_precision_inputs_are_computed_in_float32() -> None:
    features, weight, identity, allowed = batch(4)
    half = jnp.asarray(features).astype(jnp.bfloat16)
    loss, _ = jitted(half, weight, identity, allowed)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, twin(np.asarray(half, np.float32), weight, identity, allowed)[0], atol=2e-6)


def test_numerical_gradients() -> None:
    with jax.enable_x64(True):
        features, weight, identity, allowed = batch(5)
        identity[0] = -1
        arguments = (jnp.asarray(features, jnp.float64), jnp.asarray(weight, jnp.float64))
        check_grads(lambda x, w: jitted(x, w, identity, allowed)[0], arguments, order=1, modes=["rev"])


@pytest.mark.parametrize("columns", [P(), P(None, "data")], ids=["replicated", "sharded classes"])
def test_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None], columns: P) -> None:
    def function(features: jax.Array, weight: jax.Array, *rest: jax.Array) -> Any:
        def total(features: jax.Array, weight: jax.Array) -> Any:
            loss, correct = identity_loss(features, weight, *rest)
            return jnp.sum(loss), (loss, correct)

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(features, weight)

    specs = (P("data"), columns, P("data"), P("data"))
    features, weight, identity, allowed = batch(6)
    assert_same_when_sharded(function, (features, weight, identity, allowed), 1e-6, specs)
    with jax.enable_x64(True):
        wide = (features.astype(np.float64), weight.astype(np.float64), identity, allowed)
        assert_same_when_sharded(function, wide, 1e-12, specs)
