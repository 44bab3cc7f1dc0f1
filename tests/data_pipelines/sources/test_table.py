"""Tables: any table that is written is read back, errors name file, line and column; all six tasks."""

import csv
import io
import json
import re
import zlib
from pathlib import Path

import official_trees
import pytest
from hypothesis import given
from hypothesis import strategies as st
from official_trees import built, columns

from data_pipelines import build
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import clothes_crops
from data_pipelines.sources import table, table_files
from data_pipelines.sources.table import Row, parse

# Text of a cell: what a spreadsheet may write, without the marks that separate values inside a cell.
TEXT = st.text("ab1é中Ω ,.\"'/\\:#-{}[]", max_size=6).map(str.strip)
WORD = TEXT.filter(bool)
ROWS = st.lists(
    st.builds(
        Row,
        where=st.just(""),
        image=WORD,
        identity=WORD,
        camera=st.none() | st.integers(0, 4095),
        split=st.sampled_from(table_files.SPLITS),
        clothes=TEXT,
        modality=st.integers(0, 1),
        captions=st.lists(WORD, max_size=2).map(tuple),
        instruction_image=TEXT,
        attributes=st.dictionaries(WORD, WORD, max_size=2).map(lambda named: tuple(sorted(named.items()))),
        instruction_clothes=TEXT,
        instructions=st.lists(WORD, max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=3,
)
WRITTEN = (*table_files.COLUMNS, "instruction", "instruction_clothes")


def cells(row: Row) -> dict[str, str]:
    return {
        **{key: str(value) for key, value in row._asdict().items() if key in WRITTEN},
        "camera": "" if row.camera is None else str(row.camera),
        "modality": ("visible", "infrared")[row.modality],
        "caption": "|".join(row.captions),
        "instruction": "|".join(row.instructions),
        "attributes": "; ".join(f"{slot}={value}" for slot, value in row.attributes),
    }


@given(ROWS, st.permutations(WRITTEN))
def test_a_written_csv_is_read_back(rows: list[Row], order: list[str]) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, order)
    writer.writeheader()
    writer.writerows(map(cells, rows))
    found = parse(file.getvalue(), "t.csv", json_lines=False)
    assert [row.where for row in found] == [f"t.csv, line {number + 2}" for number in range(len(rows))]
    assert [row._replace(where="") for row in found] == rows


@given(ROWS)
def test_a_written_json_lines_file_is_read_back(rows: list[Row]) -> None:
    lines = [
        json.dumps({**cells(row), "camera": row.camera, "caption": row.captions, "attributes": dict(row.attributes)})
        for row in rows
    ]
    found = parse("\n\n".join(lines), "t.jsonl", json_lines=True)
    assert [row.where for row in found] == [f"t.jsonl, line {2 * number + 1}" for number in range(len(rows))]
    assert [row._replace(where="") for row in found] == rows


@given(st.text(), st.booleans())
def test_any_text_is_read_or_refused_with_its_line(text: str, json_lines: bool) -> None:
    refused = ""
    try:
        assert parse(text, "t", json_lines=json_lines)
    except DatasetError as error:
        refused = str(error)
    assert not refused or re.match(r"t(, line \d+(, column '\w+')?)?( |:)", refused)


HEADER = "image,identity,camera,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty: it needs a header"),
        (HEADER, "t.csv has no rows"),
        ("image,camera,split\n", "t.csv, line 1: column 'identity' is missing (needed: image, identity; found: image,"),
        ("image,image,identity,camera,split\n", "t.csv, line 1: column 'image' stands there twice"),
        (HEADER + "a.jpg,1,0\n", "t.csv, line 2: 3 columns, but the header has 4"),
        (
            HEADER + 'a.jpg,"1\n2",0,train\n\nb.jpg,1,0,x\n',
            "t.csv, line 5, column 'split': 'x' is none of train",
        ),
        (HEADER + "a.jpg,,0,train\n", "t.csv, line 2, column 'identity': it is empty"),
        (HEADER + "a.jpg,1,0,val\n", "line 2, column 'split': 'val' is none of train, query, gallery, test"),
        (HEADER + 'a.jpg,"1,0,train\n', "t.csv, line 2: not CSV"),
        ("image,identity,camera,split,modality\na,1,,train,rgb", "column 'modality': 'rgb' is neither"),
        ("image,identity,camera,split,attributes\na,1,,train,red", "column 'attributes': 'red' must be slot=value"),
        ("image,identity,camera,split,attributes\na,1,,train,hat=", "column 'attributes': hat=: a slot and its value"),
        (
            "image,identity,camera,split,attributes\na,1,,train,a=1;a=2",
            "column 'attributes': slot 'a' stands there twice",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)):
        parse(text, "t.csv", json_lines=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "t.jsonl, line 2: not JSON"),
        ("[]", "t.jsonl, line 2: '[]' is no JSON object"),
        ('{"image": "a", "split": "train"}', "line 2: column 'identity' is missing"),
        (r'{"image": "a", "identity": "\ud800", "split": "train"}', "line 2, column 'identity': '\\ud800' holds half"),
        ('{"image": ["a"], "identity": 1, "split": "train"}', "line 2, column 'image': ['a'] must be text"),
        (
            '{"image": "a", "identity": 1, "split": "train", "caption": [1]}',
            "line 2, column 'caption': it must be text",
        ),
    ],
)
def test_what_is_wrong_with_json_lines_is_named(line: str, message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)):
        parse(f"\n{line}\n", "t.jsonl", json_lines=True)


