"""Hashes of the files of a checkpoint: written before it is complete, compared whenever arrays are read from it.

`{step}/state/sha256.json` holds a table of the folder's files, by their relative path, with their SHA-256, and the hash
of this table. Files are hashed as they lie on the disk, so the mesh of the reader does not matter. Of several processes
each hashes a share of the files.
Checkpoints of earlier versions have none; the record of a step says whether it has (`reading.HASHES`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent import futures

import jax
import orbax.checkpoint as ocp
from etils import epath

from data_pipelines import files, storage
from irm_jax.parallel import processes

FILE = "sha256.json"
LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")
"""Files that orbax writes after the hashes, to mark what is complete; nothing that is read depends on them."""
THREADS = min(8, os.cpu_count() or 1)


class HashedHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler of a tree of arrays, which also writes the hashes of its files before they are committed."""

    def finalize(self, directory: epath.Path) -> None:
        """Called in process 0 once every process has written its arrays."""
        super().finalize(directory)
        found = sorted(_files(epath.Path(directory)))
        with futures.ThreadPoolExecutor(_threads(directory)) as pool:
            digests = pool.map(lambda name: _sha256(epath.Path(directory) / name), found)
            table = dict(zip(found, digests, strict=True))
        content = {"sha256": _table_hash(table), "files": table}
        files.write_atomically(epath.Path(directory) / FILE, json.dumps(content, indent=1) + "\n")


@ocp.args.register_with_handler(HashedHandler, for_save=True)
@dataclasses.dataclass
class HashedSave(ocp.args.StandardSave):
    """Arguments of a save by `HashedHandler`."""


@ocp.args.register_with_handler(HashedHandler, for_restore=True)
@dataclasses.dataclass
class HashedRestore(ocp.args.StandardRestore):
    """Arguments of a restore by `HashedHandler`."""


def has(folder: epath.Path) -> bool:
    """Tells whether a folder of arrays has hashes."""
    return (folder / FILE).exists()


def damaged(folder: epath.Path) -> str | None:
    """Returns what is wrong with the files of a folder of arrays, naming the first such file; None if nothing is.

    Every process must call it, and all get the same answer. Raises OSError if a file cannot be read now.
    """
    try:
        content = files.parse_json((folder / FILE).read_bytes())
        table = content["files"]
        if content["sha256"] != _table_hash(table):
            raise ValueError
        names = sorted(table)
    except FileNotFoundError:
        return f"{folder / FILE} is missing"
    except (ValueError, TypeError, KeyError):
        return f"{folder / FILE} is damaged"
    count, index = jax.process_count(), jax.process_index()
    share = range(index, len(names), count)
    with futures.ThreadPoolExecutor(_threads(folder)) as pool:
        same = pool.map(lambda i: _same(folder / names[i], table[names[i]]), share)
        first = next((i for i, ok in zip(share, same, strict=True) if not ok), len(names))
    first = processes.smallest(first)
    return None if first == len(names) else f"{folder / names[first]} is missing or is not what was saved"


def _same(path: epath.Path, expected: str) -> bool:
    try:
        return _sha256(path) == expected
    except FileNotFoundError:
        return False


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table_hash(table: object) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Relative paths of the files below a folder (object storage has no recursive glob)."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif path.name not in (FILE, *LATER):
            yield prefix + path.name


def _threads(folder: str | os.PathLike[str]) -> int:
    return storage.THREADS if storage.is_remote(folder) else THREADS
