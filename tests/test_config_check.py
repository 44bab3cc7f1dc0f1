"""Wrong configurations are answered with the key, the cause and the cure, before any device is touched."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import cpu_small, default, market1501, procedural, quickstart
from irm_jax.config_check import ConfigError, check

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("module", [procedural, quickstart, cpu_small, market1501])
def test_shipped_configurations_pass(module):
    check(module.get_config())


CASES = {
    "unknown key": (lambda c: c.optimizer.update({"lerning_rate": 1.0}), r"optimizer.lerning_rate.*learning_rate"),
    "unknown key of a unit": (
        lambda c: c.data.train.procedural_cc.update({"outfit": 2}), r"train.procedural_cc.outfit.*outfits",
    ),
    "wrong type": (lambda c: c.train.update({"steps": "many"}), r"train.steps = 'many'.*must be int"),
    "preset": (lambda c: c.model.update({"preset": "huge"}), r"'huge'; the presets are tiny, small, base"),
    "one image an identity": (
        lambda c: c.data.train.procedural_cc.update({"images_per_identity": 1}), r"needs at least 2 images",
    ),
    "blocks and mesh": (lambda c: c.mesh.update({"data": 3}), r"batch_blocks = 4 is not a multiple.*= 3; set it to 3"),
    "no data": (lambda c: setattr(c.data, "train", ConfigDict()), r"data.train is empty"),
    "tau": (lambda c: c.evaluation.update({"taus": (0.5, 1.5)}), r"taus.*between 0 and 1"),
    "task": (lambda c: c.data.train.procedural_cc.update({"task": "clothes"}), r"'clothes'; the tasks are trad, cc"),
    "weights": (
        lambda c: [unit.update({"loss_weight": 0.0}) for unit in c.data.train.values()],
        r"loss_weight of every data set",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(case):
    change, message = CASES[case]
    config = procedural.get_config()
    with config.unlocked(), config.ignore_type():
        change(config)
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_every_key_has_a_comment():
    """configs/default.py is the reference of all keys: each assignment says what it is."""
    lines = Path(default.__file__).read_text().splitlines()
    keys = [line for line in lines if line.startswith("    config.") and " = " in line and "ConfigDict()" not in line]
    assert len(keys) > 60
    assert [line for line in keys if "  # " not in line and "placeholder" not in line] == []


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "irm_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_command_line_names_the_nearest_key():
    result = run("--config", "configs/quickstart.py", "--config.optimizer.lerning_rate=1")
    assert result.returncode == 2
    said = result.stdout + result.stderr
    assert "config.optimizer.lerning_rate; did you mean config.optimizer.learning_rate?" in said
    assert "xla_bridge" not in said  # jax's own log line at the first touch of a device


def test_command_line_rejects_a_wrong_type():
    result = run("--config", "configs/quickstart.py", "--config.train.steps=many")
    assert result.returncode != 0
    assert "steps" in result.stderr


def test_help_explains_the_modes():
    result = run("--help")
    said = " ".join((result.stdout + result.stderr).split())
    assert "train, evaluate a checkpoint, embed a folder, or compare two runs" in said
