"""A data set of one's own from one table, in any of the forms of table_files; docs/own_data.md has examples.

    image              file, relative to the folder of pictures, or absolute
    identity           any text; with a / it is a person's full name, as market1501/0002, shared with that data set
    camera             (optional) any name; empty (or -1) where it is not known
    split              (optional) train, query, gallery or test; without it people are divided, see division
    clothes            (optional) any text: which of the person's outfits is worn
    modality           (optional) visible or infrared; empty is visible
    caption            (optional) sentences, separated by | (JSON: text or list of texts)
    instruction_image  (optional) file of a picture, as image
    instruction        (optional) sentences of li, as caption; `python -m data_pipelines.sentences` writes them
    instruction_clothes  (optional) of a query: the outfit that its instruction asks for
    attributes         (optional) `slot=value; slot=value` (JSON: that text or an object)
    time               (optional) kept, like any other column

Tasks need: cc clothes; vi pictures of both modalities; ctcc an instruction_image (or cut-out clothes, see
clothes_crops); li a caption or attributes; t2i a caption in train and query, where a query row with several captions
becomes one record per caption. Attributes say what is worn; for a query of ctcc or li they say what is asked for. The
outfit that such a query asks for is its instruction_clothes, or else the one with the same template in train or
gallery. Several tables, or one table under several tasks, share people by a common namespace, and a person's outfits
by their labels. Attribute slots are numbered by the values of one table, and compare only within it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import attribute_sentences
from data_pipelines.instructions.clothes_crops import Kind
from data_pipelines.instructions.sentences import wanted_sentence
from data_pipelines.people import near_duplicates
from data_pipelines.people.names import JUNK, person_name
from data_pipelines.sources import Scan, Source, checks, division, reading, table_files
from data_pipelines.sources.datalist import UNKNOWN_CAMERA
from data_pipelines.sources.reading import Picture
from data_pipelines.sources.table_files import COLUMNS, SPLITS
from data_pipelines.sources.table_rows import Row, camera_number, label_number, parse, rows_of

__all__ = ["COLUMNS", "SPLITS", "Row", "camera_number", "divided", "look_alikes", "parse", "present", "rows_of", "scan",
           "scan_rows", "source", "with_splits"]  # fmt: skip
_PARAPHRASES = {"train": 3}


def source(
    name: str, task: str, namespace: str, table: str, crops: Kind | None = None, skip_missing: bool = False
) -> Source:
    """Returns the source of a table, list or folder (see table_files).

    `crops`: see clothes_crops; `skip_missing`: rows whose picture is not there are left out.
    """
    return Source(
        name=name,
        task=task,
        namespace=namespace,
        expected={},
        scan=functools.partial(
            scan, task=task, namespace=namespace, table=Path(table), crops=crops, skip_missing=skip_missing
        ),
        load=reading.load,
    )


def scan(
    raw: Path, *, task: str, namespace: str, table: Path, crops: Kind | None = None, skip_missing: bool = False
) -> Scan:
    """Reads the table; records are in the order of its lines. `raw` is the folder that its paths begin in."""
    listed = rows_of(table_files.read(table))
    rows, rule = with_splits(present(listed, raw) if skip_missing else listed, raw, namespace)
    _check_task(of_people(rows, table), task, table, crops)
    if not rule and tasks.task(task).has_query_image and (words := look_alikes(rows, raw)):
        logging.warning("%s: %s", table, words)
    found = scan_rows(rows, raw, task=task, namespace=namespace, table=table)
    return dataclasses.replace(found, source={**found.source, "division": rule}) if rule else found


def present(rows: Sequence[Row], raw: Path) -> list[Row]:
    """Returns the rows whose pictures are there, and logs how many are not."""
    kept = [
        row for row in rows if all(reading.is_there(raw, file) for file in (row.image, row.instruction_image) if file)
    ]
    if len(kept) < len(rows):
        logging.warning("%d of %d rows are left out: their picture files are missing", len(rows) - len(kept), len(rows))
    return kept


def of_people(rows: Sequence[Row], table: Path) -> list[Row]:
    """Returns the rows that show a person. Raises DatasetError if none does."""
    kept = [row for row in rows if row.identity != str(JUNK)]
    if not kept:
        raise DatasetError(f"{table}: no row names a person: all are of identity {JUNK}; correct the column identity")
    return kept


def with_splits(
    rows: Sequence[Row], raw: Path, namespace: str, seed: int = 0, share: float = 0.25
) -> tuple[list[Row], str]:
    """Returns the rows with their splits, and how they were divided: as the table says (""), or see `division`."""
    bare = [row for row in rows if not row.split]
    if 0 < len(bare) < len(rows):
        raise DatasetError(f"{bare[0].where}, column 'split': it is empty; fill it in every row, or in none")
    return (list(rows), "") if not bare else divided(rows, raw, namespace, seed, share)


def check_sides(rows: Sequence[Row]) -> None:
    """Raises DatasetError if a name stands in split train and in split test."""
    train = {row.identity: row for row in rows if row.split == division.TRAIN and row.identity != str(JUNK)}
    both = [row for row in rows if row.split == "test" and row.identity in train]
    if both:
        first = both[0]
        raise DatasetError(
            f"{len({row.identity for row in both})} person(s) stand in train and in test: {first.identity!r} is in "
            f"{train[first.identity].where} and in {first.where}. If these are two people, give them two names (as "
            f"test_{first.identity}); if one, leave the splits out, and people are divided"
        )


def divided(rows: Sequence[Row], raw: Path, namespace: str, seed: int, share: float) -> tuple[list[Row], str]:
    """Returns the rows with the splits that `division` gives them, and its rule; people of split `test` stay tested."""
    junk = [row._replace(split=division.TRAIN) for row in rows if row.identity == str(JUNK)]  # left out by scan_rows
    rows = [row for row in rows if row.identity != str(JUNK)]
    people = _full_names(rows, namespace)
    shown = [division.Shown(people[row.identity], row.camera, row.modality) for row in rows]
    files = [raw / reading.as_listed(raw, row.image) for row in rows]
    near = near_duplicates.pairs(near_duplicates.thumbnails(files))
    tested = {people[row.identity] for row in rows if row.split == "test"} or None
    found = division.divide(shown, near, seed, share, tested)
    kept = [row._replace(split=split) for row, split in zip(rows, found.splits, strict=True) if split]
    return kept + junk, found.rule


def look_alikes(rows: Sequence[Row], raw: Path) -> str:
    """Returns how many gallery pictures look like a query of their person, a camera being unknown; "" for none.

    Such pairs are found without knowing the person: copies, also in another size or quality, and neighbouring frames.
    """
    rows = [row for row in rows if row.split in (division.QUERY, division.GALLERY)]
    people = {row.identity for row in rows if row.camera is None}
    rows = [row for row in rows if row.identity in people]
    files = [raw / reading.as_listed(raw, row.image) for row in rows]
    found = [
        (rows[i], rows[j])
        for i, j in near_duplicates.pairs(near_duplicates.thumbnails(files))
        if rows[i].identity == rows[j].identity
        and rows[i].split != rows[j].split
        and None in (rows[i].camera, rows[j].camera)
    ]
    if not found:
        return ""
    return (
        f"{len(found)} gallery pictures look like a query of the same person, camera unknown, for example "
        f"{found[0][0].image} and {found[0][1].image}: figures are too good; give cameras, or leave them out"
    )


class AttributesError(DatasetError):
    """Reports that task li cannot be made of a table's attributes; no other task reads them."""


