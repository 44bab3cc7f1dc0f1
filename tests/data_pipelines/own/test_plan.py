"""Which tasks a table allows, from which rows, and what is built of it."""

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import cv2
import pyarrow.parquet as pq
import pytest
from official_trees import TREES, draw

from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError
from data_pipelines.own import build, plan
from data_pipelines.people import near_duplicates
from data_pipelines.sources import market1501, table, table_files


def write_table(folder: Path, *columns: str, people: int = 8, **changes: Any) -> plan.Options:
    """Six pictures of each person: three cameras, two outfits, one of two modalities."""
    values = {
        "camera": lambda p, k: ("door", "hall", "street")[k // 2], "clothes": lambda p, k: f"outfit {k % 2}",
        "caption": lambda p, k: f"person {p} in outfit {k % 2}",
        "modality": lambda p, k: ("visible", "infrared")[k % 2],
        "attributes": lambda p, k: f"upper colour={('red', 'blue')[k % 2]}",
        "instruction_image": lambda p, k: f"t/{k % 2}.png",
        "instruction": lambda p, k: f"somebody in {('red', 'blue')[k % 2]}|in {('red', 'blue')[k % 2]} today",
        "time": lambda p, k: f"12:0{k}", "shift": lambda p, k: p % 3,
    }  # fmt: skip
    rows = [
        {"image": f"a/{p}_{k}.jpg", "identity": f"person {p}"} | {name: values[name](p, k) for name in columns}
        for p in range(people) for k in range(6)
    ]  # fmt: skip
    draw(folder, [row["image"] for row in rows] + ["t/0.png", "t/1.png"])
    with open(folder / "My Crops.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return plan.Options(str(folder / "My Crops.csv"), **changes)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((), "trad; not cc: no column clothes; not ctcc: no column instruction_image; not vi: no column modality; "
             "not t2i: no column caption; not li: no column attributes"),
        (("camera", "clothes", "caption"), "trad, cc (clothes), t2i (caption); not ctcc: no column instruction_image; "
                                           "not vi: no column modality; not li: no column attributes"),
        (("camera", "clothes", "caption", "modality", "attributes", "instruction_image"),
         "trad, cc (clothes), ctcc (instruction_image), vi (modality), t2i (caption), li (attributes)"),
    ],
)  # fmt: skip
def test_tasks_follow_from_the_columns(columns: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert plan.make(write_table(tmp_path, *columns)).said == said


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [("gender=male", r"line 2, column 'attributes': no sentence can be made \(no phrases for slots \['gender'\]"),
     ("bag=handbag", r"line 2, column 'attributes': no sentence can be made \('handbag'\): give a caption"),
     (";".join(f"slot{n}=1" for n in range(9)), r"column 'attributes': 9 slots \(slot0, .*at most: leave some out")],
)  # fmt: skip
def test_attributes_that_serve_no_sentence_leave_the_other_tasks(attributes: str, reason: str, tmp_path: Path) -> None:
    options = write_table(tmp_path, "camera", "clothes", "shift")
    text = Path(options.table).read_text().replace("shift", "attributes")
    Path(options.table).write_text(re.sub(r",\d$", f",{attributes}", text, flags=re.MULTILINE))
    found = plan.make(options)
    assert [one.task for one in found.tasks] == ["trad", "cc"]
    assert re.search(reason, found.refused["li"])
    with pytest.raises(DatasetError, match=reason):
        plan.make(dataclasses.replace(options, tasks=("trad", "li")))


def test_data_sets_and_rules(tmp_path: Path) -> None:
    options = write_table(tmp_path, "camera", "clothes", "caption", "attributes", "instruction_image", "modality")
    found = plan.make(options)
    assert {one.task: (one.data_set, one.protocols) for one in found.tasks} == {
        "trad": ("my_crops", ("market",)),
        "cc": ("my_crops", ("ltcc_cc", "market")),
        "ctcc": ("my_crops_ctcc", ("requested_outfit", "market")),
        "vi": ("my_crops_vi", ("other_modality", "market")),
        "t2i": ("my_crops_t2i", ("identity",)),
        "li": ("my_crops_li", ("requested_outfit", "market")),
    }
    assert {len(scan.splits["train"]) for scan in found.scans.values()} == {36}
    assert len(found.scans["my_crops_t2i"].splits["query"]) == 12


