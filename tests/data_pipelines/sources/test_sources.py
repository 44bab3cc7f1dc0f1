"""Every source on a made-up tree in its official layout: scan, build, and each record against the hand-made answer."""

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import official_trees
import pytest
from official_trees import TREES, built, columns

from data_pipelines import build, sources
from data_pipelines.errors import DatasetError
from data_pipelines.people.leaks import find_leaks
from data_pipelines.sources import reading, table

OTHER_TESTS = ("cuhk03_detected", "market1501")  # below, and in test_market1501.py


def test_every_source_has_a_tree() -> None:
    assert {*TREES, *OTHER_TESTS} == set(sources.NAMES)


@pytest.mark.parametrize("name", TREES)
def test_build_finds_the_hand_made_answer(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = TREES[name]
    raw = tree.make(tmp_path / "raw")
    dataset, source = built(name, raw, tmp_path / "out"), sources.get_source(name)
    assert list(dataset.splits) == list(tree.answer)
    for split, answer in tree.answer.items():
        assert columns(dataset, split) == answer, split
        assert dataset.reader(split)[0]["image"] == (raw / tree.place(answer[0][0])).read_bytes()
    manifest = dataset.manifest
    assert (manifest.name, manifest.task, manifest.namespace) == (name, source.task, source.namespace)
    people = {row[1] for rows in tree.answer.values() for row in rows}
    assert manifest.people == sorted(people)
    printed = capsys.readouterr().out
    split, answer = next(iter(tree.answer.items()))
    line = [split, "images", f"{len(answer):,}", f"{source.expected[split]['images']:,}", "differs"]
    # Before the build and again at the end, with what was written.
    assert [row.split() for row in printed.splitlines()].count(line) == 2
    assert printed.endswith("DIFFERENT from the published counts\n")


@pytest.mark.parametrize("name", sources.NAMES)
def test_wrong_folder_is_named_with_a_cure(name: str, tmp_path: Path) -> None:
    scan = sources.get_source(name).scan
    with pytest.raises(DatasetError, match="nowhere does not exist: unpack"):
        scan(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty is empty: unpack"):
        scan(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").touch()
    with pytest.raises(DatasetError, match=r"other lacks .*: give the folder that holds"):
        scan(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("msmt17", "list_query.txt", r"lacks list_query.txt: give the folder that holds train/, test/"),
        (
            "msmt17",
            "test/0000/0000_002_03_0303morning_0015_0.jpg",
            r"list_query.txt, line 1: the picture .* is not there",
        ),
        ("cuhk03_labeled", "images_labeled/1_001_1_01.png", "the picture .* is not there"),
        ("sysu_mm01", "exp/val_id.txt", "lacks exp/val_id.txt"),
        ("llcm", "idx/test_id.txt", "lacks idx/test_id.txt"),
        ("cuhk_pedes", "imgs/cam_a/350_45.bmp", r"reid_raw.json, entry 1: the picture .*350_45.bmp is not there"),
        ("synth_pedes", "Part1/3/0.jpg", r"synthpedes_dataset.json, byte \d+: the picture .* is not there"),
        ("real1_li", "datalist/runner_real1_v1_gpt.json", "holds no runner_real1_v1_gpt.json or real1_v1.json"),
        ("real1_ctcc", "templates/t2.jpg", r"train_ctcc.txt, line 2: the picture .*t2.jpg is not there"),
        ("market1501_attributes", "market_attribute.mat", "lacks market_attribute.mat"),
    ],
)
def test_lost_file_is_named(name: str, lost: str, message: str, tmp_path: Path) -> None:
    raw = TREES[name].make(tmp_path)
    (raw / lost).unlink()
    with pytest.raises(DatasetError, match=message):
        sources.get_source(name).scan(raw)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("prcc", "rgb/train/001/D_1.jpg", "does not begin with the camera, as in A_cropped_rgb001.jpg"),
        ("prcc", "rgb/test/A/x/1.jpg", "the folder x is no person's number"),
        ("ltcc", "LTCC_ReID/query/001_c5_1.png", "does not begin with <pid>_<outfit>_c<camera>"),
        ("ltcc", "LTCC_ReID/query/001_1_c13_1.png", "camera 13, but LTCC has cameras 1 to 12"),
        ("vcclothes", "query/0300-03.jpg", "does not begin with <pid>-<camera>-<outfit>-<number>"),
        ("vcclothes", "query/0300-05-01-01.jpg", "camera 5, but VC-Clothes has cameras 1 to 4"),
        ("cuhk01", "campus/486001.png", "does not begin with four digits of the person"),
        ("cuhk01", "campus/0486005.png", "picture 005|picture 5, but CUHK01 has pictures 001 to 004"),
        ("llcm", "test_vis/camera1/0001/a.jpg", "does not begin with cam<number>"),
        # One person in train and in a test split.
        ("prcc", "rgb/test/A/001/1.jpg", "1 person.s. stand in train and in gallery.*prcc/0001"),
        ("ltcc", "LTCC_ReID/test/000_1_c1_1.png", "stand in train and in gallery.*ltcc/0000"),
        ("vcclothes", "query/0001-02-01-01.jpg", "stand in train and in query.*vcclothes/0001"),
    ],
)
def test_wrong_file_is_named(name: str, file: str, message: str, tmp_path: Path) -> None:
    raw = TREES[name].make(tmp_path)
    official_trees.draw(raw, [file])
    with pytest.raises(DatasetError, match=message):
        sources.get_source(name).scan(raw)


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("msmt17", {"list_train.txt": "0000/0000_000_01_x.jpg\n"}, r"list_train.txt, line 1: .* is not `path label`"),
        ("msmt17", {"list_train.txt": "\n"}, "list_train.txt is empty"),
        (
            "msmt17",
            {"list_gallery.txt": "0002/0002_007_03_0303morning_0015_0.jpg 2\n"},
            "no person of query stands in gallery",
        ),
        ("sysu_mm01", {"exp/test_id.txt": "6,x\n"}, "test_id.txt, line 1, entry 2: 'x' is no number"),
        ("sysu_mm01", {"exp/train_id.txt": "6\n"}, "stand in train and in query.*sysu_mm01/0006"),
        (
            "sysu_mm01",
            {"exp/train_id.txt": "77", "exp/val_id.txt": "78"},
            "no picture of the people in exp/train_id.txt",
        ),
        ("llcm", {"idx/test_id.txt": "1,2"}, "names person 2, of whom .* hold no folder 0002"),
        ("cuhk_pedes", {"reid_raw.json": "[{]"}, "reid_raw.json is not readable JSON"),
        ("cuhk_pedes", {"reid_raw.json": "{}"}, "is no list of annotations"),
        (
            "cuhk_pedes",
            {"reid_raw.json": '[{"split": "train", "id": 1, "captions": ["x"]}]'},
            "entry 1 lacks file_path",
        ),
        (
            "cuhk_pedes",
            {"reid_raw.json": '[{"split": "a", "id": 1, "captions": ["x"], "file_path": "x"}]'},
            "split 'a' is none of",
        ),
        (
            "cuhk_pedes",
            {"reid_raw.json": '[{"split": "test", "id": 1, "captions": "x", "file_path": "x"}]'},
            "captions must be a list",
        ),
        (
            "cuhk_pedes",
            {"reid_raw.json": '[{"split": "test", "id": "x7", "captions": ["x"], "file_path": "x"}]'},
            "entry 1: id 'x7' is no number",
        ),
        (
            "cuhk_pedes",
            {"reid_raw.json": '[{"split": "test", "id": 7, "captions": ["x"], "file_path": ["x"]}]'},
            r"entry 1: file_path \['x'\] is no text",
        ),
        (
            "cuhk_pedes",
            {"reid_raw.json": '[{"split": ["test"], "id": 7, "captions": ["x"], "file_path": "x"}]'},
            r"split \['test'\] is none of",
        ),
        ("synth_pedes", {"synthpedes_dataset.json": '[{"id": 3}]'}, "byte 1 lacks file_path"),
        ("synth_pedes", {"synthpedes_dataset.json": '[{"id": "3", "file_path": "x"}]'}, "byte 1: id '3' is no number"),
        (
            "synth_pedes",
            {"synthpedes_dataset.json": '[{"id": 3, "file_path": "Part1/3/0.jpg"}, '},
            "neither captions nor prompt_caption",
        ),
        ("synth_pedes", {"synthpedes_dataset.json": "{}"}, "byte 0: this is no JSON list of objects"),
        ("market1501_attributes", {"market_attribute.mat": "text"}, "no readable .mat file"),
        ("cuhk03_labeled", {"cuhk03_new_protocol_config_labeled.mat": "text"}, "no readable .mat file"),
        ("real1_ctcc", {"datalist/train_ctcc.txt": "COCAS/a/1.jpg templates/t1.jpg 4\n"}, "line 1: 3 columns"),
        (
            "real1_ctcc",
            {"datalist/train_ctcc.txt": "COCAS/a/1.jpg templates/t1.jpg 4 red\n"},
            "line 1, column 4: 'red' must be",
        ),
        ("real1_li", {"datalist/train_attr.txt": "COCAS/a/1.jpg k9 4 2\n"}, "line 1, column 2: 'k9' is no key"),
        ("real1_li", {"datalist/runner_real1_v1_gpt.json": '{"k1": 3}'}, "key 'k1': 3 must be a sentence"),
        # The same camera in query and gallery: the error names the rule that leaves nothing.
        (
            "real2_li",
            {"datalist/gallery_attr.txt": "img/g1.jpg key 9 1 2\n"},
            "same identity and same camera' would then drop every query",
        ),
    ],
)
def test_wrong_list_is_named(name: str, texts: dict[str, str], message: str, tmp_path: Path) -> None:
    raw = TREES[name].make(tmp_path)
    official_trees.write(raw, texts)
    with pytest.raises(DatasetError, match=message):
        sources.get_source(name).scan(raw)


