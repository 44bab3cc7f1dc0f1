"""Tables of figures in several forms: CSV, Markdown, LaTeX (booktabs) and, on a terminal, text."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any, Literal

import rich.box
import rich.console
import rich.table
import rich.text
from etils import epath

from data_pipelines.files import write_atomically
from irm_jax.evaluation import figures
from irm_jax.evaluation.figures import CONTROLS, SETTINGS, Results

SHORT = {
    "random": "random", "color_histogram": "colour", "image_only": "image", "instruction_only": "instr.",
    "perfect_identity": "person", "oracle": "oracle",
}  # fmt: skip
"""Titles of the controls in a narrow table."""
WIDTH = 160
"""Columns of a table that goes to no terminal."""
_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "τ": r"$\tau$", "–": "--", "−": "$-$",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under columns.

    columns: titles. rows: cells as they are printed. words: how many columns, from the left, hold words and not
    numbers. records: the same rows in full, by name, as the CSV file has them.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int
    records: Sequence[Mapping[str, Any]] = ()

    def to_csv(self) -> str:
        """Full rows with every name that occurs; numbers unrounded, empty where a row has no value."""
        names = list(dict.fromkeys(name for record in self.records for name in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()

    def to_markdown(self) -> str:
        marks = [":--" if place < self.words else "--:" for place in range(len(self.columns))]
        lines = [self.columns, marks, *self.rows]
        cells = (" | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) for line in lines)
        return f"{self.title}\n\n" + "".join(f"| {line} |\n" for line in cells)

    def to_tex(self) -> str:
        """A `tabular` that needs the package booktabs; a little space where the first column changes."""
        lines = [f"% {self.title}; needs \\usepackage{{booktabs}}".replace("\n", " ")]
        lines += [r"\begin{tabular}{" + "l" * self.words + "r" * (len(self.columns) - self.words) + "}", r"\toprule"]
        lines += [self._tex(self.columns), r"\midrule"]
        for before, row in zip([None, *self.rows], self.rows, strict=False):
            if before is not None and before[0] != row[0]:
                lines.append(r"\addlinespace")
            lines.append(self._tex(row))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    @staticmethod
    def _tex(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(_TEX) for cell in cells) + r" \\"

    def write(self, folder: epath.Path, name: str) -> None:
        """Writes NAME.csv, NAME.md and NAME.tex. Raises WriteError."""
        for suffix, text in (("csv", self.to_csv()), ("md", self.to_markdown()), ("tex", self.to_tex())):
            write_atomically(folder / f"{name}.{suffix}", text)

    def show(self, file: IO[str] | None = None) -> None:
        """Prints the table, to stdout if no file is given; on a terminal as wide as that, long words folded."""
        console = rich.console.Console(file=file, highlight=False)
        if not console.is_terminal:
            console = rich.console.Console(file=file, highlight=False, width=WIDTH, no_color=True)
        table = rich.table.Table(
            title=rich.text.Text(self.title), title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False,
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        for place, title in enumerate(self.columns):
            words = place < self.words
            justify: Literal["left", "right"] = "left" if words else "right"
            table.add_column(rich.text.Text(title), justify=justify, overflow="fold", no_wrap=not words)
        for row in self.rows:
            table.add_row(*map(rich.text.Text, row))
        console.print(table)


def percent(value: float | None) -> str:
    """73.4 for .734, a dash for an undefined figure."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def results_table(results: Results) -> Table:
    """Every figure of an evaluation, in its order: fractions in percent in the columns, as they are in the records."""
    metrics = figures.METRICS
    rows = [
        (figure.test_set, figure.task, figure.protocol, figures.variant(figure) or "task-specific",
         *(percent(getattr(figure, name)) for name in metrics), _count(figure.queries), _count(figure.gallery_size))
        for figure in results.figures
    ]  # fmt: skip
    columns = ("test set", "task", "protocol", "what", *metrics, "queries", "gallery")
    title = f"Figures in percent, {len(rows)} rows"
    return Table(title, columns, rows, 4, [_flat(figure.to_json()) for figure in results.figures])


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of plain values: tables within it as `NAME.KEY`, lists as words."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = " ".join(value) if isinstance(value, list | tuple) else value
    return flat


def task_tables(results: Results) -> list[Table]:
    """One table per task: the model under each rule, and beside it the mAP of the controls of that ranking."""
    found = results.figures
    controls = [name for name in CONTROLS if any(figure.system == name for figure in found)]
    rows: dict[str, list[Sequence[str]]] = {}
    for figure in (row for setting in SETTINGS for row in figures.plain(found, setting)):
        control = (figures.counterpart(found, figure, system=name) for name in controls)
        beside = (percent(None if row is None else row.mAP) for row in control)
        cells = (figures.label(figure), percent(figure.mAP), percent(figure.rank1), *beside)
        rows.setdefault(figure.task, []).append(cells)
    columns = ("", "mAP", "rank1", *(SHORT[name] for name in controls))
    words = ", ".join(name.replace("_", " ") for name in controls)
    title = f"percent; mAP of controls: {words}" if controls else "percent; without controls"
    return [Table(f"{task}: {title}", columns, lines, 1) for task, lines in rows.items()]
