"""What the report writes: files that are whole or absent, `results.json` of version 2, curves and leaks."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from etils import epath
from page_reader import Page
from report_example import fake_data, fake_results, metrics

from irm_jax.errors import UserError
from irm_jax.evaluation.figures import VERSION, Figure, Results, read_results
from irm_jax.evaluation.report import compile_table, write
from irm_jax.evaluation.report.results import ReportData


def test_the_results_are_read_back(tmp_path: Path) -> None:
    write.write_report(tmp_path, fake_results(), fake_data())
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["version"] == VERSION
    assert set(content) == {
        "version", "figures", "open_set", "run", "benchmark_checks", "leaks", "training_curves", "rank_lists",
        "sha256",
    }  # fmt: skip
    found = read_results(tmp_path)
    assert [figure.key for figure in found.figures] == [figure.key for figure in fake_results().figures]
    assert found.open_set == fake_results().open_set
    assert found.to_json() == content


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old page")
    (tmp_path / "results.json").write_text("old figures")

    def full(descriptor: int) -> None:
        del descriptor
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): free space"):
        write.write_report(tmp_path, fake_results(), ReportData(fake_data(0).run))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]
    assert (tmp_path / "report.html").read_text() == "old page"
    assert (tmp_path / "results.json").read_text() == "old figures"


def test_a_bare_evaluation_is_enough(tmp_path: Path) -> None:
    """A real set under one protocol, nothing else computed: the page says what is missing and breaks nowhere."""
    figure = Figure(test_set="market1501", task="trad", protocol="market", **metrics(0.41), queries=3368, dropped={})
    run = {"config": {"a": 1}, "seed": 3, "versions": {}, "git": None, "command": "python"}
    page = Page(write.write_report(tmp_path, Results((figure,)), ReportData(run)).read_text())
    words = " ".join(page.text)
    for expected in (
        "41.0",
        "3,368",
        "No leak check ran",
        "No training curves",
        "No controls",
        "not defined",
        '"a": 1',
    ):
        assert expected in words
    assert page.open == []
    assert "Compiled ahead of time" not in words
    with pytest.raises(ValueError, match="run lacks config, versions, git, command: pass run_record"):
        ReportData({"seed": 3})


def test_the_table_of_compile_mode_joins_the_report_of_its_folder(tmp_path: Path) -> None:
    entry = {
        "topology": "v5e:16x16", "devices": 256, "peak_bytes": 3 << 30, "limit_bytes": 15 << 30, "flops": 10**15,
        "collective_bytes": {"all-reduce": 5 << 20}, "roofline_s": {"compute": 0.02, "memory": 0.03, "network": None},
        "bound": "memory", "compile_s": 16.0,
    }  # fmt: skip
    (tmp_path / "compile.json").write_text(json.dumps({"train": entry}))
    compiled = compile_table.read(epath.Path(tmp_path))
    path = write.write_report(tmp_path, fake_results(), dataclasses.replace(fake_data(), compiled=compiled))
    page = Page(path.read_text())
    assert page.open == []
    for expected in ("Compiled ahead of time", "v5e:16x16", "3 GiB", "all-reduce 5 MiB", "30 ms", "–"):
        assert expected in " ".join(page.text)
    assert json.loads((tmp_path / "results.json").read_text())["compile"] == {"train": entry}


@pytest.mark.parametrize("content", ["{", "[]", '{"train": {}}', "[" * 100_000])
def test_a_damaged_table_of_compile_mode_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "compile.json").write_text(content)
    with pytest.raises(UserError, match=r"compile\.json is damaged .*delete it"):
        compile_table.read(epath.Path(tmp_path))


def test_a_report_builds_no_data(micro_config, tmp_path, monkeypatch):
    """Without its training data an evaluation has no leak check; it once drew the whole benchmark for it."""
    micro_config.data.dir = str(tmp_path)
    monkeypatch.setattr("data_pipelines.procedural.build", lambda *_, **__: pytest.fail("a build was started"))
    assert write._leaks(micro_config, ["procedural_trad", "procedural_cc"]) is None
    assert micro_config.data.build_missing
