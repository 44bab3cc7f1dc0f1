"""The schedule by hand, and the weight-decay mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax import optimizer


def test_schedule_by_hand():
    rate = optimizer.schedule(2.0, steps=100, warmup_steps=10)
    assert float(rate(jnp.int32(0))) == pytest.approx(0.02)
    assert float(rate(jnp.int32(5))) == pytest.approx(2 * 0.505 * (1 + np.cos(np.pi * 0.05)) / 2)
    assert float(rate(jnp.int32(10))) == pytest.approx(2 * (1 + np.cos(np.pi * 0.1)) / 2)
    assert float(rate(jnp.int32(50))) == pytest.approx(1.0)
    assert float(rate(jnp.int32(100))) == pytest.approx(0.0, abs=1e-6)


def test_decay_mask_by_path():
    params = {"head": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}
    assert optimizer.decay_mask(params, "") == {"head": {"kernel": True, "bias": True}, "norm": {"scale": True}}
    assert optimizer.decay_mask(params, r"(bias|scale)$") == {
        "head": {"kernel": True, "bias": False}, "norm": {"scale": False},
    }  # fmt: skip


def test_clipping_bounds_the_update_of_sgd_like_steps():
    settings = {
        "learning_rate": 1.0, "steps": 10, "warmup_steps": 0, "weight_decay": 0.0, "no_decay": "", "beta1": 0.0,
        "beta2": 0.0,
    }  # fmt: skip
    params = {"w": jnp.ones(4)}
    for clip, seen in ((0.0, 100.0), (1.0, 1.0)):
        chain = optimizer.make_optimizer(**settings, clip_norm=clip)
        state = chain.init(params)
        with jax.numpy_dtype_promotion("standard"):  # as the training step runs optax
            _, after = chain.update({"w": jnp.full(4, 50.0)}, state, params)
        moments = after[1][0]
        assert float(jnp.sqrt(jnp.sum(moments.mu["w"] ** 2))) == pytest.approx(seen, rel=1e-5)
