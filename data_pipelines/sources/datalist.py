"""The datalists of the Instruct-ReID authors (OmniReID), read as they are, for all six tasks.

    <image> <instruction> <pid> <clothes_id> [<camera>]       one line per picture, separated by spaces
    <image> <pid> <clothes_id> <camera>                       cc, ctcc: the same without an instruction

Paths are relative to the raw folder. What the instruction is depends on the task: the file of a picture (cc, ctcc), a
key of the JSON file of sentences (li; t2i, but not in the gallery, whose rows carry a filler), or nothing (trad, vi).
The file has a sentence or a list of them for each key; a query of t2i with several becomes one record per sentence.
A person of -1 is no person, as in Market-1501: the row is left out, and their number is in the manifest.
A missing camera is 0 in train, -1 for a query and -2 in the gallery, so that no junk rule applies. The lists have one
clothes number for what is worn and what the instruction asks for, so it is taken for both.

cc: instruction pictures are stored if they exist (the first row decides); the task's own instruction is a sentence.
ctcc: where a whole list brings no templates, cut-out clothes stand in (clothes_crops, kind `outfit`).
vi: a picture is infrared if a folder of its path, split at `_`, has a part nir, ir, thermal or infrared.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from absl import logging

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.instructions import clothes_crops
from data_pipelines.people.names import JUNK, person_name
from data_pipelines.sources import Scan, Source, checks, reading
from data_pipelines.sources.reading import Picture

UNKNOWN_CAMERA = {"train": 0, "query": -1, "gallery": -2}
_INFRARED = {"nir", "ir", "thermal", "infrared"}
_SENTENCE_TASKS = ("li", "t2i")


class _Row(NamedTuple):
    where: str
    image: str
    instruction: str
    pid: int
    clothes: int
    camera: int | None


def source(
    name: str,
    task: str,
    namespace: str,
    lists: Mapping[str, str],
    sentences: str | None = None,
) -> Source:
    """Returns the source of some lists: split (train, query, gallery) -> file, relative to the raw folder or absolute.

    `sentences` is the JSON file {key: sentence or list of sentences} of li and t2i.
    """
    return Source(
        name=name,
        task=task,
        namespace=namespace,
        expected={},
        scan=functools.partial(scan, name=name, task=task, namespace=namespace, lists=lists, sentences=sentences),
        load=reading.load,
    )


def scan(raw: Path, *, name: str, task: str, namespace: str, lists: Mapping[str, str], sentences: str | None) -> Scan:
    """Reads the lists; records are in the order of their lines."""
    if not raw.is_dir():
        raise DatasetError(f"the raw folder {raw} does not exist: give the folder that the lists' paths begin in")
    if (task in _SENTENCE_TASKS) != (sentences is not None):
        raise DatasetError(
            f"{name}: task {task} takes its sentences from a JSON file: give it with --sentences"
            if sentences is None
            else f"{name}: task {task} has no sentences of its own: leave --sentences out"
        )
    texts = _texts(raw / sentences) if sentences is not None else {}
    rows = {
        split: [_row(*line, _instruction(task, split)) for line in reading.lines(raw / file)]
        for split, file in lists.items()
    }
    splits = {split: _pictures(raw, task, namespace, split, rows[split], texts) for split in rows}
    made: dict[str, object] = {} if sentences is None else {"sentences": Path(sentences).name}
    if any(item.template for items in splits.values() for item in items):
        made["instruction_images"] = "the pictures that the lists name"
    for split in splits:
        if task == "ctcc" and not any(row.instruction for row in rows[split]):
            splits |= checks.with_crops({split: splits[split]}, "outfit", name)
            made["instructions_made"] = {"split": split, **clothes_crops.describe("outfit")}
    if task == "vi" and len({item.modality for items in splits.values() for item in items}) < 2:
        raise DatasetError(
            f"{name}: no picture is infrared, or all are: task vi needs both, told by a folder of the path "
            f"({', '.join(sorted(_INFRARED))}); else give a table with a modality column (--dataset table)"
        )
    if junk := {split: count for split in rows if (count := sum(row.pid == JUNK for row in rows[split]))}:
        logging.info("%s: rows of no person (%d) left out: %s", name, JUNK, junk)
        made["dropped_junk"] = junk
    files = {split: Path(file).name for split, file in lists.items()}
    return checks.scan_of(splits, name, task, {"layout": "datalist", "lists": files, **made})


def _instruction(task: str, split: str) -> Literal["picture", "key", "ignored"]:
    """Returns what the instruction column of a list is."""
    if task in ("cc", "ctcc"):
        return "picture"
    return "key" if task in _SENTENCE_TASKS and (tasks.task(task).has_query_image or split != "gallery") else "ignored"


def _row(where: str, line: str, instruction: Literal["picture", "key", "ignored"]) -> _Row:
    cells = line.split()
    if not 4 <= len(cells) <= 5:
        raise DatasetError(
            f"{where}: {len(cells)} columns, but a line is <image> <instruction> <pid> <clothes> [<cam>]"
        )
    # <image> <pid> <clothes> <camera>: a number is no picture, but may be a key.
    bare = len(cells) == 4 and _is_number(cells[1]) and instruction != "key"
    if bare and instruction == "ignored":
        raise DatasetError(
            f"{where}: {' '.join(cells[1:])!r} may be <instruction> <pid> <clothes> or <pid> <clothes> <cam>: write "
            f"all five columns (any word for an instruction; for a camera that is not known -1, in a gallery -2)"
        )
    numbers = []
    first = 1 if bare else 2
    for column, cell in enumerate(cells[first:], first + 1):
        if not _is_number(cell):
            raise DatasetError(f"{where}, column {column}: {cell!r} must be a whole number")
        numbers.append(int(cell))
    pid, clothes, *camera = numbers
    if pid < JUNK:
        raise DatasetError(f"{where}: person {pid} must be from 0 ({JUNK}: no person, left out)")
    if not schema.UNKNOWN <= clothes <= schema.MAX_CLOTHES:
        raise DatasetError(f"{where}: clothes {clothes} must be from 0 to {schema.MAX_CLOTHES} (-1: not known)")
    if camera and not -2 <= camera[0] <= schema.MAX_CAMERA:
        raise DatasetError(f"{where}: camera {camera[0]} must be from 0 to {schema.MAX_CAMERA} (-1, -2: not known)")
    return _Row(where, cells[0], "" if bare else cells[1], pid, clothes, camera[0] if camera else None)


def _is_number(cell: str) -> bool:
    return reading.number(cell.removeprefix("-")) is not None


def _texts(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=reading.unique_keys)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: correct the path of the sentences") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): give the JSON file of the sentences") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not readable JSON ({error}): get the file again") from error
    if not isinstance(values, dict):
        raise DatasetError(f"{path} is no JSON object of key: sentence; get the file again")
    texts = {}
    for key, value in values.items():
        parts = value if isinstance(value, list) else [value]
        if not parts:
            raise DatasetError(f"{path}, key {key!r}: the value must be a sentence, or a list of sentences")
        reading.check_sentences(parts, f"{path}, key {key!r}")
        texts[key] = tuple(parts)
    return texts


def _pictures(
    raw: Path, task: str, namespace: str, split: str, rows: list[_Row], texts: Mapping[str, tuple[str, ...]]
) -> list[Picture]:
    wants_picture = task == "ctcc" or (task == "cc" and bool(rows) and reading.is_there(raw, rows[0].instruction))
    wants_text = _instruction(task, split) == "key"
    items: list[Picture] = []
    for row in rows:
        if row.pid == JUNK:
            continue
        image = reading.as_listed(raw, row.image)
        item = Picture(
            file=image,
            person=person_name(namespace, row.pid),
            camera=UNKNOWN_CAMERA[split] if row.camera is None else row.camera,
            size=reading.listed_size(raw, image, row.where),
            clothes=row.clothes,
            instruction_clothes=row.clothes if tasks.task(task).composed else schema.UNKNOWN,
        )
        if task == "vi":
            parts = {part.lower() for folder in Path(image).parts[:-1] for part in folder.split("_")}
            item = item._replace(modality=schema.INFRARED if parts & _INFRARED else schema.VISIBLE)
        if wants_picture and row.instruction:
            template = reading.as_listed(raw, row.instruction)
            item = item._replace(template=template, template_size=reading.listed_size(raw, template, row.where))
        if wants_text:
            if row.instruction not in texts:
                raise DatasetError(
                    f"{row.where}, column 2: {row.instruction!r} is no key of the JSON file of sentences"
                )
            item = item._replace(sentences=texts[row.instruction])
        items.append(item)
    found = checks.distinct(items, f"datalist of split {split}")
    return [record for item in found for record in checks.records_of(item, task, split)]
