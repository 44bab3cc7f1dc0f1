"""Reads built data sets: `open_dataset` gives a `Dataset` with the index of each split and random access to records.

A data set is a folder of ArrayRecord shards that TFDS reads, too; `folder` describes its files. `open_copy` reads one
on object storage through a copy on this host's disk.
"""

from __future__ import annotations

import bisect
import dataclasses
import fcntl
import functools
import itertools
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from array_record.python import array_record_module
from etils import epath

from data_pipelines import files, storage
from data_pipelines.dataset import index, record_format, schema
from data_pipelines.dataset.folder import MANIFEST, file_sha256, load_manifest, version_key
from data_pipelines.errors import DatasetError, UserError
from data_pipelines.images import MAX_PIXELS
from data_pipelines.people.names import same_name

_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access: no read-ahead, no threads of its own
_MAX_OPEN = 256  # shards that a reader keeps open, well below the usual limit of 1,024 files per process


class RecordHashes:
    """The hashes of a split's records by which a replaced or damaged shard is noticed; see `schema.RECORD_HASH`.

    They are read from the index when a record is first checked, once per process.
    """

    def __init__(self, index_file: Path | epath.Path) -> None:
        self._file = index_file
        self._column = ""
        self._values: np.ndarray | None = None
        self._lock = threading.Lock()

    def check(self, record: int, stored: bytes) -> None:
        """Raises ValueError if a record, as the shard holds it, is another one than was written."""
        with self._lock:
            if self._values is None:
                self._column, self._values = index.load_hashes(self._file)
        if self._column == schema.CONTENT.name:
            what, data = "picture", record_format.parse(stored, ("image",))["image"]
        else:
            what, data = "record", stored
        if schema.short_hash(data) != self._values[record]:
            raise ValueError(f"the {what} is another one than was written: the file was replaced or changed")

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": self._file, "_column": "", "_values": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


