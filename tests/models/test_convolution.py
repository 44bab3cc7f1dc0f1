"""The convolution of stems: its values and gradients beside JAX's own, and what a CPU is given inside a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.models.convolution import CHANNELS_LAST, convolution
from irm_jax.models.plain_forms import plain_forms

CASES = [
    ((2, 8, 6, 3), (3, 3), (2, 2), "SAME"),
    ((2, 7, 5, 3), (3, 3), (2, 2), "SAME"),
    ((2, 8, 4, 3), (3, 3), (1, 1), "SAME"),
    ((2, 11, 9, 3), (4, 4), (4, 4), "VALID"),
    ((2, 11, 9, 3), (4, 4), (3, 2), "VALID"),
    ((2, 6, 6, 3), (3, 3), (2, 1), ((1, 0), (2, 1))),
]
"""Shape of the images, sides of the kernel, strides, padding; some leave the last rows and columns out."""


@pytest.mark.parametrize(("shape", "sides", "strides", "padding"), CASES)
def test_values_and_gradients_are_jaxs_own(shape, sides, strides, padding):
    random = np.random.default_rng(0)
    x, kernel = random.standard_normal(shape), random.standard_normal((*sides, shape[-1], 5))

    def value_and_gradients(convolve, x, kernel):
        out, back = jax.vjp(convolve, x, kernel)
        return out, *back(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    def ours(x, kernel):
        return convolution(x, kernel, strides, padding)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST)

    with jax.enable_x64(True):
        arrays = jnp.asarray(x), jnp.asarray(kernel)
        found = jax.jit(lambda *of: value_and_gradients(ours, *of))(*arrays)
        expected = jax.jit(lambda *of: value_and_gradients(plain, *of))(*arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def over_batches(x, kernel):
    def one(total, x):
        gradients = jax.grad(lambda *of: convolution(*of, (2, 2), "SAME").sum(), argnums=(0, 1))(x, kernel)
        return total + gradients[1], gradients[0]

    return jax.lax.scan(one, jnp.zeros_like(kernel), x)


def test_a_loop_on_a_cpu_has_fast_convolutions_alone():
    """XLA:CPU has a fast routine for channels last, and moves the axes itself outside of loops only."""
    arrays = jnp.ones((2, 4, 8, 8, 3)), jnp.ones((3, 3, 3, 6))
    layouts = re.findall(r"convolution\(.*dim_labels=(\S+?),", jax.jit(over_batches).lower(*arrays).compile().as_text())
    assert layouts == ["b01f_01io->b01f"] * 2


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_have_jaxs_gradients(platform):
    lowered = jax.jit(over_batches).trace(jnp.ones((2, 4, 8, 8, 3)), jnp.ones((3, 3, 3, 6)))
    with plain_forms():
        plain = jax.jit(lambda *of: over_batches(*of)).trace(jnp.ones((2, 4, 8, 8, 3)), jnp.ones((3, 3, 3, 6)))
    layouts, expected = (
        sorted(re.findall(r"dim_numbers = (\S+)", each.lower(lowering_platforms=(platform,)).as_text()))
        for each in (lowered, plain)
    )
    assert len(layouts) == 2
    assert layouts == expected


def test_what_a_stem_does_not_ask_for_is_refused():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    for option in ({"rhs_dilation": (2, 2)}, {"feature_group_count": 2}, {"precision": "highest"}):
        with pytest.raises(ValueError, match="without dilations, groups"):
            convolution(x, kernel, (1, 1), "SAME", **option)
