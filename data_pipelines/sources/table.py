"""A data set of one's own from one table: CSV with a header, or JSON lines (`.jsonl`); see README for an example.

    image              file, relative to the folder of pictures, or absolute
    identity           any text; with a / it is a person's full name, as market1501/0002, shared with that data set
    camera             whole number from 0; empty where it is not known
    split              train, query, gallery or test
    clothes            (optional) any text: which of the person's outfits is worn
    modality           (optional) visible or infrared; empty is visible
    caption            (optional) sentences, separated by | (JSON: text or list of texts)
    instruction_image  (optional) file of a picture, as image
    attributes         (optional) `slot=value; slot=value` (JSON: that text or an object)

Tasks need: cc clothes; vi pictures of both modalities; ctcc an instruction_image (or cut-out clothes, see
clothes_crops); li a caption or attributes; t2i a caption in train and query, where a query row with several captions
becomes one record per caption. Attributes say what is worn. Those of a query of ctcc or li say what it asks for, and
its wanted outfit is the one with the same template in train or gallery. Several tables, or one table under several
tasks, share people by a common namespace, and a person's outfits by their labels. Attribute slots are numbered by the
values of one table, and compare only within it.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import logging

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import attribute_sentences
from data_pipelines.instructions.clothes_crops import Kind
from data_pipelines.instructions.sentences import wanted_sentence
from data_pipelines.people.names import JUNK, person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.datalist import UNKNOWN_CAMERA
from data_pipelines.sources.reading import Picture, is_utf8

REQUIRED = ("image", "identity", "camera", "split")
COLUMNS = (*REQUIRED, "clothes", "modality", "caption", "instruction_image", "attributes")
SPLITS = ("train", "query", "gallery", "test")
_MODALITIES = {"": schema.VISIBLE, "visible": schema.VISIBLE, "infrared": schema.INFRARED}
_PARAPHRASES = {"train": 3}


class Row(NamedTuple):
    """One line of the table; `where` is "file, line n", `camera` None where it is unknown."""

    where: str
    image: str
    identity: str
    camera: int | None
    split: str
    clothes: str = ""
    modality: int = schema.VISIBLE
    captions: tuple[str, ...] = ()
    instruction_image: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


def source(name: str, task: str, namespace: str, table: str, crops: Kind | None = None) -> Source:
    """Returns the source of a table (CSV, or JSON lines if its name ends with .jsonl); `crops`: see clothes_crops."""
    return Source(
        name=name,
        task=task,
        namespace=namespace,
        expected={},
        scan=functools.partial(scan, task=task, namespace=namespace, table=Path(table), crops=crops),
        load=reading.load,
    )


def scan(raw: Path, *, task: str, namespace: str, table: Path, crops: Kind | None = None) -> Scan:
    """Reads the table; records are in the order of its lines. `raw` is the folder that its paths begin in."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"cannot read the table {table} ({error.strerror}): correct the path") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not text in UTF-8 ({error}): save it as such") from error
    listed = parse(text, str(table), json_lines=table.suffix == ".jsonl")
    rows = [row for row in listed if row.identity != str(JUNK)]
    _check_task(rows, task, table, crops)
    people = _full_names(rows, namespace)
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
        if row.split == "query" and tasks.task(task).composed:  # it asks for its template's outfit, which is not worn
            wanted = templates.get((person, row.instruction_image), "")
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


def _is_made(row: Row, task: str) -> bool:
    return task == "li" and not row.captions


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
            raise DatasetError(
                f"{row.where}, column 'identity': {row.identity!r} is the number of {other.identity!r} "
                f"({other.where}): write one person alike, and tell two people apart by more than zeros"
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
        own = reading.number(label)
        number = zlib.crc32(label.encode()) & schema.MAX_CLOTHES if own is None or own > schema.MAX_CLOTHES else own
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
        sentences=_made(row) if _is_made(row, task) else row.captions,
        attributes=values,
        instruction_attributes=values,
        instruction_clothes=clothes if tasks.task(task).composed else schema.UNKNOWN,
        template=template,
        template_size=template_size,
    )


def _made(row: Row) -> tuple[str, ...]:
    """Makes sentences of the row's attributes by the templates of `sentences`, seeded by the file's name."""

    def write(rng: np.random.Generator) -> str:
        return wanted_sentence(dict(row.attributes), rng)

    try:
        return attribute_sentences.paraphrases(write, _PARAPHRASES.get(row.split, 1), row.image)
    except (ValueError, KeyError) as error:
        raise DatasetError(
            f"{row.where}, column 'attributes': no sentence can be made ({error}): give a caption, or use the slots "
            f"upper colour, pattern, lower colour, bag (none, backpack, shoulder bag), shoes, hat, sleeves"
        ) from error