def scan_rows(rows: Sequence[Row], raw: Path, *, task: str, namespace: str, table: Path) -> Scan:
    """Makes the Scan of rows that have splits."""
    listed, rows = rows, of_people(rows, table)
    people = _full_names(rows, namespace)
    labels = {
        (people[row.identity], label) for row in rows for label in (row.clothes, row.instruction_clothes) if label
    }
    outfits = _numbers(labels, table)
    _check_pictures(rows, people, raw)
    slots = _slots(rows, task, table)
    templates = {
        (people[row.identity], row.instruction_image): row.clothes
        for row in rows
        if row.instruction_image and row.split != "query"
    }
    splits: dict[str, list[Picture]] = {}
    for row in rows:
        person = people[row.identity]
        item = _picture(raw, row, task, person, outfits, slots)
        if row.split == "query" and tasks.task(task).composed:  # it asks for its template's outfit, which is not worn
            wanted = row.instruction_clothes or templates.get((person, row.instruction_image), "")
            wanted_outfit = outfits.get((person, wanted), schema.UNKNOWN)
            item = item._replace(attributes=(), instruction_clothes=wanted_outfit)
        splits.setdefault(row.split, []).append(item)
    ordered = {
        split: [
            record
            for item in checks.distinct(splits[split], f"{table}, split {split}")
            for record in checks.records_of(item, task, split)
        ]
        for split in SPLITS
        if split in splits
    }
    source: dict[str, object] = {"layout": "table", "table": table.name, "slots": slots}
    if len(rows) < len(listed):
        logging.info("%s: %d rows of no person (identity %d) left out", table, len(listed) - len(rows), JUNK)
        source["dropped_junk"] = len(listed) - len(rows)
    if made := sum(_is_made(row, task) for row in rows):
        source["sentences"] = f"of {made} rows made from attributes by templates, seeded by file name"
    return checks.scan_of(ordered, str(table), task, source)


