"""The rows of a table of pictures, made of the cells that `table_files` reads; what is wrong is named with its line."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from absl import logging

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.sources import reading, table_files
from data_pipelines.sources.reading import is_utf8
from data_pipelines.sources.table_files import COLUMNS, MORE_COLUMNS, SPLITS, Cells

_MODALITIES = {"": schema.VISIBLE, "visible": schema.VISIBLE, "infrared": schema.INFRARED}


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
    instruction_clothes: str = ""
    instructions: tuple[str, ...] = ()


def parse(text: str, name: str, *, json_lines: bool) -> list[Row]:
    """Returns the rows of a table. Raises DatasetError naming file, line and column of the first thing wrong."""
    cells = list(table_files.json_cells(text, name) if json_lines else table_files.csv_cells(text, name))
    if not cells:
        raise DatasetError(f"{name} has no rows: give one line a picture")
    return rows_of(cells)


def rows_of(cells: Sequence[Cells]) -> list[Row]:
    """Returns the rows of the cells of a table, in their order. Raises DatasetError naming line and column."""
    known = (*COLUMNS, *MORE_COLUMNS)
    others = sorted({name for _, values in cells[:1000] for name in values if name} - {*known})
    for name in others:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
        if near:
            logging.warning("%s: column %r is kept, not read; did you mean %r?", cells[0][0], name, near[0])
    labels: dict[int, str] = {}
    for where, values in cells:
        label = table_files.text_of(values.get("camera")) or ""
        number = camera_number(label)
        if number is not None and labels.setdefault(number, label) != label and reading.number(label) is None:
            raise DatasetError(f"{where}, column 'camera': {label!r} and {labels[number]!r} get one number: rename one")
    return [_row(where, values) for where, values in cells]


def _row(where: str, values: dict[str, Any]) -> Row:
    def wrong(column: str, reason: str) -> NoReturn:
        raise DatasetError(f"{where}, column {column!r}: {reason}")

    def cell(column: str) -> str:
        text = table_files.text_of(values.get(column))
        if text is None:
            wrong(column, f"{values[column]!r} must be text")
        if not is_utf8(text) or "\0" in text:
            wrong(column, f"{text!r} holds half a character, or one of number 0, which cannot be stored")
        return text

    def needed(column: str) -> str:
        return cell(column) or wrong(column, "it is empty; fill it in, or leave the row out")

    if "split" in values and cell("split") not in SPLITS:
        wrong("split", f"{cell('split')!r} is none of {', '.join(SPLITS)}")
    if cell("modality").lower() not in _MODALITIES:
        wrong("modality", f"{cell('modality')!r} is neither visible nor infrared")

    def sentences(column: str) -> tuple[str, ...]:
        texts = values.get(column)
        if not isinstance(texts, list):
            texts = cell(column).split("|")
        elif not all(isinstance(text, str) and is_utf8(text) for text in texts):
            wrong(column, "it must be text, or a list of texts")
        return tuple(text.strip() for text in texts if text.strip())

    return Row(
        where=where,
        image=needed("image"),
        identity=needed("identity"),
        camera=camera_number(cell("camera")),
        split=cell("split"),
        clothes=cell("clothes"),
        modality=_MODALITIES[cell("modality").lower()],
        captions=sentences("caption"),
        instruction_image=cell("instruction_image"),
        attributes=_attributes(values.get("attributes"), cell, wrong),
        instruction_clothes=cell("instruction_clothes"),
        instructions=sentences("instruction"),
    )


def camera_number(label: str) -> int | None:
    """Returns a camera's number, None for an unknown one ("", and -1 or -2 as lists have it).

    It depends on the label alone, so that tables agree on it: the label's value, or else a checksum of it.
    """
    if label in ("", "-1", "-2"):
        return None
    return label_number(label)


def label_number(label: str) -> int:
    """Returns the number of a camera's or outfit's label: its value, or else a checksum."""
    own = reading.number(label)
    return zlib.crc32(label.encode()) & schema.MAX_CAMERA if own is None or own > schema.MAX_CAMERA else own


def _attributes(value: Any, cell: Any, wrong: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):  # a map of Parquet
        value = dict(value)
    if isinstance(value, dict):
        known = [(slot, table_files.text_of(named)) for slot, named in value.items()]
        pairs = [(str(slot).strip(), str(value[slot]) if named is None else named) for slot, named in known]
        pairs = [(slot, named) for slot, named in pairs if value.get(slot) is not None]  # a struct of Parquet has all
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
