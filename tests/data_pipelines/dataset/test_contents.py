"""The contents of a built data set are verified: a replaced file and a flipped bit are errors that name the place."""

import contextlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import toy_shards
from array_record.python import array_record_module

from data_pipelines.dataset import folder, record_format, shard_writer
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.errors import DatasetError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "shards_with_npz_index.tar.gz"


def write_shard(path: Path, records: list[bytes]) -> None:
    """Writes a shard as the builder does; small ones are padded to one size."""
    size = path.stat().st_size
    writer = array_record_module.ArrayRecordWriter(str(path), shard_writer._WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    assert path.stat().st_size == size


def test_a_shard_of_another_build_of_the_same_size_is_noticed(copy: Path) -> None:
    shard = copy / "toy-train.array_record-00001-of-00005"
    others = [record_format.serialize(toy_shards.load(i + 1), (i + 1) % 5) for i in range(8, 16)]
    write_shard(shard, others)
    reader = open_dataset(copy.parent.parent, "toy").reader("train", ("image", "file"))
    assert reader[7]["file"] == "Ordner ä/007.jpg"
    message = (
        r"shard .*train.*00001-of-00005 is damaged at its record 0 \(record 8 of the split\): the record is another"
    )
    with pytest.raises(DatasetError, match=message):
        reader[8]


def test_a_small_field_of_a_record_is_verified_too(copy: Path) -> None:
    """The picture is the same, its caption another."""
    shard = copy / "toy-train.array_record-00000-of-00005"
    records = [record_format.serialize(toy_shards.load(i), i % 5) for i in range(8)]
    records[3] = records[3].replace("größe 3".encode(), "größe 4".encode())
    write_shard(shard, records)
    reader = open_dataset(copy.parent.parent, "toy").reader("train", ("image",))
    assert reader[2]["image"] == toy_shards.load(2).image
    with pytest.raises(DatasetError, match=r"00000-of-00005 is damaged at its record 3"):
        reader[3]


def test_data_that_are_replaced_while_they_are_read_are_noticed(copy: Path) -> None:
    reader = open_dataset(copy.parent.parent, "toy").reader("query")
    assert reader[0]["file"] == "Ordner ä/100.jpg"
    shard = next(copy.glob("toy-query*"))
    with shard.open("r+b") as file:
        other = (copy / "toy-gallery.array_record-00000-of-00002").read_bytes()
        file.write(other)  # into the open file, as rsync --inplace does
    with pytest.raises(DatasetError, match=r"toy-query.* is damaged at its record"):
        list(map(reader.__getitem__, range(5)))


def test_an_index_of_another_build_is_noticed(copy: Path, tmp_path: Path) -> None:
    """Its rows would give other people to the same pictures."""
    toy_shards.build(tmp_path / "other", splits={**toy_shards.SPLITS, "train": range(1, 41)})
    shutil.copy(tmp_path / "other" / "toy" / "1.0.0" / "index-train.parquet", copy)
    dataset = open_dataset(copy.parent.parent, "toy")
    with pytest.raises(DatasetError, match=r"index-train\.parquet is damaged \(it was replaced or changed"):
        dataset.index("train")
    with pytest.raises(DatasetError, match=r"00000-of-00005 is damaged at its record 0"):
        dataset.reader("train")[0]


def test_no_bit_of_a_manifest_flips_unnoticed(copy: Path) -> None:
    """Without a hash 22 of 60 give another manifest."""
    path, data_dir = copy / "manifest.json", copy.parent.parent
    written, right = path.read_bytes(), open_dataset(data_dir, "toy").manifest
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(written)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with contextlib.suppress(DatasetError):
            assert open_dataset(data_dir, "toy").manifest == right  # in white space


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["splits"]["train"].pop("shards"), "is damaged .'shards'"),
        (lambda values: values["splits"]["train"]["shards"][0].update(file="../x"), "a shard of train is"),
        (lambda values: values["splits"]["train"].update(records=39), "the shards of train have other than 39 records"),
        (lambda values: values["splits"].update(train=3), "is damaged"),
        (lambda values: values.update(people="toy"), "people is no list of names"),
        (lambda values: values["people"].reverse(), "content_hash is not that of its shards and people"),
        (lambda values: values.update(name=3), "name is 3"),
    ],
)
def test_a_manifest_without_a_hash_is_looked_through(copy: Path, change, message: str) -> None:
    """Taken, the last but one would give every person the name of another."""
    values = json.loads((copy / "manifest.json").read_text())
    del values[folder.OWN_HASH]
    change(values)
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=message):
        open_dataset(copy.parent.parent, "toy")


def test_an_older_folder_is_read_says_so_and_its_pictures_are_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    version = tmp_path / "toy" / "1.0.0"
    dataset = open_dataset(tmp_path, "toy")
    assert caplog.text.count("was built before manifest, index and records had hashes") == 1
    reader = dataset.reader("train", ("file",))
    assert [reader[i]["file"] for i in range(6)] == [f"Ordner ä/{i:03d}.png" for i in range(6)]
    shard = version / "toy-train.array_record-00000-of-00002"
    records = array_record_module.ArrayRecordReader(str(shard)).read_all()
    write_shard(shard, [records[1], records[0], *records[2:]])
    with pytest.raises(DatasetError, match=r"damaged at its record 0 .*: the picture is another one"):
        open_dataset(tmp_path, "toy").reader("train")[0]
