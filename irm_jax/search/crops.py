"""Pictures to be searched: a folder of crops, or a table that names them, as files with columns."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from data_pipelines import images
from data_pipelines.errors import DatasetError, ImageError
from data_pipelines.sources import reading
from irm_jax.search.filters import parse_time
from irm_jax.search.store import FIXED, SearchError

TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
IMAGE_COLUMNS = ("image", "path", "file")
KEPT_BYTES = 45_000
"""Most bytes of a picture in an index; a larger file is kept as a smaller JPEG. (Milvus holds text of 64 KiB.)"""
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_SHOWN = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8")


class BadImage(SearchError):
    """A picture cannot be read; the message names it and says why."""


@dataclasses.dataclass(frozen=True)
class Crop:
    """A picture's file and its columns; `where` names its line for messages."""

    file: Path
    columns: Mapping[str, Any]
    where: str

    def name(self) -> str:
        """The line and the file, for messages."""
        return str(self.file) if self.where == str(self.file) else f"{self.where}: {self.file}"


@dataclasses.dataclass(frozen=True)
class Crops:
    """All pictures of a folder or a table. kinds: of the columns, by name, `FIXED` included."""

    items: Sequence[Crop]
    kinds: Mapping[str, str]


def read_crops(
    source: str | os.PathLike[str], table: str | os.PathLike[str] | None = None, kinds: Mapping[str, str] | None = None
) -> Crops:
    """Lists the pictures of a folder, of a table, or of a table whose paths begin in a folder.

    Args:
      source: a folder, or a table in any form of `data_pipelines.sources.table_files`.
      table: a table, if `source` is the folder of its pictures.
      kinds: of the columns of an index that is there already; None finds the kinds in the table.

    Raises:
      SearchError: a missing file, a malformed table (the message names the line), a path outside the folder, a column
        that the index has not.
    """
    place = Path(source).expanduser()
    if table is None and place.suffix.lower() in TABLES and not place.is_dir():
        return _of_table(place, place.parent, kinds)
    if not place.is_dir():
        raise SearchError(f"{place} is neither a folder nor a table ({', '.join(TABLES)}): correct the path")
    if table is not None:
        return _of_table(Path(table).expanduser(), place, kinds)
    found = [Crop(file, {"path": str(file)}, str(file)) for file in _pictures(place)]
    if not found:
        raise SearchError(f"no pictures in {place}: files with {', '.join(images.SUFFIXES)} are taken")
    return Crops(found, dict(FIXED))


def _pictures(folder: Path) -> Iterator[Path]:
    """Picture files below a folder in order of their names; a folder that links lead to twice is read once."""
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(images.SUFFIXES) and not name.startswith("."):
                yield Path(os.path.abspath(root), name)


def _of_table(table: Path, folder: Path, known: Mapping[str, str] | None) -> Crops:
    rows = list(_rows(table, known))
    if not rows:
        raise SearchError(f"{table} has no rows: give one line per picture")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    column = next((name for wanted in IMAGE_COLUMNS for name in names if name.lower() == wanted), None)
    if column is None:
        raise SearchError(f"{table}: column 'image' is missing; it has {', '.join(names)}")
    others = [name for name in names if name != column]
    for name in others:
        if not _COLUMN.fullmatch(name) or name == "path":
            raise SearchError(
                f"{table}: column {name!r} cannot be stored; a name has letters, digits and _, begins with a letter, "
                "and is not 'path', which is the picture's: rename it"
            )
        if known is not None and name not in known:
            raise SearchError(
                f"{table}: the index has no column {name!r}; its columns were fixed when it was built: "
                f"{', '.join(sorted(known))}. Leave the column out, or build another index"
            )
    fixed = FIXED if known is None else known
    kinds = {name: fixed.get(name) or _kind([row.get(name) for _, row in rows]) for name in others}
    root = Path(os.path.abspath(folder))
    items = [_crop(root, where, row, column, kinds) for where, row in rows]
    return Crops(items, dict(FIXED) | kinds)


def _crop(root: Path, where: str, row: Mapping[str, Any], column: str, kinds: Mapping[str, str]) -> Crop:
    given = row.get(column)
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise SearchError(f"{where}, column {column!r}: it must name a file, not {given!r}")
    # Where a table names a file outside its folder, someone else's list may read what it should not.
    file = Path(os.path.normpath(root / reading.as_listed(root, given.strip())))
    if not file.is_relative_to(root):
        raise SearchError(
            f"{where}, column {column!r}: {given!r} is outside the folder {root}: name that one with --images"
        )
    values = {name: convert(row.get(name), kind, f"{where}, column {name!r}") for name, kind in kinds.items()}
    return Crop(file, {**values, "path": str(file)}, where)


