"""What a study of variants x seeds found: paired differences to the first variant, as Markdown and as an SVG chart.

A study is a folder with a run in each VARIANT/SEED. Runs of one seed are a pair: they saw the same batches. Of the
differences between pairs stand the mean and its 95% interval (Student's t over seeds); with nine variants and fourteen
figures a few intervals leave out 0 by chance.

What is known of each finished run is written as well, a line of JSON a run, from which the study goes on where the runs
themselves are no more.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from data_pipelines import tasks
from irm_jax.evaluation.report import charts

Found = dict[tuple[str, int], dict[str, float]]
"""Figures by (variant, seed), of the runs that are finished."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its figures, and the code, devices and options that it is of."""

    variant: str
    seed: int
    code: str
    devices: str
    options: list[str]
    figures: dict[str, float]


Runs = dict[tuple[str, int], Run]

FREE = "task_free/"
RESCORED = "+rescored"
Panels = dict[str, str]
"""What a chart shows: figure -> title."""
MEANS: Panels = {"mean": "task-specific, mean of the tasks", f"{FREE}mean": "task-free, mean of the tasks"}
COMMAND = "command.json"
"""File of a run's folder: the options that it was started with."""
# Two-sided 95% quantiles of Student's t by degrees of freedom, 1 to 9; beyond, the last is a little too wide.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def figures(run: Path) -> dict[str, float]:
    """mAP by protocol of a finished run, and means over the tasks."""
    protocols = json.loads((run / "results.json").read_text("utf-8"))["protocols"]
    found = {}
    for setting in ("", FREE):
        names = [f"{setting}procedural_{task}" for task in tasks.TASK_NAMES]
        found |= {name: protocols[name]["mAP"] for name in names}
        found[f"{setting}mean"] = float(np.mean([protocols[name]["mAP"] for name in names]))
    return found | {
        name + RESCORED: protocols[name + RESCORED]["mAP"] for name in found if name + RESCORED in protocols
    }


def _finished(folder: Path, variant: str, seed: int) -> Run:
    start = json.loads((folder / "run.json").read_text("utf-8"))[-1]
    git = start["git"]
    code = git["revision"][:7] + (" with changes" if git["dirty"] else "") if git else "unknown"
    options = json.loads((folder / COMMAND).read_text("utf-8"))
    return Run(variant, seed, code, start["devices"]["kind"], options, figures(folder))


def collect(study: Path, variants: Sequence[str], seeds: int, known: Runs) -> Runs:
    """The runs of seeds 0 .. seeds - 1 that are finished in the folder or known, the folder's first."""
    found = {}
    for variant in variants:
        for seed in range(seeds):
            folder = study / variant / str(seed)
            if (folder / "results.json").is_file():
                found[variant, seed] = _finished(folder, variant, seed)
            elif (variant, seed) in known:
                found[variant, seed] = known[variant, seed]
    return found


