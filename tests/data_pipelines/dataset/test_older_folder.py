"""A data set that was built when the index of a split was an .npz file is read, and not built again.

The fixture was written by this project at commit 77f4167: 6 training, 2 query and 3 gallery records of `load`.
"""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import toy_shards

from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.errors import DatasetError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "shards_with_npz_index.tar.gz"
PEOPLE = ["toy/0000", "toy/0001", "toy/0002"]
SPLITS = {"train": range(6), "query": range(100, 102), "gallery": range(200, 203)}


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 4, 3)).astype(np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def load(i: int) -> schema.Record:
    return schema.Record(
        image=picture(i),
        file=f"Ordner ä/{i:03d}.png",
        person=PEOPLE[i % 3],
        camera=i % 3 if i < 100 else -(i // 100),
        clothes=i % 2,
        modality=i % 2,
        attributes=(1, i % 7, -1),
        sentences=("a blue coat", f"größe {i}") if i % 3 == 0 else (),
        instruction_images=(picture(1000 + i % 2),) if i % 3 == 1 else (),
        instruction_clothes=i % 2 - 1,
        instruction_attributes=(i % 3,),
    )


def build(out: Path) -> schema.Manifest:
    return toy_shards.build(out, people=PEOPLE, splits=SPLITS, load=load, records_per_shard=4)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path / "older", filter="data")
    return tmp_path / "older"


def test_records_and_index_are_those_that_are_built_today(older: Path, tmp_path: Path) -> None:
    build(tmp_path / "today")
    kept, today = open_dataset(older, "toy"), open_dataset(tmp_path / "today", "toy")
    for value in today.manifest.splits.values():
        del value["index"]  # its hash, which the older folder does not state
    assert kept.manifest == today.manifest
    for split, numbers in SPLITS.items():
        old, new = kept.index(split), today.index(split)
        assert list(new) == list(schema.COLUMNS)
        assert list(old) == [name for name in schema.COLUMNS if name != "record_hash"]
        for name in old:
            assert getattr(old, name).dtype == getattr(new, name).dtype
            np.testing.assert_array_equal(getattr(old, name), getattr(new, name), strict=True)
        np.testing.assert_array_equal(kept.identities(split), new.identity)
        assert [kept.reader(split)[i] for i in range(len(numbers))] == [
            today.reader(split)[i] for i in range(len(numbers))
        ]
    shards = {path.name: path.read_bytes() for path in today.folder.glob("*.array_record-*")}
    assert shards == {path.name: path.read_bytes() for path in kept.folder.glob("*.array_record-*")}


def test_the_same_build_finds_the_folder_finished(older: Path) -> None:
    before = toy_shards.contents(older)
    build(older)
    assert toy_shards.contents(older) == before


def test_damage_to_the_older_index_is_named(older: Path) -> None:
    path = older / "toy" / "1.0.0" / "index-train.npz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match=r"index-train\.npz is damaged .*build the data set again"):
        open_dataset(older, "toy").index("train")
