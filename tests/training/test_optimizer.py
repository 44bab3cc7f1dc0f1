"""The schedule by hand, weight decay and layer rates, and training with any optimizer of optax."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from irm_jax.checkpoint import CheckpointError, restore_for_evaluation
from irm_jax.config.layer_rates import LayerRates, LayerRatesError
from irm_jax.errors import ConfigError
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.run import build
from irm_jax.training import optimizer
from irm_jax.training.hooks import Evaluating, Report, hooks_of
from irm_jax.training.loop import fit
from irm_jax.training.optimizer import OptimizerOptions


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
    settings = OptimizerOptions(learning_rate=1.0, steps=10, warmup_steps=0, beta1=0.0, beta2=0.0)
    params = {"w": jnp.ones(4)}
    for clip, seen in ((0.0, 100.0), (1.0, 1.0)):
        chain = optimizer.make_optimizer(dataclasses.replace(settings, clip_norm=clip))
        state = chain.init(params)
        with jax.numpy_dtype_promotion("standard"):  # as the training step runs optax
            _, after = chain.update({"w": jnp.full(4, 50.0)}, state, params)
        moments = after[1][0]
        assert float(jnp.sqrt(jnp.sum(moments.mu["w"] ** 2))) == pytest.approx(seen, rel=1e-5)


def tower(blocks):
    layers = {f"layer_{i}": {"kernel": jnp.ones(2)} for i in range(blocks)}
    return {"word_embedding": jnp.ones(2), "blocks": layers, "final_norm": {"scale": jnp.ones(2)}}


def test_layer_decay_by_hand():
    """Three blocks: 1/16 before them, then 1/8, 1/4, 1/2, and 1 after them; nothing outside of an encoder."""
    params = {"image_encoder": tower(3), "text_encoder": tower(1), "head_cls": jnp.ones(2)}
    found = optimizer.factors(params, LayerRates(layer_decay=0.5))
    image, text = found["image_encoder"], found["text_encoder"]
    blocks = [float(image["blocks"][f"layer_{i}"]["kernel"]) for i in range(3)]
    assert [float(image["word_embedding"]), *blocks, float(image["final_norm"]["scale"])] == [
        1 / 16,
        1 / 8,
        1 / 4,
        1 / 2,
        1,
    ]
    assert float(text["word_embedding"]) == 1 / 4
    assert float(found["head_cls"]) == 1
    stacked = {"layers": {"block": {"kernel": jnp.ones((3, 2))}}}
    scanned = {**params, "image_encoder": {**params["image_encoder"], "blocks": stacked}}
    kernel = optimizer.factors(scanned, LayerRates(layer_decay=0.5))["image_encoder"]["blocks"]["layers"]["block"][
        "kernel"
    ]
    assert kernel.tolist() == [[1 / 8], [1 / 4], [1 / 2]]


def test_frozen_parameters_stand_still_and_multipliers_scale_the_step():
    params = {"image_encoder": tower(1), "text_encoder": tower(1), "head_cls": jnp.ones(2)}
    rates = LayerRates("text_encoder/", ("encoder/blocks/=0.25", "encoder/=0.5"))
    settings = OptimizerOptions(learning_rate=1.0, steps=10, warmup_steps=0, weight_decay=0.1, clip_norm=1.0)
    gradient = jax.tree.map(lambda x: 3 * x, params)
    # Frozen gradients do not take part in clipping: 3 a number in 4 arrays of 2 numbers.
    steps = {}
    for name, chain in (
        ("plain", optimizer.make_optimizer(settings)),
        ("rates", optimizer.make_optimizer(dataclasses.replace(settings, rates=rates))),
    ):  # fmt: skip
        state = chain.init(params)
        assert jax.tree.structure(state) == jax.tree.structure(optimizer.make_optimizer(settings).init(params))
        with jax.numpy_dtype_promotion("standard"):
            steps[name], after = chain.update(gradient, state, params)
    assert float(after[1][0].mu["head_cls"][0]) == pytest.approx(0.1 * 3 / np.sqrt(8 * 9), rel=1e-5)
    image, text = steps["rates"]["image_encoder"], steps["rates"]["text_encoder"]
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(text))
    whole = float(steps["rates"]["head_cls"][0])
    assert whole == pytest.approx(float(steps["plain"]["head_cls"][0]), rel=1e-5)
    assert float(image["blocks"]["layer_0"]["kernel"][0]) == pytest.approx(whole / 4, rel=1e-5)
    assert float(image["final_norm"]["scale"][0]) == pytest.approx(whole / 2, rel=1e-5)


def test_frozen_parameters_have_no_gradient_and_no_backward_pass():
    params = {"image_encoder": tower(2), "head_cls": jnp.ones(2)}
    stacked = {"layers": {"block": {"kernel": jnp.ones((2, 2))}}}
    for encoder, frozen in ((tower(2), "encoder/blocks"), ({"blocks": stacked}, "layer_[01]/")):
        params = {"image_encoder": encoder, "head_cls": jnp.ones(2)}

        def loss(p, frozen=frozen):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(optimizer.without_gradient(p, frozen)))

        gradient = jax.grad(loss)(params)
        assert all(np.all(x == 0) for x in jax.tree.leaves(gradient["image_encoder"]["blocks"]))
        assert np.all(gradient["head_cls"] != 0)
        trained = len(jax.tree.leaves(params)) - len(jax.tree.leaves(params["image_encoder"]["blocks"]))
        assert str(jax.make_jaxpr(jax.grad(loss))(params)).count(" = cos ") == trained
    # Of stacked layers that are not all frozen none is cut off: the optimizer keeps the frozen ones from moving.
    encoder = {"image_encoder": {"blocks": stacked}}
    gradient = jax.grad(lambda p: jnp.sum(jax.tree.leaves(optimizer.without_gradient(p, "layer_0/"))[0]))(encoder)
    assert np.all(jax.tree.leaves(gradient)[0] == 1)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters_have_no_moments(name):
    """One number each, at the same paths; the other parameters' steps are those of a model without the frozen ones."""
    params = tower_of({f"layer_0/{path}": leaf[0] for path, leaf in matrices(1).items()})
    params |= {"image_encoder": jax.tree.map(jnp.copy, params["text_encoder"]), "head_cls": jnp.ones((4, 2))}
    options = OptimizerOptions(learning_rate=0.1, steps=10, warmup_steps=0, weight_decay=0.1, name=name)
    frozen = dataclasses.replace(options, rates=LayerRates("^image_encoder"))
    without = {part: params[part] for part in ("text_encoder", "head_cls")}

    def step(options, params):
        chain = optimizer.make_optimizer(options)
        with jax.numpy_dtype_promotion("standard"):
            gradient, before = jax.tree.map(jnp.sin, params), jax.jit(chain.init)(params)
            return jax.jit(chain.update)(gradient, before, params)

    (_, all_learn), (found, state), (expected, _) = step(options, params), step(frozen, params), step(options, without)
    states = all_learn, state
    for part in without:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found[part], expected[part])
    assert all(np.all(x == 0) for x in jax.tree.leaves(found["image_encoder"]))
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for (path, full), small in zip(
        jax.tree_util.tree_leaves_with_path(states[0]), jax.tree.leaves(states[1]), strict=True
    ):
        of_frozen = "image_encoder" in jax.tree_util.keystr(path)
        assert small.size == 1 if of_frozen else small.shape == full.shape