def test_name_that_is_not_utf8_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = TREES["prcc"].make(tmp_path / "raw")
    picture, latin = raw / "rgb/train/001/A_cropped_rgb001.jpg", os.fsdecode("A_Jörg.jpg".encode("latin-1"))
    picture.rename(picture.with_name(latin))
    assert build.main(["--dataset", "prcc", "--raw", str(raw), "--out", str(tmp_path / "out")]) == 2
    assert r"rgb/train/001: the name b'A_J\xf6rg.jpg' is not UTF-8: rename it" in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"l.txt, line 1: the picture's name .* is not UTF-8"):
        reading.listed_size(picture.parent, latin, "l.txt, line 1")


def test_picture_that_vanished_during_the_build_is_named(tmp_path: Path) -> None:
    raw = TREES["ltcc"].make(tmp_path)
    source = sources.get_source("ltcc")
    item = source.scan(raw).splits["train"][0]
    (raw / item.file).unlink()
    with pytest.raises(DatasetError, match=r"000_1_c10_000001\.png was there .*No such file.* put it back"):
        source.load(raw, item)


def test_cuhk_pedes_captions_and_people(tmp_path: Path) -> None:
    raw = TREES["cuhk_pedes"].make(tmp_path / "raw")
    dataset = built("cuhk_pedes", raw, tmp_path / "out")
    reader = dataset.reader("query")
    assert [reader[i]["sentences"] for i in range(4)] == [
        ("A gray shirt, brown shorts.",),
        ("He has a crossbody bag.",),
        ("A man with black hair – und Bart.",),
        ("He wears a grey coat.",),
    ]
    assert dataset.reader("train")[1]["sentences"] == ("A man in green pants.", "Pink headphones around his neck.")
    assert dataset.manifest.source["unused"] == {"val": 1}
    assert dataset.manifest.source["people_of_other_sets"] == 3
    # Person 363 is a training person here and a training person of CUHK01: known by name, so one identity.
    other = built("cuhk01", TREES["cuhk01"].make(tmp_path / "cuhk01"), tmp_path / "out")
    (leak,) = find_leaks([dataset, other])
    assert (leak.kind, leak.evidence, leak.linked, leak.person_a, leak.harmful) == (
        "train_train", "name", True, "cuhk01/0363", False,
    )  # fmt: skip


