"""Keeps per-query results beside every evaluation, and compares two runs on them (`--mode compare RUN_A RUN_B`)."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import storage
from irm_jax.evaluation.ranking.metrics import Ranking

FOLDER = "per_query"
RESAMPLED_AT_ONCE = 1 << 22
METRICS = ("mAP", "rank1")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One figure of two runs over the queries that both ranked.

    `difference` = b - a, `low` and `high` its paired bootstrap 95% interval (queries are drawn with replacement, the
    same ones for both runs; percentiles). `unpaired`: queries that only one of the runs has, or that a run dropped.
    """

    protocol: str
    metric: str
    queries: int
    unpaired: int
    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """The interval leaves out 0."""
        return self.low > 0 or self.high < 0


class _NotComparable(ValueError):
    """One protocol of two runs cannot be paired; the message names it and says why."""


def save_per_query(
    workdir: str | os.PathLike[str],
    ranking: Ranking,
    query_id: Sequence[int] | np.ndarray,
    gallery_content: Sequence[int] | np.ndarray,
) -> epath.Path:
    """Writes `workdir/per_query/<protocol>.npz` and returns its path.

    `query_id` [Q], numbers or strings, each once: what pairs the queries of two runs (the record index, say).
    `gallery_content` u64[G]: the column `content` of the images that are searched. The file holds ap, inp, rank1,
    first_positive_rank, num_positives, drop_cause, top_ids, top_scores and query_id, as in `Ranking`: of a protocol
    with trials a query has one row, with its means of ap, inp and rank1, so that a comparison draws queries, not
    trials. And `gallery`, how many images these are, and `gallery_content`, the fingerprint of them in any order.
    """
    ids = np.asarray(query_id)
    if ids.shape != ranking.ap.shape or len(np.unique(ids)) != len(ids):
        raise ValueError(f"query_id must name each of the {len(ranking.ap)} queries once; got shape {ids.shape}")
    path = epath.Path(workdir) / FOLDER / f"{ranking.protocol}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("ap", "inp", "rank1", "first_positive_rank", "num_positives", "drop_cause", "top_ids", "top_scores")
    content = io.BytesIO()
    images = np.sort(np.asarray(gallery_content).astype("<u8"))
    np.savez_compressed(
        content, query_id=ids, gallery=np.array(len(images)),
        gallery_content=np.array(hashlib.blake2b(images.tobytes(), digest_size=8).hexdigest()),
        **{name: getattr(ranking, name) for name in names},
    )  # fmt: skip
    # On object storage a file is there whole or not at all.
    unfinished = path if storage.is_remote(path) else path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content.getvalue())
    if unfinished != path:
        unfinished.replace(path)
    return path


def remove_other_results(workdir: str | os.PathLike[str], written: Collection[epath.Path]) -> None:
    """Removes per-query files of earlier evaluations, which `--mode compare` would take for this one's."""
    for path in _results(epath.Path(workdir) / FOLDER):
        if path not in written:
            path.unlink()


