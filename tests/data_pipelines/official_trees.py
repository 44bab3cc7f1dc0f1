"""Made-up copies of the official layouts, a few pictures each, beside the answers of official_answers.py.

`TREES[name]` holds f(root), which writes the tree and returns the raw folder, and the answer: for each split the
records (file, person, camera, clothes, modality) in order, worked out by hand from the layout's rules.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import toy_shards
from official_answers import (
    CUHK01,
    LLCM,
    LTCC,
    MARKET,
    MARKET_PEOPLE,
    PEDES,
    PEDES_PART,
    PRCC,
    REAL1,
    REAL2,
    SYNTH,
    SYSU,
    VCCLOTHES,
    Answer,
    plain,
)
from scipy import io

from data_pipelines import build
from data_pipelines.dataset.reader import Dataset, open_dataset


class Tree(NamedTuple):
    """A tree and its answer; `place` gives the path in the tree of a picture of the answer."""

    make: Callable[[Path], Path]
    answer: Answer
    place: Callable[[str], str] = str


def draw(root: Path, files: Iterable[str]) -> None:
    """Draws a different picture into every file, in the format of its name."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(toy_shards.picture(zlib.crc32(file.encode()), path.suffix))


def write(root: Path, texts: dict[str, str]) -> None:
    for file, text in texts.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")


def of_files(answer: Answer, *further: str) -> Callable[[Path], Path]:
    """Returns f(root) that draws every file of the answer, and `further` ones."""

    def make(root: Path) -> Path:
        draw(root, [*[row[0] for rows in answer.values() for row in rows], *further])
        return root

    return make


def _msmt17(train: str, test: str) -> Answer:
    return {
        "train": [
            plain(f"{train}/0000/0000_000_01_0303morning_0015_0.jpg", "msmt17/0000", 0),
            plain(f"{train}/0001/0001_004_15_0302noon_1_2.jpg", "msmt17/0001", 14),
        ],
        "query": [plain(f"{test}/0000/0000_002_03_0303morning_0015_0.jpg", "msmt17/test_0000", 2)],
        "gallery": [
            plain(f"{test}/0000/0000_007_14_0303morning_0015_0.jpg", "msmt17/test_0000", 13),
            plain(f"{test}/0002/0002_007_03_0303morning_0015_0.jpg", "msmt17/test_0002", 2),
        ],
    }


MSMT_VAL = "0001/0001_005_07_0302noon_1_2.jpg"


def _msmt17_tree(train: str, test: str) -> Callable[[Path], Path]:
    answer = _msmt17(train, test)

    def make(root: Path) -> Path:
        of_files(answer, f"{train}/{MSMT_VAL}")(root)
        for split, rows in answer.items():
            lines = [f"{file.split('/', 1)[1]} {int(person[-4:])}" for file, person, *_ in rows]
            write(root, {f"list_{split}.txt": "\n".join(lines) + "\n"})
        write(root, {"list_val.txt": f"{MSMT_VAL} 1\n"})
        return root

    return make


def _sysu_tree(root: Path) -> Path:
    of_files(SYSU, "cam4/0099/0001.jpg")(root)  # person 99 is in no list
    write(root, {"exp/train_id.txt": "1\n", "exp/val_id.txt": "20\n", "exp/test_id.txt": "6,10\n"})
    return root


def _llcm_tree(root: Path) -> Path:
    of_files(LLCM, "test_vis/cam9/0500/a.jpg")(root)
    visible, infrared = [row[0] for row in LLCM["train"]]
    write(root, {"idx/train_vis.txt": f"{visible} 0\n", "idx/train_nir.txt": f"{infrared} 0\n"})
    write(root, {"idx/test_id.txt": "8,1"})
    return root


# CUHK03: three people; names are pair_pid_view_picture. The first pair has 843 people, so 2_001 is person 844.
CUHK03_FILES = [
    "1_001_1_01.png",
    "1_001_2_06.png",
    "1_002_1_02.png",
    "1_002_2_07.png",
    "2_001_1_01.png",
    "2_001_2_10.png",
]
CUHK03_PEOPLE = [1, 1, 2, 2, 844, 844]


def cuhk03(folder: str) -> Answer:
    people = [f"cuhk03/{number:04d}" for number in CUHK03_PEOPLE]
    rows = [
        plain(f"{folder}/{file}", person, int(file[6]) - 1) for file, person in zip(CUHK03_FILES, people, strict=True)
    ]
    return {"train": rows[4:], "query": [rows[0], rows[3]], "gallery": [rows[1], rows[2]]}


def cuhk03_protocol(root: Path, kind: str, labels: tuple[int, ...] = (7, 7, 3, 3, 9, 9)) -> None:
    root.mkdir(parents=True, exist_ok=True)
    values = {
        "train_idx": np.array([[5.0], [6.0]]),
        "query_idx": np.array([[1.0], [4.0]]),
        "gallery_idx": np.array([[2.0], [3.0]]),
        "labels": np.array(labels, float)[:, None],
        "filelist": np.array([[name] for name in CUHK03_FILES], object),
    }
    io.savemat(root / f"cuhk03_new_protocol_config_{kind}.mat", values)


