"""Drawing of hard negatives within a block, and the two-way loss of the pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.losses.matching import draw_negatives, matching_loss


def projections(blocks=2, rows=4, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, blocks, rows, width)).astype(np.float32)


def test_negatives_are_other_people_of_the_same_block():
    image, text = projections(rows=6)
    identity = np.array([[1, 1, 2, 3, 3, 4], [7, 8, 9, 7, 8, 9]], np.int32)
    valid = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], bool)
    for seed in range(20):
        found = draw_negatives(jax.random.key(seed), *map(jnp.asarray, (image, text, identity, valid)), 0.5)
        for index in (found.image, found.text):
            drawn = np.take_along_axis(identity, np.asarray(index), axis=1)
            assert np.all((drawn != identity)[valid])
            assert np.all(np.take_along_axis(valid, np.asarray(index), axis=1)[valid])
        np.testing.assert_array_equal(found.found, valid)


def test_a_block_of_one_person_has_no_negative():
    image, text = projections(rows=3)
    identity = jnp.array([[5, 5, 5], [5, 5, 6]], jnp.int32)
    found = draw_negatives(jax.random.key(0), jnp.asarray(image), jnp.asarray(text), identity, identity > 0, 0.1)
    np.testing.assert_array_equal(found.found, [[False] * 3, [True] * 3])


def test_negatives_come_in_proportion_to_the_softmax():
    """One row and three candidates of cosines .8, 0 and -.6 at temperature 1: shares worked out by hand."""
    text = np.zeros((1, 4, 2), np.float32)
    text[0] = [[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]]
    image = np.tile(np.array([[[1.0, 0.0]]], np.float32), (1, 4, 1))
    identity = jnp.arange(4, dtype=jnp.int32)[None]
    draws = 4000
    keys = jax.random.split(jax.random.key(1), draws)
    drawn = jax.vmap(
        lambda key: draw_negatives(key, jnp.asarray(image), jnp.asarray(text), identity, identity >= 0, 1.0).text[0, 0]
    )(keys)
    expected = np.exp([0.8, 0.0, -0.6]) / np.exp([0.8, 0.0, -0.6]).sum()
    share = np.bincount(np.asarray(drawn), minlength=4) / draws
    assert share[0] == 0
    np.testing.assert_allclose(share[1:], expected, atol=4 * np.sqrt(0.25 / draws))


def test_which_image_goes_with_a_caption_follows_the_image_side():
    """Image 1 is all but equal to caption 0, caption 2 to image 0."""
    image = np.array([[[0, 0, 1], [1, 0.01, 0], [0, 0, -1]]], np.float32)
    text = np.array([[[1, 0, 0], [0, 1, 0], [0, 0.01, 1]]], np.float32)
    identity = jnp.arange(3, dtype=jnp.int32)[None]
    found = draw_negatives(jax.random.key(3), jnp.asarray(image), jnp.asarray(text), identity, identity >= 0, 0.01)
    assert int(found.image[0, 0]) == 1
    assert int(found.text[0, 0]) == 2


def test_the_loss_is_the_mean_over_the_pairs_that_count():
    logits = np.array([[[0.0, 2.0], [1.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [0.0, 5.0], [0.0, 5.0]]], np.float32)
    matched = jnp.array([True, False, False])
    counted = jnp.array([[True, True, True], [True, False, False]])
    loss, right = matching_loss(jnp.asarray(logits), matched, counted)
    # -log softmax: log(1+e^-2) for the pair, log(1+e^-1) and log(1+e^3) for the negatives; log 2 for the lone tie.
    first = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)) + np.log1p(np.exp(3))) / 3
    np.testing.assert_allclose(loss, [first, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(right, [2 / 3, 0], rtol=1e-6)


def test_a_row_without_a_pair_has_no_loss_and_no_gradient():
    logits = jnp.full((1, 3, 2), 1e30)
    loss, grad = jax.value_and_grad(
        lambda x: matching_loss(x, jnp.array([True, False, False]), jnp.zeros((1, 3), bool))[0].sum()
    )(logits)
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


def test_drawing_passes_no_gradient():
    image, text = map(jnp.asarray, projections())
    identity = jnp.tile(jnp.arange(4, dtype=jnp.int32), (2, 1))

    def value(x):
        found = draw_negatives(jax.random.key(0), x, text, identity, identity >= 0, 0.1)
        return jnp.take_along_axis(x, found.image[..., None], axis=1).sum()

    grad = jax.grad(value)(image)
    assert grad.sum() == pytest.approx(8 * 5)  # each row's pick once, nothing through the similarities
