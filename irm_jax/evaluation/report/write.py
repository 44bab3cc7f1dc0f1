"""Writes the folder of an evaluation (`folders`): `report.html`, one self-contained page, `results.json`, every figure
of that page, and `per_query/`. Process 0 writes."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import procedural
from data_pipelines.batches import training_data
from data_pipelines.errors import DatasetError
from data_pipelines.files import jsonable, write_atomically
from data_pipelines.people.leaks import Leak, find_leaks
from data_pipelines.tasks import TASKS
from irm_jax.evaluation import figures, folders, tables
from irm_jax.evaluation.compare import save_per_query
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluator import Evaluation
from irm_jax.evaluation.figures import Results
from irm_jax.evaluation.report import compile_table
from irm_jax.evaluation.report.charts import Series
from irm_jax.evaluation.report.examples import sections_of
from irm_jax.evaluation.report.page import is_main, render
from irm_jax.evaluation.report.results import (
    Published,
    RankList,
    ReportData,
    Section,
    benchmark_checks,
    checked_results,
)
from irm_jax.evaluation.test_sets import TestSet
from irm_jax.logs import writers
from irm_jax.parallel import processes

__all__ = ["write_evaluation", "write_report"]

PAGE = "report.html"
CURVE_POINTS = 200
TERMS = {
    "procedural": "drawn by this project; free of real people",
    "market1501": "Market-1501: research use only, not to be redistributed; this file shows pictures of real people",
}
"""Namespace -> the terms under which a report shows its pictures; other data sets' terms are in their manifests."""

PUBLISHED = {
    ("market1501", "market"): Published(0.939, "SOLIDER Swin-B, CVPR 2023"),
    ("msmt17", "market"): Published(0.771, "SOLIDER Swin-B, CVPR 2023"),
}
"""(data set, rule) -> the best figure of one model without re-ranking that we read at its source
(github.com/tinyvision/SOLIDER); `config.report.best_known` has others."""


def write_evaluation(
    workdir: epath.Path,
    config: ConfigDict,
    embedder: EmbeddingModel,
    evaluation: Evaluation,
    metadata: Mapping[str, Any],
    *,
    step: int,
) -> epath.Path:
    """Writes a new evaluation of `workdir`, whose lock process 0 holds, and returns its folder (`folders.newest`).

    Every process must call it. Raises WriteError if a file cannot be written; then nothing of it stays.

    metadata: `run_record()` of this start. step: the training step of the evaluated parameters.
    """
    results = dataclasses.replace(evaluation.results, rest={"run": {**metadata, "step": step}})
    # The pictures of attention are computed by all processes together.
    sections = sections_of(
        evaluation, embedder, queries=config.report.queries, rollouts=config.report.rollouts, seed=config.seed
    )
    written = workdir / folders.EVALUATIONS
    try:
        if processes.is_main():
            data = _report_data(workdir, config, evaluation, results, sections)
            with folders.new(workdir, config.to_dict(), step) as (folder, written):
                _write_per_query(folder, evaluation)
                write_report(folder, results, data)
            _show(results, workdir, written, step)
    finally:
        processes.barrier("report")  # a process that ends early would end the others
    return written


def _show(results: Results, workdir: epath.Path, folder: epath.Path, step: int) -> None:
    """Prints a table per task, and where the report and the checkpoint lie."""
    for table in tables.task_tables(results):
        table.show()
    print(f"report      {folder / PAGE}\nfigures     {folder / figures.FILE}, .csv, .md, .tex")
    if (saved := workdir / "checkpoints" / str(step)).exists():
        print(f"checkpoint  {saved}", flush=True)


def _write_per_query(folder: epath.Path, evaluation: Evaluation) -> None:
    for outcome in evaluation.outcomes:
        # Record number and content: queries of other data are never taken for the same ones.
        queries = zip(outcome.record.tolist(), outcome.query.content.tolist(), strict=True)
        ids = np.array([f"{record}:{content:016x}" for record, content in queries])
        save_per_query(folder, outcome.figure, outcome.ranking, ids, outcome.gallery.content)


def _report_data(
    workdir: epath.Path, config: ConfigDict, evaluation: Evaluation, results: Results, sections: Sequence[Section]
) -> ReportData:
    """Gathers the history, checks, leaks and terms of the data sets that were trained on or tested."""
    parts = [split.dataset for test in evaluation.sets for split in (test.query, *test.parts)]
    manifests = {dataset.manifest.namespace: dataset.manifest for dataset in parts}
    drawn = {
        test.name for test in evaluation.sets if test.query.dataset.manifest.namespace == procedural.NAMESPACE
    }  # fmt: skip
    names = [config.data.train[n].data_set for n in config.data.train] + [dataset.name for dataset in parts]
    return ReportData(
        run=results.rest["run"],
        history=writers.read_metrics(workdir),
        sections=sections,
        checks=benchmark_checks(results.figures, drawn),
        leaks=_leaks(config, names),
        data_terms={name: terms_of(name, manifests[name].source) for name in sorted(manifests)},
        deliberate_leaks=[procedural.OVERLAP_TRAP],
        compiled=compile_table.read(workdir),
        best_known={test.name: found for test in evaluation.sets if (found := _best_known(config, test))},
    )


