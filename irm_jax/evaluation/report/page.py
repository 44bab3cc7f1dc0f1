"""Renders the report's page: charts of selected figures, pictures, and the template `templates/report.html.j2`."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from data_pipelines.tasks import TASKS
from irm_jax.evaluation.figures import METRICS, SETTINGS, Results
from irm_jax.evaluation.report import compile_table
from irm_jax.evaluation.report.charts import DASHES, Dots, Series, dot_chart, line_chart
from irm_jax.evaluation.report.pictures import Album, overlay
from irm_jax.evaluation.report.results import ReportData, Rollout
from irm_jax.evaluation.report.selections import Row, Selections, SetRows, flatten
from irm_jax.evaluation.tables import percent

CONTROL_TITLES = {
    "random": "Random (expected)",
    "color_histogram": "Colour histogram",
    "image_only": "Image only",
    "instruction_only": "Instruction only",
    "perfect_identity": "Perfect identity",
    "oracle": "Oracle",
}
SETTING_TITLES = {"task_specific": "Task-specific", "task_free": "Task-free"}


def is_main(metric: str) -> bool:
    """Returns whether the curves of a training metric are shown at once; others stand in a collapsible list."""
    return "loss" in metric or "accuracy" in metric


def _is_share(metric: str, lines: Sequence[Series]) -> bool:
    shares = "accuracy" in metric or "share" in metric or metric.endswith("rate")
    return shares and all(0 <= y <= 1 for line in lines for y in line.y)


def quantity(value: float, unit: str) -> str:
    """Returns a value of a benchmark check in its unit, "fraction" or "ratio"; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}%" if unit == "fraction" else f"{value:.2f}×"


def figure_text(value: Any) -> str:
    """Returns a metric as the page prints it: fractions in percent, counts as they are."""
    if isinstance(value, float) or value is None:
        return percent(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _styles(test_sets: Sequence[SetRows]) -> dict[str, int]:
    """Returns test set -> style of its line: its task's colour, and another dash for each further set of the task."""
    seen: dict[str, int] = {}
    styles = {}
    for test_set in test_sets:
        count = seen[test_set.task] = seen.get(test_set.task, -1) + 1
        styles[test_set.name] = TASKS[test_set.task].id + len(DASHES) * count
    return styles


def _overview(selections: Selections, setting: str) -> Markup | None:
    """Returns the dot chart of a setting: each test set under its first rule, with the controls of that ranking."""
    rows = [(test_set, test_set.plain[0]) for test_set in selections.test_sets[setting] if test_set.plain]
    if not rows:
        return None
    beside = [selections.beside(row) for _, row in rows]
    used = [system for system in selections.controls if any(system in controls for controls in beside)]
    tasks = [test_set.task for test_set, _ in rows]
    dots = []
    for (test_set, row), controls in zip(rows, beside, strict=True):
        values = [row.figure.mAP, *(controls[s].figure.mAP if s in controls else None for s in used)]
        label = test_set.task if tasks.count(test_set.task) == 1 else test_set.name
        dots.append(Dots(label, [math.nan if value is None else value for value in values]))
    names = ["IRM (this run)", *(CONTROL_TITLES.get(s, s.replace("_", " ")) for s in used)]
    return dot_chart(f"mAP, {SETTING_TITLES[setting].lower()}", dots, names)


def _tau_charts(selections: Selections) -> list[Markup]:
    """Returns one chart of mAP over tau per setting for the test sets' first rules, and one per other rule."""
    groups: dict[str, list[Series]] = {}
    for setting, test_sets in selections.test_sets.items():
        styles = _styles(test_sets)
        for test_set in test_sets:
            for place, row in enumerate(test_set.plain):
                table = row.figure.mAP_tau or {}
                if all(value is None for value in table.values()):
                    continue
                title = f"mAP over τ, {SETTING_TITLES[setting].lower()}"
                title += f", rule {row.figure.protocol}" if place else ""
                taus = sorted(table, key=float)
                y = [math.nan if (value := table[tau]) is None else value for tau in taus]
                line = Series(test_set.name, [float(tau) for tau in taus], y, styles[test_set.name])
                groups.setdefault(title, []).append(line)
    return [line_chart(title, lines, x_label="τ", percent=True) for title, lines in groups.items()]


def _roc(selections: Selections) -> list[Markup]:
    styles = _styles(selections.test_sets["task_specific"])
    lines = [
        Series(row.test_set, row.roc["fpr"], row.roc["tpr"], styles.get(row.test_set, TASKS[row.task].id))
        for row in sorted(selections.results.open_set, key=lambda row: TASKS[row.task].id)
    ]
    return [line_chart("ROC of the best score: TPR over FPR", lines, x_label="FPR", percent=True)] if lines else []


@functools.cache
def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "figure": figure_text, "quantity": quantity}
    templates.globals["tasks"] = TASKS
    return templates


