"""What a table of own pictures allows: which tasks, from which rows, in which data sets, ranked by which rules.

    own          trad and cc, from the rows as they are
    own_vi       vi: pictures of both modalities
    own_ctcc     ctcc: the rows with an instruction_image
    own_li       li: the rows with instructions or attributes (or with captions, where li is asked for)
    own_t2i      t2i: captions of train and of the test people, against all their pictures

`own` stands for the table's name. Where the table has no column `split`, a query of ctcc or li asks for another outfit
that the same person wears in the gallery, with that picture's template or sentence.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.sources import Scan, reading, table, table_files
from data_pipelines.sources.division import GALLERY, QUERY, TRAIN
from data_pipelines.sources.table import Row

ROWS = "rows.parquet"
"""All columns of the table as text, with the place of each row and its `split` as used: for filters and reports."""
_VERSION = 1
"""Raised when the same table would give other data sets."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a table is read.

    Attributes:
      table: a table, list or folder (see sources.table_files).
      pictures: the folder in which its paths begin ("": the table's).
      tasks: those wanted; (): all that it allows.
      test_share, split_seed: of the people who are tested, where the table has no column `split`.
      skip_bad: rows whose picture is missing are left out, and damaged pictures left out of the data sets.
    """

    table: str
    pictures: str = ""
    tasks: tuple[str, ...] = ()
    test_share: float = 0.25
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if unknown := [name for name in self.tasks if name not in tasks.TASKS]:
            raise DatasetError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(tasks.TASKS)}")
        if not 0 < self.test_share < 1:
            raise DatasetError(f"a test share of {self.test_share} leaves one side without people: give 0.1 to 0.5")

    @property
    def raw(self) -> Path:
        """The folder in which the table's paths begin."""
        path = Path(self.table).expanduser()
        return Path(self.pictures).expanduser() if self.pictures else path if path.is_dir() else path.parent

    @property
    def stem(self) -> str:
        """The table's name as the name of data sets and of their namespace."""
        name = re.sub(r"[^a-z0-9]+", "_", Path(self.table).stem.lower()).strip("_") or "own"
        return name if name[0].isalpha() and not name.startswith("procedural") else f"own_{name}"


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """One task of the table: its data set, and the rules that its test set is ranked by, the headline first."""

    task: str
    data_set: str
    protocols: tuple[str, ...]
    by: str


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is built, trained and tested.

    Attributes:
      options: as given.
      rows: of the table, with their splits; `cells` of all its rows, in their order.
      division: how people were divided, "" where the table says it.
      tasks: those that can be trained and tested. refused: task -> why not.
      scans: data set -> its Scan; task_of: the task that its rows were read for.
      notes: what else the user should know.
      digest: a hash of the table, the sizes of its pictures and the options.
    """

    options: Options
    rows: list[Row]
    cells: list[table_files.Cells]
    division: str
    tasks: tuple[TaskPlan, ...]
    refused: Mapping[str, str]
    scans: Mapping[str, Scan]
    task_of: Mapping[str, str]
    notes: tuple[str, ...]
    digest: str

    @property
    def folder(self) -> str:
        """The name of the folder in `data.dir` that holds its data sets."""
        return f"{self.options.stem}-{self.digest}"

    @property
    def said(self) -> str:
        """The tasks in words: "trad, cc (clothes), t2i (caption); not vi: no column modality"."""
        can = ", ".join(plan.task + (f" ({plan.by})" if plan.by else "") for plan in self.tasks)
        cannot = "; ".join(f"not {task}: {why}" for task, why in self.refused.items())
        return "; ".join(filter(None, [can or "nothing", cannot]))


_PLANS: dict[tuple[Options, int], Plan] = {}
"""The last plan that was made, by its options and the table's time of change."""


def make(options: Options, data_dir: str | None = None) -> Plan:
    """Reads the table and decides. Raises DatasetError if no task can be trained and tested.

    `data_dir`: holds the folders of earlier plans; people who are divided there already are not divided anew, for
    which all pictures would be read.
    """
    path = Path(options.table).expanduser()
    if not os.path.exists(path):
        raise DatasetError(f"there is no table {options.table}: correct the path (config.data.table)")
    key = options, path.stat().st_mtime_ns
    if key not in _PLANS:
        plan = _make(options, path, data_dir)
        forget()
        _PLANS[key] = plan
    return _PLANS[key]


def forget() -> None:
    """Forgets the plan that `make` keeps: pictures may have changed under the same table."""
    _PLANS.clear()


def _digest(options: Options, cells: Sequence[table_files.Cells], rows: Sequence[Row]) -> str:
    digest = hashlib.sha256(repr((_VERSION, options.tasks, options.test_share, options.split_seed)).encode())
    if any(row.instructions for row in rows):  # version 1 did not read them
        digest.update(b"instruction")
    for _, values in cells:
        digest.update(repr(sorted(values.items(), key=lambda item: item[0])).encode("utf-8", "backslashreplace"))
    for file in sorted({file for row in rows for file in (row.image, row.instruction_image) if file}):
        path = options.raw / reading.as_listed(options.raw, file)
        digest.update(f"{path.stat().st_size if os.path.isfile(path) else -1} ".encode())
    return digest.hexdigest()[:8]


def _divided(options: Options, rows: list[Row], folder: Path | None) -> tuple[list[Row], str]:
    """Returns the rows with their splits, and the rule, as an earlier plan wrote them or else as `table` divides."""
    splits = {row.split for row in rows}
    if splits not in ({""}, {TRAIN, "test"}):
        return table.with_splits(rows, options.raw, options.stem)
    table.check_sides(rows)
    if folder is not None and (folder / ROWS).is_file():
        written = pq.read_table(folder / ROWS, columns=["row", "split"])
        rule = (written.schema.metadata or {}).get(b"division", b"").decode()
        split = dict(zip(written["row"].to_pylist(), written["split"].to_pylist(), strict=True))
        splits_of = [split.get(place(options, row.where), "") for row in rows]
        return [row._replace(split=own) for row, own in zip(rows, splits_of, strict=True) if own], rule
    return table.divided(rows, options.raw, options.stem, options.split_seed, options.test_share)


def place(options: Options, where: str) -> str:
    """Returns the place of a row without the table's path, which may be written otherwise the next time."""
    return where.removeprefix(str(Path(options.table).expanduser())).lstrip(", ")


def _make(options: Options, path: Path, data_dir: str | None) -> Plan:
    cells = table_files.read(path)
    rows = table.rows_of(cells)
    notes = [*filter(None, [table_files.nested(path, cells)])]
    if options.skip_bad:
        listed, rows = rows, table.present(rows, options.raw)
        notes += (
            [f"{len(listed) - len(rows)} rows without a picture file are left out"] if len(rows) < len(listed) else []
        )
    if not rows:
        raise DatasetError(
            f"{options.table}: none of its pictures is in {options.raw}: correct config.data.own.pictures"
        )
    if len({row.camera for row in rows}) == 1 and rows[0].camera is not None:
        notes.append("all pictures are of one camera, so cameras count as unknown: no picture is junk for its camera")
        rows = [row._replace(camera=None) for row in rows]
    digest = _digest(options, cells, rows)
    folder = Path(data_dir).expanduser() / f"{options.stem}-{digest}" if data_dir else None
    divided, rule = _divided(options, rows, folder)
    notes += [rule] if rule else []
    found, refused, scans, task_of = [], {}, {}, {}
    for name in tasks.TASKS:
        if options.tasks and name not in options.tasks:
            continue
        try:
            chosen, by = _RULES[name](divided, bool(rule), name in options.tasks)
            data_set = options.stem if name in ("trad", "cc") else f"{options.stem}_{name}"
            read_as = "trad" if name == "cc" else name
            if data_set not in scans:
                scans[data_set] = table.scan_rows(chosen, options.raw, task=read_as, namespace=options.stem, table=path)
                task_of[data_set] = read_as
            found.append(TaskPlan(name, data_set, _protocols(name, chosen), by))
        except (_CannotError, table.AttributesError) as error:
            if isinstance(error, DatasetError) and name in options.tasks:
                raise
            refused[name] = str(error)
    if not found:
        why = "; ".join(f"{task}: {reason}" for task, reason in refused.items() if not reason.startswith("no column"))
        raise DatasetError(f"{options.table}: nothing can be trained and tested: {why or refused}")
    return Plan(options, divided, cells, rule, tuple(found), refused, scans, task_of, tuple(notes), digest)


class _CannotError(Exception):
    """Says why a table does not serve a task."""


def _of(rows: Sequence[Row], split: str) -> list[Row]:
    return [row for row in rows if row.split == split]


def _need(rows: Sequence[Row], column: str, has: Callable[[Row], object]) -> None:
    if not any(has(row) for row in rows):
        raise _CannotError(f"no column {column}")


def _plain(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    del divided, asked
    if len({row.identity for row in rows}) == len({row.image for row in rows}):
        raise _CannotError("every person has one picture (is identity a number of the picture?)")
    for split in (QUERY, GALLERY):
        if not _of(rows, split) and not any(row.split == "test" for row in rows):
            raise _CannotError(f"no row has split {split}: add some, or leave the column split out")
    _two_people(rows)
    _answerable(rows, lambda query, image: True)
    return rows, ""


def _clothes(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    _need(rows, "clothes", lambda row: row.clothes)
    _plain(rows, divided, asked)
    _answerable(rows, _other_outfit, "no test person is seen in two outfits")
    outfits = defaultdict(set)
    for row in _of(rows, TRAIN):
        outfits[row.identity].add(row.clothes)
    if not any(len(own - {""}) > 1 for own in outfits.values()):
        raise _CannotError("no training person is seen in two outfits")
    return rows, "clothes"


def _modalities(rows: list[Row], divided: bool, asked: bool) -> tuple[list[Row], str]:
    del divided, asked
    if len({row.modality for row in rows}) < 2:
        raise _CannotError("no column modality" if not any(row.modality for row in rows) else "one modality only")
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
        raise _CannotError("no column attributes")

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
    people = {row.identity for row in gallery}
    if not any(row.identity in people for row in queries):
        raise _CannotError("no test person has a caption")
    return kept, "caption"


_RULES: dict[str, Callable[[list[Row], bool, bool], tuple[list[Row], str]]] = {
    "trad": _plain, "cc": _clothes, "ctcc": _templates, "vi": _modalities, "t2i": _captions, "li": _sentences,
}  # fmt: skip


def _two_people(rows: Sequence[Row]) -> None:
    people = {row.identity for row in _of(rows, TRAIN)}
    if len(people) < 2:
        raise _CannotError(f"{len(people)} of the people are left to train on, two are needed")


def _other_outfit(query: Row, image: Row) -> bool:
    return bool(query.clothes and image.clothes and query.clothes != image.clothes)


def _same_camera(query: Row, image: Row) -> bool:
    return query.camera is not None and query.camera == image.camera


def _answerable(
    rows: Sequence[Row], fits: Callable[[Row, Row], bool], why: str = "no test person can be found again"
) -> None:
    """Raises _CannotError unless a query has a fitting picture of its person, of another or an unknown camera."""
    if not _pairs(rows, lambda query, image: fits(query, image) and not _same_camera(query, image)):
        raise _CannotError(why)


def _pairs(rows: Sequence[Row], fits: Callable[[Row, Row], bool]) -> bool:
    shown: dict[str, list[Row]] = defaultdict(list)
    for row in _of(rows, GALLERY):
        shown[row.identity].append(row)
    return any(fits(query, image) for query in _of(rows, QUERY) for image in shown[query.identity])


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
        raise _CannotError("no test person is seen in two outfits (column clothes)")
    return asking


def _protocols(task: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the task's strict rule beside identity alone, as far as the rows state what it needs."""
    if task == "trad":
        return ("market",)
    if task == "t2i":
        return ("identity",)
    if task == "vi":
        return ("other_modality", "market")
    if task == "cc":
        return ("ltcc_cc", "market")
    if any(row.instruction_clothes for row in _of(rows, QUERY)) or task == "ctcc":
        wanted = _pairs(rows, lambda query, image: bool(query.instruction_clothes or query.instruction_image))
        return ("requested_outfit", "market") if wanted else ("market",)
    return ("named_attributes", "market") if any(row.attributes for row in _of(rows, QUERY)) else ("market",)


def modality_words(rows: Sequence[Row]) -> str:
    """Returns how many pictures are visible and infrared."""
    infrared = sum(row.modality == schema.INFRARED for row in rows)
    return f"{len(rows) - infrared} visible, {infrared} infrared"
