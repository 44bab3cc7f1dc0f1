"""Parses a table of one's own pictures: CSV with a header, or JSON lines (`.jsonl`); see README for an example.

    image              file, relative to the folder of pictures, or absolute
    identity           any text; with a / it is a person's full name, as market1501/0002, shared with that data set
    camera             whole number from 0; empty where it is not known
    split              train, query, gallery or test
    clothes            (optional) any text: which of the person's outfits is worn
    modality           (optional) visible or infrared; empty is visible
    caption            (optional) sentences, separated by | (JSON: text or list of texts)
    instruction_image  (optional) file of a picture, as image
    attributes         (optional) `slot=value; slot=value` (JSON: that text or an object)

Attributes are what is worn; those of a query of ctcc or li are what it asks for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.sources.reading import is_utf8

REQUIRED = ("image", "identity", "camera", "split")
COLUMNS = (*REQUIRED, "clothes", "modality", "caption", "instruction_image", "attributes")
SPLITS = ("train", "query", "gallery", "test")
_MODALITIES = {"": schema.VISIBLE, "visible": schema.VISIBLE, "infrared": schema.INFRARED}


class Row(NamedTuple):
    """One line. `where` is "file, line n"; `camera` is None where it is not known."""

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
        except ValueError as error:
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
    if camera and not (camera.isdecimal() and camera.isascii() and int(camera) <= schema.MAX_CAMERA):
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
        camera=int(camera) if camera else None,
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
        if not slot or not named:
            wrong("attributes", f"{slot}={named}: a slot and its value must not be empty")
        if [other for other, _ in pairs].count(slot) > 1:
            wrong("attributes", f"slot {slot!r} stands there twice")
    return tuple(sorted(pairs))
