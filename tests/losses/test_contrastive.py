"""In-batch contrastive loss against a slow NumPy twin and hand-made answers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from irm_jax.losses.contrastive import (
    Pairs,
    clip_temperature,
    contrastive_loss,
    direction_loss,
    momentum_contrastive_loss,
    same_and_other_outfit,
    spread,
)
from irm_jax.objectives.lanes import CaptionKeys

B, WIDTH = 16, 5
UNKNOWN = np.full(2, -1, np.int32)
jitted = jax.jit(contrastive_loss)
value_and_gradients = jax.jit(
    jax.value_and_grad(lambda *arguments: jnp.sum(contrastive_loss(*arguments)[0]), argnums=(0, 1, 5))
)


def other_outfit(identity: np.ndarray, clothes: np.ndarray, row: int, own: int) -> np.ndarray:
    """Which keys show the identity `own` in another outfit than `row`'s, both known."""
    return (identity == own) & (clothes >= 0) & (clothes != row) & (row >= 0)


def twin(
    image: np.ndarray,
    text: np.ndarray,
    identity: np.ndarray,
    clothes: np.ndarray,
    valid: np.ndarray,
    temperature: float,
) -> Any:
    """Returns the loss, and which captions' best images are right."""
    n = len(image)
    loss, hits = np.zeros(n), np.zeros((2, n), bool)
    image, text = (x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    for direction, (query, key) in enumerate(((image, text), (text, image))):
        for i in np.flatnonzero(valid):
            keys = np.flatnonzero(valid & ~other_outfit(identity, clothes, clothes[i], identity[i]))
            logits = key[keys] @ query[i] / temperature
            log_probability = logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()
            same = identity[keys] == identity[i]
            loss[i] -= log_probability[same].mean() / 2
            hits[direction, i] = same[np.argmax(logits)]
    return loss, hits[1]


def batch(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(B, WIDTH)).astype(np.float32),
        rng.normal(size=(B, WIDTH)).astype(np.float32),
        rng.integers(0, 8, B).astype(np.int32),
        rng.integers(-1, 2, B).astype(np.int32),
        rng.random(B) < 0.8,
    )


def test_equals_the_slow_twin() -> None:
    hits = 0
    for seed in range(100):
        image, text, identity, clothes, valid = batch(seed)
        temperature = (0.07, 0.5)[seed % 2]
        loss, correct = jitted(image, text, identity, clothes, valid, temperature)
        expected, text_hits = twin(image, text, identity, clothes, valid, temperature)
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(correct, text_hits)
        hits += int(text_hits.sum())
    assert 0 < hits < 100 * B


def test_hand_made() -> None:
    image = np.array([[2.0, 0.0], [0.0, 5.0]], np.float32)
    text = np.array([[0.5, 0.0], [7.0, 0.0]], np.float32)  # both captions point at the first image
    everything = np.ones(2, bool)
    loss, correct = jitted(image, text, np.array([0, 1], np.int32), UNKNOWN, everything, 0.5)
    # Cosines: i2t [[1, 1], [0, 0]]: log 2 each; t2i [[1, 0], [1, 0]]: the first caption is right, the second wrong.
    right, wrong = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    np.testing.assert_allclose(loss, [(np.log(2.0) + right) / 2, (np.log(2.0) + wrong) / 2], rtol=1e-6)
    np.testing.assert_array_equal(correct, [True, False])
    # One person: every pair is a target, the targets are spread evenly.
    loss, correct = jitted(image, text, np.zeros(2, np.int32), UNKNOWN, everything, 0.5)
    np.testing.assert_allclose(loss, np.full(2, (np.log(2.0) + (right + wrong) / 2) / 2), rtol=1e-6)
    assert np.all(correct)
    # One person in two outfits: each pair is the other's neither right nor wrong, and nothing is left to tell it from.
    loss, _ = jitted(image, text, np.zeros(2, np.int32), np.array([0, 1], np.int32), everything, 0.5)
    np.testing.assert_allclose(loss, np.zeros(2), atol=1e-6)


