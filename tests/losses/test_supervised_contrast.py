"""Supervised contrast against hand-made answers and a slow NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from irm_jax.losses.supervised_contrast import supervised_contrast

jitted = jax.jit(supervised_contrast, static_argnums=4)


def twin(anchors, candidates, positive, negative, temperature):
    loss = np.zeros(len(anchors))
    for a in range(len(anchors)):
        s = [
            float(np.dot(anchors[a], row) / np.linalg.norm(anchors[a]) / np.linalg.norm(row)) / temperature
            for row in candidates
        ]
        against = sum(np.exp(s[n]) for n in np.flatnonzero(negative[a]))
        each = [-np.log(np.exp(s[p]) / (np.exp(s[p]) + against)) for p in np.flatnonzero(positive[a])]
        loss[a] = np.mean(each) if each else 0.0
    return loss


def test_answers_made_by_hand():
    rows = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    none = jnp.zeros((1, 3), bool)
    same, others = none.at[0, 2].set(True), none.at[0, 1].set(True)
    # cosine 1 to the positive and 0 to the negative, at temperature 1: -log(e / (e + 1)).
    np.testing.assert_allclose(jitted(rows[:1], rows, same, others, 1.0), [np.log1p(np.exp(-1.0))], rtol=1e-6)
    assert jitted(rows[:1], rows, none, others, 1.0) == 0, "no positive"
    assert jitted(rows[:1], rows, same, none, 1.0) == 0, "no negative"


def test_it_agrees_with_a_slow_twin():
    rng = np.random.default_rng(0)
    for _ in range(20):
        anchors, candidates = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
        role = rng.integers(0, 3, (5, 9))  # neither, positive, negative
        found = jitted(*(jnp.asarray(x, jnp.float32) for x in (anchors, candidates)), role == 1, role == 2, 0.2)
        np.testing.assert_allclose(found, twin(anchors, candidates, role == 1, role == 2, 0.2), rtol=2e-5, atol=1e-6)


def test_padding_reaches_no_value_and_gradients_are_right():
    rng = np.random.default_rng(1)
    anchors, candidates = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (2, 4))
    positive, negative = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    positive[0, 0], negative[0, 1:3], negative[1, 1:3] = True, True, True

    def loss(a, b):
        return jnp.sum(supervised_contrast(a, b, positive, negative, 0.5))

    check_grads(loss, (anchors, candidates), order=1, modes=["rev"], atol=2e-3, rtol=2e-3)
    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(anchors, candidates.at[3].set(0.0))
    assert all(np.all(np.isfinite(each)) for each in grad)
    assert not np.any(grad[0][1]), "an anchor without a positive"
    assert not np.any(grad[1][3]), "a row that is neither"
