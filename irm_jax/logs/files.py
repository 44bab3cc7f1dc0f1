"""Files that logs are appended to: on local disks, on object storage, and in TensorBoard's event format."""

from __future__ import annotations

import functools
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from etils import epath

from data_pipelines import storage
from data_pipelines.files import write_atomically

SECONDS_BETWEEN_UPLOADS = 30.0


class LogFile(Protocol):
    """What log writers need of a binary file."""

    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_for_append(path: epath.Path) -> LogFile:
    """Opens a file to append to; on object storage, a `GrowingFile` with what the file holds already."""
    if storage.is_remote(path):
        return GrowingFile(path, path.read_bytes() if path.exists() else b"")
    return path.open("ab")


class GrowingFile:
    """A file on object storage, where nothing can be appended: it is kept in memory and written whole.

    `flush` writes it if `seconds` have passed since the last time, `close` always. A killed process loses what came
    after the last write; what is stored is always a whole file.
    """

    def __init__(
        self,
        path: epath.Path,
        content: bytes = b"",
        *,
        seconds: float = SECONDS_BETWEEN_UPLOADS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`content`: what the file holds already."""
        self.path, self._content, self._written = path, bytearray(content), len(content)
        self._seconds, self._clock, self._written_at = seconds, clock, -float("inf")
        self.closed = False

    def write(self, data: bytes, /) -> None:
        self._content += data

    def flush(self) -> None:
        if self._clock() - self._written_at >= self._seconds:
            self._upload()

    def close(self) -> None:
        if not self.closed:
            self._upload()
            self.closed = True

    def _upload(self) -> None:
        self._written_at = self._clock()
        if self._written < len(self._content):
            size = len(self._content)
            write_atomically(self.path, bytes(self._content))
            self._written = size


class EventFile:
    """A TensorBoard event file of scalars: TFRecords of `Event` messages, whose few fields are encoded here.

    (tensorboardX, which writes such files too, imports torch where that is installed: 2.5 s at every start.)
    Format: tensorflow/core/util/event.proto and tensorflow/core/lib/io/record_writer.h.
    """

    def __init__(self, folder: epath.Path, first_step: int) -> None:
        """Starts a new file, which tells TensorBoard to drop events of older files from `first_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        # The time has a resolution of a second, so the first step keeps two starts apart.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.from-{first_step}"
        self._file = open_for_append(folder / name)
        self._append(_text(3, "brain.Event:2"))  # file_version
        self._append(_integer(2, first_step) + _message(7, _integer(1, 1)))  # session_log: START

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the scalars of one step, as float32; NaN and infinities are kept."""
        summary = b"".join(_message(1, _text(1, name) + _float(2, value)) for name, value in values.items())
        self._append(_integer(2, step) + _message(5, summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _append(self, fields: bytes) -> None:
        event = _tag(1, 1) + struct.pack("<d", time.time()) + fields  # wall_time
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _tag(field: int, wire_type: int) -> bytes:
    """Of a protocol buffer's field. Wire types: 0 varint, 1 eight bytes, 2 bytes with their length, 5 four bytes."""
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(value)


def _float(field: int, value: float) -> bytes:
    with np.errstate(over="ignore"):  # beyond float32 is infinity
        return _tag(field, 5) + np.array(value).astype("<f4").tobytes()


def _message(field: int, content: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


@functools.cache
def _crc_table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(byte) for byte in range(256))


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C of a TFRecord."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
