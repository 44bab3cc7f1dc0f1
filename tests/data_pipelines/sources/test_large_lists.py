"""Builds of millions of records in little memory: streamed lists, packed descriptors, indexes joined in groups."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import toy_shards
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.dataset import index, schema
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.sources import json_stream
from data_pipelines.sources.synth_pedes import ArrayRows

WORD = st.text(max_size=5)
NUMBER = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
OBJECT = st.dictionaries(WORD, WORD | NUMBER | st.booleans() | st.none() | st.lists(WORD, max_size=2), max_size=3)


@given(st.lists(OBJECT, max_size=3), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_stream_gives_every_member_and_its_place(
    tmp_path_factory: pytest.TempPathFactory, values: list, chunk: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "stream.json"
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    found = list(json_stream.objects(path, chunk))
    assert [json.loads(part.decode("utf-8", "surrogatepass")) for _, part, _ in found] == values
    assert all(data[at : at + len(part)] == part for at, part, _ in found)
    if not ascii_only:
        assert [{json_stream.text(key) for key in value} for _, _, value in found] == [set(value) for value in values]


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", 0, r"does not begin with \["),
        ('{"a": 1}', 0, r"does not begin with \["),
        ("[{}, {}", 7, "the list does not end"),
        ("[{}, ", 5, "the list does not end"),
        ("[{} {}]", 4, "',' or '\\]' expected"),
        ("[{}, 3]", 5, "an object expected"),
        ('[{"a": ', 1, "Expecting value"),
        ('[{"a": 1}, {"a" 2}]', 11, "Expecting ':' delimiter"),
    ],
)
def test_stream_names_where_a_list_is_broken(tmp_path: Path, text: str, place: int, reason: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DatasetError, match=rf"list\.json, byte {place}: this is no JSON list of objects \(.*{reason}"):
        list(json_stream.objects(tmp_path / "list.json", 4))


def test_stream_does_not_swallow_a_broken_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_LONGEST", 100)
    (tmp_path / "list.json").write_text('[{"a": "' + "x" * 10_000)
    window = 0
    decode = json_stream._Window._more

    def watched(self: json_stream._Window) -> None:
        nonlocal window
        decode(self)
        window = max(window, len(self.buffer))

    monkeypatch.setattr(json_stream._Window, "_more", watched)
    with pytest.raises(DatasetError, match="byte 1: this is no JSON list of objects"):
        list(json_stream.objects(tmp_path / "list.json", 16))
    assert window <= 256


def rows(count: int) -> ArrayRows:
    array = np.zeros(count, [("seed", "i8"), ("crc", "u4")])
    array["seed"], array["crc"] = np.arange(count), 7
    return ArrayRows(array)


def test_array_rows_are_plain_tuples_and_slices_are_small() -> None:
    many = rows(10_000)
    assert (len(many), many[3], many[-1], list(many)[4097]) == (10_000, (3, 7), (9999, 7), (4097, 7))
    assert repr(many[3]) == "(3, 7)"
    with pytest.raises(IndexError):
        many[10_000]
    part = many[100:110]
    assert (len(part), part[0]) == (10, (100, 7))
    assert np.shares_memory(part.rows, many.rows)
    assert len(pickle.dumps(part)) < 1000
    assert list(pickle.loads(pickle.dumps(part))) == list(many)[100:110]


def load_row(item: tuple[int, int]) -> schema.Record:
    return toy_shards.load(item[0])


def test_array_rows_build_the_same_shards_as_a_list(tmp_path: Path) -> None:
    toy_shards.build(tmp_path / "rows", splits={"train": rows(20)}, load=load_row)
    toy_shards.build(tmp_path / "list", splits={"train": list(rows(20))}, load=load_row)
    assert toy_shards.contents(tmp_path / "rows") == toy_shards.contents(tmp_path / "list")


def test_joined_index_file_is_the_joined_index(tmp_path: Path) -> None:
    toy_shards.build(tmp_path, records_per_shard=8)
    folder = tmp_path / "toy" / "1.0.0"
    whole = open_dataset(tmp_path, "toy").index("train")
    parts = [whole.take(slice(at, at + 8)) for at in range(0, 40, 8)]
    parts.insert(2, whole.take(slice(0, 0)))
    files = [tmp_path / f"part{at}.parquet" for at in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        index.save(file, part)
    joined = index.join(tmp_path / "joined.parquet", files)
    np.testing.assert_array_equal(joined.identity, whole.identity)
    np.testing.assert_array_equal(joined.camera, whole.camera)
    index.save(tmp_path / "whole.parquet", whole)
    written = (tmp_path / "joined.parquet").read_bytes()
    assert written == (folder / "index-train.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    table = pq.read_table(tmp_path / "joined.parquet")  # as any reader of Parquet sees it
    assert table["identity"].to_pylist() == whole.identity.tolist()
    assert table["attributes"].to_pylist() == whole.attributes.tolist()


def test_a_long_index_is_joined_in_groups_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_shards.build(tmp_path, records_per_shard=8)
    whole = open_dataset(tmp_path, "toy").index("train")
    files = [tmp_path / f"part{at}.parquet" for at in range(0, 40, 8)]
    for at, file in enumerate(files):
        index.save(file, whole.take(slice(8 * at, 8 * at + 8)))
    monkeypatch.setattr(index, "_GROUP_ROWS", 16)
    index.join(tmp_path / "joined.parquet", files)
    groups = pq.ParquetFile(tmp_path / "joined.parquet").metadata
    assert [groups.row_group(at).num_rows for at in range(groups.num_row_groups)] == [16, 16, 8]
    joined = index.load(tmp_path / "joined.parquet")
    for name in whole:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
