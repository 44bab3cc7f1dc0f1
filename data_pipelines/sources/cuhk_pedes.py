"""CUHK-PEDES (Li et al., CVPR 2017): people described in words, research use only.

    reid_raw.json    a list of {"split", "captions": [...], "file_path", "id", ...}; file paths are inside `imgs/`
    train            11,003 identities, 34,054 images, 68,126 captions
    test             query    1,000 identities, 6,156 records, one a caption (its picture is not the query)
                     gallery  3,074 images
    val              1,000 identities, 3,078 images, not used

The pictures come from other data sets, whose people keep their names (see person_names): `market1501/0535` here and
in Market-1501 is one person. Everybody else is `cuhk_pedes/<id>`. Cameras are not known: 0 in train, -1 for a query,
-2 in the gallery, so that nothing is ever junk. People of its training images are test people of Market-1501, CUHK03
and CUHK01: run the leak check before training on several sets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines import schema
from data_pipelines.person_names import known_person, person_name
from data_pipelines.shard_files import DatasetError
from data_pipelines.sources import Scan, Source, listing, scanning
from data_pipelines.sources.listing import Picture

NAMESPACE = "cuhk_pedes"
TITLE = "CUHK-PEDES"
_LIST = "reid_raw.json"
_SPLITS = ("train", "val", "test")


def scan(raw: Path) -> Scan:
    """Reads the list, sorted by official identity and file."""
    listing.check_tree(raw, TITLE, ["imgs/", _LIST])
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
    for where, entry in read_annotations(raw / _LIST, ("split", "captions", "file_path", "id")):
        if entry["split"] not in entries:
            raise DatasetError(f"{where}: split {entry['split']!r} is none of {', '.join(_SPLITS)}: get the list again")
        entries[entry["split"]].append({**entry, "where": where})
    _check_identities(entries)
    train = _pictures(raw, entries["train"], 0)
    test = _pictures(raw, entries["test"], -1)
    splits = {
        "train": train,
        "query": [item._replace(sentences=(text,)) for item in test for text in item.sentences],
        "gallery": [item._replace(camera=-2) for item in test],
    }
    linked = len({item.person for items in splits.values() for item in items if not item.person.startswith(NAMESPACE)})
    source = {
        "layout": TITLE,
        "unused": {"val": len(entries["val"])},
        "people_of_other_sets": linked,
        "terms": "research only",
    }
    both = {item.person for item in train} & {item.person for item in splits["gallery"]}
    if both:  # under different official identities, so it is the data set's own fault, not the copy's
        logging.warning("%s: %d people stand in train and test, for example %s", TITLE, len(both), min(both))
    return scanning.scan_of(splits, TITLE, "t2i", source, disjoint=False)


def read_annotations(path: Path, keys: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Returns ("file, entry n", entry) of a JSON list of objects. Raises DatasetError for another form."""
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path} is not readable JSON ({error}): get it again") from error
    if not isinstance(entries, list):
        raise DatasetError(f"{path} is no list of annotations: get the official file again")
    rows = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        check_annotation(entry, keys, where)
        rows.append((where, entry))
    return rows


def check_annotation(entry: Any, keys: Sequence[str], where: str) -> None:
    """Raises DatasetError unless the entry has the keys; `captions`, if asked for, must be a list of text."""
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise DatasetError(f"{where} lacks {', '.join(missing)}: it is not the official list, get it again")
    captions = entry["captions"] if "captions" in keys else [""]
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise DatasetError(f"{where}: captions must be a list of at least one text: get the list again")


def _check_identities(entries: dict[str, list[dict[str, Any]]]) -> None:
    train = {entry["id"]: entry for entry in entries["train"]}
    for entry in entries["test"]:
        if entry["id"] in train:
            raise DatasetError(
                f"{entry['where']}: identity {entry['id']} stands in train and in test "
                f"({train[entry['id']]['file_path']}, {entry['file_path']}): get the official list again"
            )


def _pictures(raw: Path, entries: list[dict[str, Any]], camera: int) -> list[Picture]:
    found = []
    for entry in sorted(entries, key=lambda entry: (entry["id"], entry["file_path"])):
        file = entry["file_path"]
        person = known_person(file) or person_name(NAMESPACE, int(entry["id"]))
        size = listing.listed_size(raw / "imgs", file, entry["where"])
        found.append(Picture(file, person, camera, size, sentences=tuple(entry["captions"])))
    return found


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of a Picture, whose file is inside `imgs/`."""
    return listing.load(raw / "imgs", item)


SOURCES = {
    "cuhk_pedes": Source(
        name="cuhk_pedes",
        version="1.0.0",
        task="t2i",
        namespace=NAMESPACE,
        expected={
            "train": {"images": 34_054, "identities": 11_003, "sentences": 68_126},
            "query": {"images": 6_156, "identities": 1_000, "sentences": 6_156},
            "gallery": {"images": 3_074, "identities": 1_000},
        },
        scan=scan,
        load=load,
    )
}
