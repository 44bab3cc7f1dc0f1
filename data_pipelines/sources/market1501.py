"""Market-1501 (Zheng et al., ICCV 2015): traditional person search, six cameras, research use only.

    bounding_box_train/   train    751 identities, 12,936 images
    query/                query    750 identities,  3,368 images
    bounding_box_test/    gallery  19,732 files: 15,913 after dropping the 3,819 of pid -1, 2,798 of them of pid 0

File names are `{pid}_c{camera}s{sequence}_{frame}_{box}.jpg`. Pid -1 marks boxes that are to be ignored (junk): they
are dropped, as the official evaluation does. Pid 0 marks distractors, false detections and people of no identity: they
stay in the gallery under the one name `market1501/0000`, which is never asked for. `gt_bbox/` and `gt_query/` are not
needed: the protocol's junk rule follows from identity and camera.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipelines import schema
from data_pipelines.shard_files import DatasetError
from data_pipelines.sources import Scan, Source

_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(-1|\d+)_c(\d)")
_CAMERAS = 6
_JUNK, _DISTRACTOR = -1, 0

# A descriptor: (path inside the raw folder, pid, camera as written, from 1, file size in bytes). The size makes a
# replaced picture visible to a resumed build.
Descriptor = tuple[str, int, int, int]


def scan(raw: Path) -> Scan:
    """Lists the three folders in order of file name. Raises DatasetError for a wrong or incomplete tree."""
    missing = [folder for folder in _FOLDERS.values() if not (raw / folder).is_dir()]
    if missing:
        raise DatasetError(_wrong_tree(raw, missing))
    splits: dict[str, list[Descriptor]] = {}
    dropped: dict[str, int] = {}
    for split, folder in _FOLDERS.items():
        found = [_descriptor(path) for path in sorted((raw / folder).glob("*.jpg"))]
        if not found:
            raise DatasetError(
                f"{raw / folder} holds no .jpg file: the copy of Market-1501 is incomplete, get it again"
            )
        splits[split] = [item for item in found if item[1] != _JUNK]
        dropped[split] = len(found) - len(splits[split])
        if split != "gallery":
            distractors = [item[0] for item in splits[split] if item[1] == _DISTRACTOR]
            if distractors:
                raise DatasetError(
                    f"{distractors[0]} and {len(distractors) - 1} more: pid 0 (distractor) belongs in "
                    f"bounding_box_test/ only: this copy of Market-1501 is not the official one, get it again"
                )
    people = {_person(item[1]) for items in splits.values() for item in items}
    return Scan(
        people=sorted(people),
        splits=dict(splits),
        found={split: _counts(items) for split, items in splits.items()},
        source={"layout": "Market-1501-v15.09.15", "dropped_junk": dropped, "terms": "research only"},
    )


def _descriptor(path: Path) -> Descriptor:
    match = _NAME.match(path.name)
    if match is None:
        raise DatasetError(
            f"{path}: the name does not begin with <pid>_c<camera>, as in 0002_c1s1_000451_03.jpg: remove the file if "
            f"it is no picture of Market-1501, else get the data set again"
        )
    camera = int(match[2])
    if not 1 <= camera <= _CAMERAS:
        raise DatasetError(
            f"{path}: camera {camera}, but Market-1501 has cameras 1 to {_CAMERAS}: remove or rename the file"
        )
    return f"{path.parent.name}/{path.name}", int(match[1]), camera, path.stat().st_size


def _person(pid: int) -> str:
    return f"market1501/{pid:04d}"


def _counts(items: list[Descriptor]) -> dict[str, int]:
    """Identities do not count the distractors."""
    return {
        "images": len(items),
        "identities": len({pid for _, pid, _, _ in items} - {_DISTRACTOR}),
        "cameras": len({camera for _, _, camera, _ in items}),
        "distractors": sum(pid == _DISTRACTOR for _, pid, _, _ in items),
    }


def _wrong_tree(raw: Path, missing: list[str]) -> str:
    if not raw.is_dir():
        return f"the raw folder {raw} does not exist: unpack Market-1501-v15.09.15 there, or correct the path"
    message = f"{raw} lacks {', '.join(name + '/' for name in missing)}"
    inside = [path for path in sorted(raw.iterdir()) if (path / _FOLDERS["train"]).is_dir()]
    if inside:
        return f"{message}, but {inside[0]} looks like Market-1501: give that folder"
    if not any(raw.iterdir()):
        return f"the raw folder {raw} is empty: unpack Market-1501-v15.09.15 there, or correct the path"
    return f"{message}: give the folder that holds {', '.join(name + '/' for name in _FOLDERS.values())}"


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of one descriptor; the JPEG goes in as it is. Outfits are unknown."""
    file, pid, camera, _ = item
    return schema.Record(image=(raw / file).read_bytes(), file=file, person=_person(pid), camera=camera - 1)


SOURCE = Source(
    name="market1501",
    version="1.0.0",
    task="trad",
    namespace="market1501",
    expected={
        "train": {"images": 12_936, "identities": 751, "cameras": 6, "distractors": 0},
        "query": {"images": 3_368, "identities": 750, "cameras": 6, "distractors": 0},
        "gallery": {"images": 15_913, "identities": 750, "cameras": 6, "distractors": 2_798},
    },
    scan=scan,
    load=load,
)