def _best_known(config: ConfigDict, test: TestSet) -> Published | None:
    """Returns what `config.report.best_known` names for a test set, else what PUBLISHED has for its first rule."""
    given = dict(entry.split("=", 1) for entry in config.report.best_known)
    if test.name in given:
        value, _, source = given[test.name].partition(" ")
        return Published(float(value), source.strip())
    return PUBLISHED.get((test.gallery.dataset.name, test.protocols[0].name))


def _leaks(config: ConfigDict, names: Sequence[str]) -> list[Leak] | None:
    config = config.copy_and_resolve_references()
    config.data.build_missing = False  # a report builds nothing
    try:
        return find_leaks(list(training_data.open_datasets(config, names).values()))
    except DatasetError as error:  # an evaluation needs no training data
        logging.warning("no leak check: %s", error)
        return None


def terms_of(namespace: str, source: Mapping[str, Any]) -> str:
    """Returns the terms of a namespace's pictures; `source`: of its manifest."""
    return TERMS.get(namespace) or str(source.get("terms", "see the data set's own licence"))


def write_report(directory: str | os.PathLike[str], results: Results, data: ReportData) -> epath.Path:
    """Writes `report.html`, the figures as `results.csv`, `.md` and `.tex`, and last `results.json` into a folder (made
    if missing) and returns the path of the page.

    The JSON file holds the figures as rows, the open-set figures, what else `results.rest` holds, and of `data` "run",
    "benchmark_checks", "leaks", "training_curves" and "rank_lists"; "compile" if there is such a table. Each file is
    complete or absent: it is renamed into place when whole.

    Raises:
      ValueError, TypeError: an entry is wrong, see `checked_results`; nothing is written.
      WriteError: a file cannot be written.
    """
    folder, curves = epath.Path(directory), training_curves(data.history)
    rest = {
        **results.rest,
        "run": {**data.run, **results.rest.get("run", {})},
        "benchmark_checks": [vars(check) for check in data.checks],
        "leaks": None if data.leaks is None else leak_rows(data.leaks, data.deliberate_leaks),
        "training_curves": {
            metric: {line.name: {"step": line.x, "value": line.y} for line in lines} for metric, lines in curves.items()
        },
        "rank_lists": [_section_figures(section) for section in data.sections],
    }
    if data.compiled is not None:
        rest["compile"] = data.compiled
    checked = checked_results(dataclasses.replace(results, rest=rest))
    page = render(checked, data, curves)
    write_atomically(folder / PAGE, page)
    tables.results_table(checked).write(folder, Path(figures.FILE).stem)
    write_atomically(folder / figures.FILE, json.dumps(checked.to_json(), indent=1, allow_nan=False) + "\n")
    return folder / PAGE


def leak_rows(leaks: Sequence[Leak], deliberate: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
    """Returns one row per pair of data sets, kind and evidence, with the number of people; the harmful ones first.

    `deliberate`: pairs of data sets that leak on purpose, to prove that the check finds it.
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

    Records are averaged in runs of equal length to at most `points` per curve; values that are no finite number are
    left out. Losses and accuracies come first.
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
            style = TASKS[line].id if line in TASKS else -1
            lines.append(Series(line, means[:, 0].tolist(), means[:, 1].tolist(), style))
    return curves


def _section_figures(section: Section) -> dict[str, Any]:
    """Returns the scores and relations of a section's rank lists, and its rollouts' words, as plain JSON types."""

    def plain(rank_list: RankList) -> dict[str, Any]:
        return {
            "query": rank_list.query_id,
            "ap": rank_list.ap,
            "first_positive_rank": rank_list.first_positive_rank,
            "ranked": [{"relation": r.relation, "score": r.score, "caption": r.caption} for r in rank_list.ranked],
        }

    groups = {kind: [plain(r) for r in getattr(section, kind)] for kind in ("examples", "best", "worst")}
    rollouts = [
        {"query": r.query_id, "tokens": [[token, weight] for token, weight in r.tokens]} for r in section.rollouts
    ]
    about = {"test_set": section.test_set, "task": section.task, "protocol": section.protocol}
    return jsonable({**about, **groups, "rollouts": rollouts})
