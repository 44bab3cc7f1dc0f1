"""Test sets as the evaluator sees them: columns in one space of people and cameras, and each record's instruction."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from data_pipelines import tasks
from data_pipelines.dataset.reader import Dataset
from data_pipelines.dataset.record_format import FIELDS
from data_pipelines.dataset.schema import Index
from data_pipelines.errors import DatasetError
from data_pipelines.images import decode
from irm_jax.evaluation.embed import Ask, Variant
from irm_jax.evaluation.protocols import protocol_of
from irm_jax.evaluation.ranking import selection

CAMERAS_A_NAMESPACE = 1 << 12
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SplitData:
    """One split: its index, the columns that protocols read, and its own instructions.

    `asks` are the distinct instructions, `own` i32[N] the one of each record. Caption records ask by their sentence.
    """

    dataset: Dataset
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
    """A test set of one task: what asks, and what is searched, in one or more parts.

    `parts`: the gallery's split, then those of its distractors. Gallery records are numbered over all parts.
    """

    name: str
    task: tasks.TaskSpec
    protocols: tuple[str, ...]
    task_free: bool
    query: SplitData
    parts: tuple[SplitData, ...]
    gallery_columns: Columns

    @property
    def gallery(self) -> SplitData:
        return self.parts[0]

    @property
    def one_split(self) -> bool:
        """The queries are the gallery's own records, and ask as these do: they need not be embedded twice."""
        one, other = self.query, self.gallery
        same = (one.dataset.name, one.split) == (other.dataset.name, other.split)
        return same and self.task.sentence is not None

    def gallery_record(self, number: int) -> tuple[SplitData, int]:
        """The part that holds a gallery record, and the record's number in it."""
        for part in self.parts:
            if number < len(part):
                return part, number
            number -= len(part)
        raise IndexError(f"gallery record {number} beyond the end of test set {self.name}")


class PeopleSpace:
    """Numbers people and cameras over all test sets: both belong to the source of the images, not to the task.

    A data set that shows pictures of others says so in its manifest (`cameras_of`: namespaces of people): the cameras
    of these people's pictures are those of their own namespace, whoever delivers the picture.
    """

    def __init__(self) -> None:
        self._people: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}

    def columns(self, dataset: Dataset, index: Index, number: int, unknown_camera: int) -> Columns:
        """The columns of a split. An unknown camera (below 0) becomes `unknown_camera`: -1 of a query, -2 of a gallery
        image, which never match."""
        names = dataset.manifest.people
        people = np.array([self._people.setdefault(name, len(self._people)) for name in names], np.int32)
        space = self._namespace(dataset.manifest.namespace)
        borrowed = dataset.manifest.source.get("cameras_of", ())
        owners = [name.partition("/")[0] for name in names]
        spaces = np.array([self._namespace(owner) if owner in borrowed else space for owner in owners], np.int32)
        camera = np.where(
            index.camera >= 0, index.camera + spaces[index.identity] * CAMERAS_A_NAMESPACE, unknown_camera
        )
        order = np.empty(len(index), np.int64)
        order[np.lexsort((index.file, index.camera, index.identity))] = np.arange(len(index))
        return {
            "identity": people[index.identity],
            "camera": camera.astype(np.int32),
            "camera_number": np.where(index.camera >= 0, index.camera, unknown_camera).astype(np.int32),
            "clothes": index.clothes.astype(np.int32),
            "modality": index.modality.astype(np.int32),
            "dataset": np.full(len(index), number, np.int32),
            "source": np.full(len(index), space, np.int32),
            "distractor": np.zeros(len(index), np.int32),
            "order": order,
            "attributes": index.attributes.astype(np.int32),
            "instruction_attributes": index.instruction_attributes.astype(np.int32),
            "instruction_clothes": index.instruction_clothes.astype(np.int32),
            "instruction_key": index.instruction_key.astype(np.uint32),
            "content": index.content,
        }

    def _namespace(self, name: str) -> int:
        return self._namespaces.setdefault(name, len(self._namespaces))


