"""Keeps the results per query beside every evaluation, and compares runs on them (`--mode compare RUN_A RUN_B ...`)."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, Float64

from data_pipelines import storage
from data_pipelines.files import SCRATCH_PREFIX, lock, parse_json, sweep, write_atomically, write_json
from irm_jax.errors import UserError
from irm_jax.evaluation import earlier_results, folders
from irm_jax.evaluation.figures import Figure, label
from irm_jax.evaluation.folders import PER_QUERY, RESULTS
from irm_jax.evaluation.ranking.metrics import Ranking
from irm_jax.evaluation.tables import Table

RESAMPLED_AT_ONCE = 1 << 22
COMPARISON = "comparison"
METRICS = ("mAP", "rank1")
ARRAYS = ("ap", "inp", "rank1", "first_positive_rank", "num_positives", "drop_cause", "top_ids", "top_scores")
FIELDS = ("test_set", "task", "protocol", "setting", "gallery", "gallery_instruction", "distractors", "scoring", "cut")
"""Fields of a figure that a file keeps, to know it again in another run."""


class CompareError(UserError, ValueError):
    """Two runs cannot be compared. The message names the run, the figure and the reason."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One metric of one figure of two runs, over the queries that both ranked.

    figure: its label. difference = b - a; low and high: its paired bootstrap 95% interval (queries are drawn with
    replacement, the same ones for both runs; percentiles). unpaired: queries that only one of the runs has, or that a
    run dropped. run_a, run_b: the folders of the runs.
    """

    figure: str
    metric: str
    queries: int
    unpaired: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    run_a: str = ""
    run_b: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "clear": self.clear}

    @property
    def clear(self) -> bool:
        """The interval leaves out 0."""
        return self.low > 0 or self.high < 0


def save_per_query(
    folder: str | os.PathLike[str],
    figure: Figure,
    ranking: Ranking,
    query_id: Sequence[int] | np.ndarray,
    gallery_content: Sequence[int] | np.ndarray,
) -> epath.Path:
    """Writes the results per query of a figure's ranking into `folder/per_query`, and returns the file's path.

    Args:
      query_id: [Q], numbers or strings, each once: what pairs the queries of two runs (the record index, say).
      gallery_content: u64[G], the column `content` of the ranked images.

    The .npz file holds `figure` (what was ranked, as JSON), query_id, and ARRAYS as in `Ranking`: of a protocol with
    trials a query has one row, with its means of ap, inp and rank1, so that a comparison draws queries, not trials. And
    `gallery`, how many images were ranked, and `gallery_content`, the fingerprint of them in any order.
    """
    ids = np.asarray(query_id)
    if ids.shape != ranking.ap.shape or len(np.unique(ids)) != len(ids):
        raise ValueError(f"query_id must name each of the {len(ranking.ap)} queries once; got shape {ids.shape}")
    row = figure.to_json()
    name = re.sub(r"[^\w+-]+", "_", label(figure)).strip("_")
    path = epath.Path(folder) / PER_QUERY / f"{name}.npz"
    content = io.BytesIO()
    images = np.sort(np.asarray(gallery_content).astype("<u8"))
    np.savez_compressed(
        content, figure=np.array(json.dumps({name: row.get(name) for name in FIELDS})), query_id=ids,
        gallery=np.array(len(images)),
        gallery_content=np.array(hashlib.blake2b(images.tobytes(), digest_size=8).hexdigest()),
        **{name: getattr(ranking, name) for name in ARRAYS},
    )  # fmt: skip
    write_atomically(path, content.getvalue())
    return path


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Every .npz file below a folder (object storage has no recursive glob)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            yield from _files(path)
        elif path.suffix == ".npz" and not path.name.startswith((".", SCRATCH_PREFIX)):  # of one that was killed
            yield path


@dataclasses.dataclass(frozen=True)
class _File:
    """Results per query of one figure of a run."""

    path: epath.Path
    figure: str
    arrays: Mapping[str, np.ndarray]


def _read_run(directory: str | os.PathLike[str]) -> dict[tuple[Any, ...], _File]:
    """The figures of a run's newest evaluation by `Figure.key`. Raises CompareError if it has no per-query files."""
    storage.require_library(directory)
    workdir = folders.newest(directory)
    folder = workdir / PER_QUERY
    found = {}
    names: dict[str, str] | None = None
    for path in _files(folder):
        arrays = _read_arrays(path)
        if "figure" in arrays:
            figure = _figure_of(path, str(arrays["figure"]))
        else:  # version 1: the file's name says what was ranked
            names = _earlier_names(workdir) if names is None else names
            name = path.relative_to(folder).as_posix().removesuffix(".npz")
            figure = Figure.from_json({**earlier_results.row_of(name, names), "task": ""})
        found[figure.key] = _File(path, label(figure), arrays)
    if not found:
        raise CompareError(f"no per-query results in {folder}: run `--mode evaluate` with this workdir first")
    return found


