"""LTCC (Qian et al., ACCV 2020): clothes-changing, twelve cameras, research use only.

    LTCC_ReID/train/*.png    train    77 identities, 9,576 images
    LTCC_ReID/query/*.png    query    75 identities,   493 images
    LTCC_ReID/test/*.png     gallery  7,050 images

File names are `{pid}_{outfit}_c{camera}_{frame}.png`, camera 1 to 12; outfits are numbered for each person. Either
LTCC_ReID itself or the folder that holds it may be given.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "ltcc"
TITLE = "LTCC"
_FOLDERS = {"train": "train/", "query": "query/", "gallery": "test/"}
_NAME = re.compile(r"(\d+)_(\d+)_c(\d+)")
_CAMERAS = 12


def scan(raw: Path) -> Scan:
    """Lists the three folders in order of file name."""
    prefix = "LTCC_ReID/" if (raw / "LTCC_ReID").is_dir() else ""
    reading.check_tree(raw, TITLE, [prefix + folder for folder in _FOLDERS.values()])
    splits = {
        split: [_picture(file, size) for file, size in reading.files(raw, prefix + folder, TITLE, (".png", ".jpg"))]
        for split, folder in _FOLDERS.items()
    }
    return checks.scan_of(splits, TITLE, "cc", {"layout": "LTCC_ReID", "terms": "research only"})


def _picture(file: str, size: int) -> Picture:
    match = reading.parsed(_NAME, file, TITLE, "<pid>_<outfit>_c<camera>, as in 001_1_c5_015874.png")
    camera = reading.camera_index(int(match[3]), _CAMERAS, file, TITLE)
    outfit = reading.outfit_number(int(match[2]), file, TITLE)
    return Picture(file, person_name(NAMESPACE, int(match[1])), camera, size, clothes=outfit)


SOURCES = {
    "ltcc": Source(
        name="ltcc",
        task="cc",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 9_576, "identities": 77},
            "query": {"images": 493, "identities": 75},
            "gallery": {"images": 7_050, "identities": 75},
        },
        scan=scan,
        load=reading.load,
    )
}
