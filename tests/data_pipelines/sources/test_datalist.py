"""The authors' datalists: all six tasks from one pair of lists, and lists that are wrong."""

import json
from pathlib import Path

import official_trees
import pytest
from official_trees import built

from data_pipelines.errors import DatasetError
from data_pipelines.sources import datalist

LINES = {
    "train": ["a/1.jpg i/1.jpg 7 0", "a/2.jpg i/2.jpg 7 1", "a/3.jpg i/1.jpg 8 0 5"],
    "query": ["a/4.jpg i/2.jpg 21 0"],
    "gallery": ["a/5.jpg i/1.jpg 21 1", "a/6.jpg i/2.jpg 22 0 3"],
}


@pytest.mark.parametrize("task", ["trad", "cc", "ctcc", "vi", "t2i", "li"])
def test_datalist_of_every_task(task: str, tmp_path: Path) -> None:
    raw, keys = tmp_path / "raw", {"i/1.jpg": ["one", "eins"], "i/2.jpg": "two"}
    lines = dict(LINES)
    if task == "vi":
        lines["train"] = [line.replace("a/3", "test_nir/3") for line in lines["train"]]
    if task == "t2i":  # gallery rows carry a filler that is no key
        lines["gallery"] = [line.replace("i/1.jpg", "001_1_c5_015874.png") for line in lines["gallery"]]
    official_trees.draw(raw, [line.split()[0] for rows in lines.values() for line in rows] + ["i/1.jpg", "i/2.jpg"])
    official_trees.write(raw, {f"{split}.txt": "\n".join(rows) for split, rows in lines.items()})
    official_trees.write(raw, {"s.json": json.dumps(keys)})
    options = ["--task", task, "--name", "mine", *(f"--{split}_list={split}.txt" for split in lines)]
    dataset = built("datalist", raw, tmp_path / "out", *options, *["--sentences=s.json"] * (task in ("li", "t2i")))
    train = dataset.index("train")
    assert [dataset.manifest.people[i] for i in train.identity] == ["mine/0007", "mine/0007", "mine/0008"]
    assert [dataset.index(split).camera.tolist() for split in lines] == [[0, 0, 5], [-1], [-2, 3]]
    assert train.clothes.tolist() == [0, 1, 0]
    assert train.modality.tolist() == ([0, 0, 1] if task == "vi" else [0, 0, 0])
    records = [dataset.reader("train")[i] for i in range(3)]
    texts = [("one", "eins"), ("two",), ("one", "eins")] if task in ("li", "t2i") else [(), (), ()]
    assert [record["sentences"] for record in records] == texts
    images = [(raw / f"i/{i}.jpg").read_bytes() for i in (1, 2, 1)]
    assert [record["instruction_images"] for record in records] == (
        [(image,) for image in images] if task in ("cc", "ctcc") else [(), (), ()]
    )
    assert dataset.index("query").instruction_clothes.tolist() == ([0] if task in ("ctcc", "li") else [-1])
    assert dataset.reader("gallery")[0]["sentences"] == (("one", "eins") if task == "li" else ())


def test_every_caption_of_a_query_is_a_record(tmp_path: Path) -> None:
    official_trees.draw(tmp_path, ["a/1.jpg", "a/2.jpg"])
    official_trees.write(tmp_path, {"q.txt": "a/1.jpg two 7 0\na/2.jpg one 8 0\n", "g.txt": "a/1.jpg filler 7 0\n"})
    official_trees.write(tmp_path, {"s.json": json.dumps({"one": "eins", "two": ["first", "second"]})})
    splits = datalist.source("x", "t2i", "x", {"query": "q.txt", "gallery": "g.txt"}, "s.json").scan(tmp_path).splits
    asked = [(item.file, item.sentences) for item in splits["query"]]
    assert asked == [("a/1.jpg", ("first",)), ("a/1.jpg", ("second",)), ("a/2.jpg", ("eins",))]
    assert [item.sentences for item in splits["gallery"]] == [()]
    train = datalist.source("x", "t2i", "x", {"train": "q.txt"}, "s.json").scan(tmp_path).splits["train"]
    assert [item.sentences for item in train] == [("first", "second"), ("eins",)]


