"""Test sets as the evaluator sees them: records in one space of people and cameras, and each record's instruction."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32

from data_pipelines import tasks
from data_pipelines.dataset.reader import Dataset, ShardReader
from data_pipelines.dataset.record_format import FIELDS
from data_pipelines.dataset.schema import Index
from data_pipelines.errors import DatasetError
from data_pipelines.images import decode_record
from data_pipelines.people.names import DISTRACTORS
from irm_jax.evaluation.case import Case, prepare
from irm_jax.evaluation.embed import Instruction
from irm_jax.evaluation.protocols import Protocol, ProtocolError, protocol_of
from irm_jax.evaluation.ranking.pairs import RelatedPairs
from irm_jax.evaluation.ranking.relations import Relation, copy_of_another_camera, copy_of_query
from irm_jax.evaluation.records import UNKNOWN, Records


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

    @functools.cached_property
    def pictures(self) -> ShardReader:
        """Random access to the field "image" of the records; its shards stay open."""
        return self.dataset.reader(self.split, ("image",))


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a configuration says of a test set.

    `protocols` are names of rules, the first is the headline. `query_sentence` says which sentence of a query's record
    is asked, counted from 0.
    """

    name: str
    task: tasks.TaskSpec
    protocols: tuple[str, ...]
    task_free: bool = True
    query_sentence: int = 0


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
    keep the cameras of their own namespace. Market-1501's distractors have one name, but each shows somebody else, so
    each is a person of its own.
    """

    def __init__(self) -> None:
        self._people: dict[str, int] = {}
        self._distractors = 0
        self._namespaces: dict[str, int] = {}
        self._cameras: dict[tuple[int, int], int] = {}

    def records(self, dataset: Dataset, index: Index, number: int) -> Records:
        """The records of a split of test set `number`, without `instruction_outfit` and `instruction_key`."""
        names = dataset.people
        people = np.array([self._people.setdefault(name, len(self._people)) for name in names], np.int32)
        space = self._namespace(dataset.manifest.namespace)
        borrowed = dataset.manifest.source.get("cameras_of", ())
        owners = [name.partition("/")[0] for name in names]
        spaces = np.array([self._namespace(owner) if owner in borrowed else space for owner in owners], np.int32)
        known = index.camera >= 0
        order = np.empty(len(index), np.int64)
        order[np.lexsort((index.file, index.camera, index.identity))] = np.arange(len(index))
        return Records.of(
            identity=self._identities(people[index.identity], np.array(names) == DISTRACTORS, index),
            camera=self._camera(spaces[index.identity], index.camera),
            camera_number=np.where(known, index.camera, UNKNOWN),
            clothes=index.clothes,
            modality=index.modality,
            dataset=np.full(len(index), number),
            source=np.full(len(index), space),
            order=order,
            attributes=index.attributes,
            instruction_attributes=index.instruction_attributes,
            instruction_clothes=index.instruction_clothes,
            content=index.content,
        )

    def _identities(
        self, identity: Int32[np.ndarray, " N"], nobody: Bool[np.ndarray, " P"], index: Index
    ) -> Int32[np.ndarray, " N"]:
        """The people of the records, distractors as people of their own, numbered downwards from the largest number."""
        rows = np.flatnonzero(nobody[index.identity])
        identity[rows] = np.iinfo(np.int32).max - self._distractors - np.arange(len(rows), dtype=np.int32)
        self._distractors += len(rows)
        return identity

    def _camera(self, space: Int32[np.ndarray, " N"], camera: Int32[np.ndarray, " N"]) -> Int32[np.ndarray, " N"]:
        """The cameras of the records, numbered over all namespaces; -1 for unknown ones."""
        pairs, which = np.unique(np.stack([space, camera], axis=1), axis=0, return_inverse=True)
        numbers = [
            UNKNOWN if own < 0 else self._cameras.setdefault((namespace, own), len(self._cameras))
            for namespace, own in pairs.tolist()
        ]
        return np.array(numbers, np.int32)[which.ravel()]

    def _namespace(self, name: str) -> int:
        return self._namespaces.setdefault(name, len(self._namespaces))


class Loader:
    """Opens test sets one after the other, in one space of people and cameras."""

    def __init__(self) -> None:
        self.space = PeopleSpace()
        self.sets: list[TestSet] = []
        self._instructions: dict[str | bytes, int] = {}  # sentence, or bytes of an instruction image -> its number

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
        queries = self._split(entry.task, *query, side="query", sentence=entry.query_sentence)
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
        if entry.task.has_query_image and (moved := _pairs(copy_of_another_camera, queries.records, records)):
            words = "%s: the file of a query is %d times in the gallery as of another camera, and counts as an answer"
            logging.warning(f"{words}: one picture is of one camera; correct the cameras", entry.name, moved)
        if entry.task.has_query_image and (copies := _pairs(copy_of_query, queries.records, records)):
            words = "%s: the file of a query is %d times in the gallery and a camera is unknown: these images are junk"
            logging.warning(words, entry.name, copies)
            protocols = tuple(protocol.without_copies(copies) for protocol in protocols)
        number = len(self.sets)
        test = TestSet(entry.name, entry.task, protocols, entry.task_free, number, queries, tuple(parts), records)
        try:
            for case in test.cases:
                case.check()
        except ProtocolError as error:
            raise DatasetError(f"test set {entry.name}: {error}") from error
        self.sets.append(test)
        return test

    def _split(self, task: tasks.TaskSpec, dataset: Dataset, split: str, *, side: str, sentence: int = 0) -> SplitData:
        index = dataset.index(split)
        records = self.space.records(dataset, index, len(self.sets))
        values, own = _own_instructions(dataset, split, index, task, side, sentence)
        numbers = [self._instructions.setdefault(value, len(self._instructions)) for value in values]
        records = records.replace(instruction_key=np.array(numbers, np.uint32)[own])
        first = np.unique(own, return_index=True)[1]
        instructions = [
            value if isinstance(value, str) else _decoded(dataset, split, index, int(record), value)
            for value, record in zip(values, first, strict=True)
        ]
        return SplitData(dataset, split, index, records, instructions, own)


def _decoded(dataset: Dataset, split: str, index: Index, record: int, image: bytes) -> np.ndarray:
    where = f"data set {dataset.name}, split {split}, instruction image 0, record {record}, file {index.file[record]}"
    return decode_record(image, where, max_pixels=dataset.max_pixels)


def _as_distractors(part: SplitData) -> SplitData:
    return dataclasses.replace(part, records=part.records.replace(distractor=np.ones(len(part), bool)))


def _pairs(relation: Relation, query: Records, gallery: Records) -> int:
    """How many pairs of a query and a gallery image are related."""
    rule, sizes = Protocol("pairs", positive=relation), (len(query), len(gallery))
    return int(RelatedPairs(rule, query, gallery, sizes).counts.positives.sum())


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
    dataset: Dataset, split: str, index: Index, task: tasks.TaskSpec, side: str, number: int
) -> tuple[list[str | bytes], Int32[np.ndarray, " N"]]:
    """The distinct instructions, and each record's: the task's sentence, or the sentence or instruction image `number`.

    They are compared themselves: the index has a checksum of them, and in a set of 70,000 captions two of one checksum
    are likely.
    """
    if task.sentence is not None:
        return [task.sentence], np.zeros(len(index), np.int32)
    if task.kind == "caption" and side == "gallery":
        return [tasks.NEUTRAL_SENTENCE], np.zeros(len(index), np.int32)
    field = "instruction_images" if task.kind == "visual" else "sentences"
    counts = index.instruction_image_count if field == "instruction_images" else index.sentence_count
    if len(counts) and counts.min() <= number:
        bare = int(np.argmin(counts))
        raise DatasetError(
            f"data set {dataset.name}, split {split}: record {bare} ({index.file[bare]}) has {counts[bare]} {field}, "
            f"but task {task.name} asks by number {number}, counted from 0; rebuild the data set with instructions"
        )
    reader = dataset.reader(split, tuple(f for f in FIELDS if f in (field, "file")))
    place: dict[str | bytes, int] = {}
    own = [place.setdefault(reader[record][field][number], len(place)) for record in range(len(index))]
    return list(place), np.array(own, np.int32)


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
        unlinked = ~np.isin(part.dataset.people, queries.people)
        masks.append(unlinked[part.index.identity] & (part.dataset.name in others))
    return np.concatenate(masks)
