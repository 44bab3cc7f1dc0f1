"""One step of training: the same numbers on any mesh, accumulation, loss weights, and that it learns."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import moved_sizes

from data_pipelines.batches.prefetch import ReadAhead
from irm_jax import run
from irm_jax.models.irm import IRM
from irm_jax.objectives import memory_bank
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import state
from irm_jax.training import step as train_step

pytestmark = pytest.mark.usefixtures("quick_programs")  # compiling is most of what these tests do

ONE = (1, 1, 1)
"""(data, fsdp, model) of a single device."""


def one_batch(data, step=0):
    with data.stream(step, 1, range(data.plan.batch_blocks), ReadAhead(workers=0, threads=0, prefetch=1)) as stream:
        return next(stream)[1]


def run_step(config, data, batch, mesh_shape, **options):
    """Parameters before, the state after, and the metrics of the last step."""
    start, train_state, metrics = run_steps(config, data, batch, mesh_shape, **options)
    return start, train_state, metrics[-1]


def run_steps(config, data, batch, mesh_shape, *, double=False, steps=1):
    """Parameters before, the state after, and the metrics of each step, on the first devices in the given mesh."""
    mesh = mesh_lib.make_mesh(
        dict(zip(mesh_lib.AXES, mesh_shape, strict=True)), jax.devices()[: int(np.prod(mesh_shape))]
    )
    model = run.make_model(config, data)
    if double:
        model = IRM(dataclasses.replace(model.config, dtype="float64"))
    optimizer = run.make_optimizer(config)
    memory = run.memory_shapes(config, data)
    train_state = state.create_state(model, optimizer, data.plan.constant_tokens, 0, mesh, memory)
    if double:
        to_double = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
        train_state = jax.jit(lambda s: jax.tree.map(to_double, s))(train_state)
    start = jax.tree.map(np.asarray, train_state.params)
    step = run.train_step(config, data, model, mesh)
    history = []
    with jax.set_mesh(mesh):
        leading = next(iter(batch.values()))["identity"].ndim - 2
        arrays = mesh_lib.to_global(batch, mesh_lib.batch_sharding(mesh, leading=leading))
        for _ in range(steps):
            train_state, metrics = step(train_state, arrays, jnp.asarray(data.plan.constant_tokens), jax.random.key(1))
            history.append({k: float(v) for k, v in metrics.items()})
    return start, jax.tree.map(np.asarray, train_state), history


def with_bank(config):
    """IRM++ with everything on, its bank full after two batches; keys in bfloat16. Learns fast."""
    config.optimizer.learning_rate = 5e-3
    config.train.steps = 1000
    config.memory_bank.update(
        {"size": 2 * config.data.batch_size, "ramp_steps": 1, "soft_weight": 0.5, "soft_ramp_steps": 0,
         "overlaps": ("procedural_trad:procedural_t2i",), "dtype": "bfloat16"}
    )  # fmt: skip
    config.momentum.update({"decay": 0.9, "second_view": True})


def with_captions(config):
    """All text-to-image objectives, two captions a block, with a queue that is full after two batches."""
    config.data.batch_size += 8
    config.data.train.procedural_t2i.share = 0.5
    config.model.fusion_depth = 1
    config.loss.update({"matching_weight": 1.0, "masked_weight": 1.0, "replaced_weight": 0.5})
    config.text_to_image.update({"momentum_contrast": True, "queue_size": 32, "soft_ramp_steps": 1})
    config.momentum.update({"decay": 0.9, "second_view": True})


def only_captions(config):
    """The text-to-image objectives without anything else, which compiles in a third of the time."""
    with_captions(config)
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_t2i"}:
            del config.data.train[name]
    config.data.batch_size = 16


def relative_to_norm(a, b):
    """Largest difference of any element, relative to the global norm of b."""
    norm = np.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in jax.tree.leaves(b)))
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) / norm


def test_float64_step_agrees_on_every_mesh(micro_config):
    """House tolerance: loss to 1e-12 relative, gradients (Adam's first moment), update to 1e-9 of the norm.

    With the memory bank, which is IRM and more: the third step reads a full bank, so all its parts have a value.
    """
    with_bank(micro_config)
    micro_config.memory_bank.dtype = "float32"  # and then float64, as all of the state
    metrics = agree_in_float64(micro_config, [ONE, (2, 2, 2), (4, 2, 1)], "memory_bank")
    assert metrics["bank_filled"] == 1
    for name in ("bank_hard_loss", "bank_soft_loss", "bank_same_identity_mass"):
        assert metrics[f"li/{name}"] > 0


def test_float64_caption_objectives_agree(micro_config):
    """The same for all text-to-image objectives, whose draws must not depend on the mesh either."""
    only_captions(micro_config)
    metrics = agree_in_float64(micro_config, [ONE, (2, 2, 2), (4, 2, 1)], "caption_queue")
    assert metrics["queue_filled"] == 1
    for name in ("contrastive", "matching", "masked", "replaced"):
        assert metrics[f"t2i/{name}_loss"] > 0


def agree_in_float64(config, meshes, bank):
    """Three steps on each mesh against the first one's; returns the first one's metrics."""
    # flax promotes f64 with f32 inside its norms, which strict promotion forbids; float32 tests run strict.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        data = run.open_training(config)
        batch = one_batch(data)
        start, reference, metrics = run_step(config, data, batch, meshes[0], double=True, steps=3)
        for mesh in meshes[1:]:
            _, other, found = run_step(config, data, batch, mesh, double=True, steps=3)
            assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-12), mesh
            moments = [s.opt_state[1][0].mu for s in (other, reference)]
            assert relative_to_norm(*moments) <= 1e-9, mesh
            updates = [jax.tree.map(np.subtract, s.params, start) for s in (other, reference)]
            assert relative_to_norm(*updates) <= 1e-9, mesh
            if jax.tree.leaves(reference.batch_stats):
                assert relative_to_norm(other.batch_stats, reference.batch_stats) <= 1e-12, mesh
            keys, expected = (getattr(s, bank).entries for s in (other, reference))
            assert relative_to_norm(keys, expected) <= 1e-9, mesh
            np.testing.assert_array_equal(keys.identity, expected.identity)
    return metrics


def test_float32_loss_agrees_and_repeats_bit_equal(micro_config):
    with_bank(micro_config)
    data = run.open_training(micro_config)
    batch = one_batch(data)
    _, _, metrics = run_step(micro_config, data, batch, ONE)
    _, first, found = run_step(micro_config, data, batch, (2, 1, 1))
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    _, second, again = run_step(micro_config, data, batch, (2, 1, 1))
    assert found == again
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_accumulated_batches_average_their_gradients(micro_config):
    """Two batches a step, each mined alone: the first moments are the mean of those of two separate first steps.

    Both read the bank as it was before the step; afterwards it holds the keys of both, in order. Raw similarities,
    because centred ones of the second batch know the first.
    """
    with_bank(micro_config)
    micro_config.loss.instruction_similarity = "raw"
    data = run.open_training(micro_config)
    first, second = one_batch(data, 0), one_batch(data, 1)
    stacked = jax.tree.map(lambda *x: np.stack(x), first, second)
    _, both, metrics = run_step(micro_config, data, stacked, (2, 1, 1))
    _, a, metrics_a = run_step(micro_config, data, first, (2, 1, 1))
    # The second batch inherits running statistics from the first; in training, gradients use those of the batch.
    _, b, metrics_b = run_step(micro_config, data, second, (2, 1, 1))
    assert metrics["loss"] == pytest.approx((metrics_a["loss"] + metrics_b["loss"]) / 2, rel=1e-5)
    assert metrics["bank_filled"] == metrics_a["bank_filled"] == 0
    moments, *apart = (s.opt_state[1][0].mu for s in (both, a, b))
    assert relative_to_norm(moments, jax.tree.map(lambda x, y: (x + y) / 2, *apart)) < 1e-5
    entries, *single = (s.memory_bank.entries for s in (both, a, b))
    assert int(both.memory_bank.pushes) == 2
    for slot, one in enumerate(single):
        np.testing.assert_array_equal(entries.identity[:, :, slot], one.identity[:, :, 0])
        keys = [x.astype(np.float32) for x in (entries.key[:, :, slot], one.key[:, :, 0])]
        np.testing.assert_allclose(*keys, atol=2**-8)  # bfloat16: one unit in the last place at 1


def test_a_bank_of_no_weight_changes_nothing_but_itself(micro_config):
    """IRM is IRM++ with the bank off: the same loss and parameters, and the bank holds the keys of every row."""
    data = run.open_training(micro_config)
    batch = one_batch(data)
    _, plain, without = run_step(micro_config, data, batch, ONE, steps=2)
    assert plain.memory_bank is None
    micro_config.memory_bank.update({"size": 1, "weight": 0.0})
    micro_config.momentum.decay = 0.75
    start, banked, metrics = run_step(micro_config, data, batch, ONE, steps=2)
    assert metrics["loss"] == pytest.approx(without["loss"], rel=1e-6)
    assert relative_to_norm(banked.params, plain.params) < 1e-6
    bank = banked.memory_bank
    groups = ("text", "visual", "caption")
    np.testing.assert_array_equal(
        bank.entries.identity[..., 0], np.concatenate([batch[g]["identity"] for g in groups], 1)
    )
    np.testing.assert_array_equal(bank.entries.task[..., 0], np.concatenate([batch[g]["task"] for g in groups], 1))
    own = [batch["text"]["instruction"] >= 0, batch["visual"]["instruction"] >= 0]
    expected = [np.where(own[0], 0, -1), np.where(own[1], 1, -1), np.full_like(batch["caption"]["identity"], -1)]
    np.testing.assert_array_equal(bank.entries.kind[..., 0], np.concatenate(expected, 1))
    np.testing.assert_allclose(np.linalg.norm(bank.entries.key, axis=-1), 1, rtol=1e-5)
    # Two updates: m2 - p0 = .1875 (p1 - p0) + .25 (p2 - p0), where p1 lies between p0 and p2.
    leaf = ("image_encoder", "final_norm", "scale")
    old, average, new = (x[leaf[0]][leaf[1]][leaf[2]] for x in (start, banked.momentum_params, banked.params))
    assert 0.25 < np.linalg.norm(average - old) / np.linalg.norm(new - old) < 0.4375
    assert not any(name.startswith("head_") for name in banked.momentum_params)


def test_keys_of_one_view_are_the_embeddings_in_training_mode(micro_config):
    """The first keys, of a momentum model that equals the model, without dropout, are the rows' own embeddings."""
    with_bank(micro_config)
    micro_config.momentum.second_view = False
    for unit in micro_config.data.train.values():
        if unit.task in ("ctcc", "li"):
            unit.composed = False  # composed rows have a part in the model's own batch statistics
    data = run.open_training(micro_config)
    batch = jax.tree.map(jnp.asarray, one_batch(data))
    model = run.make_model(micro_config, data)
    mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, ONE, strict=True)), jax.devices()[:1])
    constants = jnp.asarray(data.plan.constant_tokens)
    start = state.create_state(
        model, run.make_optimizer(micro_config), constants, 0, mesh, run.memory_shapes(micro_config, data)
    )
    variables = {"params": {**start.params, **start.momentum_params}, "batch_stats": start.batch_stats}
    rows, _ = jax.jit(
        lambda variables: model.apply(
            variables, batch, constants, method="keys", embeddings=True, captions=False, mutable=["batch_stats"]
        )
    )(variables)
    options = run.loss_options(micro_config, data)
    entries = memory_bank.batch_entries(rows, start.instruction_mean, batch, options)
    output, _ = jax.jit(
        lambda params: model.apply(
            {"params": params, "batch_stats": start.batch_stats}, batch, constants, train=True, mutable=["batch_stats"]
        )
    )(start.params)
    edited = np.concatenate([output.edited.person, output.edited.guided], axis=-1)
    edited /= np.linalg.norm(edited, axis=-1, keepdims=True)
    keys = np.asarray(entries.key).reshape(data.plan.batch_blocks, -1, edited.shape[-1])
    np.testing.assert_allclose(keys[:, : edited.shape[1]], edited, atol=2e-5)
    assert np.all(np.isfinite(keys))


