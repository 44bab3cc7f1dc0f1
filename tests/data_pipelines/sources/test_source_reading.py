"""Lists and folders as they are found: odd numbers, odd names, half characters, blank sentences, repeated rows."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from official_trees import TREES, draw, write

from data_pipelines import sources
from data_pipelines.errors import DatasetError
from data_pipelines.people import names
from data_pipelines.sources import datalist, json_stream, reading, table, table_files, table_rows

HEADER = "image,identity,camera,split"


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1), ("9" * 5000, None), ("²", None), ("٣", None), ("-1", None),
     ("", None), (" 1", None), ("1_0", None)],
)  # fmt: skip
def test_a_number_is_what_ascii_digits_state(text: str, number: int | None) -> None:
    assert reading.number(text) == number


@pytest.mark.parametrize("digits", ["²", "9" * 5000])
def test_odd_digits_are_named_with_their_place(digits: str, tmp_path: Path) -> None:
    (tmp_path / "id.txt").write_text(f"1,{digits}\n")
    with pytest.raises(DatasetError, match=r"id.txt, line 1, entry 2: .* is no number"):
        reading.comma_numbers(tmp_path / "id.txt")
    (tmp_path / "list.txt").write_text(f"a.jpg {digits}\n")
    with pytest.raises(DatasetError, match="is not `path label`"):
        reading.path_and_label(tmp_path / "list.txt")


def test_a_folder_of_odd_digits_is_no_person(tmp_path: Path) -> None:
    raw = TREES["prcc"].make(tmp_path)
    draw(raw, ["rgb/train/²/A_1.jpg"])
    with pytest.raises(DatasetError, match="the folder ² is no person's number"):
        sources.get_source("prcc").scan(raw)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("market1501", "query/0001_c10s1_000001_00.jpg", "camera 10, but Market-1501 has cameras 1 to 6"),
        ("llcm", "test_vis/cam10/0001/1.jpg", "cam10: camera 10, but LLCM has cameras 1 to 9"),
        ("llcm", "test_vis/cam1 copy/0001/1.jpg", "the name does not begin with cam<number>"),
    ],
)
def test_the_whole_number_is_the_camera(name: str, file: str, message: str, tmp_path: Path) -> None:
    tree = "market1501_attributes" if name == "market1501" else name
    raw = TREES[tree].make(tmp_path)
    draw(raw, [file])
    with pytest.raises(DatasetError, match=message):
        sources.get_source(name).scan(raw)


def test_a_line_ends_where_it_ends(tmp_path: Path) -> None:
    """U+2028 and U+0085 are characters of a name."""
    name = "a\u2028b\x85c.jpg"
    draw(tmp_path, [name, "d.jpg"])
    (tmp_path / "l.txt").write_bytes(f"{name} 1\r\n\r\nd.jpg 2\r\n".encode())
    listed = reading.path_and_label(tmp_path / "l.txt")
    assert [(where.rpartition(" ")[2], file, label) for where, file, label in listed] == [
        ("1", name, 1),
        ("3", "d.jpg", 2),
    ]


def test_paths_of_windows_and_other_letters(tmp_path: Path) -> None:
    draw(tmp_path, ["a/1.jpg", "t/1.png"])
    (tmp_path / "t.csv").write_text(f"{HEADER},instruction_image\na\\1.jpg,7,0,train,t\\1.png\n")
    (item,) = table.source("x", "trad", "x", str(tmp_path / "t.csv")).scan(tmp_path).splits["train"]
    assert (item.file, item.template) == ("a/1.jpg", "t/1.png")
    (tmp_path / "l.txt").write_text("a\\1.jpg t\\1.png 7 0\n")
    (item,) = datalist.source("x", "ctcc", "x", {"train": "l.txt"}).scan(tmp_path).splits["train"]
    assert (item.file, item.template) == ("a/1.jpg", "t/1.png")
    (tmp_path / "l.txt").write_text("a/1.JPG i 7 0\n")
    with pytest.raises(
        DatasetError, match=r"l.txt, line 1: .*a/1.JPG is not there \(1.jpg is: write it as on the disk"
    ):
        datalist.source("x", "trad", "x", {"train": "l.txt"}).scan(tmp_path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "loop"])
def test_what_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    raw = TREES["market1501_attributes"].make(tmp_path)
    path = raw / "query" / "0001_c2s1_000009_00.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "loop" else raw / "nowhere.jpg")
    with pytest.raises(DatasetError, match=r"0001_c2s1_000009_00.jpg is (not there|no file but a folder or a device)"):
        sources.get_source("market1501").scan(raw)


def _pedes(raw: Path, change: Any) -> None:
    entries = json.loads((raw / "reid_raw.json").read_text())
    change(entries)
    (raw / "reid_raw.json").write_text(json.dumps(entries))


def test_half_a_character_is_named_with_its_place(tmp_path: Path) -> None:
    raw = TREES["cuhk_pedes"].make(tmp_path / "pedes")
    _pedes(raw, lambda entries: entries[0]["captions"].append("a hat \ud83d"))
    with pytest.raises(DatasetError, match=r"reid_raw.json, entry 1: 'a hat \\ud83d' holds half a character"):
        sources.get_source("cuhk_pedes").scan(raw)
    raw = TREES["synth_pedes"].make(tmp_path / "synth")
    (raw / "synthpedes_dataset.json").write_text(
        json.dumps([{"id": 1, "file_path": "Part1/1/1.jpg", "captions": ["\ud83d hat"]}])
    )
    draw(raw, ["Part1/1/1.jpg"])
    with pytest.raises(DatasetError, match=r"byte 1: .* holds half a character"):
        sources.get_source("synth_pedes").scan(raw)
    line = r'{"image": "a.jpg", "identity": 1, "split": "train", "attributes": {"hat": "\ud83d"}}'
    with pytest.raises(DatasetError, match=r"t, line 1, column 'attributes': 'hat'='\\ud83d' holds half a character"):
        table.parse(line, "t", json_lines=True)


def test_json_nested_deep_is_unreadable(tmp_path: Path) -> None:
    deep = "[" * 100_000
    raw = TREES["cuhk_pedes"].make(tmp_path)
    (raw / "reid_raw.json").write_text(deep)
    with pytest.raises(DatasetError, match=r"reid_raw.json is not readable JSON"):
        sources.get_source("cuhk_pedes").scan(raw)
    (tmp_path / "deep.json").write_text(f'[{{"id": {deep}')
    with pytest.raises(DatasetError, match="byte 1: this is no JSON list of objects"):
        list(json_stream.objects(tmp_path / "deep.json"))
    with pytest.raises(DatasetError, match="t, line 1: not JSON"):
        table.parse(deep, "t", json_lines=True)
    write(tmp_path, {"s.json": deep, "l.txt": "a.jpg key 1 0"})
    draw(tmp_path, ["a.jpg"])
    with pytest.raises(DatasetError, match=r"s.json is not readable JSON"):
        datalist.source("x", "li", "x", {"train": "l.txt"}, "s.json").scan(tmp_path)


def test_numbers_too_long_for_a_list_are_named(tmp_path: Path) -> None:
    for digits in ("9" * 30, "9" * 5000):
        raw = TREES["synth_pedes"].make(tmp_path / f"synth{len(digits)}")
        (raw / "synthpedes_dataset.json").write_text(
            f'[{{"id": {digits}, "file_path": "Part1/1/1.jpg", "captions": ["a"]}}]'
        )
        with pytest.raises(DatasetError, match=r"byte 1: "):
            sources.get_source("synth_pedes").scan(raw)


@pytest.mark.parametrize("identity", ["/", "a/", "/b", " / ", "a//b"])
def test_a_full_name_has_a_namespace_and_a_person(identity: str, tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg"])
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,{identity},0,train\n")
    with pytest.raises(DatasetError, match=r"t.csv, line 2, column 'identity': .* is no full name"):
        table.source("x", "trad", "x", str(tmp_path / "t.csv")).scan(tmp_path)


def test_one_number_is_written_in_one_way(tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,007,0,train\nb.jpg,7,0,train\n")
    with pytest.raises(DatasetError, match=r"t.csv, line 3, column 'identity': '7' is the number of '007' .*line 2"):
        table.source("x", "trad", "x", str(tmp_path / "t.csv")).scan(tmp_path)
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,7,0,train\n")
    write(tmp_path, {"l.txt": "b.jpg i 7 0\n"})
    people = [
        table.source("x", "trad", "mine", str(tmp_path / "t.csv")).scan(tmp_path).people,
        datalist.source("y", "trad", "mine", {"train": "l.txt"}).scan(tmp_path).people,
    ]
    assert people == [["mine/0007"]] * 2


def test_rows_of_no_person_are_left_out_of_datalists(tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    write(tmp_path, {"l.txt": "a.jpg i 7 0\nb.jpg i -1 0\n"})
    found = datalist.source("x", "trad", "x", {"train": "l.txt"}).scan(tmp_path)
    assert found.people == ["x/0007"]
    assert found.source["dropped_junk"] == {"train": 1}


def test_distractors_do_not_train(tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    write(tmp_path, {"l.txt": "a.jpg i 7 0\nb.jpg i 0 0\n"})
    with pytest.raises(DatasetError, match=r"split train: b.jpg and 0 more: pid 0 \(distractor\)"):
        datalist.source("x", "trad", "market1501", {"train": "l.txt"}).scan(tmp_path)


BLANK = ("", "...", " ?!")


def test_sentences_without_a_word_are_left_out_of_every_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = TREES["cuhk_pedes"].make(tmp_path / "pedes")
    before = sources.get_source("cuhk_pedes").scan(raw).found
    _pedes(raw, lambda entries: [entry["captions"].extend(BLANK) for entry in entries])
    assert sources.get_source("cuhk_pedes").scan(raw).found == before
    assert "split train: " in caplog.text
    assert "sentences without a word are left out" in caplog.text
    _pedes(raw, lambda entries: next(e for e in entries if e["split"] == "train").update(captions=list(BLANK)))
    with pytest.raises(DatasetError, match=r"CUHK-PEDES, split train: the sentences of .* have no word"):
        sources.get_source("cuhk_pedes").scan(raw)
    draw(tmp_path, ["a.jpg", "b.jpg"])
    write(tmp_path, {"l.txt": "a.jpg k 7 0\n", "s.json": json.dumps({"k": ["a hat", *BLANK]})})
    (item,) = datalist.source("x", "li", "x", {"train": "l.txt"}, "s.json").scan(tmp_path).splits["train"]
    assert item.sentences == ("a hat",)
    (tmp_path / "t.csv").write_text(f"{HEADER},caption\na.jpg,7,0,train,...|a hat\n")
    (item,) = table.source("x", "t2i", "x", str(tmp_path / "t.csv")).scan(tmp_path).splits["train"]
    assert item.sentences == ("a hat",)
    (tmp_path / "t.csv").write_text(f"{HEADER},caption\na.jpg,7,0,train,...\n")
    with pytest.raises(DatasetError, match=r"the sentences of a.jpg \('...'\) have no word"):
        table.source("x", "t2i", "x", str(tmp_path / "t.csv")).scan(tmp_path)


def test_a_repeated_row_counts_once_in_every_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,7,0,train\nb.jpg,7,1,train\na.jpg,7,0,train\n")
    write(tmp_path, {"l.txt": "a.jpg i 7 0\nb.jpg i 7 0\na.jpg i 7 0\n"})
    for source in (
        table.source("x", "trad", "x", str(tmp_path / "t.csv")), datalist.source("x", "trad", "x", {"train": "l.txt"}),
    ):  # fmt: skip
        caplog.clear()
        assert [item.file for item in source.scan(tmp_path).splits["train"]] == ["a.jpg", "b.jpg"]
        assert "1 of 3 rows repeat another one and count once" in caplog.text
    raw = TREES["cuhk_pedes"].make(tmp_path / "pedes")
    before = sources.get_source("cuhk_pedes").scan(raw).found
    _pedes(raw, lambda entries: entries.extend(list(entries)))
    assert sources.get_source("cuhk_pedes").scan(raw).found == before
    raw = TREES["synth_pedes"].make(tmp_path / "synth")
    images = len(sources.get_source("synth_pedes").scan(raw).splits["train"])
    entries = (raw / "synthpedes_dataset.json").read_text().strip()
    (raw / "synthpedes_dataset.json").write_text(f"{entries[:-1]},{entries[1:]}")
    assert len(sources.get_source("synth_pedes").scan(raw).splits["train"]) == images


def test_a_list_says_one_thing_of_a_picture(tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg"])
    for other, said in (
        ("8,0", r"t.csv, line 3: a.jpg stands in .*t.csv, line 2 as well, with person 'x/0007' and 'x/0008'"),
        ("7,1", "t.csv, split train: a.jpg stands there twice, with camera"),
    ):
        (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,7,0,train\na.jpg,{other},train\n")
        with pytest.raises(DatasetError, match=said):
            table.source("x", "trad", "x", str(tmp_path / "t.csv")).scan(tmp_path)


DIGITS = "1" * 5000


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        ("msmt17", "list_train.txt", f"0001/0001_005_{DIGITS}_x.jpg 1", "the name does not begin with <pid>_<number>"),
        ("msmt17", "list_train.txt", "0001/0001_005_07\0_x.jpg 1", "line 3: it holds bytes of zero"),
        ("llcm", "idx/train_vis.txt", f"vis/0003/0003_c{DIGITS}_x.jpg 0", "the name does not begin with <pid>_c"),
        ("llcm", "idx/train_vis.txt", f"vis/0003/{DIGITS}_c01_x.jpg 0", "the name does not begin with <pid>_c"),
        ("llcm", "test_vis/cam\u0661/0001/1.jpg", None, "the name does not begin with cam<number>"),
        ("ltcc", "LTCC_ReID/train/000_\u0663_c5_1.png", None, "the name does not begin with <pid>_<outfit>"),
        ("ltcc", "LTCC_ReID/train/000_99999999999_c5_1.png", None, "outfit 99999999999, but numbers go to 2147483647"),
        ("vcclothes", "train/0001-02-99999999999-07.jpg", None, "outfit 99999999999, but numbers go to 2147483647"),
    ],
)  # fmt: skip
def test_numbers_of_names_are_what_can_be_stored(
    name: str, file: str, line: str | None, message: str, tmp_path: Path
) -> None:
    raw = TREES[name].make(tmp_path)
    if line is None:
        draw(raw, [file])
    else:
        (raw / file).write_text((raw / file).read_text().rstrip("\n") + f"\n{line}\n")
    with pytest.raises(DatasetError, match=message):
        sources.get_source(name).scan(raw)


def test_no_person_of_captions_has_a_number_below_zero_nor_a_picture_of_another(tmp_path: Path) -> None:
    for name, listed in (("cuhk_pedes", "reid_raw.json"), ("synth_pedes", "synthpedes_dataset.json")):
        raw = TREES[name].make(tmp_path / name)
        entries = json.loads((raw / listed).read_text())
        (raw / listed).write_text(json.dumps([{**entries[0], "id": -1}, *entries[1:]]))
        with pytest.raises(DatasetError, match="id -1"):
            sources.get_source(name).scan(raw)
        (raw / listed).write_text(json.dumps([*entries, {**entries[0], "id": 77}]))
        with pytest.raises(DatasetError, match=r"a picture shows one person|one picture, which shows one person"):
            sources.get_source(name).scan(raw)


def test_a_key_of_json_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    """Parsers take the last of them without a word."""
    row = '{"image": "a.jpg", "image": "b.jpg", "identity": "1"}'
    for name, text in (("t.jsonl", row), ("t.json", f"[{row}]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DatasetError, match=r"'image' stands there twice"):
            table_files.read(tmp_path / name)
    (tmp_path / "sentences.json").write_text('{"k": "a red shirt", "k": "a blue shirt"}')
    with pytest.raises(DatasetError, match=r"'k' stands there twice"):
        datalist._texts(tmp_path / "sentences.json")
    with pytest.raises(DatasetError, match="cannot be read"):
        datalist._texts(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        reading.lines(tmp_path)


def test_names_differ_by_more_than_the_codes_of_their_accents(tmp_path: Path) -> None:
    """A table has the last letter of Zoë as one character, a folder's name on macOS as two."""
    apart, whole = "Zoe\u0308", "Zo\u00eb"
    assert names.person_name("x", apart) == names.person_name("x", whole) == f"x/{whole}"
    assert names.same_name(f"x/{apart}") == f"x/{whole}"
    draw(tmp_path, ["a.jpg"])
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,{apart},0,train\na.jpg,{whole},0,train")
    with pytest.raises(DatasetError, match=rf"line 3, column 'identity': '{whole}' is the name of '{apart}' .*line 2"):
        scan_table(tmp_path)
    (tmp_path / "t.csv").write_text(f"{HEADER}\na.jpg,x\0,0,train\n")
    with pytest.raises(DatasetError, match="line 2: it holds bytes of zero"):
        scan_table(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"image": "a.jpg", "identity": "x\\u0000"}')
    with pytest.raises(DatasetError, match="of number 0"):
        table_rows.rows_of(table_files.read(tmp_path / "t.jsonl"))


def scan_table(folder: Path) -> None:
    table.scan(folder, task="trad", namespace="x", table=folder / "t.csv")


def test_what_pandas_and_others_write_into_parquet_is_read_or_named(tmp_path: Path) -> None:
    images, people = ["a.jpg", "b.jpg"], ["1", "2"]
    times = pa.array([1, 2], pa.timestamp("ns"))
    pq.write_table(pa.table({"image": images, "identity": people, "time": times}), tmp_path / "t.parquet")
    rows = table_files.read(tmp_path / "t.parquet")
    assert [row["time"] for _, row in rows] == ["1970-01-01 00:00:00.000000001", "1970-01-01 00:00:00.000000002"]
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"2"]).buffers())
    pq.write_table(pa.table({"image": images, "identity": broken}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"t.parquet, row 1 and after: 'utf-8' codec"):
        table_files.read(tmp_path / "t.parquet")
