"""The rules for figures, and the benchmark's fail conditions: each fires on figures that break it, on those alone."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_example import MEAN_AP, RULES, fake_data, fake_results

from irm_jax.evaluation.figures import Figure, OpenSetFigure, Results
from irm_jax.evaluation.report import write
from irm_jax.evaluation.report.results import BenchmarkCheck, RankedImage, Section, benchmark_checks, checked_results

TEST_SETS = [f"procedural_{task}" for task in MEAN_AP]
CONTROL_AP = {"random": 0.02, "color_histogram": 0.021, "image_only": 0.17, "instruction_only": 0.2, "oracle": 1.0}


def good() -> list[Figure]:
    """Figures that every check passes."""
    rows = []
    for task, rule in RULES.items():
        about = {"test_set": f"procedural_{task}", "task": task}
        rows.append(Figure(**about, protocol=rule, mAP=0.6))
        rows += [Figure(**about, protocol=rule, system=system, mAP=value) for system, value in CONTROL_AP.items()]
        rows.append(Figure(**about, protocol="market", mAP=0.6, mAP_tau={"0.5": 0.6, "0.9": 0.5}))
        rows.append(Figure(**about, protocol="market", mAP=0.5, system="oracle"))  # another rule: not judged
    return rows


def changed(rows: list[Figure], task: str, system: str, protocol: str | None = None, **fields: Any) -> list[Figure]:
    wanted = task, system, protocol or RULES[task]
    found = [f for f in rows if (f.task, f.system, f.protocol) == wanted]
    assert len(found) == 1
    return [dataclasses.replace(f, **fields) if f is found[0] else f for f in rows]


def failed(rows: list[Figure]) -> list[str]:
    return [check.name for check in benchmark_checks(rows, TEST_SETS) if not check.passed]


def test_a_sound_benchmark_passes() -> None:
    checks = benchmark_checks(good(), TEST_SETS)
    assert len(checks) == 2 + 2 * 4 + 6
    assert not failed(good())
    ratio = next(check for check in checks if check.name == "procedural_cc: histogram over random")
    assert ratio.value == pytest.approx(1.05)
    assert (ratio.limit, ratio.bound, ratio.unit) == (1.3, "at most", "ratio")


@pytest.mark.parametrize(
    ("task", "system", "value", "names"),
    [
        ("cc", "color_histogram", 0.027, ["procedural_cc: histogram over random"]),
        ("vi", "color_histogram", 0.027, ["procedural_vi: histogram over random"]),
        ("trad", "color_histogram", 0.2, []),
        ("ctcc", "image_only", 0.36, ["procedural_ctcc: image only"]),
        ("li", "instruction_only", 0.36, ["procedural_li: instruction only"]),
        ("li", "model", 0.29, ["procedural_li: model over the better single input"]),
        ("t2i", "oracle", 0.98, ["procedural_t2i: oracle"]),
    ],
)
def test_a_broken_condition_is_found(task: str, system: str, value: float, names: list[str]) -> None:
    assert failed(changed(good(), task, system, mAP=value)) == names


def test_curves_over_tau_that_coincide_are_found() -> None:
    rows = changed(good(), "ctcc", "model", "market", mAP_tau={"0.5": 0.6, "0.7": 0.61, "0.9": None})
    assert failed(rows) == ["procedural_ctcc: spread of mAP_tau"]


def test_each_of_two_sets_of_a_task_is_judged() -> None:
    second = [dataclasses.replace(f, test_set="second_li") for f in good() if f.task == "li"]
    rows = good() + changed(second, "li", "oracle", mAP=0.5)
    checks = benchmark_checks(rows, [*TEST_SETS, "second_li"])
    assert [check.name for check in checks if not check.passed] == ["second_li: oracle"]


def test_other_data_and_figures_without_controls_are_not_judged() -> None:
    assert benchmark_checks(good(), []) == []
    alone = [f for f in good() if f.system == "model" and f.protocol != "market"]
    assert benchmark_checks(alone, TEST_SETS) == []


def test_undefined_figures_are_null() -> None:
    results = dataclasses.replace(fake_results(), rest={"extra": {"a": np.float32("inf"), "b": np.arange(2)}})
    plain = checked_results(results)
    (cc,) = (f for f in plain.figures if f.task == "cc" and f.plain and f.mAP_tau and f.mAP_tau["0.9"] is None)
    assert (cc.protocol, cc.setting) == (RULES["cc"], "task_specific")
    content = plain.to_json()
    assert all("mAP_tau" not in row for row in content["figures"] if row["task"] == "t2i")
    assert content["extra"] == {"a": None, "b": [0, 1]}


def edited(task: str, system: str = "model", /, **fields: Any) -> Results:
    """Results in which one figure of a task's rule has other values."""
    results = fake_results()
    at = next(
        i for i, f in enumerate(results.figures)
        if (f.task, f.system, f.setting, f.protocol) == (task, system, "task_specific", RULES[task])
    )  # fmt: skip
    rows = list(results.figures)
    rows[at] = dataclasses.replace(rows[at], **fields)
    return dataclasses.replace(results, figures=tuple(rows))


