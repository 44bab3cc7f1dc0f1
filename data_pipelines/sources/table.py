"""A data set of one's own, from one table (see table_parser for its columns), for any task.

What a task needs: cc clothes; vi pictures of both modalities; ctcc an instruction_image (or cut-out clothes, see
clothes_crops); li a caption or attributes; t2i a caption in train and query. Of t2i a query row with several captions
becomes one record a caption. What a query of ctcc or li asks for is not what it wears: its attributes are those of the
instruction, and the outfit it asks for is the one that has the same template in train or gallery. Several tables, or
one table under several tasks, share people by a common namespace, and a person's outfits by their labels. Slots of
attributes are numbered by what one table holds, and compare only within it.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import attribute_sentences
from data_pipelines.instructions import sentences as instructions
from data_pipelines.instructions.clothes_crops import Kind
from data_pipelines.people.names import person_name
from data_pipelines.sources import Scan, Source, checks, reading, table_parser
from data_pipelines.sources.datalist import UNKNOWN_CAMERA
from data_pipelines.sources.reading import Picture
from data_pipelines.sources.table_parser import Row

_PARAPHRASES = {"train": 3}


def source(name: str, task: str, namespace: str, table: str, crops: Kind | None = None) -> Source:
    """Returns the source of a table (CSV, or JSON lines if its name ends with .jsonl). `crops`: see clothes_crops."""
    return Source(
        name=name,
        version="1.0.0",
        task=task,
        namespace=namespace,
        expected={},
        scan=functools.partial(scan, task=task, namespace=namespace, table=Path(table), crops=crops),
        load=reading.load,
    )


def scan(raw: Path, *, task: str, namespace: str, table: Path, crops: Kind | None = None) -> Scan:
    """Reads the table; records stand in the order of its lines. `raw` is the folder that its paths begin in."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"cannot read the table {table} ({error.strerror}): correct the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not text in UTF-8 ({error}): save it as such") from error
    rows = table_parser.parse(text, str(table), json_lines=table.suffix == ".jsonl")
    _check_task(rows, task, table, crops)
    people = {row.identity: _full_name(row.identity, namespace) for row in rows}
    outfits = _numbers({(people[row.identity], row.clothes) for row in rows if row.clothes}, table)
    slots: dict[str, list[str]] = {}
    for slot, value in sorted({pair for row in rows for pair in row.attributes}):
        slots.setdefault(slot, []).append(value)
    if len(slots) > schema.ATTRIBUTE_SLOTS:
        raise DatasetError(
            f"{table}, column 'attributes': {len(slots)} slots ({', '.join(slots)}), but a record has "
            f"{schema.ATTRIBUTE_SLOTS} at most: leave some out"
        )
    templates = {
        (people[row.identity], row.instruction_image): row.clothes
        for row in rows
        if row.instruction_image and row.split != "query"
    }
    splits: dict[str, list[Picture]] = {}
    for row in rows:
        person = people[row.identity]
        item = _picture(raw, row, task, person, outfits, slots)
        if row.split == "query" and tasks.task(task).composed:  # it asks for what is not worn: its template's outfit
            wanted = templates.get((person, row.instruction_image), "")
            wanted_outfit = outfits.get((person, wanted), schema.UNKNOWN)
            item = item._replace(attributes=(), instruction_clothes=wanted_outfit)
        splits.setdefault(row.split, []).extend(checks.records_of(item, task, row.split))
    ordered = {split: splits[split] for split in table_parser.SPLITS if split in splits}
    source: dict[str, object] = {"layout": "table", "table": table.name, "slots": slots}
    if made := sum(_is_made(row, task) for row in rows):
        source["sentences"] = f"of {made} rows made from attributes by templates, seeded by file name"
    return checks.scan_of(ordered, str(table), task, source)


def _is_made(row: Row, task: str) -> bool:
    return task == "li" and not row.captions


def _full_name(identity: str, namespace: str) -> str:
    return identity if "/" in identity else person_name(namespace, identity)


def _numbers(pairs: set[tuple[str, str]], table: Path) -> dict[tuple[str, str], int]:
    """(person's full name, label of an outfit) -> number, which depends on the label alone: tables agree on it.

    A label that is a number is that number; of others it is a checksum. Raises DatasetError if two outfits of a person
    get one number.
    """
    numbers: dict[tuple[str, str], int] = {}
    taken: dict[tuple[str, int], str] = {}
    for person, label in sorted(pairs):
        number = int(label) if label.isascii() and label.isdecimal() and len(label) < 10 else zlib.crc32(label.encode())
        number &= schema.MAX_CLOTHES
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
        asks = row.split in ("train", "query") or tasks.task(task).has_query_image
        if task == "cc" and not row.clothes:
            refuse(row, "clothes", "name the person's outfit")
        if task == "ctcc" and not row.instruction_image and crops is None:
            refuse(row, "instruction_image", "give a picture of clothes, or build with --clothes_crops outfit")
        if task == "t2i" and asks and not row.captions:
            refuse(row, "caption", "describe the person")
        if task == "li" and not row.captions and not row.attributes:
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
    template_size = 0
    if row.instruction_image:
        template_size = reading.listed_size(raw, row.instruction_image, f"{row.where}, column 'instruction_image'")
    return Picture(
        file=row.image,
        person=person,
        camera=UNKNOWN_CAMERA.get(row.split, -2) if row.camera is None else row.camera,
        size=reading.listed_size(raw, row.image, f"{row.where}, column 'image'"),
        clothes=clothes,
        modality=row.modality,
        sentences=_made(row) if _is_made(row, task) else row.captions,
        attributes=values,
        instruction_attributes=values,
        instruction_clothes=clothes if tasks.task(task).composed else schema.UNKNOWN,
        template=row.instruction_image,
        template_size=template_size,
    )


def _made(row: Row) -> tuple[str, ...]:
    """Sentences from the row's attributes, by the templates of instructions, seeded by the file's name."""

    def write(rng: np.random.Generator) -> str:
        return instructions.wanted_sentence(dict(row.attributes), rng)

    try:
        return attribute_sentences.paraphrases(write, _PARAPHRASES.get(row.split, 1), row.image)
    except (ValueError, KeyError) as error:
        raise DatasetError(
            f"{row.where}, column 'attributes': no sentence can be made ({error}): give a caption, or use the slots "
            f"upper colour, pattern, lower colour, bag (none, backpack, shoulder bag), shoes, hat, sleeves"
        ) from error
