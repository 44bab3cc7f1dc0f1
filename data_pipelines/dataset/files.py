"""The files of a built data set: where they lie, how the manifest and the record index are stored.

{data_dir}/{name}/{version}/                       finished: it was moved here in one rename
    {name}-{split}.array_record-00000-of-00012     shards
    features.json, dataset_info.json               TFDS's own description
    index-{split}.npz, manifest.json, plan.json    record index, what was built, what was asked for
{data_dir}/{name}/.{version}.building/             a build under way, or a killed one waiting to be resumed
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.dataset import schema
from data_pipelines.errors import UserError

MANIFEST = "manifest.json"
PLAN = "plan.json"
PEOPLE = "people.json"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class DatasetError(UserError, ValueError):
    """Reports a data set that cannot be built or read as it is; the message names the cause and the cure."""


def check_names(name: str, version: str, splits: Sequence[str]) -> None:
    """Raises DatasetError for names TFDS could not read back from the file names."""
    for what, value in [("data set", name), *[("split", split) for split in splits]]:
        if not _NAME.fullmatch(value):
            raise DatasetError(
                f"{what} name {value!r} must be lower-case letters, digits and _, beginning with a letter"
            )
    if not _VERSION.fullmatch(version):
        raise DatasetError(f"version {version!r} of {name} must have the form 1.0.0")


def version_key(version: str) -> tuple[int, ...] | None:
    """Returns the sort key of a version folder's name, None if it is not one."""
    match = _VERSION.fullmatch(version)
    return tuple(map(int, match.groups())) if match else None


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
    return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def index_name(split: str) -> str:
    return f"index-{split}.npz"


def building_folder(data_dir: str | os.PathLike[str], name: str, version: str) -> Path:
    return Path(data_dir, name, f".{version}.building")


def file_sha256(path: Path | epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(lines: Iterable[str]) -> str:
    """Returns the hash of some lines of text."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the errors of a full or failing disk (ArrayRecord's are RuntimeErrors) into a DatasetError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise DatasetError(
            f"cannot write {path} ({error}): make room on that disk, or build into another folder, and run the same "
            f"build again; finished shards are kept"
        ) from error


def load_manifest(folder: Path | epath.Path) -> schema.Manifest:
    """Reads manifest.json. Raises DatasetError if it is missing, unreadable or of another schema version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(
            f"{folder} has no {MANIFEST}: the build did not finish, or the file was lost. Run the same build command "
            f"again (finished shards are kept); if the folder stays, delete it first."
        )
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(f"{path} is not readable JSON ({error}): delete the folder and build it again") from error
    found = values.get("schema_version") if isinstance(values, dict) else None
    if found != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{folder} was written with schema version {found}, but this code reads {schema.SCHEMA_VERSION}: "
            f"delete the folder and build it again with this code (or use the code that wrote it)"
        )
    expected = {field.name for field in dataclasses.fields(schema.Manifest)}
    if set(values) != expected:
        raise DatasetError(
            f"{path} has missing or unknown keys {sorted(expected ^ set(values))}: delete the folder and build it again"
        )
    return schema.Manifest(**values)


class IndexColumns:
    """Collects the small fields of one shard's records and gives them as a `schema.Index`."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._rows: list[tuple[Any, ...]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, record: schema.Record, identity: int, content: bytes) -> None:
        """`content` is the sha256 of the image bytes."""
        self._rows.append(
            (
                identity,
                record.camera,
                record.clothes,
                record.modality,
                schema.pad_attributes(record.attributes),
                record.instruction_clothes,
                schema.pad_attributes(record.instruction_attributes),
                len(record.sentences),
                len(record.instruction_images),
                instruction_key(record),
                int.from_bytes(content[:8], "big"),
                record.file,
                self._shard,
                len(self._rows),
            )
        )

    def index(self) -> schema.Index:
        columns = list(zip(*self._rows, strict=True)) if self._rows else [()] * len(_DTYPES)
        arrays = [np.array(column, dtype) for column, dtype in zip(columns, _DTYPES.values(), strict=True)]
        for at, name in enumerate(_DTYPES):
            if name in ("attributes", "instruction_attributes"):
                arrays[at] = arrays[at].reshape(-1, schema.ATTRIBUTE_SLOTS)
        return schema.Index(*arrays)


_DTYPES: dict[str, Any] = {
    "identity": np.int32,
    "camera": np.int32,
    "clothes": np.int32,
    "modality": np.int8,
    "attributes": np.int16,
    "instruction_clothes": np.int32,
    "instruction_attributes": np.int16,
    "sentences": np.int16,
    "instruction_images": np.int16,
    "instruction_key": np.uint32,
    "content": np.uint64,
    "file": np.str_,
    "shard": np.int32,
    "offset": np.int32,
}
_FILE = "file_utf8"  # np.savez keeps the name "file" for itself


def instruction_key(record: schema.Record) -> int:
    """Returns crc32 of the record's first sentence, else of its first instruction image; 0 if it has neither."""
    if record.sentences:
        return zlib.crc32(record.sentences[0].encode()) or 1
    if record.instruction_images:
        return zlib.crc32(record.instruction_images[0]) or 1
    return 0


def join_index_files(path: Path, parts: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Writes the index of a split from the index files of its shards, in order; returns columns identity and camera.

    One column is held at a time: file names of millions of records would fill the memory. The bytes are those that
    `save_index` of the joined index writes. Raises as `load_index`.
    """
    kept: dict[str, np.ndarray] = {}

    def columns() -> Iterator[tuple[str, np.ndarray]]:
        for name in _stored_columns():
            column = np.concatenate([_read_columns(part, [name])[name] for part in parts])
            if name in ("identity", "camera"):
                kept[name] = column
            yield name, column

    _write_columns(path, columns())
    return kept["identity"], kept["camera"]


def save_index(path: Path, index: schema.Index) -> None:
    """Writes an Index; equal indexes give equal bytes. File names are stored as UTF-8, a quarter of NumPy's size."""
    names = np.strings.encode(index.file, "utf-8") if len(index) else np.zeros(0, np.bytes_)
    _write_columns(path, ((name, names if name == _FILE else getattr(index, name)) for name in _stored_columns()))


def _stored_columns() -> list[str]:
    return [*(name for name in _DTYPES if name != "file"), _FILE]


def _write_columns(path: Path, columns: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes an .npz file as np.savez does, but takes one column after the other."""
    temporary = path.with_name(f"tmp-{os.getpid()}-{path.name}")
    with open(temporary, "wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, column in columns:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, column, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_index(path: Path | epath.Path) -> schema.Index:
    """Raises DatasetError if the file is missing, damaged or lacks a column."""
    columns = _read_columns(path, _stored_columns())
    names = [name.decode() for name in columns.pop(_FILE).tolist()]  # a third of the time of np.strings.decode
    return schema.Index(**columns, file=np.array(names, np.str_))


def load_identities(path: Path | epath.Path) -> np.ndarray:
    """Returns column `identity` alone, i32[N]; file names are most of an index. Raises as `load_index`."""
    return _read_columns(path, ["identity"])["identity"]


def _read_columns(path: Path | epath.Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} is missing: delete the folder {path.parent} and build the data set again"
        ) from error
    except Exception as error:  # zipfile, zlib and NumPy each have their own errors for a damaged archive
        raise DatasetError(f"{path} is damaged ({error}): delete the folder and build the data set again") from error
