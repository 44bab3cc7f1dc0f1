"""Embedding all entries of an index anew, by another model, from the pictures that it keeps."""

from __future__ import annotations

import dataclasses
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from absl import logging

from data_pipelines import files, storage
from irm_jax.search import crops, ingest
from irm_jax.search.gallery import rounded
from irm_jax.search.ingest import Progress
from irm_jax.search.model import SearchModel
from irm_jax.search.snapshot import local_folder
from irm_jax.search.store import PICTURE, SPACES, About, GalleryStore, vector_column
from irm_jax.search.thresholds import read_thresholds


def rebuild(store: GalleryStore, model: str, step: Any = None, *, quiet: bool = False) -> int:
    """Replaces model and vectors of an index in one commit; searches see the old ones until then.

    The pictures are those in the index: a large file was made smaller when it was added. An interrupted rebuild leaves
    the index as it was; the same command on the same machine embeds what is missing.

    Args:
        store: the index.
        model, step: the run that embeds, see `SearchModel`.
        quiet: show no progress.

    Returns the number of entries. Raises RetryError if another process writes to the index.
    """
    embedder = SearchModel(model, step)
    about = dataclasses.replace(
        store.about, model=embedder.workdir, step=embedder.step, fingerprint=embedder.fingerprint,
        widths=embedder.widths, thresholds=read_thresholds(embedder.workdir, embedder.step),
    )  # fmt: skip
    with store.lock():
        store.commit_parts()  # of an interrupted build over several processes: its pictures are embedded anew as well
        count = store.count()
        progress = Progress("rebuilding", count, quiet)
        place = store.uri if storage.is_remote(store.uri) else os.path.abspath(store.uri)
        kept = _Kept(local_folder(f"rebuild {place.rstrip('/')} {about.fingerprint}"))
        try:
            store.replace(about, _embedded(store, about, embedder, kept, progress))
        finally:
            progress.end()
        kept.clear()
    return count


def _embedded(
    store: GalleryStore, about: About, model: SearchModel, kept: _Kept, progress: Progress
) -> Iterator[pa.RecordBatch]:
    old = [name for name in store.about.schema().names if name not in map(vector_column, SPACES)]
    schema = about.schema()
    try:
        for batch in store.scan(old):
            for start in range(0, len(batch), ingest.BATCH):
                rows = batch.slice(start, ingest.BATCH)
                vectors = _vectors(rows.column(0).to_pylist(), rows.column(old.index(PICTURE)), model, kept)
                columns = {name: rows.column(i) for i, name in enumerate(old)}
                for space, part in zip(SPACES, vectors, strict=True):
                    field = schema.field(vector_column(space))
                    flat = pa.array(part.ravel())
                    columns[field.name] = pa.FixedSizeListArray.from_arrays(flat, field.type.list_size)
                progress.advance(len(rows))
                yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    finally:
        kept.write()


def _vectors(ids: list[str], pictures: pa.Array, model: SearchModel, kept: _Kept) -> list[np.ndarray]:
    """The vectors f16[n,width] of entries in each space; those that are not kept are embedded."""
    found = [kept.find(one) for one in ids]
    missing = [i for i, one in enumerate(found) if one is None]
    if missing:
        embedded = model.embed_pictures([crops.decode(pictures[i].as_py(), f"entry {ids[i]}") for i in missing])
        for i, *rows in zip(missing, *map(rounded, embedded), strict=True):
            found[i] = rows
            kept.add(ids[i], rows)
    return [np.stack([one[space] for one in found if one is not None]) for space in range(len(SPACES))]


class _Kept:
    """Vectors that an interrupted rebuild has embedded, by id: files in a local folder, without any picture."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place: dict[str, tuple[Path, int]] = {}
        self._read: tuple[Path, list[np.ndarray]] | None = None
        self._waiting: list[tuple[str, list[np.ndarray]]] = []
        for path in sorted(folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as saved:
                    self._place |= {str(one): (path, row) for row, one in enumerate(saved["ids"])}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                logging.warning("%s is damaged (%s): its entries are embedded again", path, error)
                path.unlink(missing_ok=True)

    def find(self, one: str) -> list[np.ndarray] | None:
        """The vectors of an entry in each space."""
        if one not in self._place:
            return None
        path, row = self._place[one]
        if self._read is None or self._read[0] != path:
            with np.load(path, allow_pickle=False) as saved:
                self._read = path, [saved[space] for space in SPACES]
        return [vectors[row] for vectors in self._read[1]]

    def add(self, one: str, vectors: list[np.ndarray]) -> None:
        self._waiting.append((one, vectors))
        if len(self._waiting) >= ingest.WRITE_ENTRIES:
            self.write()

    def write(self) -> None:
        """Writes what was added since the last time."""
        if not self._waiting:
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ids, rows = zip(*self._waiting, strict=True)
        named: dict[str, Any] = {space: np.stack([row[i] for row in rows]) for i, space in enumerate(SPACES)}
        with files.replacing(self._folder / f"{ids[0]}.npz") as scratch, open(scratch, "wb") as file:
            np.savez(file, ids=np.asarray(ids), **named)
        self._waiting = []

    def clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
