"""Result files: written in one step, as strict JSON, in folders that one process at a time writes into.

A file appears whole under its name or not at all (`write_atomically`, `replacing`, `folder_in_one_step`); what a killed
process leaves behind has a name of its own, and the next holder of the folder's `lock` removes it (`sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from absl import logging
from etils import epath

from data_pipelines import object_lock, storage
from data_pipelines.errors import RetryError, UserError
from data_pipelines.object_lock import LockedError

__all__ = [
    "LockedError", "StorageLost", "WriteError", "check_place", "folder_in_one_step", "jsonable", "lock", "parse_json",
    "replacing", "scratch_path", "sweep", "temporary_folder", "write_atomically", "write_json",
]  # fmt: skip

LOCK = ".lock"
"""File in a folder that is locked while a process writes into it; it stays there when the lock is free."""
SCRATCH_PREFIX = "tmp-irm_jax-"
"""Begins the name of every file or folder that is being written; one that is left over belongs to a killed process."""
_SCRATCH = re.compile(rf"{SCRATCH_PREFIX}\d+-.+|\..+\.npz\.\d+")  # the second: per-query files of earlier versions
_LONGEST_NAME = 200
_TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN, errno.EBUSY)
"""Errors of a disk or a network's file system that may be gone at the next start."""
_REFUSED = ("Forbidden", "403", "401", "credential", "Anonymous caller")
"""How clients of object storage name what a retry cannot help."""


class WriteError(UserError, OSError):
    """Reports a file that cannot be written, say on a full disk; the message names it, the cause and the cure."""

    def __str__(self) -> str:
        return str(self.args[-1])


class StorageLost(RetryError, OSError):
    """Reports storage that does not answer now; another start may succeed. The message names the file."""

    def __str__(self) -> str:
        return str(self.args[-1])


def jsonable(value: Any, path: str = "") -> Any:
    """Converts a value to what strict JSON holds.

    Tuples become lists, keys strings, arrays (NumPy's and JAX's) lists or numbers, NaN and infinities None.

    Args:
      value: nested mappings, sequences, arrays and scalars.
      path: name of the value in error messages.

    Raises:
      TypeError: JSON cannot hold a value; the message names its path.
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, f"{path}[{number}]") for number, item in enumerate(value)]
    if hasattr(value, "__array__"):  # also JAX's arrays, without importing JAX
        return jsonable(np.asarray(value).tolist(), path)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{path or 'the value'} has type {type(value).__name__}, which JSON cannot hold: pass plain values")


def parse_json(data: bytes | str) -> Any:
    """Parses JSON of unknown origin.

    Raises:
      ValueError: it is no JSON: another encoding than UTF-8, a syntax error, nested too deep, a number too long.
    """
    try:
        return json.loads(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def scratch_path(path: Path) -> Path:
    """Returns where this process writes the content of `path` before it renames it."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:  # with the prefix it may be longer than a file system takes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return path.with_name(f"{SCRATCH_PREFIX}{os.getpid()}-{name}")


def _target(path: Path) -> Path:
    """Returns the file that is written for a path: where a link leads, so that the link stays.

    Raises WriteError for a device or a pipe, which a rename would replace.
    """
    real = Path(os.path.realpath(path)) if path.is_symlink() else path
    if real.exists() and not real.is_file() and not real.is_dir():
        raise WriteError(errno.EINVAL, f"{path} is a device or a pipe, not a file: choose another name")
    return real


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replaces a local file by what the block writes to the path that it is given, in one step.

    Its folder is made if missing; a link stays, and the file that it leads to is replaced. The temporary file lies in
    the same folder; it gets the rights of the old one, is flushed to the disk, renamed, and the folder is flushed, so
    that the new name survives a power failure. After an error it is removed.

    Raises:
      WriteError: the file cannot be written.
      StorageLost: the disk or the network's file system does not answer.
    """
    path = _target(path)
    scratch = _prepared(path)
    with _explained(path, scratch):
        try:
            yield scratch
            if path.is_file():
                with contextlib.suppress(OSError):  # some file systems have no rights
                    shutil.copymode(path, scratch)
            _flush(scratch)
            os.replace(scratch, path)
            _flush(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                scratch.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def folder_in_one_step(path: Path) -> Iterator[Path]:
    """Makes a local folder of the files that the block writes into the folder that it is given, in one rename.

    Its files are flushed before. After an error nothing is left. Raises as `replacing`, also if the folder is there.
    """
    scratch = _prepared(path)
    with _explained(path, scratch):
        try:
            scratch.mkdir()
            yield scratch
            for root, _, names in os.walk(scratch):
                for name in names:
                    _flush(Path(root, name))
                _flush(Path(root))
            if path.exists():  # an empty one would be replaced without a word
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            os.rename(scratch, path)
            _flush(path.parent)
        except (WriteError, StorageLost) as error:  # of a file in it, under its name of before the rename
            shutil.rmtree(scratch, ignore_errors=True)
            raise type(error)(error.errno, str(error).replace(str(scratch), str(path))) from error
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _prepared(path: Path) -> Path:
    """Returns `scratch_path`, its folder made if missing."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return scratch_path(path)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems cannot flush a folder
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path | epath.Path, scratch: Path | None = None) -> Iterator[None]:
    """Raises `write_failure` for what goes wrong in the block, unless it is about another file than `scratch`."""
    try:
        yield
    except (UserError, RetryError):
        raise
    except OSError as error:
        about, ours = error.filename, (str(path), str(path.parent))
        if scratch and isinstance(about, str) and about not in ours and not about.startswith(str(scratch)):
            raise
        raise write_failure(path, error) from error
    except Exception as error:
        if not storage.is_remote(path):
            raise
        raise write_failure(path, error) from error  # clients of object storage have errors of their own


