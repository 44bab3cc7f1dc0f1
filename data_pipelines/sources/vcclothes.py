"""VC-Clothes (Wan et al., CVPR workshops 2020): clothes-changing, rendered by a game, four cameras, research use only.

    train/*.jpg      train    256 identities, 9,449 images
    query/*.jpg      query    256 identities, 1,020 images
    gallery/*.jpg    gallery  8,591 images

File names are `{pid}-{camera}-{outfit}-{number}.jpg`, also with `_`; camera 1 to 4; an outfit number means something
together with the person only. Protocols: all cameras, 2 and 3 (same clothes), 3 and 4 (clothes changed).
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "vcclothes"
TITLE = "VC-Clothes"
_FOLDERS = {"train": "train/", "query": "query/", "gallery": "gallery/"}
_NAME = re.compile(r"(\d+)[-_](\d+)[-_](\d+)[-_](\d+)")
_CAMERAS = 4


def scan(raw: Path) -> Scan:
    """Lists the three folders in order of file name."""
    reading.check_tree(raw, TITLE, list(_FOLDERS.values()))
    splits = {
        split: [_picture(file, size) for file, size in reading.files(raw, folder, TITLE)]
        for split, folder in _FOLDERS.items()
    }
    return checks.scan_of(splits, TITLE, "cc", {"layout": TITLE, "terms": "research only"})


def _picture(file: str, size: int) -> Picture:
    match = reading.parsed(_NAME, file, TITLE, "<pid>-<camera>-<outfit>-<number>, as in 0001-01-01-01.jpg")
    camera = reading.camera_index(int(match[2]), _CAMERAS, file, TITLE)
    outfit = reading.outfit_number(int(match[3]), file, TITLE)
    return Picture(file, person_name(NAMESPACE, int(match[1])), camera, size, clothes=outfit)


SOURCES = {
    "vcclothes": Source(
        name="vcclothes",
        task="cc",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 9_449, "identities": 256, "cameras": 4},
            "query": {"images": 1_020, "identities": 256, "cameras": 4},
            "gallery": {"images": 8_591, "identities": 256, "cameras": 4},
        },
        scan=scan,
        load=reading.load,
    )
}
