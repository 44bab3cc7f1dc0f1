"""run.json: how each start of a run was made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from irm_jax.logs import run_record as record_lib
from irm_jax.logs.run_record import RunRecordError, append_run_record, git_revision, run_record


def test_a_record_says_how_the_run_was_made(tmp_path: Path) -> None:
    metadata = run_record({"model": {"size": (128, 64)}}, seed=3)
    assert metadata["config"] == {"model": {"size": [128, 64]}}
    assert metadata["seed"] == 3
    assert metadata["versions"]["jax"] == jax.__version__
    assert metadata["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
    assert metadata["command"]
    json.dumps(metadata, allow_nan=False)
    append_run_record(tmp_path / "run", metadata)
    append_run_record(tmp_path / "run", {**metadata, "seed": 4})
    starts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [start["seed"] for start in starts] == [3, 4]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_other_processes_write_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    append_run_record(tmp_path / "run", {"seed": 0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"[{", b'{"seed": 0}', b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunRecordError, match=r"run\.json is (damaged|no list).*move it away, then start again"):
        append_run_record(tmp_path, {"seed": 0})
    assert (tmp_path / "run.json").read_bytes() == content


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_lib, "PACKAGES", ("numpy", "no-such-distribution-here"))
    versions = run_record({}, 0)["versions"]
    assert versions["numpy"] == np.__version__
    assert versions["no-such-distribution-here"] is None


def test_git_revision_of_clean_dirty_ignored_and_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert git_revision(checkout) is None  # no commit yet
    (checkout / "a.py").write_text("1\n")
    (checkout / ".gitignore").write_text("installed/\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    revision = git("rev-parse", "HEAD")
    assert git_revision(checkout) == {"revision": revision, "dirty": False}
    (checkout / "installed").mkdir()
    assert git_revision(checkout / "installed") is None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a hook of another checkout
    assert git_revision(checkout) == {"revision": revision, "dirty": False}
    monkeypatch.delenv("GIT_DIR")
    (checkout / "a.py").write_text("2\n")
    assert git_revision(checkout) == {"revision": revision, "dirty": True}
    assert git_revision(tmp_path) is None
    assert git_revision(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", "")  # no git
    assert git_revision(checkout) is None
