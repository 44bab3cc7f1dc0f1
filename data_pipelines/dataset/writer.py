"""Builds a data set: shards written by several processes, resumable after a kill, moved into place in one rename."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, TypeVar

from absl import logging

from data_pipelines import storage, tasks
from data_pipelines.dataset import build_folder, schema
from data_pipelines.dataset.folder import building_folder, check_names, sha256, writing
from data_pipelines.dataset.shard_writer import ShardJob, is_finished, write_shard
from data_pipelines.errors import DatasetError

T = TypeVar("T")
OnBadImage = Literal["error", "skip"]

# Part of every plan: raise it when the same input would give other bytes, so that half-built folders start over.
_WRITER_VERSION = 1
_PROGRESS_SECONDS = 5.0


def write_dataset(
    out_dir: str | os.PathLike[str],
    *,
    name: str,
    version: str,
    task: str,
    namespace: str,
    people: Sequence[str],
    splits: Mapping[str, Sequence[T]],
    load: Callable[[T], schema.Record],
    source: dict[str, Any],
    records_per_shard: int = 1024,
    workers: int | None = None,
    pool: futures.Executor | None = None,
    on_bad_image: OnBadImage = "error",
    overwrite: bool = False,
    progress: bool = True,
    wait: bool = False,
) -> schema.Manifest:
    """Builds `{out_dir}/{name}/{version}/`, or finishes a build that was killed; returns its manifest.

    `splits` maps a split to light descriptors in final record order; `load` makes the Record of one descriptor, in a
    worker process, so memory stays bounded by one record a worker. A descriptor's repr must state its whole value:
    with `people`, `source` and the other arguments it identifies the build, so that shards of the same build are kept
    after a kill and a finished data set is returned as it is. What else `load` depends on (a seed, a renderer's
    version) belongs in `source`, which must be JSON. `people`: all person names, stored sorted without repeats.

    `workers`: processes (None: all cores this process may use; 1: this process alone). `pool`: an executor of
    `worker_pool` to use instead, which saves its start when several data sets are built in a row.
    `on_bad_image`: "error" refuses the build and names each picture of the shard that does not decode; "skip" leaves
    them out, counted in the log and listed in the manifest. `overwrite` replaces a finished data set of the same
    version but other content, which is an error otherwise. `wait`: where another process builds this version, wait for
    it (and find its work) instead of refusing.

    Raises DatasetError (cause and cure in the message); whatever `load` raises comes through with the record named.
    """
    if storage.is_remote(out_dir):
        raise DatasetError(
            f"data sets are built on a local disk, not in {os.fspath(out_dir)}: build there, then copy the folder "
            "(gcloud storage rsync -r SHARDS gs://BUCKET/SHARDS)"
        )
    check_names(name, version, list(splits))
    people = sorted(set(people))
    _check_arguments(name, task, people, splits, source, records_per_shard, on_bad_image)
    people_sha256 = sha256(people)
    plan = {
        "writer_version": _WRITER_VERSION,
        "schema_version": schema.SCHEMA_VERSION,
        "name": name,
        "version": version,
        "task": task,
        "namespace": namespace,
        "people": [len(people), people_sha256],
        "splits": {split: [len(items), sha256(map(_describe, items))] for split, items in splits.items()},
        "records_per_shard": records_per_shard,
        "source": source,
    }
    final = Path(out_dir, name, version)
    work = building_folder(out_dir, name, version)
    with build_folder.locked(work, wait):
        manifest = build_folder.finished(final, plan, on_bad_image, overwrite)
        if manifest is not None:
            build_folder.remove(work)
            return manifest
        with writing(work):
            build_folder.prepare(work, plan, people)
        jobs = [
            ShardJob(
                work=str(work),
                people_sha256=people_sha256,
                name=name,
                split=split,
                shard=shard,
                shards=-(-len(items) // records_per_shard),
                first=first,
                items=items[first : first + records_per_shard],
                load=load,
                skip_bad=on_bad_image == "skip",
            )
            for split, items in splits.items()
            for shard, first in enumerate(range(0, len(items), records_per_shard))
        ]
        missing = [job for job in jobs if not is_finished(job)]
        if len(missing) < len(jobs):
            logging.info("%s: resuming, %d of %d shards are finished", name, len(jobs) - len(missing), len(jobs))
        images = sum(len(job.items) for job in missing)
        _run(missing, workers, pool, _Progress(name, len(jobs), len(jobs) - len(missing), images, progress))
        with writing(work):
            manifest = build_folder.complete(work / "data", jobs, people, plan)
            build_folder.move_into_place(work, final)
    if progress:
        logging.info("%s %s: built in %s", name, version, final)
    return manifest


def worker_pool(workers: int | None = None) -> futures.ProcessPoolExecutor:
    """Returns an executor (a context manager) whose processes build shards; None: one a core this process may use."""
    # Not fork: the caller may run JAX's or OpenCV's threads, which a forked child inherits half-dead.
    context = multiprocessing.get_context("forkserver")
    return futures.ProcessPoolExecutor(workers or _cores(), mp_context=context, initializer=_die_with_parent)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _die_with_parent() -> None:
    """Ends this worker when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _check_arguments(
    name: str,
    task: str,
    people: Sequence[str],
    splits: Mapping[str, Sequence[Any]],
    source: Any,
    per_shard: int,
    on_bad_image: str,
) -> None:
    tasks.task(task)
    if on_bad_image not in ("error", "skip"):
        raise DatasetError(f"on_bad_image is {on_bad_image!r}; it must be 'error' or 'skip'")
    if per_shard < 1:
        raise DatasetError(f"records_per_shard is {per_shard}; it must be at least 1")
    if not people or not splits:
        raise DatasetError(f"{name}: no {'people' if splits else 'splits'} given, so there is nothing to build")
    for split, items in splits.items():
        if not len(items):
            raise DatasetError(f"{name}: split {split!r} is empty; check that the raw folder is complete")
    try:
        if json.loads(json.dumps(source)) != source:
            raise TypeError("it changes when written and read back (tuples, or keys that are no strings)")
    except TypeError as error:
        raise DatasetError(f"{name}: source must be plain JSON values: {error}") from error


