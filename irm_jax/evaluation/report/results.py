"""What a report is made of: pictures, curves and checks of one evaluation, and the rules for its figures."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.files import jsonable
from data_pipelines.tasks import TASKS
from irm_jax.evaluation import figures
from irm_jax.evaluation.figures import METRICS, TAU_TABLES, Figure, Results
from irm_jax.evaluation.report.pictures import Picture

if TYPE_CHECKING:  # at run time it would import the whole shard reader
    from data_pipelines.people.leaks import Leak

RELATIONS = ("positive", "negative", "junk")


@dataclasses.dataclass(frozen=True)
class RankedImage:
    """One gallery image of a ranking: its relation to the query (one of `RELATIONS`), and a caption under it."""

    image: Picture
    score: float
    relation: str
    caption: str = ""

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"relation {self.relation!r} of a ranked image is none of {', '.join(RELATIONS)}")


@dataclasses.dataclass(frozen=True)
class RankList:
    """One query with its best gallery images, best first.

    instruction: a sentence (str) or a picture (bytes or array).
    query_image: None if there is none to show; the described picture if the task has no query image.
    ap: NaN without a positive. first_positive_rank: counts from 1.
    """

    query_id: str
    instruction: str | Picture
    ranked: Sequence[RankedImage]
    query_image: Picture | None = None
    ap: float = math.nan
    first_positive_rank: int | None = None


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Attention rollout of one query: over the person image, and over the instruction's words or picture.

    Heats are f32[gh,gw] on any scale, each stretched to its own range. `tokens`: (word piece, weight >= 0), shown as
    shares of their sum.
    """

    query_id: str
    image: Picture | None = None
    image_heat: np.ndarray | None = None
    tokens: Sequence[tuple[str, float]] = ()
    instruction_image: Picture | None = None
    instruction_heat: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Section:
    """The pictures of one test set; `protocol` tells positive, negative and junk in them, in words: `rule`."""

    test_set: str
    task: str
    protocol: str
    examples: Sequence[RankList] = ()
    best: Sequence[RankList] = ()
    worst: Sequence[RankList] = ()
    rollouts: Sequence[Rollout] = ()
    rule: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"report section of unknown task {self.task!r}; the tasks are {', '.join(TASKS)}")


@dataclasses.dataclass(frozen=True)
class BenchmarkCheck:
    """One fail condition of the benchmark. `bound` is "at most" or "at least"; `unit` "fraction" or "ratio".

    explanation: why there is such a limit. meaning: what a failure says about the figures.
    """

    name: str
    value: float
    limit: float
    passed: bool
    bound: str = "at most"
    unit: str = "fraction"
    explanation: str = ""
    meaning: str = ""

    def __post_init__(self) -> None:
        if self.bound not in ("at most", "at least") or self.unit not in ("fraction", "ratio"):
            raise ValueError(
                f"benchmark check {self.name!r}: bound {self.bound!r} must be 'at most' or 'at least' and "
                f"unit {self.unit!r} 'fraction' or 'ratio'"
            )


