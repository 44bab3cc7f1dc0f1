"""Writing result files: in one step, and as strict JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipelines import storage

SCRATCH_PREFIX = "tmp-"
"""Begins the name of every file that is being written; one that is left over belongs to a killed process."""


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


def scratch_path(path: Path) -> Path:
    """Returns where this process writes the content of `path` before it renames it."""
    return path.with_name(f"{SCRATCH_PREFIX}{os.getpid()}-{path.name}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replaces a local file by what the block writes to the path that it is given, in one step.

    The temporary file lies in the same folder, is flushed to the disk and renamed; after an error it is removed.
    """
    scratch = scratch_path(path)
    try:
        yield scratch
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_atomically(path: Path | epath.Path, data: bytes | str) -> None:
    """Replaces a file in one step, so that a kill leaves either the old or the new content.

    Local files are written as by `replacing`; on object storage one put does it.

    Args:
      path: the file.
      data: its content; text is written as UTF-8.

    Raises:
      OSError: the file cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    if storage.is_remote(path):
        path.write_bytes(content)
        return
    with replacing(Path(path)) as scratch:
        scratch.write_bytes(content)


def write_json(path: Path | epath.Path, value: Any) -> None:
    """Writes a JSON file with an indent of one space, in one step."""
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
