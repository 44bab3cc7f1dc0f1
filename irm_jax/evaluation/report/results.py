"""What a report is made from: the pictures, curves and checks of one evaluation, and the rules for `results.json`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.files import jsonable
from data_pipelines.tasks import TASKS
from irm_jax.evaluation.report.charts import Picture

if TYPE_CHECKING:  # at run time it would import the whole shard reader
    from data_pipelines.people.leaks import Leak

RELATIONS = ("positive", "negative", "junk")
SETTINGS = ("task_specific", "task_free")
METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")
TAU_TABLES = ("mAP_tau", "mAP_tau_common", "tau_positives_kept")
"""Entries of a protocol that hold one fraction per tau, or null (a protocol without gallery instructions)."""


@dataclasses.dataclass(frozen=True)
class RankedImage:
    """One gallery image of a ranking. `relation` to the query is one of `RELATIONS`; `caption` stands under it."""

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

    `instruction` is a sentence (str) or a picture (bytes or array). `query_image` is None where there is none to show;
    for a task without a query image it is the described picture, shown as such. `ap` may be NaN (no positive),
    `first_positive_rank` counts from 1. `wanted` says in words what would be right (optional).
    """

    query_id: str
    instruction: str | Picture
    ranked: Sequence[RankedImage]
    query_image: Picture | None = None
    ap: float = math.nan
    first_positive_rank: int | None = None
    wanted: str = ""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Attention rollout of one query: over the person image, and over the instruction's words or picture.

    Heats are f32[gh,gw] on any scale, each stretched to its own range; `tokens` are (word piece, weight >= 0), shown as
    shares of their sum.
    """

    query_id: str
    image: Picture | None = None
    image_heat: np.ndarray | None = None
    tokens: Sequence[tuple[str, float]] = ()
    instruction_image: Picture | None = None
    instruction_heat: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class TaskSection:
    """The pictures of one task; `protocol` names the rule that says positive, negative and junk in them."""

    task: str
    protocol: str
    examples: Sequence[RankList] = ()
    best: Sequence[RankList] = ()
    worst: Sequence[RankList] = ()
    rollouts: Sequence[Rollout] = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"report section of unknown task {self.task!r}; the tasks are {', '.join(TASKS)}")


@dataclasses.dataclass(frozen=True)
class BenchmarkCheck:
    """One fail condition of the benchmark. `bound` is "at most" or "at least"; `unit` "fraction" or "ratio"."""

    name: str
    value: float
    limit: float
    passed: bool
    bound: str = "at most"
    unit: str = "fraction"
    explanation: str = ""

    def __post_init__(self) -> None:
        if self.bound not in ("at most", "at least") or self.unit not in ("fraction", "ratio"):
            raise ValueError(
                f"benchmark check {self.name!r}: bound {self.bound!r} must be 'at most' or 'at least' and "
                f"unit {self.unit!r} 'fraction' or 'ratio'"
            )


@dataclasses.dataclass(frozen=True)
class ReportData:
    """Everything of the report that is not a figure of `results.json`.

    `run` is `run_record.run_record()`, with more keys at will. `history` is the records of metrics.jsonl, {"step":
    int, "loss": float, "TASK/METRIC": float, ...}. `leaks` is None when no leak check ran, empty when it found nothing;
    `deliberate_leaks` are pairs of data sets between which a benchmark puts leaks on purpose.
    `data_terms` says for each data set under which terms its pictures stand in the file; `notes` are sentences shown at
    the top.
    """

    run: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    sections: Sequence[TaskSection] = ()
    checks: Sequence[BenchmarkCheck] = ()
    leaks: Sequence[Leak] | None = None
    deliberate_leaks: Sequence[tuple[str, str]] = ()
    data_terms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    title: str = "Instruction-guided person re-identification"

    def __post_init__(self) -> None:
        missing = [key for key in ("config", "versions", "seed", "git", "command") if key not in self.run]
        if missing:
            raise ValueError(f"run lacks {', '.join(missing)}: pass run_record.run_record(config, seed)")


def _fraction(entry: dict[str, Any], key: str, path: str) -> None:
    """Checks that `entry[key]` is None or within [0, 1] and stores it as a float (rounding errors are cut off)."""
    value = entry[key]
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{path}.{key} is {value!r}; a fraction between 0 and 1 (or NaN for undefined) is needed")
    if not -1e-9 <= value <= 1 + 1e-9:
        raise ValueError(f"{path}.{key} is {value}, outside [0, 1]; results hold fractions: divide percentages by 100")
    entry[key] = min(max(float(value), 0.0), 1.0)


def _count(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{path} is {value!r}; a whole number >= 0 is needed")


def _check_metrics(entry: dict[str, Any], path: str) -> None:
    """Checks whatever metrics `entry` holds; which of them must be there is the caller's matter."""
    for key in (*METRICS, "mAP_own", "follow_rate"):
        if key in entry:
            _fraction(entry, key, path)
    for key in TAU_TABLES:
        if isinstance(entry.get(key), dict):
            for tau in entry[key]:
                try:
                    float(tau)
                except ValueError:
                    raise ValueError(
                        f"{path}.{key} has the key {tau!r}; its keys are values of tau, such as '0.5'"
                    ) from None
                _fraction(entry[key], tau, f"{path}.{key}")
        elif key in entry:
            _fraction(entry, key, path)
    for key in entry.get("std") or {}:
        _fraction(entry["std"], key, f"{path}.std")
    for key in ("queries", "gallery", "trials"):
        if key in entry:
            _count(entry[key], f"{path}.{key}")
    for key in ("dropped", "mAP_tau_dropped"):
        for cause, count in (entry.get(key) or {}).items():
            _count(count, f"{path}.{key}.{cause}")