def test_cuhk_pedes_part_follows_the_sides_of_the_sets_it_shows(tmp_path: Path) -> None:
    raw = TREES["cuhk_pedes_part"].make(tmp_path / "raw")
    dataset = built("cuhk_pedes_part", raw, tmp_path / "out")
    texts = [dataset.reader("query")[i]["sentences"] for i in range(3)]
    assert texts == [("A woman with a bag.",), ("A gray shirt, brown shorts.",), ("He has a crossbody bag.",)]
    assert (dataset.manifest.source["unused"], dataset.manifest.source["cameras_of"]) == (1, ["cuhk01", "market1501"])
    others = {"market1501": raw / "Market-1501-v15.09.15", "cuhk01": raw / "CUHK01"}
    opened = [built(name, folder, tmp_path / "out") for name, folder in others.items()]
    leaks = find_leaks([dataset, *opened])
    assert {leak.person_a for leak in leaks} == {"market1501/0002", "cuhk01/0363"}
    assert not any(leak.harmful for leak in leaks)
    (raw / "Market-1501-v15.09.15/query/0001_c1s1_001051_00.jpg").unlink()
    (raw / "Market-1501-v15.09.15/bounding_box_test/0001_c2s1_000301_01.jpg").unlink()
    official_trees.draw(raw / "Market-1501-v15.09.15", ["query/0003_c1s1_000001_00.jpg"])
    with pytest.raises(DatasetError, match=r"test_reid.json, entry 2: Market/0001.* shows nobody of Market-1501"):
        sources.get_source("cuhk_pedes_part").scan(raw)