def load_set(
    name: str,
    task: tasks.TaskSpec,
    protocols: Sequence[str],
    task_free: bool,
    query: tuple[Dataset, str],
    gallery: tuple[Dataset, str],
    distractors: Sequence[tuple[Dataset, str]],
    space: PeopleSpace,
    number: int,
) -> EvaluationSet:
    """Reads the index of each (data set, split) and its distinct instructions (not the images).

    Raises DatasetError for a protocol that would drop every query, with the rule and why.
    """

    def load(dataset: Dataset, split: str, side: str, distractor: bool = False) -> SplitData:
        index = dataset.index(split)
        columns = space.columns(dataset, index, number, -1 if side == "query" else -2)
        columns["distractor"][:] = distractor
        asks, own = _own_instructions(dataset, split, index, task, side)
        if task.sentence is not None:  # all rows of the set, query and gallery, ask the same
            columns["instruction_key"] = np.full(len(index), zlib.crc32(task.sentence.encode()), np.uint32)
        return SplitData(dataset, split, index, columns, asks, own)

    asking = load(*query, "query")
    parts = (load(*gallery, "gallery"), *(load(*part, "gallery", distractor=True) for part in distractors))
    searched = concatenate([part.columns for part in parts])
    add_instruction_outfits(asking.columns, searched)
    searched["order"] += np.repeat(np.cumsum([0, *map(len, parts[:-1])]), [len(part) for part in parts])
    for protocol in protocols:
        try:
            selection.check(protocol_of(protocol), asking.columns, searched)
        except ValueError as error:
            raise DatasetError(f"test set {name}: {error}") from error
    return EvaluationSet(name, task, tuple(protocols), task_free, asking, parts, searched)


def add_instruction_outfits(query: Columns, gallery: Columns) -> None:
    """Adds `instruction_outfit` i32[n, ATTRIBUTE_SLOTS]: the attributes of the outfit that each instruction asks for.

    They are the slots that the instruction names and, where it is silent, what the set's images of that person in that
    outfit show (-1: unknown, or these images disagree).
    """
    sides = (query, gallery)
    # One number a person and outfit; -1 is an outfit that nobody told.
    worn, asked = (
        np.concatenate([np.where(c[key] >= 0, (c["identity"].astype(np.int64) << 32) + c[key], -1) for c in sides])
        for key in ("clothes", "instruction_clothes")
    )
    shown, named = (np.concatenate([c[key] for c in sides]) for key in ("attributes", "instruction_attributes"))
    outfits, image_outfit = np.unique(worn, return_inverse=True)
    beyond = np.iinfo(np.int32).max
    lowest, highest = (np.full((len(outfits), shown.shape[1]), start, np.int32) for start in (beyond, -1))
    np.minimum.at(lowest, image_outfit, np.where(shown >= 0, shown, beyond))
    np.maximum.at(highest, image_outfit, shown)
    at = np.minimum(np.searchsorted(outfits, asked), len(outfits) - 1)
    found = (asked >= 0) & (outfits[at] == asked)
    outfit = np.where(found[:, None] & (lowest == highest)[at], highest[at], -1)
    told = np.where(named >= 0, named, outfit)
    query["instruction_outfit"], gallery["instruction_outfit"] = np.split(told, [len(query["identity"])])


def _own_instructions(
    dataset: Dataset, split: str, index: Index, task: tasks.TaskSpec, side: str
) -> tuple[list[Ask], np.ndarray]:
    """Each record's instruction: the task's sentence, or the first sentence or instruction image that is stored."""
    if task.sentence is not None:
        return [task.sentence], np.zeros(len(index), np.int32)
    if task.kind == "caption" and side == "gallery":
        return [tasks.NEUTRAL_SENTENCE], np.zeros(len(index), np.int32)
    field = "instruction_images" if task.kind == "visual" else "sentences"
    counts = index.instruction_image_count if field == "instruction_images" else index.sentence_count
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
        asks.append(decode(value) if field == "instruction_images" else str(value))
    return asks, own.astype(np.int32)


def concatenate(columns: Sequence[Mapping[str, np.ndarray]]) -> Columns:
    """Columns of several splits one after the other."""
    return {key: np.concatenate([c[key] for c in columns]) for key in columns[0]}


def possibly_same(
    test: EvaluationSet, sets: Sequence[EvaluationSet], overlaps: Sequence[tuple[str, str]]
) -> Bool[np.ndarray, " n"]:
    """Which gallery records of `sets`, one set after the other, may show a query's person under another name.

    `overlaps`: pairs of data sets known to share people who are not linked. These are the records of an overlapping
    data set whose person has no common name in the queries' one: a linked person is known, and known to be no other.
    """
    asking = test.query.dataset
    others = {name for pair in overlaps if asking.name in pair for name in pair} - {asking.name}
    masks = []
    for part in (part for other in sets for part in other.parts):
        unlinked = ~np.isin(part.dataset.manifest.people, asking.manifest.people)
        masks.append(unlinked[part.index.identity] & (part.dataset.name in others))
    return np.concatenate(masks)
