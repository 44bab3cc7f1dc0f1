"""A backbone from outside the package (`convnext.py`, one file and one line) does all that the package's own does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnext import ConvNeXt
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from irm_jax import checkpoint, run
from irm_jax.config.check import check
from irm_jax.convert import __main__ as command
from irm_jax.convert import folder, warm_start
from irm_jax.errors import ConfigError
from irm_jax.models import config as models_config
from irm_jax.models import presets
from irm_jax.models.encoders import ENCODERS
from irm_jax.models.irm import IRM, initialise
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """`ENCODERS["convnext"] = ConvNeXt`, for one test."""
    monkeypatch.setitem(ENCODERS, "convnext", ConvNeXt)


@pytest.fixture
def config(micro_config):
    """A micro model on one training set, its ConvNeXt wider than the rest of it."""
    with micro_config.unlocked():
        for name in set(micro_config.data.train) - {"procedural_trad"}:
            del micro_config.data.train[name]
        micro_config.model.image_encoder_options = ConfigDict({"depths": (1, 2), "widths": (64, 128)})
    micro_config.data.batch_size = 32
    micro_config.model.update({"image_encoder": "convnext", "image_depth": None})
    micro_config.mesh.update({"data": 1, "fsdp": 2, "model": 2})
    return micro_config


def test_it_trains_is_saved_restored_and_embeds_on_a_mesh_of_two_by_two(config, tmp_path):
    check(config)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:4])
    parts = run.build(config, mesh=mesh)
    state, constants = parts.fresh_state(), jnp.asarray(parts.data.plan.constant_tokens)
    encoder = state.params["image_encoder"]
    assert encoder["downsample_1"]["kernel"].sharding.spec == P(None, None, None, "fsdp")
    assert encoder["stage_1_0"]["mlp"]["expand"]["kernel"].sharding.spec == P("fsdp", "model")
    before = jax.device_get(state.params)
    losses = []
    with parts.stream(0, 3, workers=0) as stream, jax.set_mesh(mesh):
        for _, batch in stream:
            arrays = mesh_lib.to_global(batch, mesh_lib.batch_sharding(mesh))
            state, metrics = parts.train_step(state, arrays, constants, jax.random.key(0))
            losses.append(float(metrics["loss"]))
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, before)
    assert all(leaf > 0 for leaf in jax.tree.leaves((moved["image_encoder"], moved["encoder_projection"])))

    metadata = {"config": config.to_dict(), "model": models_config.to_json(parts.model.config)}
    with checkpoint.Checkpointer(tmp_path / "checkpoints", async_=False) as checkpoints:
        checkpoints.save(3, state, metadata)
        restored, saved = checkpoints.restore(parts.abstract_state())
    parts.check_checkpoint(models_config.from_json(json.loads(json.dumps(saved["model"]))))
    for (path, found), kept in zip(
        jax.tree_util.tree_leaves_with_path(restored), jax.tree.leaves(state), strict=True
    ):  # fmt: skip
        assert found.sharding.is_equivalent_to(kept.sharding, found.ndim), rules.path_string(path)
        np.testing.assert_array_equal(found, kept)

    model = parts.embedding_model({"params": restored.params, "batch_stats": restored.batch_stats})
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
    embedding = model.embed(lambda number: images[number], ["a man", "ignore clothes"])
    assert embedding.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)


def test_a_configuration_that_does_not_fit_the_encoder_is_refused(config):
    for change, message in (
        ({"image_depth": 3}, "image encoder 'convnext' does not read image_depth; leave them unset"),
        ({"patch_dropout": 0.5}, "image encoder 'convnext' does not read patch_dropout; leave them unset"),
        ({"preset": "small"}, "ConvNeXt has no sizes for the preset 'small'; it has some for tiny, base"),
        ({"image_size": (60, 32)}, r"\(60, 32\) is no multiple of the stride 8"),
        ({"image_encoder": "resnet"}, "unknown image encoder 'resnet'; the image encoders are vit, convnext"),
        ({"image_encoder": "vit", "image_depth": 1}, "ViT has no option depths, widths; its own are none"),
    ):
        before = {key: config.model[key] for key in change}
        config.model.update(change)
        with pytest.raises(ConfigError, match=message):
            check(config)
        config.model.update(before)
    config.data.growth = ("0=0.5", "1=1")
    with pytest.raises(ConfigError, match="growth: the image encoder 'convnext' reads images of one size; leave con"):
        check(config)


def test_an_encoder_of_the_models_width_brings_no_projection():
    def names(**options):
        model = IRM(presets.preset("tiny", image_encoder="convnext", image_encoder_options=tuple(options.items())))
        init = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 40), jnp.int32), method=initialise))
        return set(init["params"])

    assert names(widths=(8, 16, 128)) | {"encoder_projection"} == names(widths=(8, 16, 32))


def weight_file(file, depths, widths):
    """Random tensors with the names of timm's ConvNeXt."""
    rng = np.random.default_rng(0)

    def layer(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = layer("stem.0", widths[0], 3, 4, 4) | layer("stem.1", widths[0]) | layer("head.norm", widths[-1])
    shapes |= layer("head.fc", 5, widths[-1])
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            shapes |= layer(f"stages.{stage}.downsample.0", widths[stage - 1])
            shapes |= layer(f"stages.{stage}.downsample.1", width, widths[stage - 1], 2, 2)
        for n in range(depth):
            block = f"stages.{stage}.blocks.{n}"
            shapes |= layer(f"{block}.conv_dw", width, 1, 7, 7) | layer(f"{block}.norm", width)
            shapes |= layer(f"{block}.mlp.fc1", 4 * width, width) | layer(f"{block}.mlp.fc2", width, 4 * width)
            shapes[f"{block}.gamma"] = (width,)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, file)
    return tensors


def test_its_weight_files_are_converted_there_and_back_and_start_a_model(tmp_path, config):
    tensors = weight_file(tmp_path / "timm.safetensors", (1, 2), (8, 24))
    out = str(tmp_path / "out")
    assert command.main(["--kind", "convnext", "--source", str(tmp_path / "timm.safetensors"), "--out", out]) == 0
    record, arrays = folder.load(out)
    assert (record["encoder"], record["initial"]) == ("convnext", [])
    assert [name for name, _ in record["left"]] == ["head.fc.bias", "head.fc.weight"]
    assert command.main(["--source", out, "--to_torch", str(tmp_path / "back.safetensors")]) == 0
    for name, tensor in load_file(tmp_path / "back.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)

    config.init.image_encoder = out
    with pytest.raises(ConfigError, match=r"it has widths \[8, 24\], the model \(64, 128\): set .*options\.widths"):
        check(config)
    with config.unlocked():
        config.model.image_encoder_options.update({"depths": (1, 2), "widths": (8, 24)})
    check(config)
    model = run.model_config(config)
    init = jax.eval_shape(lambda: IRM(model).init(jax.random.key(0), jnp.ones((1, 40), jnp.int32), method=initialise))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), init)
    started = warm_start.warm_start(zeros, model, warm_start.Sources(image_encoder=out))
    found = flatten_dict(started["params"]["image_encoder"], sep="/")
    assert {f"image_encoder/{path}" for path in found} == set(arrays)
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, arrays[f"image_encoder/{path}"], err_msg=path)
    config.model.update({"image_encoder": "vit", "image_depth": 1})
    with config.unlocked():
        config.model.image_encoder_options = ConfigDict()
    with pytest.raises(ConfigError, match=r"holds weights of the image encoder convnext, the model has vit there"):
        check(config)
