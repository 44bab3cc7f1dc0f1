"""Builds a data set: shards written by several processes, resumable after a kill, moved into place in one rename."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from absl import logging

from data_pipelines import child_processes, storage, tasks, words
from data_pipelines.child_processes import ChildEnded
from data_pipelines.dataset import build_folder, parts, record_format, schema
from data_pipelines.dataset.folder import building_folder, check_names, sha256, writing
from data_pipelines.dataset.parts import Part
from data_pipelines.dataset.shard_writer import ShardJob, is_finished, write_shard
from data_pipelines.errors import BuildError, DatasetError
from data_pipelines.files import write_json
from data_pipelines.images import MAX_PIXELS, MOST_MAX_PIXELS

T = TypeVar("T")
OnBadImage = Literal["error", "skip"]

# Part of every request: raise it when the same input would give other bytes, so that half-built folders start over.
_WRITER_VERSION = 2  # since 2 an index has hashes of the records
_PROGRESS_SECONDS = 5.0
ROOMY = 2**21
"""Bytes that a record never has: where so large ones would fit, the space is not looked at."""
LOOKED_AT = 16
"""Records, each of another shard, from which the size of all is estimated."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec(Generic[T]):
    """What a data set holds; every field is part of the result.

    Attributes:
      name, version, task, namespace: see `schema.Manifest`; the data set goes to `OUT/name/version/`.
      people: all person names, in any order, repeats allowed.
      splits: split -> light descriptors of its records, in final order. A descriptor's repr must state its whole value,
        because it identifies the build: a killed build keeps its shards for the same descriptors only.
      load: makes the Record of one descriptor, in a worker process, so memory stays bounded by one record per worker.
      source: where the pictures come from, as plain JSON, with whatever else `load` depends on (a seed, a version).
      records_per_shard: records of every shard but the last of a split.
    """

    name: str
    version: str
    task: str
    namespace: str
    people: Sequence[str]
    splits: Mapping[str, Sequence[T]]
    load: Callable[[T], schema.Record]
    source: dict[str, Any]
    records_per_shard: int = 1024

    def check(self) -> None:
        """Raises DatasetError (ValueError for an unknown task) if no data set can be made of this."""
        check_names(self.name, self.version, list(self.splits))
        tasks.task(self.task)
        if self.records_per_shard < 1:
            raise DatasetError(f"records_per_shard is {self.records_per_shard}; it must be at least 1")
        if not self.people or not self.splits:
            missing = "people" if self.splits else "splits"
            raise DatasetError(f"{self.name}: no {missing} given, so there is nothing to build")
        for split, items in self.splits.items():
            if not len(items):
                raise DatasetError(f"{self.name}: split {split!r} is empty; check that the raw folder is complete")
        try:
            if json.loads(json.dumps(self.source)) != self.source:
                raise TypeError("it changes when written and read back (tuples, or keys that are no strings)")
        except TypeError as error:
            raise DatasetError(f"{self.name}: source must be plain JSON values: {error}") from error

    def request(self, people: Sequence[str]) -> dict[str, Any]:
        """Returns the content of plan.json, which identifies the build; `people`: sorted, without repeats."""
        return {
            build_folder.WRITER_VERSION: _WRITER_VERSION,
            "schema_version": schema.SCHEMA_VERSION,
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "namespace": self.namespace,
            "people": [len(people), sha256(people)],
            "splits": {split: [len(items), sha256(map(_describe, items))] for split, items in self.splits.items()},
            "records_per_shard": self.records_per_shard,
            "source": self.source,
        }

    def jobs(self, work: Path, people_sha256: str, options: BuildOptions) -> list[ShardJob]:
        """Returns the shards to write, split by split."""
        size = self.records_per_shard
        return [
            ShardJob(
                work=str(work),
                people_sha256=people_sha256,
                name=self.name,
                split=split,
                shard=shard,
                shards=-(-len(items) // size),
                first=first,
                items=items[first : first + size],
                load=self.load,
                skip_bad=options.on_bad_image == "skip",
                max_pixels=options.max_pixels,
            )
            for split, items in self.splits.items()
            for shard, first in enumerate(range(0, len(items), size))
        ]


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How a build runs; without bad images none of it changes the result.

    Attributes:
      workers: processes (None: all cores that this process may use; 1: this process alone).
      pool: of `worker_pool`, to use instead, which saves its start when several data sets are built.
      on_bad_image: "error" refuses the build and names each picture of the shard that cannot be read; "skip" leaves
        them out, counted in the log and listed in the manifest.
      max_pixels: most pixels of a picture by its header; a larger one is bad, too.
      overwrite: replaces a finished data set of the same version but other content, which is an error otherwise.
      progress: logs a line every few seconds.
      wait: where another process builds this version, waits for it and takes its result instead of refusing.
    """

    workers: int | None = None
    pool: child_processes.Pool | None = None
    on_bad_image: OnBadImage = "error"
    max_pixels: int = MAX_PIXELS
    overwrite: bool = False
    progress: bool = True
    wait: bool = False

    def __post_init__(self) -> None:
        if self.on_bad_image not in ("error", "skip"):
            raise DatasetError(f"on_bad_image is {self.on_bad_image!r}; it must be 'error' or 'skip'")
        if not 1 <= self.max_pixels <= MOST_MAX_PIXELS:
            raise DatasetError(f"max_pixels is {self.max_pixels}; it must lie between 1 and {MOST_MAX_PIXELS}")


def write_dataset(
    out_dir: str | os.PathLike[str], spec: DatasetSpec[Any], options: BuildOptions | None = None
) -> schema.Manifest:
    """Builds `{out_dir}/{name}/{version}/`, or finishes a build that was killed.

    A finished data set of the same request is returned as it is.

    Args:
      out_dir: a local data folder.
      spec: what the data set holds.
      options: how the build runs.

    Returns:
      The manifest.

    Raises:
      DatasetError: the message names the cause and the cure. Errors of `spec.load` come through with a note that names
        the record.
      LockedError: another process builds a version of it (without `options.wait`).
      BuildError: a worker process was killed.
    """
    options = options or BuildOptions()
    plan = _Plan.of(out_dir, spec)
    with build_folder.locked(plan.work, options.wait):
        manifest = build_folder.finished(plan.final, plan.request, options.on_bad_image, options.overwrite)
        if manifest is not None:
            shutil.rmtree(plan.work)
            with parts.adopted(plan.work, plan.request, (), options.wait):  # left by a kill after the last rename
                return manifest
        with writing(plan.work):
            build_folder.prepare(plan.work, plan.request, plan.people)
        jobs = spec.jobs(plan.work, sha256(plan.people), options)
        with parts.adopted(plan.work, plan.request, jobs, options.wait):
            _write_missing(spec.name, jobs, options)
            with writing(plan.work):
                manifest = build_folder.complete(plan.work / "data", jobs, plan.people, plan.request)
                build_folder.move_into_place(plan.work, plan.final)
    if options.progress:
        logging.info("%s %s: built in %s", spec.name, spec.version, plan.final)
    return manifest


def write_part(
    out_dir: str | os.PathLike[str], spec: DatasetSpec[Any], part: Part, options: BuildOptions | None = None
) -> schema.Manifest | None:
    """Builds one part of `write_dataset`'s result, or finishes one that was killed; see `parts`.

    Args:
      out_dir, spec, options: as of `write_dataset`, the same for all parts.
      part: which one.

    Returns:
      The manifest of the whole, if this was the last part or the whole is built already; None while other parts are
      missing in `out_dir`.

    Raises:
      LockedError: another process builds this part.
      DatasetError, BuildError: as of `write_dataset`.
    """
    options = options or BuildOptions()
    plan = _Plan.of(out_dir, spec)
    manifest = build_folder.finished(plan.final, plan.request, options.on_bad_image, options.overwrite)
    if manifest is not None:
        return manifest
    if part.missing(plan.work, plan.request):  # else a join was killed, which moved shards
        work = part.folder(plan.work)
        with build_folder.locked(work, options.wait):
            with writing(work):
                (work / parts.FINISHED).unlink(missing_ok=True)
                build_folder.prepare(work, plan.request, plan.people)
            _write_missing(spec.name, part.of(spec.jobs(work, sha256(plan.people), options)), options)
            with writing(work):
                write_json(work / parts.FINISHED, dataclasses.asdict(part))
    if part.missing(plan.work, plan.request):
        return None
    return write_dataset(out_dir, spec, dataclasses.replace(options, wait=True))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is written where: people, sorted; the request; the version's folder; its building folder."""

    people: list[str]
    request: dict[str, Any]
    final: Path
    work: Path

    @classmethod
    def of(cls, out_dir: str | os.PathLike[str], spec: DatasetSpec[Any]) -> _Plan:
        if not os.fspath(out_dir).strip():
            raise DatasetError("the folder for the data set is empty text: name one (a build: --out DIR)")
        if storage.is_remote(out_dir):
            raise DatasetError(
                f"data sets are built on a local disk, not in {os.fspath(out_dir)}: build there, then copy the folder "
                "(gcloud storage rsync -r SHARDS gs://BUCKET/SHARDS)"
            )
        spec.check()
        people = sorted(set(spec.people))
        work = building_folder(out_dir, spec.name, spec.version)
        return cls(people, spec.request(people), Path(out_dir, spec.name, spec.version), work)


def _write_missing(name: str, jobs: Sequence[ShardJob], options: BuildOptions) -> None:
    missing = [job for job in jobs if not is_finished(job)]
    if len(missing) < len(jobs):
        logging.info("%s: resuming, %d of %d shards are finished", name, len(jobs) - len(missing), len(jobs))
    if missing:
        _require_space(name, missing)
    _run(missing, options, _Progress(name, len(jobs), missing, options.progress))


def worker_pool(workers: int | None = None) -> child_processes.Pool:
    """Returns processes that build shards, a context manager; None: one per core this process may use."""
    return child_processes.Pool(workers or _cores(), "build process")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_stated(value: Any) -> bool:
    """Tells whether a value's repr states the value, not the address of some part of it."""
    if isinstance(value, dict):
        return all(map(_is_stated, [*value, *value.values()]))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_stated, value))
    if dataclasses.is_dataclass(value):
        return all(_is_stated(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr)
    # The default text of an object or a function shows its address.
    return isinstance(value, (str, bytes)) or not re.search(r"<.* at 0x[0-9a-f]+>", repr(value))


def _describe(item: Any) -> str:
    text = repr(item)
    # A file may be named "look at 0x7.jpg": only then it takes a look at the value's parts.
    if " at 0x" in text and not _is_stated(item):
        raise DatasetError(
            f"descriptor {text} shows its address, not its value, so a killed build could not tell which shards it may "
            f"keep; use a tuple, a string or a dataclass"
        )
    return text


def _require_space(name: str, jobs: Sequence[ShardJob]) -> None:
    """Raises DatasetError if the disk does not hold the shards to be written, estimated from some of the records.

    None is looked at where records of ROOMY bytes would fit.
    """
    work, records = Path(jobs[0].work), sum(len(job.items) for job in jobs)
    free = shutil.disk_usage(work).free
    if records * ROOMY <= free:
        return
    found = []
    for job in jobs[:: -(-len(jobs) // LOOKED_AT)]:
        with contextlib.suppress(Exception):  # the build names what is wrong with it
            found.append(len(record_format.serialize(job.load(job.items[len(job.items) // 2]), 0)))
    if found and (needed := records * sum(found) / len(found)) > free:
        raise DatasetError(
            f"the disk of {work.parent} does not hold {name}: {records:,} records of about "
            f"{words.size(sum(found) / len(found))} are {words.size(needed)}, and {words.size(free)} are free. Free "
            "space there, or build into another folder"
        )


def _run(jobs: Sequence[ShardJob], options: BuildOptions, progress: _Progress) -> None:
    """Writes the shards; each worker has one job at a time, so that descriptors are not all copied to the workers."""
    if not jobs:  # a build that stopped after its last shard
        return
    workers = min(options.workers or _cores(), len(jobs))
    if options.pool is None and workers <= 1:
        for job in jobs:
            progress.add(write_shard(job))
        return
    try:
        child_processes.packed(jobs[0].load).close()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"load cannot be sent to worker processes ({error}): use a module's function, or functools.partial of one, "
            f"or workers=1"
        ) from error
    with contextlib.ExitStack() as stack:
        pool = options.pool or stack.enter_context(worker_pool(workers))
        try:
            for records in pool.map(write_shard, jobs):
                progress.add(records)
        except ChildEnded as error:
            raise BuildError(
                f"{error}: run the build again, with fewer workers if it happens again; finished shards are kept"
            ) from error


class _Progress:
    """Logs a line every few seconds, and one at the end: shards, images/s, and the time left."""

    def __init__(self, name: str, shards: int, missing: Sequence[ShardJob], enabled: bool) -> None:
        """Starts the clock; `missing`: the jobs of the data set's `shards` that are still to be written."""
        self._name, self._shards, self._finished, self._enabled = name, shards, shards - len(missing), enabled
        self._images, self._written, self._start = sum(len(job.items) for job in missing), 0, time.monotonic()
        self._last = self._start

    def add(self, images: int) -> None:
        self._finished, self._written = self._finished + 1, self._written + images
        now = time.monotonic()
        if self._enabled and (now - self._last >= _PROGRESS_SECONDS or self._finished == self._shards):
            self._last = now
            rate = self._written / max(now - self._start, 1e-9)
            seconds = max(self._images - self._written, 0) / max(rate, 1e-9)
            left = "" if self._finished == self._shards else f", {words.duration(seconds)} left"
            logging.info("%s: %d of %d shards, %.0f images/s%s", self._name, self._finished, self._shards, rate, left)
