"""Writes `report.html`, one self-contained page about a run, and `results.json`, every figure of that page."""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from etils import epath

from data_pipelines.files import jsonable, write_atomically
from data_pipelines.tasks import TASKS
from irm_jax.compile.page import FILE as COMPILE_FILE
from irm_jax.evaluation.report.charts import Series
from irm_jax.evaluation.report.page import is_main, render
from irm_jax.evaluation.report.results import (
    BenchmarkCheck,
    RankedImage,
    RankList,
    ReportData,
    Rollout,
    TaskSection,
    checked_results,
)

if TYPE_CHECKING:  # at run time it would import the whole shard reader
    from data_pipelines.people.leaks import Leak

__all__ = ["BenchmarkCheck", "RankList", "RankedImage", "ReportData", "Rollout", "TaskSection", "write_report"]

CURVE_POINTS = 200


def write_report(workdir: str | os.PathLike[str], results: Mapping[str, Any], data: ReportData) -> epath.Path:
    """Writes `results.json` and `report.html` into `workdir` (made if missing) and returns the path of the page.

    `results` is {"protocols": {NAME: {"task", "setting", "mAP", "rank1", "rank5", "rank10", "mINP", "mAP_tau",
    "queries", "dropped"}}, "baselines": {BASELINE: {NAME: {"mAP", ...}}}, "swapped_instructions": {NAME: {"mAP",
    "mAP_own", "queries", "follow_rate"}}}, where "mAP_own" is that of the same queries under their own instructions;
    fractions in [0, 1], NaN is written as null. A NAME may carry variants (`name+identity`,
    `name@top500`), shown under `name`. A protocol entry may hold whatever else `ranking.summarize` returns, and a
    "description". The JSON file also gets "run", "benchmark_checks", "leaks", "training_curves" and "rank_lists" from
    `data`, "compile" if the folder holds a compile.json, and what else `results` holds. Each file is complete or
    absent: it is renamed into place when whole.
    Raises ValueError or TypeError naming the entry that is wrong (nothing is written then), OSError naming the file.
    """
    plain = checked_results(results)
    curves = training_curves(data.history)
    plain["run"] = {**jsonable(data.run, "run"), **plain.get("run", {})}
    plain["benchmark_checks"] = [jsonable(vars(check)) for check in data.checks]
    plain["leaks"] = None if data.leaks is None else leak_rows(data.leaks, data.deliberate_leaks)
    plain["training_curves"] = {
        metric: {line.name: {"step": line.x, "value": line.y} for line in lines} for metric, lines in curves.items()
    }
    plain["rank_lists"] = [_section_figures(section) for section in data.sections]
    folder = epath.Path(workdir)
    if (table := folder / COMPILE_FILE).exists():  # of --mode compile
        plain["compile"] = json.loads(table.read_text(encoding="utf-8"))
    page = render(plain, data, curves)
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / "results.json": json.dumps(plain, indent=1, allow_nan=False) + "\n", folder / "report.html": page}
    for path, text in files.items():
        try:
            write_atomically(path, text)
        except OSError as error:
            reason = f"the report cannot be written ({error.strerror}): free space there or make it writable"
            raise OSError(error.errno, reason, str(path)) from error
    logging.info("report of %d protocols (%.1f MB): %s", len(plain["protocols"]), len(page) / 1e6, path)
    return path


def leak_rows(leaks: Sequence[Leak], deliberate: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """Returns one row for all people that the same evidence finds in the same two places; the harmful ones first.

    `deliberate` pairs of data sets leak on purpose, to prove that the check finds it.
    """
    traps = {frozenset(pair) for pair in deliberate}
    groups: dict[tuple[Any, ...], list[Leak]] = collections.defaultdict(list)
    for leak in leaks:
        groups[not leak.harmful, leak.kind, leak.dataset_a, leak.dataset_b, leak.evidence, leak.linked].append(leak)
    rows = []
    for (harmless, kind, first, second, evidence, linked), found in sorted(groups.items()):
        row = {"kind": kind, "first": first, "second": second, "evidence": evidence, "people": len(found)}
        example = [f"{found[0].person_a} ({found[0].example[0]})", f"{found[0].person_b} ({found[0].example[1]})"]
        trap = frozenset((first, second)) in traps
        rows.append({**row, "linked": linked, "harmful": not harmless, "deliberate": trap, "example": example})
    return rows


def training_curves(history: Sequence[Mapping[str, Any]], points: int = CURVE_POINTS) -> dict[str, list[Series]]:
    """Returns the curves of each metric: "TASK/METRIC" is the line TASK of METRIC, any other key the line "all".

    Records are averaged in runs of equal length to at most `points` a curve; values that are no finite number are left
    out. Losses and accuracies come first.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in history:
        for key, value in record.items():
            if key == "step" or isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
                continue
            task, _, metric = key.partition("/")
            line, metric = (task, metric) if task in TASKS and metric else ("all", key)
            if math.isfinite(value):
                found.setdefault(metric, {}).setdefault(line, []).append((float(record["step"]), float(value)))
    curves: dict[str, list[Series]] = {}
    for metric in sorted(found, key=lambda m: (m != "loss", not is_main(m), m)):
        lines = curves.setdefault(metric, [])
        for line in sorted(found[metric], key=lambda n: TASKS[n].id if n in TASKS else -1):
            values = np.array(found[metric][line])
            means = np.array([part.mean(0) for part in np.array_split(values, min(points, len(values)))])
            lines.append(
                Series(line, means[:, 0].tolist(), means[:, 1].tolist(), TASKS[line].id if line in TASKS else -1)
            )
    return curves


def _section_figures(section: TaskSection) -> dict[str, Any]:
    def figures(rank_list: RankList) -> dict[str, Any]:
        return {
            "query": rank_list.query_id,
            "ap": rank_list.ap,
            "first_positive_rank": rank_list.first_positive_rank,
            "ranked": [{"relation": r.relation, "score": r.score, "caption": r.caption} for r in rank_list.ranked],
        }

    groups = {kind: [figures(r) for r in getattr(section, kind)] for kind in ("examples", "best", "worst")}
    rollouts = [
        {"query": r.query_id, "tokens": [[token, weight] for token, weight in r.tokens]} for r in section.rollouts
    ]
    return jsonable({"task": section.task, "protocol": section.protocol, **groups, "rollouts": rollouts})
