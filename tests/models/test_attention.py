"""Attention: every form computes the same numbers, and each is chosen where it is meant to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.models import attention
from irm_jax.models.plain_forms import plain_forms

pytestmark = pytest.mark.usefixtures("quick_programs")


def test_scores_of_bfloat16_are_rounded_once():
    query, key = (jax.random.normal(jax.random.key(n), (2, 3, 5, 16), jnp.bfloat16) for n in (0, 1))
    exact = np.einsum("bhqd,bhkd->bhqk", *(np.asarray(x, np.float64) for x in (query, key)))
    found = attention.attention_scores(query, key)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), exact.astype(jnp.bfloat16).astype(np.float32))
    single = attention.attention_scores(query.astype(jnp.float32), key.astype(jnp.float32))
    np.testing.assert_allclose(single, exact, rtol=1e-6, atol=1e-6)


def test_attention_mixes_values_by_the_softmax_of_scores():
    draw = np.random.default_rng(0)
    scores, value, weight = (draw.normal(size=shape) * 3 for shape in ((2, 3, 4, 5), (2, 3, 5, 6), (2, 3, 4, 6)))
    scores[0, :, :, 2:] = np.finfo(np.float32).min  # padding
    scores[1, 0, 0] = np.finfo(np.float32).min  # nothing may be attended to: the mean

    def softmax_product(scores, value):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), value)

    expected = softmax_product(scores, value)
    np.testing.assert_allclose(expected[1, 0, 0], value[1, 0].mean(0))
    with jax.enable_x64(True):
        arrays = jnp.asarray(scores), jnp.asarray(value)
        np.testing.assert_allclose(attention.attend(*arrays), expected, rtol=1e-12)
        gradients = jax.grad(lambda *x: (weight * attention.attend(*x)).sum(), argnums=(0, 1))(*arrays)
    for _ in range(3):
        way = [draw.normal(size=x.shape) * 1e-5 for x in (scores, value)]
        way[0][scores < -1e30] = 0.0
        ends = [(weight * softmax_product(scores + s * way[0], value + s * way[1])).sum() for s in (1, -1)]
        slope = 2 * sum((np.asarray(g) * w).sum() for g, w in zip(gradients, way, strict=True))
        np.testing.assert_allclose(slope, ends[0] - ends[1], rtol=1e-6)


@pytest.mark.parametrize(("platform", "after"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_attention_divides_after_the_product_on_a_cpu_only(platform, after):
    arrays = jnp.zeros((1, 2, 4, 5)), jnp.zeros((1, 2, 5, 3))
    program = jax.jit(attention.attend).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    assert (program.rindex("stablehlo.divide") > program.rindex("stablehlo.dot_general")) is after


def drawn(dtype, *, queries=5, keys=7):
    shapes = (2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)
    return [jax.random.normal(jax.random.key(n), shape).astype(dtype) for n, shape in enumerate(shapes)]


def value_and_gradients(form, arrays):
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's own code
        loss = lambda *x: (form(*x).astype(jnp.float32) ** 3).sum()  # noqa: E731
        return [np.asarray(x, np.float32) for x in (form(*arrays), *jax.grad(loss, argnums=(0, 1, 2))(*arrays))]


def test_the_fused_form_is_the_plain_one():
    """With "xla" in cuDNN's place, which takes the same arguments: layout, scale and gradients."""
    arrays = drawn(jnp.float32)
    plain = value_and_gradients(lambda *x: attention.mix(*x, None), arrays)
    fused = value_and_gradients(lambda *x: attention.fused(*x, "xla"), arrays)
    for found, expected in zip(fused, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


def test_the_fused_form_of_bfloat16_is_as_near_float32_as_the_plain_one():
    arrays = drawn(jnp.bfloat16)
    exact = value_and_gradients(lambda *x: attention.mix(*x, None), [x.astype(jnp.float32) for x in arrays])
    plain = value_and_gradients(lambda *x: attention.mix(*x, None), arrays)
    fused = value_and_gradients(lambda *x: attention.fused(*x, "xla"), arrays)
    for found, near, expected in zip(fused, plain, exact, strict=True):
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= np.abs(near - expected).max() + 2**-8 * scale


def test_a_gpu_fuses_unmasked_attention_of_bfloat16(monkeypatch):
    """Not masked keys, attention dropout, float32, heads that cuDNN does not take, or what is exported."""
    chosen = []
    monkeypatch.setattr(attention, "_has_cudnn", lambda: True)
    monkeypatch.setattr(attention, "fused", lambda query, *_: chosen.append(query.dtype) or jnp.swapaxes(query, 1, 2))
    arrays, mask = drawn(jnp.bfloat16), jnp.ones((2, 7), bool)
    attention.mix(*arrays, None)
    assert len(chosen) == 1
    attention.mix(*arrays, mask)
    attention.mix(*arrays, None, lambda weights: weights)
    attention.mix(*drawn(jnp.float32), None)
    attention.mix(*(x[..., :6] for x in arrays), None)
    with plain_forms():
        attention.mix(*arrays, None)
    assert len(chosen) == 1


def test_a_cpu_has_no_cudnn():
    assert not attention._has_cudnn()
