"""Parts of a build, each written by a process or machine of its own, then joined to the bytes of a build in one go.

Part 3 of 8 writes every eighth shard, from the third on, in OUT/NAME/.VERSION.parts/3-of-8/: a folder with a lock of
its own, which a killed part resumes. Whoever finishes the last part, or the same build without a part, moves the shards
of all parts into the building folder of the version and completes it there. Machines without a common folder copy these
part folders together first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines import files
from data_pipelines.dataset.folder import REQUEST
from data_pipelines.dataset.shard_writer import ShardJob
from data_pipelines.errors import DatasetError

FINISHED = "finished"
"""File of a part all of whose shards are written; the building folder of a part is BUILDING in the part's folder."""
BUILDING = "building"
_FOLDER = re.compile(r"(\d+)-of-(\d+)")


@dataclasses.dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 1. Raises DatasetError for an impossible one."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise DatasetError(f"part {self.index}/{self.count}: parts are counted from 1/{self.count} to the last")

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads I/N."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None:
            raise DatasetError(f"--part {text!r} is not I/N, say 3/8 for the third of eight parts")
        return cls(int(match[1]), int(match[2]))

    def of(self, jobs: Sequence[ShardJob]) -> list[ShardJob]:
        """Returns the jobs of this part."""
        return list(jobs[self.index - 1 :: self.count])

    def folder(self, work: Path) -> Path:
        """Returns the building folder of this part, for the building folder of the whole."""
        return _root(work) / f"{self.index}-of-{self.count}" / BUILDING

    def missing(self, work: Path, request: Mapping[str, Any]) -> list[int]:
        """Returns the numbers of those parts that are not finished."""
        numbers = range(1, self.count + 1)
        return [n for n in numbers if not _is_finished(Part(n, self.count).folder(work), request)]


def _root(work: Path) -> Path:
    return work.with_name(work.name.removesuffix(".building") + ".parts")


def _is_of(building: Path, request: Mapping[str, Any]) -> bool:
    try:
        return bool(files.parse_json((building / REQUEST).read_bytes()) == request)
    except (FileNotFoundError, ValueError):
        return False


def _is_finished(building: Path, request: Mapping[str, Any]) -> bool:
    return (building / FINISHED).is_file() and _is_of(building, request)


@contextlib.contextmanager
def adopted(work: Path, request: Mapping[str, Any], jobs: Sequence[ShardJob], wait: bool) -> Iterator[None]:
    """Moves the finished shards of all parts of the same request into `work`, and keeps the parts' locks meanwhile.

    The folders of these parts are removed after the block.

    Raises:
      LockedError: a part is being built, and `wait` is off.
    """
    with contextlib.ExitStack() as stack:
        found = []
        root = _root(work)
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if _FOLDER.fullmatch(folder.name) and _is_of(folder / BUILDING, request):
                stack.enter_context(files.lock(folder, wait=wait))
                found.append(folder)
        for folder in found:
            moved = sum(_move(dataclasses.replace(job, work=str(folder / BUILDING)), job) for job in jobs)
            logging.info("%s: %d shards of part %s", request["name"], moved, folder.name)
        yield
        for folder in found:
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # other parts are left, or there were none
            root.rmdir()


def _move(source: ShardJob, target: ShardJob) -> bool:
    """Moves a finished shard; after a kill in between it is moved again. Returns whether there was one."""
    if target.summary_file.exists() or not source.summary_file.exists():
        return False
    for name in ("path", "index_file", "summary_file"):  # the last one makes it a finished shard
        with contextlib.suppress(FileNotFoundError):  # moved before a kill
            os.replace(getattr(source, name), getattr(target, name))
    return True
