"""What an evaluation leaves in the workdir: results.json, report.html and per-query results. Process 0 writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import procedural
from data_pipelines.batches import training_data
from data_pipelines.errors import DatasetError
from data_pipelines.people.leaks import find_leaks
from irm_jax.evaluation.compare import remove_other_results, save_per_query
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluator import Evaluation
from irm_jax.evaluation.report.benchmark_checks import benchmark_checks
from irm_jax.evaluation.report.examples import task_sections
from irm_jax.evaluation.report.write import ReportData, TaskSection, write_report
from irm_jax.logs import writers
from irm_jax.parallel import processes

TERMS = {
    "procedural": "drawn by this project; free of real people",
    "market1501": "Market-1501: research use only, not to be redistributed; this file shows pictures of real people",
}
"""By namespace prefix: under which terms a report shows a data set's pictures; of others what their manifest says."""


def write(
    workdir: epath.Path,
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
    try:
        if processes.is_main():
            _write(workdir, config, evaluation, metadata, results, sections)
    finally:
        processes.barrier("report")  # the others stay: a process that ends takes the rest with it


def _write(
    workdir: epath.Path,
    config: ConfigDict,
    evaluation: Evaluation,
    metadata: Mapping[str, Any],
    results: Mapping[str, Any],
    sections: Sequence[TaskSection],
) -> None:
    written = set()
    for ranked in evaluation.ranked.values():
        # Place and content: queries of other data are never taken for the same ones.
        asking = zip(ranked.record.tolist(), ranked.query["content"].tolist(), strict=True)
        ids = np.array([f"{record}:{content:016x}" for record, content in asking])
        written.add(save_per_query(workdir, ranked.ranking, ids, ranked.gallery["content"]))
    remove_other_results(workdir, written)
    names = [config.data.train[n].data_set for n in config.data.train]
    names += [split.dataset.name for test in evaluation.sets for split in (test.query, *test.parts)]
    try:
        leaks = find_leaks(list(training_data.open_datasets(config, names).values()))
    except DatasetError as error:  # evaluating needs no training data
        logging.warning("no leak check: %s", error)
        leaks = None
    manifests = {s.dataset.manifest.namespace: s.dataset.manifest for t in evaluation.sets for s in (t.query, *t.parts)}
    data = ReportData(
        run=metadata,
        history=writers.read_metrics(workdir),
        sections=sections,
        checks=benchmark_checks(results),
        leaks=leaks,
        data_terms={n: _terms(n, manifests[n].source) for n in sorted(manifests)},
        deliberate_leaks=[procedural.OVERLAP_TRAP],
    )
    write_report(workdir, results, data)


def _terms(namespace: str, source: Mapping[str, Any]) -> str:
    found = [text for prefix, text in TERMS.items() if namespace.startswith(prefix)]
    return found[0] if found else str(source.get("terms", "see the data set's own licence"))
