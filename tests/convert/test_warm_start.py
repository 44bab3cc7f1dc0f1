"""Converted weights in a fresh state: what is filled, what stays, what is resized, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from started import warm_start
from weights import SIZES

from irm_jax import checkpoint, run
from irm_jax.config import keys, load
from irm_jax.config.check import check
from irm_jax.convert import folder, manifest, to_torch
from irm_jax.convert.conversion import Options
from irm_jax.convert.kinds import convert
from irm_jax.convert.source import Source
from irm_jax.convert.warm_start import Sources, _filled, _without_pooled_part
from irm_jax.errors import ConfigError
from irm_jax.models.encoders import positions
from irm_jax.models.weight_files import ConvertError, stacked_layers
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import state


def test_towers_fill_their_part_and_nothing_else(folders, fresh):
    model, before = fresh
    sources = Sources(image_encoder=folders["pass"], text_encoder=folders["bert"], template_encoder=folders["vit"])
    started = warm_start(before, model, sources)
    found = flatten_dict(started.params, sep="/")
    unchanged = flatten_dict(before.params, sep="/")
    _, image = folder.load(folders["pass"])
    _, text = folder.load(folders["bert"])
    _, plain = folder.load(folders["vit"])
    for path, leaf in found.items():
        assert leaf.sharding.is_equivalent_to(unchanged[path].sharding, leaf.ndim), path
        np.testing.assert_array_equal(started.momentum_params.get(path.split("/")[0]) is None, path.startswith("head_"))
        if not path.startswith(("image_encoder", "text_encoder", "template_encoder")):
            np.testing.assert_array_equal(leaf, np.ones_like(leaf), err_msg=path)
    # PASS: all four special tokens, positions from 4 x 2 to 6 x 3 patches.
    np.testing.assert_array_equal(found["image_encoder/special_tokens"], image["image_encoder/special_tokens"])
    resized = positions.resize(image["image_encoder/grid_positions"], (6, 3), "bilinear")
    np.testing.assert_array_equal(found["image_encoder/grid_positions"], resized)
    # BERT: one of its two layers, ten of its sixteen positions, its twenty words in a table of 32.
    words = np.asarray(found["text_encoder/word_embedding"])
    np.testing.assert_array_equal(words[:20], text["text_encoder/word_embedding"])
    np.testing.assert_array_equal(words[20:], 1)
    np.testing.assert_array_equal(
        found["text_encoder/position_embedding"], text["text_encoder/position_embedding"][:10]
    )
    assert sum(path.startswith("text_encoder/blocks/layer_") for path in found) == 16 - 4
    # A plain ViT as template encoder: from its image encoder, layer scale in the output layers.
    kernel = "blocks/layer_1/mlp/contract/kernel"
    scaled = plain[f"image_encoder/{kernel}"] * plain["image_encoder/layer_scale/1/mlp"]
    np.testing.assert_array_equal(found[f"template_encoder/{kernel}"], scaled)
    expand = "blocks/layer_1/mlp/expand/kernel"
    np.testing.assert_array_equal(found[f"template_encoder/{expand}"], plain[f"image_encoder/{expand}"])


def test_fewer_and_more_special_tokens(folders, fresh):
    """A plain ViT in a model with part tokens fills the class token; PASS in one without gives its class token."""
    sources = Sources(image_encoder=folders["vit"], template_encoder=folders["pass"])
    params = warm_start(fresh[1], fresh[0], sources).params
    tokens = params["image_encoder"]["special_tokens"]
    np.testing.assert_array_equal(tokens[:, :1], folder.load(folders["vit"])[1]["image_encoder/special_tokens"])
    np.testing.assert_array_equal(tokens[:, 1:], 1)
    tokens = params["template_encoder"]["special_tokens"]
    np.testing.assert_array_equal(tokens, folder.load(folders["pass"])[1]["image_encoder/special_tokens"][:, :1])


def test_a_whole_released_model(folders, fresh):
    started = warm_start(fresh[1], fresh[0], Sources(model=folders["irm_release"]))
    _, arrays = folder.load(folders["irm_release"])
    params, stats = flatten_dict(started.params, sep="/"), flatten_dict(started.batch_stats, sep="/")
    # The heads are of other identities and stay; everything else is filled.
    assert {p for p, x in params.items() if np.all(np.asarray(x) == 1)} == {"head_cls", "head_person", "head_guided"}
    variance = np.asarray(stats["edited_neck/statistics/var"])
    np.testing.assert_array_equal(variance[:8], arrays["batch_stats/edited_neck/statistics/var"][:8])
    np.testing.assert_array_equal(variance[:8], variance[8:])
    path = "editing_transformer/blocks/layer_1/mlp/expand/kernel"
    np.testing.assert_array_equal(params[path], arrays[path])


def test_scanned_layers_are_stacked():
    arrays = {f"a/blocks/layer_{i}/kernel": np.full(2, i) for i in range(11)}
    arrays |= {"editing_transformer/blocks/layer_0/kernel": np.ones(2), "a/norm": np.ones(1)}
    found = stacked_layers(arrays)
    assert found["a/blocks/layers/block/kernel"].tolist() == [[i, i] for i in range(11)]
    assert set(found) == {"a/blocks/layers/block/kernel", "editing_transformer/blocks/layer_0/kernel", "a/norm"}


def test_a_tower_replaces_that_of_the_model_and_the_editing_blocks_can_follow_it(folders, fresh):
    model, before = fresh
    sources = Sources(model=folders["irm_release"], image_encoder=folders["pass"], editing_blocks=True)
    params = flatten_dict(warm_start(before, model, sources).params, sep="/")
    _, image = folder.load(folders["pass"])
    for path, array in image.items():
        if "/blocks/" in path:
            np.testing.assert_array_equal(params[path], array)
            np.testing.assert_array_equal(params[path.replace("image_encoder", "editing_transformer")], array)


def test_a_run_goes_out_in_released_names_and_comes_back(folders, fresh, tmp_path):
    """A checkpoint as a released file, converted again: the same model."""
    model, before = fresh
    started = warm_start(before, model, Sources(model=folders["irm_release"], editing_blocks=True))
    config = keys.get_config()
    config.model.update({**SIZES, "preset": "small"})
    with checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", async_=False) as checkpoints:
        parts = jax.device_get({"params": started.params, "batch_stats": started.batch_stats})
        checkpoints.save(3, parts, {"config": config.to_dict()})
    file = tmp_path / "out.safetensors"
    written, left, _ = to_torch.export_run(tmp_path / "run", "irm_release", file)
    assert "visual_encoder.part_token2" in written
    assert left == []
    source = Source(file)
    back = convert("irm_release", source, Options(heads=2))
    assert back.left == []
    for path, leaf in flatten_dict(started.params, sep="/").items():
        np.testing.assert_array_equal(back.arrays[path], leaf, err_msg=path)
    assert back.initial == []


def test_a_tower_from_elsewhere_starts_without_a_pooled_part():
    """The other tower, which no source fills, keeps the pooled part that it was drawn with."""
    tower = {"special_tokens": np.ones((1, 1, 2)), "pooled_class": {"kernel": np.ones((4, 2)), "bias": np.ones(2)}}
    params = {"image_encoder": tower, "template_encoder": tower}
    found = _without_pooled_part(params, {"image_encoder/special_tokens": np.ones((1, 1, 2))})
    assert set(found) == {
        f"image_encoder/{name}" for name in ("special_tokens", "pooled_class/kernel", "pooled_class/bias")
    }
    assert not found["image_encoder/pooled_class/kernel"].any()
    with pytest.raises(
        ConvertError, match="image_encoder starts from the pooled patches, which no file of kind irm_re"
    ):
        to_torch._check_layout("irm_release", {"image_encoder/pooled_class/kernel": np.ones((4, 2))})


def test_what_does_not_fit_is_named_with_both_sides():
    tree = {"bias": np.ones((3, 4, 2), np.float32)}
    with pytest.raises(ConvertError, match=r"bias: the source has \[3, 2, 4\], the model \[3, 4, 2\]"):
        _filled(tree, {"bias": np.ones((3, 2, 4), np.float32)})
    with pytest.raises(ConvertError, match=r"scale \[2\] has no place in this model"):
        _filled(tree, {"scale": np.ones(2, np.float32)})


def test_nothing_asked_nothing_changed(fresh):
    assert warm_start(fresh[1], fresh[0], Sources()) is fresh[1]


def test_the_configuration_is_checked_before_anything_starts(folders):
    config = load("procedural")
    config.model.update({**SIZES, "part_tokens": 3})
    check(config)
    config.init.image_encoder = folders["pass"]
    check(config)
    for key, value, message in (
        ("image_heads", 4, "it has image_heads 2, the model 4: set config.model.image_heads=2"),
        ("image_depth", 3, "it has image_depth 2, the model 3"),
        ("patch", 3, "it has patches of 4 pixels, the model of 3: set config.model.patch=4"),
        ("stem", "conv", "set config.model.stem=patch"),
        ("mlp_ratio", 2.0, "it has mlp_ratio 1.5"),
    ):
        before = config.model[key]
        config.model.update({key: value})
        with pytest.raises(ConfigError, match=message):
            check(config)
        config.model.update({key: before})
    config.init.text_encoder = folders["bert"]
    with pytest.raises(ConfigError, match=r"word table has 20 entries, config.data.vocab = 'builtin' has \d+: set"):
        check(config)
    config.init.update({"text_encoder": "", "model": folders["pass"]})
    with pytest.raises(ConfigError, match=r"kind pass without template_encoder, text_encoder is no whole model"):
        check(config)
    config.init.update({"model": "/nowhere"})
    with pytest.raises(ConfigError, match=r"/nowhere holds no readable manifest.json"):
        check(config)


def test_converted_weights_can_be_evaluated_without_training(folders, fresh, monkeypatch):
    monkeypatch.setattr(state, "create_state", lambda *_: fresh[1])
    config = load("procedural")
    config.model.update({**SIZES, "vocab_multiple": 32})
    config.init.model = config.data.vocab = folders["irm_release"]
    with pytest.raises(ConfigError, match=r"without \[SEP\] at the end.*set config.model.sentence_sep=False"):
        check(config)
    config.model.sentence_sep = False
    check(config)
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 1, "model": 1}, jax.devices()[:2])
    embedder = run.untrained(config, mesh=mesh).initial_model()
    _, arrays = folder.load(folders["irm_release"])
    found = flatten_dict(embedder.variables["params"], sep="/")
    np.testing.assert_array_equal(found["text_encoder/word_embedding"][:20], arrays["text_encoder/word_embedding"])
    np.testing.assert_array_equal(found["edited_neck/scale"], arrays["edited_neck/scale"])
    assert embedder.tokenizer.vocab_size == 20
    assert not embedder.tokenizer.sep


def test_words_must_be_the_same_ones(folders):
    found = {**manifest.read(folders["bert"]), "vocabulary": manifest.fingerprint(["a", "b"])}
    found["towers"]["text_encoder"]["vocab_size"] = 2
    assert list(manifest._other_words(found, "X", ["a", "b"], "Y")) == []
    assert "its words differ from config.data.vocab = 'Y': set config.data.vocab=X" in next(
        manifest._other_words(found, "X", ["b", "a"], "Y")
    )


def test_sources_are_the_keys_of_the_configuration():
    assert sorted(keys.get_config().init) == sorted(field.name for field in dataclasses.fields(Sources))