def read_known(path: Path | None) -> Runs:
    """The runs of a file that `write` wrote (None: no runs). Raises SystemExit naming the line that is none."""
    runs: Runs = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path else (), 1):
        try:
            run = Run(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise SystemExit(f"{path}, line {number}: not a run as a study writes them ({error})") from error
        runs[run.variant, run.seed] = run
    return runs


def with_mean(found: Found, variants: Sequence[str], name: str) -> Found:
    """`found` and a variant `name`: of every seed that all of `variants` are finished of, their mean.

    What they have in common shows more clearly than in each: chance is averaged out, but for the first variant's.
    """
    pooled: Found = {}
    for seed in {seed for _, seed in found}:
        if not all((variant, seed) in found for variant in variants):
            continue
        runs = [found[variant, seed] for variant in variants]
        common = set(runs[0]).intersection(*runs)
        pooled[name, seed] = {key: float(np.mean([run[key] for run in runs])) for key in common}
    return found | pooled


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95% interval; the half width of one difference is infinite."""
    count = len(differences)
    if count < 2:
        return float(differences.mean()), math.inf
    half = T_95[min(count - 2, len(T_95) - 1)] * float(differences.std(ddof=1)) / math.sqrt(count)
    return float(differences.mean()), half


def differences(found: Found, base: str, variant: str, figure: str) -> np.ndarray:
    """A variant's figure less that of `base`, f64[seeds that both have]; a rescored one less its own plain ranking."""
    plain, to_itself = figure.removesuffix(RESCORED), figure.endswith(RESCORED)
    seeds = sorted(seed for name, seed in found if name == variant and (base, seed) in found)
    others = [found[variant if to_itself else base, seed][plain] for seed in seeds]
    owns = [found[variant, seed].get(figure) for seed in seeds]
    return np.array([own - other for own, other in zip(owns, others, strict=True) if own is not None])


def table(found: Found, variants: Sequence[str]) -> str:
    """Both settings as Markdown: a row a variant, means over its seeds (mean difference to the first, 95% interval)."""
    base = variants[0]
    seeds = {variant: sorted(seed for name, seed in found if name == variant) for variant in variants}
    rescored = {name for value in found.values() for name in value if name.endswith(RESCORED)}
    plain = [f"procedural_{task}" for task in tasks.TASK_NAMES]

    def cell(variant: str, figure: str) -> str:
        own = [found[variant, seed][figure] for seed in seeds[variant] if figure in found[variant, seed]]
        apart = differences(found, base, variant, figure)
        words = f"{np.mean(own):.3f}" if own else ""
        if len(apart) and (variant != base or figure in rescored):
            mean, half = interval(apart)
            words += f" ({mean:+.3f}{f' ± {half:.3f}' if math.isfinite(half) else ''})"
        return words

    lines = []
    for setting, title in (("", "task-specific"), (FREE, "task-free")):
        names = ["mean", *plain, *(name + RESCORED for name in plain if setting + name + RESCORED in rescored)]
        heads = [f"mAP, {title}", "seeds", *(name.removeprefix("procedural_") for name in names)]
        lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for variant in variants:
            cells = [variant, str(len(seeds[variant])), *(cell(variant, setting + name) for name in names)]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(f"In brackets: the mean difference to `{base}` over paired seeds and its 95% interval (Student's t).")
    if rescored:
        lines.append(f"Of `{RESCORED}` the difference is to the plain ranking of the same runs.")
    return "\n".join(lines)


def origins(runs: Runs) -> str:
    """Which code and devices the finished runs are of, as one line: a study that goes on for days may mix them."""
    counts = {
        "Code": collections.Counter(run.code for run in runs.values()),
        "Devices": collections.Counter(run.devices for run in runs.values()),
    }
    return " ".join(
        f"{title}: {', '.join(f'{name} ({number} runs)' for name, number in count.most_common())}."
        for title, count in counts.items()
    )


WIDTH, LEFT, GAP, TOP, ROW = 760, 140, 30, 46, 26
_INK, _GRID, _BLUE = "#222", "#ccc", "#1f5fa8"


def chart(found: Found, variants: Sequence[str], panels: Panels) -> str:
    """The paired differences as one SVG file: a row a variant, a panel a figure, dots with 95% intervals.

    A dot is filled where its interval leaves out 0; a single pair has no interval. "" where there is no pair yet.
    """
    base, *others = variants
    rows = {
        (figure, variant): interval(apart)
        for figure in panels
        for variant in others
        if len(apart := differences(found, base, variant, figure))
    }
    if not rows:
        return ""
    shown = [mean + side * half for mean, half in rows.values() for side in (-1, 1) if math.isfinite(half)]
    shown += [0.0, *(mean for mean, _ in rows.values())]
    low, high = min(shown), max(shown)
    low, high = (low - 0.005, high + 0.005) if high - low < 1e-6 else (low, high)
    panel = (WIDTH - LEFT - GAP * len(panels)) / len(panels)
    bottom = TOP + ROW * len(others)
    parts = [f'<rect width="{WIDTH}" height="{bottom + 40}" fill="#fff"/>']

    def text(x: float, y: float, words: str, anchor: str, extra: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}"{extra}>{escape(words)}</text>'

    for row, variant in enumerate(others):
        parts.append(text(LEFT - 10, TOP + ROW * (row + 0.5) + 4, variant, "end"))
    for number, (figure, title) in enumerate(panels.items()):
        start = LEFT + number * (panel + GAP)

        def at(value: float, start: float = start) -> float:
            return start + 8 + (value - low) / (high - low) * (panel - 16)

        parts.append(text(start + panel / 2, TOP - 22, title, "middle", ' font-weight="bold"'))
        for tick in charts.ticks(low, high, 4 if len(panels) < 3 else 3):
            parts.append(f'<path stroke="{_GRID}" d="M{at(tick):.1f} {TOP}V{bottom}"/>')
            parts.append(text(at(tick), bottom + 16, f"{tick:+g}" if tick else "0", "middle"))
        parts.append(f'<path stroke="{_INK}" d="M{at(0):.1f} {TOP}V{bottom}"/>')
        for row, variant in enumerate(others):
            if (figure, variant) not in rows:
                continue
            mean, half = rows[figure, variant]
            y, clear = TOP + ROW * (row + 0.5), math.isfinite(half) and abs(mean) > half
            if math.isfinite(half):
                ends = f"M{at(mean - half):.1f} {y:.1f}H{at(mean + half):.1f}"
                parts.append(f'<path class="interval" stroke="{_BLUE}" stroke-width="2" d="{ends}"/>')
            fill = _BLUE if clear else "#fff"
            parts.append(
                f'<circle cx="{at(mean):.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{_BLUE}" stroke-width="2"/>'
            )
    words = f"mAP less that of {base}: mean over paired seeds, 95% interval; filled: it leaves out 0"
    parts.append(text(WIDTH / 2, bottom + 33, words, "middle"))
    title = f"Paired differences in mAP to {base}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>\n'
    )


def write(
    study: Path,
    target: Path,
    variants: Sequence[str],
    seeds: int,
    *,
    together: str = "",
    known: Runs | None = None,
    panels: Panels = MEANS,
) -> str:
    """Writes TARGET.md, TARGET.jsonl and, once there are pairs, TARGET.svg of the finished runs; returns the table.

    `together` names one more row, the mean of all variants but the first ("": none); `known`: runs that count though
    they are not in the folder `study`; `panels`: of the chart.
    """
    runs = collect(study, variants, seeds, known or {})
    if not runs:
        return f"no run of {target.name} in {study} is finished yet"
    found = {key: run.figures for key, run in runs.items()}
    if together:
        found, variants = with_mean(found, variants[1:], together), [*variants, together]
    words = f"{table(found, variants)}\n\n{origins(runs)}"
    target.with_suffix(".md").write_text(words + "\n", "utf-8")
    lines = [json.dumps(dataclasses.asdict(run)) + "\n" for run in runs.values()]
    target.with_suffix(".jsonl").write_text("".join(lines), "utf-8")
    if drawn := chart(found, variants, panels):
        target.with_suffix(".svg").write_text(drawn, "utf-8")
    return words
