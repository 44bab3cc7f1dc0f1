"""configs/own.py: one key makes the entries of data.train and evaluation.sets; what is set already stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from irm_jax.config import load, own_data
from irm_jax.config.check import check
from irm_jax.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "data_pipelines"))
sys.path.insert(0, str(Path(__file__).parents[1] / "data_pipelines" / "own"))
from test_plan import write_table


def completed(tmp_path: Path, *columns: str, **keys: object) -> ConfigDict:
    config = load("own")
    config.data.dir = str(tmp_path / "data")
    config.data.table = write_table(tmp_path, *columns).table
    for key, value in keys.items():
        config.data[key] = value
    own_data.complete(config)
    check(config)
    return config


def test_one_key_is_enough(tmp_path: Path) -> None:
    config = completed(tmp_path, "camera", "clothes", "caption", "attributes", "modality", "instruction_image")
    tasks = ["trad", "cc", "ctcc", "vi", "t2i", "li"]
    assert sorted(config.data.train) == sorted(config.evaluation.sets) == sorted(f"my_crops_{task}" for task in tasks)
    assert config.data.train.my_crops_cc.data_set == "my_crops"
    assert config.evaluation.sets.my_crops_li.protocols == ("requested_outfit", "market")
    assert config.data.batch_size == 6 * 32
    assert Path(config.data.dir).name.startswith("my_crops-")


def test_what_is_set_stays(tmp_path: Path) -> None:
    config = load("own")
    config.data.own.tasks = ("trad",)
    config.data.table = write_table(tmp_path, "camera", "clothes").table
    config.data.batch_size = 64
    own_data.complete(config)
    assert list(config.data.train) == ["my_crops_trad"]
    assert config.data.batch_size == 64
    with pytest.raises(ConfigError, match="makes its own entries"):
        own_data.complete(config)


def test_the_settings_are_those_of_market1501(tmp_path: Path) -> None:
    """A table of Market-1501 trains as configs/market1501.py does, but for names, length and a repeat of few people."""
    config = load("own")
    config.data.own.tasks = ("trad",)
    config.data.table = write_table(tmp_path, "camera").table
    own_data.complete(config)
    mine, official = config.to_dict(), load("market1501").to_dict()
    differ = {
        f"{table}.{key}"
        for table, keys in official.items() if isinstance(keys, dict)
        for key, value in keys.items() if mine[table][key] != value
    }  # fmt: skip
    assert differ == {"data.dir", "data.table", "data.own", "data.train", "data.repeat_people", "evaluation.sets",
                      "train.steps", "checkpoint.every"}  # fmt: skip
    (unit,), (official_unit,) = mine["data"]["train"].values(), official["data"]["train"].values()
    assert {key for key in unit if unit[key] != official_unit[key]} == {"data_set"}


@pytest.mark.nightly
def test_a_table_is_trained_and_evaluated_by_one_command(tmp_path: Path) -> None:
    options = write_table(tmp_path, "camera", "clothes", "caption")
    command = [
        sys.executable, "-m", "irm_jax.main", "--config", "own", f"--config.data.table={options.table}",
        "--config.train.steps=2", "--config.optimizer.warmup_steps=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    del environment["XLA_FLAGS"]  # one device, as a user has
    for mode in ("train", "evaluate"):
        done = subprocess.run(
            [*command, "--mode", mode], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "trad, cc (clothes), t2i (caption); not ctcc: no column instruction_image" in done.stderr
    assert len(list((tmp_path / "runs/own/evaluations").glob("*/report.html"))) == 2
