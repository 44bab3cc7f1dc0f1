"""The index of a split as a file: Parquet, one row per record; older folders have .npz files, which are read too.

Equal indexes give equal bytes (of one pyarrow version), so that a build that was killed and resumed ends in the same
files as one that was not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from data_pipelines import files
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError

_GROUP_ROWS = 1 << 16
"""Least rows of a row group of a joined index; parts are held in memory until they have as many."""
_NPZ_NAMES = {
    "sentence_count": "sentences",
    "instruction_image_count": "instruction_images",
    "file": "file_utf8",
}
"""Names of columns in .npz files, where they differ."""


def file_name(split: str) -> str:
    """Returns the name of a split's index file."""
    return f"index-{split}.parquet"


def _type(column: schema.Column) -> pa.DataType:
    value = pa.string() if column.dtype is np.str_ else pa.from_numpy_dtype(column.dtype)
    return pa.list_(pa.field("item", value, nullable=False), column.width) if column.width else value


_SCHEMA = pa.schema([pa.field(column.name, _type(column), nullable=False) for column in schema.COLUMNS.values()])


class IndexBuilder:
    """Collects the index rows of one shard."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, record: schema.Record, identity: int, stored: bytes) -> None:
        """Adds the next record of the shard; `stored`: what the shard holds of it."""
        values = {
            field.column.name: field.column.value(getattr(record, field.attribute))
            for field in schema.FIELDS
            if field.column
        }
        values["identity"] = identity
        values[schema.INSTRUCTION_KEY.name] = schema.INSTRUCTION_KEY.value(record)
        values[schema.CONTENT.name] = schema.short_hash(record.image)
        values[schema.RECORD_HASH.name] = schema.short_hash(stored)
        values[schema.SHARD.name], values[schema.OFFSET.name] = self._shard, len(self._rows)
        self._rows.append(tuple(values[name] for name in schema.COLUMNS))

    def index(self) -> schema.Index:
        """Returns the rows added so far."""
        columns = list(zip(*self._rows, strict=True)) if self._rows else [()] * len(schema.COLUMNS)
        return schema.Index(
            {column.name: column.array(values) for column, values in zip(schema.COLUMNS.values(), columns, strict=True)}
        )


def save(path: Path, index: schema.Index) -> None:
    """Writes an index in one step."""
    with _writer(path) as writer:
        writer.write_table(_table(index))


def join(path: Path, parts: Sequence[Path]) -> schema.Index:
    """Writes the index of a split from the indexes of its shards, in order; returns columns identity and camera.

    Only one row group is held in memory: the file names of millions of records would fill it.

    Raises:
      DatasetError: a part is missing or damaged.
    """
    kept: dict[str, list[np.ndarray]] = {"identity": [], "camera": []}
    waiting: list[pa.Table] = []
    with _writer(path) as writer:
        for part in parts:
            with _reading(part) as file:
                waiting.append(_read_table(file, list(schema.COLUMNS)))
            for name, columns in kept.items():
                columns.append(_array(waiting[-1][name], schema.COLUMNS[name]))
            if sum(map(len, waiting)) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    return schema.Index({name: np.concatenate(columns) for name, columns in kept.items()})


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[pq.ParquetWriter]:
    with (
        files.replacing(path) as scratch,
        pq.ParquetWriter(scratch, _SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


def _table(index: schema.Index) -> pa.Table:
    def column(stated: schema.Column) -> pa.Array:
        values = getattr(index, stated.name)
        if not stated.width:
            return pa.array(values, _SCHEMA.field(stated.name).type)
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, type=_SCHEMA.field(stated.name).type)

    return pa.table([column(stated) for stated in schema.COLUMNS.values()], schema=_SCHEMA)


def load(path: Path | epath.Path, names: Sequence[str] | None = None) -> schema.Index:
    """Reads the given columns of an index file (None: all that it has), Parquet or .npz by its suffix.

    Raises:
      DatasetError: the file is missing, damaged or lacks a column; the message says to build the data set again.
    """
    read = _read_npz if path.suffix == ".npz" else _read_parquet
    with _reading(path) as file:
        return schema.Index(read(file, names))


@contextlib.contextmanager
def _reading(path: Path | epath.Path) -> Iterator[BinaryIO]:
    """Opens an index file; any error of the block is raised as a DatasetError."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} is missing: delete the folder {path.parent} and build the data set again"
        ) from error
    except Exception as error:  # zipfile, zlib, NumPy and pyarrow each have their own errors for a damaged file
        raise DatasetError(
            f"{path} is damaged ({error}): delete the folder {path.parent} and build the data set again"
        ) from error


def split_file(folder: Path | epath.Path, split: str) -> Path | epath.Path:
    """Returns the index file of a split in a data set's folder."""
    path = folder / file_name(split)
    older = path.with_suffix(".npz")
    return older if not path.exists() and older.exists() else path


def load_hashes(path: Path | epath.Path) -> tuple[str, np.ndarray]:
    """Returns the name and values of the column that records are compared with: record_hash; of older files, content.

    Raises as `load`.
    """
    with _reading(path) as file:
        older = path.suffix == ".npz" or schema.RECORD_HASH.name not in pq.read_schema(file).names
    column = schema.CONTENT.name if older else schema.RECORD_HASH.name
    return column, getattr(load(path, (column,)), column)


def _read_table(file: BinaryIO, names: Sequence[str] | None) -> pa.Table:
    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        known = [name for name in schema.COLUMNS if name in parquet.schema_arrow.names]
        return parquet.read(columns=known if names is None else list(names), use_threads=False)


def _read_parquet(file: BinaryIO, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    table = _read_table(file, names)
    return {name: _array(table[name], schema.COLUMNS[name]) for name in names or table.column_names}


def _array(values: pa.ChunkedArray, column: schema.Column) -> np.ndarray:
    if column.dtype is np.str_:
        return np.array(values.to_pylist(), np.str_)
    if column.width:
        chunks = [np.asarray(chunk.flatten()) for chunk in values.chunks]
        return np.concatenate([np.zeros(0, column.dtype), *chunks]).reshape(-1, column.width)
    return np.array(values.to_numpy())  # a copy, which may be written to


def _read_npz(file: BinaryIO, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        if names is None:
            names = [name for name in schema.COLUMNS if _NPZ_NAMES.get(name, name) in archive]
        columns = {name: archive[_NPZ_NAMES.get(name, name)] for name in names}
    if "file" in columns:  # this takes a third of the time of np.strings.decode
        columns["file"] = np.array([name.decode() for name in columns["file"].tolist()], np.str_)
    return columns
