"""Embedding all entries of an index anew, by another model, from the pictures that it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from irm_jax.search import crops
from irm_jax.search.gallery import rounded
from irm_jax.search.ingest import BATCH, Progress
from irm_jax.search.model import SearchModel
from irm_jax.search.store import PICTURE, SPACES, About, GalleryStore, vector_column
from irm_jax.search.thresholds import read_thresholds


def rebuild(store: GalleryStore, model: str, step: Any = None, *, quiet: bool = False) -> int:
    """Replaces model and vectors of an index in one commit; searches see the old ones until then.

    The pictures are those in the index: a large file was made smaller when it was added. An interrupted rebuild leaves
    the index as it was.

    Args:
        store: the index.
        model, step: the run that embeds, see `SearchModel`.
        quiet: show no progress.

    Returns the number of entries. Raises RetryError if another process writes to the index.
    """
    embedder = SearchModel(model, step)
    about = dataclasses.replace(
        store.about, model=embedder.workdir, step=embedder.step, fingerprint=embedder.fingerprint,
        widths=embedder.widths, thresholds=read_thresholds(embedder.workdir),
    )  # fmt: skip
    with store.lock():
        count = store.count()
        progress = Progress("rebuilding", count, quiet)
        store.replace(about, _embedded(store, about, embedder, progress))
        progress.advance(0, done=True)
    return count


def _embedded(
    store: GalleryStore, about: About, model: SearchModel, progress: Progress
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    old = [name for name in store.about.schema().names if name not in map(vector_column, SPACES)]
    schema = about.schema()
    for batch in store.scan(old):
        for start in range(0, len(batch), BATCH):
            rows = batch.slice(start, BATCH)
            pictures = rows.column(old.index(PICTURE)).to_pylist()
            vectors = model.embed_pictures(
                [
                    crops.decode(data, f"entry {one}")
                    for one, data in zip(rows.column(0).to_pylist(), pictures, strict=True)
                ]
            )
            columns = {name: rows.column(i) for i, name in enumerate(old)}
            for space, part in zip(SPACES, vectors, strict=True):
                field = schema.field(vector_column(space))
                flat = pa.array(rounded(part).ravel())
                columns[field.name] = pa.FixedSizeListArray.from_arrays(flat, field.type.list_size)
            progress.advance(len(rows))
            yield pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
