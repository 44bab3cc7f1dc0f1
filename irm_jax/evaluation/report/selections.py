"""Selects the figures of an evaluation by their fields, for the tables and charts of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.tasks import TASKS
from irm_jax.evaluation import figures
from irm_jax.evaluation.figures import CONTROLS, MODEL, SETTINGS, SWAPPED, Figure, Results

NOT_METRICS = ("test_set", "task", "protocol", "setting", "system", "description")
"""Fields of a row that its label or a table's first cell shows."""
SCORING_NOTES = {
    "flip": "embeddings averaged over image and mirror",
    "rescored": "the best images judged again by the matching head",
    "two_stage": "gallery under the neutral sentence, the best images again under the query's instruction",
    "rerank": "k-reciprocal re-ranking",
}


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
class SetRows:
    """The model's rows of one test set in one setting, in the order of the evaluation; its first rule comes first."""

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
    def controlled(self) -> list[tuple[tuple[str, SetRows], list[tuple[Row, dict[str, Row]]]]]:
        """((setting, test set), [(plain row, system -> row of the control)]) of the rows that controls cover."""
        found = []
        for setting in SETTINGS:
            for test_set in self.test_sets[setting]:
                rows = [(row, self.beside(row)) for row in test_set.plain]
                if covered := [(row, controls) for row, controls in rows if controls]:
                    found.append(((setting, test_set), covered))
        return found

    @property
    def by_tau(self) -> list[tuple[SetRows, list[Row]]]:
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

    def _test_sets(self, setting: str) -> list[SetRows]:
        rows = [self.row(f) for f in figures.select(self.results.figures, setting=setting, system=MODEL)]
        names = dict.fromkeys(row.figure.test_set for row in rows)
        found = []
        for name in names:
            own = [row for row in rows if row.figure.test_set == name]
            plain, variants = [r for r in own if r.figure.plain], [r for r in own if not r.figure.plain]
            found.append(SetRows(name, own[0].figure.task, plain, variants))
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


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, leaf) of nested dicts and lists; an empty dict or list is a leaf."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not children:
        yield path, value
    for key, child in children:
        yield from flatten(child, f"{path}.{key}" if path else str(key))
