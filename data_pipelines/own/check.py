"""Looks at a table of own pictures before anything is built: one screen of what is there, and what is odd.

python -m data_pipelines.build --check crops.csv [--raw FOLDER] [--task li]
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np

from data_pipelines import words
from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError
from data_pipelines.images import decode, read_file
from data_pipelines.own import build, plan
from data_pipelines.people import near_duplicates
from data_pipelines.sources import reading, table, table_files
from data_pipelines.sources.division import QUERY
from data_pipelines.sources.table import Row

LISTED = 3
"""Examples that one line gives."""
FEW_QUERIES = 50
"""Queries of a test set below which its figures are said to be rough."""
SMALL = 32
"""Pixels: a picture of fewer rows shows too little of a person."""
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class _Looked:
    """What one picture file is: its (height, width), bytes, their hash, a thumbnail; or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    bytes: int = 0
    content: str = ""
    thumb: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(near_duplicates.THUMB, np.uint8))
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """The screen as lines, and whether a build would succeed."""

    lines: tuple[str, ...]
    ready: bool


def check(options: plan.Options) -> Report:
    """Reads the table and every picture. Raises DatasetError for a table that cannot be read."""
    path = Path(options.table).expanduser()
    if not os.path.exists(path):
        raise DatasetError(f"there is no table {options.table}: correct the path")
    cells = table_files.read(path)
    rows = table.of_people(table.rows_of(cells), path)
    files = [options.raw / reading.as_listed(options.raw, row.image) for row in rows]
    start = time.perf_counter()
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        looked = list(pool.map(_look, files))
    rate = len(files) / max(time.perf_counter() - start, 1e-9)
    lines = [f"{options.table}: {len(rows):,} pictures of {len({row.identity for row in rows}):,} people"]
    lines += [f"  {name:<11}{text}" for name, text in _counts(rows, cells, looked)]
    bad = [(row, one.problem) for row, one in zip(rows, looked, strict=True) if one.problem]
    nested = table_files.nested(path, cells)
    lines += _odd(rows, looked, nested)
    found, refusal = _plan(options) if not bad else (None, "")
    if bad:
        lines.append(f"unreadable: {len(bad):,} of {len(rows):,} pictures")
        lines += [f"  {row.where}: {row.image}: {problem}" for row, problem in bad[:LISTED]]
        lines.append("  mend them, or leave their rows out with --config.data.own.on_bad_image=skip")
    if refusal:
        lines.append(refusal)
    if found:
        lines.append(f"can be trained and tested: {found.said}")
        notes = [*found.notes, build.look_alikes(found), _few_queries(found)]
        lines += [f"  {note}" for note in notes if note not in ("", nested)]
        lines += _cost(found, rate, sum(one.bytes for one in looked) / len(looked))
        lines.append(f"next: {_command(options)}")
    return Report(tuple(lines), ready=found is not None)


def _look(file: Path) -> _Looked:
    try:
        data = read_file(file)
        pixels = decode(data)
        thumb = near_duplicates.of_pixels(pixels)
        return _Looked(pixels.shape[:2], len(data), hashlib.sha256(data).hexdigest(), thumb)
    except OSError as error:
        return _Looked(problem=f"it cannot be read ({error.strerror})")
    except ValueError as error:
        return _Looked(problem=str(error))


def _plan(options: plan.Options) -> tuple[plan.Plan | None, str]:
    try:
        return plan.make(options), ""
    except DatasetError as error:
        return None, str(error)


def _counts(
    rows: Sequence[Row], cells: Sequence[table_files.Cells], looked: Sequence[_Looked]
) -> Iterator[tuple[str, str]]:
    per_person = np.array([*Counter(row.identity for row in rows).values()])
    yield "people", f"{_range(per_person)} pictures each"
    labels = Counter(table_files.text_of(values.get("camera")) or "unknown" for _, values in cells)
    yield "cameras", _few(f"{name} {count:,}" for name, count in labels.most_common())
    sizes = np.array([one.size for one in looked if not one.problem])
    if len(sizes):
        yield "sizes", f"{_range(sizes[:, 0])} pixels high, {_range(sizes[:, 1])} wide"
    splits = [f"{split} {count:,}" for split, count in Counter(row.split for row in rows).items() if split]
    yield "splits", _few(splits) if splits else "no column split: people are divided"
    if any(row.clothes for row in rows):
        outfits = defaultdict(set)
        for row in rows:
            outfits[row.identity].add(row.clothes)
        yield "clothes", f"{_range(np.array([len(own - {''}) for own in outfits.values()]))} outfits a person"
    if any(row.modality for row in rows):
        infrared = sum(row.modality == schema.INFRARED for row in rows)
        yield "modality", f"{len(rows) - infrared} visible, {infrared} infrared"
    texts = [text for row in rows for text in row.captions]
    if texts:
        bare = sum(not row.captions for row in rows)
        yield "captions", f"{len(texts):,}, {len({*texts}):,} different; {bare:,} pictures have none"
    known = {*table_files.COLUMNS, *table_files.MORE_COLUMNS}
    if others := dict.fromkeys(name for _, values in cells for name in values if name and name not in known):
        yield "kept", f"{', '.join(others)} (other columns)"