def write_failure(path: str | os.PathLike[str], error: Exception) -> WriteError | StorageLost:
    """Returns the error to raise for a failure to write `path`, with its cause and its cure."""
    number = error.errno if isinstance(error, OSError) else None
    cause = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    where = os.fspath(path)
    if storage.is_remote(path):
        refused = isinstance(error, PermissionError | FileNotFoundError) or any(word in cause for word in _REFUSED)
        if refused:
            return WriteError(number, f"{where} cannot be written ({cause}): is the bucket there, and may you write?")
    elif number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WriteError(number, f"{where} cannot be written ({cause}): free space there, or choose another folder")
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return WriteError(number, f"{where} cannot be written ({cause}): make it writable, or choose another folder")
    elif number not in _TRANSIENT and not isinstance(error, ConnectionError | TimeoutError):
        return WriteError(number, f"{where} cannot be written ({cause}): choose another name or folder")
    return StorageLost(number, f"{where} cannot be written now ({cause}): the storage does not answer. Start again")


def write_atomically(path: Path | epath.Path, data: bytes | str) -> None:
    """Replaces a file in one step, so that a kill leaves either the old or the new content.

    Local files are written as by `replacing`; on object storage one put does it.

    Args:
      path: the file; its folder is made if missing.
      data: its content; text is written as UTF-8.

    Raises:
      WriteError: the file cannot be written.
      StorageLost: the storage does not answer.
    """
    # Half a character of a pair, from JSON's \ud83d, has no UTF-8.
    content = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    if storage.is_remote(path):
        with _explained(path):
            path.write_bytes(content)
        return
    with replacing(Path(path)) as scratch:
        scratch.write_bytes(content)


def write_json(path: Path | epath.Path, value: Any) -> None:
    """Writes a JSON file with an indent of one space, in one step."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def check_writable(path: Path | epath.Path) -> None:
    """Raises WriteError if a local file cannot be written, before long work whose result goes there."""
    if storage.is_remote(path):
        return
    with _explained(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        scratch = _prepared(_target(Path(path)))
        scratch.touch()
        scratch.unlink()


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Makes a folder for temporary files. Raises WriteError where there is no place for one."""
    try:
        return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        cause = error.strerror or error
        raise WriteError(
            error.errno, f"there is no place for temporary files ({cause}): set TMPDIR to a folder that can be written"
        ) from error


def check_place(folder: Path | epath.Path) -> None:
    """Raises WriteError if a local folder that is not there yet cannot be made; makes nothing."""
    path = Path(folder).absolute()
    with _explained(path):
        above = next(parent for parent in path.parents if parent.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def sweep(folder: Path | epath.Path) -> None:
    """Removes what killed writers left in a local folder, not below it. The caller holds the `lock` of the folder.

    Object storage holds no half-written files.
    """
    if storage.is_remote(folder) or not os.path.isdir(folder):
        return
    with _explained(folder):
        for path in Path(folder).iterdir():
            if not _SCRATCH.fullmatch(path.name):
                continue
            logging.info("removing %s, left by a process that was killed", path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(folder: Path | epath.Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a folder, which is made if missing: one process at a time writes into it.

    A local folder's lock is the system's, on the file `.lock`, which names its owner: it ends with the process, however
    that ends. On object storage it is an object with a heartbeat (`object_lock`).

    Args:
      folder: what is locked.
      wait: wait while another process holds it.

    Raises:
      LockedError: another process holds it and `wait` is off; the message names that process.
      WriteError: the folder cannot be written.
    """
    if storage.is_remote(folder):
        with contextlib.ExitStack() as stack:
            with _explained(folder):
                stack.enter_context(object_lock.hold(epath.Path(folder), wait=wait))
            yield
        return
    path = Path(folder, LOCK)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(path, timeout=-1 if wait else 0)
        try:
            held.acquire()
        except filelock.Timeout:
            raise object_lock.locked(folder, _owner_of(path)) from None
        if isinstance(held, filelock.UnixFileLock):  # the lock of a file system without flock keeps its own text
            with contextlib.suppress(OSError):  # a full disk is reported by who writes more
                path.write_text(object_lock.describe_owner() + "\n", "utf-8", "backslashreplace")
    try:
        yield
    finally:
        held.release()


def _owner_of(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
