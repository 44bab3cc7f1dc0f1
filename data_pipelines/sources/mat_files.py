"""Reads MATLAB files: up to version 7 with SciPy, and version 7.3, which is HDF5, with h5py.

Both libraries are in the extra `mat`; they are imported only for a data set that needs them.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipelines.errors import DatasetError, pip_line

_INSTALL = f"install the extra that reads MATLAB's files: {pip_line('mat')}"


def load_mat(path: Path) -> dict[str, Any]:
    """Returns the variables of a .mat file up to version 7; structs are dicts, and arrays lose axes of length 1."""
    try:
        from scipy import io
    except ImportError as error:
        raise DatasetError(f"{path} needs SciPy: {_INSTALL}") from error
    try:
        return io.loadmat(str(path), simplify_cells=True)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: get it again, or correct the path") from error
    except Exception as error:  # SciPy has no common error for a file of another kind, or a damaged one
        raise DatasetError(f"{path} is no readable .mat file up to version 7 ({error}): get it again") from error


@functools.lru_cache(maxsize=1)
def _hdf5(path: str, _: int) -> Any:
    """Returns the file, kept open in each process: a picture is one small read. `_` is its time of change."""
    try:
        import h5py
    except ImportError as error:
        raise DatasetError(f"{path} needs h5py: {_INSTALL}") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path} is no readable HDF5 file ({error}): get it again") from error


class PictureCells:
    """A variable of a 7.3 .mat file: an N x 1 cell array of P x K cell arrays of H x W x 3 pictures, u8, RGB.

    HDF5 holds MATLAB's arrays with their axes reversed: (1, N), (K, P), (3, W, H).
    """

    def __init__(self, path: Path, variable: str) -> None:
        """Raises DatasetError if h5py is missing, the file unreadable, or the variable not in it."""
        self._path = path
        self._file = _hdf5(str(path), os.stat(path).st_mtime_ns)
        if variable not in self._file:
            raise DatasetError(f"{path} has no variable {variable!r}: it is not the file expected here, get it again")
        self._cells = self._file[variable]

    def _picture(self, cell: int, row: int, column: int) -> Any:
        try:
            picture = self._file[self._file[self._cells[0, cell]][column, row]]
        except (IndexError, ValueError, KeyError) as error:
            raise DatasetError(
                f"{self._path} has no picture {column + 1} of person {row + 1} in cell {cell + 1}: it and the protocol "
                f"file do not belong together, get both again"
            ) from error
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise DatasetError(f"{self._path}: cell {cell + 1}, person {row + 1}, picture {column + 1} is empty")
        return picture

    def values(self, cell: int, row: int, column: int) -> int:
        """Returns the number of values of a picture without reading it; cell, row and column count from 0."""
        return int(self._picture(cell, row, column).size)

    def png(self, cell: int, row: int, column: int) -> bytes:
        """Returns a picture as PNG, which keeps every value."""
        pixels = np.ascontiguousarray(np.asarray(self._picture(cell, row, column), np.uint8).T[..., ::-1])
        return cv2.imencode(".png", pixels)[1].tobytes()