def test_lengths_do_not_matter() -> None:
    image, text, identity, clothes, valid = batch(0)
    scale = np.linspace(0.1, 100, B, dtype=np.float32)[:, None]
    loss, _ = jitted(image, text, identity, clothes, valid, 0.07)
    scaled, _ = jitted(image * scale, text / scale, identity, clothes, valid, 0.07)
    np.testing.assert_allclose(scaled, loss, rtol=1e-5, atol=1e-5)


def test_padding_reaches_nothing() -> None:
    image, text, identity, clothes, valid = batch(1)
    image[~valid], text[~valid], identity[~valid] = np.nan, np.nan, identity[np.flatnonzero(valid)[0]]

    k = np.flatnonzero(valid)
    assert len(k) < B
    value, gradients = value_and_gradients(image, text, identity, clothes, valid, 0.07)
    expected, expected_gradients = value_and_gradients(image[k], text[k], identity[k], clothes[k], valid[k], 0.07)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, wanted in zip(gradients[:2], expected_gradients[:2], strict=True):
        np.testing.assert_allclose(gradient[k], wanted, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(gradient[~valid], np.zeros((B - len(k), WIDTH)))
    np.testing.assert_allclose(gradients[2], expected_gradients[2], rtol=1e-5)


def test_batch_without_a_valid_row_is_zero_with_zero_gradients() -> None:
    image, text, identity, clothes, _ = batch(2)
    value, gradients = value_and_gradients(image, text, identity, clothes, np.zeros(B, bool), 0.07)
    assert float(value) == 0.0
    assert all(not np.any(gradient) for gradient in gradients)


def test_zero_projections_give_finite_gradients() -> None:
    image, text, identity, clothes, valid = batch(3)
    image[:3], text[2:5] = 0.0, 0.0
    value, gradients = value_and_gradients(image, text, identity, clothes, valid, 0.01)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_keys_may_outnumber_queries_and_targets_may_be_soft() -> None:
    # What a queue needs: keys of its own, some slots empty, targets that are no indicator.
    rng = np.random.default_rng(4)
    logits, usable = rng.normal(size=(3, 7)).astype(np.float32), rng.random((3, 7)) < 0.7
    soft = np.where(usable, rng.random((3, 7)), 0).astype(np.float32)
    normalizer = np.log(np.sum(np.exp(logits) * usable, axis=1, keepdims=True))
    loss = jax.jit(direction_loss)(logits, soft, usable)
    np.testing.assert_allclose(loss, -np.sum(soft * (logits - normalizer), axis=1), rtol=1e-5)


def test_positives_show_the_person_in_an_outfit_that_may_be_the_same() -> None:
    query, key = np.array([0, 1, 3], np.int32), np.array([0, 1, 0, 2, 0, 0, 1], np.int32)
    query_clothes, key_clothes = np.array([5, -1, 5], np.int32), np.array([5, 4, 4, 5, -1, 5, -1], np.int32)
    positive, other = jax.jit(same_and_other_outfit)(query, query_clothes, key, key_clothes)
    assert np.argwhere(other).tolist() == [[0, 2]]
    hard = jax.jit(spread, static_argnums=1)(positive, np.dtype(np.float32))
    expected = np.array([[1, 0, 0, 0, 1, 1, 0], [0, 1.5, 0, 0, 0, 0, 1.5], [0, 0, 0, 0, 0, 0, 0]]) / 3
    np.testing.assert_allclose(hard, expected, rtol=1e-6)


def test_numerical_gradients() -> None:
    with jax.enable_x64(True):
        image, text, identity, clothes, valid = batch(5)
        arguments = tuple(jnp.asarray(x, jnp.float64) for x in (image, text, np.array(0.2)))
        check_grads(
            lambda a, b, t: jitted(a, b, identity, clothes, valid, t)[0], arguments, order=1, modes=["rev"], rtol=1e-5
        )


@pytest.mark.parametrize(
    ("value", "kept", "falls", "rises"),  # whether an update may lower and raise the parameter
    [(0.001, 0.01, False, True), (0.07, 0.07, True, True), (0.9, 0.5, True, False), (-1.0, 0.01, False, True)],
)
def test_clip_temperature_bounds_the_value_and_lets_no_gradient_lead_out(
    value: float, kept: float, falls: bool, rises: bool
) -> None:
    clipped, backward = jax.vjp(clip_temperature, jnp.asarray(value, jnp.float32))
    assert float(clipped) == np.float32(kept)
    assert float(backward(jnp.float32(2))[0]) == 2 * falls
    assert float(backward(jnp.float32(-2))[0]) == -2 * rises


def test_half_precision_inputs_are_computed_in_float32() -> None:
    image, text, identity, clothes, valid = batch(6)
    half = [jnp.asarray(x).astype(jnp.bfloat16) for x in (image, text)]
    loss, _ = jitted(*half, identity, clothes, valid, 0.07)
    assert loss.dtype == jnp.float32
    image, text = (np.asarray(x, np.float32) for x in half)
    expected = twin(image, text, identity, clothes, valid, 0.07)[0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


def test_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None]) -> None:
    def function(image: jax.Array, text: jax.Array, temperature: jax.Array, *small: Any) -> Any:
        def total(image: jax.Array, text: jax.Array, temperature: jax.Array) -> Any:
            loss, aux = jitted(image, text, *small, temperature)
            return jnp.sum(loss), (loss, aux)

        (value, aux), gradient = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(image, text, temperature)
        return value, aux, gradient

    image, text, identity, clothes, valid = batch(7)
    specs = (P("data"), P("data"), P(), P("data"), P("data"), P("data"))
    temperature = np.array(0.07)
    small = (identity, clothes, valid)
    assert_same_when_sharded(function, (image, text, temperature.astype(np.float32), *small), 1e-6, specs)
    with jax.enable_x64(True):
        wide = (image.astype(np.float64), text.astype(np.float64), temperature, *small)
        assert_same_when_sharded(function, wide, 1e-12, specs)


