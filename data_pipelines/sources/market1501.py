"""Market-1501 (Zheng et al., ICCV 2015): traditional person search, six cameras, research use only.

    bounding_box_train/   train    751 identities, 12,936 images
    query/                query    750 identities,  3,368 images
    bounding_box_test/    gallery  19,732 files: 15,913 after dropping the 3,819 of pid -1, 2,798 of them of pid 0

File names are `{pid}_c{camera}s{sequence}_{frame}_{box}.jpg`. Pid -1 marks boxes that are to be ignored (junk): they
are dropped, as the official evaluation does. Pid 0 marks distractors, false detections and people of no identity: they
stay in the gallery under the one name `market1501/0000`, which is never a query. `gt_bbox/` and `gt_query/` are not
needed: the protocol's junk rule follows from identity and camera.

`market1501_500k` adds the 500,000 distractors that its authors give out apart (unpacked as `images/` beside the other
folders, with names of the same form) to the gallery.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from data_pipelines.people.names import JUNK, person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "market1501"
TITLE = "Market-1501-v15.09.15"
_FOLDERS = {"bounding_box_train/": "train", "query/": "query", "bounding_box_test/": "gallery"}
_MORE_DISTRACTORS = {"images/": "gallery"}
_NAME = re.compile(r"(-1|\d+)_c(\d+)")
_CAMERAS = 6


def scan(raw: Path, distractors: bool = False) -> Scan:
    """Lists the folders in order of file name. Raises DatasetError for a wrong or incomplete tree."""
    splits, dropped = pictures(raw, distractors)
    return checks.scan_of(
        splits,
        TITLE,
        "trad",
        {"layout": TITLE, "dropped_junk": dropped, "terms": "research only"},
    )


def pictures(raw: Path, distractors: bool = False) -> tuple[dict[str, list[Picture]], dict[str, int]]:
    """Returns the pictures of each split, and how many of each were dropped as junk.

    `distractors`: the further ones in `images/` join the gallery.
    """
    folders = _FOLDERS | _MORE_DISTRACTORS if distractors else _FOLDERS
    reading.check_tree(raw, TITLE, list(folders))
    splits: dict[str, list[Picture]] = {split: [] for split in folders.values()}
    dropped = dict.fromkeys(splits, 0)
    for folder, split in folders.items():
        found = [_picture(file, size) for file, size in reading.files(raw, folder, TITLE)]
        kept = [item for item in found if item is not None]
        splits[split] += kept
        dropped[split] += len(found) - len(kept)
    return splits, dropped


def _picture(file: str, size: int) -> Picture | None:
    """Returns a picture, None for junk."""
    match = reading.parsed(_NAME, file, TITLE, "<pid>_c<camera>, as in 0002_c1s1_000451_03.jpg")
    camera = reading.camera_index(int(match[2]), _CAMERAS, file, "Market-1501")
    return None if int(match[1]) == JUNK else Picture(file, person_name(NAMESPACE, int(match[1])), camera, size)


def _source(name: str, distractors: int) -> Source:
    """Returns the source with `distractors` more than the usual ones."""
    return Source(
        name=name,
        task="trad",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 12_936, "identities": 751, "cameras": 6},
            "query": {"images": 3_368, "identities": 750, "cameras": 6},
            "gallery": {
                "images": 15_913 + distractors,
                "identities": 750,
                "cameras": 6,
                "distractors": 2_798 + distractors,
            },
        },
        scan=functools.partial(scan, distractors=distractors > 0),
        load=reading.load,
    )


SOURCES = {"market1501": _source("market1501", 0), "market1501_500k": _source("market1501_500k", 500_000)}
