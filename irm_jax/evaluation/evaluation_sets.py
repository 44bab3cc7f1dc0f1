"""Test sets as the evaluator sees them: columns in one space of people and cameras, and each record's instruction."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines import image_ops, shards, tasks
from data_pipelines.record_format import FIELDS
from data_pipelines.schema import Index
from data_pipelines.shard_files import DatasetError
from irm_jax.evaluation.embed import Ask, Variant

CAMERAS_A_NAMESPACE = 1 << 12
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SplitData:
    """One split: its index, the columns that protocols read, and its own instructions.

    `asks` are the distinct instructions, `own` i32[N] the one of each record. Caption records ask by their sentence.
    """

    dataset: shards.Dataset
    split: str
    index: Index
    columns: Columns
    asks: Sequence[Ask]
    own: np.ndarray

    def __len__(self) -> int:
        return len(self.own)

    def variant(self, name: str = "own", *, grey: bool = False) -> Variant:
        return Variant(name, self.asks, self.own, grey)

    def constant(self, name: str, sentence: str) -> Variant:
        return Variant(name, [sentence], np.zeros(len(self), np.int32))


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A test set of one task: `query` and `gallery` splits."""

    name: str
    task: tasks.TaskSpec
    protocols: tuple[str, ...]
    task_free: bool
    query: SplitData
    gallery: SplitData


class PeopleSpace:
    """Numbers people and cameras over all test sets: both belong to the source of the images, not to the task."""

    def __init__(self) -> None:
        self._people: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}

    def columns(self, dataset: shards.Dataset, index: Index, number: int) -> Columns:
        """The columns of a split. Unknown cameras (-1 of a query, -2 of a gallery image) stay, and never match."""
        names = dataset.manifest.people
        people = np.array([self._people.setdefault(name, len(self._people)) for name in names], np.int32)
        space = self._namespaces.setdefault(dataset.manifest.namespace, len(self._namespaces))
        camera = np.where(index.camera >= 0, index.camera + space * CAMERAS_A_NAMESPACE, index.camera)
        return {
            "identity": people[index.identity],
            "camera": camera.astype(np.int32),
            "clothes": index.clothes.astype(np.int32),
            "modality": index.modality.astype(np.int32),
            "dataset": np.full(len(index), number, np.int32),
            "attributes": index.attributes.astype(np.int32),
            "instruction_attributes": index.instruction_attributes.astype(np.int32),
            "instruction_clothes": index.instruction_clothes.astype(np.int32),
            "instruction_key": index.instruction_key.astype(np.uint32),
            "content": index.content,
        }


def load_set(
    name: str,
    task: tasks.TaskSpec,
    protocols: Sequence[str],
    task_free: bool,
    dataset: shards.Dataset,
    space: PeopleSpace,
    number: int,
) -> EvaluationSet:
    """Reads the index of both splits and the distinct instructions (not the images)."""
    splits = {}
    for split in ("query", "gallery"):
        index = dataset.index(split)
        columns = space.columns(dataset, index, number)
        asks, own = _own_instructions(dataset, split, index, task)
        if task.sentence is not None:  # all rows of the set, query and gallery, ask the same
            columns["instruction_key"] = np.full(len(index), zlib.crc32(task.sentence.encode()), np.uint32)
        splits[split] = SplitData(dataset, split, index, columns, asks, own)
    return EvaluationSet(name, task, tuple(protocols), task_free, splits["query"], splits["gallery"])


def _own_instructions(
    dataset: shards.Dataset, split: str, index: Index, task: tasks.TaskSpec
) -> tuple[list[Ask], np.ndarray]:
    """Each record's instruction: the task's sentence, or the first sentence or instruction image that is stored."""
    if task.sentence is not None:
        return [task.sentence], np.zeros(len(index), np.int32)
    if task.group == "caption" and split == "gallery":
        return [tasks.NEUTRAL_SENTENCE], np.zeros(len(index), np.int32)
    field = "instruction_images" if task.group == "visual" else "sentences"
    counts = index.instruction_images if field == "instruction_images" else index.sentences
    if len(counts) and counts.min() < 1:
        bare = int(np.argmin(counts))
        raise DatasetError(
            f"data set {dataset.name}, split {split}: record {bare} ({index.file[bare]}) has no {field}, which task "
            f"{task.name} needs; rebuild the data set with instructions"
        )
    reader = dataset.reader(split, tuple(f for f in FIELDS if f in (field, "file")))
    _, first, own = np.unique(index.instruction_key, return_index=True, return_inverse=True)
    asks: list[Ask] = []
    for record in first:
        value = reader[int(record)][field][0]
        asks.append(image_ops.decode(value) if field == "instruction_images" else str(value))
    return asks, own.astype(np.int32)


def concatenate(columns: Sequence[Mapping[str, np.ndarray]]) -> Columns:
    """Columns of several splits one after the other."""
    return {key: np.concatenate([c[key] for c in columns]) for key in columns[0]}


def rows(columns: Mapping[str, np.ndarray], index: np.ndarray) -> Columns:
    return {key: value[index] for key, value in columns.items()}
