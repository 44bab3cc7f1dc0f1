"""Test sets as the evaluator sees them: records in one space of people and cameras, and each record's instruction."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from data_pipelines import tasks
from data_pipelines.dataset.reader import Dataset
from data_pipelines.dataset.record_format import FIELDS
from data_pipelines.dataset.schema import Index
from data_pipelines.errors import DatasetError
from data_pipelines.images import decode
from irm_jax.evaluation.case import Case, prepare
from irm_jax.evaluation.embed import Instruction
from irm_jax.evaluation.protocols import Protocol, ProtocolError, protocol_of
from irm_jax.evaluation.records import UNKNOWN, Records

CAMERAS_PER_NAMESPACE = 1 << 12


@dataclasses.dataclass(frozen=True, eq=False)
class SplitData:
    """One split of N records: its index, what protocols read of it, and its own instructions.

    instructions: the distinct ones. instruction_index: the one of each record. Captions are the instructions of
    caption records.
    """

    dataset: Dataset
    split: str
    index: Index
    records: Records
    instructions: Sequence[Instruction]
    instruction_index: Int32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.instruction_index)

    def instruction(self, record: int) -> Instruction:
        """The instruction of a record."""
        return self.instructions[self.instruction_index[record]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a configuration says of a test set; `protocols` are names of rules, the first is the headline."""

    name: str
    task: tasks.TaskSpec
    protocols: tuple[str, ...]
    task_free: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """A test set: queries, and a gallery of one or more parts.

    number: place among the test sets. parts: the gallery's split, then the splits of its distractors. gallery_records:
    the records of all parts.
    """

    __test__ = False  # pytest would collect it

    name: str
    task: tasks.TaskSpec
    protocols: tuple[Protocol, ...]
    task_free: bool
    number: int
    query: SplitData
    parts: tuple[SplitData, ...]
    gallery_records: Records

    @property
    def gallery(self) -> SplitData:
        """The gallery's split, without distractors."""
        return self.parts[0]

    @property
    def one_split(self) -> bool:
        """True if query and gallery are the same split under the same instruction; it is then embedded once."""
        query, gallery = self.query, self.gallery
        same = (query.dataset.name, query.split) == (gallery.dataset.name, gallery.split)
        return same and self.task.sentence is not None

    @functools.cached_property
    def cases(self) -> tuple[Case, ...]:
        """The set under each protocol, in their order; then, if it has distractors, each with the distractors."""
        return tuple(
            prepare(protocol, self.query.records, self.gallery_records, distractors=distractors)
            for distractors in ((False, True) if len(self.parts) > 1 else (False,))
            for protocol in self.protocols
        )

    def gallery_record(self, number: int) -> tuple[SplitData, int]:
        """The part that holds a gallery record, and the record's number in it."""
        for part in self.parts:
            if number < len(part):
                return part, number
            number -= len(part)
        raise IndexError(f"gallery record {number} beyond the end of test set {self.name}")


class PeopleSpace:
    """Numbers people and cameras over all test sets: both belong to the source of the images, not to the task.

    A data set that borrows images names their namespaces in its manifest (`cameras_of`): people of these namespaces
    keep the camera numbers of their own namespace.
    """

    def __init__(self) -> None:
        self._people: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}

    def records(self, dataset: Dataset, index: Index, number: int) -> Records:
        """The records of a split of test set `number`, without `instruction_outfit`."""
        names = dataset.manifest.people
        people = np.array([self._people.setdefault(name, len(self._people)) for name in names], np.int32)
        space = self._namespace(dataset.manifest.namespace)
        borrowed = dataset.manifest.source.get("cameras_of", ())
        owners = [name.partition("/")[0] for name in names]
        spaces = np.array([self._namespace(owner) if owner in borrowed else space for owner in owners], np.int32)
        known = index.camera >= 0
        camera = np.where(known, index.camera + spaces[index.identity] * CAMERAS_PER_NAMESPACE, UNKNOWN)
        order = np.empty(len(index), np.int64)
        order[np.lexsort((index.file, index.camera, index.identity))] = np.arange(len(index))
        return Records.of(
            identity=people[index.identity],
            camera=camera,
            camera_number=np.where(known, index.camera, UNKNOWN),
            clothes=index.clothes,
            modality=index.modality,
            dataset=np.full(len(index), number),
            source=np.full(len(index), space),
            order=order,
            attributes=index.attributes,
            instruction_attributes=index.instruction_attributes,
            instruction_clothes=index.instruction_clothes,
            instruction_key=index.instruction_key,
            content=index.content,
        )

    def _namespace(self, name: str) -> int:
        return self._namespaces.setdefault(name, len(self._namespaces))


