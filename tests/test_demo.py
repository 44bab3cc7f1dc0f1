"""The weights that come with the package: they fit into the wheel, and find drawn people who are new to them."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines import images
from data_pipelines.procedural.benchmark import Benchmark
from irm_jax import Embedder, pretrained
from irm_jax.embedder import open_checkpoint

pytestmark = pytest.mark.usefixtures("first_devices")
SEED = 11
"""Of people whom no training has seen."""


@pytest.fixture(scope="module")
def embedder():
    return Embedder("demo")


@pytest.fixture(scope="module")
def benchmark():
    return Benchmark(seed=SEED, train_people=2, test_people=24, edition=2)


def pictures(benchmark, shots):
    return [images.decode(benchmark.load(shot).image) for shot in shots]


def test_they_are_small_and_have_a_card():
    folder = pretrained.SHIPPED / "demo"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6
    card = (folder / pretrained.CARD).read_text()
    assert "drawn people" in card
    assert "configs/demo.py" in card


def test_they_find_people_by_picture(embedder, benchmark):
    shots = benchmark.shots("trad")
    query, gallery = shots["query"], shots["gallery"][::2]
    asked = embedder.embed(pictures(benchmark, query), "do not change clothes")
    kept = embedder.embed(pictures(benchmark, gallery), "do not change clothes")
    first = np.argmax(asked @ kept.T, axis=1)
    right = np.mean([gallery[best].person == shot.person for best, shot in zip(first, query, strict=True)])
    assert right >= 0.6  # at random 1 in 24


def test_they_find_people_by_words(embedder, benchmark):
    gallery = benchmark.shots("t2i")["gallery"][::2]
    shown = embedder.project_images(pictures(benchmark, gallery))
    slot = benchmark.wardrobe.slots[0]
    shares = []
    for value, colour in enumerate(slot.values[:4]):
        order = np.argsort(-(embedder.embed_text([f"a person in a {colour} shirt"]) @ shown.T)[0])
        wearing = np.array([shot.row.outfit[0] == value for shot in gallery])
        count = int(wearing.sum())
        if count:
            shares.append(np.mean(wearing[order[:count]]))
    assert np.mean(shares) >= 0.5  # at random 1 in 8


def test_the_folder_is_opened_as_the_name_is():
    """What an index of search keeps of its model is the folder and the step."""
    opened = open_checkpoint(pretrained.SHIPPED / "demo", 1200)
    assert opened.step == 1200
    assert opened.model.model.config.num_identities == 1
    with pytest.raises(pretrained.PretrainedError, match="holds step 1200 alone, not 7"):
        open_checkpoint(pretrained.SHIPPED / "demo", 7)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    assert pretrained.shipped("demo") == pretrained.SHIPPED / "demo"
    assert pretrained.shipped(Path("elsewhere/demo")) is None
    assert pretrained.shipped("nothing") is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert pretrained.shipped("demo") is None