def _rows(table: Path, known: Mapping[str, str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file and line, values by column) of a table in any form of `table_files`; empty cells are left out."""
    from data_pipelines.sources import table_files  # takes a fifth of a second, and queries read no table

    columns = functools.partial(table_files.columns_of, needed=(), kept=known or ())
    try:
        cells = table_files.cells_of(table, columns)
    except DatasetError as error:
        raise SearchError(str(error)) from error
    for where, row in cells:
        values = {name: table_files.as_text(value) for name, value in row.items() if name}
        values = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        yield where, {name: value for name, value in values.items() if table_files.text_of(value) != ""}


def _kind(values: Sequence[Any]) -> str:
    """The narrowest kind that all values of a column have; missing ones aside."""
    present = [value for value in values if value is not None]
    for kind in ("boolean", "integer", "number", "time"):
        if present and all(_fits(value, kind) for value in present):
            return kind
    return "text"


def _fits(value: Any, kind: str) -> bool:
    text = str(value).strip()
    if kind == "boolean":
        return isinstance(value, bool) or (isinstance(value, str) and text.lower() in ("true", "false"))
    if isinstance(value, bool):
        return False
    if kind == "integer":  # a number with leading zeros is a name
        return re.fullmatch(r"0|-?[1-9]\d{0,17}", text) is not None
    if kind == "number":
        return re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", text) is not None
    return isinstance(value, datetime.datetime | datetime.date) or (
        isinstance(value, str) and parse_time(text) is not None
    )


def convert(value: Any, kind: str, where: str) -> Any:
    """A cell as a value of a column. Raises SearchError naming `where`."""
    if value is None:
        return None
    if kind == "text":
        if not isinstance(value, str | int | float | bool):
            raise SearchError(f"{where}: {value!r} is no text")
        text = str(value)
        if not text.isprintable() and any(0xD800 <= ord(one) < 0xE000 for one in text):
            raise SearchError(f"{where}: {text!r} holds half a character, which cannot be stored")
        return text
    if not _fits(value, kind):
        raise SearchError(f"{where}: {value!r} does not fit the column, which is of kind {kind}")
    text = str(value).strip()
    if kind == "boolean":
        return text.lower() == "true"
    return parse_time(text) if kind == "time" else (int(text) if kind == "integer" else float(text))


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as it is embedded, u8[H,W,3], and as an index keeps it. id: hash of the file's bytes."""

    id: str
    pixels: np.ndarray
    kept: bytes


def picture_id(data: bytes) -> str:
    """The id of a picture's file: 128 bits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def read_file(crop: Crop) -> bytes:
    """Raises BadImage if the file cannot be read, or its name not stored."""
    if not reading.is_utf8(str(crop.file)):
        raise BadImage(f"{crop.name()!a}: the file's name is not UTF-8: rename it")
    try:
        return images.read_file(crop.file, images.MAX_PIXELS)
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadImage(f"{crop.name()} cannot be read ({reason})") from error


def read_picture(data: bytes, size: images.Size, where: str) -> Picture:
    """Decodes a picture for a model of input `size`. Raises BadImage."""
    pixels = decode(data, where)
    return Picture(picture_id(data), images.resize(pixels, size), _kept(data, pixels))


def decode(data: bytes, where: str) -> np.ndarray:
    """Decodes a picture -> u8[H,W,3]. Raises BadImage for what is none, is cut, or has more than images.MAX_PIXELS."""
    try:
        return images.decode(data, max_pixels=images.MAX_PIXELS)
    except ImageError as error:
        raise BadImage(f"{where} is no readable picture: {error}") from error


def _kept(data: bytes, pixels: np.ndarray) -> bytes:
    """The file itself if it is small and browsers show it; otherwise a JPEG that is."""
    if len(data) <= KEPT_BYTES and data.startswith(_SHOWN):
        return data
    side, quality = 512, 92
    while True:
        scale = min(1.0, side / max(pixels.shape[:2]))
        size = max(1, round(pixels.shape[0] * scale)), max(1, round(pixels.shape[1] * scale))
        made = cv2.imencode(
            ".jpg", cv2.cvtColor(images.resize(pixels, size), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )[1].tobytes()
        if len(made) <= KEPT_BYTES:
            return made
        side, quality = max(64, side * 3 // 4), max(50, quality - 6)


def table_of(
    schema: pa.Schema, ids: Sequence[str], columns: Sequence[Mapping[str, Any]], kept: Sequence[bytes],
    vectors: Mapping[str, np.ndarray],
) -> pa.Table:  # fmt: skip
    """Entries as an Arrow table of the schema of an index. vectors: f16[n, width], by column."""
    arrays = []
    for field in schema:
        if field.name in vectors:
            flat = pa.array(np.ascontiguousarray(vectors[field.name], np.float16).ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        elif field.name == "_id":
            arrays.append(pa.array(ids, field.type))
        elif field.name == "_picture":
            arrays.append(pa.array(kept, field.type))
        else:
            arrays.append(pa.array([row.get(field.name) for row in columns], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