@pytest.mark.parametrize(
    ("column", "cells", "task", "rules"),
    [("instruction_image", ("t0.jpg", "t0.jpg"), "ctcc", ("market",)),  # whose outfit is not known without `clothes`
     ("instruction_image,clothes", ("t0.jpg,a", "t0.jpg,b"), "ctcc", ("requested_outfit", "market")),
     ("attributes,instruction_clothes,clothes", ("hat=cap,b,a", "hat=cap,,b"), "li", ("requested_outfit", "market")),
     ("attributes,instruction_clothes,clothes", ("hat=cap,c,a", "hat=cap,,b"), "li", ("market",)),
     ("attributes", ("hat=cap", "hat=cap;bag=none"), "li", ("named_attributes", "market")),
     ("attributes", ("hat=cap", "hat=beanie"), "li", ("market",))],
)  # fmt: skip
def test_a_strict_rule_gives_some_query_an_answer(
    column: str, cells: tuple[str, str], task: str, rules: tuple[str, ...], tmp_path: Path
) -> None:
    """Under one that answers none the evaluation would refuse the test set."""
    draw(tmp_path, [*(f"{n}.jpg" for n in range(6)), "t0.jpg"])
    query, image = cells
    lines = [f"{n}.jpg,{n // 2},{n % 2},train,{image}" for n in range(4)]
    lines += [f"4.jpg,2,0,query,{query}", f"5.jpg,2,1,gallery,{image}"]
    (tmp_path / "t.csv").write_text("\n".join([f"image,identity,camera,split,{column}", *lines]))
    found = plan.make(plan.Options(str(tmp_path / "t.csv"), tasks=(task,)))
    assert found.tasks[0].protocols == rules


def test_no_person_is_not_one_of_two_people(tmp_path: Path) -> None:
    draw(tmp_path, [f"{n}.jpg" for n in range(6)])
    (tmp_path / "t.csv").write_text("image,identity\n" + "".join(f"{n}.jpg,{(-1, 1, 2)[n // 2]}\n" for n in range(6)))
    with pytest.raises(DatasetError, match="1 of the people are left to train on, two are needed"):
        plan.make(plan.Options(str(tmp_path / "t.csv")))
    (tmp_path / "u.csv").write_text("image,identity\n0.jpg,-1\n1.jpg,-1\n")
    with pytest.raises(DatasetError, match=r"u.csv: no row names a person: all are of identity -1"):
        plan.make(plan.Options(str(tmp_path / "u.csv")))


def test_a_query_asks_for_an_outfit_that_it_does_not_wear(tmp_path: Path) -> None:
    found = plan.make(write_table(tmp_path, "camera", "clothes", "attributes", "instruction_image"))
    for name in ("my_crops_ctcc", "my_crops_li"):
        splits = found.scans[name].splits
        worn = {(item.person, item.clothes) for item in splits["gallery"]}
        for query in splits["query"]:
            assert query.instruction_clothes not in (-1, query.clothes)
            assert (query.person, query.instruction_clothes) in worn
            wanted = query.person, query.instruction_clothes
            asked = next(item for item in splits["gallery"] if (item.person, item.clothes) == wanted)
            assert query.instruction_attributes == asked.instruction_attributes
            if name.endswith("ctcc"):
                assert query.template == asked.template
            else:
                assert ("red" in query.sentences[0]) == ("red" in asked.sentences[0])


def test_instructions_stand_in_place_of_templates(tmp_path: Path) -> None:
    """A training picture has all of its row, a query one of the picture that it asks for; captions are t2i's alone."""
    found = plan.make(write_table(tmp_path, "camera", "clothes", "attributes", "instruction", "caption"))
    assert "li (instruction)" in found.said
    splits = found.scans["my_crops_li"].splits
    colours = ("red", "blue")
    said = [{f"somebody in {colour}", f"in {colour} today"} for colour in colours]
    for item in splits["train"]:
        assert set(item.sentences) == said[int(item.file[-5]) % 2]
    for query in splits["query"]:
        [sentence] = query.sentences
        assert sentence in said[1 - int(query.file[-5]) % 2]
    assert len({query.sentences for query in splits["query"]}) > 1


def test_captions_of_all_test_pictures_are_queries(tmp_path: Path) -> None:
    found = plan.make(write_table(tmp_path, "camera", "caption", people=4))
    splits = found.scans["my_crops_t2i"].splits
    assert {split: len(items) for split, items in splits.items()} == {"train": 18, "query": 6, "gallery": 6}