def test_parameters_with_a_factor_of_0_gather_moments_to_learn_later():
    """What a message of `training.resume` advises; with moments of 0 the first step is three times as long."""
    options = OptimizerOptions(learning_rate=1.0, steps=10**9, warmup_steps=0)
    params, gradient = {"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = optimizer.make_optimizer(options).init(params)
    for multipliers, count in ((("^a$=0",), 50), ((), 1)):
        update = jax.jit(
            optimizer.make_optimizer(dataclasses.replace(options, rates=LayerRates(multipliers=multipliers))).update
        )
        for _ in range(count):
            with jax.numpy_dtype_promotion("standard"):
                updates, state = update(gradient, state, params)
        assert float(updates["b"][0]) == pytest.approx(-1, abs=0.01)
        assert float(updates["a"][0]) == (0 if multipliers else pytest.approx(-1, abs=0.01))


def test_parameters_that_begin_to_learn():
    stack = {"layers": {"block": {"kernel": jnp.ones((3, 2))}}}
    params = {"image_encoder": {"blocks": stack}, "head_cls": jnp.ones(2)}
    kernel = "image_encoder/blocks/layer_{}/kernel"
    for before, now, expected in (
        ("layer_[01]/", "layer_0/", [kernel.format(1)]), ("encoder", "", [kernel.format(i) for i in range(3)]),
        ("layer_0/", "encoder", []), ("", "", []), ("", "head", []),
    ):  # fmt: skip
        assert optimizer.thawed(params, before, now) == expected


def test_patterns_without_decay_fit_layers_and_are_refused_where_they_do_nothing():
    stack = {"layers": {"block": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))}}}
    params = {"image_encoder": {"blocks": stack}, "head_cls": jnp.ones(2)}
    options = OptimizerOptions(learning_rate=1.0, steps=10, warmup_steps=0, weight_decay=0.1)
    for no_decay, message in (
        ("LayerNorm", "no parameter's path fits 'LayerNorm'"), ("layer_0/", "'layer_0/' fits some layers of image"),
    ):  # fmt: skip
        for name in ("adamw", "schedule_free", "muon"):
            chain = optimizer.make_optimizer(dataclasses.replace(options, name=name, no_decay=no_decay))
            with pytest.raises(LayerRatesError, match=message):
                chain.init(params)
    chain = optimizer.make_optimizer(dataclasses.replace(options, no_decay="layer_[01]/bias"))
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)
    decays = jax.tree.map(lambda x: bool(np.any(x)), updates)
    assert decays["image_encoder"]["blocks"]["layers"]["block"] == {"kernel": True, "bias": False}