def _describe(item: Any) -> str:
    text = repr(item)
    if " at 0x" in text:
        raise DatasetError(
            f"descriptor {text} shows its address, not its value, so a killed build could not tell which shards it may "
            f"keep; use a tuple, a string or a dataclass"
        )
    return text


def _run(jobs: Sequence[ShardJob], workers: int | None, pool: futures.Executor | None, progress: _Progress) -> None:
    """Writes the shards; few jobs are in flight at once, so that descriptors are not all copied to the workers."""
    if not jobs:  # a build that stopped after its last shard
        return
    workers = min(workers or _cores(), len(jobs))
    if pool is None and workers <= 1:
        for job in jobs:
            progress.add(write_shard(job))
        return
    try:
        pickle.dumps(jobs[0].load)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"load cannot be sent to worker processes ({error}): use a module's function, or functools.partial of one, "
            f"or workers=1"
        ) from error
    with contextlib.ExitStack() as stack:
        executor = pool or stack.enter_context(worker_pool(workers))
        try:
            for records in _in_parallel(jobs, executor, in_flight=2 * workers):
                progress.add(records)
        except BrokenProcessPool as error:
            raise DatasetError(
                "a worker process was killed (out of memory?): run the build again with fewer workers; finished shards "
                "are kept"
            ) from error


def _in_parallel(jobs: Sequence[ShardJob], executor: futures.Executor, in_flight: int) -> Iterator[int]:
    waiting = iter(jobs)
    running: set[futures.Future[int]] = set()
    try:
        while True:
            for job in waiting:
                running.add(executor.submit(write_shard, job))
                if len(running) == in_flight:
                    break
            if not running:
                return
            done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:  # after an error: the shards under way are finished, so that the next run keeps them
        for future in running:
            future.cancel()
        futures.wait(running)


class _Progress:
    """A log line every few seconds, and one at the end: shards, images/s, and the time left."""

    def __init__(self, name: str, shards: int, finished: int, images: int, enabled: bool) -> None:
        """`images`: how many are still to be written."""
        self._name, self._shards, self._finished, self._enabled = name, shards, finished, enabled
        self._images, self._written, self._start = images, 0, time.monotonic()
        self._last = self._start

    def add(self, images: int) -> None:
        self._finished, self._written = self._finished + 1, self._written + images
        now = time.monotonic()
        if self._enabled and (now - self._last >= _PROGRESS_SECONDS or self._finished == self._shards):
            self._last = now
            rate = self._written / max(now - self._start, 1e-9)
            left = "" if self._finished == self._shards else f", {_duration(self._images - self._written, rate)} left"
            logging.info("%s: %d of %d shards, %.0f images/s%s", self._name, self._finished, self._shards, rate, left)


def _duration(images: int, rate: float) -> str:
    """Returns the time that `images` take at `rate` images/s, as a person says it: 50 s, 12 min, 3 h 20 min."""
    seconds = max(images, 0) / max(rate, 1e-9)
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
