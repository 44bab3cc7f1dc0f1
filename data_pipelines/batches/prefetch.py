"""Elements made ahead of their use, in order: by threads through Grain, or by reader processes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any, Generic, Self, TypeVar

import cv2
from absl import flags

from data_pipelines import child_processes
from data_pipelines.child_processes import Channel, Child, ChildEnded
from data_pipelines.errors import RetryError, UserError

T = TypeVar("T")


class StreamError(UserError, ValueError):
    """Reports batches that cannot be read ahead as configured; the message names the cause and the cure."""


class ReaderLost(RetryError, RuntimeError):
    """Reports a reader process that ended before its work was done; what was read until then is right."""


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

    @property
    def held(self) -> int:
        """How many elements exist at a time, at most."""
        if not self.workers:
            return max(self.prefetch, self.threads) + 2 if self.threads else 2
        # Ready, being made, and one that is sent while its arrays still exist; with the consumer: in use and the next.
        return self.workers * (self.prefetch + max(self.threads, 1) + 1) + 2


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that this process may still take: of the machine and of its control groups. None: unknown."""
    try:
        lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
        free = [int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"]
    except (OSError, ValueError, IndexError):
        return None
    for folder in _control_groups(root):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                most, now = int((folder / limit).read_text()), int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # "max": no limit
                continue
            free.append(most - now + int(stat.get("inactive_file", 0)))  # cached files make room
    return max(min(free), 0) if free else None


def _control_groups(root: Path) -> Iterator[Path]:
    """Yields the folders of this process's memory control group and of those that it is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = top / name.lstrip("/")
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent
        yield top


def _check_memory(element_bytes: int, ahead: ReadAhead) -> None:
    """Raises StreamError if the elements that exist at a time exceed the memory: a process would be killed."""
    needed, free = element_bytes * ahead.held, available_memory()
    if free is not None and needed > free:
        raise StreamError(
            f"batches read ahead (workers = {ahead.workers}, threads = {ahead.threads}, prefetch = {ahead.prefetch}) "
            f"take up to {needed / 2**20:,.0f} MiB, {ahead.held} of {element_bytes / 2**20:,.1f} MiB; "
            f"{free / 2**20:,.0f} MiB of memory are available: lower workers, prefetch, threads or the batch"
        )


class Stream(Generic[T], Iterator[T]):
    """Iterator over `make(start), make(start + 1), ...` in order, made ahead by threads or processes; close it.

    An exception of `make` is raised by `next`, after the elements before it.
    """

    def __init__(
        self, make: Callable[[int], T], start: int, stop: int, ahead: ReadAhead, element_bytes: int = 0
    ) -> None:
        """Starts to make elements.

        Args:
          make: number -> element; picklable if there are workers.
          start, stop: the numbers.
          ahead: who makes them.
          element_bytes: size of an element, to compare with the memory that is available.

        Raises:
          StreamError: the memory is too small.
        """
        _check_memory(element_bytes, ahead)
        numbers = range(start, max(start, stop))
        self._iterator: Any = _Readers(make, numbers, ahead) if ahead.workers else _in_threads(make, numbers, ahead)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Raises ReaderLost if a reader process ended."""
        return next(self._iterator)

    def close(self) -> None:
        """Stops threads and processes. Arrays handed out stay valid."""
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _in_threads(make: Callable[[int], T], numbers: range, ahead: ReadAhead) -> Any:
    """Returns an iterator with `close`."""
    import grain  # not in readers: it imports JAX, half a second and 150 MB for each of them

    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which only absl.app.run parses
        flags.FLAGS.mark_as_parsed()
    buffered = max(ahead.prefetch, ahead.threads) if ahead.threads else 0
    elements = grain.MapDataset.range(numbers.start, numbers.stop).map(make)
    return iter(elements.to_iter_dataset(grain.ReadOptions(num_threads=ahead.threads, prefetch_buffer_size=buffered)))


class _Readers(Generic[T]):
    """Elements of reader processes, which take turns: with n readers each makes every n-th element."""

    def __init__(self, make: Callable[[int], T], numbers: range, ahead: ReadAhead) -> None:
        self._numbers, self._taken = numbers, 0
        self._readers: list[Child] = []
        try:
            with child_processes.packed(functools.partial(_serve, make, ahead)) as serve:
                for place in range(min(ahead.workers, len(numbers))):
                    reader = Child(serve, f"reader process {place} of {ahead.workers}")
                    self._readers.append(reader)
                    with contextlib.suppress(ChildEnded):  # `next` says so
                        reader.send(numbers[place :: ahead.workers])
        except BaseException:
            self.close()
            raise

    def __next__(self) -> T:
        if self._taken == len(self._numbers) or not self._readers:
            raise StopIteration
        reader = self._readers[self._taken % len(self._readers)]
        try:
            child_processes.wait([reader], watched=self._readers)
            made, element = reader.receive()
            if made:
                reader.send(None)  # it may make one more
        except ChildEnded as error:
            self.close()
            raise ReaderLost(
                f"{error}. Run the same command again; if it happens again, lower config.data.workers or the batch"
            ) from error
        if not made:
            self.close()
            raise element
        self._taken += 1
        return element

    def close(self) -> None:
        for reader in self._readers:
            reader.end()
        self._readers = []


def _serve(make: Callable[[int], Any], ahead: ReadAhead, channel: Channel) -> None:
    """Sends (True, element) for each of the numbers that come first, or (False, error) and no more; runs in a reader.

    It is `prefetch` elements ahead of the consumer, who sends something for each that it takes.
    """
    cv2.setNumThreads(1)
    free = Semaphore(ahead.prefetch)
    numbers = channel.receive()
    Thread(target=_send_all, args=(make, numbers, ahead.threads, free, channel), daemon=True).start()
    while True:
        channel.receive()
        free.release()


def _send_all(make: Callable[[int], Any], numbers: range, threads: int, free: Semaphore, channel: Channel) -> None:
    try:
        for element in _ordered(make, numbers, threads):
            free.acquire()
            channel.send((True, element))
            del element
    except ConnectionError:
        pass  # nobody needs more
    except BaseException as error:
        try:
            channel.send((False, child_processes.portable(error)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def _ordered(make: Callable[[int], T], numbers: range, threads: int) -> Iterator[T]:
    """Yields the elements in order; as many are being made as there are threads."""
    if not threads:
        yield from map(make, numbers)
        return
    with futures.ThreadPoolExecutor(threads) as pool:
        waiting: deque[futures.Future[T]] = deque()
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
