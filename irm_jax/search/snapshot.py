"""One version of an index in memory: its columns, and the vectors on the devices once a query needs them.

Entries are in order of their ids, whatever order they were added in, so that ties have one answer. Vectors of an index
on object storage are also kept in a local folder, and only those that are new are read again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jax.sharding import Mesh

from data_pipelines import files, storage
from irm_jax.search.filters import Filter, mask
from irm_jax.search.gallery import VectorBuffer
from irm_jax.search.store import ID, About, GalleryStore, StoreLost, vector_column

READ_AGAIN = 0.5
"""Share of vectors that are missing in the local copy above which all are read anew."""


class Snapshot:
    """The entries of one version.

    version, about: of the store. table: ids and columns, one row per entry, by id.
    """

    def __init__(self, store: GalleryStore, mesh: Mesh | None = None) -> None:
        self._store, self._mesh = store, mesh
        self.version, self.about = store.version(), store.about
        names = [ID, *self.about.columns]
        schema = pa.schema([self.about.schema().field(name) for name in names])
        table = pa.Table.from_batches(list(store.scan(names)), schema=schema)
        self.table = table.take(pc.sort_indices(table[ID])).combine_chunks()
        self.ids = np.concatenate([np.zeros(0, "S32"), *(_ids(chunk) for chunk in self.table[ID].chunks)])
        self._buffers: dict[str, VectorBuffer] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def passes(self, where: Filter | None) -> np.ndarray | None:
        """Which entries pass a filter, bool[G]; None stands for all."""
        return None if where is None else mask(where, self.table)

    def vectors(self, space: str) -> VectorBuffer:
        """The vectors of a space on the devices, read when first asked for. Raises StoreLost if the store changed
        meanwhile and an entry is gone; a new snapshot has the answer."""
        with self._lock:
            if space not in self._buffers:
                self._buffers[space] = self._read(space)
            return self._buffers[space]

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """The row of each entry, i64[n]; -1 for one that this version has not."""
        return _places(self.ids, np.array([one.encode() for one in ids], "S"))

    def check(self, ids: Sequence[str] = ()) -> None:
        """Raises StoreLost if what the store has just read, such as entries, is not of this version and its model."""
        if self._store.about.fingerprint != self.about.fingerprint or (self.rows_of(ids) < 0).any():
            raise self._changed()

    def _changed(self) -> StoreLost:
        return StoreLost(f"{self._store.uri} was changed while it was read: start again")

    def loaded(self) -> list[str]:
        """The spaces whose vectors are on the devices."""
        return list(self._buffers)

    def _read(self, space: str) -> VectorBuffer:
        made = VectorBuffer(len(self), self.about.widths[space], self._mesh)
        missing = np.ones(len(self), bool)
        cache = _Cache(self._store.uri, self.about, space)
        if (kept := cache.read()) is not None:
            ids, vectors = kept
            place = _places(ids, self.ids)
            found = place >= 0
            if found.sum() and found.mean() >= 1 - READ_AGAIN:
                at = np.flatnonzero(found)
                for start in range(0, len(at), 65536):
                    rows = at[start : start + 65536]
                    made.fill(rows, vectors[place[rows]])
                missing[at] = False
        if missing.any():
            self._fetch(space, made, missing)
        if missing.any():
            raise self._changed()
        cache.write(self.ids, made)
        made.finish()
        _release_unused()
        return made

    def _fetch(self, space: str, made: VectorBuffer, missing: np.ndarray) -> None:
        """Fills the missing vectors from the store; `missing` is cleared for those that are found."""
        from irm_jax.search.filters import Junction, Predicate

        wanted = np.flatnonzero(missing)
        where: Filter | None = None
        if 0 < len(wanted) <= 2000 and len(wanted) < len(self):
            parts = tuple(Predicate(ID, "text", "=", self.ids[i].decode()) for i in wanted)
            where = parts[0] if len(parts) == 1 else Junction("or", parts)
        for batch in self._store.scan([ID, vector_column(space)], where):
            self.check()
            place = _places(self.ids, _ids(batch.column(0)))
            known = place >= 0
            flat = batch.column(1).flatten().to_numpy(zero_copy_only=False)
            made.fill(place[known], flat.reshape(len(batch), -1)[known])
            missing[place[known]] = False


def _release_unused() -> None:
    """Gives back what reading took: Arrow's pool and glibc's arenas, one per thread of the store, keep it."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of `wanted` stands among ids in ascending order, i64[n]; -1 if it does not."""
    if not len(ids):
        return np.full(len(wanted), -1)
    found = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[found] == wanted, found, -1)


def _ids(column: pa.Array) -> np.ndarray:
    """S32[n] of a column of ids, which have 32 letters; a Python text for each would take 100 MB for a million."""
    fixed = column.cast(pa.binary(32))
    return np.frombuffer(fixed.buffers()[1], "S32", len(fixed), 32 * fixed.offset)


def local_folder(key: str, end: str = "") -> Path:
    """A folder of this machine for what may be computed or read again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "irm_jax", "search", hashlib.sha256(key.encode()).hexdigest()[:24] + end)


class _Cache:
    """The local copy of a space's vectors of an index on object storage: ids and vectors as two NumPy files."""

    def __init__(self, uri: str, about: About, space: str) -> None:
        self._folder: Path | None = None
        if storage.is_remote(uri) and not uri.startswith("milvus://"):
            key = f"{uri.rstrip('/')} {about.fingerprint} {about.widths[space]}"
            self._folder = local_folder(key, f"-{space}")

    def read(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Ids S32[n] in ascending order and vectors f16[n,d], not read into memory; None if there is no whole copy."""
        if self._folder is None:
            return None
        try:
            ids = np.load(self._folder / "ids.npy", allow_pickle=False)
            vectors = np.load(self._folder / f"vectors-{_digest(ids)}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return (ids, vectors) if len(ids) == len(vectors) and len(ids) else None

    def write(self, ids: np.ndarray, made: VectorBuffer) -> None:
        """Replaces the copy; ids are written last, and name the file of their vectors."""
        if self._folder is None or not len(ids):
            return
        target = self._folder / f"vectors-{_digest(ids)}.npy"
        if target.exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with files.replacing(target) as scratch, open(scratch, "wb") as file:
                np.save(file, made.filled())
            with files.replacing(self._folder / "ids.npy") as scratch, open(scratch, "wb") as file:
                np.save(file, ids)
            for other in self._folder.glob("vectors-*.npy"):
                if other != target:
                    other.unlink(missing_ok=True)
        except OSError:
            return  # a copy is a convenience: a full disk must not end a search


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()[:24]