@dataclasses.dataclass(frozen=True)
class Published:
    """The best mAP (a fraction) that is known of a published test set under its first rule, and where it stands."""

    mAP: float
    source: str


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Everything of the report that is not a figure.

    run: `run_record()`, with more keys at will.
    history: records of metrics.jsonl, {"step": int, "loss": float, "TASK/METRIC": float, ...}.
    leaks: None if no leak check ran, empty if it found nothing.
    deliberate_leaks: pairs of data sets between which a benchmark puts leaks on purpose.
    data_terms: data set -> the terms under which the file shows its pictures.
    notes: sentences at the top of the page.
    compiled: the table of `--mode compile`, if the folder of the run holds one.
    best_known: test set -> the best published figure.
    """

    run: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    sections: Sequence[Section] = ()
    checks: Sequence[BenchmarkCheck] = ()
    leaks: Sequence[Leak] | None = None
    deliberate_leaks: Sequence[tuple[str, str]] = ()
    data_terms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    compiled: Mapping[str, Any] | None = None
    best_known: Mapping[str, Published] = dataclasses.field(default_factory=dict)
    title: str = "Instruction-guided person re-identification"

    def __post_init__(self) -> None:
        missing = [key for key in ("config", "versions", "seed", "git", "command") if key not in self.run]
        if missing:
            raise ValueError(f"run lacks {', '.join(missing)}: pass run_record(config, seed)")


@dataclasses.dataclass(frozen=True)
class _Condition:
    """A fail condition of the procedural benchmark: which value is compared with which limit, and why."""

    name: str
    bound: str
    limit: float
    unit: str
    explanation: str
    meaning: str

    def check(self, test_set: str, value: float | None) -> list[BenchmarkCheck]:
        """Returns the check of a value; none if the value is not known."""
        if value is None:
            return []
        passed = value <= self.limit if self.bound == "at most" else value >= self.limit
        name = f"{test_set}: {self.name}"
        about = (self.bound, self.unit, self.explanation, self.meaning)
        return [BenchmarkCheck(name, value, self.limit, passed, *about)]


HISTOGRAM = _Condition(
    "histogram over random", "at most", 1.3, "ratio",
    "colour alone must not find a person in other clothes or another modality",
    "Colours of background or camera give people away, so a part of this figure needs no person to be recognised. This "
    "is a fault of the drawn pictures, not of the model.",
)  # fmt: skip
SINGLE_INPUTS = {
    system: _Condition(
        system.replace("_", " "), "at most", 0.35, "fraction",
        "neither the image nor the instruction alone may solve the task",
        "The task can be solved without the other input, so its figure does not say whether the model uses both.",
    )
    for system in ("image_only", "instruction_only")
}  # fmt: skip
JOINT = _Condition(
    "model over the better single input", "at least", 1.5, "ratio",
    "the joint model must use image and instruction together",
    "With both inputs the model finds hardly more than with one of them: it does not combine them, as is usual after "
    "a short training. Do not read this figure as instructions being followed.",
)  # fmt: skip
TAU_SPREAD = _Condition(
    "spread of mAP_tau", "at least", 0.02, "fraction",
    "instruction similarities must differ, or mAP_tau measures nothing",
    "The curve over tau is flat: it does not show whether the model prefers images that fit the instruction. A model "
    "that finds few people at all has a flat curve too.",
)  # fmt: skip
ORACLE = _Condition(
    "oracle", "at least", 0.99, "fraction", "an oracle of every person and outfit must find every target",
    "Some targets cannot be told from other images by the labels: no model can reach 100% here. This is a fault of the "
    "labels or of the rule.",
)  # fmt: skip
HISTOGRAM_TASKS = ("cc", "vi")
INSTRUCTED_TASKS = ("ctcc", "li")
IDENTITY_RULE = "market"  # under a rule of outfits every positive stays one at every tau


def benchmark_checks(rows: Sequence[Figure], test_sets: Collection[str]) -> list[BenchmarkCheck]:
    """Judges every fail condition of the procedural benchmark that the figures of `test_sets` allow to judge.

    A benchmark that a shortcut solves says nothing about a model. The conditions concern each set's first protocol.
    """
    checks: list[BenchmarkCheck] = []
    for test_set, headline in figures.headlines(rows).items():
        if test_set not in test_sets:
            continue
        values = {
            system: None if (figure := figures.counterpart(rows, headline, system=system)) is None else figure.mAP
            for system in ("random", "color_histogram", "oracle", *SINGLE_INPUTS)
        }
        histogram, chance = values["color_histogram"], values["random"]
        if headline.task in HISTOGRAM_TASKS and histogram is not None and chance:
            checks += HISTOGRAM.check(test_set, histogram / chance)
        if headline.task in INSTRUCTED_TASKS:
            for system, condition in SINGLE_INPUTS.items():
                checks += condition.check(test_set, values[system])
            better = max((v for s in SINGLE_INPUTS if (v := values[s]) is not None), default=None)
            if better and headline.mAP is not None:
                checks += JOINT.check(test_set, headline.mAP / better)
            by_identity = figures.counterpart(rows, headline, protocol=IDENTITY_RULE)
            table = (by_identity and by_identity.mAP_tau) or {}
            taus = [value for value in table.values() if value is not None]
            if len(taus) > 1:
                checks += TAU_SPREAD.check(test_set, max(taus) - min(taus))
        checks += ORACLE.check(test_set, values["oracle"])
    return checks


def checked_results(results: Results) -> Results:
    """Returns the results in plain JSON types, NaN and infinities as None.

    Raises:
      ValueError: a figure is out of its range, stands twice, or is a control of a ranking that is not among the
        figures; the message names the figure, the value found and what is needed.
      TypeError: JSON cannot hold a value; the message names its path.
    """
    if not results.figures:
        raise ValueError("the evaluation has no figure: rank at least one test set before writing a report")
    plain = Results.from_json(jsonable(results.to_json(), "results"))
    checked = tuple(_checked_figure(figure) for figure in plain.figures)
    keys = collections.Counter(figure.key for figure in checked)
    for figure in checked:
        if keys[figure.key] > 1:
            raise ValueError(f"{figures.label(figure)} stands twice among the figures")
        if dataclasses.replace(figure, system=figures.MODEL).key not in keys:
            raise ValueError(f"{figures.label(figure)} stands beside no figure of the model")
    rules = {(figure.test_set, figure.protocol) for figure in checked}
    for row in plain.open_set:
        name = f"open set of {row.test_set}/{row.protocol}"
        if (row.test_set, row.protocol) not in rules:
            raise ValueError(f"{name} stands beside no figure of the model")
        for table in ("tpr", "identified"):
            _fractions(getattr(row, table), f"{name}: {table}")
        _fraction(row.auc, f"{name}: auc")
    return dataclasses.replace(plain, figures=checked)


def _checked_figure(figure: Figure) -> Figure:
    """Returns the figure with its fractions cut to [0, 1] (rounding errors)."""
    name = figures.label(figure)
    if figure.task not in TASKS:
        raise ValueError(f"{name}: task {figure.task!r} is none of {', '.join(TASKS)}")
    changes: dict[str, Any] = {}
    for key in (*METRICS, "mAP_own", "follow_rate"):
        changes[key] = _fraction(getattr(figure, key), f"{name}: {key}")
    for key in ("mAP_tau", "mAP_tau_common", "tau_positives_kept", "std"):
        changes[key] = _fractions(getattr(figure, key), f"{name}: {key}")
    for key in TAU_TABLES:
        for tau in getattr(figure, key) or {}:
            try:
                float(tau)
            except ValueError:
                raise ValueError(
                    f"{name}: {key} has the key {tau!r}; its keys are values of tau, such as '0.5'"
                ) from None
    for key in ("queries", "gallery_size", "trials", "overlap_junk"):
        _count(getattr(figure, key), f"{name}: {key}")
    for key in ("dropped", "mAP_tau_dropped"):
        for entry, value in (getattr(figure, key) or {}).items():
            _count(value, f"{name}: {key}.{entry}")
    return dataclasses.replace(figure, **changes)


def _fractions(table: Mapping[str, Any] | None, name: str) -> dict[str, float | None] | None:
    return None if table is None else {key: _fraction(value, f"{name}.{key}") for key, value in table.items()}


def _fraction(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}; a fraction between 0 and 1 (or NaN for undefined) is needed")
    if not -1e-9 <= value <= 1 + 1e-9:
        raise ValueError(f"{name} is {value}, outside [0, 1]; results hold fractions: divide percentages by 100")
    return min(max(float(value), 0.0), 1.0)


def _count(value: Any, name: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{name} is {value!r}; a whole number >= 0 is needed")
