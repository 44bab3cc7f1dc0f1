"""Folders of evaluations: whole or absent, never overwritten, found by `latest`."""

from __future__ import annotations

from pathlib import Path

import pytest
from bucket import install
from etils import epath

from data_pipelines.files import WriteError
from irm_jax.evaluation import folders

CONFIG = {"evaluation": {"sets": {"a": 1}}, "seed": 0}


def evaluate(workdir: Path, step: int, config: dict = CONFIG, fail: Exception | None = None) -> epath.Path:
    with folders.new(epath.Path(workdir), config, step) as (folder, target):
        (folder / "results.json").write_text("{}")
        if fail:
            raise fail
    return target


def test_each_has_a_folder_and_latest_names_the_newest(tmp_path: Path) -> None:
    assert folders.newest(tmp_path) == epath.Path(tmp_path)
    made = [evaluate(tmp_path, step) for step in (10, 2, 2)]
    assert len(set(made)) == 3
    assert [path.name.split("_")[0] for path in made] == ["step-10", "step-2", "step-2"]
    assert (tmp_path / "evaluations" / "latest").read_text() == f"{made[-1].name}\n"
    assert folders.newest(tmp_path) == made[-1]
    assert folders.newest(made[0]) == made[0]
    assert folders.is_evaluated(tmp_path)


def test_the_name_tells_settings_apart(tmp_path: Path) -> None:
    names = [evaluate(tmp_path, 1, {**CONFIG, **change}).name for change in ({}, {"seed": 1}, {"data": 2})]
    digits = [name.split("_")[2][:8] for name in names]
    assert digits[0] == digits[2] != digits[1]


def test_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    first = evaluate(tmp_path, 1)
    with pytest.raises(WriteError, match="free space"):
        evaluate(tmp_path, 2, fail=OSError(28, "No space left on device"))
    assert {path.name for path in (tmp_path / "evaluations").iterdir()} == {first.name, "latest"}
    assert folders.newest(tmp_path) == first


def test_one_whose_latest_was_not_written_is_found_by_its_time(tmp_path: Path) -> None:
    for name in ("step-9_20260101T000000Z_00000000", "step-1_20260102T000000Z_00000000"):
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        (tmp_path / "evaluations" / name / "results.json").write_text("{}")
    (tmp_path / "evaluations" / "step-2_20260103T000000Z_00000000").mkdir()  # no evaluation
    assert folders.newest(tmp_path).name == "step-1_20260102T000000Z_00000000"


def test_on_object_storage_the_results_are_the_last_but_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = install(monkeypatch)
    workdir = epath.Path("gs://bucket/runs/a")
    with folders.new(workdir, CONFIG, 7) as (folder, target):
        assert folder == target
        (folder / "report.html").write_text("page")
        assert folders.newest(workdir) == workdir
        (folder / "results.json").write_text("{}")
    assert [name.split("/")[-1] for name in bucket.written] == ["report.html", "results.json", "latest"]
    assert folders.newest(workdir) == target


@pytest.mark.parametrize("content", [b"step-3_20260101T000000Z_00000000", b"", b"\xff\xfe", b"../../other"])
def test_a_wrong_latest_is_named(tmp_path: Path, content: bytes) -> None:
    evaluate(tmp_path, 1)
    (tmp_path / "evaluations" / "latest").write_bytes(content)
    with pytest.raises(folders.NoEvaluation, match=r"latest names .* which is no evaluation"):
        folders.newest(tmp_path)
