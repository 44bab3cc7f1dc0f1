"""Log files on object storage, where nothing can be appended to a file: it is kept in memory and written whole."""

from __future__ import annotations

import time
from collections.abc import Callable

from etils import epath
from tensorboardX import record_writer

SECONDS = 30.0


class GrowingFile:
    """A file that is written anew, with all that it holds, when it is flushed and `seconds` have passed, and at close.

    A process that is killed loses what came after the last writing; an object is there whole or not at all.
    """

    def __init__(
        self,
        path: epath.Path,
        content: bytes = b"",
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self._content, self._written = path, bytearray(content), len(content)
        self._seconds, self._clock, self._at = seconds, clock, -float("inf")
        self.closed = False

    @property
    def name(self) -> str:
        return str(self.path)

    def write(self, data: bytes | str) -> None:
        self._content += data.encode() if isinstance(data, str) else data

    def flush(self) -> None:
        if self._clock() - self._at >= self._seconds:
            self._write()

    def close(self) -> None:
        if not self.closed:
            self._write()
            self.closed = True

    def _write(self) -> None:
        self._at = self._clock()
        if self._written < len(self._content):
            size = len(self._content)
            self.path.write_bytes(bytes(self._content))
            self._written = size


class _Factory:
    """What TensorBoard's writer asks for the files of one kind of storage."""

    def open(self, path: str) -> GrowingFile:
        return GrowingFile(epath.Path(path))

    def directory_check(self, path: str) -> None:
        del path  # object storage has no folders


def use_for_tensorboard(kind: str) -> None:
    """From now on event files of `kind` ("gs") go through here; tensorboardX's own way uploads at each flush."""
    record_writer.register_writer_factory(kind, _Factory())
