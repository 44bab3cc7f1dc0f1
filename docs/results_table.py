"""Puts a run's figures into README.md and docs/figures.md: `python docs/results_table.py runs/quickstart`.

The rows between `<!-- quickstart results -->` and the next empty line become those of the run's newest evaluation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from irm_jax.evaluation import figures  # noqa: E402

PAGES = (ROOT / "README.md", ROOT / "docs" / "figures.md")
TASKS = ("trad", "cc", "ctcc", "vi", "t2i", "li")
SYSTEMS = {"color_histogram": "colour histogram", "random": "random embedding"}


def table(results: figures.Results) -> str:
    """Returns the Markdown table: mAP of the tasks' headlines, the model's and its controls'."""
    first = {figure.task: figure for figure in figures.headlines(results.figures).values()}
    free = figures.headlines(results.figures, "task_free").values()
    lines = [["mAP", *TASKS, "mean", "task-free, mean"]]
    lines.append(
        ["quickstart", *_cells([first[task].mAP for task in TASKS]), _fraction(_mean([f.mAP or 0.0 for f in free]))]
    )
    for system, name in SYSTEMS.items():
        found = [figures.counterpart(results.figures, first[task], system=system) for task in TASKS]
        lines.append([name, *_cells([figure.mAP if figure else None for figure in found]), ""])
    rule = "|" + "---|" * len(lines[0])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], rule, *rows[1:]])


def replaced(text: str, rows: str) -> str:
    """Returns the text with the rows in place of those that follow the marker."""
    made, count = re.subn(r"(?<=<!-- quickstart results -->\n).*?(?=\n\n)", lambda _: rows, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit("no table after <!-- quickstart results -->")
    return made


def _cells(values: list[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    return [*map(_fraction, values), _fraction(_mean(known) if len(known) == len(values) else None)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".removeprefix("0")


def main() -> None:
    rows = table(figures.read_results(sys.argv[1]))
    print(rows)
    for page in PAGES:
        page.write_text(replaced(page.read_text("utf-8"), rows), "utf-8")


if __name__ == "__main__":
    main()
