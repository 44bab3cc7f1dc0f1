"""The folder of a build under way: locked, resumed or cleared, completed, and moved into place in one rename.

.lock                            held by the process that builds; a kill frees it
.{version}.building/working      held by each process while it writes a shard
.{version}.building/scratch/     shards that are being written
.{version}.building/plan.json    the request of the build; shards are kept only for the same request
.{version}.building/people.json  person names, for the workers
.{version}.building/data/        becomes the version folder
.{version}.building/parts/       index rows and summary of each finished shard (see shard_writer)
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_pipelines import files
from data_pipelines.dataset import index, record_format, schema
from data_pipelines.dataset.folder import (
    MANIFEST,
    PEOPLE,
    REQUEST,
    content_hash,
    file_sha256,
    load_manifest,
    save_manifest,
    writing,
)
from data_pipelines.dataset.shard_writer import SCRATCH, WORKING, ShardJob, bad_images
from data_pipelines.errors import DatasetError
from data_pipelines.files import write_json

WRITER_VERSION = "writer_version"
"""Key of a request: version of the code, by which a half-built folder of another version starts over."""


@contextlib.contextmanager
def locked(work: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of the data set's folder, with the building folder made in it.

    Of a killed build no process is left: each ends with its parent, and this waits for it.

    Raises:
      LockedError: another process builds into the folder, and `wait` is off.
    """
    with files.lock(work.parent, wait=wait):
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            with open(work / WORKING, "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def finished(final: Path, request: dict[str, Any], on_bad_image: str, overwrite: bool) -> schema.Manifest | None:
    """Returns the manifest if the version folder holds the result of this request, None if it is to be built.

    Raises:
      DatasetError: it holds something else and `overwrite` is off, or pictures were skipped that now may not be.
    """
    if not final.exists():
        return None
    is_built = (final / MANIFEST).is_file()
    changed = _changed_keys(final / REQUEST, request) if is_built else [MANIFEST]
    if changed == [WRITER_VERSION]:  # its shards are the same; what was added to the index has a substitute
        changed = []
    if changed:
        if overwrite:
            return None
        raise DatasetError(
            f"{final} holds another build (different: {', '.join(changed)}): choose another version, delete it, "
            f"or build with overwrite"
        )
    manifest = load_manifest(final)
    bad = {split: value["skipped"] for split, value in manifest.splits.items() if value["skipped"]}
    if bad and on_bad_image == "error":
        raise bad_images(manifest.name, bad)
    _say_built(final)
    return manifest


@functools.lru_cache(maxsize=4096)
def _say_built(final: Path) -> None:
    """Logs it once per process: an own table is looked at for training and again for every evaluation."""
    logging.info("%s is already built", final)


def _changed_keys(path: Path, request: dict[str, Any]) -> list[str]:
    try:
        old = files.parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return [path.name]
    if not isinstance(old, dict):
        return [path.name]
    return sorted(key for key in {*old, *request} if old.get(key) != request.get(key))


def prepare(work: Path, request: dict[str, Any], people: Sequence[str]) -> None:
    """Keeps the finished shards of a killed build of the same request, and clears what is left of any other."""
    changed = _changed_keys(work / REQUEST, request)
    if changed:
        if (work / "parts").exists():
            logging.warning("%s is left from another build (different: %s): starting over", work, ", ".join(changed))
        for folder in (work / "parts", work / "data"):
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(work / SCRATCH, ignore_errors=True)
    for folder in (work / "parts", work / "data", work / SCRATCH):
        folder.mkdir(exist_ok=True)
        files.sweep(folder)
    write_json(work / PEOPLE, list(people))
    write_json(work / REQUEST, request)


def complete(folder: Path, jobs: Sequence[ShardJob], people: Sequence[str], request: dict[str, Any]) -> schema.Manifest:
    """Writes the indexes, TFDS's description, the request and last the manifest beside the finished shards."""
    splits: dict[str, dict[str, Any]] = {}
    for split, (pictures, _) in request["splits"].items():
        own = [job for job in jobs if job.split == split]
        summaries = [job.summary() for job in own]
        skipped = [item for summary in summaries for item in summary["skipped"]]
        if not sum(summary["records"] for summary in summaries):
            raise DatasetError(f"{request['name']}: no picture of split {split!r} decodes; is the raw folder complete?")
        if skipped:
            logging.warning("%s: %d of %d pictures of %s left out", request["name"], len(skipped), pictures, split)
        index_file = folder / index.file_name(split)
        rows = index.join(index_file, [job.index_file for job in own])
        splits[split] = {
            "records": len(rows),
            "identities": len(np.unique(rows.identity)),
            "cameras": len(np.unique(rows.camera[rows.camera >= 0])),
            "shards": [
                {"file": job.path.name, **{key: summary[key] for key in ("records", "bytes", "sha256")}}
                for job, summary in zip(own, summaries, strict=True)
            ],
            "index": {"bytes": index_file.stat().st_size, "sha256": file_sha256(index_file)},
            "skipped": skipped,
        }
        _note_deep_pictures(request["name"], split, summaries)
    _write_tfds_metadata(folder, request, splits)
    write_json(folder / REQUEST, request)
    manifest = schema.Manifest(
        name=request["name"],
        version=request["version"],
        schema_version=schema.SCHEMA_VERSION,
        task=request["task"],
        namespace=request["namespace"],
        people=list(people),
        splits=splits,
        source=request["source"],
        content_hash=content_hash(splits, people),
    )
    save_manifest(folder, manifest)
    return manifest


def _note_deep_pictures(name: str, split: str, summaries: Sequence[Mapping[str, Any]]) -> None:
    infrared, visible = (sum(summary[key] for summary in summaries) for key in ("deep_infrared", "deep_visible"))
    if infrared:
        words = "%s/%s: %d infrared pictures have more than 8 bits; each is scaled by its own range"
        logging.info(words, name, split, infrared)
    if visible:
        words = (
            "%s/%s: %d pictures that are not marked infrared have more than 8 bits; grey ones are scaled by their own "
            "range, which changes their brightness: mark them (modality), or convert them to 8 bits"
        )
        logging.warning(words, name, split, visible)


def _write_tfds_metadata(folder: Path, request: dict[str, Any], splits: Mapping[str, dict[str, Any]]) -> None:
    """Writes features.json and dataset_info.json, so that tfds.builder_from_directory reads the folder."""
    template = tfds.core.ShardedFileTemplate(folder, dataset_name=request["name"], filetype_suffix="array_record")
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["records"] for shard in value["shards"]],
            num_bytes=sum(shard["bytes"] for shard in value["shards"]),
            filename_template=template.replace(split=split),
        )
        for split, value in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=record_format.FEATURES,
        split_infos=infos,
        version=request["version"],
        filename_template=template,
        check_data=False,
    )


def move_into_place(work: Path, final: Path) -> None:
    """Renames the folder to its final name; after a kill at any line here the next run of the build succeeds."""
    shutil.rmtree(work / "replaced", ignore_errors=True)
    if final.exists():  # only with overwrite
        os.rename(final, work / "replaced")
    os.rename(work / "data", final)
    directory = os.open(final.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    shutil.rmtree(work)