def test_the_compiled_step_never_moves_the_bank(micro_config):
    """No collective of the step on eight devices moves an array as large as a device's part of the bank or queue."""
    with_bank(micro_config)
    micro_config.text_to_image.update({"momentum_contrast": True, "queue_size": 16384})
    micro_config.memory_bank.size = 64 * micro_config.data.batch_size
    data = run.open_training(micro_config)
    mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, (4, 2, 1), strict=True)), jax.devices()[:8])
    model, optimizer = run.make_model(micro_config, data), run.make_optimizer(micro_config)
    memory = run.memory_shapes(micro_config, data)
    abstract = state.abstract_state(model, optimizer, data.plan.constant_tokens, mesh, memory)
    step = run.train_step(micro_config, data, model, mesh)
    with jax.set_mesh(mesh):
        arrays = mesh_lib.to_global(one_batch(data), mesh_lib.batch_sharding(mesh))
        compiled = step.lower(abstract, arrays, jnp.asarray(data.plan.constant_tokens), jax.random.key(1)).compile()
    part = math.prod(abstract.memory_bank.entries.key.sharding.shard_shape(abstract.memory_bank.entries.key.shape))
    assert part * 8 == math.prod(abstract.memory_bank.entries.key.shape)
    moved = moved_sizes(compiled.as_text())
    assert moved  # gradients are summed over devices: the pattern finds what there is
    assert max(moved) < part
    queue = abstract.caption_queue.entries.image
    assert max(moved) < math.prod(queue.sharding.shard_shape(queue.shape)) == math.prod(queue.shape) // 8