def _slots(rows: Sequence[Row], task: str, table: Path) -> dict[str, list[str]]:
    """Returns {slot: its values} of the attributes, {} if they are too many and the task reads none."""
    slots: dict[str, list[str]] = {}
    for slot, value in sorted({pair for row in rows for pair in row.attributes}):
        slots.setdefault(slot, []).append(value)
    if len(slots) <= schema.ATTRIBUTE_SLOTS:
        return slots
    words = (
        f"{table}, column 'attributes': {len(slots)} slots ({', '.join(slots)}), but a record has "
        f"{schema.ATTRIBUTE_SLOTS} at most"
    )
    if task == "li":
        raise AttributesError(f"{words}: leave some out")
    logging.warning("%s: they are left out of the data set of task %s", words, task)
    return {}


def _check_pictures(rows: Sequence[Row], people: Mapping[str, str], raw: Path) -> None:
    """Raises DatasetError if two rows, of one split or of two, say that a picture shows different things.

    Cameras of two splits may differ: the evaluation counts such pictures.
    """
    said: dict[str, Row] = {}
    for row in rows:
        other = said.setdefault(reading.as_listed(raw, row.image), row)
        for what, one, two in (
            ("person", people[other.identity], people[row.identity]),
            ("clothes", other.clothes, row.clothes),
            ("modality", other.modality, row.modality),
        ):
            if one != two and "" not in (one, two):
                raise DatasetError(
                    f"{row.where}: {row.image} stands in {other.where} as well, with {what} {one!r} and {two!r}: a "
                    "picture shows one person once; correct or remove one of the rows"
                )


def _is_made(row: Row, task: str) -> bool:
    return task == "li" and not row.captions and not row.instructions


def _full_names(rows: Sequence[Row], namespace: str) -> dict[str, str]:
    """Returns {identity as the table writes it: the person's full name}.

    Raises DatasetError for a full name without namespace or person, and for one number written in two ways.
    """
    names: dict[str, str] = {}
    first: dict[str, Row] = {}
    for row in rows:
        if row.identity in names:
            continue
        own, slash, pid = row.identity.partition("/")
        if slash and not all(part.strip() for part in row.identity.split("/")):
            raise DatasetError(
                f"{row.where}, column 'identity': {row.identity!r} is no full name: write namespace/person, or a name "
                f"without /"
            )
        name = person_name(own, pid) if slash else person_name(namespace, row.identity)
        other = first.setdefault(name, row)
        if other.identity != row.identity and "/" not in other.identity + row.identity:
            is_number = reading.number(row.identity) is not None
            what, apart = ("number", "zeros") if is_number else ("name", "how accents are coded")
            raise DatasetError(
                f"{row.where}, column 'identity': {row.identity!r} is the {what} of {other.identity!r} "
                f"({other.where}): write one person alike, and tell two people apart by more than {apart}"
            )
        names[row.identity] = name
    return names


