"""Reading: what was written comes back, TFDS reads the same files, and every kind of damage has its own message."""

import dataclasses
import hashlib
import json
import pickle
import shutil
import zlib
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import toy_shards
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines import files
from data_pipelines.dataset import reader as reader_module
from data_pipelines.dataset import record_format, schema
from data_pipelines.dataset.reader import dataset_names, open_dataset
from data_pipelines.errors import DatasetError


def test_records_come_back_as_written(built: Path) -> None:
    dataset = open_dataset(built, "toy")
    assert dataset.splits == ("train", "query", "gallery")
    for split, items in toy_shards.SPLITS.items():
        reader = dataset.reader(split)
        assert len(reader) == len(items)
        for at, item in enumerate(items):
            wanted = dict(vars(toy_shards.load(item)))
            wanted["identity"] = dataset.manifest.people.index(wanted.pop("person"))
            assert reader[at] == wanted


def test_index_agrees_with_records(built: Path) -> None:
    dataset = open_dataset(built, "toy")
    for split in dataset.splits:
        index, reader = dataset.index(split), dataset.reader(split)
        for i in range(len(index)):
            record = reader[i]
            for field in ("identity", "camera", "clothes", "modality", "instruction_clothes", "file"):
                assert getattr(index, field)[i] == record[field]
            for field in ("attributes", "instruction_attributes"):
                np.testing.assert_array_equal(getattr(index, field)[i], schema.pad_attributes(record[field]))
            assert index.sentence_count[i] == len(record["sentences"])
            assert index.instruction_image_count[i] == len(record["instruction_images"])
            first = [s.encode() for s in record["sentences"][:1]] or [*record["instruction_images"][:1]]
            assert index.instruction_key[i] == (zlib.crc32(first[0]) if first else 0)
            assert int(index.content[i]) == int.from_bytes(hashlib.sha256(record["image"]).digest()[:8], "big")
            assert (index.shard[i], index.offset[i]) == divmod(i, 8)
        np.testing.assert_array_equal(dataset.identities(split), index.identity)
    index = dataset.index("train")
    dtypes = {name: getattr(index, name).dtype for name in index}
    assert dtypes.pop("file").kind == "U"
    assert {name: str(dtype) for name, dtype in dtypes.items()} == {
        "identity": "int32", "camera": "int32", "clothes": "int32", "modality": "int8",
        "attributes": "int16", "instruction_clothes": "int32", "instruction_attributes": "int16",
        "sentence_count": "int16", "instruction_image_count": "int16", "instruction_key": "uint32",
        "content": "uint64", "shard": "int32", "offset": "int32", "record_hash": "uint64",
    }  # fmt: skip


def test_manifest_counts(built: Path) -> None:
    manifest = open_dataset(built, "toy").manifest
    assert (manifest.name, manifest.version, manifest.task, manifest.namespace) == ("toy", "1.0.0", "trad", "toy")
    assert manifest.people == toy_shards.PEOPLE
    assert manifest.source == {"kind": "toy"}
    counts = {
        split: (v["records"], v["identities"], v["cameras"], len(v["shards"])) for split, v in manifest.splits.items()
    }
    # Query and gallery have unknown cameras (-1, -2), which are none.
    assert counts == {"train": (40, 5, 3, 5), "query": (5, 5, 0, 1), "gallery": (12, 5, 0, 2)}


@pytest.mark.filterwarnings("default")  # TFDS's own
def test_tfds_reads_the_folder(built: Path) -> None:
    dataset = open_dataset(built, "toy")
    builder = tfds.builder_from_directory(str(dataset.folder))
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 40, "query": 5, "gallery": 12,
    }  # fmt: skip
    raw = builder.as_data_source(split="train", decoders={"image": tfds.decode.SkipDecoding()})
    decoded = builder.as_data_source(split="gallery")
    reader = dataset.reader("train")
    for i in (0, 1, 2, 39):
        record, theirs = reader[i], raw[i]
        assert set(theirs) == set(record)
        assert theirs["image"] == record["image"]
        assert theirs["file"].decode() == record["file"]
        assert tuple(s.decode() for s in theirs["sentences"]) == record["sentences"]
        assert len(theirs["instruction_images"]) == len(record["instruction_images"])
        assert tuple(theirs["attributes"]) == record["attributes"]
        assert (theirs["identity"], theirs["camera"]) == (record["identity"], record["camera"])
    assert decoded[0]["image"].shape == (24, 12, 3)


def test_record_bytes_are_those_of_the_tfds_serializer() -> None:
    record = toy_shards.load(1)
    theirs = record_format.FEATURES.encode_example(
        {**{key: value for key, value in vars(record).items() if key != "person"}, "identity": 7}
    )
    example = ExampleSerializer(record_format.FEATURES.get_serialized_info()).get_tf_example(theirs)
    assert record_format.serialize(record, 7) == example.SerializeToString(deterministic=True)


def test_reader_pickles_and_limits_fields(built: Path) -> None:
    dataset = open_dataset(built, "toy")
    reader = dataset.reader("train", fields=("image", "sentences"))
    first = reader[9]
    again = pickle.loads(pickle.dumps(reader))
    assert set(first) == {"image", "sentences"}
    assert again[9] == first == {key: dataset.reader("train")[9][key] for key in first}
    assert again[np.int64(9)] == first
    for i in (-1, 40):
        with pytest.raises(IndexError, match=f"record {i} of 40"):
            reader[i]
    with pytest.raises(DatasetError, match="no field 'picture' in a record; the fields are attributes, camera"):
        dataset.reader("train", fields=("picture",))


