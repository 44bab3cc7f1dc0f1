"""Composed triplet loss against a slow NumPy twin and hand-made answers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from irm_jax.losses.composed_triplet import composed_triplet_loss
from irm_jax.losses.geometry import LabelledRows

C, B, S = 8, 16, 8


def of_columns(*columns: Any, margin: float = 0.3) -> Any:
    """The loss of anchors, then candidates, five columns each: features, identity, data set, attributes, valid."""
    (*anchors, wanted, anchor_valid), (*candidates, attributes, valid) = columns[:5], columns[5:]
    return composed_triplet_loss(
        LabelledRows(*anchors, anchor_valid), wanted, LabelledRows(*candidates, valid), attributes, margin
    )


jitted = jax.jit(of_columns)


def twin(
    anchor: np.ndarray,
    anchor_identity: np.ndarray,
    anchor_dataset: np.ndarray,
    wanted: np.ndarray,
    anchor_valid: np.ndarray,
    candidates: np.ndarray,
    identity: np.ndarray,
    dataset: np.ndarray,
    attributes: np.ndarray,
    valid: np.ndarray,
    margin: float = 0.3,
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Returns loss, dropped and the cases met."""
    loss, dropped = np.zeros(len(anchor)), np.zeros(len(anchor), bool)
    met = dict.fromkeys(("no_positive", "no_negative", "own_person", "other_person", "unknown", "inactive"), 0)
    for c in np.flatnonzero(anchor_valid):
        positive, negative = {}, {}
        squared = np.sum((anchor[c].astype(np.float64) - candidates) ** 2, axis=1)
        for j in np.flatnonzero(valid & (dataset == anchor_dataset[c])):
            d = np.sqrt(max(squared[j], 1e-12))
            if identity[j] != anchor_identity[c]:
                negative[j] = d
                continue
            named = [(w, a) for w, a in zip(wanted[c], attributes[j], strict=True) if w != -1]
            if all(w == a for w, a in named):
                positive[j] = d
            elif any(a not in (-1, w) for w, a in named):
                negative[j] = d
            else:
                met["unknown"] += 1
        met["no_positive"] += not positive
        met["no_negative"] += not negative
        if not positive or not negative:
            dropped[c] = True
            continue
        loss[c] = max(0.0, max(positive.values()) - min(negative.values()) + margin)
        nearest = min(negative, key=lambda j: negative[j])
        met["own_person" if identity[nearest] == anchor_identity[c] else "other_person"] += 1
        met["inactive"] += loss[c] == 0
    return loss, dropped, met


def random_batch(rng: np.random.Generator, integers: bool = True) -> Any:
    people, datasets = int(rng.choice([1, 2, 4])), int(rng.integers(1, 3))

    def rows(n: int) -> np.ndarray:
        values = rng.integers(-2, 3, (n, 3)) if integers else rng.normal(size=(n, 3))
        return values.astype(np.float32)

    def slots(n: int, missing: float) -> np.ndarray:
        values = np.full((n, S), -1)
        values[:, :2] = rng.integers(0, 2, (n, 2))
        return np.where(rng.random((n, S)) < missing, -1, values).astype(np.int32)

    def small(n: int, high: int) -> np.ndarray:
        return rng.integers(0, high, n).astype(np.int32)

    return (
        *(rows(C), small(C, people), small(C, datasets), slots(C, 0.3), rng.random(C) < 0.9),
        *(rows(B), small(B, people), small(B, datasets), slots(B, 0.1), rng.random(B) < rng.choice([0.2, 0.9])),
    )


def competing_batch(seed: int) -> Any:
    """Continuous features; two people of two outfits each in one data set, so that most anchors have both sides."""
    anchor, _, _, wanted, _, candidates, _, _, attributes, _ = random_batch(np.random.default_rng(seed), integers=False)
    wanted[:, 1:] = -1
    attributes[:, 0] = np.arange(B) // 2 % 2
    anchor_people, people = (np.arange(C) % 2).astype(np.int32), (np.arange(B) % 2).astype(np.int32)
    return (
        *(anchor, anchor_people, np.zeros(C, np.int32), wanted, np.arange(C) != 2),
        *(candidates, people, np.zeros(B, np.int32), attributes, np.arange(B) != 5),
    )


def test_equals_the_slow_twin() -> None:
    rng = np.random.default_rng(0)
    batches = [random_batch(rng) for _ in range(500)]
    losses, auxes = jax.jit(jax.vmap(of_columns))(*map(np.stack, zip(*batches, strict=True)))
    total: dict[str, int] = {}
    for k, one in enumerate(batches):
        loss, dropped, met = twin(*one)
        np.testing.assert_allclose(losses[k], loss, atol=1e-6)
        np.testing.assert_array_equal(auxes.dropped[k], dropped)
        np.testing.assert_array_equal(auxes.active[k], loss > 0)
        total = {name: total.get(name, 0) + count for name, count in met.items()}
    assert all(count > 50 for count in total.values()), total