def momentum_twin(image, text, anchor, valid, sources, temperature, share):
    """Four directions by loops over queries and all keys with an identity."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    query = {"image": unit(image.astype(np.float64)), "text": unit(text.astype(np.float64))}
    all_identity, all_clothes = (np.concatenate([getattr(s, n) for s in sources]) for n in ("identity", "clothes"))
    all_keys = {n: np.concatenate([getattr(s, n) for s in sources]).astype(np.float64) for n in query}
    loss = np.zeros(len(image))
    for i in np.flatnonzero(valid):
        other = other_outfit(all_identity, all_clothes, anchor.clothes[i], anchor.identity[i])
        usable = (all_identity >= 0) & ~other
        keys, identity = {n: rows[usable] for n, rows in all_keys.items()}, all_identity[usable]
        for asking, asked in (("image", "text"), ("text", "image"), ("image", "image"), ("text", "text")):
            s = keys[asked] @ query[asking][i] / temperature
            taught = keys[asked] @ getattr(anchor, asking)[i].astype(np.float64) / temperature
            q = np.exp(taught - taught.max())
            same = identity == anchor.identity[i]
            target = share * q / q.sum() + (1 - share) * same / max(same.sum(), 1)
            loss[i] -= (target * (s - np.log(np.exp(s).sum()))).sum() / 4
    return loss


def momentum_case(seed, queue):
    rng = np.random.default_rng(seed)

    def keys(count, least):
        rows = rng.normal(size=(2, count, 6))
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        numbers = rng.integers(least, 4, count), rng.integers(-1, 2, count)
        return CaptionKeys(*rows.astype(np.float32), *(number.astype(np.int32) for number in numbers))

    image, text = rng.normal(size=(2, 5, 6)).astype(np.float32)
    valid = np.array([1, 1, 1, 0, 1], bool)
    batch = keys(5, 0)
    batch = batch.replace(identity=np.where(valid, batch.identity, -1).astype(np.int32))
    return image, text, batch, valid, keys(9, -1) if queue else None


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_momentum_contrast_is_its_twin(seed, queue, share):
    image, text, batch, valid, past = momentum_case(seed, queue)
    loss, correct = momentum_contrastive_loss(Pairs(image, text, batch, valid), batch, past, 0.2, share)
    sources = [batch] if past is None else [batch, past]
    np.testing.assert_allclose(loss, momentum_twin(image, text, batch, valid, sources, 0.2, share), rtol=2e-5)
    assert not np.any(np.asarray(correct)[~valid])


def test_the_momentum_contrast_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None]) -> None:
    """Pairs whole, keys of batch and queue cut over the devices, as in a step."""
    rng = np.random.default_rng(2)

    def keys(count: int) -> CaptionKeys:
        rows = rng.normal(size=(2, count, 6))
        numbers = rng.integers(-1, 4, count), rng.integers(-1, 2, count)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        return CaptionKeys(*rows, *(number.astype(np.int32) for number in numbers))

    def function(image: jax.Array, text: jax.Array, anchor: CaptionKeys, batch: CaptionKeys, queue: CaptionKeys) -> Any:
        def total(image: jax.Array, text: jax.Array) -> Any:
            valid = anchor.identity >= 0
            loss, _ = momentum_contrastive_loss(Pairs(image, text, anchor, valid), batch, queue, 0.2, 0.4)
            return jnp.sum(loss), loss

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(image, text)

    batch = keys(16)
    given = (*rng.normal(size=(2, 8, 6)), jax.tree.map(lambda x: x[:8], batch), batch, keys(32))
    specs = (P(), P(), P(), P("data"), P("data"))
    narrow = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, given)
    assert_same_when_sharded(function, narrow, 1e-6, specs)
    with jax.enable_x64(True):
        assert_same_when_sharded(function, given, 1e-12, specs)


def test_an_empty_queue_is_no_queue():
    image, text, batch, valid, past = momentum_case(0, True)
    empty = past.replace(identity=np.full(9, -1, np.int32))
    with_empty, _ = momentum_contrastive_loss(Pairs(image, text, batch, valid), batch, empty, 0.2, 0.4)
    without, _ = momentum_contrastive_loss(Pairs(image, text, batch, valid), batch, None, 0.2, 0.4)
    np.testing.assert_allclose(with_empty, without, rtol=1e-6)


def test_the_momentum_contrast_moves_the_queries_and_the_temperature_only():
    image, text, batch, valid, past = momentum_case(1, True)
    start = (jnp.asarray(image), jnp.asarray(text), jnp.asarray(batch.image), jnp.float32(0.2))

    def value(image, text, keys, temperature, share=0.4):
        batch_keys = batch.replace(image=keys)
        pairs = Pairs(image, text, batch, valid)
        return momentum_contrastive_loss(pairs, batch_keys, past, temperature, share)[0].sum()

    grads = jax.grad(value, argnums=(0, 1, 2, 3))(*start)
    for side in (0, 1):
        for row in (0, 3):
            ends = []
            for move in (-1e-2, 1e-2):
                moved = [*start]
                moved[side] = start[side].at[row, 2].add(move)
                ends.append(float(value(*moved)))
            assert float(grads[side][row, 2]) == pytest.approx((ends[1] - ends[0]) / 2e-2, rel=5e-2, abs=1e-3)
    np.testing.assert_array_equal(grads[2], 0)
    # The teacher's temperature passes no gradient: compared where it has no part.
    ends = [float(value(*start[:3], jnp.float32(0.2 + move), 0.0)) for move in (-1e-3, 1e-3)]
    found = float(jax.grad(value, argnums=3)(*start, 0.0))
    assert found == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=2e-2)
