"""One step of training: the same numbers on any mesh, accumulation, loss weights, and that it learns."""

import contextlib
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import moved_sizes
from states import filled_state

from data_pipelines.batches.prefetch import ReadAhead
from irm_jax import run
from irm_jax.models.irm import IRM
from irm_jax.objectives.base import TrainingMix
from irm_jax.objectives.identity_triplet import IdentityTriplet
from irm_jax.parallel import devices
from irm_jax.parallel import mesh as mesh_lib

pytestmark = pytest.mark.usefixtures("quick_programs")  # compiling is most of what these tests do

ONE = (1, 1, 1)
"""(data, fsdp, model) of a single device."""


def one_batch(data, step=0):
    with data.stream(step, 1, range(data.plan.batch_blocks), ReadAhead(workers=0, threads=0, prefetch=1)) as stream:
        return next(stream)[1]


_runs = {}


def compiled(config, mesh_shape, *, double=False):
    """The run of a configuration on the first devices in a mesh. Equal calls share it, and so its program."""
    key = (json.dumps(config.to_dict(), sort_keys=True), mesh_shape, double)
    if key not in _runs:
        devices.enable_compilation_cache(config)
        shape = dict(zip(mesh_lib.AXES, mesh_shape, strict=True))
        built = run.build(
            config.copy_and_resolve_references(), mesh=mesh_lib.make_mesh(shape, jax.devices()[: math.prod(mesh_shape)])
        )
        if double:
            built.model = IRM(dataclasses.replace(built.model.config, dtype="float64"))
        _runs[key] = built
    return _runs[key]


def run_step(built, batch, **options):
    """Parameters before, the state after, and the metrics of the last step."""
    start, train_state, metrics = run_steps(built, batch, **options)
    return start, train_state, metrics[-1]


def run_steps(built, batch, *, double=False, steps=1):
    """Parameters before, the state after, and the metrics of each step on one batch."""
    train_state = filled_state(built, double=double)
    start = jax.tree.map(np.asarray, train_state.params)
    constants, key = jnp.asarray(built.data.plan.constant_tokens), jax.random.key(1)
    history = []
    with jax.set_mesh(built.mesh):
        leading = next(iter(batch.values()))["identity"].ndim - 2
        arrays = mesh_lib.to_global(batch, mesh_lib.batch_sharding(built.mesh, leading=leading))
        for _ in range(steps):
            train_state, metrics = built.train_step(train_state, arrays, constants, key)
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


MESHES = [(2, 2, 2), pytest.param((4, 2, 1), marks=pytest.mark.nightly)]


@pytest.mark.parametrize("mesh", MESHES)
def test_float64_step_agrees_on_every_mesh(micro_config, mesh):
    """House tolerance: loss to 1e-12 relative, gradients (Adam's first moment), update to 1e-9 of the norm.

    With the memory bank, which is IRM and more: the third step reads a full bank, so all its parts have a value.
    """
    in_float64(with_bank, micro_config)
    metrics = agree_in_float64(micro_config, mesh, "memory_bank")
    assert metrics["bank_filled"] == 1
    for name in ("bank_hard_loss", "bank_soft_loss", "bank_same_identity_mass"):
        assert metrics[f"li/{name}"] > 0


@pytest.mark.parametrize("mesh", MESHES)
def test_float64_caption_objectives_agree(micro_config, mesh):
    """The same for all text-to-image objectives, whose draws must not depend on the mesh either."""
    only_captions(micro_config)
    metrics = agree_in_float64(micro_config, mesh, "caption_queue")
    assert metrics["queue_filled"] == 1
    for name in ("contrastive", "matching", "masked", "replaced"):
        assert metrics[f"t2i/{name}_loss"] > 0


def in_float64(variant, config):
    """The variant with a bank that `filled_state` makes float64, as all of the state. Which patches are left out
    (2 of 8), and which of the others are read for editing (4), must not depend on the mesh."""
    variant(config)
    config.model.update({"patch_dropout": 0.25, "editing_patches": 4})
    config.memory_bank.dtype = "float32"


