"""Reads the cells of a table of pictures: CSV, TSV, JSON lines, Parquet, lists of lines, or a folder per person.

crops.csv, .tsv, .txt    a header, then one picture a line; delimiter (, ; tab |), quotes (" or ') and the encoding
                         (UTF-8 with or without a byte order mark, UTF-16 with one) are recognised
crops.jsonl, .json       one JSON object a line, or a list of objects
crops.parquet            one row a picture
list.txt                 without a header: `path person [camera]`, the list files of torchreid and fast-reid
lists/                   list_train.txt, list_query.txt, list_gallery.txt of that form (and list_val.txt, not used)
folder/                  PERSON/*.jpg, or SPLIT/PERSON/*.jpg: train, query, gallery, test (and val, not used)
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from data_pipelines.errors import DatasetError
from data_pipelines.images import SUFFIXES
from data_pipelines.sources import reading

Cells = tuple[str, dict[str, Any]]
"""("file, line n", {column: value}) of one picture."""
REQUIRED = ("image", "identity")
COLUMNS = (
    *REQUIRED, "camera", "split", "clothes", "modality", "caption", "instruction_image", "attributes",
)  # fmt: skip
MORE_COLUMNS = ("instruction", "instruction_clothes", "time")
"""The columns that are read; others are kept beside the data set."""
_KNOWN = {*COLUMNS, *MORE_COLUMNS}
SPLITS = ("train", "query", "gallery", "test")
_UNUSED = {"val", "valid", "validation"}
"""Folders that are left out where splits have folders."""
_DELIMITERS = ",;\t|"
_LIST = re.compile(r"(?:^|[_\-.])(train|query|gallery|test)(?:[_\-.]|$)")
_WHOLE = re.compile(r"(-?\d+)\.0+")


def columns_of(
    where: str, names: Sequence[Any], needed: Collection[str] = REQUIRED, kept: Collection[str] = ()
) -> list[str]:
    """Returns the names of columns: known ones however they are capitalised, unless they are in `kept` as they are.

    Raises DatasetError for a column that is there twice, or a needed one that is missing.
    """
    plain = [str(name).strip() for name in names]
    found = [name.lower() if name.lower() in _KNOWN and name not in kept else name for name in plain]
    for name in found:
        if name and found.count(name) > 1:
            raise DatasetError(f"{where}: column {name!r} stands there twice")
    missing = [name for name in needed if name not in found]
    if missing:
        raise DatasetError(
            f"{where}: column {missing[0]!r} is missing (needed: {', '.join(needed)}; found: "
            f"{', '.join(filter(None, found)) or 'none'}); rename the column that holds it, or add a line of names"
        )
    return found


Columns = Callable[[str, Sequence[Any]], list[str]]
"""f(where, names as they are written) -> names, as `columns_of`."""


def cells_of(path: Path, columns: Columns = columns_of) -> list[Cells]:
    """Returns the cells of every picture as they are written. Raises DatasetError naming what is wrong where."""
    if path.is_dir():
        return _lists(path) or list(_folder(path))
    if path.suffix.lower() in (".parquet", ".pq"):
        return list(_parquet(path, columns))
    text = _text(path)
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return list(json_cells(text, str(path), columns))
    if path.suffix.lower() == ".txt" and not _has_header(text):
        return list(_list(path))
    return list(csv_cells(text, str(path), columns))


def read(path: Path) -> list[Cells]:
    """Returns the cells of every picture of a table, list or folder. Raises DatasetError naming what is wrong where."""
    cells = cells_of(path)
    if not cells:
        raise DatasetError(f"{path} has no rows: {_wanted(path) if path.is_dir() else 'give one line a picture'}")
    for column in ("identity", "camera", "clothes", "instruction_clothes"):
        _whole_numbers(cells, column, str(path))
    return cells


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read the table {path} ({error.strerror}): correct the path") from error
    if data.startswith(b"PK"):
        raise DatasetError(f"{path} is a spreadsheet or an archive: save the table as CSV, or unpack it")
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text in UTF-8 ({error}): save it as such") from error
    reading.check_text(text, path)
    return text


def _whole_numbers(cells: Sequence[Cells], column: str, name: str) -> None:
    """Turns 3.0 into 3 in a column of such numbers alone: pandas writes them so where a value is missing."""
    values = [text for _, row in cells if isinstance(text := row.get(column), str) and text.strip()]
    if values and all(_WHOLE.fullmatch(text.strip()) for text in values):
        logging.info("%s, column %r: 3.0 and the like are read as whole numbers", name, column)
        for _, row in cells:
            if isinstance(text := row.get(column), str):
                row[column] = _WHOLE.sub(r"\1", text.strip())


def _dialect(header: str, name: str) -> dict[str, Any]:
    """Returns the delimiter and the quotes under which a header states most known columns, or most columns."""
    quote = "'" if "'" in header and '"' not in header else '"'

    def known(delimiter: str) -> tuple[int, bool, int]:
        try:
            (names,) = csv.reader([header], delimiter=delimiter, quotechar=quote, skipinitialspace=True)
        except (csv.Error, ValueError):
            return 0, False, 0
        is_named = delimiter == "\t" and name.lower().endswith(".tsv")
        return len({cell.strip().lower() for cell in names} & _KNOWN), is_named, len(names)

    return {"delimiter": max(_DELIMITERS, key=known), "quotechar": quote, "skipinitialspace": True}


def _has_header(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    names = next(csv.reader([first], **_dialect(first, "")), [])
    return bool({name.strip().lower() for name in names} & {*REQUIRED})


def csv_cells(text: str, name: str, columns: Columns = columns_of) -> Iterator[Cells]:
    """Yields the cells of a CSV file with a header, whatever its delimiter."""
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **_dialect(first_line, name))
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
            header = columns(where, cells)
            continue
        if len(cells) != len(header):
            raise DatasetError(
                f"{where}: {len(cells)} columns, but the header has {len(header)}: quote cells with commas"
            )
        yield where, dict(zip(header, cells, strict=True))
    if not header:
        raise DatasetError(f"{name} is empty: it needs a header that names its columns, and one line a picture")


def json_cells(text: str, name: str, columns: Columns = columns_of) -> Iterator[Cells]:
    """Yields the objects of JSON lines, or of a JSON list."""
    if name.lower().endswith(".json") and text.lstrip().startswith("["):
        try:
            listed = json.loads(text, object_pairs_hook=reading.unique_keys)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{name}, line 1: not JSON ({error}): a list of objects, or one a line") from error
        values = [(f"{name}, entry {number}", value) for number, value in enumerate(listed, 1)]
    else:
        values = [(f"{name}, line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for where, value in values:
        try:
            row = json.loads(value, object_pairs_hook=reading.unique_keys) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where}: not JSON ({error}): one object a line") from error
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: {str(value).strip()[:40]!r} is no JSON object: one object a line")
        yield where, dict(zip(columns(where, list(row)), row.values(), strict=True))


def _parquet(path: Path, columns: Columns) -> Iterator[Cells]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        # Python's times have no nanoseconds, which pandas writes.
        times = [n for n, field in enumerate(table.schema) if pa.types.is_timestamp(field.type)]
        for n in times:
            table = table.set_column(n, table.column_names[n], table.column(n).cast(pa.string()))
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"cannot read the table {path} ({error}): correct the path, or write it again") from error
    names = columns(str(path), table.column_names)
    number = 0
    for batch in table.to_batches():
        try:
            values = [column.to_pylist() for column in batch.columns]
        except ValueError as error:
            raise DatasetError(f"{path}, row {number + 1} and after: {error}: write the table again") from error
        for row in zip(*values, strict=True):
            number += 1
            yield f"{path}, row {number}", dict(zip(names, row, strict=True))


def _list(path: Path, split: str | None = None, root: Path | None = None) -> Iterator[Cells]:
    """Yields the lines `path person [camera]` of a list."""
    for where, line in reading.lines(path):
        words = line.split()
        numbers = [word for word in words[1:] if re.fullmatch(r"-?\d+", word)]
        if not 2 <= len(words) <= 3 or len(numbers) != len(words) - 1:
            raise DatasetError(
                f"{where}: {line.strip()[:60]!r} is not `path person [camera]`: correct it, or give a table whose "
                f"header names {', '.join(REQUIRED)}"
            )
        row = {"image": words[0], "identity": words[1], "camera": words[2] if len(words) == 3 else ""}
        if split is not None:
            row["split"] = split
        if root is not None and not os.path.exists(root / words[0]):
            for folder in (f"{split}/{words[0]}", f"{'train' if split == 'train' else 'test'}/{words[0]}"):
                if os.path.exists(root / folder):
                    row["image"] = folder
                    break
        yield where, row


def _lists(folder: Path) -> list[Cells]:
    """Returns the rows of the lists of a folder, [] if it holds none."""
    rows = {split: list(_list(path, split, folder)) for split, path in _list_files(folder).items()}
    trained = {row["identity"] for _, row in rows.get("train", [])}
    tested = {row["identity"] for split in rows if split != "train" for _, row in rows[split]}
    if trained & tested:
        logging.info("%s: train and test number people anew, each from its own start: test people are test_*", folder)
        for _, row in (cell for split in rows if split != "train" for cell in rows[split]):
            row["identity"] = row["identity"] if row["identity"] == "-1" else f"test_{row['identity']}"
    return [cell for cells in rows.values() for cell in cells]


def _list_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.txt")):
        found = _LIST.search(path.stem)
        if found and files.setdefault(found[1], path) != path:
            raise DatasetError(
                f"{files[found[1]]} and {path.name} are both lists of split {found[1]}: join them, or move one away"
            )
    return files


def nested(path: Path, cells: Sequence[Cells]) -> str:
    """Returns in words that pictures lie below the folder that names their person; "" where none does."""
    if not path.is_dir() or _list_files(path):
        return ""
    deep = [row["image"] for _, row in cells if Path(row["image"]).parent.name != row["identity"]]
    if not deep:
        return ""
    return (
        f"{len(deep):,} pictures lie in folders below their person's, whom the first folder names, as {deep[0]}: "
        "if the last one does, write a table with the columns image and identity"
    )


def _folder(folder: Path) -> Iterator[Cells]:
    """Yields the pictures of PERSON/*.jpg, or of SPLIT/PERSON/*.jpg."""
    people = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    names = {path.name for path in people}
    if "bounding_box_train" in names:
        raise DatasetError(
            f"{folder} is a raw data set, not a folder a person: build it with --dataset (docs/data_sets.md)"
        )
    by_split = names - _UNUSED <= {*SPLITS} and bool(names - _UNUSED)
    if by_split and names & _UNUSED:
        logging.info("%s: the folder %s is not used", folder, ", ".join(sorted(names & _UNUSED)))
    roots = [(path.name, path) for path in people if path.name not in _UNUSED] if by_split else [("", folder)]
    for split, root in roots:
        for person in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            for file in sorted(path for path in person.rglob("*") if path.suffix.lower() in SUFFIXES):
                name = file.relative_to(folder).as_posix()
                row = {"image": name, "identity": person.name}
                yield f"{folder}, {name}", {**row, "split": split} if split else row


def _wanted(folder: Path) -> str:
    """Returns what a folder without rows needs."""
    loose = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    if not loose:
        return "it needs a folder a person, PERSON/*.jpg, or lists"
    return (
        f"{loose:,} pictures lie in it directly, and who they show is not said: put them into a folder a person, "
        "PERSON/*.jpg, or write a table with the columns image and identity"
    )


def text_of(value: Any) -> str | None:
    """Returns the text of a cell, None for a value that is none: whole numbers as 3, also 3.0; NaN and null as ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        return str(value).strip()
    except ValueError:  # an int of 5,000 digits
        return None


def as_text(value: Any) -> Any:
    """Returns the value of a cell with a list as `one|two`, and named values as `slot=value; slot=value`."""
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):  # a map of Parquet
        value = dict(value)
    if isinstance(value, dict):
        return "; ".join(f"{slot}={named}" for slot, named in value.items() if named is not None)
    return "|".join(map(str, value)) if isinstance(value, list) else value
