"""Millions of descriptors as one NumPy array: a Sequence that `write_dataset` can hash, cut and send to workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

_ROWS_AT_ONCE = 4096


class ArrayRows(Sequence[tuple[Any, ...]]):
    """The rows of a structured array, each made into a tuple of plain numbers when it is asked for.

    A slice is a view: it copies nothing here, and pickles no more than its own rows.
    """

    def __init__(self, rows: np.ndarray) -> None:
        """rows: structured array [N]."""
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> tuple[Any, ...]: ...

    @overload
    def __getitem__(self, at: slice) -> ArrayRows: ...

    def __getitem__(self, at: int | slice) -> tuple[Any, ...] | ArrayRows:
        return ArrayRows(self.rows[at]) if isinstance(at, slice) else self.rows[at].item()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for first in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield from self.rows[first : first + _ROWS_AT_ONCE].tolist()
