"""CUHK03 (Li et al., CVPR 2014), 767/700 protocol (Zhong et al., CVPR 2017): five pairs of cameras, research use only.

    cuhk03_detected    train 767 identities, 7,365 images    query 700, 1,400    gallery 5,332
    cuhk03_labeled     train 767 identities, 7,368 images    query 700, 1,400    gallery 5,328

Needed: `cuhk03_new_protocol_config_{detected,labeled}.mat` (train_idx, query_idx, gallery_idx, from 1; labels;
filelist) and the pictures, `{pair}_{pid:03}_{view}_{picture:02}.png` in `images_{detected,labeled}/`, or else inside
`cuhk-03.mat` (also in `cuhk03_release/`). Reading .mat files needs the extra `mat`. The camera is view - 1: the junk
rule knows two cameras, not ten. A person's name counts 1 to 1,467 over the pairs, as in CUHK-PEDES (people/names.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, mat_files, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "cuhk03"
TITLE = "CUHK03"
_NAME = re.compile(r"([1-5])_(\d{3})_([12])_(\d{2})\.")
_MAT = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat")
_SPLITS = ("train", "query", "gallery")
_PEOPLE_OF_PAIRS = (843, 440, 77, 58, 49)


def scan(raw: Path, kind: str) -> Scan:
    """Reads the protocol file; `kind` is "detected" or "labeled"."""
    protocol = raw / f"cuhk03_new_protocol_config_{kind}.mat"
    reading.check_tree(raw, TITLE, [protocol.name])
    folder, size_of = _pictures(raw, kind)
    values = mat_files.load_mat(protocol)
    missing = [key for key in ("labels", "filelist", *[f"{split}_idx" for split in _SPLITS]) if key not in values]
    if missing:
        raise DatasetError(f"{protocol} lacks {', '.join(missing)}: it is not the file of the 767/700 protocol")
    labels = np.atleast_1d(values["labels"]).ravel().astype(int).tolist()
    names = [str(name) for name in np.atleast_1d(np.asarray(values["filelist"], object)).ravel()]
    splits = {}
    for split in _SPLITS:
        chosen = np.atleast_1d(values[f"{split}_idx"]).ravel().astype(int).tolist()
        if len(labels) != len(names) or not all(1 <= number <= len(names) for number in chosen):
            raise DatasetError(f"{protocol}: {split}_idx, labels and filelist do not fit together: get the file again")
        found = [_picture(f"{folder}/{names[number - 1]}", size_of) for number in chosen]
        splits[split] = checks.distinct(found, f"{protocol}, {split}_idx")
        pairs = {(item.person, labels[number - 1]) for item, number in zip(found, chosen, strict=True)}
        if len(pairs) > min(len({person for person, _ in pairs}), len({label for _, label in pairs})):
            raise DatasetError(f"{protocol}: labels and filelist disagree on who is who: get the file again")
    source = {"layout": "CUHK03 767/700", "boxes": kind, "pictures": folder, "terms": "research only"}
    return checks.scan_of(splits, TITLE, "trad", source)


def _picture(file: str, size_of: Callable[[str], int]) -> Picture:
    match = reading.parsed(_NAME, file, TITLE, "<pair>_<pid>_<view>_<picture>, as in 1_001_1_01.png")
    number = sum(_PEOPLE_OF_PAIRS[: int(match[1]) - 1]) + int(match[2])
    return Picture(file, person_name(NAMESPACE, number), int(match[3]) - 1, size_of(file))


def _pictures(raw: Path, kind: str) -> tuple[str, Callable[[str], int]]:
    """Returns where the pictures are (a folder, or a variable of the .mat file) and f(file) -> size."""
    if (raw / f"images_{kind}").is_dir():
        where = f"cuhk03_new_protocol_config_{kind}.mat"
        return f"images_{kind}", lambda file: reading.listed_size(raw, file, where)
    if mat := next((name for name in _MAT if (raw / name).is_file()), ""):
        cells = mat_files.PictureCells(raw / mat, kind)
        return f"{mat}/{kind}", lambda file: cells.values(*_place(file))
    raise DatasetError(
        f"{raw} holds neither images_{kind}/ nor {_MAT[0]}: put the pictures of {TITLE} beside the protocol file"
    )


def _place(file: str) -> tuple[int, int, int]:
    """Cell, row and column of a picture in the .mat file, from 0."""
    pair, pid, _, number = map(int, reading.parsed(_NAME, file, TITLE, "<pair>_<pid>_<view>_<picture>").groups())
    return pair - 1, pid - 1, number - 1


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of a picture: its file as it is, or the array of the .mat file as PNG."""
    mat, _, rest = item.file.partition(".mat/")
    if not rest:
        return reading.load(raw, item)
    kind = rest.split("/")[0]
    return reading.record(item, mat_files.PictureCells(raw / f"{mat}.mat", kind).png(*_place(item.file)))


def _source(kind: str, train: int, gallery: int) -> Source:
    return Source(
        name=f"cuhk03_{kind}",
        task="trad",
        namespace=NAMESPACE,
        expected={
            "train": {"images": train, "identities": 767, "cameras": 2},
            "query": {"images": 1_400, "identities": 700, "cameras": 2},
            "gallery": {"images": gallery, "identities": 700, "cameras": 2},
        },
        scan=functools.partial(scan, kind=kind),
        load=load,
    )


SOURCES = {
    "cuhk03_detected": _source("detected", 7_365, 5_332),
    "cuhk03_labeled": _source("labeled", 7_368, 5_328),
}
