"""Products with keys of a narrower type against float64."""

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.losses.key_products import key_products


def test_narrow_keys_lose_nothing_that_they_had():
    """f32 rows by bfloat16 keys, against float64: as exact as f32 keys of the same values, forward and backward."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((5, 64)).astype(np.float32)
    keys = jnp.asarray(rng.uniform(-0.3, 0.3, (40, 64)), jnp.bfloat16)
    cotangent = rng.standard_normal((5, 40)).astype(np.float32)
    exact = np.asarray(keys, np.float64)
    product, back = jax.vjp(lambda rows: key_products(rows, keys), jnp.asarray(rows))
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, rows.astype(np.float64) @ exact.T, rtol=0, atol=2e-6)
    np.testing.assert_allclose(back(jnp.asarray(cotangent))[0], cotangent.astype(np.float64) @ exact, rtol=0, atol=2e-6)
    rounded = rows.astype(jnp.bfloat16).astype(np.float64) @ exact.T  # what a plain product of bfloat16 would be
    assert np.abs(product - rounded).max() > 1e-3