class ShardReader:
    """Random access to the records of one split: `reader[i]` -> dict of raw fields (see `record_format.parse`).

    Record i is row i of the split's Index. `fields` limits what is parsed: ("image",) reads faster than all. Shards are
    opened on first use, so a reader pickles small and works in any process; several threads may read at once. Every
    record is compared with its hash, where `hashes` are given.
    """

    def __init__(
        self,
        folder: str,
        shards: Sequence[dict[str, Any]],
        fields: Sequence[str] = record_format.FIELDS,
        hashes: RecordHashes | None = None,
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
        self._folder, self._hashes = folder, hashes
        self._files = [shard["file"] for shard in shards]
        self._starts = [0, *itertools.accumulate(shard["records"] for shard in shards)]
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Raises IndexError beyond the end, DatasetError naming shard and record if the shard is damaged."""
        if not 0 <= i < self._starts[-1]:
            raise IndexError(f"record {i} of {self._starts[-1]}")
        shard = bisect.bisect_right(self._starts, i) - 1
        offset = int(i) - self._starts[shard]
        try:
            reader = self._open.get(shard) or self._opened(shard)
            stored = reader.read([offset])[0]
            if self._hashes is not None:
                self._hashes.check(int(i), stored)
            return record_format.parse(stored, self.fields)
        except DatasetError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise DatasetError(
                f"shard {os.path.join(self._folder, self._files[shard])} is damaged at its record {offset} (record {i} "
                f"of the split): {error}. Delete the folder {self._folder} and build the data set again"
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
    """A built data set.

    Attributes:
      folder, manifest: of the version that was opened.
      max_pixels: most pixels that one of its pictures may have (`images.decode`).
    """

    folder: epath.Path
    manifest: schema.Manifest
    max_pixels: int = MAX_PIXELS
    _hashes: dict[str, RecordHashes] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def people(self) -> list[str]:
        """The names in `manifest.people`, in its order, in the form in which data sets are compared."""
        return [same_name(name) for name in self.manifest.people]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    def index(self, split: str, columns: Sequence[str] | None = None) -> schema.Index:
        """Returns small fields of every record of the split.

        Args:
          split: a split's name.
          columns: those to read (None: all that the folder has); file names are most of an index.

        Raises:
          DatasetError: an unknown split, or a missing or damaged index.
        """
        records, path = self._split(split)["records"], index.split_file(self.folder, split)
        self._check_index(split, path)
        rows = index.load(path, columns)
        if len(rows) != records:
            raise DatasetError(
                f"the index of {self.name}/{split} has {len(rows)} rows, the manifest {records} records: delete the "
                f"folder {self.folder} and build the data set again"
            )
        return rows

    def identities(self, split: str) -> np.ndarray:
        """Returns column `identity` of the index, i32[N]; raises as `index`."""
        return self.index(split, ("identity",)).identity

    def reader(self, split: str, fields: Sequence[str] = record_format.FIELDS) -> ShardReader:
        """Returns random access to the given fields of a split's records. Raises DatasetError for unknown names."""
        shards = self._split(split)["shards"]
        hashes = self._hashes.setdefault(split, RecordHashes(index.split_file(self.folder, split)))
        return ShardReader(str(self.folder), shards, fields, hashes)

    def _check_index(self, split: str, path: Path | epath.Path) -> None:
        """Compares an index with its hash in the manifest; on object storage the checksums of its pages must do."""
        written = self._split(split).get("index")
        if written is None or storage.is_remote(path) or not path.exists():
            return
        found = os.stat(path)
        if _hash_of(os.fspath(path), (found.st_ino, found.st_size, found.st_mtime_ns)) == written["sha256"]:
            return
        raise DatasetError(
            f"{path} is damaged (it was replaced or changed after it was written): delete the folder {self.folder} and "
            "build the data set again"
        )

    def _split(self, split: str) -> dict[str, Any]:
        if split not in self.manifest.splits:
            raise DatasetError(f"{self.name} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
        return self.manifest.splits[split]


@functools.lru_cache(maxsize=1024)
def _hash_of(path: str, state: tuple[int, int, int]) -> str:
    """Returns `file_sha256` of a file, computed once per process as long as its `state` (of os.stat) is the same."""
    del state
    return file_sha256(Path(path))


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
    for (path, written_bytes), size in zip(written.items(), storage.file_sizes(list(written)), strict=True):
        if size != written_bytes:
            found = "is missing" if size is None else f"has {size} bytes, but {written_bytes} were written"
            raise DatasetError(f"shard {path} {found}: delete the folder {folder} and build the data set again")
    return Dataset(folder, manifest)


def dataset_names(data_dir: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the finished data sets under `data_dir`, sorted."""
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise DatasetError(f"the data folder {root} does not exist: build a data set into it, or correct the path")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and _versions(path))


def _versions(folder: epath.Path) -> list[str]:
    found = [path.name for path in folder.iterdir() if path.is_dir() and version_key(path.name)]
    return sorted(found, key=lambda version: version_key(version) or ())


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


def open_copy(
    data_dir: str | os.PathLike[str], name: str, cache: str | os.PathLike[str], version: str | None = None
) -> Dataset:
    """Opens the newest version that `data_dir` holds of a data set, in a copy of it below `cache`.

    A copy is reused while the manifest is the same, and an interrupted one is continued. The processes of a host wait
    for one another. Raises DatasetError as `open_dataset` does, WriteError for a cache that cannot be written.
    """
    folder = Path(cache).expanduser()
    try:
        return _open_copy(data_dir, name, folder, version)
    except OSError as error:
        about = str(error.filename or "")
        ours = about and (about.startswith(str(folder)) or str(folder).startswith(about))
        if isinstance(error, UserError) or not ours:  # of the storage that is copied
            raise
        raise files.write_failure(about, error) from error


def _open_copy(data_dir: str | os.PathLike[str], name: str, cache: Path, version: str | None) -> Dataset:
    # One cache folder per data_dir: data sets of one name may differ.
    root = cache / os.fspath(data_dir).replace("://", "/").strip("/")
    remote = version_folder(epath.Path(data_dir), name, version)
    final = root / name / remote.name
    final.parent.mkdir(parents=True, exist_ok=True)
    with open(final.with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = _bytes(remote / MANIFEST)
        if manifest is None or manifest != _bytes(final / MANIFEST):
            _copy_all(open_dataset(data_dir, name, remote.name), final)
    # The cache may hold newer versions, which were withdrawn.
    return open_dataset(root, name, remote.name)


def _copy_all(source: Dataset, final: Path) -> None:
    logging.info("copying %s to %s", source.folder, final)
    work = final.with_name(f".{source.manifest.content_hash}.copying")
    work.mkdir(exist_ok=True)
    with futures.ThreadPoolExecutor(storage.THREADS) as pool:
        list(pool.map(lambda file: _copy(file, work / file.name), source.folder.iterdir()))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(work, final)


def _copy(source: epath.Path, target: Path) -> None:
    if not target.exists():
        unfinished = target.with_name(f".{target.name}.unfinished")
        source.copy(unfinished, overwrite=True)
        os.replace(unfinished, target)


def _bytes(file: Path | epath.Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
