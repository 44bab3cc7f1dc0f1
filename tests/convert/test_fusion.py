"""What reads captions and images together: from which sources it starts, what stays, and how it goes out again."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from started import warm_start
from weights import SIZES

from irm_jax import checkpoint
from irm_jax.config import keys, load
from irm_jax.config.check import check
from irm_jax.convert import folder, manifest, to_torch
from irm_jax.convert.conversion import Options
from irm_jax.convert.kinds import convert
from irm_jax.convert.source import Source
from irm_jax.convert.warm_start import Sources
from irm_jax.errors import ConfigError
from irm_jax.models.weight_files import ConvertError, stacked_layers

CROSS = ("cross_attention", "norm_cross_attention")


def filled(params):
    """The paths that are not all 1 any more."""
    return {path for path, leaf in flatten_dict(params, sep="/").items() if not np.all(np.asarray(leaf) == 1)}


def below(paths, *tops):
    return {path for path in paths if path.split("/")[0] in tops}


def test_albef_starts_the_layers_that_read_images_and_their_heads(folders, fresh_fusion):
    model, before = fresh_fusion
    started = warm_start(before, model, Sources(text_encoder=folders["albef"]))
    params = flatten_dict(started.params, sep="/")
    _, source = folder.load(folders["albef"])
    own = below(params, "fusion_encoder", "matching_head", "word_head")
    assert own == below(filled(started.params), "fusion_encoder", "matching_head", "word_head")
    for path in own - {"word_head/word_bias"}:  # one layer of its two
        np.testing.assert_array_equal(params[path], source[path], err_msg=path)
        np.testing.assert_array_equal(flatten_dict(started.momentum_params, sep="/")[path], source[path], err_msg=path)
    bias = np.asarray(params["word_head/word_bias"])  # twenty words in a table of 32
    np.testing.assert_array_equal(bias[:20], source["word_head/word_bias"])
    np.testing.assert_array_equal(bias[20:], 1)
    # ALBEF has no head of replaced words, and its projections fit its own image encoder only.
    assert not below(filled(started.params), "replaced_head", "image_projection", "text_projection", "temperature")
    both = warm_start(before, model, Sources(text_encoder=folders["albef"], image_encoder=folders["albef"])).params
    np.testing.assert_array_equal(both["image_projection"]["kernel"], source["image_projection/kernel"])
    np.testing.assert_array_equal(both["temperature"], source["temperature"])


def test_a_plain_bert_starts_what_is_not_cross_attention(folders, fresh_fusion):
    """Its layers after the text layers, as ALBEF began; its head of hidden words too, if it has one."""
    model, before = fresh_fusion
    model = dataclasses.replace(model, text_depth=1)
    for name, heads in (("bert", set()), ("masked_bert", {"word_head"})):
        _, source = folder.load(folders[name])
        params = warm_start(before, model, Sources(text_encoder=folders[name])).params
        found = below(filled(params), "fusion_encoder")
        assert found == {p for p in flatten_dict(params, sep="/") if p.startswith("fusion_encoder/layer_0/")
                         and p.split("/")[2] not in CROSS}  # fmt: skip
        for path in found:
            there = path.replace("fusion_encoder/layer_0", "text_encoder/blocks/layer_1")
            np.testing.assert_array_equal(flatten_dict(params, sep="/")[path], source[there], err_msg=path)
        assert {p.split("/")[0] for p in below(filled(params), *manifest.WITH_TEXT)} == {"fusion_encoder"} | heads
    # All of its layers are text layers of the model: nothing is left for the others.
    params = warm_start(before, dataclasses.replace(model, text_depth=2), Sources(text_encoder=folders["bert"])).params
    assert not below(filled(params), *manifest.WITH_TEXT)


def test_stacked_layers_of_which_a_bert_has_the_first(folders, fresh_fusion):
    model, before = fresh_fusion
    leaf = before.params["fusion_encoder"]["layer_0"]["mlp"]["expand"]["bias"]
    scanned = dataclasses.replace(model, text_depth=1, fusion_depth=3, scan_layers=True)
    arrays = {f"fusion_encoder/layer_{n}/mlp/expand/bias": np.full(12, n, np.float32) for n in range(3)}
    assert stacked_layers(arrays)["fusion_encoder/layers/block/mlp/expand/bias"][:, 0].tolist() == [0, 1, 2]
    from irm_jax.convert import warm_start as module

    _, source = folder.load(folders["bert"])
    path = "fusion_encoder/layers/block/mlp/expand/bias"
    wanted = stacked_layers(module._with_text(source, scanned, "text_encoder"))
    tree = {"fusion_encoder": {"layers": {"block": {"mlp": {"expand": {"bias": jax.device_put(
        np.ones((3, *leaf.shape), np.float32))}}}}}}  # fmt: skip
    stacked = np.asarray(flatten_dict(module._filled(tree, {path: wanted[path]}), sep="/")[path])
    np.testing.assert_array_equal(stacked[0], source["text_encoder/blocks/layer_1/mlp/expand/bias"])
    np.testing.assert_array_equal(stacked[1:], 1)


def test_a_model_without_such_layers_says_what_it_leaves(folders, fresh, caplog):
    model, before = fresh
    with caplog.at_level(logging.INFO, logger="absl"):
        params = warm_start(before, model, Sources(text_encoder=folders["albef"])).params
    assert {path.split("/")[0] for path in filled(params)} == {"text_encoder"}
    for name in ("fusion_encoder", "word_head", "matching_head"):
        assert f"init.text_encoder: left: {name}, since no layer of the model reads images" in caplog.text
    assert "since the image encoder comes from elsewhere" in caplog.text
    assert "initial stay cls_neck, edited_neck, editing_transformer, head_cls" in caplog.text


def test_the_parts_follow_the_text_encoder(folders, fresh_fusion):
    """A text encoder beside a whole model: the model's layers read another one's tokens, and stay out."""
    model, before = fresh_fusion
    whole = warm_start(before, model, Sources(model=folders["irm_release"])).params
    assert {p.split("/")[0] for p in below(filled(whole), *manifest.WITH_TEXT)} == {*manifest.WITH_TEXT}
    other = warm_start(before, model, Sources(model=folders["irm_release"], text_encoder=folders["bert"])).params
    assert not below(filled(other), *manifest.WITH_TEXT)


def test_depths_that_do_not_fit_are_found_before_anything_starts(folders):
    config = load("procedural")
    config.model.update({**SIZES, "vocab_multiple": 32, "text_depth": 1, "fusion_depth": 1})
    config.init.model = config.data.vocab = folders["irm_release"]
    message = "2 layers that read images after 2 of text, the model 1 after 1: set config.model.text_depth=2 and"
    with pytest.raises(ConfigError, match=message):
        check(config)
    config.model.update({"text_depth": 2, "sentence_sep": False})
    check(config)


CAPTIONS = {
    "text_encoder", "fusion_encoder", "word_head", "matching_head", "image_projection", "text_projection",
    "temperature",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(folders, fresh_fusion, tmp_path_factory):
    """(parameters, folder) of a run by its number of part tokens; no array is like another."""
    model, before = fresh_fusion
    model = dataclasses.replace(model, vocab_size=20)
    params = jax.device_get(warm_start(before, model, Sources(model=folders["irm_release"])).params)
    found = {}
    for parts in (3, 0):
        params = {**params, "image_encoder": dict(params["image_encoder"])}
        for name in ("special_tokens", "special_positions"):
            params["image_encoder"][name] = params["image_encoder"][name][:, : 1 + parts]
        config = keys.get_config()
        config.model.update({**SIZES, "preset": "small", "text_depth": 2, "fusion_depth": 1, "part_tokens": parts})
        folder_ = tmp_path_factory.mktemp(f"run{parts}")
        with checkpoint.Checkpointer(folder_ / "checkpoints", async_=False) as checkpoints:
            batch_stats = jax.device_get(before.batch_stats)
            checkpoints.save(3, {"params": params, "batch_stats": batch_stats}, {"config": config.to_dict()})
        found[parts] = (flatten_dict(params, sep="/"), folder_)
    return found


@pytest.mark.parametrize(
    ("kind", "parts", "holds"),
    [
        ("irm_release", 3, None), ("pass", 3, {"image_encoder"}), ("bert", 3, {"text_encoder"}),
        ("vit", 0, {"image_encoder"}), ("albef", 0, {"image_encoder", *CAPTIONS}),
    ],
)  # fmt: skip
def test_a_run_goes_out_in_the_names_of_a_kind_and_comes_back(runs, tmp_path, kind, parts, holds):
    """Every number of every tower that the kind has, bit by bit."""
    params, workdir = runs[parts]
    written, left, _ = to_torch.export_run(workdir, kind, tmp_path / "out.safetensors")
    source = Source(tmp_path / "out.safetensors")
    assert sorted(source.tensors) == written
    back = convert(kind, source, Options(heads=2, hw_ratio=2))
    assert back.left == []
    holds = holds or {path.split("/")[0] for path in params}
    expected = {path: leaf for path, leaf in params.items() if path.split("/")[0] in holds}
    assert {path for path in back.arrays if not path.startswith("batch_stats/")} == set(expected)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(back.arrays[path], leaf, err_msg=path)
    assert {path for path in left if not path.startswith("batch_stats/")} == set(params) - set(expected)


@pytest.mark.parametrize(("kind", "parts", "other"), [("vit", 3, 0), ("albef", 3, 0), ("pass", 0, 3)])
def test_part_tokens_that_a_kind_has_no_place_for(runs, tmp_path, kind, parts, other):
    with pytest.raises(ConvertError, match=rf"image_encoder/special_tokens holds {1 + parts} .*part_tokens={other}"):
        to_torch.export_run(runs[parts][1], kind, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())
