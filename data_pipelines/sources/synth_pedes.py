"""SYNTH-PEDES (Zuo et al., "PLIP", NeurIPS 2024): people with machine-made captions, to train on, research use only.

    synthpedes_dataset.json    a list of {"id", "file_path", "attributes", "captions", "prompt_caption"}
    Part1/, Part2/, ...        train    312,321 identities, 4,791,711 images (published, unverified)

A record's sentences are its captions, or its prompt captions where it has none. Cameras are not known (0).

The list is several gigabytes. It is read once as a stream. Memory holds 32 bytes per image (person, offset, length and
checksum of its entry in the list, size of its file), and workers read the entries themselves.
"""

from __future__ import annotations

import array
import functools
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from absl import logging

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, json_stream, reading
from data_pipelines.sources.cuhk_pedes import check_annotation

NAMESPACE = "synth_pedes"
TITLE = "SYNTH-PEDES"
_LIST = "synthpedes_dataset.json"
_ROW = np.dtype([("id", "i8"), ("offset", "i8"), ("length", "i4"), ("crc32", "u4"), ("size", "i8")])
_LOG_SECONDS = 10.0
_ROWS_AT_ONCE = 4096


class ArrayRows(Sequence[tuple[Any, ...]]):
    """The rows of a structured array as a sequence of tuples of plain numbers, made on access.

    Millions of descriptors take their array's memory only. A slice is a view, and pickles no more than its own rows.
    """

    def __init__(self, rows: np.ndarray) -> None:
        """rows: structured array [N]."""
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> tuple[Any, ...]: ...

    @overload
    def __getitem__(self, at: slice) -> ArrayRows: ...

    def __getitem__(self, at: int | slice) -> tuple[Any, ...] | ArrayRows:
        return ArrayRows(self.rows[at]) if isinstance(at, slice) else self.rows[at].item()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for first in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield from self.rows[first : first + _ROWS_AT_ONCE].tolist()


def scan(raw: Path) -> Scan:
    """Reads the list as a stream and looks at every picture's size; records are sorted by person, then as listed."""
    reading.check_tree(raw, TITLE, ["Part1/", _LIST])
    columns = {name: array.array("I" if _ROW[name] == np.uint32 else "q") for name in _ROW.names or ()}
    files = array.array("Q")
    sentences, last = 0, time.monotonic()
    for offset, data, entry in json_stream.objects(raw / _LIST):
        where = f"{raw / _LIST}, byte {offset}"
        check_annotation(entry, ("id", "file_path"), where)
        sentences += len(_sentences(entry, where))
        file = json_stream.text(entry["file_path"])
        size = reading.listed_size(raw, file, where)
        files.append(schema.short_hash(file.encode()))
        for name, value in zip(columns, (entry["id"], offset, len(data), zlib.crc32(data), size), strict=True):
            columns[name].append(value)
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            logging.info("%s: %d entries of the list read", TITLE, len(columns["id"]))
    rows = np.empty(len(columns["id"]), _ROW)
    for name, column in columns.items():
        rows[name] = column
        del column[:]
    _check_people(raw / _LIST, rows, np.array(files, np.uint64))
    rows = _distinct(rows[np.argsort(rows["id"], kind="stable")])
    people = np.unique(rows["id"]).tolist()
    return Scan(
        people=[person_name(NAMESPACE, pid) for pid in people],
        splits={"train": ArrayRows(rows)},
        found={"train": {"images": len(rows), "identities": len(people), "sentences": sentences}},
        source={"layout": TITLE, "sentences": "captions, else prompt_caption", "terms": "research only"},
    )


def _sentences(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    """Returns the captions that have a word, or else such prompt captions."""
    for key in ("captions", "prompt_caption"):
        sentences = entry.get(key) or []
        sentences = sentences if isinstance(sentences, list) else [sentences]
        reading.check_sentences(sentences, where)
        if said := tuple(text for text in sentences if reading.says_something(text)):
            return said
    raise DatasetError(f"{where} has neither captions nor prompt_caption: get the official list again")


def _check_people(path: Path, rows: np.ndarray, files: np.ndarray) -> None:
    """Raises DatasetError for a picture under two people; `files`: u64[N], a hash of each row's picture's path."""
    order = np.lexsort((rows["id"], files))
    both = np.flatnonzero((np.diff(files[order]) == 0) & (np.diff(rows["id"][order]) != 0))
    if len(both):
        one, other = rows[order[both[0] : both[0] + 2]]
        raise DatasetError(
            f"{path}: the entries at byte {one['offset']} (id {one['id']}) and {other['offset']} (id {other['id']}) "
            f"have one picture, which shows one person: get the official list again"
        )


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Returns the rows, in their order, without entries that repeat another one of the same person."""
    content = rows["crc32"].astype(np.uint64) << np.uint64(32) | rows["length"].astype(np.uint64)
    order = np.lexsort((content, rows["id"]))
    repeated = (np.diff(rows["id"][order]) == 0) & (content[order][1:] == content[order][:-1])
    if repeated.any():
        logging.warning("%s: %d rows repeat another one and count once", TITLE, repeated.sum())
    return np.delete(rows, order[1:][repeated])


@functools.lru_cache(maxsize=1)
def _open(path: str, _: int) -> int:
    """Opens the list once per process: an entry is one small read. `_` is its time of change."""
    return os.open(path, os.O_RDONLY)


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of a row. Raises DatasetError if the list is no longer the one that was scanned."""
    pid, offset, length, crc32, _ = item
    data = os.pread(_open(str(raw / _LIST), os.stat(raw / _LIST).st_mtime_ns), length, offset)
    if zlib.crc32(data) != crc32:
        raise DatasetError(f"{raw / _LIST} changed while the data set was built: run the build again")
    entry = json.loads(data)
    file = entry["file_path"]
    return schema.Record(
        image=reading.read(raw / file),
        file=file,
        person=person_name(NAMESPACE, pid),
        camera=0,
        sentences=_sentences(entry, f"{raw / _LIST}, byte {offset}"),
    )


SOURCES = {
    "synth_pedes": Source(
        name="synth_pedes",
        task="t2i",
        namespace=NAMESPACE,
        expected={"train": {"images": 4_791_711, "identities": 312_321}},
        scan=scan,
        load=load,
    )
}
