"""Which rows of a table serve a task, and by which rules its test set is ranked; or why the task cannot be had."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines.dataset import schema
from data_pipelines.people.names import JUNK
from data_pipelines.sources.division import GALLERY, QUERY, TRAIN
from data_pipelines.sources.reading import Picture
from data_pipelines.sources.table import Row


class CannotError(Exception):
    """Says why a table does not serve a task."""


def _of(rows: Sequence[Row], split: str) -> list[Row]:
    return [row for row in rows if row.split == split]


def _people(rows: Sequence[Row], split: str) -> list[Row]:
    return [row for row in _of(rows, split) if row.identity != str(JUNK)]


def _need(rows: Sequence[Row], column: str, has: Callable[[Row], object]) -> None:
    if not any(has(row) for row in rows):
        raise CannotError(f"no column {column}")


def _plain(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    del divided, asked
    if len({row.identity for row in rows}) == len({row.image for row in rows}):
        raise CannotError("every person has one picture (is identity a number of the picture?)")
    for split in (QUERY, GALLERY):
        if not _of(rows, split) and not any(row.split == "test" for row in rows):
            raise CannotError(f"no row has split {split}: add some, or leave the column split out")
    _two_people(rows)
    _answerable(rows, lambda query, image: True)
    return rows, ""


def _clothes(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    _need(rows, "clothes", lambda row: row.clothes)
    _plain(rows, divided, asked)
    _answerable(rows, _other_outfit, "no test person is seen in two outfits")
    outfits = defaultdict(set)
    for row in _people(rows, TRAIN):
        outfits[row.identity].add(row.clothes)
    if not any(len(own - {""}) > 1 for own in outfits.values()):
        raise CannotError("no training person is seen in two outfits")
    return rows, "clothes"


def _modalities(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    del divided, asked
    if len({row.modality for row in rows}) < 2:
        raise CannotError("no column modality" if not any(row.modality for row in rows) else "one modality only")
    _two_people(rows)
    why = "no test person is seen in both modalities"
    _answerable(rows, lambda query, image: query.modality != image.modality, why)
    return rows, "modality"


def _templates(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    del asked
    _need(rows, "instruction_image", lambda row: row.instruction_image)
    kept = [row for row in rows if row.instruction_image or (divided and row.split == QUERY)]
    return _asking(kept, divided, lambda row: bool(row.instruction_image)), "instruction_image"


def _sentences(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    columns = (
        ("instruction", any(row.instructions for row in rows)),
        ("attributes", any(row.attributes for row in rows)),
    )
    by = next((name for name, there in columns if there), "caption" if asked else "")
    if not by:
        raise CannotError("no column attributes")

    def has(row: Row) -> bool:
        return bool(row.captions if by == "caption" else row.instructions or row.attributes)

    if by != "caption" and any(row.captions for row in rows):  # which describe the picture, for t2i
        rows = [row._replace(captions=()) for row in rows]
    kept = [row for row in rows if has(row) or (divided and row.split == QUERY)]
    _need(kept, by, has)
    return _asking(kept, divided, has), by


def _captions(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    del asked
    _need(rows, "caption", lambda row: row.captions)
    train = [row for row in _of(rows, TRAIN) if row.captions]
    tested = [row for row in rows if row.split in (QUERY, GALLERY)] if divided else _of(rows, QUERY)
    queries = [row._replace(split=QUERY) for row in tested if row.captions]
    gallery = [row._replace(split=GALLERY) for row in tested] if divided else _of(rows, GALLERY)
    kept = train + queries + gallery
    _two_people(kept)
    people = {row.identity for row in _people(gallery, GALLERY)}
    if not any(row.identity in people for row in queries):
        raise CannotError("no test person has a caption")
    return kept, "caption"


RULES: dict[str, Callable[[list[Row], bool, bool], tuple[list[Row], str]]] = {
    "trad": _plain, "cc": _clothes, "ctcc": _templates, "vi": _modalities, "t2i": _captions, "li": _sentences,
}  # fmt: skip


def _two_people(rows: Sequence[Row]) -> None:
    people = {row.identity for row in _people(rows, TRAIN)}
    if len(people) < 2:
        raise CannotError(f"{len(people)} of the people are left to train on, two are needed")


def _other_outfit(query: Row, image: Row) -> bool:
    return bool(query.clothes and image.clothes and query.clothes != image.clothes)


def _same_camera(query: Row, image: Row) -> bool:
    return query.camera is not None and query.camera == image.camera


def _answerable(
    rows: Sequence[Row], fits: Callable[[Row, Row], bool], why: str = "no test person can be found again"
) -> None:
    """Raises CannotError unless a query has a fitting picture of its person, of another or an unknown camera."""
    if not _pairs(rows, lambda query, image: fits(query, image) and not _same_camera(query, image)):
        raise CannotError(why)


def _pairs(rows: Sequence[Row], fits: Callable[[Row, Row], bool]) -> bool:
    shown: dict[str, list[Row]] = defaultdict(list)
    for row in _of(rows, GALLERY):
        shown[row.identity].append(row)
    return any(fits(query, image) for query in _people(rows, QUERY) for image in shown[query.identity])


def _asking(rows: list[Row], divided: bool, has: Callable[[Row], bool]) -> list[Row]:
    """Returns the rows of ctcc or li; where the people were divided, each query asks for another outfit of its person.

    The outfit is that of a gallery picture of the person, drawn by the query's file name.
    """
    _two_people(rows)
    if not divided:
        _answerable(rows, lambda query, image: True)
        return rows
    shown: dict[str, list[Row]] = defaultdict(list)
    for row in _of(rows, GALLERY):
        if has(row) and row.clothes:
            shown[row.identity].append(row)
    asking = []
    for row in rows:
        others = [image for image in shown[row.identity] if _other_outfit(row, image) and not _same_camera(row, image)]
        if row.split != QUERY:
            asking.append(row)
        elif others:
            seed = int.from_bytes(hashlib.sha256(row.image.encode()).digest()[:8], "big")
            wanted = others[int(np.random.default_rng(seed).integers(len(others)))]
            asking.append(
                row._replace(
                    captions=wanted.captions, instructions=wanted.instructions, attributes=wanted.attributes,
                    instruction_clothes=wanted.clothes, instruction_image=wanted.instruction_image,
                )
            )  # fmt: skip
    if not _of(asking, QUERY):
        raise CannotError("no test person is seen in two outfits (column clothes)")
    return asking


def protocols(task: str, rows: Sequence[Row], splits: Mapping[str, Sequence[Picture]]) -> tuple[str, ...]:
    """Returns the task's strict rule beside identity alone; ctcc and li have it if it gives a query an answer.

    rows: the task's rows of the table. splits: the pictures that its data set will hold.
    """
    if task == "trad":
        return ("market",)
    if task == "t2i":
        return ("identity",)
    if task == "vi":
        return ("other_modality", "market")
    if task == "cc":
        return ("ltcc_cc", "market")
    queries = _of(rows, QUERY)
    if task == "ctcc" or any(row.instruction_clothes for row in queries):
        rule, fits = "requested_outfit", _wears_requested
    elif any(row.attributes for row in queries):
        rule, fits = "named_attributes", _wears_named
    else:
        return ("market",)
    shown: dict[str, list[Picture]] = defaultdict(list)
    for image in splits.get(GALLERY, ()):
        shown[image.person].append(image)
    answered = any(fits(query, image) for query in splits.get(QUERY, ()) for image in shown[query.person])
    return (rule, "market") if answered else ("market",)


def _wears_requested(query: Picture, image: Picture) -> bool:
    return query.instruction_clothes == image.clothes != schema.UNKNOWN and query.camera != image.camera


def _wears_named(query: Picture, image: Picture) -> bool:
    pairs = zip(query.instruction_attributes, image.attributes, strict=True)
    return all(named in (schema.UNKNOWN, worn) for named, worn in pairs)
