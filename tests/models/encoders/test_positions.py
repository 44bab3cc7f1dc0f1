"""Resized position grids: by hand, and what every interpolation must keep. Against torch: tests/parity/test_vit.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irm_jax.models.encoders import positions

sizes = st.integers(1, 30)


def test_bilinear_by_hand():
    """Two samples to four: centres at -1/4, 1/4, 3/4, 5/4 of the old ones, the outer two beyond the border."""
    np.testing.assert_allclose(positions.weights(2, 4, "bilinear"), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_bicubic_by_hand():
    """Four samples to two: both centres half way between two, where Keys' kernel of -3/4 is (-3, 19, 19, -3) / 32."""
    edge, middle = -3 / 32, 19 / 32
    expected = [[edge + middle, middle, edge, 0], [0, edge, middle, middle + edge]]
    np.testing.assert_allclose(positions.weights(4, 2, "bicubic"), expected, atol=1e-12)


@given(sizes, sizes, st.sampled_from(positions.METHODS))
@settings(deadline=None)
def test_weights_sum_to_one_and_are_symmetric(old, new, method):
    weights = positions.weights(old, new, method)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)


def test_the_same_size_is_the_same_array():
    grid = np.random.default_rng(0).normal(size=(1, 4, 3, 5)).astype(np.float32)
    assert positions.resize(grid, (4, 3), "bicubic") is grid
    assert positions.resize(grid, (8, 2), "bilinear").shape == (1, 8, 2, 5)
    with pytest.raises(ValueError, match="bilinear, bicubic, bicubic_antialias"):
        positions.resize(grid, (4, 4), "nearest")
