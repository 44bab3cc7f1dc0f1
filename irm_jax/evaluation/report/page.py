"""Renders the report's page: selections of figures as tables and charts, and pictures, in `report.html.j2`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from data_pipelines.tasks import TASKS
from irm_jax.evaluation import figures
from irm_jax.evaluation.figures import CONTROLS, METRICS, MODEL, SETTINGS, SWAPPED, Figure, Results
from irm_jax.evaluation.report import compile_table
from irm_jax.evaluation.report.charts import (
    DASHES,
    Dots,
    Picture,
    Series,
    dot_chart,
    line_chart,
    overlay,
    thumbnail,
)
from irm_jax.evaluation.report.results import ReportData, Rollout

CONTROL_TITLES = {
    "random": "Random (expected)",
    "color_histogram": "Colour histogram",
    "image_only": "Image only",
    "instruction_only": "Instruction only",
    "perfect_identity": "Perfect identity",
    "oracle": "Oracle",
}
SCORING_NOTES = {
    "flip": "embeddings averaged over image and mirror",
    "rescored": "the best images judged again by the matching head",
    "rerank": "k-reciprocal re-ranking",
}
SETTING_TITLES = {"task_specific": "Task-specific", "task_free": "Task-free"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A figure as a row of a table: its place among the figures of results.json, and what a small line says of it."""

    figure: Figure
    number: int
    note: str

    @property
    def path(self) -> str:
        return f"figures.{self.number}"

    @property
    def variant(self) -> str:
        """What differs from the plain ranking under the same rule; "" for that one."""
        return "" if self.figure.plain else figures.variant(self.figure, with_setting=False)


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The model's rows of one test set in one setting, in the order of the evaluation; its first rule comes first."""

    __test__ = False  # not a test case

    name: str
    task: str
    plain: Sequence[Row]
    variants: Sequence[Row]

    @property
    def rows(self) -> list[Row]:
        """Each plain row followed by its variants. Variants without a plain row come last."""
        rules = [row.figure.protocol for row in self.plain]
        rest = [row for row in self.variants if row.figure.protocol not in rules]
        followed = (
            [row, *(v for v in self.variants if v.figure.protocol == row.figure.protocol)] for row in self.plain
        )
        return [row for group in followed for row in group] + rest


class Selections:
    """The figures of an evaluation, selected by their fields for the page's tables and charts."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._numbers = {figure.key: number for number, figure in enumerate(results.figures)}
        used = {figure.system for figure in results.figures} - {MODEL, SWAPPED}
        self.controls = [*(c for c in CONTROLS if c in used), *sorted(used - set(CONTROLS))]
        self.test_sets = {setting: self._test_sets(setting) for setting in SETTINGS}
        tables = (figure.mAP_tau or {} for figure in results.figures)
        self.taus = sorted({tau for table in tables for tau in table}, key=float)

    def row(self, figure: Figure) -> Row:
        return Row(figure, self._numbers[figure.key], note(figure))

    def find(self, figure: Figure, **changes: Any) -> Row | None:
        """The row of the same ranking except for some fields of its key; None if there is none."""
        number = self._numbers.get(dataclasses.replace(figure, **changes).key)
        return None if number is None else self.row(self.results.figures[number])

    def beside(self, row: Row) -> dict[str, Row]:
        """The rows of the controls of the same ranking, by system."""
        found = {system: self.find(row.figure, system=system) for system in self.controls}
        return {system: control for system, control in found.items() if control is not None}

    def task_free(self, figure: Figure) -> Row | None:
        """The row of the same test set and rule against the union of all galleries."""
        return self.find(figure, setting="task_free", gallery="union", gallery_instruction="neutral")

    @property
    def plain(self) -> list[Row]:
        """The model's rows without variants: task-specific ones, then task-free ones."""
        return [row for setting in SETTINGS for test_set in self.test_sets[setting] for row in test_set.plain]

    @property
    def controlled(self) -> list[tuple[tuple[str, TestSet], list[tuple[Row, dict[str, Row]]]]]:
        """((setting, test set), [(plain row, system -> row of the control)]) of the rows that controls cover."""
        found = []
        for setting in SETTINGS:
            for test_set in self.test_sets[setting]:
                rows = [(row, self.beside(row)) for row in test_set.plain]
                if covered := [(row, controls) for row, controls in rows if controls]:
                    found.append(((setting, test_set), covered))
        return found

    @property
    def by_tau(self) -> list[tuple[TestSet, list[Row]]]:
        """The rows of each test set that have mAP over tau."""
        found = [
            (test_set, [row for row in test_set.rows if row.figure.mAP_tau])
            for setting in SETTINGS
            for test_set in self.test_sets[setting]
        ]
        return [(test_set, rows) for test_set, rows in found if rows]

    @property
    def swapped(self) -> list[tuple[Row, Row]]:
        """Each row under swapped instructions, with the model's row of the same ranking."""
        rows = [self.row(figure) for figure in figures.select(self.results.figures, system=SWAPPED)]
        return [(row, model) for row in rows if (model := self.find(row.figure, system=MODEL)) is not None]

    def _test_sets(self, setting: str) -> list[TestSet]:
        rows = [self.row(f) for f in figures.select(self.results.figures, setting=setting, system=MODEL)]
        names = dict.fromkeys(row.figure.test_set for row in rows)
        found = []
        for name in names:
            own = [row for row in rows if row.figure.test_set == name]
            plain, variants = [r for r in own if r.figure.plain], [r for r in own if not r.figure.plain]
            found.append(TestSet(name, own[0].figure.task, plain, variants))
        return sorted(found, key=lambda test_set: TASKS[test_set.task].id)

    def every_figure(self) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
        """Yields (label, [(path in results.json, name, value)]) of each row; the ROC curves' points are left out."""
        for number, figure in enumerate(self.results.figures):
            yield figures.label(figure), _leaves(f"figures.{number}", figure.to_json())
        for number, entry in enumerate(self.results.open_set):
            content = {key: value for key, value in entry.to_json().items() if key != "roc"}
            # A threshold is a score and no fraction: as text it is not shown in percent.
            content["threshold"] = {fpr: f"{value:.3f}" for fpr, value in entry.threshold.items()}
            yield f"{entry.test_set}/{entry.protocol} (open set)", _leaves(f"open_set.{number}", content)


