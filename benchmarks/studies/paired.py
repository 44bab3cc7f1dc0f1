"""The results of a study of variants x seeds: paired differences to the first variant, as Markdown and as an SVG chart.

A study is a folder with one run per VARIANT/SEED. Runs with the same seed saw the same batches and form a pair. The
table gives the mean difference over pairs and its 95% interval (Student's t over seeds). With nine variants and 14
figures, a few intervals exclude 0 by chance.

The figures of each finished run are also written as one JSON object per line. A study can continue from that file where
the runs themselves are gone.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies import chart
from data_pipelines import tasks
from data_pipelines.files import write_atomically
from irm_jax.evaluation.figures import SETTINGS, counterpart, headlines, read_results
from irm_jax.evaluation.folders import is_evaluated

Found = dict[tuple[str, int], dict[str, float]]
"""Figures of finished runs, by (variant, seed)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its figures, and the code, devices and options that gave them."""

    variant: str
    seed: int
    code: str
    devices: str
    options: list[str]
    figures: dict[str, float]


Runs = dict[tuple[str, int], Run]

FREE = "task_free/"
RESCORED = "+rescored"
MEANS = {"mean": "task-specific, mean of the tasks", f"{FREE}mean": "task-free, mean of the tasks"}
COMMAND = "command.json"
"""File in a run's folder that holds the options it was started with."""
# Two-sided 95% quantiles of Student's t for 1 to 9 degrees of freedom. For more, the last one is slightly too wide.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants that are compared with the first one.

    variants: configuration overrides by variant name.
    panels: the figures that the chart shows, with their titles.
    together: name of an extra row, the mean of all variants but the first ("" for none).
    run_file: name of the run file that the variants change.
    """

    variants: Mapping[str, Sequence[str]]
    panels: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(MEANS))
    together: str = ""
    run_file: str = "quickstart_paper"

    def relative_to(self, base: str) -> Study:
        """Returns the study with `base` as the first variant and no extra row."""
        variants = {base: self.variants[base], **self.variants}
        return dataclasses.replace(self, variants=variants, together="")


def figures(run: Path) -> dict[str, float]:
    """Reads the mAP of a finished run by figure name, and the means over tasks. Raises ResultsError for other files."""
    rows = read_results(run).figures
    found = {}
    for prefix, setting in zip(("", FREE), SETTINGS, strict=True):
        headline = headlines(rows, setting)
        own = {prefix + name: headline[name] for name in (f"procedural_{task}" for task in tasks.TASK_NAMES)}
        found |= {name: figure.mAP for name, figure in own.items()}
        found[f"{prefix}mean"] = float(np.mean([figure.mAP for figure in own.values()]))
        for name, figure in own.items():
            if rescored := counterpart(rows, figure, scoring=("rescored",)):
                found[name + RESCORED] = rescored.mAP
    return found


def _finished(folder: Path, variant: str, seed: int) -> Run:
    start = json.loads((folder / "run.json").read_text("utf-8"))[-1]
    git = start["git"]
    code = git["revision"][:7] + (" with changes" if git["dirty"] else "") if git else "unknown"
    options = json.loads((folder / COMMAND).read_text("utf-8"))
    return Run(variant, seed, code, start["devices"]["kind"], options, figures(folder))


def collect(study: Path, variants: Sequence[str], seeds: int, known: Runs) -> Runs:
    """Returns the finished runs of seeds 0 to seeds - 1: those in the folder, else the known ones."""
    found = {}
    for variant in variants:
        for seed in range(seeds):
            folder = study / variant / str(seed)
            if is_evaluated(folder):
                found[variant, seed] = _finished(folder, variant, seed)
            elif (variant, seed) in known:
                found[variant, seed] = known[variant, seed]
    return found


def read_known(path: Path | None) -> Runs:
    """Reads the runs of a file that `write` wrote (None: no runs). Raises SystemExit naming the first invalid line."""
    runs: Runs = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path else (), 1):
        try:
            run = Run(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise SystemExit(f"{path}, line {number}: not a run as a study writes them ({error})") from error
        runs[run.variant, run.seed] = run
    return runs


def with_mean(found: Found, variants: Sequence[str], name: str) -> Found:
    """Adds a variant `name`: the mean of `variants` for every seed that all of them have finished.

    A common effect shows more clearly in the mean, because the noise of the single variants is averaged out.
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
    """Returns the mean and the half width of its 95% interval, which is infinite for a single difference."""
    count = len(differences)
    if count < 2:
        return float(differences.mean()), math.inf
    half = T_95[min(count - 2, len(T_95) - 1)] * float(differences.std(ddof=1)) / math.sqrt(count)
    return float(differences.mean()), half


def differences(found: Found, base: str, variant: str, figure: str) -> np.ndarray:
    """Returns a variant's figure minus the figure of `base`, f64[seeds that both have].

    A rescored figure is compared with the plain ranking of the same run instead.
    """
    plain, to_itself = figure.removesuffix(RESCORED), figure.endswith(RESCORED)
    seeds = sorted(seed for name, seed in found if name == variant and (base, seed) in found)
    others = [found[variant if to_itself else base, seed][plain] for seed in seeds]
    owns = [found[variant, seed].get(figure) for seed in seeds]
    return np.array([own - other for own, other in zip(owns, others, strict=True) if own is not None])


def table(found: Found, variants: Sequence[str]) -> str:
    """Makes the Markdown tables of both settings: one row per variant, its mean over seeds and paired difference."""
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
    """Names the code and devices of the finished runs in one line, because a long study may mix several."""
    counts = {
        "Code": collections.Counter(run.code for run in runs.values()),
        "Devices": collections.Counter(run.devices for run in runs.values()),
    }
    return " ".join(
        f"{title}: {', '.join(f'{name} ({number} runs)' for name, number in count.most_common())}."
        for title, count in counts.items()
    )


def write(study: Study, folder: Path, target: Path, seeds: int, known: Runs | None = None) -> str:
    """Writes TARGET.md, TARGET.jsonl and, once there are pairs, TARGET.svg for the finished runs; returns the table.

    `folder` holds the runs; `known` holds runs that count although they are not there.
    """
    variants = list(study.variants)
    runs = collect(folder, variants, seeds, known or {})
    if not runs:
        return f"no run of {target.name} in {folder} is finished yet"
    found = {key: run.figures for key, run in runs.items()}
    if study.together:
        found, variants = with_mean(found, variants[1:], study.together), [*variants, study.together]
    words = f"{table(found, variants)}\n\n{origins(runs)}"
    write_atomically(target.with_suffix(".md"), words + "\n")
    lines = [json.dumps(dataclasses.asdict(run)) + "\n" for run in runs.values()]
    write_atomically(target.with_suffix(".jsonl"), "".join(lines))
    if drawn := draw(found, variants, study.panels):
        write_atomically(target.with_suffix(".svg"), drawn)
    return words


def draw(found: Found, variants: Sequence[str], panels: Mapping[str, str]) -> str:
    """Draws the paired differences to the first variant as SVG; "" while there is no pair."""
    base, *others = variants
    rows = {
        (figure, variant): interval(apart)
        for figure in panels
        for variant in others
        if len(apart := differences(found, base, variant, figure))
    }
    return chart.draw(rows, base, others, panels) if rows else ""