def _cuhk03_tree(root: Path) -> Path:
    cuhk03_protocol(root, "labeled")
    return of_files(cuhk03("images_labeled"))(root)


# name -> (male/female, hair, up, down, clothes, hat, backpack, bag, handbag, age, upper colour, lower colour)
def _attributes_tree(root: Path) -> Path:
    of_files(MARKET, "bounding_box_test/0000_c4s1_000001_01.jpg", "bounding_box_test/-1_c1s1_000401_03.jpg")(root)
    upper = ("black", "white", "red", "purple", "yellow", "gray", "blue", "green")
    lower = ("black", "white", "pink", "purple", "yellow", "gray", "blue", "green", "brown")
    names = ("gender", "hair", "up", "down", "clothes", "hat", "backpack", "bag", "handbag", "age")
    parts: dict[str, Any] = {}
    for part, people in MARKET_PEOPLE.items():
        columns: dict[str, list[Any]] = {"image_index": list(people)}
        for values in people.values():
            for name, value in zip(names, values[:10], strict=True):
                columns.setdefault(name, []).append(value)
            for prefix, colours, worn in (("up", upper, values[10]), ("down", lower, values[11])):
                for colour in colours:
                    columns.setdefault(prefix + colour, []).append(1 + (colour == worn))
        parts[part] = {
            key: np.array(column, object if key == "image_index" else np.uint8)[None] for key, column in columns.items()
        }
    io.savemat(root / "market_attribute.mat", {"market_attribute": parts})
    return root


PEDES_ENTRIES = [  # (split, id, file, captions), not in order
    ("test", 12021, "cam_a/350_45.bmp", ["He wears a grey coat."]),
    ("train", 2, "train_query/p8848_s17661.jpg", ["A man in green pants.", "Pink headphones around his neck."]),
    ("train", 1, "CUHK01/0363004.png", ["A woman with a bag."]),
    ("test", 12009, "Market/0535_c1s3_005146_00.jpg", ["A gray shirt, brown shorts.", "He has a crossbody bag."]),
    ("test", 12010, "CUHK03/672_1.jpg", ["A man with black hair – und Bart."]),
    ("val", 11004, "CUHK01/0107002.png", ["Not used."]),
]


def _pedes_tree(root: Path) -> Path:
    entries = [
        {"split": split, "id": pid, "file_path": file, "captions": captions, "processed_tokens": []}
        for split, pid, file, captions in PEDES_ENTRIES
    ]
    draw(root / "imgs", [entry["file_path"] for entry in entries])
    write(root, {"reid_raw.json": json.dumps(entries, ensure_ascii=False)})
    return root


PEDES_PART_ENTRIES = {  # list -> (id, file, captions); ids and lists say nothing of the side here
    "test": [
        (12021, "Market/0002_c4s1_000776_00.jpg", ["He wears a grey coat."]),
        (12009, "Market/0001_c3s1_000551_00.jpg", ["A gray shirt, brown shorts.", "He has a crossbody bag."]),
        (12010, "CUHK03/672_1.jpg", ["Not used."]),
    ],
    "val": [
        (11004, "CUHK01/0486001.png", ["A woman with a bag."]),
        (12022, "CUHK01/0363004.png", ["A man in green pants."]),
    ],
}


def _pedes_part_place(file: str) -> str:
    return file.replace("Market/", "Market-1501-v15.09.15/gt_bbox/").replace("CUHK01/", "CUHK01/campus/")


def _pedes_part_tree(root: Path) -> Path:
    _attributes_tree(root / "Market-1501-v15.09.15")
    of_files(CUHK01, "campus/0363004.png")(root / "CUHK01")
    draw(root / "Market-1501-v15.09.15" / "gt_bbox", ["0001_c3s1_000551_00.jpg", "0002_c4s1_000776_00.jpg"])
    for split, entries in PEDES_PART_ENTRIES.items():
        rows = [{"split": split, "id": pid, "file_path": file, "captions": captions} for pid, file, captions in entries]
        write(root, {f"{split}_reid.json": json.dumps(rows)})
    return root


SYNTH_ENTRIES = [  # not in order of the person
    {
        "id": 41,
        "file_path": "Part2/41/0.jpg",
        "attributes": ["man,black hair"],
        "captions": [],
        "prompt_caption": ["A man."],
    },
    {
        "id": 3,
        "file_path": "Part1/3/0.jpg",
        "attributes": ["woman"],
        "captions": ["A woman.", "She walks."],
        "prompt_caption": [],
    },
    {
        "id": 3,
        "file_path": "Part2/ä/1.jpg",
        "attributes": ["woman"],
        "captions": ['Größe "M".'],
        "prompt_caption": ["x"],
    },
]