NOT_METRICS = ("test_set", "task", "protocol", "setting", "system", "description")


def _leaves(path: str, content: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Returns (path, name, value) of the values of a row, without the fields that its label or the tables show."""
    leaves = flatten({key: value for key, value in content.items() if key not in NOT_METRICS})
    return [(f"{path}.{name}", name, value) for name, value in leaves if not isinstance(value, (bool, dict, list))]


def note(figure: Figure) -> str:
    """Returns what a table says in small print: the rule of a plain figure, else what the variant is."""
    notes = [figure.description] if figure.plain else []
    if figure.setting == "task_free" and figure.gallery == "own":
        notes.append("domain control: the gallery of the query's own test set only")
    if figure.setting == "task_free" and figure.gallery_instruction == "own":
        notes.append("gallery under its own instructions, which reveal the source")
    if figure.distractors:
        notes.append("gallery with the distractors")
    notes += [SCORING_NOTES[scoring] for scoring in figure.scoring]
    if figure.cut is not None:
        notes.append(f"compat: AP cut at {figure.cut} as in the released code, which inflates it")
    if figure.overlap_junk:
        notes.append(f"{figure.overlap_junk} images left out: people who may be the same, not linked")
    return "; ".join(n for n in notes if n)


def is_main(metric: str) -> bool:
    """Returns whether the curves of a training metric are shown at once; others stand in a collapsible list."""
    return "loss" in metric or "accuracy" in metric


def _is_share(metric: str, lines: Sequence[Series]) -> bool:
    shares = "accuracy" in metric or "share" in metric or metric.endswith("rate")
    return shares and all(0 <= y <= 1 for line in lines for y in line.y)


def percent(value: float | None) -> str:
    """Returns 73.4 for .734, and a dash for an undefined figure."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def quantity(value: float, unit: str) -> str:
    """Returns a value of a benchmark check in its unit, "fraction" or "ratio"; a dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}%" if unit == "fraction" else f"{value:.2f}×"


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, leaf) of nested dicts and lists; an empty dict or list is a leaf."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not children:
        yield path, value
    for key, child in children:
        yield from flatten(child, f"{path}.{key}" if path else str(key))


def figure_text(value: Any) -> str:
    """Returns a metric as the page prints it: fractions in percent, counts as they are."""
    if isinstance(value, float) or value is None:
        return percent(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _styles(test_sets: Sequence[TestSet]) -> dict[str, int]:
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
        for row in selections.results.open_set
    ]
    return [line_chart("ROC of the best score: TPR over FPR", lines, x_label="FPR", percent=True)] if lines else []


def _image(picture: Picture, alt: str, max_height: int = 192) -> Markup:
    uri, width, height = thumbnail(picture, max_height)
    return Markup('<img src="{}" width="{}" height="{}" alt="{}" loading="lazy">').format(uri, width, height, alt)


def _rollout_pictures(rollout: Rollout) -> list[dict[str, Any]]:
    pairs = (
        (rollout.image, rollout.image_heat, "person image"),
        (rollout.instruction_image, rollout.instruction_heat, "instruction image"),
    )
    pictures = []
    for picture, heat, what in pairs:
        if picture is not None:
            pictures.append({"label": what, "image": _image(picture, f"{what} of query {rollout.query_id}", 256)})
            if heat is not None:
                alt = f"attention over the {what} of query {rollout.query_id}; bright is much"
                pictures.append({"label": f"attention, {what}", "image": _image(overlay(picture, heat), alt, 256)})
    return pictures


def render(results: Results, data: ReportData, curves: dict[str, list[Series]]) -> str:
    """Returns the page; `results` is the finished content of results.json."""
    selections = Selections(results)
    run = results.rest["run"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "figure": figure_text, "quantity": quantity}
    charts = {
        metric: line_chart(metric.replace("_", " "), lines, x_label="step", percent=_is_share(metric, lines))
        for metric, lines in curves.items()
    }
    page = environment.get_template("report.html.j2").render(
        data=data,
        results=results,
        selections=selections,
        run=run,
        leaks=results.rest["leaks"],
        tasks=TASKS,
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
        image=_image,
        compile_table=compile_table.html,
        rollout_pictures=_rollout_pictures,
        failed=[check for check in data.checks if not check.passed],
    )
    return page.strip() + "\n"