def test_loss_weights_are_those_of_the_data_sets(micro_config):
    """With weight on one data set only, the loss is that set's mean over rows (plus its composed rows)."""
    with micro_config.unlocked():
        for name in set(micro_config.data.train) - {"procedural_trad", "procedural_cc"}:
            del micro_config.data.train[name]
    micro_config.data.train.procedural_cc.loss_weight = 0.0
    micro_config.data.batch_size = 64
    data = run.open_training(micro_config)
    _, _, metrics = run_step(micro_config, data, one_batch(data), ONE)
    assert metrics["loss"] == pytest.approx(metrics["trad/loss"], rel=1e-5)
    assert metrics["trad/loss"] != pytest.approx(metrics["cc/loss"], rel=1e-3)
    parts = metrics["trad/identity_loss"] + micro_config.loss.alpha * metrics["trad/triplet_loss"]
    assert metrics["trad/loss"] == pytest.approx(parts, rel=1e-5)


def test_overfits_one_batch(micro_config):
    """Sixty steps on one batch: every task's loss falls far below its start, so every part receives its gradient.

    So does that of the bank, whose keys are bfloat16 here.
    """
    with_bank(micro_config)
    data = run.open_training(micro_config)
    batch = one_batch(data)
    _, _, (start, *_, end) = run_steps(micro_config, data, batch, ONE, steps=60)
    for task in ("trad", "cc", "ctcc", "vi", "li", "t2i"):
        assert end[f"{task}/loss"] < 0.7 * start[f"{task}/loss"], task
        if task != "t2i":
            assert end[f"{task}/bank_hard_loss"] < 0.7 * start[f"{task}/bank_hard_loss"], task


