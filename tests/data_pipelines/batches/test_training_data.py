"""From a configuration to open data sets: missing ones are built, ones of other options are an error."""

import functools
from concurrent import futures

import pytest

from data_pipelines import files
from data_pipelines.batches import training_data
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError


def test_drawn_data_of_other_options_are_refused(micro_config):
    names = ["procedural_trad", "procedural_cc"]
    assert list(training_data.open_datasets(micro_config, names)) == names
    micro_config.data.procedural.seed = 7
    micro_config.data.procedural.hard = True
    message = r"procedural_trad was drawn with other options.*: seed = 0, not 7; hard = False, not True\. Choose"
    with pytest.raises(DatasetError, match=message):
        training_data.open_datasets(micro_config, names)


def test_more_identities_than_a_data_set_has(micro_config):
    micro_config.data.batch_size = 8 * 4 * 5 * 4 + 8 * 4
    sizes = {"image_size": (64, 32), "instruction_image_size": (32, 32), "max_length": 40}
    with pytest.raises(DatasetError, match=r"config.data: .*has 16 training identities, but a batch takes 32"):
        training_data.open_training(micro_config, **sizes)


def test_the_fingerprint_knows_the_vocabulary(micro_config, tmp_path):
    sizes = {"image_size": (64, 32), "instruction_image_size": (32, 32), "max_length": 40}
    builtin = training_data.open_training(micro_config, **sizes)
    entries = list(builtin.tokenizer.entries)
    (tmp_path / "vocab.txt").write_text("\n".join(entries[:-2] + entries[:-3:-1]) + "\n")
    micro_config.data.vocab = str(tmp_path)
    other = training_data.open_training(micro_config, **sizes)
    changed = {key for key, value in other.fingerprint().items() if value != builtin.fingerprint()[key]}
    assert changed == {"vocabulary"}


def test_missing_data_are_built_only_if_allowed(micro_config, tmp_path, monkeypatch):
    monkeypatch.setattr(training_data, "BuildOptions", functools.partial(BuildOptions, workers=1))
    micro_config.data.dir = str(tmp_path / "new")
    micro_config.data.build_missing = False
    with pytest.raises(DatasetError, match=r"the data folder .*new does not exist: build the data set"):
        training_data.open_datasets(micro_config, ["procedural_trad"])
    assert not (tmp_path / "new").exists()
    micro_config.data.build_missing = True
    micro_config.data.procedural.update({"train_people": 2, "test_people": 4, "extras": ("hat",)})
    with futures.ThreadPoolExecutor(1) as pool:
        with files.lock(tmp_path / "new" / "procedural_trad"):  # as another process of this host would hold it
            waiting = pool.submit(training_data.open_datasets, micro_config, ["procedural_trad"])
            with pytest.raises(futures.TimeoutError):
                waiting.result(timeout=0.3)
        opened = waiting.result()
    assert "hat" in opened["procedural_trad"].manifest.source["slots"]
