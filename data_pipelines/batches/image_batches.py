"""Batches of stored images for evaluation: resized only, in a given order, as host NumPy arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_pipelines.batches.make import Reader
from data_pipelines.batches.prefetch import ReadAhead, Stream
from data_pipelines.errors import DatasetError
from data_pipelines.images import MAX_PIXELS, Size, decode_record, resize


@dataclasses.dataclass(frozen=True)
class StoredImages:
    """Which pictures of records are read.

    Attributes:
      reader: gives the fields `image` or `instruction_images`, and `file`.
      where: data set and split, for messages.
      field: "image", or "instruction_image" for the record's first.
      max_pixels: see `images.decode`.
    """

    reader: Reader
    where: str = "evaluation images"
    field: Literal["image", "instruction_image"] = "image"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.field not in ("image", "instruction_image"):
            raise ValueError(f"field {self.field!r} must be 'image' or 'instruction_image'")

    def load(self, record: int, size: Size) -> np.ndarray:
        """Returns a record's picture u8[*size, 3], decoded at full size and resized, as `irm_jax.Embedder` does.

        Raises DatasetError if it is missing or does not decode.
        """
        fields = self.reader[record]
        at = f"record {record}, file {fields['file']}"
        if self.field == "image":
            data, where = fields["image"], f"{self.where}, {at}"
        elif fields["instruction_images"]:
            data, where = fields["instruction_images"][0], f"{self.where}, instruction image 0, {at}"
        else:
            raise DatasetError(f"{self.where}, {at} has no instruction image")
        return resize(decode_record(data, where, max_pixels=self.max_pixels), size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Maker:
    """Callable: number of a batch -> (ids, images)."""

    images: StoredImages
    ids: np.ndarray
    size: Size
    batch_size: int

    def __call__(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self.ids[batch * self.batch_size : (batch + 1) * self.batch_size]
        images = np.empty((len(ids), *self.size, 3), np.uint8)
        for out, record in zip(images, ids.tolist(), strict=True):
            out[...] = self.images.load(record, self.size)
        return ids, images


def image_batches(
    images: StoredImages, ids: Sequence[int] | np.ndarray, size: Size, batch_size: int, ahead: ReadAhead | None = None
) -> Stream[tuple[np.ndarray, np.ndarray]]:
    """Returns a stream of batches (ids i64[n], images u8[n, *size, 3]); the last may be short. Close it.

    Args:
      images: which pictures of the records.
      ids: records, in the order of the result.
      size: (height, width).
      batch_size: images per batch.
      ahead: who makes the batches.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    make = _Maker(images, np.asarray(ids, np.int64), size, batch_size)
    count = len(make.ids)
    element_bytes = min(batch_size, count) * math.prod(size) * 3
    return Stream(make, 0, -(-count // batch_size), ahead or ReadAhead(), element_bytes)
