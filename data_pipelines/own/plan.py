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
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from data_pipelines import tasks
from data_pipelines.errors import DatasetError
from data_pipelines.own import task_rules
from data_pipelines.sources import Scan, reading, table, table_files
from data_pipelines.sources.division import TRAIN
from data_pipelines.sources.table import Row

ROWS = "rows.parquet"
"""All columns of the table as text, with the place of each row (`row`, or as the schema's key `place` says) and its
`split` as used: for filters and reports."""
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
        written = pq.read_table(folder / ROWS)
        about = written.schema.metadata or {}
        rule = about.get(b"division", b"").decode()
        places = written[about.get(b"place", b"row").decode()]
        split = dict(zip(places.to_pylist(), written["split"].to_pylist(), strict=True))
        splits_of = [split.get(place(options, row.where), "") for row in rows]
        return [row._replace(split=own) for row, own in zip(rows, splits_of, strict=True) if own], rule
    return table.divided(rows, options.raw, options.stem, options.split_seed, options.test_share)


def place(options: Options, where: str) -> str:
    """Returns the place of a row without the table's path, which may be written otherwise the next time."""
    return where.removeprefix(str(Path(options.table).expanduser())).lstrip(", ")


def _make(options: Options, path: Path, data_dir: str | None) -> Plan:
    cells = table_files.read(path)
    rows = table.rows_of(cells)
    table.of_people(rows, path)
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
            chosen, by = task_rules.RULES[name](divided, bool(rule), name in options.tasks)
            data_set = options.stem if name in ("trad", "cc") else f"{options.stem}_{name}"
            read_as = "trad" if name == "cc" else name
            if data_set not in scans:
                scans[data_set] = table.scan_rows(chosen, options.raw, task=read_as, namespace=options.stem, table=path)
                task_of[data_set] = read_as
            found.append(TaskPlan(name, data_set, task_rules.protocols(name, chosen, scans[data_set].splits), by))
        except (task_rules.CannotError, table.AttributesError) as error:
            if isinstance(error, DatasetError) and name in options.tasks:
                raise
            refused[name] = str(error)
    if not found:
        why = "; ".join(f"{task}: {reason}" for task, reason in refused.items() if not reason.startswith("no column"))
        raise DatasetError(f"{options.table}: nothing can be trained and tested: {why or refused}")
    return Plan(options, divided, cells, rule, tuple(found), refused, scans, task_of, tuple(notes), digest)
