"""The captions of CUHK-PEDES that describe pictures of Market-1501 and CUHK01, and no others; research use only.

    Market-1501-v15.09.15/           the whole data set, gt_bbox/ included
    CUHK01/campus/                   the whole data set
    test_reid.json, val_reid.json    CUHK-PEDES's test and validation annotations, as lists of {"captions": [...],
                                     "file_path", "id", ...}; what is not of these two sets is left out (4,592 pictures)
    train    191 identities, 761 images, 1,524 captions
    test     query    200 identities, 1,598 records, one per caption
             gallery  799 images

Split (docs/method.md): a person is on the side where Market-1501, or CUHK01 (its first 485 people train), has it, so
that a model may be trained on all three and no person of training is ever tested. CUHK-PEDES's own sides cut through
the sides of the two sets. Nothing is drawn, and no published figure compares with this set. Cameras are as in the two
sets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import known_person
from data_pipelines.sources import Scan, Source, checks, cuhk01, cuhk_pedes, market1501, reading

TITLE = "CUHK-PEDES on Market-1501 and CUHK01"
_LISTS = ("test_reid.json", "val_reid.json")
_FOLDERS = {"Market/": f"{market1501.TITLE}/gt_bbox/", "CUHK01/": "CUHK01/campus/"}


def scan(raw: Path) -> Scan:
    """Reads both lists, and who is on which side from the folders of the two sets."""
    reading.check_tree(raw, TITLE, [*_FOLDERS.values(), *_LISTS])
    market, _ = market1501.pictures(raw / market1501.TITLE)
    campus = cuhk01.scan(raw / "CUHK01").splits
    train, test = (
        {item.person for splits in (market, campus) for split in names for item in splits[split]}
        for names in (["train"], ["query", "gallery"])
    )
    sides: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    unused = 0
    for name in _LISTS:
        for where, entry in cuhk_pedes.read_annotations(raw / name, ("captions", "file_path", "id")):
            person = known_person(entry["file_path"])
            if not entry["file_path"].startswith(tuple(_FOLDERS)):
                unused += 1
                continue
            if person not in train | test:
                raise DatasetError(
                    f"{where}: {entry['file_path']} shows nobody of {market1501.TITLE} or CUHK01 here: one of the two "
                    f"is incomplete, or the list is not the official one; get it again"
                )
            sides["train" if person in train else "test"].append({**entry, "where": where})
    splits = {
        "train": cuhk_pedes.pictures(raw, sides["train"], 0, place),
        **cuhk_pedes.test_splits(cuhk_pedes.pictures(raw, sides["test"], -2, place)),
    }
    source = {
        "layout": TITLE,
        "split": "by identity, each person on the side where Market-1501 or CUHK01 (its first 485 people train) has it",
        "unused": unused,
        "cameras_of": list(cuhk_pedes.CAMERAS_OF),
        "terms": "research only",
    }
    return checks.scan_of(splits, TITLE, "t2i", source)


def place(file: str) -> str:
    """Returns the path inside the raw folder of the picture that the annotations call `file`."""
    origin, _, name = file.partition("/")
    return f"{_FOLDERS[f'{origin}/']}{name}"


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of a Picture."""
    return reading.record(item, reading.read(raw / place(item.file)))


SOURCES = {
    "cuhk_pedes_part": Source(
        name="cuhk_pedes_part",
        task="t2i",
        namespace=cuhk_pedes.NAMESPACE,
        expected={
            "train": {"images": 761, "identities": 191, "sentences": 1_524},
            "query": {"images": 1_598, "identities": 200, "sentences": 1_598},
            "gallery": {"images": 799, "identities": 200},
        },
        scan=scan,
        load=load,
    )
}