def test_threads_read_the_right_records(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_MAX_OPEN", 2)  # of five shards: readers come and go under the threads
    reader = open_dataset(built, "toy").reader("train", fields=("file",))
    ids = np.random.default_rng(0).integers(0, 40, 4000).tolist()
    with futures.ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda i: reader[i]["file"], ids))
    assert files == [f"Ordner ä/{i:03d}.jpg" for i in ids]
    assert len(reader._open) <= 2


def test_newest_version_is_opened(built: Path, copy: Path) -> None:
    for version in ("1.10.0", "1.9.0"):
        shutil.copytree(copy, copy.parent / version)
    data_dir = copy.parent.parent
    assert open_dataset(data_dir, "toy").folder.name == "1.10.0"
    assert open_dataset(data_dir, "toy", "1.9.0").folder.name == "1.9.0"
    assert dataset_names(data_dir) == ["toy"]
    with pytest.raises(
        DatasetError, match=r"no data set toy 2\.0\.0 in .* has version\(s\) 1\.0\.0, 1\.9\.0, 1\.10\.0"
    ):
        open_dataset(data_dir, "toy", "2.0.0")
    with pytest.raises(DatasetError, match=r"no data set tyo in .* has data sets toy: build it first"):
        open_dataset(data_dir, "tyo")
    with pytest.raises(DatasetError, match="toy has no split 'test'; it has train, query, gallery"):
        open_dataset(data_dir, "toy").index("test")


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere does not exist: build the data set"):
        open_dataset(tmp_path / "nowhere", "toy")
    with pytest.raises(DatasetError, match="is empty: build the data set first"):
        open_dataset(tmp_path, "toy")
    (tmp_path / "toy").mkdir()
    with pytest.raises(DatasetError, match="toy is empty: build the data set first"):
        open_dataset(tmp_path, "toy")
    (tmp_path / "toy" / ".1.0.0.building").mkdir()
    with pytest.raises(
        DatasetError, match=r"did not finish .*run the same build command again; finished shards are kept"
    ):
        open_dataset(tmp_path, "toy")
    assert dataset_names(tmp_path) == []


def test_missing_manifest(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"has no manifest\.json: the build did not finish"):
        open_dataset(copy.parent.parent, "toy")


def test_wrong_schema_version(copy: Path) -> None:
    values = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**values, "schema_version": 99}))
    with pytest.raises(DatasetError, match="written with schema version 99, but this code reads 1: delete the folder"):
        open_dataset(copy.parent.parent, "toy")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not readable as JSON"), ('{"schema_version": 1}', "missing or unknown")],
)
def test_broken_manifest(copy: Path, text: str, message: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(copy.parent.parent, "toy")


def test_shard_cut_short_or_missing(copy: Path) -> None:
    shard = copy / "toy-train.array_record-00002-of-00005"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(DatasetError, match=f"00002-of-00005 has {size - 1000} bytes, but {size} were written: delete"):
        open_dataset(copy.parent.parent, "toy")
    shard.unlink()
    with pytest.raises(DatasetError, match="00002-of-00005 is missing: delete the folder"):
        open_dataset(copy.parent.parent, "toy")


def test_damaged_shard_is_named_and_never_gives_other_bytes(copy: Path) -> None:
    shard = copy / "toy-train.array_record-00002-of-00005"
    data = bytearray(shard.read_bytes())
    image = toy_shards.load(20).image
    at = bytes(data).index(image) + len(image) // 2
    data[at] ^= 1
    shard.write_bytes(data)
    dataset = open_dataset(copy.parent.parent, "toy")
    reader = dataset.reader("train")
    assert reader[19]["image"] == toy_shards.load(19).image
    with pytest.raises(DatasetError, match=r"00002-of-00005 is damaged at its record 4 .record 20.*Delete"):
        reader[20]


def test_damaged_index(copy: Path) -> None:
    path = copy / "index-train.parquet"
    data = path.read_bytes()
    dataset = open_dataset(copy.parent.parent, "toy")
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match=r"index-train\.parquet is damaged .*build the data set again"):
        dataset.index("train")
    path.write_bytes((copy / "index-query.parquet").read_bytes())
    for read in (dataset.index, dataset.identities):
        with pytest.raises(DatasetError, match=r"index-train\.parquet is damaged .it was replaced or changed"):
            read("train")
    path.unlink()
    with pytest.raises(DatasetError, match=r"index-train\.parquet is missing"):
        dataset.index("train")


def test_parse_refuses_other_bytes() -> None:
    with pytest.raises(ValueError, match="not a record of this project's form"):
        record_format.parse(b"\xff\xff\xff")
    with pytest.raises(ValueError, match="not a record of this project's form"):
        record_format.parse(b"")  # a valid, empty Example: the scalars are absent


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": 2}, "modality 2 is neither"),
        ({"camera": -3}, "cameras count from 0"),
        ({"clothes": -2}, "outfits count from 0"),
        ({"attributes": (0,) * 9}, "9 attributes given"),
    ],
)
def test_serialize_refuses_values_out_of_range(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record_format.serialize(dataclasses.replace(toy_shards.load(0), **changes), 0)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    toy_shards.build(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    with pytest.raises(files.WriteError, match=r"file.* cannot be written .*(Not a directory|File exists)"):
        reader_module.open_copy(tmp_path / "data", "toy", tmp_path / "file" / "cache")
