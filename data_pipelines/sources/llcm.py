"""LLCM (Zhang and Wang, CVPR 2023): visible-infrared, nine cameras (eight also infrared), research use only.

    idx/train_vis.txt, idx/train_nir.txt    train    713 identities, 30,921 images: 16,946 visible, 13,975 infrared
    test_vis/cam{1..9}/<pid>/               test     351 identities, 8,680 visible images
    test_nir/cam{1,2,4..9}/<pid>/           test     7,166 infrared images of the same

The training lists' lines are `relpath label`; person and camera are read from the file name, `{pid}_c{camera}_...`
(camera 0 where it states none: training does not use it). `idx/test_id.txt` is one comma-separated line of test people.
Both directions of the protocol use all test images, so they make one split, `test`: an infrared and a visible picture
of camera 3 have the same camera number.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "llcm"
TITLE = "LLCM"
_MODALITIES = {"vis": schema.VISIBLE, "nir": schema.INFRARED}
_NAME = re.compile(r"(\d+)(?:_c(\d+))?")
_FOLDER = re.compile(r"cam(\d+)$")
_CAMERAS = 9


def scan(raw: Path) -> Scan:
    """Reads the training lists and lists the folders of the test people, in order of person, camera and file."""
    lists = {f"idx/train_{kind}.txt": modality for kind, modality in _MODALITIES.items()}
    reading.check_tree(raw, TITLE, ["idx/", "test_vis/", "test_nir/", *lists, "idx/test_id.txt"])
    train = [item for name, modality in lists.items() for item in _train(raw, name, modality)]
    splits = {"train": train, "test": _test(raw, reading.comma_numbers(raw / "idx" / "test_id.txt"))}
    return checks.scan_of(splits, TITLE, "vi", {"layout": TITLE, "terms": "research only"})


def _train(raw: Path, name: str, modality: int) -> list[Picture]:
    items = []
    for where, file, _ in reading.path_and_label(raw / name):
        match = reading.parsed(_NAME, file, TITLE, "<pid>_c<camera>, as in 0001_c07_s184229_f3600_vis.jpg")
        camera = reading.camera_index(int(match[2]), _CAMERAS, file, TITLE) if match[2] else 0
        size = reading.listed_size(raw, file, where)
        items.append(Picture(file, person_name(NAMESPACE, int(match[1])), camera, size, modality=modality))
    return checks.distinct(items, f"{TITLE}, {name}")


def _test(raw: Path, people: list[int]) -> list[Picture]:
    cameras: list[tuple[str, int, int]] = []
    for kind, modality in _MODALITIES.items():
        for name in reading.folders(raw, f"test_{kind}", TITLE):
            match = reading.parsed(_FOLDER, name, TITLE, "cam<number>, as in cam1")
            cameras.append(
                (f"test_{kind}/{name}", reading.camera_index(int(match[1]), _CAMERAS, name, TITLE), modality)
            )
    items: list[Picture] = []
    for pid in sorted(people):
        seen = len(items)
        for folder, camera, modality in cameras:
            own = f"{folder}/{pid:04d}"
            if (raw / own).is_dir():  # not everybody passed every camera
                items += [
                    Picture(file, person_name(NAMESPACE, pid), camera, size, modality=modality)
                    for file, size in reading.files(raw, own, TITLE)
                ]
        if len(items) == seen:
            raise DatasetError(
                f"{raw / 'idx' / 'test_id.txt'} names person {pid}, of whom test_vis/ and test_nir/ hold no folder "
                f"{pid:04d}: the copy of {TITLE} is incomplete, get it again"
            )
    return items


SOURCES = {
    "llcm": Source(
        name="llcm",
        task="vi",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 30_921, "identities": 713, "infrared": 13_975},
            "test": {"images": 8_680 + 7_166, "identities": 351, "cameras": 9, "infrared": 7_166},
        },
        scan=scan,
        load=reading.load,
    )
}