def _odd(rows: Sequence[Row], looked: Sequence[_Looked], nested: str) -> list[str]:
    """Returns a line for each suspicious thing, under a heading. `nested`: what there is to say of its folders."""
    found = [
        *_odd_people(rows),
        *filter(None, [nested]),
        *_odd_pictures(rows, looked),
        *_alike(rows, looked),
        *_odd_captions(rows),
    ]
    return ["suspicious:", *(f"  {line}" for line in found)] if found else ["nothing suspicious"]


def _odd_people(rows: Sequence[Row]) -> Iterator[str]:
    counts = Counter(row.identity for row in rows)
    single = [name for name, count in counts.items() if count == 1]
    if len(single) == len(counts):
        yield "every person has one picture: is identity a number of the picture?"
    elif single:
        yield f"{len(single):,} people have one picture, and cannot be tested: {_few(single)}"
    if len(counts) == 1:
        yield "there is one person only"
    if len({row.camera for row in rows}) == 1:
        yield "there is one camera only" if rows[0].camera is not None else "no camera is known"
    alone = defaultdict(set)
    for row in rows:
        alone[row.identity].add(row.camera)
    if len({row.camera for row in rows} - {None}) > 1:
        stay = [name for name, cameras in alone.items() if len(cameras) == 1 and None not in cameras]
        if stay:
            yield f"{len(stay):,} people are seen by one camera only: no other camera finds them again: {_few(stay)}"


def _odd_pictures(rows: Sequence[Row], looked: Sequence[_Looked]) -> Iterator[str]:
    def named(fits: Callable[[_Looked], bool]) -> list[str]:
        return [row.image for row, one in zip(rows, looked, strict=True) if not one.problem and fits(one)]

    if small := named(lambda one: one.size[0] < SMALL):
        yield f"{len(small):,} pictures are less than {SMALL} pixels high: {_few(small)}"
    if wide := named(lambda one: one.size[1] > one.size[0]):
        yield f"{len(wide):,} pictures are wider than high; are they crops of one person? {_few(wide)}"


def _alike(rows: Sequence[Row], looked: Sequence[_Looked]) -> Iterator[str]:
    first: dict[str, Row] = {}
    copies: list[str] = []
    contradictions: list[str] = []
    for row, one in zip(rows, looked, strict=True):
        other = first.setdefault(one.content, row) if one.content else row
        if other is not row and other.image != row.image:
            (copies if other.identity == row.identity else contradictions).append(f"{other.image} = {row.image}")
    if contradictions:
        yield f"{len(contradictions):,} files are under two people: {_few(contradictions)}"
    if copies:
        yield f"{len(copies):,} files are copies of another of the same person: {_few(copies)}"
    near = near_duplicates.pairs(np.stack([one.thumb for one in looked]))
    across = [
        f"{rows[i].image} ({rows[i].identity}) ~ {rows[j].image} ({rows[j].identity})"
        for i, j in near
        if rows[i].identity != rows[j].identity and looked[i].content != looked[j].content
    ]
    if across:
        yield f"{len(across):,} pairs look the same under two people: {_few(across)}"


def _odd_captions(rows: Sequence[Row]) -> Iterator[str]:
    people = defaultdict(set)
    for row in rows:
        for text in row.captions:
            people[text].add(row.identity)
    total = sum(len(row.captions) for row in rows)
    if not total:
        return
    shared = sum(len(people[text]) > 1 for row in rows for text in row.captions)
    if 2 * shared > total:
        yield f"{shared:,} of {total:,} captions also describe somebody else: they tell little apart"
    if blank := [row.image for row in rows if any(not reading.says_something(text) for text in row.captions)]:
        yield f"{len(blank):,} pictures have a caption without a word, which is left out: {_few(blank)}"


def _command(options: plan.Options) -> str:
    """Returns the command that trains on what was checked."""
    command = ["python", "-m", "irm_jax.main", "--config", "own", f"--config.data.table={options.table}"]
    command += [f"--config.data.own.pictures={options.pictures}"] if options.pictures else []
    command += [f"--config.data.own.tasks={options.tasks!r}"] if options.tasks else []
    return shlex.join(command)


def _few_queries(found: plan.Plan) -> str:
    """Returns what few queries mean for the figures; "" for many."""
    counts = {name: len(scan.splits.get(QUERY, ())) for name, scan in found.scans.items()}
    name, least = min(counts.items(), key=lambda item: item[1])
    if not 0 < least < FEW_QUERIES:
        return ""
    return f"{name} has {least} queries only: one of them is {1 / least:.0%} of rank-1, so figures are rough"


def _cost(found: plan.Plan, rate: float, size: float) -> Iterator[str]:
    """Yields the time and disk of the build, from the speed at which this check read the pictures."""
    records = sum(len(items) for scan in found.scans.values() for items in scan.splits.values())
    seconds = records / max(rate, 1e-9) * 2  # a build reads, checks, hashes and writes
    sets = "1 data set" if len(found.scans) == 1 else f"{len(found.scans)} data sets"
    yield (
        f"  build: {records:,} records in {sets}, about {words.duration(max(seconds, 1))} and "
        f"{words.size(records * size)} on {os.cpu_count()} cores; training says its own time after ten steps"
    )


def _range(values: np.ndarray) -> str:
    low, middle, high = int(values.min()), int(np.median(values)), int(values.max())
    return str(low) if low == high else f"{low} to {high} (median {middle})"


def _few(names: Iterator[str] | Sequence[str]) -> str:
    listed = list(names)
    most = LISTED * 2
    return ", ".join(map(str, listed[:most])) + (f", ... ({len(listed)})" if len(listed) > most else "")
