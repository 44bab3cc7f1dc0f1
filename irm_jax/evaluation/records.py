"""What is known of queries and gallery images, as one table of typed columns: rules and controls read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt32, UInt64

from data_pipelines.dataset.schema import ATTRIBUTE_SLOTS

UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Records:
    """Columns of n records; -1 is unknown. People and cameras are numbered over all test sets.

    identity: the person. camera: unknown cameras match nothing. camera_number: the camera's number within its data
    set, from 0. clothes: the outfit, numbered per person. modality: `schema.VISIBLE` | `schema.INFRARED`.
    dataset: the test set. source: the namespace of the image. distractor: in the gallery as a distractor only.
    order: rank of the record by person name, camera and file name. attributes: slots that the image shows.
    instruction_clothes, instruction_attributes: outfit and slots that the instruction names. instruction_outfit:
    slots of the outfit that the instruction asks for, named or not. instruction_key: number of the instruction, over
    all test sets. content: fingerprint of the image file.
    """

    identity: Int32[np.ndarray, " n"]
    camera: Int32[np.ndarray, " n"]
    camera_number: Int32[np.ndarray, " n"]
    clothes: Int32[np.ndarray, " n"]
    modality: Int32[np.ndarray, " n"]
    dataset: Int32[np.ndarray, " n"]
    source: Int32[np.ndarray, " n"]
    distractor: Bool[np.ndarray, " n"]
    order: Int64[np.ndarray, " n"]
    attributes: Int32[np.ndarray, "n slots"]
    instruction_clothes: Int32[np.ndarray, " n"]
    instruction_attributes: Int32[np.ndarray, "n slots"]
    instruction_outfit: Int32[np.ndarray, "n slots"]
    instruction_key: UInt32[np.ndarray, " n"]
    content: UInt64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        for name in NAMES:
            if len(self[name]) != len(self):
                raise ValueError(f"column {name} has {len(self[name])} entries for {len(self)} records")

    def __len__(self) -> int:
        return len(self.identity)

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of that name."""
        return getattr(self, name)

    @classmethod
    def of(cls, **columns: Any) -> Records:
        """Records with the given columns, converted to their types; the others are unknown, keys and order distinct."""
        if unknown := sorted(columns.keys() - set(NAMES)):
            raise ValueError(f"records have no column {', '.join(unknown)}; they have {', '.join(NAMES)}")
        given = {name: np.asarray(column).astype(_DTYPES[name]) for name, column in columns.items()}
        count = len(next(iter(given.values())))
        width = next((column.shape[1] for column in given.values() if column.ndim > 1), ATTRIBUTE_SLOTS)
        filled = {
            name: np.full((count, width) if name in _SLOTS else count, UNKNOWN, np.int32) for name in _DTYPES
        } | {
            "distractor": np.zeros(count, bool), "dataset": np.zeros(count, np.int32),
            "source": np.zeros(count, np.int32), "order": np.arange(count),
            "instruction_key": np.zeros(count, np.uint32), "content": np.arange(count, dtype=np.uint64),
        }  # fmt: skip
        return cls(**(filled | given))

    @classmethod
    def concat(cls, parts: Sequence[Records]) -> Records:
        """The records of several parts, one part after the other."""
        return parts[0] if len(parts) == 1 else cls(**{n: np.concatenate([part[n] for part in parts]) for n in NAMES})

    def take(self, records: np.ndarray) -> Records:
        """The records of the given indices i[m], in that order."""
        return Records(**{name: self[name][records] for name in NAMES})

    def replace(self, **columns: np.ndarray) -> Records:
        """The same records with other columns."""
        return dataclasses.replace(self, **columns)


NAMES = tuple(field.name for field in dataclasses.fields(Records))
_DTYPES: dict[str, Any] = dict.fromkeys(NAMES, np.int32) | {
    "distractor": bool, "order": np.int64, "instruction_key": np.uint32, "content": np.uint64,
}  # fmt: skip
_SLOTS = ("attributes", "instruction_attributes", "instruction_outfit")


class Subset:
    """Some records, read column by column: a column is gathered when it is first read, and kept."""

    def __init__(self, records: Records, index: np.ndarray) -> None:
        self._records, self.index = records, index
        self._whole = len(index) == len(records) and bool((np.diff(index) == 1).all())
        self._gathered: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, name: str) -> np.ndarray:
        if self._whole:
            return self._records[name]
        if name not in self._gathered:
            self._gathered[name] = self._records[name][self.index]
        return self._gathered[name]
