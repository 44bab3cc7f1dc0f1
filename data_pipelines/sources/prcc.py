"""PRCC (Yang et al., TPAMI 2019): clothes-changing, three cameras, research use only.

    rgb/train/<pid>/{A,B,C}_*.jpg     train    150 identities, 17,896 images
    rgb/val/<pid>/                    (not used) 5,002 further images of the training identities
    rgb/test/B/<pid>/*.jpg            query    71 identities, 3,543 images, clothes as in A: protocol prcc_same
    rgb/test/C/<pid>/*.jpg            query    3,873 images, other clothes: protocol prcc_cross
    rgb/test/A/<pid>/*.jpg            gallery  3,384 images

Cameras A, B, C are 0, 1, 2; outfit 0 is worn at A and B, outfit 1 at C.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.errors import DatasetError
from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "prcc"
TITLE = "PRCC"
_TRAIN = re.compile(r"([ABC])_")
_CAMERA = {"A": 0, "B": 1, "C": 2}
_CLOTHES = {"A": 0, "B": 0, "C": 1}
_SPLITS = {"query": ("B", "C"), "gallery": ("A",)}


def scan(raw: Path) -> Scan:
    """Lists the folders of people, in order of camera, person and file."""
    reading.check_tree(raw, TITLE, ["rgb/", "rgb/train/", *[f"rgb/test/{camera}/" for camera in "ABC"]])
    splits: dict[str, list[Picture]] = {"train": []}
    for pid in reading.folders(raw, "rgb/train", TITLE):
        for file, size in reading.files(raw, f"rgb/train/{pid}", TITLE):
            camera = reading.parsed(_TRAIN, file, TITLE, "the camera, as in A_cropped_rgb001.jpg")[1]
            splits["train"].append(_picture(file, pid, camera, size))
    for split, cameras in _SPLITS.items():
        splits[split] = [
            _picture(file, pid, camera, size)
            for camera in cameras
            for pid in reading.folders(raw, f"rgb/test/{camera}", TITLE)
            for file, size in reading.files(raw, f"rgb/test/{camera}/{pid}", TITLE)
        ]
    return checks.scan_of(splits, TITLE, "cc", {"layout": TITLE, "terms": "research only"})


def _picture(file: str, pid: str, camera: str, size: int) -> Picture:
    number = reading.number(pid)
    if number is None:
        raise DatasetError(f"{file}: the folder {pid} is no person's number: remove it, or get {TITLE} again")
    return Picture(file, person_name(NAMESPACE, number), _CAMERA[camera], size, clothes=_CLOTHES[camera])


SOURCES = {
    "prcc": Source(
        name="prcc",
        task="cc",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 17_896, "identities": 150, "cameras": 3},
            "query": {"images": 3_543 + 3_873, "identities": 71, "cameras": 2},
            "gallery": {"images": 3_384, "identities": 71, "cameras": 1},
        },
        scan=scan,
        load=reading.load,
    )
}
