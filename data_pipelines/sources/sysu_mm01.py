"""SYSU-MM01 (Wu et al., ICCV 2017): visible-infrared, four visible and two infrared cameras, research use only.

    exp/train_id.txt, exp/val_id.txt    train    395 identities, 34,167 images: 22,258 visible, 11,909 infrared
    exp/test_id.txt                     query    96 identities, 3,803 infrared images (cam3, cam6)
                                        gallery  their visible images (cam1, cam2, cam4, cam5); the protocol
                                                 draws one per person and camera

Pictures are `cam{1..6}/<pid>/*.jpg`; an id file is one comma-separated line. Cameras count from 0: cam1 is 0.
"""

from __future__ import annotations

from pathlib import Path

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "sysu_mm01"
TITLE = "SYSU-MM01"
_INFRARED = (3, 6)
_VISIBLE = (1, 2, 4, 5)
_SPLITS = {
    "train": (("train", "val"), _VISIBLE + _INFRARED),
    "query": (("test",), _INFRARED),
    "gallery": (("test",), _VISIBLE),
}


def scan(raw: Path) -> Scan:
    """Lists the folders of the people that the id files name, in order of person, camera and file."""
    lists = [f"exp/{name}_id.txt" for name in ("train", "val", "test")]
    reading.check_tree(raw, TITLE, [*[f"cam{number}/" for number in range(1, 7)], *lists])
    splits = {}
    for split, (names, cameras) in _SPLITS.items():
        people = {pid for name in names for pid in reading.comma_numbers(raw / f"exp/{name}_id.txt")}
        splits[split] = [
            item for pid in sorted(people) for number in sorted(cameras) for item in _pictures(raw, number, pid)
        ]
        if not splits[split]:
            raise DatasetError(f"{raw}: no picture of the people in exp/{names[0]}_id.txt: get {TITLE} again")
    return checks.scan_of(splits, TITLE, "vi", {"layout": TITLE, "terms": "research only"})


def _pictures(raw: Path, number: int, pid: int) -> list[Picture]:
    folder = f"cam{number}/{pid:04d}"
    if not (raw / folder).is_dir():  # not everybody passed every camera
        return []
    modality = schema.INFRARED if number in _INFRARED else schema.VISIBLE
    return [
        Picture(file, person_name(NAMESPACE, pid), number - 1, size, modality=modality)
        for file, size in reading.files(raw, folder, TITLE)
    ]


SOURCES = {
    "sysu_mm01": Source(
        name="sysu_mm01",
        task="vi",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 22_258 + 11_909, "identities": 395, "cameras": 6, "infrared": 11_909},
            "query": {"images": 3_803, "identities": 96, "cameras": 2, "infrared": 3_803},
            "gallery": {"identities": 96, "cameras": 4},
        },
        scan=scan,
        load=reading.load,
    )
}