def open_set_edited(**fields: Any) -> Results:
    results = fake_results()
    (row,) = results.open_set
    assert isinstance(row, OpenSetFigure)
    return dataclasses.replace(results, open_set=(dataclasses.replace(row, **fields),))


CC = "procedural_cc/other_outfit"
LI = r"procedural_li/named_attributes \(swapped instruction\)"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (Results(()), "no figure"),
        (edited("cc", mAP=73.2), rf"{CC}: mAP is 73.2.*divide percentages"),
        (edited("cc", rank1="0.5"), rf"{CC}: rank1 is '0.5'"),
        (edited("cc", mAP_tau={"half": 0.5}), rf"{CC}: mAP_tau has the key 'half'"),
        (edited("cc", mAP_tau={"0.5": -0.1}), rf"{CC}: mAP_tau.0.5 is -0.1"),
        (edited("cc", task="ccc"), rf"{CC}: task 'ccc'"),
        (edited("cc", queries=3.5), rf"{CC}: queries is 3.5"),
        (edited("cc", dropped={"tau": -1}), rf"{CC}: dropped.tau is -1"),
        (edited("cc", mAP_tau_dropped={"0.5": 0.5}), rf"{CC}: mAP_tau_dropped.0.5 is 0.5"),
        (edited("cc", "random", test_set="market"), r"market/other_outfit \(random\) stands beside no figure"),
        (edited("cc", "random", system="oracle"), rf"{CC} \(oracle\) stands twice"),
        (edited("li", "swapped_instruction", follow_rate=84.0), rf"{LI}: follow_rate is 84.0"),
        (edited("li", "swapped_instruction", mAP_own=71.0), rf"{LI}: mAP_own is 71.0"),
        (edited("vi", std={"mAP": 1.2}), r"std.mAP is 1.2"),
        (open_set_edited(auc=99.0), r"open set of procedural_trad/same_outfit: auc is 99.0"),
        (open_set_edited(tpr={"0.01": -1}), r"open set of procedural_trad/same_outfit: tpr.0.01 is -1"),
        (open_set_edited(test_set="market"), r"open set of market/same_outfit stands beside no figure"),
    ],
)  # fmt: skip
def test_wrong_results_are_refused(tmp_path: Path, results: Results, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write.write_report(tmp_path, results, fake_data(0))
    assert list(tmp_path.iterdir()) == []


def test_rounding_errors_of_fractions_are_cut() -> None:
    plain = checked_results(edited("cc", mAP=1 + 1e-12, rank1=math.nan))
    figure = next(f for f in plain.figures if f.task == "cc" and f.plain)
    assert (figure.mAP, figure.rank1) == (1.0, None)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"results.run.path has type PosixPath"):
        checked_results(dataclasses.replace(fake_results(), rest={"run": {"path": Path("x")}}))
    with pytest.raises(ValueError, match="relation 'good'"):
        RankedImage(b"", 0.5, "good")
    with pytest.raises(ValueError, match="unknown task 'reid'"):
        Section("market1501", "reid", "market")
    with pytest.raises(ValueError, match="bound 'below'"):
        BenchmarkCheck("x", 1, 2, True, "below")
