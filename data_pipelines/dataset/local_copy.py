"""Copies of data sets that lie on object storage, on this host's disk; made once, before the first record is read."""

from __future__ import annotations

import fcntl
import os
import shutil
from concurrent import futures
from pathlib import Path

from absl import logging
from etils import epath

from data_pipelines import storage
from data_pipelines.dataset import files, shards


def open_copy(data_dir: str | os.PathLike[str], name: str, cache: str | os.PathLike[str]) -> shards.Dataset:
    """Opens the newest version that `data_dir` holds of a data set, in a copy of it below `cache`.

    A copy is used again while the manifest is the same, and one that was cut short goes on. The processes of a host
    wait for one another. Raises DatasetError as `open_dataset` does, OSError for a full disk.
    """
    # A place of its own for each data_dir: data sets of one name may differ.
    root = Path(cache).expanduser() / os.fspath(data_dir).replace("://", "/").strip("/")
    there = shards.version_folder(epath.Path(data_dir), name)
    final = root / name / there.name
    final.parent.mkdir(parents=True, exist_ok=True)
    with open(final.with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = _bytes(there / files.MANIFEST)
        if manifest is None or manifest != _bytes(final / files.MANIFEST):
            _copy_all(shards.open_dataset(data_dir, name, there.name), final)
    # The cache may hold newer versions, which were withdrawn.
    return shards.open_dataset(root, name, there.name)


def _copy_all(source: shards.Dataset, final: Path) -> None:
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