def test_rates_that_cannot_be_meant():
    for rates, message in (
        (LayerRates(multipliers=("0.5",)), "'0.5' is no PATTERN=FACTOR"),
        (LayerRates(multipliers=("a=b",)), "'a=b' is no PATTERN=FACTOR"),
        (LayerRates(multipliers=("a=-1",)), "with a factor >= 0"),
        (LayerRates(frozen="("), "no regular expression"),
        (LayerRates(layer_decay=0.0), "layer_decay = 0.0 must be above 0"),
    ):
        with pytest.raises(LayerRatesError, match=message):
            rates.check()
    with pytest.raises(LayerRatesError, match="no parameter's path fits 'imge_encoder'; the paths begin with head_cls"):
        optimizer.scaled(optax.identity(), LayerRates(frozen="imge_encoder")).init({"head_cls": jnp.ones(2)})


OPTIMIZERS = ("adamw", "lion", "muon", "adafactor", "schedule_free")


def matrices(layers):
    """Parameters of a tower with kernels of every form that muon orthogonalises, as one block or stacked."""
    shapes = {
        "attention/query_key_value": (8, 3, 2, 4), "cross_attention/query": (8, 2, 4), "attention/output": (2, 4, 8),
        "mlp/expand": (8, 16), "mlp/contract": (16, 8), "patch_embedding/conv_1": (3, 3, 2, 8), "pooled_class": (12, 8),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    named = {
        f"{name}/kernel": jnp.asarray(rng.normal(size=(layers, *shape)), jnp.float32) for name, shape in shapes.items()
    }
    return named


def tower_of(blocks):
    return {"text_encoder": {"blocks": unflatten_dict(blocks, sep="/")}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_masks_rates_and_frozen_parameters_go_with_every_optimizer(name):
    """Without a gradient a step is the weight decay alone: rate * decay * parameter, times the rates's factor."""
    params = tower_of({f"layer_0/{path}": leaf[0] for path, leaf in matrices(1).items()})
    params |= {"image_encoder": tower(1), "head_cls": jnp.ones((4, 2)), "norm": {"bias": jnp.ones(2)}}
    options = OptimizerOptions(
        learning_rate=1.0, steps=10, warmup_steps=0, weight_decay=0.1, no_decay="bias$", clip_norm=1.0, name=name,
        rates=LayerRates("image_encoder", ("text_encoder=0.5",)),
    )  # fmt: skip
    chain = optimizer.make_optimizer(options)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)
    rate = 0.1 * float(optimizer.schedule(1.0, 10, 0)(jnp.int32(0)))
    for path, update in flatten_dict(updates, sep="/").items():
        factor = 0.0 if path.startswith("image_encoder") or path.endswith("bias") else 0.5 if "text" in path else 1.0
        expected = -rate * factor * flatten_dict(params, sep="/")[path]
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_clips(name):
    options = OptimizerOptions(learning_rate=0.05, steps=100, warmup_steps=1, clip_norm=1.0, name=name)
    chain = optimizer.make_optimizer(options)
    params = {
        "head_cls": jnp.full((4, 2), 3.0),
        "text_encoder": {"blocks": {"mlp": {"expand": {"kernel": jnp.eye(3)}}}},
    }
    state = chain.init(params)

    @jax.jit
    def step(params, state):
        with jax.numpy_dtype_promotion("standard"):
            gradient = jax.tree.map(lambda x: 1e3 * x, params)  # clipped, or the first step would overflow lion's twin
            updates, state = chain.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

    for _ in range(60):
        params, state = step(params, state)
    found = optimizer.evaluation_params(params, state)
    assert float(optax.tree.norm(found)) < 0.9 * float(np.sqrt(8 * 9 + 3))


def test_muon_orthogonalises_stacked_layers_one_by_one_and_leaves_the_rest_to_adamw():
    options = OptimizerOptions(learning_rate=1.0, steps=10, warmup_steps=0, name="muon")
    kernels, rest = matrices(2), {"head_cls": jnp.ones((4, 2)), "final_norm": {"scale": jnp.ones(3)}}
    stacked = {**rest, **tower_of({f"layers/block/{path}": leaf for path, leaf in kernels.items()})}
    apart = {**rest, **tower_of({f"layer_{i}/{path}": leaf[i] for path, leaf in kernels.items() for i in range(2)})}
    found = []
    for params in (stacked, apart):
        chain = optimizer.make_optimizer(options)
        with jax.numpy_dtype_promotion("standard"):
            found.append(flatten_dict(chain.update(params, chain.init(params), params)[0], sep="/"))
    rate = float(optimizer.schedule(1.0, 10, 0)(jnp.int32(0)))
    matrix = {
        "query_key_value": (8, 3, 8), "query": (8, 1, 8), "output": (8, 1, 8), "expand": (8, 1, 16),
        "contract": (16, 1, 8), "conv_1": (18, 1, 8), "pooled_class": (12, 1, 8),
    }  # fmt: skip
    for path in kernels:
        both = found[0][f"text_encoder/blocks/layers/block/{path}"]
        for layer in range(2):
            one = found[1][f"text_encoder/blocks/layer_{layer}/{path}"]
            np.testing.assert_allclose(both[layer], one, rtol=1e-4, atol=1e-6, err_msg=path)
            shape = matrix[path.split("/")[-2]]
            for part in np.moveaxis(np.asarray(one).reshape(shape), 1, 0):
                values = np.linalg.svd(part / (rate * 0.2 * max(part.shape) ** 0.5), compute_uv=False)
                assert np.all((values > 0.5) & (values < 1.3)), path
    adamw = optimizer.make_optimizer(dataclasses.replace(options, name="adamw", extra={"nesterov": True}))  # as muon's
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = adamw.update(rest, adamw.init(rest), rest)
    for path, leaf in flatten_dict(expected, sep="/").items():
        np.testing.assert_allclose(found[0][path], leaf, rtol=1e-5, err_msg=path)


NOT_POSSIBLE = ("lbfgs", "momo", "momo_adam", "rprop", "sm3", "sophia")
"""Optimizers of optax that need the loss itself, or take no schedule of the learning rate."""


def test_optimizers_and_options_that_optax_does_not_have():
    options = OptimizerOptions(learning_rate=1.0, steps=10, warmup_steps=0)
    for changes, message in (
        ({"name": "adamv"}, "config.optimizer.name = 'adamv' is no optimizer of optax"),
        ({"name": "chain"}, "is no optimizer of optax with a learning rate"),
        (
            {"name": "lion", "extra": {"b3": 0.9}},
            r"config.optimizer.options.b3: optax's lion takes no such option.*b1, b2",
        ),
        ({"name": "lion", "extra": {"learning_rate": 0.9}}, "options.learning_rate"),
        ({"name": "schedule_free", "extra": {"b1": 0.9}}, "options.b1"),
        ({"name": "schedule_free", "beta1": 0.0}, "config.optimizer.beta1 = 0"),
        *(({"name": name}, f"name = '{name}', .*alone") for name in NOT_POSSIBLE),
    ):
        with pytest.raises(ConfigError, match=message):
            optimizer.make_optimizer(dataclasses.replace(options, **changes))
    optimizer.make_optimizer(dataclasses.replace(options, name="lion", extra={"b2": 0.95}))


SETTINGS = {
    "adamw": {}, "lion": {"learning_rate": 5e-4}, "muon": {}, "schedule_free": {},
    "adafactor": {"learning_rate": 3e-2, "options": {"min_dim_size_to_factor": 8}},
}  # fmt: skip


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize(
    "name", [name if name == "schedule_free" else pytest.param(name, marks=pytest.mark.nightly) for name in OPTIMIZERS]
)
def test_twenty_steps_on_four_devices_resume_with_equal_numbers(name, micro_config, tmp_path, monkeypatch):
    """Layers stacked, two batches a step, a frozen tower, layer rates, clipping, a decay mask; data 2 x fsdp 2."""
    monkeypatch.setattr(rules, "SMALL", 64)  # the small arrays of this model are cut too
    config = micro_config
    with config.unlocked():
        for unit in set(config.data.train) - {"procedural_trad"}:
            del config.data.train[unit]
    config.data.batch_size = 32
    config.model.update({"scan_layers": True, "image_depth": 2})
    config.optimizer.update({
        "name": name, "learning_rate": 3e-3, "warmup_steps": 5, "clip_norm": 1.0, "layer_decay": 0.9,
        "no_decay": "bias$", "frozen": "^template_encoder", "accumulate": 2,
    })  # fmt: skip
    with config.unlocked():
        config.optimizer.update(SETTINGS[name])
    config.train.steps, config.checkpoint.every = 20, 10
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "model": 1}, jax.devices()[:4])
    run = build(config, mesh=mesh)

    def train(workdir):
        return fit(run, workdir, hooks_of(config, without=(Evaluating, Report)))

    straight = train(tmp_path / "straight")
    shutil.copytree(tmp_path / "straight/checkpoints/10", tmp_path / "resumed/checkpoints/10")
    resumed = train(tmp_path / "resumed")
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=rules.path_string(path))
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(straight.opt_state))
    if name == "adafactor":  # vectors in place of moments: little, and not cut
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(straight.params))
        assert here < 0.2 * whole
    else:
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(straight.opt_state))
        assert here < 0.75 * whole
    lines = (tmp_path / "straight/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    expected = optimizer.evaluation_params(straight.params, straight.opt_state)
    subset = run.abstract_variables()
    saved, _ = restore_for_evaluation(tmp_path / "straight/checkpoints", subset)
    jax.tree.map(np.testing.assert_array_equal, saved["params"], expected)
    changed = not np.array_equal(expected["head_cls"], straight.params["head_cls"])
    assert changed == (name == "schedule_free")
    refuses_other_settings(config, mesh, tmp_path / "straight")


def refuses_other_settings(config, mesh, workdir):
    """Neither begins to train the frozen tower, nor takes averages for those of another beta1."""
    averages = [("beta1", 0.98, r"beta1 = 0.98, but the averages[^$]*set it to 0.9 again")]
    for key, value, message in (
        ("frozen", "", r"lets \d+ parameters learn \(template_encoder/.*'\^template_encoder' again"),
        *(averages if config.optimizer.name == "schedule_free" else []),
    ):
        other = config.copy_and_resolve_references()
        other.optimizer[key] = value
        with pytest.raises(CheckpointError, match=message):
            fit(build(other, mesh=mesh), workdir, hooks_of(other, without=(Evaluating, Report)))