def test_cuhk_pedes_identity_in_both(tmp_path: Path) -> None:
    raw = TREES["cuhk_pedes"].make(tmp_path)
    entries = json.loads((raw / "reid_raw.json").read_text())
    entries[0]["id"] = 2
    official_trees.write(raw, {"reid_raw.json": json.dumps(entries)})
    with pytest.raises(DatasetError, match="identity 2 stands in train and in test"):
        sources.get_source("cuhk_pedes").scan(raw)


def test_market_attributes(tmp_path: Path) -> None:
    raw = TREES["market1501_attributes"].make(tmp_path / "raw")
    dataset = built("market1501_attributes", raw, tmp_path / "out")
    train = [dataset.reader("train")[i] for i in range(2)]
    # 0002: red (2), blue (6), short sleeves, shorts (short: 2, pants: +1), no bag, no hat, short hair, male teenager.
    assert train[0]["attributes"] == (2, 6, 1, 3, 0, 0, 0, 1)
    # 0007: no upper colour, black, long sleeves and dress, backpack (1) and handbag (4), hat, long hair, female adult.
    assert train[1]["attributes"] == (-1, 0, 0, 0, 5, 1, 1, 6)
    assert train[1]["instruction_attributes"] == (-1, 0, 0, 0, 5, -1, -1, -1)
    for record in train:
        assert len(set(record["sentences"])) == 3
    for red, black in zip(train[0]["sentences"], train[1]["sentences"], strict=True):
        assert all(word in red for word in ("red", "blue", "short sleeves", "short", "bag"))
        assert all(word in black for word in ("black", "with long sleeves", " and a"))
        assert "red " not in black
    again = built("market1501_attributes", raw, tmp_path / "again")
    assert again.manifest.content_hash == dataset.manifest.content_hash
    values = dataset.manifest.source["slots"]
    assert values["carried"][5] == "backpack and handbag"
    assert values["lower garment"][3] == "shorts"
    assert values["gender and age"][6] == "female adult"


