"""The saved form of a model configuration: what one version wrote, every later one reads."""

import dataclasses
import json

import pytest

from irm_jax.models import config, presets

SAVED_TABLE = {
    "preset": "tiny", "dtype": "float32", "scan_layers": False, "remat": "none", "mask_instruction_padding": True,
    "vocab_multiple": 256, "identity_multiple": 1024, "width": 64, "image_size": [64, 32], "image_depth": None,
    "image_heads": None, "patch": None, "stride": None, "stem": None, "part_tokens": None, "text_depth": None,
    "text_heads": None, "max_length": None, "instruction_tokens": None, "instruction_image_size": None,
    "template_depth": None, "template_heads": None, "template_patch": None, "template_stem": None,
    "template_statistics": None, "editing_depth": None, "editing_drop_path": None, "fusion_depth": None,
    "projection_width": None, "mlp_ratio": None, "text_dropout": None, "drop_path": None, "temperature": None,
}  # fmt: skip
"""`config.model` as checkpoints before the resolved configuration hold it (77f4167)."""


@pytest.mark.parametrize("name", presets.PRESETS)
def test_what_is_saved_is_read_back(name):
    before = dataclasses.replace(presets.preset(name), image_encoder_options=(("widths", (1, 2)),))
    assert config.from_json(json.loads(json.dumps(config.to_json(before)))) == before


def test_a_checkpoint_without_a_resolved_configuration():
    found = presets.from_saved_table(SAVED_TABLE, vocab_size=300, num_identities=5)
    expected = presets.preset("tiny", width=64, image_size=(64, 32), vocab_size=512, num_identities=1024)
    assert found == expected
    assert found.image_encoder == "vit"
    assert found.patch_dropout == 0
    assert found.editing_patches is None


def test_keys_that_were_added_or_renamed_since(monkeypatch):
    """A key saved under its former name is read, and one that did not exist takes the value it stood for."""
    current = presets.preset("tiny")
    saved = config.to_json(current)
    for key in config.ADDED:
        del saved[key]
    saved["depth"] = saved.pop("image_depth")
    monkeypatch.setattr(config, "VERSION", 2)
    monkeypatch.setattr(config, "RENAMED", {2: {"depth": "image_depth"}})
    assert config.from_json(saved) == current
    assert config.from_json(config.to_json(current)) == current


def test_a_saved_configuration_that_this_code_cannot_read():
    saved = config.to_json(presets.preset("tiny"))
    with pytest.raises(config.ModelConfigError, match=r"version 99, this code reads \d+: update irm_jax"):
        config.from_json({**saved, "version": 99})
    with pytest.raises(config.ModelConfigError, match="unknown keys colour"):
        config.from_json({**saved, "colour": "red"})
    with pytest.raises(config.ModelConfigError, match="lacks width"):
        config.from_json({key: value for key, value in saved.items() if key != "width"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2.0"}, r"of version 2\.0, this code reads \d+: update irm_jax"),
        ({"version": None}, "of version None, this code reads"),
        ({"version": True}, "of version True, this code reads"),
        ({"width": "wide"}, "width = 'wide'; it must be of type int"),
        ({"width": 0}, "width = 0; it must be at least 1"),
        ({"image_heads": 3}, "width 128 is not divisible by image_heads = 3"),
        ({"dtype": "float4"}, "dtype = 'float4'; it must be one of float32, bfloat16"),
        ({"stem": "fourier"}, "stem = 'fourier'; it must be one of patch, conv"),
        ({"remat": "some"}, "remat = 'some'; it must be one of none"),
        ({"image_size": [64]}, "image_size = .64,.; it must be of type tuple"),
        ({"image_size": [64, -1]}, "image_size = .64, -1.; it must be"),
        ({"drop_path": float("nan")}, "drop_path = nan; it must be of type float"),
        ({"scan_layers": 1}, "scan_layers = 1; it must be of type bool"),
        ({"image_encoder_options": [1]}, "image_encoder_options = .1. is no table"),
    ],
)
def test_a_saved_configuration_of_no_model(changes, message):
    """As a later version might write it, or a slip of an editor."""
    with pytest.raises(config.ModelConfigError, match=message):
        config.from_json({**config.to_json(presets.preset("tiny")), **changes})


@pytest.mark.parametrize("saved", [None, [1], 3, "tiny"])
def test_a_saved_configuration_that_is_no_table(saved):
    with pytest.raises(config.ModelConfigError, match="no table: update irm_jax"):
        config.from_json(saved)


def test_differences_name_the_keys_that_change_parameters():
    saved = presets.preset("tiny")
    other = dataclasses.replace(saved, image_depth=4, dtype="bfloat16", drop_path=0.3, patch_dropout=0.5)
    fewer = dataclasses.replace(saved, editing_patches=16)
    assert config.differences(saved, fewer) == ["editing_patches: checkpoint None, now 16"]
    assert config.differences(saved, other) == ["image_depth: checkpoint 3, now 4"]
    assert config.differences(saved, dataclasses.replace(saved, remat="full")) == []
