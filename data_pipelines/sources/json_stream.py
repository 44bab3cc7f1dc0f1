"""Reads a JSON list of objects too large for memory, one object at a time, with its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipelines.errors import DatasetError

_CHUNK = 1 << 20
_LONGEST = 1 << 24


def objects(path: Path, chunk: int = _CHUNK) -> Iterator[tuple[int, bytes, Any]]:
    """Yields (offset, bytes, value) of every object of the list; the bytes alone are valid JSON, in UTF-8.

    Text in `value` is decoded as Latin-1, byte for byte: `text(value["file_path"])` is the real text. `chunk` bytes are
    held at a time, or twice the longest object.

    Raises:
      DatasetError: the file is no JSON list of objects, or one is longer than 16 MiB; the message names the byte.
    """
    with open(path, "rb") as file:
        window = _Window(path, file, chunk)
        if window.mark() != "[":
            raise window.broken("it does not begin with [")
        window.at += 1
        if window.mark() == "]":
            return
        while True:
            yield window.value()
            mark = window.mark()
            if mark == "]":
                return
            if mark != ",":
                raise window.broken("',' or ']' expected" if mark else "the list does not end")
            window.at += 1


def text(value: str) -> str:
    """Returns the text of a value that `objects` gave; escaped characters are right already."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


class _Window:
    """The part of the file in memory: `buffer` begins at byte `start` and is consumed up to `at`.

    It is decoded as Latin-1, with one character per byte, so that positions in the text are positions in the file.
    """

    def __init__(self, path: Path, file: BinaryIO, chunk: int) -> None:
        self._path, self._file, self._chunk = path, file, chunk
        self._decoder = json.JSONDecoder()
        self.buffer, self.start, self.at, self.ended = "", 0, 0, False

    def broken(self, reason: str) -> DatasetError:
        place = self.start + self.at
        return DatasetError(
            f"{self._path}, byte {place}: this is no JSON list of objects ({reason}): get the file again"
        )

    def mark(self) -> str:
        """Returns the next character that is no space without consuming it; "" at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                return ""
            self._more()

    def value(self) -> tuple[int, bytes, Any]:
        """Consumes an object; returns its offset, its bytes and its value."""
        if self.mark() != "{":  # a number could go on in what is not read yet; an object ends with its bracket
            raise self.broken("an object expected" if self.buffer[self.at :] else "the list does not end")
        while True:
            try:
                value, end = self._decoder.raw_decode(self.buffer, self.at)
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits, lists nested 5,000 deep
                if not isinstance(error, json.JSONDecodeError) or self.ended or len(self.buffer) - self.at > _LONGEST:
                    raise self.broken(str(error)) from error
            else:
                place, data = self.start + self.at, self.buffer[self.at : end].encode("latin-1")
                self.at = end
                return place, data, value
            self._more()

    def _more(self) -> None:
        kept = self.buffer[self.at :]
        read = self._file.read(max(self._chunk, len(kept)))  # twice as much when an object is longer than a chunk
        self.buffer, self.start, self.at = kept + read.decode("latin-1"), self.start + self.at, 0
        self.ended = not read
