"""Instruction pictures cut out of a data set's own pictures, and the options of the build command for them."""

import re
from pathlib import Path

import cv2
import numpy as np
import official_trees
import pytest
from official_trees import TREES, built

from data_pipelines import build, sources
from data_pipelines.instructions import clothes_crops


def test_real2_templates_and_stand_ins(tmp_path: Path) -> None:
    raw = TREES["real2_ctcc"].make(tmp_path / "raw")
    dataset = built("real2_ctcc", raw, tmp_path / "out")
    query, gallery = dataset.reader("query")[0], [dataset.reader("gallery")[i] for i in range(3)]
    assert query["instruction_images"] == ((raw / "templates/t1.jpg").read_bytes(),)
    assert query["instruction_clothes"] == 1
    # The gallery list has no templates: cut-out clothes of the other picture of the outfit; its own if alone.
    files = [(raw / f"img/g{i}.jpg").read_bytes() for i in (1, 2, 3)]
    crops = [(clothes_crops.upper_clothes(files[at]),) for at in (1, 0, 2)]
    assert [record["instruction_images"] for record in gallery] == crops
    assert dataset.manifest.source["instructions_made"]["split"] == "gallery"
    sentences = built("real2_li", raw, tmp_path / "out").reader("gallery")[2]["sentences"]
    assert sentences == ("a person in a red coat",)


def test_a_replaced_instruction_picture_is_another_build(tmp_path: Path) -> None:
    raw = TREES["real2_ctcc"].make(tmp_path)
    scan = sources.get_source("real2_ctcc").scan
    before = scan(raw).splits["query"][0]
    (raw / before.template).write_bytes((raw / before.template).read_bytes() + b"more")
    assert repr(scan(raw).splits["query"][0]) != repr(before)


def test_upper_clothes_is_the_stated_box() -> None:
    pixels = np.zeros((100, 50, 3), np.uint8)
    top, bottom, left, right = clothes_crops.UPPER_CLOTHES_BOX
    pixels[int(top * 100) : int(bottom * 100), int(left * 50) : int(right * 50)] = 200
    data = clothes_crops.upper_clothes(cv2.imencode(".png", pixels)[1].tobytes())
    crop = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert crop.shape == (36, 38, 3)
    assert (crop == 200).all()
    assert clothes_crops.upper_clothes(cv2.imencode(".png", pixels[:1, :1])[1].tobytes())
    with pytest.raises(ValueError, match="does not decode"):
        clothes_crops.upper_clothes(b"x")


def test_crop_of_a_turned_picture_is_upright_as_records_are() -> None:
    pixels = np.zeros((100, 50, 3), np.uint8)
    pixels[:50] = (0, 0, 255)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    # EXIF of one entry, tag 0x0112 (orientation) = 6: to be shown turned by 90 degrees.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    shown = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (50, 100, 3)
    assert (np.abs(shown[:, 52:].astype(int) - (0, 0, 255)) < 8).all()
    crop = cv2.imdecode(np.frombuffer(clothes_crops.upper_clothes(turned), np.uint8), cv2.IMREAD_COLOR)
    assert crop.shape == (18, 76, 3)
    assert (np.abs(crop[:, 40:].astype(int) - (0, 0, 255)) < 8).all()


def test_same_outfit_partners() -> None:
    outfits = [("a", 0), ("a", 1), ("a", 0), ("b", 0), ("a", 0)]
    assert clothes_crops.same_outfit_partners(outfits) == [2, 1, 4, 3, 0]


def test_clothes_crops_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = TREES["ltcc"].make(tmp_path / "raw")
    official_trees.draw(raw, ["LTCC_ReID/train/000_2_c4_1.png"])
    own = built("ltcc", raw, tmp_path / "out", "--clothes_crops", "own")
    picture = (raw / own.index("query").file[0]).read_bytes()
    assert own.reader("query")[0]["instruction_images"] == (clothes_crops.upper_clothes(picture),)
    assert own.manifest.source["instruction_images"] == "the picture's own upper clothes, cut out"
    options = ("--clothes_crops", "outfit", "--task", "ctcc", "--name", "ltcc_ctcc")
    other = built("ltcc", raw, tmp_path / "out", *options)
    assert (other.manifest.name, other.manifest.task) == ("ltcc_ctcc", "ctcc")
    files = other.index("train").file.tolist()
    assert [file[-12:] for file in files] == ["c10_000001.png"[-12:], "_c3_015833.png"[-12:], "0_2_c4_1.png"]
    crops = [(clothes_crops.upper_clothes((raw / files[at]).read_bytes()),) for at in (0, 2, 1)]
    assert [other.reader("train")[i]["instruction_images"] for i in range(3)] == crops
    assert other.index("train").instruction_clothes.tolist() == [1, 2, 2]
    # A damaged picture is named, not turned into a black instruction.
    (raw / files[2]).write_bytes(b"\x89PNG damaged")
    capsys.readouterr()
    command = ["--dataset", "ltcc", "--raw", str(raw), "--out", str(tmp_path / "damaged"), "--workers", "1"]
    assert build.main([*command, "--clothes_crops", "outfit"]) == 2
    assert "instruction image: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset", "table", "--name", "x"], "--dataset table needs --task"),
        (["--dataset", "table", "--name", "x", "--task", "cc"], "needs --table FILE"),
        (
            ["--dataset", "datalist", "--name", "x", "--task", "cc"],
            "needs --train_list, or --query_list and --gallery_list",
        ),
        (["--dataset", "datalist", "--name", "x", "--task", "cc", "--query_list", "q"], "needs --train_list"),
        (["--dataset", "datalist", "--name", "x", "--task", "cc", "--table", "t"], "--table does not belong to"),
        (
            ["--dataset", "datalist", "--name", "x", "--task", "cc", "--train_list", "t"],
            "--dataset datalist needs --raw: the folder in which the lists' paths begin",
        ),
        (["--dataset", "ltcc", "--sentences", "t"], "--sentences does not belong to --dataset ltcc"),
        (["--dataset", "ltcc", "--task", "ctcc"], "ltcc is of task cc: leave --task out"),
        (["--dataset", "procedural", "--name", "x"], "the procedural benchmark takes no options"),
        (["--dataset", "cuhk_pedes", "--clothes_crops", "own"], "leave --clothes_crops out"),
        (["--dataset", "market1501", "--raw", "M", "--clothes_crops", "outfit"], "the outfit of .* is unknown"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    official_trees.of_files(official_trees.MARKET)(Path("M"))
    assert build.main([*options, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error or re.search(message, error)