ROWS_OF_A_TABLE = [  # image, identity, camera, split, clothes, modality, caption, instruction_image, attributes
    (
        "a/1.jpg",
        "ann",
        "0",
        "train",
        "red coat",
        "visible",
        "a woman | she walks",
        "t/1.jpg",
        "upper colour=red; bag=none",
    ),
    ("a/2.jpg", "ann", "1", "train", "grey suit", "infrared", "", "t/2.jpg", "upper colour=grey"),
    ("a/3.jpg", "market1501/0002", "", "train", "x", "", "", "", ""),
    ("a/4.jpg", "bob", "0", "query", "a", "visible", "a man|tall", "t/1.jpg", ""),
    ("a/5.jpg", "bob", "1", "gallery", "b", "infrared", "", "t/1.jpg", "upper colour=red"),
    ("a/6.jpg", "cy", "", "gallery", "b", "visible", "", "t/2.jpg", ""),
]


def write_table(root: Path, rows: list[tuple[str, ...]]) -> Path:
    official_trees.draw(root, {row[i] for row in rows for i in (0, 7) if row[i]})
    with open(root / "people.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([table_files.COLUMNS, *rows])
    return root / "people.csv"


def build_table(path: Path, out: Path, task: str, *options: str) -> int:
    common = ["--dataset", "table", "--table", str(path), "--task", task, "--name", f"mine_{task}", "--workers", "1"]
    return build.main([*common, "--out", str(out), *options])


def test_table_as_cc(tmp_path: Path) -> None:
    path = write_table(tmp_path / "raw", ROWS_OF_A_TABLE)
    options = ["--table", str(path), "--task", "cc", "--name", "mine", "--namespace", "office"]
    dataset = built("table", path.parent, tmp_path / "out", *options)
    assert dataset.manifest.namespace == "office"
    assert columns(dataset, "train") == [
        ("a/1.jpg", "office/ann", 0, outfit("red coat"), 0),
        ("a/2.jpg", "office/ann", 1, outfit("grey suit"), 1),
        # A name with / is a person's full name; a camera unknown in train is 0.
        ("a/3.jpg", "market1501/0002", 0, outfit("x"), 0),
    ]
    assert columns(dataset, "query") == [("a/4.jpg", "office/bob", 0, outfit("a"), 0)]
    assert columns(dataset, "gallery") == [
        ("a/5.jpg", "office/bob", 1, outfit("b"), 1),
        ("a/6.jpg", "office/cy", -2, outfit("b"), 0),
    ]
    assert dataset.index("gallery").attributes[:, :2].tolist() == [[-1, 1], [-1, -1]]
    assert dataset.manifest.source["slots"] == {"bag": ["none"], "upper colour": ["grey", "red"]}


def outfit(label: str) -> int:
    """Returns a label's number, which is the same in every table."""
    return zlib.crc32(label.encode()) & 0x7FFFFFFF


def test_outfits_of_one_person_differ_however_the_person_is_written(tmp_path: Path) -> None:
    official_trees.draw(tmp_path, ["a.jpg"])
    rows = [("ann", "red"), ("mine/ann", "blue"), ("mine/ann", "red"), ("ann", "7")]
    official_trees.draw(tmp_path, [f"{number}.jpg" for number in range(4)])
    lines = [f"{number}.jpg,{person},,train,{label}" for number, (person, label) in enumerate(rows)]
    (tmp_path / "t.csv").write_text("image,identity,camera,split,clothes\n" + "\n".join(lines))
    items = table.source("x", "trad", "mine", str(tmp_path / "t.csv")).scan(tmp_path).splits["train"]
    assert {item.person for item in items} == {"mine/ann"}
    assert [item.clothes for item in items] == [outfit("red"), outfit("blue"), outfit("red"), 7]
    (tmp_path / "t.csv").write_text("image,identity,camera,split,clothes\na.jpg,ann,,train,7\na.jpg,ann,,train,007\n")
    with pytest.raises(
        DatasetError, match=r"t.csv, column 'clothes': outfits '007' and '7' of mine/ann get one number"
    ):
        table.source("x", "trad", "mine", str(tmp_path / "t.csv")).scan(tmp_path)


def test_table_as_ctcc_li_t2i_vi(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path / "raw", ROWS_OF_A_TABLE)
    assert build_table(path, tmp_path / "out", "vi") == 0
    # ctcc: line 4 has no instruction picture, but cut-out clothes may stand in.
    assert build_table(path, tmp_path / "out", "ctcc") == 2
    assert "people.csv, line 4, column 'instruction_image': it is empty, but task ctcc" in capsys.readouterr().err
    options = ["--table", str(path), "--task", "ctcc", "--name", "mine_ctcc", "--clothes_crops", "outfit"]
    ctcc = built("table", path.parent, tmp_path / "out", *options)
    records = [ctcc.reader("train")[i]["instruction_images"][0] for i in range(3)]
    pictures = [(path.parent / file).read_bytes() for file in ("t/1.jpg", "t/2.jpg", "a/3.jpg")]
    assert records == [*pictures[:2], clothes_crops.upper_clothes(pictures[2])]
    # The query shows bob in outfit a; its template t/1.jpg is bob's outfit b in the gallery.
    assert ctcc.index("query").instruction_clothes.tolist() == [outfit("b")]
    # li: line 4 has neither caption nor attributes.
    assert build_table(path, tmp_path / "out", "li") == 2
    assert "line 4, column 'caption': it is empty, but task li needs it" in capsys.readouterr().err
    rows = [row for row in ROWS_OF_A_TABLE if row[0] not in ("a/3.jpg", "a/6.jpg")]
    path = write_table(tmp_path / "li", rows)
    li = built("table", path.parent, tmp_path / "out", "--table", str(path), "--task", "li", "--name", "mine_li")
    assert li.reader("train")[0]["sentences"] == ("a woman", "she walks")
    made = li.reader("train")[1]["sentences"]  # from attributes: three paraphrases in train, one in test
    assert len(set(made)) == 3
    assert all("grey" in text for text in made)
    assert li.index("gallery").sentence_count.tolist() == [1]
    assert li.index("gallery").attributes[:, :2].tolist() == [[-1, 1]]  # bag not named, red
    assert li.index("train").instruction_clothes.tolist() == [outfit("red coat"), outfit("grey suit")]
    assert li.index("query").instruction_clothes.tolist() == [
        outfit("b")
    ]  # by its template; nothing is known of what it wears
    assert li.index("query").attributes.tolist() == [[-1] * 8]
    assert li.manifest.source["sentences"] == "of 2 rows made from attributes by templates, seeded by file name"
    # t2i: line 3 has no caption.
    assert build_table(path, tmp_path / "out", "t2i") == 2
    assert "line 3, column 'caption': it is empty, but task t2i needs it" in capsys.readouterr().err
    path = write_table(tmp_path / "t2i", [rows[0], *rows[2:]])
    t2i = built("table", path.parent, tmp_path / "out", "--table", str(path), "--task", "t2i", "--name", "mine_t2i")
    assert [t2i.reader("query")[i]["sentences"] for i in range(2)] == [("a man",), ("tall",)]


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        ("trad", [("a", "x", "0", "query"), ("b", "y", "0", "gallery")], "no person of query stands in gallery"),
        (
            "trad",
            [("a", "x", "0", "query"), ("b", "x", "0", "gallery")],
            "'junk: same identity and same camera' would then drop every query",
        ),
        ("trad", [("a", "x", "0", "query")], "split query and split gallery need each other; it has query"),
        ("trad", [("a", "x", "0", "train"), ("b", "x", "0", "test")], "1 person(s) stand in train and in test"),
        ("vi", [("a", "x", "0", "train")], "column 'modality': task vi needs visible and infrared pictures"),
        ("cc", [("a", "x", "0", "train")], "t.csv, line 2, column 'clothes': it is empty, but task cc needs it"),
        ("trad", [("c", "x", "0", "train")], "t.csv, line 2, column 'image': the picture"),
    ],
)
def test_tables_that_no_protocol_can_use(
    task: str, rows: list[tuple[str, ...]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official_trees.draw(tmp_path, ["a.jpg", "b.jpg"])
    lines = [",".join([f"{row[0]}.jpg", *row[1:]]) for row in rows]
    (tmp_path / "t.csv").write_text(HEADER + "\n".join(lines))
    assert build_table(tmp_path / "t.csv", tmp_path / "out", task) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("splits", [("query", "gallery"), ("train", "gallery"), ("train", "query")])
def test_a_picture_shows_one_person_in_all_splits(splits: tuple[str, str], tmp_path: Path) -> None:
    official_trees.draw(tmp_path, [f"{name}.jpg" for name in "abcd"])
    lines = ["a.jpg,x,0,train,1", "b.jpg,y,0,query,1", "c.jpg,y,1,gallery,1", f"d.jpg,x,0,{splits[0]},1"]
    for other in ("d.jpg,z,0", "d.jpg,x,0"):
        (tmp_path / "t.csv").write_text("\n".join([f"{HEADER.strip()},clothes", *lines, f"{other},{splits[1]},2"]))
        with pytest.raises(
            DatasetError, match=r"t.csv, line 6: d.jpg stands in .*line 5 as well, with (person|clothes)"
        ):
            table.scan(tmp_path, task="trad", namespace="mine", table=tmp_path / "t.csv")
    # The same row in query and gallery says nothing else.
    (tmp_path / "t.csv").write_text(f"{HEADER}b.jpg,y,,query\nb.jpg,y,,gallery\nc.jpg,y,1,gallery\n")
    assert table.scan(tmp_path, task="trad", namespace="mine", table=tmp_path / "t.csv").found["gallery"]["images"] == 2


def test_tables_that_cannot_be_read_or_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_table(tmp_path / "none.csv", tmp_path / "out", "trad") == 2
    assert "cannot read the table" in capsys.readouterr().err
    (tmp_path / "latin.csv").write_bytes(HEADER.encode() + "Jörg.jpg,1,0,train".encode("latin-1"))
    assert build_table(tmp_path / "latin.csv", tmp_path / "out", "trad") == 2
    assert "latin.csv is not text in UTF-8" in capsys.readouterr().err
    official_trees.draw(tmp_path, ["a.jpg"])
    header = "image,identity,camera,split,attributes\n"
    (tmp_path / "slot.csv").write_text(header + "a.jpg,1,0,train,scarf=long")
    assert build_table(tmp_path / "slot.csv", tmp_path / "out", "li") == 2
    error = capsys.readouterr().err
    assert "slot.csv, line 2, column 'attributes': no sentence can be made" in error
    assert "give a caption or instruction, or use the slots upper colour" in error
    nine = ";".join(f"slot{i}=1" for i in range(9))
    (tmp_path / "nine.csv").write_text(header + f"a.jpg,1,0,train,{nine}")
    assert build_table(tmp_path / "nine.csv", tmp_path / "out", "li") == 2
    assert "column 'attributes': 9 slots (slot0, slot1" in capsys.readouterr().err
    assert build_table(tmp_path / "nine.csv", tmp_path / "out", "trad") == 0  # which reads none
    assert open_dataset(tmp_path / "out", "mine_trad").index("train").attributes.max() == -1


def test_the_example_of_the_documentation_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data_sets.md").read_text(encoding="utf-8")
    section = page.split("## A table, one task at a time")[1].split("\n## ")[0]
    text = section.split("```text\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    Path("people.csv").write_text(text, encoding="utf-8")
    official_trees.draw(Path(), [row.image for row in parse(text, "people.csv", json_lines=False)])
    commands = re.findall(r"^python -m data_pipelines\.build (.*)$", section, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert build.main([*command.replace("SHARDS", "shards").split(), "--workers", "1"]) == 0
    li, cc = (open_dataset("shards", name) for name in ("mine_li", "mine_cc"))
    assert li.manifest.people == cc.manifest.people == ["mine_li/ann", "mine_li/bob"]
    assert li.reader("train")[0]["sentences"] == ("the same person in a red coat", "she wears red")


def test_rows_without_a_picture_are_left_out_where_bad_ones_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official_trees.draw(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "t.csv").write_text(HEADER + "a.jpg,1,0,train\nb.jpg,2,0,train\nnone.jpg,2,0,train\n")
    assert build_table(tmp_path / "t.csv", tmp_path / "out", "trad") == 2
    assert "t.csv, line 4, column 'image': the picture" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text(HEADER + f"a.jpg,1,0,train\nb.jpg,2,0,train\n{'x' * 300}.jpg,2,0,train\n")
    assert build_table(tmp_path / "t.csv", tmp_path / "out", "trad", "--on_bad_image", "skip") == 0
    assert len(open_dataset(tmp_path / "out", "mine_trad").index("train")) == 2


def test_a_folder_a_person_is_built_like_a_table(tmp_path: Path) -> None:
    official_trees.draw(tmp_path / "people", [f"{person}/{n}.jpg" for person in ("ann", "bob", "cy") for n in range(3)])
    assert build_table(tmp_path / "people", tmp_path / "out", "trad") == 0
    assert open_dataset(tmp_path / "out", "mine_trad").manifest.people == [
        f"mine_trad/{p}" for p in ("ann", "bob", "cy")
    ]


def test_a_table_without_splits_is_divided(tmp_path: Path) -> None:
    files = [f"{person}{camera}.jpg" for person in "abcd" for camera in range(3)]
    official_trees.draw(tmp_path, files)
    lines = [f"{file},{file[0]},cam {file[1]}" for file in files]
    (tmp_path / "t.csv").write_text("image,identity,camera\n" + "\n".join(lines))
    assert build_table(tmp_path / "t.csv", tmp_path / "out", "trad") == 0
    dataset = open_dataset(tmp_path / "out", "mine_trad")
    assert {split: len(dataset.index(split)) for split in dataset.splits} == {"train": 9, "query": 2, "gallery": 1}
    assert "1 of 4 people are tested (share 0.25, seed 0)" in dataset.manifest.source["division"]
    (camera,) = {int(c) for c in dataset.index("gallery").camera}
    assert camera in [zlib.crc32(f"cam {c}".encode()) & 0x7FFFFFFF for c in range(3)]