def test_cuhk03_from_mat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    raw = tmp_path / "raw"
    official_trees.cuhk03_protocol(raw, "detected")
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 255, (24, 12, 3)).astype(np.uint8) for name in official_trees.CUHK03_FILES}
    with h5py.File(raw / "cuhk-03.mat", "w") as file:
        # MATLAB: detected{pair}{pid, picture} is H x W x 3; HDF5 keeps every array with its axes reversed.
        pairs = file.create_dataset("detected", (1, 2), h5py.ref_dtype)
        for pair, people in ((1, 2), (2, 1)):
            cells = file.create_dataset(f"pair{pair}", (10, people), h5py.ref_dtype)
            for picture in range(10):
                for pid in range(people):
                    empty = np.zeros(2, np.uint64)  # how MATLAB writes []
                    value = file.create_dataset(f"p{pair}_{picture}_{pid}", data=empty)
                    for name, pixels in pictures.items():
                        if (int(name[0]), int(name[2:5]), int(name[8:10])) == (pair, pid + 1, picture + 1):
                            value = file.create_dataset(f"full{name}", data=pixels.T)
                    cells[picture, pid] = value.ref
            pairs[0, pair - 1] = cells.ref
    dataset = built("cuhk03_detected", raw, tmp_path / "out")
    answer = official_trees.cuhk03("cuhk-03.mat/detected")
    assert {split: columns(dataset, split) for split in dataset.splits} == answer
    record = dataset.reader("query")[1]
    decoded = cv2.imdecode(np.frombuffer(record["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decoded, pictures["1_002_2_07.png"])
    (raw / "cuhk-03.mat").rename(raw / "cuhk-4.mat")
    with pytest.raises(DatasetError, match=r"holds neither images_detected/ nor cuhk-03\.mat"):
        sources.get_source("cuhk03_detected").scan(raw)
    (raw / "cuhk-03.mat").write_bytes(b"not HDF5")
    with pytest.raises(DatasetError, match="no readable HDF5 file"):
        sources.get_source("cuhk03_detected").scan(raw)
    for library, message in (("h5py", r"needs h5py: install the extra .*\[mat\]"), ("scipy", "needs SciPy")):
        monkeypatch.setitem(sys.modules, library, None)
        if library == "scipy":
            official_trees.draw(raw, [row[0] for row in official_trees.cuhk03("images_detected")["query"]])
        with pytest.raises(DatasetError, match=message):
            sources.get_source("cuhk03_detected").scan(raw)


def test_cuhk03_protocol_that_does_not_fit(tmp_path: Path) -> None:
    raw = TREES["cuhk03_labeled"].make(tmp_path)
    official_trees.cuhk03_protocol(raw, "labeled", labels=(7, 7, 7, 7, 9, 9))  # two people under one label
    with pytest.raises(DatasetError, match="labels and filelist disagree on who is who"):
        sources.get_source("cuhk03_labeled").scan(raw)
    official_trees.cuhk03_protocol(raw, "labeled", labels=(7, 7, 3, 3, 9))
    with pytest.raises(DatasetError, match="train_idx, labels and filelist do not fit together"):
        sources.get_source("cuhk03_labeled").scan(raw)


def test_two_sets_of_one_namespace_share_people(tmp_path: Path) -> None:
    raw = TREES["real1_ctcc"].make(tmp_path / "raw")
    ctcc, li = (built(name, raw, tmp_path / "out") for name in ("real1_ctcc", "real1_li"))
    assert ctcc.manifest.people == li.manifest.people == ["cocas_real1/0004", "cocas_real1/0012"]
    assert ctcc.manifest.namespace == li.manifest.namespace
    assert table.source("a", "trad", "cocas_real1", "t.csv").namespace == li.manifest.namespace