def _results(folder: epath.Path) -> Iterator[epath.Path]:
    """Every .npz file below a folder (object storage has no recursive glob)."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix == ".npz":
            yield path
        elif path.is_dir():
            yield from _results(path)


def compare_runs(
    dir_a: str | os.PathLike[str], dir_b: str | os.PathLike[str], *, samples: int = 10_000, seed: int = 0
) -> list[Comparison]:
    """Compares the protocols that both runs have evaluated, mAP and rank-1 each, in alphabetical order.

    A protocol is left out, with a warning, if the runs share no query of it or ranked different galleries (other
    images, or a query has another number of positives). Raises ValueError if a run has no per-query files, or if no
    protocol is left.
    """
    files = []
    for directory in (dir_a, dir_b):
        storage.require_library(directory)
        folder = epath.Path(directory).expanduser() / FOLDER
        complete = [path for path in _results(folder) if not path.name.startswith(".")]
        found = {path.relative_to(folder).as_posix().removesuffix(".npz"): path for path in complete}
        if not found:
            raise ValueError(f"no per-query results in {folder}: run `--mode evaluate` with this workdir first")
        files.append(found)
    shared = sorted(files[0].keys() & files[1].keys())
    if not shared:
        raise ValueError(f"{dir_a} and {dir_b} share no protocol: {sorted(files[0])} against {sorted(files[1])}")
    if left_out := sorted(files[0].keys() ^ files[1].keys()):
        logging.warning("only one of the runs has %s: not compared", ", ".join(left_out))
    rows: list[Comparison] = []
    refused: list[str] = []
    unchecked: list[str] = []
    for name in shared:
        try:
            rows += _compare(name, files[0][name], files[1][name], samples, seed, unchecked)
        except _NotComparable as error:
            refused.append(str(error))
    if not rows:
        raise ValueError("; ".join(refused))
    for message in refused:
        logging.warning("not compared: %s", message)
    if unchecked:
        logging.warning(
            "files of an earlier version do not say which gallery was searched: not checked for %s",
            ", ".join(unchecked),
        )
    return rows


def _compare(
    protocol: str, path_a: epath.Path, path_b: epath.Path, samples: int, seed: int, unchecked: list[str]
) -> list[Comparison]:
    """Both metrics of a protocol; its name joins `unchecked` if a file does not say which gallery was searched."""
    with path_a.open("rb") as file_a, path_b.open("rb") as file_b, np.load(file_a) as a, np.load(file_b) as b:
        if a["query_id"].dtype.kind != b["query_id"].dtype.kind:
            types = a["query_id"].dtype, b["query_id"].dtype
            raise _NotComparable(f"{protocol}: query_id is {types[0]} in {path_a} and {types[1]} in {path_b}")
        if "gallery_content" not in a or "gallery_content" not in b:
            unchecked.append(protocol)
        elif a["gallery_content"] != b["gallery_content"]:
            raise _NotComparable(
                f"{protocol}: {path_a} ranked {a['gallery']} gallery images and {path_b} {b['gallery']}, not the same "
                "ones: evaluate both runs on the same test data"
            )
        ids, at_a, at_b = np.intersect1d(a["query_id"], b["query_id"], return_indices=True)
        other = np.flatnonzero(a["num_positives"][at_a] != b["num_positives"][at_b])
        if len(other):
            positives = a["num_positives"][at_a[other[0]]], b["num_positives"][at_b[other[0]]]
            raise _NotComparable(
                f"{protocol}: query {ids[other[0]]} (and {len(other) - 1} more) has {positives[0]} positives in "
                f"{path_a} and {positives[1]} in {path_b}: the runs ranked different galleries and cannot be paired"
            )
        values = [
            # Files of earlier versions hold no rank1; theirs are of one trial.
            np.stack([run["ap"], run["rank1"] if "rank1" in run else run["first_positive_rank"] == 1], axis=1)[at]
            for run, at in ((a, at_a), (b, at_b))
        ]
        everything = len(a["query_id"]) + len(b["query_id"]) - len(ids)
    both = ~np.isnan(values[0][:, 0]) & ~np.isnan(values[1][:, 0])
    a_values, b_values = values[0][both], values[1][both]
    if not len(a_values):
        raise _NotComparable(f"{protocol}: no query was ranked in both {path_a} and {path_b}")
    interval = bootstrap_interval(b_values - a_values, samples=samples, seed=seed)
    mean_a, mean_b = a_values.mean(axis=0), b_values.mean(axis=0)
    return [
        Comparison(
            protocol,
            metric,
            len(a_values),
            everything - len(a_values),
            float(mean_a[i]),
            float(mean_b[i]),
            float(mean_b[i] - mean_a[i]),
            float(interval[0, i]),
            float(interval[1, i]),
        )
        for i, metric in enumerate(METRICS)
    ]


def bootstrap_interval(values: np.ndarray, *, samples: int, seed: int) -> np.ndarray:
    """95% percentile intervals f64[2, M] of the column means of values f64[n, M], rows drawn with replacement."""
    random = np.random.default_rng(seed)
    means = np.empty((samples, values.shape[1]))
    step = max(1, RESAMPLED_AT_ONCE // len(values))
    for start in range(0, samples, step):
        rows = random.integers(0, len(values), (min(step, samples - start), len(values)))
        means[start : start + len(rows)] = values[rows].mean(axis=1)
    return np.percentile(means, [2.5, 97.5], axis=0)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as text, one a line; a star marks an interval that leaves out 0."""
    width = max(len("protocol"), *(len(row.protocol) for row in comparisons))
    lines = [f"{'protocol':{width}}  metric  queries       A       B   B - A   95% interval"]
    for row in comparisons:
        interval = f"[{row.low:+.4f}, {row.high:+.4f}]{' *' if row.clear else ''}"
        unpaired = f"  ({row.unpaired} queries not paired)" if row.unpaired else ""
        lines.append(
            f"{row.protocol:{width}}  {row.metric:6}  {row.queries:7}  {row.a:6.4f}  {row.b:6.4f}  "
            f"{row.difference:+.4f}  {interval}{unpaired}"
        )
    return "\n".join(lines)