def test_a_split_of_the_table_stands(tmp_path: Path) -> None:
    draw(tmp_path, [f"{n}.jpg" for n in range(6)])
    head = "image,identity,camera,split\n"
    lines = ["0.jpg,a,0,train", "1.jpg,b,0,train", "2.jpg,c,0,query", "3.jpg,c,1,gallery"]
    (tmp_path / "t.csv").write_text(head + "\n".join(lines))
    found = plan.make(plan.Options(str(tmp_path / "t.csv")))
    assert found.division == ""
    assert [row.split for row in found.rows] == ["train", "train", "query", "gallery"]
    # `test` alone says who is tested; which pictures ask is decided here.
    (tmp_path / "u.csv").write_text(head + "\n".join(lines).replace("query", "test").replace("gallery", "test"))
    found = plan.make(plan.Options(str(tmp_path / "u.csv")))
    assert sorted(row.split for row in found.rows) == ["gallery", "query", "train", "train"]
    (tmp_path / "v.csv").write_text(head + "\n".join([*lines, "4.jpg,d,0,"]))
    with pytest.raises(DatasetError, match=r"v.csv, line 6, column 'split'"):
        plan.make(plan.Options(str(tmp_path / "v.csv")))


def test_a_name_in_train_and_test_is_refused(tmp_path: Path) -> None:
    """Two people by one name, or one person on both sides: who is meant is the user's to say."""
    folder = tmp_path / "folder"
    draw(folder, [f"{side}/{k}.jpg" for side in ("train/1", "train/2", "test/1") for k in range(2)])
    with pytest.raises(DatasetError, match=r"1 person\(s\) stand in train and in test: '1' is in .* \(as test_1\)"):
        plan.make(plan.Options(str(folder)))
    (folder / "test" / "1").rename(folder / "test" / "test_1")
    assert plan.make(plan.Options(str(folder))).said.startswith("trad; ")


def test_what_serves_nothing_is_refused_with_its_reasons(tmp_path: Path) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "t.csv").write_text("image,identity\na.jpg,1\nb.jpg,2\n")
    with pytest.raises(DatasetError, match="nothing can be trained and tested: trad: every person has one picture"):
        plan.make(plan.Options(str(tmp_path / "t.csv")))
    draw(tmp_path, ["c.jpg"])
    (tmp_path / "u.csv").write_text("image,identity,split\na.jpg,1,train\nb.jpg,1,train\nc.jpg,2,train\n")
    with pytest.raises(DatasetError, match="no row has split query: add some, or leave the column split out"):
        plan.make(plan.Options(str(tmp_path / "u.csv")))
    with pytest.raises(DatasetError, match="there is no table"):
        plan.make(plan.Options(str(tmp_path / "none.csv")))
    with pytest.raises(DatasetError, match="unknown task 'tradd'"):
        plan.Options("t.csv", tasks=("tradd",))
    with pytest.raises(DatasetError, match=r"a test share of 1.0 leaves one side without people"):
        plan.Options("t.csv", test_share=1.0)


def test_a_cell_that_is_too_long_for_a_file_is_named(tmp_path: Path) -> None:
    draw(tmp_path, [f"{n}.jpg" for n in range(8)])
    rows = "".join(f"{n}.jpg,{n // 2}\n" for n in range(8))
    (tmp_path / "t.csv").write_text(f"image,identity\n{rows}{'x' * 300},1\n")
    with pytest.raises(DatasetError, match=r"t.csv, line 10, column 'image': the picture .*x is not there"):
        plan.make(plan.Options(str(tmp_path / "t.csv")))
    found = plan.make(plan.Options(str(tmp_path / "t.csv"), skip_bad=True))
    assert found.notes[0] == "1 rows without a picture file are left out"
    (tmp_path / "list_train.txt").write_text(f"{'y' * 300} 0\n")
    assert len(table_files.read(tmp_path)) == 1
    with pytest.raises(DatasetError, match="there is no table"):
        plan.make(plan.Options("x" * 300))


def test_one_camera_is_no_camera(tmp_path: Path) -> None:
    draw(tmp_path, [f"{n}.jpg" for n in range(12)])
    rows = "".join(f"{n}.jpg,{n // 3},0\n" for n in range(12))
    (tmp_path / "t.csv").write_text("image,identity,camera\n" + rows)
    found = plan.make(plan.Options(str(tmp_path / "t.csv")))
    assert "all pictures are of one camera" in found.notes[0]
    assert {item.camera for item in found.scans["t"].splits["query"]} == {-1}


