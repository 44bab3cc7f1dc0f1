"""What an evaluation leaves in the workdir: results.json, report.html and per-query results. Process 0 writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines import joint_data, procedural
from data_pipelines.leak_check import find_leaks
from irm_jax import metric_log
from irm_jax.evaluation.benchmark_checks import benchmark_checks
from irm_jax.evaluation.compare import save_per_query
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluator import Evaluation
from irm_jax.evaluation.pictures import task_sections
from irm_jax.evaluation.report import ReportData, write_report

TERMS = {
    "procedural": "drawn by this project; free of real people",
    "market1501": "Market-1501: research use only, not to be redistributed; this file shows pictures of real people",
}
"""By namespace prefix: under which terms a report shows a data set's pictures."""


def write(
    workdir: Path,
    config: ConfigDict,
    embedder: EmbeddingModel,
    evaluation: Evaluation,
    metadata: Mapping[str, Any],
    *,
    step: int,
) -> None:
    """Writes report.html, results.json and per_query/ into `workdir`."""
    results = {**evaluation.results, "run": {"step": step}}
    sections = task_sections(
        evaluation, embedder, queries=config.report.queries, rollouts=config.report.rollouts, seed=config.seed
    )
    if jax.process_index() != 0:
        return
    for ranked in evaluation.ranked.values():
        save_per_query(workdir, ranked.ranking, np.arange(len(ranked.ranking.ap)))
    names = [config.data.train[n].data_set for n in config.data.train]
    names += [config.evaluation.sets[n].data_set for n in config.evaluation.sets]
    leaks = find_leaks(list(joint_data.open_datasets(config, names).values()))
    namespaces = {s.dataset.manifest.namespace for t in evaluation.sets for s in (t.query, t.gallery)}
    data = ReportData(
        run=metadata,
        history=metric_log.read_metrics(workdir),
        sections=sections,
        checks=benchmark_checks(results),
        leaks=leaks,
        data_terms={n: _terms(n) for n in sorted(namespaces)},
        deliberate_leaks=[procedural.OVERLAP_TRAP],
    )
    write_report(workdir, results, data)


def _terms(namespace: str) -> str:
    found = [text for prefix, text in TERMS.items() if namespace.startswith(prefix)]
    return found[0] if found else "see the data set's own licence"
