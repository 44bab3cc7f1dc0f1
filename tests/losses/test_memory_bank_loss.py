"""The bank's loss against a slow NumPy twin, and what may and may not reach the gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from irm_jax.losses import memory_bank_loss as loss_module
from irm_jax.losses.memory_bank_loss import Anchors, Rules, memory_bank_loss
from irm_jax.objectives import lanes
from irm_jax.objectives.lanes import MomentumKeys

TEMPERATURE = 0.07
SETS = 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make_keys(rng, count, people, *, empty=0.0, tasks=3):
    identity = rng.integers(0, people, count)
    return MomentumKeys(
        key=unit(rng.standard_normal((count, 6))),
        instruction=unit(rng.standard_normal((count, 4))),
        identity=np.where(rng.random(count) < empty, -1, identity).astype(np.int32),
        dataset=rng.integers(0, SETS, count).astype(np.int32),
        task=rng.integers(0, tasks, count).astype(np.int32),
        kind=rng.integers(-1, 2, count).astype(np.int32),
    )


def make_case(seed, *, rows=10, anchors=6, bank=14, people=4, empty=0.3):
    rng = np.random.default_rng(seed)
    batch = make_keys(rng, rows, people)
    own = rng.permutation(rows)[:anchors].astype(np.int32)
    anchor = jax.tree.map(lambda x: x[own], batch)
    z = rng.standard_normal((anchors, 6))
    valid = rng.random(anchors) > 0.15
    return z, anchor, own, valid, batch, make_keys(rng, bank, people, empty=empty)


NO_OVERLAP = Rules(np.zeros((SETS, SETS), bool), (), False)
OVERLAP = np.zeros((SETS, SETS), bool)
OVERLAP[0, 1] = OVERLAP[1, 0] = True
RULES = [NO_OVERLAP, Rules(OVERLAP, (2,), False), Rules(OVERLAP, (), True), Rules(OVERLAP, (2,), False, True)]


def twin(z, anchor, own, valid, batch, bank, rules):
    """The formulas of docs/method.md, one pair at a time."""
    z = unit(z)
    hard, soft, dropped = np.zeros(len(z)), np.zeros(len(z)), np.zeros(len(z), bool)
    for i in range(len(z)):
        if not valid[i]:
            continue
        positives, negatives = [], []  # (score, weight, teacher's score)
        for source, excluded in ((batch, own[i]), (bank, None)):
            for j in range(len(source.identity) if source is not None else 0):
                if j == excluded or source.identity[j] < 0:
                    continue
                s = float(z[i] @ source.key[j]) / TEMPERATURE
                t = float(anchor.key[i] @ source.key[j]) / TEMPERATURE
                if source.identity[j] == anchor.identity[i]:
                    if source.task[j] in rules.negative_only:
                        continue
                    weight = 1.0
                    comparable = source.kind[j] == anchor.kind[i] and anchor.kind[i] >= 0
                    if rules.instructed_positives and not comparable:
                        continue
                    if comparable:
                        weight = max(0.0, float(source.instruction[j] @ anchor.instruction[i]))
                    positives.append((s, weight, t))
                elif not rules.known_overlap[anchor.dataset[i], source.dataset[j]] and (
                    not rules.task_negatives or source.task[j] == anchor.task[i]
                ):
                    negatives.append((s, 0.0, t))
        total = sum(w for _, w, _ in positives)
        dropped[i] = total == 0
        if total > 0:
            terms = [w * np.log1p(sum(np.exp(n - s) for n, _, _ in negatives)) for s, w, _ in positives]
            hard[i] = sum(terms) / total
        everyone = positives + negatives
        if everyone:
            g = np.exp([t for *_, t in everyone])
            p = np.exp([s for s, *_ in everyone])
            soft[i] = -np.sum(g / g.sum() * np.log(p / p.sum()))
    return hard, soft, dropped


def run(case, rules, *, soft=True, dtype=np.float64):
    z, anchor, own, valid, batch, bank = jax.tree.map(
        lambda x: jnp.asarray(x, dtype if x.dtype == np.float64 else None), case
    )
    rules = Rules(jnp.asarray(rules.known_overlap), *rules[1:])
    return memory_bank_loss(Anchors(z, anchor, own, valid), batch, bank, rules, temperature=TEMPERATURE, soft=soft)


@pytest.mark.parametrize("rules", RULES)
def test_equals_the_slow_twin(rules):
    with jax.enable_x64(True):
        for seed in range(40):
            case = make_case(seed, people=2 + seed % 5, empty=(0.0, 0.3, 1.0)[seed % 3])
            if seed % 7 == 0:
                case = (*case[:-1], None)
            hard, soft, aux = run(case, rules)
            expected_hard, expected_soft, dropped = twin(*case, rules)
            np.testing.assert_allclose(hard, expected_hard, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(soft, expected_soft, rtol=1e-10, atol=1e-12)
            np.testing.assert_array_equal(aux.dropped, dropped)


def test_hand_made_case():
    """One positive at cosine .8, negatives at .5 and 0, temperature .07: log(1 + e^(-.3/.07) + e^(-.8/.07))."""
    z = np.array([[1.0, 0.0]])
    keys = np.array([[0.6, 0.8], [0.8, 0.6], [0.5, np.sqrt(0.75)], [0.0, 1.0]])
    ints = {"dataset": np.zeros(4, np.int32), "task": np.zeros(4, np.int32), "kind": np.full(4, -1, np.int32)}
    batch = MomentumKeys(keys, np.zeros((4, 1)), np.array([5, 5, 6, 7], np.int32), **ints)
    anchor = jax.tree.map(lambda x: x[:1], batch)
    with jax.enable_x64(True):
        hard, _, aux = run((z, anchor, np.zeros(1, np.int32), np.ones(1, bool), batch, None), NO_OVERLAP)
        hard, positives, negatives = (np.asarray(x) for x in (hard, aux.positives, aux.negatives))
    assert hard[0] == pytest.approx(np.log1p(np.exp(-0.3 / 0.07) + np.exp(-0.8 / 0.07)), rel=1e-12)
    assert (positives[0], negatives[0]) == (1, 2)


def test_without_a_positive_or_a_negative_the_loss_is_zero_and_counted():
    case = make_case(3, people=4)
    z, _, own, valid, batch, bank = case
    lonely = jax.tree.map(np.copy, batch)
    lonely.identity[:] = np.arange(len(lonely.identity)) + 100
    alone = (z, jax.tree.map(lambda x: x[own], lonely), own, np.ones_like(valid), lonely, bank)
    hard, _, aux = run(alone, NO_OVERLAP, dtype=np.float32)
    assert np.all(np.asarray(hard) == 0)
    assert np.all(np.asarray(aux.dropped))
    one = jax.tree.map(np.copy, batch)
    one.identity[:] = 7
    everyone = (z, jax.tree.map(lambda x: x[own], one), own, np.ones_like(valid), one, None)
    hard, _, aux = run(everyone, NO_OVERLAP, dtype=np.float32)
    np.testing.assert_allclose(hard, 0, atol=1e-7)
    assert np.all(np.asarray(aux.negatives) == 0)
    assert np.all(np.asarray(aux.positives) == len(one.identity) - 1)  # all but the own key


@pytest.mark.parametrize("empty", [0.0, 1.0])
def test_gradient_is_finite_and_passes_through_the_anchors_only(empty):
    case = make_case(5, empty=empty)
    z, anchor, own, valid, batch, bank = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None), case
    )
    z = z.at[0].set(0.0)  # no direction
    rules = Rules(jnp.asarray(OVERLAP), (2,), False)

    def total(z, anchor_key, batch_key, bank_key):
        hard, soft, _ = memory_bank_loss(
            Anchors(z, anchor.replace(key=anchor_key), own, valid), batch.replace(key=batch_key),
            bank.replace(key=bank_key), rules, temperature=TEMPERATURE, soft=True,
        )  # fmt: skip
        return jnp.sum(hard + soft)

    grads = jax.grad(total, argnums=(0, 1, 2, 3))(z, anchor.key, batch.key, bank.key)
    assert np.all(np.isfinite(grads[0]))
    assert np.any(np.asarray(grads[0])[np.asarray(valid)] != 0)
    assert np.all(np.asarray(grads[0])[~np.asarray(valid)] == 0)
    for other in grads[1:]:
        assert np.all(np.asarray(other) == 0)


def test_gradient_equals_differences():
    with jax.enable_x64(True):
        case = make_case(11)
        z = jnp.asarray(case[0])

        def total(z):
            hard, soft, _ = run((z, *case[1:]), RULES[1])
            return jnp.sum(hard + 0.5 * soft)

        gradient = jax.grad(total)(z)
        rng = np.random.default_rng(0)
        for _ in range(5):
            direction = rng.standard_normal(z.shape)
            numeric = (total(z + 1e-6 * direction) - total(z - 1e-6 * direction)) / 2e-6
            assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(numeric), rel=1e-6, abs=1e-8)


def test_soft_supervision_switched_off_costs_and_gives_nothing():
    hard, soft, aux = run(make_case(2), NO_OVERLAP, soft=False, dtype=np.float32)
    assert np.all(np.asarray(soft) == 0)
    assert np.all(np.asarray(aux.same_identity_mass) == 0)
    np.testing.assert_allclose(hard, run(make_case(2), NO_OVERLAP, dtype=np.float32)[0], rtol=1e-6)


@pytest.mark.parametrize("anchors", [8, 6])
def test_anchors_in_blocks_give_the_same(monkeypatch, anchors):
    """Against many keys the anchors come in four blocks: values, gradients and what is noted do not change."""
    with jax.enable_x64(True):
        case = make_case(3, rows=16, anchors=anchors, bank=40)

        def value(z):
            hard, soft, aux = run((z, *case[1:]), RULES[1])
            return jnp.sum(hard * jnp.arange(1.0, anchors + 1) + 0.3 * soft), aux

        (one, one_aux), one_grad = jax.value_and_grad(value, has_aux=True)(jnp.asarray(case[0]))
        monkeypatch.setattr(loss_module, "MANY_KEYS", 1)
        (four, four_aux), four_grad = jax.value_and_grad(value, has_aux=True)(jnp.asarray(case[0]))
        assert float(four) == pytest.approx(float(one), rel=1e-12)
        np.testing.assert_allclose(four_grad, one_grad, rtol=1e-10, atol=1e-14)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), four_aux, one_aux)


@pytest.mark.parametrize(("dtype", "anchors"), [("float32", 32), ("float32", 30), ("bfloat16", 32)])
def test_the_loss_holds_four_arrays_and_the_push_copies_nothing(dtype, anchors):
    """Read from the compiled program: beside the bank at most four arrays of anchors x keys.

    XLA's CPU compiler widens bfloat16 by itself, so of such a bank only the program is read: it asks for no f32 copy.
    """
    keys, width = 16_384, 128
    spec = MomentumKeys.spec(width, 8, jnp.dtype(dtype))
    bank = jax.eval_shape(lambda: lanes.create(spec, keys, 2, anchors // 2))
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((anchors, *leaf.shape), leaf.dtype), spec)

    def step(bank, z, batch, waits):
        def loss(z):
            own = jnp.arange(anchors, dtype=jnp.int32)
            valid = jnp.ones(anchors, bool)
            rules = Rules(jnp.zeros((1, 1), bool), (), False)
            flat = lanes.flat(bank)
            hard, soft, _ = memory_bank_loss(
                Anchors(z, batch, own, valid), batch, flat, rules, temperature=TEMPERATURE, soft=True
            )
            return jnp.mean(hard + soft)

        value, grad = jax.value_and_grad(loss)(z)
        return grad, lanes.push(bank, batch, value + jnp.sum(grad) if waits else None)

    z = jax.ShapeDtypeStruct((anchors, width), jnp.float32)
    jitted = jax.jit(step, donate_argnums=0, static_argnums=3)
    lowered = {waits: jitted.lower(bank, z, batch, waits) for waits in (True, False)}
    wide = f"tensor<{bank.entries.identity.size}x{width}xf32>"
    assert (wide in lowered[True].as_text()) == (dtype == "float32")
    if dtype != "float32":
        return
    extra = {waits: program.compile().memory_analysis().temp_size_in_bytes for waits, program in lowered.items()}
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(bank))
    assert extra[True] < 4 * anchors * keys * 4 < held
    assert extra[False] > held / 2  # why the push is told what to wait for


def test_sharded_equals_one_device(assert_same_when_sharded: Callable[..., None]) -> None:
    """Anchors whole, batch and bank cut over the devices, as in a step."""
    z, anchor, own, _, batch, bank = make_case(8, rows=16, anchors=8, bank=64)
    valid = np.arange(8) != 3

    def function(z: Any, anchor: Any, own: Any, valid: Any, batch: Any, bank: Any) -> Any:
        rules = Rules(jnp.asarray(OVERLAP), (2,), False)

        def total(z: jax.Array) -> Any:
            anchors = Anchors(z, anchor, own, valid)
            found = memory_bank_loss(anchors, batch, bank, rules, temperature=TEMPERATURE, soft=True)
            return jnp.sum(found[0] + 0.5 * found[1]), found

        return jax.value_and_grad(total, has_aux=True)(z)

    specs = (P(), P(), P(), P(), P("data"), P("data"))
    given = (z, anchor, own, valid, batch, bank)
    narrow = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, given)
    assert_same_when_sharded(function, narrow, 1e-6, specs)
    with jax.enable_x64(True):
        assert_same_when_sharded(function, given, 1e-12, specs)