def test_the_build_and_what_stands_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = write_table(tmp_path / "raw", "camera", "clothes", "caption", "time", "shift", people=4)
    found = plan.make(options)
    build.build(found, tmp_path / "out", BuildOptions(workers=1, progress=False))
    dataset = open_dataset(tmp_path / "out", "my_crops")
    assert dataset.manifest.people == [f"my_crops/person {p}" for p in range(4)]
    assert open_dataset(tmp_path / "out", "my_crops_t2i").manifest.namespace == "my_crops"
    kept = pq.read_table(tmp_path / "out" / plan.ROWS)
    assert kept.column_names == ["image", "identity", "camera", "clothes", "caption", "time", "shift", "row", "split"]
    assert kept["shift"].to_pylist() == [str(p % 3) for p in range(4) for _ in range(6)]
    assert set(kept["split"].to_pylist()) == {"train", "query", "gallery"}
    cameras = {row.camera: values["camera"] for row, (_, values) in zip(found.rows, found.cells, strict=True)}
    assert build.camera_names(dataset.folder) == cameras
    folder = build.make_vocabulary(found, tmp_path / "words")
    assert folder is None or "outfit" in (tmp_path / "words" / "vocab.txt").read_text().splitlines()
    # What was divided once is read back: no picture is opened.
    monkeypatch.setattr(near_duplicates, "thumbnails", None)
    plan.forget()
    (tmp_path / "out").rename(tmp_path / found.folder)
    again = plan.make(options, str(tmp_path))
    assert (again.rows, again.division, again.folder) == (found.rows, found.division, found.folder)
    monkeypatch.undo()
    # Another picture under the same name is another folder.
    draw(tmp_path / "raw", ["other.png"])
    (tmp_path / "raw" / "other.png").rename(tmp_path / "raw" / "a" / "0_0.jpg")
    plan.forget()
    assert plan.make(options).digest != found.digest


def test_a_column_named_row_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = write_table(tmp_path / "raw", "shift")
    table_file = Path(options.table)
    table_file.write_text(table_file.read_text().replace("shift", "row"))
    found = plan.make(options, str(tmp_path))
    build.build(found, tmp_path / found.folder, BuildOptions(workers=1, progress=False))
    kept = pq.read_table(tmp_path / found.folder / plan.ROWS)
    assert kept.column_names == ["image", "identity", "row", "_row", "split"]
    assert kept["row"].to_pylist() == [str(p % 3) for p in range(8) for _ in range(6)]
    monkeypatch.setattr(near_duplicates, "thumbnails", None)
    plan.forget()
    assert plan.make(options, str(tmp_path)).rows == found.rows
    # Earlier files have the places as `row`, whatever the table had.
    earlier = kept.drop(["row"]).rename_columns({"_row": "row"}).replace_schema_metadata({"division": "as it was"})
    pq.write_table(earlier, tmp_path / found.folder / plan.ROWS)
    plan.forget()
    again = plan.make(options, str(tmp_path))
    assert (again.rows, again.division) == (found.rows, "as it was")


def test_market1501_as_a_table_is_market1501(tmp_path: Path) -> None:
    """People, pictures, sides and what is junk: the same, and so is the run but for names."""
    raw = TREES["market1501_attributes"].make(tmp_path)
    official = market1501.scan(raw).splits
    lines = [
        f"{item.file},{item.person.rpartition('/')[2].lstrip('0') or 0},c{item.camera + 1},{split}"
        for split, items in official.items() for item in items
    ]  # fmt: skip
    (raw / "market1501.csv").write_text("image,identity,camera,split\n" + "\n".join(lines))
    mine = plan.make(plan.Options(str(raw / "market1501.csv"), tasks=("trad",))).scans["market1501"].splits
    cameras: dict[int, int] = {}
    for split, items in official.items():
        for own, item in zip(mine[split], items, strict=True):
            assert cameras.setdefault(own.camera, item.camera) == item.camera
            assert own._replace(camera=item.camera) == item
    assert len(set(cameras.values())) == len(cameras)


def test_look_alikes_of_a_table_with_splits_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the plan, and by `build --dataset table`."""
    draw(tmp_path, [f"{n}.png" for n in range(6)])
    picture = cv2.imread(str(tmp_path / "2.png"))
    cv2.imwrite(str(tmp_path / "4.png"), cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    for cameras, said in ((",,", "1 gallery pictures look like a query of the same person"), ("0,1,1", "")):
        own = cameras.split(",")
        lines = ["0.png,a,0,train", "1.png,b,0,train", f"2.png,c,{own[0]},query", f"3.png,c,{own[1]},gallery"]
        (tmp_path / "t.csv").write_text("\n".join(["image,identity,camera,split", *lines, f"4.png,c,{own[2]},gallery"]))
        plan.forget()
        found = plan.make(plan.Options(str(tmp_path / "t.csv")))
        assert build.look_alikes(found).startswith(said) if said else build.look_alikes(found) == ""
        caplog.clear()
        table.scan(tmp_path, task="trad", namespace="mine", table=tmp_path / "t.csv")
        assert (f"t.csv: {said}" in caplog.text) == bool(said), caplog.text
