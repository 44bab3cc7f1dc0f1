"""Test people are left out of a build, and found before a training, by each evidence."""

from pathlib import Path

import pytest
from official_trees import TREES, built, draw, write
from test_leaks import dataset

from data_pipelines import build, sources
from data_pipelines.dataset.reader import Dataset, open_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.people import tested_people


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Market-1501 built: persons 0002 and 0007 train, 0001 is a test person."""
    root = tmp_path_factory.mktemp("market")
    built("market1501", TREES["market1501_attributes"].make(root / "raw"), root / "out")
    return root / "out"


def table_command(root: Path, out: Path, rows: list[str]) -> list[str]:
    write(root, {"people.csv": "\n".join(["image,identity,camera,split", *rows])})
    draw(root, [row.split(",")[0] for row in rows])
    return [
        "--dataset", "table", "--task", "trad", "--name", "mine", "--table", str(root / "people.csv"),
        "--out", str(out), "--workers", "1",
    ]  # fmt: skip


ROWS = [
    "a.jpg,market1501/0001,0,train",  # tested in Market-1501, under its name
    "b.jpg,market1501/0002,0,train",
    "Market/0001_c1s1_001051_00.jpg,carl,0,train",  # tested, by the name of the file: carl is Market-1501's 0001
    "c.jpg,carl,1,train",
    "d.jpg,dora,0,train",
    "e.jpg,market1501/0001,0,query",  # a person who is tested here as well stays there
    "f.jpg,market1501/0001,1,gallery",
]


def test_leave_out(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in ROWS if "a.jpg" not in row]
    command = table_command(tmp_path, market, rows)
    assert build.main([*command, "--leave_out", "market1501"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\n2 pictures left out of train: 1 people are tested in market1501\n")
    mine = open_dataset(market, "mine")
    assert mine.index("train").file.tolist() == ["b.jpg", "d.jpg"]
    assert [len(mine.index(split)) for split in ("query", "gallery")] == [1, 1]
    assert mine.manifest.people == ["market1501/0001", "market1501/0002", "mine/dora"]
    said = {"tested_in": ["market1501"], "people": 1, "images": 2}
    assert mine.manifest.source["left_out_of_train"] == said
    # Another request than without: the build is not taken for finished.
    assert build.main(command) == 2
    assert "holds another build" in capsys.readouterr().err
    tests = {"market1501": (open_dataset(market, "market1501"), ["query", "gallery"])}
    assert tested_people.leaks([mine], tests) == []


def test_leave_out_that_makes_no_sense(market: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = table_command(tmp_path, market, ["a.jpg,market1501/0001,0,train", "b.jpg,market1501/0001,1,train"])
    assert build.main([*command, "--leave_out", "market1501"]) == 2
    assert "everybody in train is tested in market1501" in capsys.readouterr().err
    assert build.main([*command, "--leave_out", "msmt17"]) == 2
    assert "no data set msmt17 in" in capsys.readouterr().err
    market1501 = [open_dataset(market, "market1501")]
    synth = sources.get_source("synth_pedes").scan(TREES["synth_pedes"].make(tmp_path / "synth"))
    with pytest.raises(DatasetError, match="synth_pedes shows nobody of other data sets"):
        tested_people.leave_out(synth, "synth_pedes", market1501)
    real2 = sources.get_source("real2_li").scan(TREES["real2_li"].make(tmp_path / "real2"))
    with pytest.raises(DatasetError, match="real2_li has no training part"):
        tested_people.leave_out(real2, "real2_li", market1501)


def found(training: list[Dataset], *tests: Dataset) -> list[tuple[str, str, str]]:
    wanted = {test.name: (test, [split for split in test.splits if split != "train"]) for test in tests}
    return [(leak.person_a, leak.evidence, leak.person_b) for leak in tested_people.leaks(training, wanted)]


def test_leaks_between_data_sets(tmp_path: Path) -> None:
    file = "Market/0012_c1s1_000001_00.jpg"
    train = dataset(
        tmp_path, "a",
        train=[("x/1", "1.jpg", 1), ("x/1", "2.jpg", 2), ("x/2", "3.jpg", 3), ("x/3", file, 4), ("x/4", "5.jpg", 5)],
    )  # fmt: skip
    by_name = dataset(tmp_path, "b", query=[("x/1", "q.jpg", 11)], gallery=[("x/9", "g.jpg", 12)])
    by_file = dataset(tmp_path, "c", train=[("x/2", "t.jpg", 22)], gallery=[("market1501/0012", "g.jpg", 21)])
    by_picture = dataset(tmp_path, "d", gallery=[("d/1", "g.jpg", 5)])
    assert found([train], by_name) == [("x/1", "name", "x/1")]
    assert found([train], by_file) == [("x/3", "file", "market1501/0012")]  # x/2 trains in both: no harm
    assert found([train], by_picture) == [("x/4", "picture", "d/1")]
    assert found([train, by_file], by_name, by_picture) == [("x/1", "name", "x/1"), ("x/4", "picture", "d/1")]
    (leak,) = tested_people.leaks([train], {"b": (by_name, ["query", "gallery"])})
    assert leak.images == (2, 1)
    assert found([train], dataset(tmp_path, "e", gallery=[("x/9", "g.jpg", 12)])) == []
    # Overlap of a data set's own splits is not reported, and only the splits that are used count.
    own = dataset(tmp_path, "f", train=[("f/1", "1.jpg", 31)], query=[("f/1", "2.jpg", 32)])
    assert found([own], own) == []
    assert tested_people.leaks([train], {"b": (by_name, ["gallery"])}) == []


def test_the_refusal_names_the_options_that_help(tmp_path: Path) -> None:
    train = dataset(tmp_path, "a", train=[("x/1", "1.jpg", 1), ("x/2", "2.jpg", 2)])
    test = dataset(tmp_path, "b", query=[("x/1", "q.jpg", 3), ("x/2", "r.jpg", 4)])
    text = tested_people.refusal(tested_people.leaks([train], {"b": (test, ["query"])}))
    assert text.startswith("2 person(s) of the test sets would be trained on, for example x/1 of b (q.jpg)")
    assert text.endswith("as before but without them (a: --leave_out b --overwrite)")


def test_numbers_without_their_zeros_are_the_same_people(market: Path, tmp_path: Path) -> None:
    """pandas writes 0001 as 1: under Market-1501's namespace this is Market-1501's test person 0001."""
    rows = ["a.jpg,1,0,train", "b.jpg,2,0,train", "c.jpg,-1,0,train"]
    command = [*table_command(tmp_path / "raw", tmp_path / "out", rows), "--namespace", "market1501"]
    assert build.main(command) == 0
    mine, tested = open_dataset(tmp_path / "out", "mine"), open_dataset(market, "market1501")
    assert mine.manifest.people == ["market1501/0001", "market1501/0002"]  # -1 is no person
    assert mine.manifest.source["dropped_junk"] == 1
    (leak,) = tested_people.leaks([mine], {"market1501": (tested, ["query", "gallery"])})
    assert (leak.evidence, leak.person_a, leak.person_b) == ("name", "market1501/0001", "market1501/0001")
