"""A toy data set for the shard tests, and a script that builds it in a separate process, to be killed.

python toy_shards.py OUT WORKERS [BLOCK_AT [FILE_LIMIT]] [PART]: record BLOCK_AT prints a line and then waits for ever;
FILE_LIMIT is the largest file, in bytes, that the process may write.
"""

import dataclasses
import functools
import resource
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipelines.dataset import schema
from data_pipelines.dataset.parts import Part
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset, write_part
from data_pipelines.errors import DatasetError

PEOPLE = [f"toy/{i:04d}" for i in range(5)]
SPLITS = {"train": range(40), "query": range(100, 105), "gallery": range(200, 212)}


def picture(seed: int, suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 12, 3)).astype(np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def load(i: int, block_at: int = -1) -> schema.Record:
    if i == block_at:
        print("blocked", flush=True)
        threading.Event().wait()
    return schema.Record(
        image=picture(i, ".png" if i % 4 == 3 else ".jpg"),
        file=f"Ordner ä/{i:03d}.jpg",
        person=PEOPLE[i % 5],
        camera=i % 3 if i < 100 else -(i // 100),
        clothes=i % 2,
        modality=i % 2,
        attributes=(1, i % 7, -1),
        sentences=("a blue coat", f"größe {i}") if i % 3 == 0 else (),
        instruction_images=(picture(1000 + i % 2),) if i % 3 == 1 else (),
        instruction_clothes=i % 2 - 1,
        instruction_attributes=(i % 3,),
    )


def load_damaged(i: int, damaged: tuple[int, ...], what: str = "image") -> schema.Record:
    """Records in `damaged` lose the end of their picture, or of an instruction picture."""
    values = dict(vars(load(i)))
    if i in damaged:
        values.update(image=values["image"][:-60]) if what == "image" else values.update(
            instruction_images=(picture(1), picture(2)[:-60])
        )
    return schema.Record(**values)


def build(out: Path, part: str = "", **changes: Any) -> schema.Manifest | None:
    """Builds the toy data set, or one part of it ("2/3")."""
    arguments = {
        "name": "toy",
        "version": "1.0.0",
        "task": "trad",
        "namespace": "toy",
        "people": PEOPLE,
        "splits": SPLITS,
        "load": load,
        "source": {"kind": "toy"},
        "records_per_shard": 8,
        "workers": 1,
    }
    given = {**arguments, **changes}
    options = {field.name: given.pop(field.name) for field in dataclasses.fields(BuildOptions) if field.name in given}
    if part:
        return write_part(out, DatasetSpec(**given), Part.parse(part), BuildOptions(**options))
    return write_dataset(out, DatasetSpec(**given), BuildOptions(**options))


def contents(out: Path) -> dict[str, bytes]:
    """Returns the content of every file under `out` but the lock, by its path in it."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


if __name__ == "__main__":
    part = sys.argv.pop() if "/" in sys.argv[-1] else ""
    arguments = [*map(int, sys.argv[2:]), -1, -1][:3]
    if arguments[2] > 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (arguments[2], arguments[2]))
    try:
        build(Path(sys.argv[1]), part, load=functools.partial(load, block_at=arguments[1]), workers=arguments[0])
    except DatasetError as error:
        sys.exit(f"error: {error}")
