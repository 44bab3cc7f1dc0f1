"""Elements made ahead of their use by threads or processes, in order, through Grain."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

import cv2
import grain
from absl import flags

from data_pipelines.errors import UserError

T = TypeVar("T")
_MIN_SHARED_BYTES = 1 << 16  # smaller arrays travel faster through the workers' queue than as a shared-memory file each


class StreamError(UserError, ValueError):
    """Reports batches that cannot be read ahead as configured; the message names the cause and the cure."""


@dataclasses.dataclass(frozen=True)
class ReadAhead:
    """Who makes elements ahead of their use, and how many; it changes no element.

    Attributes:
      workers: processes; 0: threads of this process.
      threads: threads of each process; 0 of both: elements are made on demand.
      prefetch: elements that each process keeps ready.
    """

    workers: int = 0
    threads: int = 2
    prefetch: int = 2

    def __post_init__(self) -> None:
        if self.workers < 0 or self.threads < 0 or self.prefetch < 1:
            raise ValueError(
                f"workers = {self.workers} and threads = {self.threads} must be >= 0, prefetch = {self.prefetch} >= 1"
            )


def _start_worker(index: int, count: int) -> None:
    """Runs first in each worker process: no accelerator, no thread pools inside it."""
    del index, count
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # the main module, which a spawned process imports again, may have loaded it already
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    cv2.setNumThreads(1)


def _check_shared_memory(element_bytes: int, ahead: ReadAhead, folder: str = "/dev/shm") -> None:
    """Raises StreamError if the batches that workers hold ready exceed shared memory: they would die by SIGBUS."""
    # In the queue, waiting for a place in it, and with the consumer.
    needed = element_bytes * ahead.workers * (ahead.prefetch + 2)
    free = shutil.disk_usage(folder).free if os.path.isdir(folder) else needed
    if needed > free:
        raise StreamError(
            f"{ahead.workers} workers with prefetch = {ahead.prefetch} keep up to {needed / 2**20:,.0f} MiB in "
            f"{folder}, which has {free / 2**20:,.0f} MiB free; lower workers, prefetch or the batch, use threads "
            "(workers = 0), or enlarge it (containers: --shm-size)"
        )


class Stream(Generic[T], Iterator[T]):
    """Iterator over `make(start), make(start + 1), ...` in order, made ahead by threads or processes; close it.

    An exception of `make` is raised by `next`.
    """

    def __init__(
        self, make: Callable[[int], T], start: int, stop: int, ahead: ReadAhead, element_bytes: int = 0
    ) -> None:
        """Starts to make elements.

        Args:
          make: number -> element; picklable if there are workers.
          start, stop: the numbers.
          ahead: who makes them.
          element_bytes: size of an element, to compare with the shared memory that workers use.

        Raises:
          StreamError: the shared memory is too small.
        """
        _check_shared_memory(element_bytes, ahead)
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which only absl.app.run parses
            flags.FLAGS.mark_as_parsed()
        buffered = max(ahead.prefetch, ahead.threads) if ahead.threads else 0
        elements = grain.MapDataset.range(start, stop).map(make)
        dataset = elements.to_iter_dataset(grain.ReadOptions(num_threads=ahead.threads, prefetch_buffer_size=buffered))
        if ahead.workers:
            options = grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED_BYTES)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, options).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=ahead.workers, per_worker_buffer_size=ahead.prefetch),
                worker_init_fn=_start_worker,
            )
        self._iterator = iter(dataset)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        return next(self._iterator)

    def close(self) -> None:
        """Stops threads and processes and frees shared memory. Arrays handed out stay valid."""
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
