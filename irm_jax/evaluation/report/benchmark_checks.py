"""The procedural benchmark's own fail conditions: a benchmark that a trick can solve says nothing about a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from irm_jax.evaluation.report.results import BenchmarkCheck

HISTOGRAM_TASKS = ("cc", "vi")
INSTRUCTED_TASKS = ("ctcc", "li")
HISTOGRAM_LIMIT = 1.3  # times random
SINGLE_INPUT_LIMIT = 0.35  # mAP of image-only or instruction-only
JOINT_LIMIT = 1.5  # times the better of the two
ORACLE_LIMIT = 0.99
TAU_GAP = 0.02
"""Least difference of mAP_tau between the lowest and the highest tau [ours]: below it the curves coincide."""


def benchmark_checks(results: Mapping[str, Any]) -> list[BenchmarkCheck]:
    """Every fail condition of the benchmark that `results` (results.json form) allows to judge."""
    protocols, baselines = results["protocols"], results["baselines"]
    checks: list[BenchmarkCheck] = []

    def value(table: Mapping[str, Any], name: str) -> float | None:
        return table.get(name, {}).get("mAP")

    def add(name: str, found: float | None, limit: float, bound: str, unit: str, why: str) -> None:
        if found is not None:
            passed = found <= limit if bound == "at most" else found >= limit
            checks.append(BenchmarkCheck(name, found, limit, passed, bound, unit, why))

    for task in HISTOGRAM_TASKS:
        name = f"procedural_{task}"
        histogram, chance = value(baselines.get("color_histogram", {}), name), value(baselines.get("random", {}), name)
        if histogram is not None and chance:
            why = "colour alone must not find a person in other clothes or another modality"
            add(f"{name}: histogram over random", histogram / chance, HISTOGRAM_LIMIT, "at most", "ratio", why)
    for task in INSTRUCTED_TASKS:
        name = f"procedural_{task}"
        singles = {b: value(baselines.get(b, {}), name) for b in ("image_only", "instruction_only")}
        for baseline, found in singles.items():
            why = "neither the image nor the instruction alone may solve the task"
            add(f"{name}: {baseline.replace('_', ' ')}", found, SINGLE_INPUT_LIMIT, "at most", "fraction", why)
        better = max((v for v in singles.values() if v is not None), default=None)
        joint = value(protocols, name)
        if better and joint is not None:
            why = "the joint model must use image and instruction together"
            add(f"{name}: model over the better single input", joint / better, JOINT_LIMIT, "at least", "ratio", why)
        taus = protocols.get(f"{name}+identity", {}).get("mAP_tau")
        known = [v for v in (taus or {}).values() if v is not None]
        if len(known) > 1:
            why = "instruction similarities must differ, or mAP_tau measures nothing"
            add(f"{name}: spread of mAP_tau", max(known) - min(known), TAU_GAP, "at least", "fraction", why)
    for name, entry in baselines.get("oracle", {}).items():
        if "+" not in name and name in protocols and name.startswith("procedural_"):
            why = "who knows every person and outfit must find every target"
            add(f"{name}: oracle", entry.get("mAP"), ORACLE_LIMIT, "at least", "fraction", why)
    return checks