def hand_made(positions: list[float], identity: list[int], outfits: list[int], wanted: int) -> Any:
    """One anchor of person 0 at 0 on a line; outfits stand in slot 0."""
    n = 4  # one shape for all cases, the rest is padding
    padding = n - len(positions)
    attributes = np.full((n, S), -1, np.int32)
    attributes[: n - padding, 0] = outfits
    wanted_slots = np.full((1, S), -1, np.int32)
    wanted_slots[0, 0] = wanted
    loss, aux = jitted(
        np.zeros((1, 1), np.float32),
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        wanted_slots,
        np.ones(1, bool),
        np.array(positions + [0.0] * padding, np.float32)[:, None],
        np.array(identity + [0] * padding, np.int32),
        np.zeros(n, np.int32),
        attributes,
        np.arange(n) < n - padding,
    )
    return float(loss[0]), jax.tree.map(lambda x: x[0].item(), aux)


def test_the_same_person_in_another_outfit_is_a_negative() -> None:
    loss, aux = hand_made([2.0, 1.0, 3.0], [0, 0, 1], [7, 4, 7], wanted=7)
    assert loss == pytest.approx(2.0 - 1.0 + 0.3)
    assert aux == (False, True)


def test_another_person_in_the_wanted_outfit_is_a_negative() -> None:
    loss, aux = hand_made([2.0, 5.0, 1.5], [0, 0, 1], [7, 4, 7], wanted=7)
    assert loss == pytest.approx(2.0 - 1.5 + 0.3)
    assert aux.active


def test_nothing_named_wants_only_the_person() -> None:
    loss, aux = hand_made([2.0, 1.0, 2.5], [0, 0, 1], [7, 4, 7], wanted=-1)
    assert loss == 0.0
    assert aux == (False, False)


def test_unknown_outfit_is_neither() -> None:
    loss, _ = hand_made([2.0, 0.1, 9.0, 1.8], [0, 0, 0, 1], [7, -1, -1, 7], wanted=7)
    assert loss == pytest.approx(2.0 - 1.8 + 0.3)


@pytest.mark.parametrize(
    ("identity", "outfits"), [([0, 1], [4, 7]), ([0, 0], [7, 7])], ids=["no positive", "no negative"]
)
def test_dropped_anchor_is_zero_and_counted(identity: list[int], outfits: list[int]) -> None:
    loss, aux = hand_made([2.0, 1.0], identity, outfits, wanted=7)
    assert loss == 0.0
    assert aux == (True, False)


def test_numerical_gradients() -> None:
    with jax.enable_x64(True):
        anchor, *rest = competing_batch(1)
        candidates = rest[4]

        def function(a: jax.Array, b: jax.Array) -> jax.Array:
            return jitted(a, *rest[:4], b, *rest[5:], margin=2.0)[0]

        wide = (jnp.asarray(anchor, jnp.float64), jnp.asarray(candidates, jnp.float64))
        assert np.sum(np.asarray(function(*wide)) > 0) >= 3
        check_grads(function, wide, order=1, modes=["rev"])


def test_zero_distance_and_padding_give_finite_gradients() -> None:
    anchor, *rest = random_batch(np.random.default_rng(2))
    anchor[:], rest[4][:] = 1.0, 1.0  # every row the same
    rest[3][:], rest[8][:] = True, True
    rest[3][0] = rest[8][0] = False
    anchor[0] = rest[4][0] = np.nan  # padding
    loss, aux = jitted(anchor, *rest)
    np.testing.assert_allclose(loss, np.where(rest[3] & ~np.asarray(aux.dropped), 0.3, 0.0), atol=1e-6)
    total = jax.jit(jax.grad(lambda a, b: jnp.sum(jitted(a, *rest[:4], b, *rest[5:])[0]), argnums=(0, 1)))
    gradients = total(anchor, rest[4])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None]) -> None:
    def function(anchor: jax.Array, candidates: jax.Array, *small: Any) -> Any:
        def total(a: jax.Array, b: jax.Array) -> Any:
            loss, aux = jitted(a, *small[:4], b, *small[4:])
            return jnp.sum(loss), (loss, aux)

        (value, aux), gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(anchor, candidates)
        return value, aux, gradient

    batch = competing_batch(3)
    small = (*batch[1:5], *batch[6:])
    assert_same_when_sharded(function, (batch[0], batch[5], *small), 1e-6)
    with jax.enable_x64(True):
        assert_same_when_sharded(function, (batch[0].astype(np.float64), batch[5].astype(np.float64), *small), 1e-12)