def _read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a file but for its best images. Raises CompareError if it is damaged."""
    try:
        if not (storage.is_remote(path) or Path(path).is_file()):
            raise ValueError("no regular file")
        with path.open("rb") as file, np.load(file) as saved:
            arrays = {name: saved[name] for name in saved if not name.startswith("top_")}
        numbers = ("ap", "first_positive_rank", "num_positives", *(name for name in ("rank1",) if name in arrays))
        shapes = {name: arrays[name].shape for name in ("query_id", *numbers)}
        if len(set(shapes.values())) != 1 or len(shapes["ap"]) != 1:
            raise ValueError(f"arrays of different lengths, {shapes}")
        if any(arrays[name].dtype.kind not in "iufb" for name in numbers):
            raise ValueError(f"one of {', '.join(numbers)} holds no numbers")
        if any(arrays[name].ndim for name in ("figure", "gallery", "gallery_content") if name in arrays):
            raise ValueError("figure, gallery or gallery_content is no single value")
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise _damaged(path, error) from error
    return arrays


def _figure_of(path: epath.Path, text: str) -> Figure:
    try:
        return Figure.from_json(parse_json(text))
    except earlier_results.ResultsError as error:
        raise CompareError(f"{path}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: epath.Path, error: BaseException) -> CompareError:
    return CompareError(f"{path} is damaged ({error}): evaluate that run again (--mode evaluate)")


def _earlier_names(workdir: epath.Path) -> dict[str, str]:
    """Protocol name of version 1 -> test set, from the configuration beside the results; {} without one."""
    path = workdir / RESULTS
    if not path.exists():
        return {}
    try:
        return earlier_results.set_names(parse_json(path.read_bytes()).get("run", {}).get("config") or {})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def compare_runs(
    dir_a: str | os.PathLike[str], dir_b: str | os.PathLike[str], *, samples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Compares the figures that both runs have, mAP and rank-1 each, in alphabetical order.

    A figure is left out, with a warning, if the runs share no query of it or ranked different galleries (other images,
    or a query has another number of positives). Raises CompareError if a run has no per-query files, or if no figure is
    left.
    """
    run_a, run_b = _read_run(dir_a), _read_run(dir_b)
    pairs = sorted(((run_a[key], run_b[key]) for key in run_a.keys() & run_b.keys()), key=lambda pair: pair[0].figure)
    if not pairs:
        names = [sorted(file.figure for file in run.values()) for run in (run_a, run_b)]
        raise CompareError(f"{dir_a} and {dir_b} share no figure: {names[0]} against {names[1]}")
    if alone := sorted((run_a.get(key) or run_b[key]).figure for key in run_a.keys() ^ run_b.keys()):
        logging.warning("only one of the runs has %s: not compared", ", ".join(alone))
    rows: list[Comparison] = []
    refused: list[str] = []
    for a, b in pairs:
        try:
            rows += _compare(a, b, samples, seed)
        except CompareError as error:
            refused.append(str(error))
    if not rows:
        raise CompareError("; ".join(refused))
    rows = [dataclasses.replace(row, run_a=os.fspath(dir_a), run_b=os.fspath(dir_b)) for row in rows]
    for message in refused:
        logging.warning("not compared: %s", message)
    if unchecked := [a.figure for a, b in pairs if not _same_gallery_known(a, b)]:
        logging.warning(
            "files of an earlier version do not say which gallery was ranked: not checked for %s", ", ".join(unchecked)
        )
    return rows


def compare_with_first(runs: Sequence[str | os.PathLike[str]], *, samples: int) -> list[Comparison]:
    """Compares each run with the first; returns the rows of `compare_runs`, ordered by figure and metric."""
    rows = [row for other in runs[1:] for row in compare_runs(runs[0], other, samples=samples)]
    return sorted(rows, key=lambda row: (row.figure, METRICS.index(row.metric)))


def _same_gallery_known(a: _File, b: _File) -> bool:
    return "gallery_content" in a.arrays and "gallery_content" in b.arrays


