"""CUHK-PEDES (Li et al., CVPR 2017): people described in words, research use only.

    reid_raw.json    a list of {"split", "captions": [...], "file_path", "id", ...}; file paths are inside `imgs/`
    train            11,003 identities, 34,054 images, 68,126 captions
    test             query    1,000 identities, 6,156 records, one per caption (its picture is not the query)
                     gallery  3,074 images
    val              1,000 identities, 3,078 images, not used

The pictures come from other data sets, whose people keep their names (see people/names.py): `market1501/0535` here and
in Market-1501 is one person. Everybody else is `cuhk_pedes/<id>`. Cameras of Market-1501's and CUHK01's pictures are
read from their names, and are the cameras of those sets (manifest: `cameras_of`). Others are not known: 0 in train, -2
in the gallery; a query is a caption, which has none (-1). People of its training images are test people of Market-1501,
CUHK03 and CUHK01: build it with --leave_out to train on several sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import known_camera, known_person, person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

NAMESPACE = "cuhk_pedes"
TITLE = "CUHK-PEDES"
_LIST = "reid_raw.json"
_SPLITS = ("train", "val", "test")
CAMERAS_OF = ("cuhk01", "market1501")
"""Namespaces of the people whose pictures have the cameras of their own data set."""


def scan(raw: Path) -> Scan:
    """Reads the list, sorted by official identity and file."""
    reading.check_tree(raw, TITLE, ["imgs/", _LIST])
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
    for where, entry in read_annotations(raw / _LIST, ("split", "captions", "file_path", "id")):
        if entry["split"] not in _SPLITS:  # it may be any JSON value
            raise DatasetError(f"{where}: split {entry['split']!r} is none of {', '.join(_SPLITS)}: get the list again")
        entries[entry["split"]].append({**entry, "where": where})
    _check_identities(entries)
    train = pictures(raw, entries["train"], 0)
    splits = {"train": train, **test_splits(pictures(raw, entries["test"], -2))}
    linked = len({item.person for items in splits.values() for item in items if not item.person.startswith(NAMESPACE)})
    source = {
        "layout": TITLE,
        "unused": {"val": len(entries["val"])},
        "people_of_other_sets": linked,
        "cameras_of": list(CAMERAS_OF),
        "terms": "research only",
    }
    both = {item.person for item in train} & {item.person for item in splits["gallery"]}
    if both:  # under different official identities, so it is the data set's own fault, not the copy's
        logging.warning("%s: %d people stand in train and test, for example %s", TITLE, len(both), min(both))
    return checks.scan_of(splits, TITLE, "t2i", source, disjoint=False)


def read_annotations(path: Path, keys: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Returns ("file, entry n", entry) of a JSON list of objects. Raises DatasetError for another form."""
    try:
        entries = json.loads(path.read_bytes(), object_pairs_hook=reading.unique_keys)
    except (ValueError, RecursionError) as error:
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
    """Raises DatasetError unless the entry has the keys: `id` must be a number, `file_path` text, `captions` texts."""
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise DatasetError(f"{where} lacks {', '.join(missing)}: it is not the official list, get it again")
    if "id" in keys and (isinstance(entry["id"], bool) or not isinstance(entry["id"], int)):
        raise DatasetError(f"{where}: id {entry['id']!r} is no number: get the official list again")
    if "file_path" in keys and not isinstance(entry["file_path"], str):
        raise DatasetError(f"{where}: file_path {entry['file_path']!r} is no text: get the official list again")
    if "id" in keys and not 0 <= entry["id"] < 2**63:
        raise DatasetError(f"{where}: id {str(entry['id'])[:24]}... is no person's number: get the official list again")
    if "captions" in keys:
        captions = entry["captions"]
        if not isinstance(captions, list) or not captions:
            raise DatasetError(f"{where}: captions must be a list of at least one text: get the list again")
        reading.check_sentences(captions, where)


def _check_identities(entries: dict[str, list[dict[str, Any]]]) -> None:
    train = {entry["id"]: entry for entry in entries["train"]}
    for entry in entries["test"]:
        if entry["id"] in train:
            raise DatasetError(
                f"{entry['where']}: identity {entry['id']} stands in train and in test "
                f"({train[entry['id']]['file_path']}, {entry['file_path']}): get the official list again"
            )


def pictures(
    raw: Path, entries: list[dict[str, Any]], unknown_camera: int, place: Callable[[str], str] = "imgs/{}".format
) -> list[Picture]:
    """Returns the pictures of annotations, sorted by identity and file.

    Args:
      raw: the raw folder.
      entries: annotations; "where" is their place in the list.
      unknown_camera: of pictures whose name states no camera.
      place: gives the path inside `raw` of a picture by its name in the annotations.
    """
    found = []
    for entry in sorted(entries, key=lambda entry: (entry["id"], entry["file_path"])):
        file = entry["file_path"]
        person = known_person(file) or person_name(NAMESPACE, entry["id"])
        camera = known_camera(file)
        size = reading.listed_size(raw, place(file), entry["where"])
        sentences = tuple(entry["captions"])
        found.append(Picture(file, person, unknown_camera if camera is None else camera, size, sentences=sentences))
    return checks.distinct(found, TITLE)


def test_splits(items: list[Picture]) -> dict[str, list[Picture]]:
    """Returns query, one record per caption, and gallery, the pictures."""
    captions = [item._replace(sentences=(text,), camera=-1) for item in items for text in item.sentences]
    return {"query": captions, "gallery": items}


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of a Picture, whose file is inside `imgs/`."""
    return reading.load(raw / "imgs", item)


SOURCES = {
    "cuhk_pedes": Source(
        name="cuhk_pedes",
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
