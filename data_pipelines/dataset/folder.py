"""The files of a built data set: names, manifest, hashes.

{data_dir}/{name}/{version}/                       finished: it was moved here in one rename
    {name}-{split}.array_record-00000-of-00012     shards
    features.json, dataset_info.json               TFDS's own description
    index-{split}.parquet                          the small fields of every record (older folders: .npz)
    manifest.json, plan.json                       what was built, and the request of the build
{data_dir}/{name}/.lock                            held while one of its versions is built
{data_dir}/{name}/.{version}.parts/                 parts of a build (see parts)
{data_dir}/{name}/.{version}.building/             a build under way, or a killed one waiting to be resumed
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.files import parse_json, write_json

MANIFEST = "manifest.json"
REQUEST = "plan.json"
OWN_HASH = "sha256"
"""Key in manifest.json: hash of the other keys, as JSON with sorted keys on one line."""
PEOPLE = "people.json"
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_names(name: str, version: str, splits: Sequence[str]) -> None:
    """Raises DatasetError for names that TFDS cannot read back from the file names."""
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
    """Returns the file name of shard number `shard` of `shards`."""
    return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def building_folder(data_dir: str | os.PathLike[str], name: str, version: str) -> Path:
    """Returns the folder of a build under way."""
    return Path(data_dir, name, f".{version}.building")


def file_sha256(path: Path | epath.Path) -> str:
    """Returns the hash of a file."""
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
    """Raises the errors of a full or failing disk (ArrayRecord's are RuntimeErrors) as a DatasetError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise DatasetError(
            f"cannot write {path} ({error}): make room on that disk, or build into another folder, and run the same "
            f"build again; finished shards are kept"
        ) from error


def content_hash(splits: Mapping[str, Mapping[str, Any]], people: Sequence[str] | None) -> str:
    """Returns `Manifest.content_hash`: over the hashes of the shards, and of the people whom the shards number.

    Without `people` it is that of folders that were built before who they are counted.
    """
    shards = [f"{shard['file']} {shard['sha256']}" for split in sorted(splits) for shard in splits[split]["shards"]]
    return sha256(shards if people is None else [*shards, f"{PEOPLE} {sha256(people)}"])


def _own_hash(values: Mapping[str, Any]) -> str:
    return sha256([json.dumps(values, sort_keys=True)])


def save_manifest(folder: Path, manifest: schema.Manifest) -> None:
    """Writes manifest.json with a hash of itself."""
    values = dataclasses.asdict(manifest)
    write_json(folder / MANIFEST, {**values, OWN_HASH: _own_hash(values)})


def load_manifest(folder: Path | epath.Path) -> schema.Manifest:
    """Reads manifest.json. Raises DatasetError if it is missing, damaged or of another schema version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(
            f"{folder} has no {MANIFEST}: the build did not finish, or the file was lost. Run the same build command "
            f"again (finished shards are kept); if the folder stays, delete it first."
        )

    def damaged(reason: object) -> DatasetError:
        return DatasetError(f"{path} is damaged ({reason}): delete the folder {folder} and build the data set again")

    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise damaged(f"not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise damaged("it is no JSON object")
    found = values.get("schema_version")
    if found != schema.SCHEMA_VERSION:
        raise DatasetError(
            f"{folder} was written with schema version {found}, but this code reads {schema.SCHEMA_VERSION}: "
            f"delete the folder and build it again with this code (or use the code that wrote it)"
        )
    stated = values.pop(OWN_HASH, None)
    if stated is not None and stated != _own_hash(values):
        raise damaged("its content has another hash than when it was written")
    try:
        manifest = schema.Manifest.of(values)
        hashes = [content_hash(manifest.splits, people) for people in (manifest.people, None)]
    except (TypeError, ValueError, KeyError) as error:
        raise damaged(error) from error
    if manifest.content_hash not in hashes:
        raise damaged("its content_hash is not that of its shards and people")
    if stated is None:
        _say_older(str(folder))
    return manifest


@functools.lru_cache(maxsize=1024)
def _say_older(folder: str) -> None:
    logging.warning(
        "%s was built before manifest, index and records had hashes: of its contents only the pictures are verified. "
        "Build it again to have everything verified", folder,
    )  # fmt: skip
