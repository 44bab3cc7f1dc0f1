"""Streams of batches through Grain: training steps and evaluation images, as host NumPy arrays.

There is no iterator state to save: a training batch is a function of its step, so a run continues with `start_step`,
and the stream is bit-equal for any number of workers, threads and hosts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.batches import augment as image_ops
from data_pipelines.batches import sampling
from data_pipelines.batches.layout import BatchPlan, TextEncoder
from data_pipelines.batches.make import (
    Batch,
    BatchMaker,
    Columns,
    Reader,
    UnitSource,
    batch_spec,
    reader_fields,
)
from data_pipelines.batches.prefetch import Stream
from data_pipelines.dataset.reader import Dataset
from data_pipelines.images import Size, decode_record, resize
from data_pipelines.people.identity_space import IdentitySpace

__all__ = ["Augments", "Batch", "Stream", "batch_spec", "data_fingerprint", "image_batches", "train_stream"]

Augments = image_ops.Augment | Mapping[str, image_ops.Augment]
"""One set of options for all data sets, or one a data set (hue jitter contradicts a sentence that names colours)."""

_ENDLESS = 2**31 - 1


def _batch_bytes(spec: Mapping[str, Mapping[str, tuple[tuple[int, ...], type[np.generic]]]]) -> int:
    return sum(
        math.prod(shape) * np.dtype(dtype).itemsize for fields in spec.values() for shape, dtype in fields.values()
    )


def _augment_of(augment: Augments, dataset: str) -> image_ops.Augment:
    return augment if isinstance(augment, image_ops.Augment) else augment[dataset]


def train_stream(
    plan: BatchPlan,
    datasets: Mapping[str, Dataset],
    *,
    seed: int,
    start_step: int,
    image_size: Size,
    instruction_image_size: Size,
    tokenizer: TextEncoder,
    augment: Augments,
    blocks: Sequence[int] | None = None,
    num_steps: int | None = None,
    accumulate: int = 1,
    second_view: bool = False,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
) -> Stream[tuple[int, Batch]]:
    """Training batches (step, Batch) from `start_step` on; see `BatchMaker` for the fields.

    Args:
      plan: the layout.
      datasets: open data sets by name, at least those of the plan.
      seed: same seed, plan, data and options: same stream.
      start_step: first step to deliver.
      image_size, instruction_image_size: (height, width).
      tokenizer: gives token ids of the length of `plan.constant_tokens`.
      augment: options of the image augmentation, for all data sets or by data set.
      blocks: the global batch blocks this host needs, in the order of axis 0; None: all.
      num_steps: the stream ends before step start_step + num_steps; None: endless.
      accumulate: plan steps that make up one step.
      second_view: also every picture under a second augmentation (`key_image`).
      workers, threads, prefetch: see `Stream`.

    Raises:
      ValueError: blocks out of range, a data set missing, too small or without the instructions its task needs.
    """
    blocks = range(plan.batch_blocks) if blocks is None else blocks
    if not len(blocks) or not all(0 <= block < plan.batch_blocks for block in blocks):
        raise ValueError(f"blocks {list(blocks)} must be some of the plan's {plan.batch_blocks} batch blocks")
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate} must be at least 1")
    missing = [name for name in plan.datasets if name not in datasets]
    if missing:
        raise ValueError(f"the plan draws from {missing}, but only {sorted(datasets)} are open; build or open them")
    space = IdentitySpace(plan, datasets)
    indexes = {name: datasets[name].index("train") for name in plan.datasets}
    columns = {name: Columns.of(indexes[name], space.of(name)) for name in plan.datasets}
    sources = [
        UnitSource(
            people,
            columns[layout.unit.dataset],
            datasets[layout.unit.dataset].reader("train", reader_fields(layout)),
            _augment_of(augment, layout.unit.dataset),
        )
        for layout, people in zip(plan.units, sampling.people_of(plan, indexes), strict=True)
    ]
    make = BatchMaker(
        plan,
        sources,
        seed=seed,
        blocks=blocks,
        image_size=image_size,
        instruction_image_size=instruction_image_size,
        tokenizer=tokenizer,
        accumulate=accumulate,
        second_view=second_view,
    )
    stop = _ENDLESS if num_steps is None else start_step + num_steps
    size = accumulate * _batch_bytes(batch_spec(plan, image_size, instruction_image_size, len(blocks), second_view))
    return Stream(make, start_step, stop, workers=workers, threads=threads, prefetch=prefetch, element_bytes=size)


def data_fingerprint(
    plan: BatchPlan,
    datasets: Mapping[str, Dataset],
    *,
    seed: int,
    image_size: Size,
    instruction_image_size: Size,
    augment: Augments,
    accumulate: int = 1,
    second_view: bool = False,
) -> dict[str, Any]:
    """JSON-able description of everything the training stream depends on, to be saved with a checkpoint.

    Workers, threads, hosts and `blocks` are left out: they do not change the stream.
    """
    return {
        "plan": plan.fingerprint(),
        "seed": seed,
        "accumulate": accumulate,
        "second_view": second_view,
        "image_size": list(image_size),
        "instruction_image_size": list(instruction_image_size),
        "data": {name: datasets[name].manifest.content_hash for name in plan.datasets},
        "augment": {
            name: {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(_augment_of(augment, name)).items()
            }
            for name in plan.datasets
        },
    }


class _EvaluationBatches:
    """Callable: number of a batch -> (ids, images), resized only."""

    def __init__(self, reader: Reader, ids: np.ndarray, size: Size, batch_size: int, field: str, where: str) -> None:
        self.reader, self.ids, self.size, self.batch_size = reader, ids, size, batch_size
        self.field, self.where = field, where

    def __call__(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self.ids[batch * self.batch_size : (batch + 1) * self.batch_size]
        images = np.empty((len(ids), *self.size, 3), np.uint8)
        for out, record in zip(images, ids.tolist(), strict=True):
            fields = self.reader[record]
            if self.field == "image":
                data, where = fields["image"], self.where
            elif fields["instruction_images"]:
                data, where = fields["instruction_images"][0], f"{self.where}, instruction image 0"
            else:
                raise ValueError(f"{self.where}, record {record}, file {fields['file']} has no instruction image")
            out[...] = resize(decode_record(data, self.size, where, record, fields["file"]), self.size)
        return ids, images


def image_batches(
    reader: Reader,
    ids: Sequence[int] | np.ndarray,
    size: Size,
    batch_size: int,
    *,
    field: str = "image",
    where: str = "evaluation images",
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 2,
) -> Stream[tuple[np.ndarray, np.ndarray]]:
    """Batches (ids i64[n], u8[n,H,W,3]) of the records `ids` in their order, resized to `size`; the last may be short.

    `field`: "image", or "instruction_image" for the record's first. `where` names data set and split in errors. The
    reader must provide the fields `image` or `instruction_images`, and `file`. `workers`, `threads`, `prefetch`: see
    `Stream`.
    """
    if field not in ("image", "instruction_image"):
        raise ValueError(f"field {field!r} must be 'image' or 'instruction_image'")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    make = _EvaluationBatches(reader, np.asarray(ids, np.int64), size, batch_size, field, where)
    return Stream(
        make,
        0,
        -(-len(make.ids) // batch_size),
        workers=workers,
        threads=threads,
        prefetch=prefetch,
        element_bytes=min(batch_size, len(make.ids)) * math.prod(size) * 3,
    )