def _numbers(pairs: set[tuple[str, str]], table: Path) -> dict[tuple[str, str], int]:
    """Returns {(person's full name, label of an outfit): number}.

    The number depends on the label alone, so that tables agree on it: the label's value, or else a checksum of it.
    Raises DatasetError if two outfits of a person get one number.
    """
    numbers: dict[tuple[str, str], int] = {}
    taken: dict[tuple[str, int], str] = {}
    for person, label in sorted(pairs):
        number = label_number(label)
        other = taken.setdefault((person, number), label)
        if other != label:
            raise DatasetError(
                f"{table}, column 'clothes': outfits {other!r} and {label!r} of {person} get one number: rename one"
            )
        numbers[person, label] = number
    return numbers


def _check_task(rows: Sequence[Row], task: str, table: Path, crops: Kind | None) -> None:
    """Raises DatasetError naming the line of the first row without what the task needs."""

    def refuse(row: Row, column: str, cure: str) -> None:
        raise DatasetError(f"{row.where}, column {column!r}: it is empty, but task {task} needs it: {cure}")

    splits = {row.split for row in rows}
    if ("query" in splits) != ("gallery" in splits):
        raise DatasetError(
            f"{table}: split query and split gallery need each other; it has {', '.join(sorted(splits))}"
        )
    if task == "vi" and len({row.modality for row in rows}) < 2:
        raise DatasetError(f"{table}, column 'modality': task vi needs visible and infrared pictures")
    for row in rows:
        has_caption = row.split in ("train", "query") or tasks.task(task).has_query_image
        if task == "cc" and not row.clothes:
            refuse(row, "clothes", "name the person's outfit")
        if task == "ctcc" and not row.instruction_image and crops is None:
            refuse(row, "instruction_image", "give a picture of clothes, or build with --clothes_crops outfit")
        if task == "t2i" and has_caption and not row.captions:
            refuse(row, "caption", "describe the person")
        if task == "li" and not row.captions and not row.attributes and not row.instructions:
            refuse(row, "caption", "give a sentence, or attributes to make one from")


def _picture(
    raw: Path,
    row: Row,
    task: str,
    person: str,
    outfits: dict[tuple[str, str], int],
    slots: dict[str, list[str]],
) -> Picture:
    own = dict(row.attributes)
    values = tuple(slots[slot].index(own[slot]) if slot in own else schema.UNKNOWN for slot in slots)
    clothes = outfits.get((person, row.clothes), schema.UNKNOWN)
    image, template = reading.as_listed(raw, row.image), reading.as_listed(raw, row.instruction_image)
    template_size = 0
    if template:
        template_size = reading.listed_size(raw, template, f"{row.where}, column 'instruction_image'")
    return Picture(
        file=image,
        person=person,
        camera=UNKNOWN_CAMERA.get(row.split, -2) if row.camera is None else row.camera,
        size=reading.listed_size(raw, image, f"{row.where}, column 'image'"),
        clothes=clothes,
        modality=row.modality,
        sentences=_sentences(row, task),
        attributes=values,
        instruction_attributes=values,
        instruction_clothes=clothes if tasks.task(task).composed else schema.UNKNOWN,
        template=template,
        template_size=template_size,
    )


def _sentences(row: Row, task: str) -> tuple[str, ...]:
    """Returns the sentences of a record: captions, or for li the row's instructions, which templates make if missing.

    Outside of training a record keeps one instruction, chosen by the file's name. It keeps all captions; a test set
    reads one of them.
    """
    if task != "li":
        return row.captions
    count = _PARAPHRASES.get(row.split, 1)
    if _is_made(row, task):
        return template_sentences(row, count, row.image)
    if not row.instructions or count > 1:
        return row.instructions or row.captions
    number = int.from_bytes(hashlib.sha256(row.image.encode()).digest()[:8], "big")
    return (row.instructions[number % len(row.instructions)],)


def template_sentences(row: Row, count: int, seed: str) -> tuple[str, ...]:
    """Returns up to `count` sentences of the row's attributes by the templates of `sentences`.

    Raises AttributesError naming the row if there are no templates for its attributes.
    """

    def write(rng: np.random.Generator) -> str:
        return wanted_sentence(dict(row.attributes), rng)

    try:
        return attribute_sentences.paraphrases(write, count, seed)
    except (ValueError, KeyError) as error:
        raise AttributesError(
            f"{row.where}, column 'attributes': no sentence can be made ({error}): give a caption or instruction, or "
            "use the slots upper colour, pattern, lower colour, bag (none, backpack, shoulder bag), shoes, hat, sleeves"
        ) from error