def _synth_tree(root: Path) -> Path:
    of_files(SYNTH)(root)
    write(root, {"synthpedes_dataset.json": json.dumps(SYNTH_ENTRIES, ensure_ascii=False, indent=1)})
    return root


def _real1_tree(root: Path) -> Path:
    of_files(REAL1, "templates/t1.jpg", "templates/t2.jpg")(root)
    ctcc = "COCAS/a/1.jpg templates/t1.jpg 4 2\nCOCAS/b/1.jpg templates/t2.jpg 12 0 3\n"
    li = "COCAS/a/1.jpg k1 4 2\nCOCAS/b/1.jpg k2 12 0 3\n"
    write(root, {"datalist/train_ctcc.txt": ctcc, "datalist/train_attr.txt": li})
    write(root, {"datalist/runner_real1_v1_gpt.json": json.dumps({"k1": "in a red coat", "k2": ["blue", "navy"]})})
    return root


def _real2_tree(root: Path) -> Path:
    of_files(REAL2, "templates/t1.jpg")(root)
    gallery = "img/g1.jpg 9 1 1\nimg/g2.jpg 9 1 4\nimg/g3.jpg 10 0 4\n"  # without templates
    write(root, {"datalist/query.txt": "img/q1.jpg templates/t1.jpg 9 1 2\n", "datalist/gallery.txt": gallery})
    rows = [line.split() for line in gallery.splitlines()]
    li = "".join(f"{image} key {pid} {clothes} {camera}\n" for image, pid, clothes, camera in rows)
    write(root, {"datalist/query_attr.txt": "img/q1.jpg key 9 1 2\n", "datalist/gallery_attr.txt": li})
    write(root, {"datalist/real2_v1.json": json.dumps({"key": "a person in a red coat"})})
    return root


MARKET_500K = {
    split: [(file, person, camera, -1, modality) for file, person, camera, _, modality in rows]
    for split, rows in MARKET.items()
}
MARKET_500K["gallery"] += [
    plain("bounding_box_test/0000_c4s1_000001_01.jpg", "market1501/0000", 3),
    plain("images/0000_c2s1_000001_00.jpg", "market1501/0000", 1),
]
MARKET_500K["gallery"].sort()

TREES: dict[str, Tree] = {
    "market1501_500k": Tree(of_files(MARKET_500K, "images/-1_c2s1_000001_00.jpg"), MARKET_500K),
    "msmt17": Tree(_msmt17_tree("train", "test"), _msmt17("train", "test")),
    "msmt17_trainval": Tree(
        _msmt17_tree("mask_train_v2", "mask_test_v2"),
        {
            **_msmt17("mask_train_v2", "mask_test_v2"),
            "train": [
                *_msmt17("mask_train_v2", "mask_test_v2")["train"],
                plain(f"mask_train_v2/{MSMT_VAL}", "msmt17/0001", 6),
            ],
        },
    ),
    "cuhk03_labeled": Tree(_cuhk03_tree, cuhk03("images_labeled")),
    "cuhk01": Tree(of_files(CUHK01), CUHK01),
    "prcc": Tree(of_files(PRCC, "rgb/val/001/A_cropped_rgb002.jpg"), PRCC),
    "ltcc": Tree(of_files(LTCC), LTCC),
    "vcclothes": Tree(of_files(VCCLOTHES), VCCLOTHES),
    "sysu_mm01": Tree(_sysu_tree, SYSU),
    "llcm": Tree(_llcm_tree, LLCM),
    "market1501_attributes": Tree(_attributes_tree, MARKET),
    "cuhk_pedes": Tree(_pedes_tree, PEDES, "imgs/{}".format),
    "cuhk_pedes_part": Tree(_pedes_part_tree, PEDES_PART, _pedes_part_place),
    "synth_pedes": Tree(_synth_tree, SYNTH),
    "real1_ctcc": Tree(_real1_tree, REAL1),
    "real1_li": Tree(_real1_tree, REAL1),
    "real2_ctcc": Tree(_real2_tree, REAL2),
    "real2_li": Tree(_real2_tree, REAL2),
}


def built(name: str, raw: Path, out: Path, *options: str) -> Dataset:
    command = ["--dataset", name, "--raw", str(raw), "--out", str(out), "--workers", "1", *options]
    assert build.main(command) == 0
    given = options[options.index("--name") + 1] if "--name" in options else name
    return open_dataset(out, given)


def columns(dataset: Dataset, split: str) -> list[tuple[str, str, int, int, int]]:
    index, people = dataset.index(split), dataset.manifest.people
    return list(
        zip(
            index.file.tolist(),
            [people[i] for i in index.identity],
            index.camera.tolist(),
            index.clothes.tolist(),
            index.modality.tolist(),
            strict=True,
        )
    )
