"""From a configuration to open data sets: what is missing is built, what is other than asked is an error."""

import pytest

from data_pipelines import joint_data
from data_pipelines.shards import DatasetError


def test_drawn_data_of_other_options_are_refused(micro_config):
    names = ["procedural_trad", "procedural_cc"]
    assert list(joint_data.open_datasets(micro_config, names)) == names
    micro_config.data.procedural.seed = 7
    micro_config.data.procedural.hard = True
    message = r"procedural_trad was drawn with other options.*: seed = 0, not 7; hard = False, not True\. Choose"
    with pytest.raises(DatasetError, match=message):
        joint_data.open_datasets(micro_config, names)


def test_missing_data_are_built_only_if_allowed(micro_config, tmp_path):
    micro_config.data.dir = str(tmp_path / "new")
    micro_config.data.build_missing = False
    with pytest.raises(DatasetError, match=r"the data folder .*new does not exist: build the data set"):
        joint_data.open_datasets(micro_config, ["procedural_trad"])
    assert not (tmp_path / "new").exists()
    micro_config.data.build_missing = True
    micro_config.data.procedural.update({"train_people": 2, "test_people": 4, "extras": ("hat",)})
    opened = joint_data.open_datasets(micro_config, ["procedural_trad"])
    assert "hat" in opened["procedural_trad"].manifest.source["slots"]