def test_a_number_as_instruction_is_no_person(tmp_path: Path) -> None:
    official_trees.draw(tmp_path, ["a.jpg"])
    official_trees.write(tmp_path, {"l.txt": "a.jpg 17 4 2\n", "long.txt": "a.jpg 17 4 2 1\n", "s.json": '{"17": "x"}'})

    def scanned(task: str, name: str, *sentences: str) -> tuple[str, int, int]:
        (item,) = datalist.source("x", task, "x", {"train": name}, *sentences).scan(tmp_path).splits["train"]
        return item.person, item.clothes, item.camera

    for task in ("trad", "vi"):
        with pytest.raises(
            DatasetError, match=r"l.txt, line 1: '17 4 2' may be <instruction> .* or <pid> .*five columns"
        ):
            scanned(task, "l.txt")
    with pytest.raises(DatasetError, match=r"l\.txt, line 1: '17 4 2' may be <instruction>"):
        datalist.source("x", "t2i", "x", {"query": "long.txt", "gallery": "l.txt"}, "s.json").scan(tmp_path)
    assert scanned("trad", "long.txt") == ("x/0004", 2, 1)
    assert scanned("li", "l.txt", "s.json") == scanned("t2i", "l.txt", "s.json") == ("x/0004", 2, 0)  # 17 is the key
    assert scanned("cc", "l.txt") == ("x/0017", 4, 2)  # the instruction of cc is a picture


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg i 4 99999999999", "line 1: clothes 99999999999 must be from 0 to 2147483647"),
        ("a.jpg i 4 -2", "line 1: clothes -2 must be from 0"),
        ("a.jpg i 4 0 9999999999", r"line 1: camera 9999999999 must be from 0 to 2147483647 \(-1, -2: not known\)"),
        ("a.jpg i -2 0", "line 1: person -2 must be from 0"),
        ("a.jpg i 4 0 -3", "line 1: camera -3 must be from 0"),
        (f"a.jpg i {'9' * 5000} 0", "line 1, column 3: '9999.*must be a whole number"),
    ],
)
def test_numbers_out_of_range_are_named_with_their_line(line: str, message: str, tmp_path: Path) -> None:
    official_trees.draw(tmp_path, ["a.jpg"])
    official_trees.write(tmp_path, {"l.txt": f"{line}\n"})
    with pytest.raises(DatasetError, match=message):
        datalist.source("x", "trad", "x", {"train": "l.txt"}).scan(tmp_path)


def test_unknown_cameras_of_both_sides_are_not_one_camera(tmp_path: Path) -> None:
    official_trees.draw(tmp_path, ["a.jpg", "b.jpg"])
    official_trees.write(
        tmp_path, {"q.txt": "a.jpg x 7 0 -1\n", "g.txt": "b.jpg x 7 0 -1\n", "o.txt": "b.jpg x 7 0 3\n"}
    )
    for query, gallery in (("q.txt", "g.txt"), ("q.txt", "o.txt"), ("o.txt", "q.txt")):
        found = datalist.source("x", "trad", "x", {"query": query, "gallery": gallery}).scan(tmp_path)
        assert [len(items) for items in found.splits.values()] == [1, 1]
    with pytest.raises(DatasetError, match="every query's person is seen by the query's own camera only"):
        datalist.source("x", "trad", "x", {"query": "o.txt", "gallery": "o.txt"}).scan(tmp_path)


def test_datalist_wrong(tmp_path: Path) -> None:
    official_trees.draw(tmp_path, ["a/1.jpg", "i/1.jpg"])
    official_trees.write(tmp_path, {"l.txt": "a/1.jpg i/1.jpg 7 0\n"})
    with pytest.raises(DatasetError, match="task li takes its sentences from a JSON file: give it with --sentences"):
        datalist.source("x", "li", "x", {"train": "l.txt"}).scan(tmp_path)
    with pytest.raises(DatasetError, match="task cc has no sentences of its own"):
        datalist.source("x", "cc", "x", {"train": "l.txt"}, "s.json").scan(tmp_path)
    with pytest.raises(DatasetError, match=r"s\.json does not exist"):
        datalist.source("x", "li", "x", {"train": "l.txt"}, "s.json").scan(tmp_path)
    with pytest.raises(DatasetError, match="no picture is infrared, or all are"):
        datalist.source("x", "vi", "x", {"train": "l.txt"}).scan(tmp_path)
    with pytest.raises(DatasetError, match=r"x: 1 person.s. stand in train and in query.*--namespace"):
        datalist.source("x", "trad", "x", {"train": "l.txt", "query": "l.txt", "gallery": "l.txt"}).scan(tmp_path)
    with pytest.raises(DatasetError, match=r"none\.txt does not exist"):
        datalist.source("x", "trad", "x", {"train": "none.txt"}).scan(tmp_path)
