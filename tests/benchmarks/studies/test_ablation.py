"""Studies of variants x seeds: statistics against hand-made results, who runs what, and overrides that exist."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks.studies import ablation, paired, runner
from data_pipelines import tasks
from irm_jax.config import check, load
from irm_jax.evaluation.figures import Figure, Results

DOCS = Path(__file__).parents[3] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def finish(
    run: Path,
    mAP: float,
    rescored: float | None = None,
    revision: str = "a" * 40,
    devices: str = "cpu",
    options: Sequence[str] = (),
) -> None:
    """Makes a finished run: task-free figures are half the task-specific ones, trad is higher than the rest by .5."""
    rows = []
    for task in tasks.TASK_NAMES:
        value = mAP + 0.5 * (task == "trad") - 0.1
        rows.append(Figure(test_set=f"procedural_{task}", task=task, protocol="rule", mAP=value))
        free = {"setting": "task_free", "gallery": "union", "gallery_instruction": "neutral"}
        rows.append(dataclasses.replace(rows[-1], mAP=value / 2, **free))
        if task == "t2i" and rescored is not None:
            rows.append(dataclasses.replace(rows[-2], mAP=rescored, scoring=("rescored",)))
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(Results(tuple(rows)).to_json()))
    (run / paired.COMMAND).write_text(json.dumps(options))
    last = {"git": {"revision": revision, "dirty": False}, "devices": {"kind": devices}}
    (run / "run.json").write_text(json.dumps([{"git": None}, last]))


def named(*variants: str) -> paired.Study:
    return paired.Study(dict.fromkeys(variants, ()))


def test_interval_is_that_of_students_t() -> None:
    mean, half = paired.interval(np.array([0.01, 0.02, 0.03]))  # standard deviation .01, t(2) = 4.303
    assert (mean, half) == (pytest.approx(0.02), pytest.approx(4.303 * 0.01 / math.sqrt(3)))
    assert paired.interval(np.array([0.25])) == (0.25, math.inf)
    many = np.tile([0.0, 1.0], 10)  # beyond the table: that of 9 degrees of freedom, on the safe side
    assert paired.interval(many)[1] == pytest.approx(2.262 * many.std(ddof=1) / math.sqrt(20))


def test_table_and_chart_of_hand_made_runs(tmp_path: Path) -> None:
    study = tmp_path / "s"
    for seed, (base, other) in enumerate([(0.40, 0.42), (0.44, 0.48), (0.40, 0.46)]):
        finish(study / "irm" / str(seed), base)
        finish(study / "hard" / str(seed), other, rescored=other, devices="cpu" if seed else "H200")
    finish(study / "soft" / "1", 0.34, revision="b" * 40)
    finish(study / "soft" / "3", 0.9)  # no pair of it
    (study / "both" / "0").mkdir(parents=True)  # not finished
    words = paired.write(named("irm", "hard", "soft", "both"), study, tmp_path / "s", 9)
    assert (tmp_path / "s.md").read_text() == words + "\n"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in words.split("\n") if line.startswith("| ")]
    own, free = lines[:5], lines[5:]
    heads = ["seeds", "mean", *tasks.TASK_NAMES, "t2i+rescored"]
    assert own[0] == ["mAP, task-specific", *heads]
    assert free[0] == ["mAP, task-free", *(head for head in heads if head != "t2i+rescored")]
    irm, hard, soft, both = (dict(zip(heads, row[1:], strict=True)) for row in own[1:])
    assert [row["seeds"] for row in (irm, hard, soft, both)] == ["3", "3", "2", "0"]
    # The mean over tasks of .4 is .4 - .1 + .5 / 6; differences .02, .04, .06: .04 +- 4.303 * .02 / sqrt(3).
    assert [row["mean"] for row in (irm, hard, soft, both)] == ["0.397", "0.437 (+0.040 ± 0.050)", "0.603 (-0.100)", ""]
    assert free[2][:3] == ["hard", "3", "0.218 (+0.020 ± 0.025)"]
    assert [row["trad"] for row in (irm, hard)] == ["0.813", "0.853 (+0.040 ± 0.050)"]
    assert irm["cc"] == "0.313"
    # Rescored t2i beside its own plain one: .42, .48, .46 less .1 less.
    assert [row["t2i+rescored"] for row in (irm, hard, soft)] == ["", "0.453 (+0.100 ± 0.000)", ""]
    assert words.endswith("Code: aaaaaaa (7 runs), bbbbbbb (1 runs). Devices: cpu (7 runs), H200 (1 runs).")

    drawn = ElementTree.parse(tmp_path / "s.svg").getroot()
    dots, bars = drawn.findall(f"{SVG}circle"), drawn.findall(f"{SVG}path[@class='interval']")
    assert (len(dots), len(bars)) == (4, 2)  # two panels of two variants; a single pair has no interval
    axis = {x.text: float(x.get("x")) for x in drawn.findall(f"{SVG}text")[3:]}
    left = [float(dot.get("cx")) for dot in dots[:2]]
    scale = (axis["0"] - axis["-0.05"]) / 0.05  # of the right panel, whose labels come last; both have one scale
    assert left[0] - left[1] == pytest.approx(0.14 * scale, abs=0.3)
    start, end = (float(x) for x in bars[0].get("d").lstrip("M").replace("H", " ").split()[::2])
    assert ((start + end) / 2, end - start) == (pytest.approx(left[0], abs=0.1), pytest.approx(0.0994 * scale, abs=0.3))
    assert {dot.get("fill") for dot in dots} == {"#fff"}  # no interval leaves out 0


def test_dot_is_filled_where_the_interval_leaves_out_0_and_nothing_is_drawn_without_pairs(tmp_path: Path) -> None:
    found = {
        (variant, seed): {"mean": value + 0.001 * seed, "task_free/mean": 0.1}
        for variant, value in (("a", 0.1), ("b", 0.3))
        for seed in range(3)
    }
    found["b", 0]["mean"] += 0.002
    dots = ElementTree.fromstring(paired.draw(found, ["a", "b"], paired.MEANS)).findall(f"{SVG}circle")
    assert [dot.get("fill") == "#fff" for dot in dots] == [False, True]
    assert paired.draw({("a", 0): {}, ("b", 1): {}}, ["a", "b"], paired.MEANS) == ""
    assert paired.write(named("a"), tmp_path, tmp_path / "s", 2) == f"no run of s in {tmp_path} is finished yet"
    assert not list(tmp_path.iterdir())


def test_the_variants_together_are_the_mean_of_each_seed_that_all_are_finished_of(tmp_path: Path) -> None:
    for variant, values in {"irm": (0.4, 0.5, 0.5), "hard": (0.5, 0.5, 0.9), "soft": (0.6, 0.5)}.items():
        for seed, value in enumerate(values):
            finish(tmp_path / variant / str(seed), value, rescored=value if variant == "hard" else None)
    study = dataclasses.replace(named("irm", "hard", "soft"), together="both")
    words = paired.write(study, tmp_path, tmp_path / "s", 3)
    row = next(line for line in words.split("\n") if line.startswith("| both"))
    # .55 of seed 0 and .5 of seed 1, less .1, and .5 / 6 more; differences .15 and 0, 12.706 * .15 / 2.
    assert row.split("|")[2:4] == [" 2 ", " 0.508 (+0.075 ± 0.953) "]
    assert "t2i+rescored" in words
    assert words.endswith("Devices: cpu (8 runs).")
    assert (tmp_path / "s.svg").read_text().count("<circle") == 6


def test_a_study_goes_on_from_what_it_wrote_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    finish(here / "irm" / "0", 0.4, options=runner.Plan(1, 400).options((), 0))
    finish(here / "hard" / "0", 0.5, revision="b" * 40, options=runner.Plan(1, 400).options(("--config.x=1",), 0))
    finish(here / "hard" / "1", 0.6, options=runner.Plan(1, 400).options(("--config.x=1",), 1))
    words = paired.write(named("irm", "hard"), here, tmp_path / "s", 2)
    known = paired.read_known(tmp_path / "s.jsonl")
    there.mkdir()
    assert paired.write(named("irm", "hard"), there, tmp_path / "t", 2, known) == words
    assert (tmp_path / "t.jsonl").read_text() == (tmp_path / "s.jsonl").read_text()
    finish(there / "hard" / "1", 0.7)  # a run that is here counts before one that is known
    assert paired.collect(there, ["hard"], 2, known)["hard", 1].figures["procedural_cc"] == pytest.approx(0.6)

    trainings = Trainings()
    monkeypatch.setattr(runner.subprocess, "run", trainings)
    assert runner.run_all(there, {"irm": (), "hard": ("--config.x=1",)}, runner.Plan(2, 400), known)
    assert trainings.started == ["irm/1"]
    with pytest.raises(SystemExit, match=r"--known has, as irm of seed 0, .*was .*steps=400, now .*steps=200\)"):
        runner.run_all(there, {"irm": (), "hard": ("--config.x=1",)}, runner.Plan(2, 200), known)
    with pytest.raises(SystemExit, match=r"as hard of seed 0, .*\(was --config.x=1\): give the options of then"):
        runner.run_all(there, {"irm": (), "hard": ()}, runner.Plan(1, 400), known, ["hard"])
    assert trainings.started == ["irm/1"]

    (tmp_path / "s.jsonl").write_text('{"variant": "irm"}\n')
    with pytest.raises(SystemExit, match=r"s\.jsonl, line 1: not a run"):
        paired.read_known(tmp_path / "s.jsonl")
    assert paired.read_known(None) == {}


class Trainings:
    """Stands for `subprocess.run`: notes what is started, and finishes it unless its variant is to fail."""

    def __init__(self, fail: str = "") -> None:
        self.started: list[str] = []
        self.fail = fail

    def __call__(self, command: Sequence[str], **_: Any) -> subprocess.CompletedProcess:
        folder = Path(command[command.index("--workdir") + 1])
        self.started.append(f"{folder.parent.name}/{folder.name}")
        if folder.parent.name == self.fail:
            return subprocess.CompletedProcess(command, 1)
        (folder / "results.json").touch()
        return subprocess.CompletedProcess(command, 0)


def test_finished_runs_are_kept_and_those_of_another_command_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(fail="b")
    monkeypatch.setattr(runner.subprocess, "run", trainings)
    variants = {"a": (), "b": ("--config.x=1",), "c": ()}
    assert not runner.run_all(tmp_path, variants, runner.Plan(1, 400), {})
    assert not runner.run_all(tmp_path, variants, runner.Plan(2, 400, "elsewhere"), {}, ["a", "b"])
    assert trainings.started == ["a/0", "b/0", "c/0", "b/0", "a/1", "b/1"]
    trainings.fail = ""
    assert runner.run_all(tmp_path, variants, runner.Plan(2, 400), {})
    with pytest.raises(SystemExit, match=r"a/0 holds .*was --config.train.steps=400, now --config.train.steps=200\)"):
        runner.run_all(tmp_path, variants, runner.Plan(1, 200), {})
    with pytest.raises(SystemExit, match=r"b/0 holds a run of another command \(was --config.x=1, now --config.x=2\)"):
        runner.run(tmp_path / "b" / "0", runner.Plan(1, 400).options(["--config.x=2"], 0), "data")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").touch()
    with pytest.raises(SystemExit, match="old holds a run of an unknown command"):
        runner.run(tmp_path / "old", [], "data")


def test_a_run_that_another_process_is_at_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings()
    with runner.locked(tmp_path / "a" / "0") as lock:
        assert lock is not None
        # The training holds the lock too, and keeps it when what started it is gone.
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    monkeypatch.setattr(runner.subprocess, "run", trainings)
    assert not runner.run_all(tmp_path, {"a": (), "b": ()}, runner.Plan(1, 400), {})
    child.communicate(b"\n", timeout=30)
    assert runner.run_all(tmp_path, {"a": (), "b": ()}, runner.Plan(1, 400), {})
    assert trainings.started == ["b/0", "a/0"]


@pytest.mark.parametrize("study", ["bank", "captions"])
def test_the_pages_tables_and_charts_are_those_of_the_runs_that_it_names(study: str, tmp_path: Path) -> None:
    known = paired.read_known(DOCS / "ablation_runs.jsonl")
    variants = ablation.STUDIES[study].variants
    for (variant, seed), run in known.items():
        if variant in variants:
            assert run.options == runner.Plan(1, 400).options(variants[variant], seed)
    page = (DOCS / "ablations_paper.md").read_text("utf-8")
    for base in (None, "hard") if study == "bank" else (None,):
        specific, free, *_ = ablation.results(study, tmp_path, 6, known, base).split("\n\n")
        assert specific in page
        assert free in page
    assert (tmp_path / f"{study}.svg").read_bytes() == (DOCS / f"ablation_{study}.svg").read_bytes()


def test_studies_share_their_baseline_and_no_other_name() -> None:
    bank, captions = ablation.BANK_VARIANTS, ablation.CAPTION_VARIANTS
    assert bank.keys() & captions.keys() == {"irm"}
    assert bank["irm"] == captions["irm"] == ()


@pytest.mark.parametrize(
    ("study", "variant"), [(name, v) for name, study in ablation.STUDIES.items() for v in study.variants]
)
def test_every_variant_is_a_configuration_that_can_be_run(study: str, variant: str) -> None:
    values = flags.FlagValues()
    arguments = ["main", *ablation.STUDIES[study].variants[variant]]
    config_flags.DEFINE_config_dict("config", load("quickstart"), flag_values=values, sys_argv=arguments)
    values(arguments)
    check.check(values["config"].value)