class Loader:
    """Opens test sets one after the other, in one space of people and cameras."""

    def __init__(self) -> None:
        self.space = PeopleSpace()
        self.sets: list[TestSet] = []

    def load(
        self,
        entry: Entry,
        query: tuple[Dataset, str],
        gallery: tuple[Dataset, str],
        distractors: Sequence[tuple[Dataset, str]] = (),
    ) -> TestSet:
        """Reads the index of each (data set, split) and its distinct instructions (not the images).

        Raises ProtocolError for an unknown protocol, DatasetError for one that would drop every query, with the rule
        and why.
        """
        protocols = tuple(protocol_of(name) for name in entry.protocols)
        queries = self._split(entry.task, *query, side="query")
        parts = [self._split(entry.task, *part, side="gallery") for part in (gallery, *distractors)]
        parts[1:] = [_as_distractors(part) for part in parts[1:]]
        records = Records.concat([part.records for part in parts])
        starts = np.cumsum([0, *map(len, parts[:-1])])
        records = records.replace(order=records.order + np.repeat(starts, [len(part) for part in parts]))
        query_records, records = with_instruction_outfits(queries.records, records)
        queries = dataclasses.replace(queries, records=query_records)
        cuts = [slice(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
        parts = [
            dataclasses.replace(part, records=records.take(np.arange(cut.start, cut.stop)))
            for part, cut in zip(parts, cuts, strict=True)
        ]
        number = len(self.sets)
        test = TestSet(entry.name, entry.task, protocols, entry.task_free, number, queries, tuple(parts), records)
        try:
            for case in test.cases:
                case.check()
        except ProtocolError as error:
            raise DatasetError(f"test set {entry.name}: {error}") from error
        self.sets.append(test)
        return test

    def _split(self, task: tasks.TaskSpec, dataset: Dataset, split: str, *, side: str) -> SplitData:
        index = dataset.index(split)
        records = self.space.records(dataset, index, len(self.sets))
        instructions, own = _own_instructions(dataset, split, index, task, side)
        if task.sentence is not None:  # all rows of the set, query and gallery, have one instruction
            key = np.full(len(index), zlib.crc32(task.sentence.encode()), np.uint32)
            records = records.replace(instruction_key=key)
        return SplitData(dataset, split, index, records, instructions, own)


def _as_distractors(part: SplitData) -> SplitData:
    return dataclasses.replace(part, records=part.records.replace(distractor=np.ones(len(part), bool)))


def with_instruction_outfits(query: Records, gallery: Records) -> tuple[Records, Records]:
    """Fills `instruction_outfit`: the attributes of the outfit that each instruction asks for.

    They are the slots that the instruction names and, where it is silent, what the set's images of that person in that
    outfit show (-1: unknown, or these images disagree).
    """
    both = Records.concat([query, gallery])
    # One number per person and outfit; -1 is an unknown outfit.
    person = both.identity.astype(np.int64) << 32
    worn, requested = (
        np.where(outfit >= 0, person + outfit, -1) for outfit in (both.clothes, both.instruction_clothes)
    )
    outfits, image_outfit = np.unique(worn, return_inverse=True)
    beyond = np.iinfo(np.int32).max
    lowest, highest = (np.full((len(outfits), both.attributes.shape[1]), start, np.int32) for start in (beyond, -1))
    np.minimum.at(lowest, image_outfit, np.where(both.attributes >= 0, both.attributes, beyond))
    np.maximum.at(highest, image_outfit, both.attributes)
    at = np.minimum(np.searchsorted(outfits, requested), len(outfits) - 1)
    found = (requested >= 0) & (outfits[at] == requested)
    shown = np.where(found[:, None] & (lowest == highest)[at], highest[at], -1)
    named = both.instruction_attributes
    outfit = np.where(named >= 0, named, shown).astype(np.int32)
    return (
        query.replace(instruction_outfit=outfit[: len(query)]),
        gallery.replace(instruction_outfit=outfit[len(query) :]),
    )


def _own_instructions(
    dataset: Dataset, split: str, index: Index, task: tasks.TaskSpec, side: str
) -> tuple[list[Instruction], Int32[np.ndarray, " N"]]:
    """The distinct instructions, and each record's: the task's sentence, or the first sentence or instruction image."""
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
    instructions: list[Instruction] = []
    for record in first:
        value = reader[int(record)][field][0]
        instructions.append(decode(value) if field == "instruction_images" else str(value))
    return instructions, own.astype(np.int32)


def possibly_same(
    test: TestSet, sets: Sequence[TestSet], overlaps: Sequence[tuple[str, str]]
) -> Bool[np.ndarray, " n"]:
    """Which gallery records of `sets`, one set after the other, may show a query's person under another name.

    `overlaps`: pairs of data sets known to share people who are not linked. These are the records of an overlapping
    data set whose person has no common name in the queries' one: a linked person is known, and known to be no other.
    """
    queries = test.query.dataset
    others = {name for pair in overlaps if queries.name in pair for name in pair} - {queries.name}
    masks = []
    for part in (part for other in sets for part in other.parts):
        unlinked = ~np.isin(part.dataset.manifest.people, queries.manifest.people)
        masks.append(unlinked[part.index.identity] & (part.dataset.name in others))
    return np.concatenate(masks)
