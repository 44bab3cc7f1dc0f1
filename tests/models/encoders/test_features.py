"""Normalised pixels."""

import jax.numpy as jnp
import numpy as np

from irm_jax.models.encoders import features


def test_every_pixel_value_stays_apart_in_bfloat16():
    values = jnp.arange(256, dtype=jnp.uint8)[:, None, None].repeat(3, axis=2)
    found = features.normalize(values, features.IMAGENET_MEAN, features.IMAGENET_STD, jnp.bfloat16)
    exact = features.normalize(values, features.IMAGENET_MEAN, features.IMAGENET_STD, jnp.float32)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(exact.astype(jnp.bfloat16), np.float32))
    assert [len(np.unique(np.asarray(found[..., c], np.float32))) for c in range(3)] == [256] * 3