def _compare(a: _File, b: _File, samples: int, seed: int) -> list[Comparison]:
    """Both metrics of a figure. Raises CompareError if its queries cannot be paired."""
    ids, at_a, at_b = _paired(a, b)
    values = [
        # Files of earlier versions hold no rank1; theirs are of one trial.
        np.stack([run["ap"], run["rank1"] if "rank1" in run else run["first_positive_rank"] == 1], axis=1)[at]
        for run, at in ((a.arrays, at_a), (b.arrays, at_b))
    ]
    total = len(a.arrays["query_id"]) + len(b.arrays["query_id"]) - len(ids)
    both = ~np.isnan(values[0][:, 0]) & ~np.isnan(values[1][:, 0])
    a_values, b_values = values[0][both], values[1][both]
    if not len(a_values):
        raise CompareError(f"{a.figure}: no query was ranked in both {a.path} and {b.path}")
    interval = bootstrap_interval(b_values - a_values, samples=samples, seed=seed)
    mean_a, mean_b = a_values.mean(axis=0), b_values.mean(axis=0)
    return [
        Comparison(
            a.figure, metric, len(a_values), total - len(a_values), float(mean_a[i]), float(mean_b[i]),
            float(mean_b[i] - mean_a[i]), float(interval[0, i]), float(interval[1, i]),
        )
        for i, metric in enumerate(METRICS)
    ]  # fmt: skip


def _paired(a: _File, b: _File) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the queries that both runs have, and their rows. Raises CompareError if the galleries differ."""
    one, other = a.arrays, b.arrays
    if one["query_id"].dtype.kind != other["query_id"].dtype.kind:
        types = one["query_id"].dtype, other["query_id"].dtype
        raise CompareError(f"{a.figure}: query_id is {types[0]} in {a.path} and {types[1]} in {b.path}")
    if _same_gallery_known(a, b) and one["gallery_content"] != other["gallery_content"]:
        raise CompareError(
            f"{a.figure}: {a.path} ranked {one['gallery']} gallery images and {b.path} {other['gallery']}, not the "
            "same ones: evaluate both runs on the same test data"
        )
    ids, at_a, at_b = np.intersect1d(one["query_id"], other["query_id"], return_indices=True)
    different = np.flatnonzero(one["num_positives"][at_a] != other["num_positives"][at_b])
    if len(different):
        positives = one["num_positives"][at_a[different[0]]], other["num_positives"][at_b[different[0]]]
        raise CompareError(
            f"{a.figure}: query {ids[different[0]]} (and {len(different) - 1} more) has {positives[0]} positives in "
            f"{a.path} and {positives[1]} in {b.path}: the runs ranked different galleries and cannot be paired"
        )
    return ids, at_a, at_b


def bootstrap_interval(values: Float[np.ndarray, "n M"], *, samples: int, seed: int) -> Float64[np.ndarray, "2 M"]:
    """95% percentile intervals of the column means, rows drawn with replacement."""
    random = np.random.default_rng(seed)
    means = np.empty((samples, values.shape[1]))
    step = max(1, RESAMPLED_AT_ONCE // len(values))
    for start in range(0, samples, step):
        rows = random.integers(0, len(values), (min(step, samples - start), len(values)))
        means[start : start + len(rows)] = values[rows].mean(axis=1)
    return np.percentile(means, [2.5, 97.5], axis=0)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """One row per figure, metric and run that is compared with the first; a star marks an interval without 0."""
    several = len({row.run_b for row in comparisons}) > 1
    lines = []
    for row in comparisons:
        names = (row.figure, row.metric, *([row.run_b] if several else []))
        numbers = f"{row.a:.4f}", f"{row.b:.4f}", f"{row.difference:+.4f}"
        interval = f"[{row.low:+.4f}, {row.high:+.4f}]{' *' if row.clear else ''}"
        lines.append((*names, str(row.queries), str(row.unpaired), *numbers, interval))
    columns = (
        "figure", "metric", *(["run B"] if several else []), "queries", "not paired", "A", "B", "B - A", "95% interval",
    )  # fmt: skip
    first = comparisons[0]
    title = f"A: {first.run_a}" + ("" if several else f", B: {first.run_b}") + "; * interval without 0"
    return Table(title, columns, lines, 3 if several else 2, [row.to_json() for row in comparisons])


def write_comparison(folder: epath.Path, comparisons: Sequence[Comparison]) -> None:
    """Writes comparison.json, .csv, .md and .tex into a folder. Raises WriteError, LockedError while it is in use."""
    with lock(folder):
        sweep(folder)
        comparison_table(comparisons).write(folder, COMPARISON)
        write_json(folder / f"{COMPARISON}.json", [row.to_json() for row in comparisons])
