"""CUHK01 (Li et al., ACCV 2012): traditional person search, two cameras, 971 identities, 3,884 images, research only.

    campus/{pid:04}{picture:03}.png    pictures 001, 002 of each person are of camera a (0), 003, 004 of camera b (1)

Split: the first 485 identities, in order of their number, are train (1,940 images); of the other 486 the camera a
pictures are query (972) and the camera b pictures gallery (972). The 485/486 cut is the data set's usual one; taking
the *first* 485 instead of a random half (docs/method.md) keeps it the same everywhere. Published figures are means over
random halves and do not compare with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.errors import DatasetError
from data_pipelines.people.names import CUHK01_PICTURES, cuhk01_camera, person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "cuhk01"
TITLE = "CUHK01"
TRAIN_PEOPLE = 485
_NAME = re.compile(r"(\d{4})(\d{3})\.")


def scan(raw: Path) -> Scan:
    """Lists `campus/` in order of file name."""
    reading.check_tree(raw, TITLE, ["campus/"])
    pictures = []
    for file, size in reading.files(raw, "campus", TITLE, (".png",)):
        match = reading.parsed(
            _NAME, file, TITLE, "four digits of the person and three of the picture, as in 0001001.png"
        )
        number = int(match[2])
        if not 1 <= number <= CUHK01_PICTURES:
            raise DatasetError(f"{file}: picture {number}, but {TITLE} has pictures 001 to 004 of a person: remove it")
        pictures.append(Picture(file, person_name(NAMESPACE, int(match[1])), cuhk01_camera(number), size))
    people = sorted({item.person for item in pictures})
    train = set(people[:TRAIN_PEOPLE])
    if len(people) <= TRAIN_PEOPLE:
        raise DatasetError(
            f"{raw / 'campus'} holds {len(people)} people: the first {TRAIN_PEOPLE} train, so none is left to test; "
            f"get {TITLE} again"
        )
    test = [item for item in pictures if item.person not in train]
    splits = {
        "train": [item for item in pictures if item.person in train],
        "query": [item for item in test if item.camera == 0],
        "gallery": [item for item in test if item.camera == 1],
    }
    split = f"the first {TRAIN_PEOPLE} identities by number train; query camera a, gallery camera b"
    return checks.scan_of(splits, TITLE, "trad", {"layout": "campus", "split": split, "terms": "research only"})


SOURCES = {
    "cuhk01": Source(
        name="cuhk01",
        task="trad",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 1_940, "identities": 485, "cameras": 2},
            "query": {"images": 972, "identities": 486, "cameras": 1},
            "gallery": {"images": 972, "identities": 486, "cameras": 1},
        },
        scan=scan,
        load=reading.load,
    )
}
