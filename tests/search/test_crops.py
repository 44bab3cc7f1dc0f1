"""Reading what is to be searched: folders and tables, and what is wrong with them."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_pictures import picture

from irm_jax.search import crops
from irm_jax.search.crops import BadImage, read_crops
from irm_jax.search.store import SearchError


def write(folder: Path, name: str, number: int = 0) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture(number))
    return path


def test_a_folder_is_read_in_order_and_links_once(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.jpg", "a/3.tif", "c.webp"):
        write(tmp_path, name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "a")
    found = read_crops(tmp_path)
    assert [str(crop.file.relative_to(tmp_path)) for crop in found.items] == ["c.webp", "a/1.jpg", "a/3.tif", "b/2.PNG"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"image": "1.png", "camera": "7", "time": "2026-01-31T08:00:00", "floor": "3", "share": "0.5", "code": "007"},
        {"image": "sub/2.png", "camera": "gate", "floor": "-4", "share": "1", "code": "12"},
    ]
    path = tmp_path / f"table{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        comma = "\t" if suffix == ".tsv" else ";"
        lines = [comma.join(rows[0]), *(comma.join(row.get(name, "") for name in rows[0]) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines))
    found = read_crops(path)
    assert found.kinds == {"path": "text", "camera": "text", "time": "time", "floor": "integer", "share": "number",
                           "code": "text"}  # fmt: skip
    first, second = found.items
    assert first.columns["time"] == datetime.datetime(2026, 1, 31, 8)
    assert (first.columns["camera"], first.columns["floor"], first.columns["code"]) == ("7", 3, "007")
    assert second.columns["time"] is None
    assert second.file == tmp_path / "sub/2.png"


def test_what_own_tables_read_is_read_here(tmp_path: Path) -> None:
    """Capitals, UTF-16, JSON lists, lists and names as cells, paths of Windows: one table serves both."""
    write(tmp_path, "sub/1.png")
    rows = [{"Image": "sub\\1.png", "identity": "007", "caption": ["a man", "tall"], "attributes": {"bag": "none"}}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.pq")
    text = "Image;identity;caption;attributes\nsub\\1.png;007;a man|tall;bag=none"
    (tmp_path / "t.csv").write_bytes(text.encode("utf-16"))
    for name in ("t.json", "t.pq", "t.csv"):
        (found,) = read_crops(tmp_path, tmp_path / name).items
        assert read_crops(tmp_path / name).items == [found]
        assert found.file == tmp_path / "sub/1.png"
        assert {**found.columns, "path": ""} == {
            "path": "", "identity": "007", "caption": "a man|tall", "attributes": "bag=none",
        }  # fmt: skip
    (tmp_path / "list.txt").write_text("sub/1.png 7 2\n")
    assert read_crops(tmp_path / "list.txt").items[0].columns["camera"] == "2"
    (tmp_path / "path.csv").write_text("Path;floor\nsub/1.png;2\n")
    assert read_crops(tmp_path / "path.csv").items[0].columns["floor"] == 2


def test_a_name_that_is_not_utf8_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    """It cannot be stored; the other pictures of the folder are."""
    for name in (b"\xff.png", b"a.png"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(cv2.imencode(".png", picture(0))[1].tobytes())
    (tmp_path / "t.jsonl").write_text(r'{"image": "a.png"}' + "\n" + r'{"image": "\udcff.png"}')
    for source in (tmp_path, tmp_path / "t.jsonl"):
        found = read_crops(source).items
        assert crops.read_file(found[0])
        with pytest.raises(BadImage, match=r"\\udcff.png': the file's name is not UTF-8: rename it"):
            crops.read_file(found[1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("camera\ngate\n", "column 'image' is missing"),
        ("image,camera\n", "no rows"),
        ("image,camera\n1.png\n", "line 2: 1 columns, but the header has 2"),
        ('image,camera\n"1.png,gate\n', "line 2: not CSV"),
        ("image,image\n1.png,2.png\n", "twice"),
        ("image,my camera\n1.png,gate\n", "column 'my camera' cannot be stored"),
        ("image,_id\n1.png,gate\n", "column '_id' cannot be stored"),
        ("image,time\n1.png,yesterday\n", "line 2, column 'time': 'yesterday' does not fit"),
        ("image\n../secret.png\n", "outside the folder"),
        ("image\n/etc/passwd\n", "outside the folder"),
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "crops.csv"
    path.write_text(text)
    with pytest.raises(SearchError, match=reason):
        read_crops(path)


def test_columns_of_an_index_are_fixed(tmp_path: Path) -> None:
    path = tmp_path / "crops.csv"
    path.write_text("image,floor\n1.png,2\n")
    kinds = {"path": "text", "camera": "text", "time": "time", "floor": "text"}
    assert read_crops(path, None, kinds).items[0].columns["floor"] == "2"
    path.write_text("image,Clothes\n1.png,red\n")
    assert read_crops(path).kinds["clothes"] == "text"
    assert read_crops(path, None, {**kinds, "Clothes": "text"}).items[0].columns["Clothes"] == "red"  # as it was made
    path.write_text("image,floor\n1.png,2\n")
    with pytest.raises(SearchError, match="the index has no column 'floor'"):
        read_crops(path, None, {"path": "text", "camera": "text", "time": "time"})


def test_places_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="no pictures in"):
        read_crops(tmp_path)
    for place in (tmp_path / "missing", tmp_path / "missing.csv"):
        with pytest.raises(SearchError, match="correct the path"):
            read_crops(place)


def test_pictures_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = cv2.imencode(".png", picture(0))[1].tobytes()[:-20]
    for data in (b"", b"hello", b"<html></html>", cut):
        with pytest.raises(BadImage, match=r"x\.png"):
            crops.decode(data, "x.png")
    monkeypatch.setattr(crops.images, "MAX_PIXELS", 1000)
    with pytest.raises(BadImage, match="pixels"):
        crops.decode(cv2.imencode(".png", picture(0))[1].tobytes(), "x.png")


def test_a_picture_is_kept_as_it_is_if_small(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    small = cv2.imencode(".jpg", picture(1))[1].tobytes()
    assert crops.read_picture(small, (64, 32), "").kept == small
    noise = cv2.imencode(".png", rng.integers(0, 256, (700, 300, 3), np.uint8))[1].tobytes()
    kept = crops.read_picture(noise, (64, 32), "").kept
    assert len(kept) <= crops.KEPT_BYTES < len(noise)
    assert max(crops.decode(kept, "").shape[:2]) <= 512
    assert crops.read_picture(cv2.imencode(".bmp", picture(1))[1].tobytes(), (64, 32), "").kept[:2] == b"\xff\xd8"
