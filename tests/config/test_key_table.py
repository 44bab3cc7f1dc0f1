"""The table of keys that `--keys` prints and the documentation shows."""

from irm_jax.config import get_config, key_table


def test_every_key_has_a_description():
    described = key_table.described()
    assert [key.name for key in described if not key.about] == []
    flat = get_config().to_dict()
    names = {key.name for key in described}
    assert {f"train.{name}" for name in flat["train"]} <= names
    assert {"seed", "data.train.NAME.share", "evaluation.sets.NAME.protocols", "optimizer.options"} <= names


def test_types_and_defaults_are_those_of_the_keys():
    keys = {key.name: key for key in key_table.described()}
    assert (keys["model.width"].type, keys["model.width"].default) == ("int", "None")
    assert (keys["data.max_pixels"].type, keys["data.max_pixels"].default) == ("int", "50_000_000")
    assert (keys["data.train.NAME.task"].type, keys["data.train.NAME.task"].default) == ("str", "required")
    assert keys["model.dtype"].about == "of the computation: float32 | bfloat16; parameters stay float32"


def test_a_word_finds_names_first_and_then_descriptions():
    assert [key.name for key in key_table.matching("--config.momentum.decay")] == ["momentum.decay"]
    assert "train.steps" in [key.name for key in key_table.matching("full training")]
    assert key_table.listed("no such thing") == ""
    assert key_table.nearest("checkpont")[0] == "checkpoint"
