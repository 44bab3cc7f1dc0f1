"""Folders that may be on object storage (gs://BUCKET/...), and how its files differ from local ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent import futures

from etils import epath

from data_pipelines.errors import UserError, pip_line

EXTRAS = {"gs": pip_line("gcs"), "s3": pip_line("s3"), "az": "pip install adlfs"}
"""How the library of each kind of object storage is installed."""
THREADS = 16
"""Concurrent requests: a single one mostly waits for its answer and leaves the network idle."""


class StorageError(UserError, ValueError):
    """Reports a kind of object storage that is unknown or lacks its library; the message names the cure."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is on object storage."""
    return "://" in os.fspath(path)


def require_library(path: str | os.PathLike[str]) -> None:
    """Raises StorageError if `path` is remote and of an unknown kind, or the library of its kind is missing."""
    if not is_remote(path):
        return
    import fsspec  # late: the import is slow, and most paths are local

    kind = os.fspath(path).partition("://")[0]
    if kind not in EXTRAS:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise StorageError(f"{os.fspath(path)!r} is on no known kind of storage; known are {known} and local folders")
    try:
        fsspec.get_filesystem_class(kind)
    except ImportError as error:
        raise StorageError(f"{kind}:// needs a library that is missing here: {EXTRAS[kind]}") from error


def require_workdir(path: str | os.PathLike[str]) -> None:
    """Raises StorageError for a kind of storage that holds no checkpoints, or whose library is missing."""
    kind = os.fspath(path).partition("://")[0]
    if is_remote(path) and kind in EXTRAS and kind != "gs":
        raise StorageError(
            f"{os.fspath(path)} cannot hold a run: a checkpoint is renamed when it is whole, which {kind}:// cannot "
            "do. Name a folder of gs://, or one on a disk that all hosts share, and copy the finished run "
            "(aws s3 sync); config.data.dir may be there"
        )
    require_library(path)


def require_data_folder(path: str | os.PathLike[str], cache: str) -> None:
    """Raises StorageError for a data folder whose records cannot be read in place, without a `cache` for a copy."""
    require_library(path)
    if is_remote(path) and not os.fspath(path).startswith("gs://") and not cache:
        raise StorageError(
            f"records are read from local folders and gs://, not from {os.fspath(path)}: set config.data.cache to a "
            "local folder, which gets a copy"
        )


def file_sizes(paths: Sequence[epath.Path]) -> list[int | None]:
    """Returns the bytes of each file, None for a missing one; on object storage with many requests at a time."""
    if not any(map(is_remote, paths)):
        return [_file_size(path) for path in paths]
    with futures.ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_file_size, paths))


def _file_size(path: epath.Path) -> int | None:
    try:
        # epath's `stat` of a local file looks up the owner's name, which may be unknown in a container.
        return path.stat().length if is_remote(path) else os.stat(path).st_size
    except FileNotFoundError:
        return None
