"""Adding pictures to an index: each file read once, each picture embedded once, resumable, over several processes.

One process commits every WRITE_EVERY entries or seconds to the index itself. Of several processes each embeds its share
and commits to a part of its own; when all are done, process 0 makes all parts visible in one commit. After a kill the
same command embeds what no part and no index has yet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from irm_jax.logs.writers import LiveLine, Pace
from irm_jax.parallel import processes
from irm_jax.search import crops
from irm_jax.search.crops import BadImage, Crop, Crops, Picture
from irm_jax.search.engines import create_store, exists, open_store
from irm_jax.search.gallery import rounded
from irm_jax.search.index import check_model
from irm_jax.search.model import SearchModel
from irm_jax.search.store import (
    SPACES,
    About,
    Direct,
    GalleryStore,
    Part,
    ids_of,
    vector_column,
)
from irm_jax.search.thresholds import read_thresholds

WRITE_ENTRIES, WRITE_SECONDS = 2048, 30.0
"""A commit is made after so many new entries, or seconds."""
BATCH = 64
THREADS = 4
"""Threads that read and decode pictures."""


@dataclasses.dataclass
class Added:
    """What an `add` did: new entries, pictures that the index had already, and those passed over, with the cause."""

    new: int = 0
    known: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)

    def describe(self) -> str:
        return f"{self.new:,} added, {self.known:,} in the index already, {len(self.bad):,} passed over"


class Progress:
    """The progress line of training, of pictures: a bar on a terminal; elsewhere a line every half minute."""

    def __init__(self, what: str, total: int, quiet: bool = False) -> None:
        self.what, self.total, self.done, self.quiet = what, total, 0, quiet
        self._start = self._shown = time.monotonic()
        self._pace = Pace()
        self._live = LiveLine(sys.stderr) if sys.stderr.isatty() and not quiet else None

    def advance(self, count: int) -> None:
        """Counts pictures, and shows the line if it is time."""
        self.done += count
        now = time.monotonic()
        if self.quiet or now - self._shown < (0.1 if self._live else 30.0):
            return
        self._shown = now
        self._pace.add(now, self.done)
        left = self._pace.left(self.total)
        self._show(f"{self.what}: {self.done:,} of {self.total:,}  {self._pace.rate():,.0f}/s  left {left}")

    def end(self) -> None:
        """Says how many there were, and how long it took."""
        seconds = time.monotonic() - self._start
        if not self.quiet:
            rate = self.done / max(seconds, 1e-9)
            self._show(f"{self.what}: {self.done:,} in {seconds:,.1f} s  {rate:,.0f}/s")
        if self._live is not None:
            self._live.close()

    def _show(self, text: str) -> None:
        if self._live is not None:
            self._live.show(text, self.done, self.total)
        else:
            print(text, file=sys.stderr, flush=True)


def build(uri: str, model: str, found: Crops, *, step: Any = None, skip_bad: bool = True, quiet: bool = False) -> Added:
    """Makes an index of pictures, or goes on with one that was interrupted.

    Args:
        uri: of the index; one of the same model and columns is continued.
        model, step: the run that embeds, see `SearchModel`.
        found: the pictures.
        skip_bad: pass over a picture that cannot be read; otherwise BadImage is raised.
        quiet: show no progress.

    Raises SearchError, and RetryError if another process writes to the index.
    """
    embedder = SearchModel(model, step)
    if not exists(uri) and processes.is_main():
        about = About(
            embedder.workdir, embedder.step, embedder.fingerprint, embedder.widths, dict(found.kinds),
            read_thresholds(embedder.workdir, embedder.step),
        )  # fmt: skip
        create_store(uri, about)
    _meet("search index made")
    return add(open_store(uri), embedder, found, skip_bad=skip_bad, quiet=quiet)


def add(store: GalleryStore, model: SearchModel, found: Crops, *, skip_bad: bool = True, quiet: bool = False) -> Added:
    """Adds the pictures that the index has not yet. See `build`."""
    many = not processes.alone()
    with store.lock() if processes.is_main() else contextlib.nullcontext():
        _meet("search index locked")
        store.version()  # it may have been embedded anew since it was opened
        check_model(model, store.about, store.uri)
        if not many:
            store.commit_parts()  # of an interrupted build over several processes
        known = ids_of(store)
        target: Part = store.part(f"{_place()[0]:05}") if many else Direct(store)
        known |= target.ids()
        share = list(found.items)[_place()[0] :: _place()[1]]
        result = _Adding(store.about, model, target, known, skip_bad, Progress("adding", len(share), quiet)).run(share)
        _meet("search parts written")
        if many and processes.is_main():
            store.commit_parts()
        _meet("search parts committed")
    return result


class _Adding:
    """One process's share of an `add`."""

    def __init__(
        self, about: About, model: SearchModel, target: Part, known: set[str], skip_bad: bool, progress: Progress
    ) -> None:
        self.about, self.model, self.target, self.known = about, model, target, known
        self.skip_bad, self.progress = skip_bad, progress
        self.result = Added()
        self.schema = about.schema()
        self._waiting: list[tuple[Crop, Picture, tuple[np.ndarray, np.ndarray]]] = []
        self._written = time.monotonic()

    def run(self, share: Sequence[Crop]) -> Added:
        batch: list[tuple[Crop, Picture]] = []
        try:
            for crop, read in _read_ahead(share, self._read):
                self.progress.advance(1)
                if isinstance(read, BadImage):
                    self._refuse(read)
                elif read is None or read.id in self.known:  # the second: twice in this list
                    self.result.known += 1
                else:
                    self.known.add(read.id)
                    batch.append((crop, read))
                if len(batch) == BATCH:
                    self._embed(batch)
                    batch = []
        finally:
            # What was embedded is kept, whatever ended the list.
            self._embed(batch)
            self._write()
            self.progress.end()
        return self.result

    def _read(self, crop: Crop) -> Picture | BadImage | None:
        try:
            data = crops.read_file(crop)
            if crops.picture_id(data) in self.known:
                return None
            return crops.read_picture(data, self.model.image_size, crop.name())
        except BadImage as error:
            return error

    def _refuse(self, error: BadImage) -> None:
        if not self.skip_bad:
            raise error
        self.result.bad.append(str(error))
        logging.warning("passed over: %s", error)

    def _embed(self, batch: Sequence[tuple[Crop, Picture]]) -> None:
        if not batch:
            return
        neutral, caption = self.model.embed_pictures([picture.pixels for _, picture in batch])
        self._waiting += [
            (crop, picture, (neutral[i], caption[i])) for i, (crop, picture) in enumerate(batch)
        ]  # fmt: skip
        if len(self._waiting) >= WRITE_ENTRIES or time.monotonic() - self._written > WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            vectors = {
                vector_column(space): rounded(np.stack([row[2][i] for row in self._waiting]))
                for i, space in enumerate(SPACES)
            }
            self.target.add(
                crops.table_of(
                    self.schema, [picture.id for _, picture, _ in self._waiting],
                    [crop.columns for crop, _, _ in self._waiting], [picture.kept for _, picture, _ in self._waiting],
                    vectors,
                )
            )  # fmt: skip
            self.result.new += len(self._waiting)
        self._waiting, self._written = [], time.monotonic()


def _read_ahead(
    items: Sequence[Crop], read: Callable[[Crop], Picture | BadImage | None]
) -> Iterator[tuple[Crop, Picture | BadImage | None]]:
    """Reads in threads, a few batches ahead, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: list[tuple[Crop, Any]] = []
        try:
            for crop in items:
                ahead.append((crop, pool.submit(read, crop)))
                if len(ahead) > 4 * BATCH:
                    first, future = ahead.pop(0)
                    yield first, future.result()
            while ahead:
                first, future = ahead.pop(0)
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _place() -> tuple[int, int]:
    """This process's number and how many there are."""
    if processes.alone():
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def _meet(name: str) -> None:
    if not processes.alone():
        processes.barrier(name)
