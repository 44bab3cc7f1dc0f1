"""MSMT17 (Wei et al., CVPR 2018): traditional person search, fifteen cameras, research use only.

                                    V1               V2
    list_train.txt      train       train/           mask_train_v2/     1,041 identities, 30,248 images
    list_val.txt        (option)    train/           mask_train_v2/     of the same identities, 2,373 images
    list_query.txt      query       test/            mask_test_v2/      3,060 identities, 11,659 images
    list_gallery.txt    gallery     test/            mask_test_v2/      82,161 images

A list's lines are `relpath pid`; file names are `{pid}_{number}_{camera}_...`, camera 01 to 15. Training and test
number people anew, each from 0: test people are named `msmt17/test_0000`. `msmt17_trainval` adds the validation
images to train (32,621), as most papers do; `msmt17` leaves them out.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "msmt17"
TITLE = "MSMT17"
_VERSIONS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
_NAME = re.compile(r"\d+_\d+_(\d+)_")
_CAMERAS = 15


def scan(raw: Path, validation: bool) -> Scan:
    """Reads the lists. `validation`: the validation images join train."""
    version = "V2" if (raw / "mask_train_v2").is_dir() else "V1"
    train, test = _VERSIONS[version]
    lists = {"train": ["train", "val"] if validation else ["train"], "query": ["query"], "gallery": ["gallery"]}
    needed = [f"list_{name}.txt" for names in lists.values() for name in names]
    reading.check_tree(raw, f"{TITLE} {version}", [f"{train}/", f"{test}/", *needed])
    splits = {}
    for split, names in lists.items():
        folder, people = (train, "") if split == "train" else (test, "test_")
        splits[split] = [item for name in names for item in _pictures(raw, f"list_{name}.txt", folder, people)]
    source = {"layout": f"{TITLE} {version}", "train_lists": lists["train"], "terms": "research only"}
    return checks.scan_of(splits, TITLE, "trad", source)


def _pictures(raw: Path, name: str, folder: str, people: str) -> list[Picture]:
    items = []
    for where, path, pid in reading.path_and_label(raw / name):
        file = f"{folder}/{path}"
        match = reading.parsed(_NAME, file, TITLE, "<pid>_<number>_<camera>_, as in 0000_000_01_0303morning_0015_0.jpg")
        camera = reading.camera_index(int(match[1]), _CAMERAS, file, TITLE)
        items.append(
            Picture(file, person_name(NAMESPACE, f"{people}{pid:04d}"), camera, reading.listed_size(raw, file, where))
        )
    return checks.distinct(items, f"{TITLE}, {name}")


def _source(name: str, train_images: int, validation: bool) -> Source:
    return Source(
        name=name,
        task="trad",
        namespace=NAMESPACE,
        expected={
            "train": {"images": train_images, "identities": 1_041, "cameras": 15},
            "query": {"images": 11_659, "identities": 3_060, "cameras": 15},
            "gallery": {"images": 82_161, "identities": 3_060, "cameras": 15},
        },
        scan=functools.partial(scan, validation=validation),
        load=reading.load,
    )


SOURCES = {
    "msmt17": _source("msmt17", 30_248, validation=False),
    "msmt17_trainval": _source("msmt17_trainval", 30_248 + 2_373, validation=True),
}