def checked_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `results` as plain JSON types after checking the form of issue 2 section 8.

    Raises ValueError or TypeError naming the entry, the value found and what is needed.
    """
    plain: dict[str, Any] = jsonable(results, "results")
    protocols = plain.get("protocols")
    if not isinstance(protocols, dict) or not protocols:
        raise ValueError(
            "results['protocols'] is missing or empty; evaluate at least one protocol before writing a report"
        )
    for name, entry in protocols.items():
        path = f"protocols.{name}"
        missing = [key for key in ("task", "setting", *METRICS, "mAP_tau", "queries", "dropped") if key not in entry]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; use None (or NaN) where a figure is not defined")
        if entry["task"] not in TASKS or entry["setting"] not in SETTINGS:
            raise ValueError(
                f"{path}: task {entry['task']!r} must be one of {', '.join(TASKS)} and setting {entry['setting']!r} "
                f"one of {', '.join(SETTINGS)}"
            )
        _check_metrics(entry, path)
    for group in ("baselines", "swapped_instructions", "open_set"):
        plain.setdefault(group, {})
    entries = [(f"baselines.{b}", name, e) for b, table in plain["baselines"].items() for name, e in table.items()]
    entries += [("swapped_instructions", name, e) for name, e in plain["swapped_instructions"].items()]
    for path, name in [
        *((path, name) for path, name, _ in entries),
        *(("open_set", name) for name in plain["open_set"]),
    ]:
        if name not in protocols:
            raise ValueError(f"{path} names the protocol {name!r}, which results['protocols'] does not hold")
    for path, name, entry in entries:
        if "mAP" not in entry:
            raise ValueError(f"{path}.{name} lacks mAP")
        _check_metrics(entry, f"{path}.{name}")
    for name, entry in plain["open_set"].items():
        for table in ("tpr", "identified"):
            for fpr in entry[table]:
                _fraction(entry[table], fpr, f"open_set.{name}.{table}")
        _fraction(entry, "auc", f"open_set.{name}")
    return plain