def parse(text: str, name: str, *, json_lines: bool) -> list[Row]:
    """Returns the rows of a table. Raises DatasetError naming file, line and column of the first thing wrong."""
    cells = _json_cells(text, name) if json_lines else _csv_cells(text, name)
    rows = [_row(where, values) for where, values in cells]
    if not rows:
        raise DatasetError(f"{name} has no rows: give one line a picture")
    return rows


def _csv_cells(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        first = reader.line_num + 1  # a quoted cell may go over several lines
        where = f"{name}, line {first}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DatasetError(
                f"{where}: not CSV ({error}): quote a cell that holds commas, quotes or line ends"
            ) from error
        if cells is None:
            break
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            _check_columns(where, header, REQUIRED)
            continue
        if len(cells) != len(header):
            raise DatasetError(
                f"{where}: {len(cells)} columns, but the header has {len(header)}: quote cells with commas"
            )
        yield where, dict(zip(header, cells, strict=True))
    if not header:
        raise DatasetError(f"{name} is empty: it needs a header with the columns {', '.join(REQUIRED)}")


def _json_cells(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where}: not JSON ({error}): one object a line") from error
        if not isinstance(values, dict):
            raise DatasetError(f"{where}: {line.strip()[:40]!r} is no JSON object: one object a line")
        _check_columns(where, list(values), [key for key in REQUIRED if key != "camera"])
        yield where, values


def _check_columns(where: str, names: list[str], required: Any) -> None:
    for name in names:
        if name not in COLUMNS:
            raise DatasetError(f"{where}: unknown column {name!r}; the columns are {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise DatasetError(f"{where}: column {name!r} stands there twice")
    missing = [name for name in required if name not in names]
    if missing:
        raise DatasetError(f"{where}: column {missing[0]!r} is missing (needed: {', '.join(required)})")


def _row(where: str, values: dict[str, Any]) -> Row:
    def wrong(column: str, reason: str) -> NoReturn:
        raise DatasetError(f"{where}, column {column!r}: {reason}")

    def cell(column: str) -> str:
        value = values.get(column)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            wrong(column, f"{value!r} must be text")
        if not is_utf8(str(value)):
            wrong(column, f"{value!r} holds half a character, which cannot be stored")
        return str(value).strip()

    def needed(column: str) -> str:
        return cell(column) or wrong(column, "it is empty")

    camera = cell("camera")
    number = reading.number(camera)
    if camera and (number is None or number > schema.MAX_CAMERA):
        wrong(
            "camera", f"{camera!r} must be a whole number from 0 to {schema.MAX_CAMERA}, or empty where it is not known"
        )
    if cell("split") not in SPLITS:
        wrong("split", f"{cell('split')!r} is none of {', '.join(SPLITS)}")
    if cell("modality").lower() not in _MODALITIES:
        wrong("modality", f"{cell('modality')!r} is neither visible nor infrared")
    captions = values.get("caption")
    if isinstance(captions, list):
        if not all(isinstance(text, str) and is_utf8(text) for text in captions):
            wrong("caption", "it must be text, or a list of texts")
    else:
        captions = cell("caption").split("|")
    return Row(
        where=where,
        image=needed("image"),
        identity=needed("identity"),
        camera=number,
        split=cell("split"),
        clothes=cell("clothes"),
        modality=_MODALITIES[cell("modality").lower()],
        captions=tuple(text.strip() for text in captions if text.strip()),
        instruction_image=cell("instruction_image"),
        attributes=_attributes(values.get("attributes"), cell, wrong),
    )


def _attributes(value: Any, cell: Any, wrong: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, dict):
        pairs = [(str(slot).strip(), str(named).strip()) for slot, named in value.items()]
    else:
        pairs = []
        for part in filter(str.strip, cell("attributes").split(";")):
            slot, equals, named = part.partition("=")
            if not equals:
                wrong("attributes", f"{part.strip()!r} must be slot=value")
            pairs.append((slot.strip(), named.strip()))
    for slot, named in pairs:
        if not is_utf8(slot + named):
            wrong("attributes", f"{slot!r}={named!r} holds half a character, which cannot be stored")
        if not slot or not named:
            wrong("attributes", f"{slot}={named}: a slot and its value must not be empty")
        if [other for other, _ in pairs].count(slot) > 1:
            wrong("attributes", f"slot {slot!r} stands there twice")
    return tuple(sorted(pairs))