@contextlib.contextmanager
def float64():
    """float64 arrays. flax promotes them with float32 in its norms, which strict promotion, kept elsewhere, forbids."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def agree_in_float64(config, mesh, bank):
    """Three steps on the mesh against one device; returns the metrics of the latter."""
    with float64():
        built, there = (compiled(config, shape, double=True) for shape in (ONE, mesh))
        batch = one_batch(built.data)
        start, reference, metrics = run_step(built, batch, double=True, steps=3)
        _, other, found = run_step(there, batch, double=True, steps=3)
        assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-12)
        moments = [s.opt_state[1][0].mu for s in (other, reference)]
        assert relative_to_norm(*moments) <= 1e-9
        updates = [jax.tree.map(np.subtract, s.params, start) for s in (other, reference)]
        assert relative_to_norm(*updates) <= 1e-9
        if jax.tree.leaves(reference.batch_stats):
            assert relative_to_norm(other.batch_stats, reference.batch_stats) <= 1e-12
        keys, expected = (getattr(s, bank).entries for s in (other, reference))
        assert relative_to_norm(keys, expected) <= 1e-9
        np.testing.assert_array_equal(keys.identity, expected.identity)
    return metrics


def with_raw_similarities(config):
    """IRM++ without centred instructions, of which a second accumulated batch would know the first."""
    with_bank(config)
    config.loss.instruction_similarity = "raw"


def test_a_step_repeats_bit_equal(micro_config):
    with_raw_similarities(micro_config)
    built = compiled(micro_config, (2, 1, 1))
    batch = one_batch(built.data)
    _, first, found = run_step(built, batch)
    _, second, again = run_step(built, batch)
    assert found == again
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.nightly  # in float64 on every push
def test_float32_loss_agrees(micro_config):
    with_raw_similarities(micro_config)
    runs = [compiled(micro_config, mesh) for mesh in (ONE, (2, 1, 1))]
    batch = one_batch(runs[0].data)
    one, two = (run_step(built, batch)[2]["loss"] for built in runs)
    assert two == pytest.approx(one, rel=1e-6)


def test_accumulated_batches_average_their_gradients(micro_config):
    """Two batches a step, each mined alone: the first moments are the mean of those of two separate first steps.

    Both read the bank as it was before the step; afterwards it holds the keys of both, in order. Raw similarities,
    because centred ones of the second batch know the first.
    """
    with_raw_similarities(micro_config)
    built = compiled(micro_config, (2, 1, 1))
    first, second = one_batch(built.data, 0), one_batch(built.data, 1)
    stacked = jax.tree.map(lambda *x: np.stack(x), first, second)
    _, both, metrics = run_step(built, stacked)
    _, a, metrics_a = run_step(built, first)
    # The second batch inherits running statistics from the first; in training, gradients use those of the batch.
    _, b, metrics_b = run_step(built, second)
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
    built = compiled(micro_config, ONE)
    batch = one_batch(built.data)
    _, plain, without = run_step(built, batch, steps=2)
    assert plain.memory_bank is None
    micro_config.memory_bank.update({"size": 1, "weight": 0.0})
    micro_config.momentum.decay = 0.75
    start, banked, metrics = run_step(compiled(micro_config, ONE), batch, steps=2)
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
    built = compiled(micro_config, ONE)
    data, model = built.data, built.model
    batch = jax.tree.map(jnp.asarray, one_batch(data))
    constants = jnp.asarray(data.plan.constant_tokens)
    start = filled_state(built)
    variables = {"params": {**start.params, **start.momentum_params}, "batch_stats": start.batch_stats}
    rows, _ = jax.jit(
        lambda variables: model.apply(
            variables, batch, constants, method="keys", embeddings=True, captions=False, mutable=["batch_stats"]
        )
    )(variables)
    (bank,) = (objective for objective in built.objectives if objective.name == "memory_bank")
    entries = bank.keys_of(rows, start.instruction_mean, batch)
    output, _ = jax.jit(
        lambda params: model.apply(
            {"params": params, "batch_stats": start.batch_stats}, batch, constants, train=True, mutable=["batch_stats"]
        )
    )(start.params)
    neutral = dict(batch)
    for name in ("text", "visual"):  # the neutral sentence is the last of the constants, which count from the end
        own = jnp.full_like(batch[name]["instruction"], -len(constants))
        neutral[name] = {**batch[name], "instruction": own}
    options = {"embeddings": True, "captions": False, "mutable": ["batch_stats"], "method": "keys"}

    @jax.jit
    def under_neutral(variables):
        asked, _ = model.apply(variables, batch, constants, neutral=True, **options)
        given, _ = model.apply(variables, neutral, constants, **options)
        return asked, given

    asked, given = under_neutral(variables)
    np.testing.assert_array_equal(asked.embedding, given.embedding)
    np.testing.assert_array_equal(asked.instruction, rows.instruction)
    assert np.abs(asked.embedding - rows.embedding).max() > 1e-3
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
    built = compiled(micro_config, (4, 2, 1))
    abstract, constants = built.abstract_state(), jnp.asarray(built.data.plan.constant_tokens)
    with jax.set_mesh(built.mesh):
        arrays = mesh_lib.to_global(one_batch(built.data), mesh_lib.batch_sharding(built.mesh))
        program = built.train_step.lower(abstract, arrays, constants, jax.random.key(1)).compile()
    part = math.prod(abstract.memory_bank.entries.key.sharding.shard_shape(abstract.memory_bank.entries.key.shape))
    assert part * 8 == math.prod(abstract.memory_bank.entries.key.shape)
    moved = moved_sizes(program.as_text())
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
    built = compiled(micro_config, ONE)
    _, _, metrics = run_step(built, one_batch(built.data))
    assert metrics["loss"] == pytest.approx(metrics["trad/loss"], rel=1e-5)
    assert metrics["trad/loss"] != pytest.approx(metrics["cc/loss"], rel=1e-3)
    parts = metrics["trad/identity_loss"] + micro_config.loss.alpha * metrics["trad/triplet_loss"]
    assert metrics["trad/loss"] == pytest.approx(parts, rel=1e-5)


def test_overfits_one_batch(micro_config):
    """Sixty steps on one batch: every task's loss falls far below its start, so every part receives its gradient.

    So does that of the bank. In float64, whose program is compiled anyway.
    """
    in_float64(with_bank, micro_config)
    with float64():
        built = compiled(micro_config, ONE, double=True)
        _, _, (start, *_, end) = run_steps(built, one_batch(built.data), double=True, steps=60)
    for task in ("trad", "cc", "ctcc", "vi", "li", "t2i"):
        assert end[f"{task}/loss"] < 0.7 * start[f"{task}/loss"], task
        if task != "t2i":
            assert end[f"{task}/bank_hard_loss"] < 0.7 * start[f"{task}/bank_hard_loss"], task


@pytest.mark.nightly
def test_overfits_one_batch_of_captions(micro_config):
    """Every objective is learned, on a batch whose words are hidden and replaced anew in every step."""
    only_captions(micro_config)
    micro_config.model.update({"width": 64, "projection_width": 32})
    micro_config.optimizer.learning_rate = 2e-3
    micro_config.train.steps = 1000
    built = compiled(micro_config, ONE)
    _, last, (start, *_, end) = run_steps(built, one_batch(built.data), steps=60)
    assert last.memory_bank is None
    names = ("contrastive", "matching", "masked", "replaced")
    parts = sum(micro_config.loss[f"{name}_weight"] * start[f"t2i/{name}_loss"] for name in names)
    assert start["t2i/loss"] == pytest.approx(parts, rel=1e-5)
    for name, share in (("contrastive", 0.8), ("matching", 0.5), ("masked", 0.8), ("replaced", 0.8)):
        assert end[f"t2i/{name}_loss"] < share * start[f"t2i/{name}_loss"], name


def test_the_triplets_unit_is_the_feature_or_the_spread_of_its_data_set(micro_config):
    data = compiled(micro_config, ONE).data
    dataset = jnp.arange(60) % len(data.plan.datasets)
    features = jax.random.normal(jax.random.key(0), (60, 8)) * (1 + dataset[:, None]).astype(jnp.float32)
    mix, units = TrainingMix.of(data, data.space.num_head), {}
    for unit in ("feature", "spread"):
        micro_config.loss.triplet_unit = unit
        objective = IdentityTriplet.from_config(micro_config, mix)
        units[unit] = objective.distance_unit(features, dataset, jnp.ones(60, bool))
    np.testing.assert_array_equal(units["feature"], np.ones(6))
    np.testing.assert_allclose(units["spread"], np.arange(1, 7), rtol=0.3)
