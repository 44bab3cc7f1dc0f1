"""Tables in every form are the same rows; lists and folders of other projects are read as they are."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from official_trees import draw, write

from data_pipelines.errors import DatasetError
from data_pipelines.sources import table, table_files

ROWS = [
    {"image": "a.jpg", "identity": "ann", "camera": "door", "clothes": "red, wide", "shift": "1"},
    {"image": "b.jpg", "identity": "bob", "camera": "", "clothes": 'a "suit"', "shift": "2"},
]


def text(delimiter: str, quote: str = '"') -> str:
    def cell(value: str) -> str:
        return f"{quote}{value.replace(quote, 2 * quote)}{quote}"

    lines = [ROWS[0].keys(), *[row.values() for row in ROWS]]
    return "".join(delimiter.join(map(cell, line)) + "\r\n" for line in lines)


FORMS = {
    "plain.csv": text(",").encode(),
    "bom.csv": b"\xef\xbb\xbf" + text(",").encode(),
    "excel.csv": text(";").encode(),
    "single.csv": text(";", "'").encode(),
    "tabs.tsv": text("\t").encode(),
    "unicode.txt": text("\t").encode("utf-16"),
    "bars.csv": text("|").encode(),
    "capitals.csv": text(",").replace("image", "Image").replace("identity", " IDENTITY").encode(),
    "lines.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "list.json": json.dumps(ROWS, indent=1).encode(),
}


@pytest.mark.parametrize("name", [*FORMS, "table.parquet"])
def test_every_form_has_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name in FORMS:
        path.write_bytes(FORMS[name])
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    cells = table_files.read(path)
    assert [values for _, values in cells] == ROWS  # columns that nothing reads are there too
    rows = table.rows_of(cells)
    assert [(row.identity, row.clothes) for row in rows] == [("ann", "red, wide"), ("bob", 'a "suit"')]
    assert rows[0].camera == table.camera_number("door")
    assert rows[1].camera is None


def test_numbers_that_pandas_wrote_as_floats(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,identity,camera,clothes\na.jpg,50.0,1.0,1.5\nb.jpg,51.0,,2.0\n")
    rows = table.rows_of(table_files.read(tmp_path / "t.csv"))
    assert [(row.identity, row.camera, row.clothes) for row in rows] == [("50", 1, "1.5"), ("51", None, "2.0")]
    frame = pa.table({"image": ["a.jpg", "b.jpg"], "identity": [50, 51], "camera": [1.0, float("nan")]})
    pq.write_table(frame, tmp_path / "t.parquet")
    rows = table.rows_of(table_files.read(tmp_path / "t.parquet"))
    assert [(row.where, row.identity, row.camera) for row in rows] == [
        (f"{tmp_path}/t.parquet, row 1", "50", 1), (f"{tmp_path}/t.parquet, row 2", "51", None),
    ]  # fmt: skip


def test_lists_of_torchreid_and_fastreid(tmp_path: Path) -> None:
    write(tmp_path, {"one.txt": "a.jpg 7\nb.jpg 7 2\n"})
    rows = table.rows_of(table_files.read(tmp_path / "one.txt"))
    assert [(row.image, row.identity, row.camera, row.split) for row in rows] == [
        ("a.jpg", "7", None, ""), ("b.jpg", "7", 2, ""),
    ]  # fmt: skip
    # MSMT17's form: train and test each number people from 0, and paths begin in train/ and test/.
    draw(tmp_path / "m", ["train/0/a.jpg", "test/0/b.jpg", "test/0/c.jpg"])
    lists = {"list_train.txt": "0/a.jpg 0", "list_val.txt": "0/a.jpg 0", "list_query.txt": "0/b.jpg 0"}
    write(tmp_path / "m", {**lists, "list_gallery.txt": "0/c.jpg 0"})
    rows = table.rows_of(table_files.read(tmp_path / "m"))
    assert [(row.image, row.identity, row.split) for row in rows] == [
        ("test/0/c.jpg", "test_0", "gallery"), ("test/0/b.jpg", "test_0", "query"), ("train/0/a.jpg", "0", "train"),
    ]  # fmt: skip
    write(tmp_path, {"wrong.txt": "a.jpg 7\nb.jpg\n"})
    with pytest.raises(DatasetError, match=r"wrong.txt, line 2: 'b.jpg' is not `path person \[camera\]`"):
        table_files.read(tmp_path / "wrong.txt")


def test_a_folder_per_person(tmp_path: Path) -> None:
    draw(tmp_path / "plain", ["ann/1.jpg", "ann/2.png", "bob/x/3.jpg", ".cache/4.jpg"])
    write(tmp_path / "plain", {"ann/notes.md": "no picture"})
    assert [values for _, values in table_files.read(tmp_path / "plain")] == [
        {"image": "ann/1.jpg", "identity": "ann"}, {"image": "ann/2.png", "identity": "ann"},
        {"image": "bob/x/3.jpg", "identity": "bob"},
    ]  # fmt: skip
    draw(tmp_path / "split", ["train/ann/1.jpg", "test/bob/2.jpg"])
    assert [values for _, values in table_files.read(tmp_path / "split")] == [
        {"image": "test/bob/2.jpg", "identity": "bob", "split": "test"},
        {"image": "train/ann/1.jpg", "identity": "ann", "split": "train"},
    ]  # fmt: skip


def test_a_folder_for_validation_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("val", "valid"):
        draw(tmp_path / name, ["train/ann/1.jpg", f"{name}/cy/1.jpg", "test/bob/2.jpg"])
        caplog.set_level("INFO")
        cells = table_files.read(tmp_path / name)
        assert [(row["identity"], row["split"]) for _, row in cells] == [("bob", "test"), ("ann", "train")]
        assert f"the folder {name} is not used" in caplog.text
    draw(tmp_path / "market", ["bounding_box_train/1.jpg", "query/2.jpg"])
    with pytest.raises(DatasetError, match="market is a raw data set, not a folder a person: build it with --dataset"):
        table_files.read(tmp_path / "market")


def test_two_lists_of_one_split_are_refused(tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    write(tmp_path, {"list_train_a.txt": "a.jpg 0\n", "list_train_b.txt": "b.jpg 1\n", "list_query.txt": "b.jpg 2\n"})
    with pytest.raises(DatasetError, match=r"list_train_a.txt and list_train_b.txt are both lists of split train"):
        table_files.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"path,id\na.jpg,1\n", "column 'image' is missing (needed: image, identity; found: path, id)"),
        ("t.parquet", b"no parquet", "cannot read the table"),
        ("t.json", b"[1]", "t.json, entry 1: '1' is no JSON object"),
        ("t.json", b"[" * 100_000, "t.json, line 1: not JSON"),
        ("t.csv", "image,identity\nJörg.jpg,1".encode("latin-1"), "t.csv is not text in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        table_files.read(tmp_path / name)
    assert message in str(caught.value)
    with pytest.raises(DatasetError, match="cannot read the table"):
        table_files.read(tmp_path / "none.csv")


def test_a_column_that_is_almost_known_is_asked_about(caplog: pytest.LogCaptureFixture) -> None:
    values: dict[str, Any] = {"image": "a", "identity": "b", "captoin": "c"}
    table.rows_of([("t, line 2", values)])
    assert "column 'captoin' is kept, not read; did you mean 'caption'?" in caplog.text


def test_attributes_of_parquet(tmp_path: Path) -> None:
    structs = [{"hat": "red", "bag": None}, {"hat": None, "bag": "none"}]
    files = {"image": ["a.jpg", "b.jpg"], "identity": ["1", "2"]}
    pq.write_table(pa.table({**files, "attributes": structs}), tmp_path / "structs.parquet")
    maps = pa.array([[("hat", "red")], [("bag", "none")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({**files, "attributes": maps}), tmp_path / "maps.parquet")
    for name in ("structs", "maps"):
        rows = table.rows_of(table_files.read(tmp_path / f"{name}.parquet"))
        assert [row.attributes for row in rows] == [(("hat", "red"),), (("bag", "none"),)]