def fill(template: str, **values: Any) -> str:
    """Returns a page made of a template and its values, which may show pictures by `show(picture, alt)`."""
    album = Album()
    pictures = {"album": album, "show": album.show, "rollout_pictures": functools.partial(_rollout_pictures, album)}
    return _templates().get_template(template).render(pictures | values).strip() + "\n"


def _rollout_pictures(album: Album, rollout: Rollout) -> list[dict[str, Any]]:
    pairs = (
        (rollout.image, rollout.image_heat, "person image"),
        (rollout.instruction_image, rollout.instruction_heat, "instruction image"),
    )
    pictures = []
    for picture, heat, what in pairs:
        if picture is not None:
            pictures.append({"label": what, "image": album.show(picture, f"{what} of query {rollout.query_id}")})
            if heat is not None:
                alt = f"attention over the {what} of query {rollout.query_id}; bright is much"
                pictures.append({"label": f"attention, {what}", "image": album.show(overlay(picture, heat), alt)})
    return pictures


def _answer(selections: Selections) -> str:
    """Returns the evaluation in a sentence: how many test sets lie above the controls, and by how much on average."""
    rows = [test_set.plain[0] for test_set in selections.test_sets["task_specific"] if test_set.plain]
    known = [row for row in rows if row.figure.mAP is not None]
    if not known:
        return "No query of any test set has a positive, so there is no figure."
    of = f"{len(known)} test sets" if len(known) > 1 else "one test set"
    words = f"Mean mAP over {of}: {percent(_mean(known))}%"
    for system in ("random", "color_histogram"):
        pairs = [(row, control) for row in known if (control := selections.find(row.figure, system=system))]
        pairs = [(row, control) for row, control in pairs if control.figure.mAP is not None]
        if pairs:
            above = sum((row.figure.mAP or 0) > (control.figure.mAP or 0) for row, control in pairs)
            name = {"random": "a random order", "color_histogram": "a colour histogram"}[system]
            mean = percent(_mean([control for _, control in pairs]))
            words += f"; above {name} in {above} of {len(pairs)} (it has {mean}% on average)"
    return f"{words}. Each figure is of the test set's first rule; figures are percentages unless they count something."


def _mean(rows: Sequence[Row]) -> float:
    return float(np.mean([row.figure.mAP or 0.0 for row in rows]))


def render(results: Results, data: ReportData, curves: dict[str, list[Series]]) -> str:
    """Returns the page; `results` is the finished content of results.json."""
    selections = Selections(results)
    run = results.rest["run"]
    charts = {
        metric: line_chart(metric.replace("_", " "), lines, x_label="step", percent=_is_share(metric, lines))
        for metric, lines in curves.items()
    }
    return fill(
        "report.html.j2",
        data=data,
        results=results,
        selections=selections,
        run=run,
        leaks=results.rest["leaks"],
        metrics=METRICS,
        setting_titles=SETTING_TITLES,
        overview=[chart for setting in SETTINGS if (chart := _overview(selections, setting))],
        control_titles=CONTROL_TITLES,
        tau_charts=_tau_charts(selections),
        roc_charts=_roc(selections),
        main_charts=[chart for metric, chart in charts.items() if is_main(metric)],
        other_charts=[chart for metric, chart in charts.items() if not is_main(metric)],
        run_fields=list(flatten({key: value for key, value in run.items() if key != "config"})),
        config=json.dumps(run["config"], indent=2),
        compile_table=compile_table.html,
        answer=_answer(selections),
        data_terms=data.data_terms,
        most_choices=max((len((*s.examples, *s.best, *s.worst)) for s in data.sections), default=0),
        failed=[check for check in data.checks if not check.passed],
    )
