"""Builds the data sets of a plan, with the table's rows and, for captions, a vocabulary of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from etils import epath

from data_pipelines import tasks
from data_pipelines.dataset.writer import BuildOptions, write_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.files import write_atomically
from data_pipelines.instructions import vocabulary
from data_pipelines.instructions.tokenizer import VOCABULARY, Tokenizer
from data_pipelines.own.plan import ROWS, Plan, place
from data_pipelines.sources import Source, reading, table, table_files


def build(plan: Plan, out: str | os.PathLike[str], options: BuildOptions | None = None) -> None:
    """Builds every data set of the plan into `out`, or finishes what was killed; what is built stays as it is.

    Raises DatasetError as `write_dataset` does.
    """
    raw = plan.options.raw
    for name, scan in plan.scans.items():
        source = Source(name, plan.task_of[name], plan.options.stem, {}, lambda _: scan, reading.load)  # noqa: B023
        write_dataset(out, source.spec(raw, scan), options)
    path = Path(out, ROWS)
    if not path.exists():
        if words := look_alikes(plan):
            logging.warning("%s: %s", plan.options.table, words)
        _write_rows(path, plan)


def look_alikes(plan: Plan) -> str:
    """Returns what `table.look_alikes` says of the plan's rows; a division of this project leaves such pictures out."""
    return "" if plan.division else table.look_alikes(plan.rows, plan.options.raw)


def _write_rows(path: Path, plan: Plan) -> None:
    split = {row.where: row.split for row in plan.rows}
    names = list(dict.fromkeys(name for _, values in plan.cells for name in values if name))
    columns = {name: [_text(values.get(name)) for _, values in plan.cells] for name in names}
    place_column = "row"
    while place_column in columns:  # the table's own
        place_column = f"_{place_column}"
    columns[place_column] = [place(plan.options, where) for where, _ in plan.cells]
    columns["split"] = [split.get(where, "") for where, _ in plan.cells]
    cells = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(cells.replace_schema_metadata({"division": plan.division, "place": place_column}), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def camera_names(folder: epath.Path) -> dict[int, str]:
    """Returns the cameras' names by number, of a data set (its version's folder) of an own table; {} for any other."""
    path = folder.parent.parent / ROWS
    if not path.exists():
        return {}
    cells = pq.read_table(pa.BufferReader(path.read_bytes()))
    labels = set(cells["camera"].to_pylist()) if "camera" in cells.column_names else set()
    numbered = {table.camera_number(label): label for label in labels}
    return {number: label for number, label in numbered.items() if number is not None}


def _text(value: Any) -> str:
    text = table_files.text_of(value)
    found = str(value) if text is None else text
    return found if reading.is_utf8(found) else ascii(found)


def make_vocabulary(plan: Plan, folder: Path) -> str | None:
    """Writes FOLDER/vocab.txt of the training sentences if the built-in vocabulary does not suit them.

    Returns FOLDER, or None where the built-in one does. The same table gives the same file.
    """
    sentences = [
        text
        for name, scan in plan.scans.items()
        if tasks.task(plan.task_of[name]).kind != "visual"
        for item in scan.splits.get("train", ())
        for text in item.sentences
    ]
    suits = vocabulary.fit(Tokenizer(), sentences)
    if suits is None or suits.spelled <= vocabulary.MOST_SPELLED:
        return None
    path = folder / VOCABULARY
    if not path.exists():
        write_atomically(path, "\n".join(vocabulary.entries_of(sentences, least=1)) + "\n")
        logging.info("%s: %d words of the captions", path, len(path.read_text("utf-8").splitlines()))
    return str(folder)


def vocabulary_folder(data_dir: str) -> Path:
    """Returns where the vocabulary of the data sets in a folder goes."""
    return Path(data_dir).expanduser() / "vocabulary"


def require_local(folder: str) -> None:
    """Raises DatasetError for a data folder on object storage: a table is built on a local disk."""
    if "://" in folder:
        raise DatasetError(
            f"config.data.table builds on a local disk, not in {folder}: leave config.data.dir out, or build first and "
            "name the built sets in a run file"
        )
