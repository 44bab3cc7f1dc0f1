"""Data sets on disk: `write_dataset` builds one, `open_dataset` reads it (record index and random-access reader).

The folder is a TFDS data set of ArrayRecord shards (data.md section 3); `shard_files` describes its files.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from array_record.python import array_record_module
from etils import epath

from data_pipelines import storage
from data_pipelines.dataset import files, record_format, schema
from data_pipelines.dataset.files import DatasetError, load_manifest
from data_pipelines.dataset.writer import OnBadImage, worker_pool, write_dataset

__all__ = [
    "Dataset",
    "DatasetError",
    "OnBadImage",
    "ShardReader",
    "dataset_names",
    "open_dataset",
    "worker_pool",
    "write_dataset",
]

_Rows = TypeVar("_Rows", np.ndarray, schema.Index)
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access: no read-ahead, no threads of its own
_MAX_OPEN = 256  # shards a reader keeps open, well below the usual limit of 1,024 files a process


class ShardReader:
    """Random access to the records of one split: `reader[i]` -> dict of raw fields (see `record_format.parse`).

    Record i is row i of the split's Index. `fields` limits what is parsed: ("image",) reads faster than all. Shards are
    opened on first use, so a reader pickles small and works in any process; several threads may read at once.
    """

    def __init__(
        self, folder: str, shards: Sequence[dict[str, Any]], fields: Sequence[str] = record_format.FIELDS
    ) -> None:
        unknown = sorted(set(fields) - set(record_format.FIELDS))
        if unknown:
            raise DatasetError(f"no field {unknown[0]!r} in a record; the fields are {', '.join(record_format.FIELDS)}")
        self.fields = tuple(fields)
        if storage.is_remote(folder) and not folder.startswith("gs://"):
            raise DatasetError(
                f"records are read from local folders and gs://, not from {folder}: set config.data.cache to a local "
                "folder, which gets a copy"
            )
        self._folder = folder
        self._files = [shard["file"] for shard in shards]
        self._starts = [0, *itertools.accumulate(shard["records"] for shard in shards)]
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Raises IndexError beyond the end, DatasetError if the shard is damaged."""
        if not 0 <= i < self._starts[-1]:
            raise IndexError(f"record {i} of {self._starts[-1]}")
        shard = bisect.bisect_right(self._starts, i) - 1
        offset = int(i) - self._starts[shard]
        try:
            reader = self._open.get(shard) or self._opened(shard)
            return record_format.parse(reader.read([offset])[0], self.fields)
        except (RuntimeError, ValueError, IndexError) as error:
            raise DatasetError(
                f"shard {os.path.join(self._folder, self._files[shard])} is damaged ({error}): delete the folder "
                f"{self._folder} and build the data set again"
            ) from error

    def _opened(self, shard: int) -> Any:
        with self._lock:
            reader = self._open.get(shard)
            if reader is None:
                while len(self._open) >= _MAX_OPEN:
                    # Dropped, not closed: another thread may be reading from it. The last reference closes it.
                    self._open.pop(next(iter(self._open)))
                reader = array_record_module.ArrayRecordReader(
                    os.path.join(self._folder, self._files[shard]), _READER_OPTIONS, file_reader_buffer_size=32768
                )
                self._open[shard] = reader
            return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A built data set: its folder and what the manifest says."""

    folder: epath.Path
    manifest: schema.Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def index(self, split: str) -> schema.Index:
        """Returns the small fields of every record of the split. Raises DatasetError for an unknown split."""
        return self._of_all_records(split, files.load_index)

    def identities(self, split: str) -> np.ndarray:
        """Returns column `identity` of the index, i32[N], and reads no other. Raises as `index`."""
        return self._of_all_records(split, files.load_identities)

    def _of_all_records(self, split: str, load: Callable[[epath.Path], _Rows]) -> _Rows:
        records = self._split(split)["records"]
        rows = load(self.folder / files.index_name(split))
        if len(rows) != records:
            raise DatasetError(
                f"the index of {self.name}/{split} has {len(rows)} rows, the manifest {records} records: delete the "
                f"folder {self.folder} and build the data set again"
            )
        return rows

    def reader(self, split: str, fields: Sequence[str] = record_format.FIELDS) -> ShardReader:
        return ShardReader(str(self.folder), self._split(split)["shards"], fields)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest.splits:
            raise DatasetError(f"{self.name} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        return self.manifest.splits[split]


def open_dataset(data_dir: str | os.PathLike[str], name: str, version: str | None = None) -> Dataset:
    """Opens `{data_dir}/{name}/{version}/`, the newest version unless one is given.

    Raises DatasetError, with the cure, if the folder is missing, empty, unfinished, of another schema version, or if a
    shard is missing or has another size than when it was written (every shard's size is looked at, no content).
    """
    folder = version_folder(epath.Path(data_dir), name, version)
    manifest = load_manifest(folder)
    written = {
        folder / shard["file"]: shard["bytes"] for split in manifest.splits.values() for shard in split["shards"]
    }
    for (path, asked), size in zip(written.items(), storage.file_sizes(list(written)), strict=True):
        if size != asked:
            found = "is missing" if size is None else f"has {size} bytes, but {asked} were written"
            raise DatasetError(f"shard {path} {found}: delete the folder {folder} and build the data set again")
    return Dataset(folder, manifest)


def dataset_names(data_dir: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the finished data sets under `data_dir`, sorted."""
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"the data folder {root} does not exist: build a data set into it, or correct the path")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and _versions(path))


def _versions(folder: epath.Path) -> list[str]:
    found = [path.name for path in folder.iterdir() if path.is_dir() and files.version_key(path.name)]
    return sorted(found, key=lambda version: files.version_key(version) or ())


def version_folder(data_dir: epath.Path, name: str, version: str | None = None) -> epath.Path:
    """Returns `{data_dir}/{name}/{version}`, the newest version unless one is given. Raises DatasetError if missing."""
    build = f"python -m data_pipelines.build --dataset NAME --out {data_dir}"
    if not data_dir.is_dir():
        raise DatasetError(
            f"the data folder {data_dir} does not exist: build the data set ({build}), or correct the path"
        )
    folder = data_dir / name
    versions = _versions(folder) if folder.is_dir() else []
    if version in versions:
        return folder / version
    if version is None and versions:
        return folder / versions[-1]
    unfinished = sorted(path.name for path in folder.glob(".*.building")) if folder.is_dir() else []
    if unfinished and (version is None or f".{version}.building" in unfinished):
        raise DatasetError(
            f"the build of {name} in {folder} did not finish ({unfinished[-1]}): run the same build command again; "
            f"finished shards are kept"
        )
    if not any(data_dir.iterdir()):
        raise DatasetError(f"the data folder {data_dir} is empty: build the data set first ({build})")
    if folder.is_dir() and not versions:
        raise DatasetError(f"the folder {folder} is empty: build the data set first ({build})")
    have = (
        f"version(s) {', '.join(versions)} of it"
        if versions
        else f"data sets {', '.join(dataset_names(data_dir)) or 'none'}"
    )
    wanted = f"{name} {version}" if version else name
    raise DatasetError(
        f"no data set {wanted} in {data_dir}, which has {have}: build it first ({build}), or correct the name"
    )