def test_overfits_one_batch_of_captions(micro_config):
    """Every objective is learned, on a batch whose words are hidden and replaced anew in every step."""
    only_captions(micro_config)
    micro_config.model.update({"width": 64, "projection_width": 32})
    micro_config.optimizer.learning_rate = 2e-3
    micro_config.train.steps = 1000
    data = run.open_training(micro_config)
    batch = one_batch(data)
    _, last, (start, *_, end) = run_steps(micro_config, data, batch, ONE, steps=60)
    assert last.memory_bank is None
    names = ("contrastive", "matching", "masked", "replaced")
    parts = sum(micro_config.loss[f"{name}_weight"] * start[f"t2i/{name}_loss"] for name in names)
    assert start["t2i/loss"] == pytest.approx(parts, rel=1e-5)
    for name, share in (("contrastive", 0.8), ("matching", 0.5), ("masked", 0.8), ("replaced", 0.8)):
        assert end[f"t2i/{name}_loss"] < share * start[f"t2i/{name}_loss"], name


def test_the_triplets_unit_is_the_feature_or_the_spread_of_its_data_set(micro_config):
    data = run.open_training(micro_config)
    dataset = jnp.arange(60) % len(data.plan.datasets)
    features = jax.random.normal(jax.random.key(0), (60, 8)) * (1 + dataset[:, None]).astype(jnp.float32)
    units = {}
    for unit in ("feature", "spread"):
        micro_config.loss.triplet_unit = unit
        options = run.loss_options(micro_config, data)
        units[unit] = train_step.distance_unit(features, dataset, jnp.ones(60, bool), options)
    np.testing.assert_array_equal(units["feature"], np.ones(6))
    np.testing.assert_allclose(units["spread"], np.arange(1, 7), rtol=0.3)
