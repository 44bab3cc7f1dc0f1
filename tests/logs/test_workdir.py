"""The lock of a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from etils import epath

from data_pipelines import files
from data_pipelines.errors import RetryError, UserError
from data_pipelines.files import LockedError, WriteError
from irm_jax.logs import workdir
from irm_jax.logs.workdir import locked, locked_for
from irm_jax.parallel import processes


def enter(folder: Path) -> None:
    with locked(epath.Path(folder)):
        pass


def test_one_command_at_a_time_and_leftovers_are_removed(tmp_path: Path) -> None:
    left = [
        tmp_path / "tmp-irm_jax-7-run.json",
        tmp_path / "evaluations" / "tmp-irm_jax-7-step-3",
        tmp_path / "per_query" / ".a.npz.7",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with locked(epath.Path(tmp_path)):
        assert not any(path.exists() for path in left)
        with pytest.raises(LockedError, match=r"another process \(process \d+ on"):
            enter(tmp_path)
    enter(tmp_path)
    with pytest.raises(WriteError):
        enter(tmp_path / "evaluations" / ".." / ".lock" / "run")


def test_a_folder_is_looked_at_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = epath.Path(tmp_path) / "new" / "run"
    workdir.require_free(new)
    assert list(tmp_path.iterdir()) == []
    with locked(epath.Path(tmp_path)):
        with pytest.raises(LockedError, match=r"another process \(process \d+ on"):
            workdir.require_free(epath.Path(tmp_path))
        monkeypatch.setattr(processes, "alone", lambda: False)
        workdir.require_free(epath.Path(tmp_path))  # of this run, by another of its processes
        monkeypatch.undo()
    workdir.require_free(epath.Path(tmp_path))
    with pytest.raises(WriteError, match="Not a directory"):
        workdir.require_free(epath.Path(tmp_path / ".lock" / "run"))
    monkeypatch.setattr(files.os, "access", lambda path, mode: path != tmp_path)  # as on a disk without right to write
    with pytest.raises(WriteError, match=r"new/run cannot be written \(Permission denied\): make it writable"):
        workdir.require_free(new)


@pytest.mark.parametrize("kind", [RetryError, UserError])
def test_the_other_processes_end_with_the_status_of_process_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[RetryError] | type[UserError]
) -> None:
    monkeypatch.setattr(processes, "is_main", lambda: False)
    answers = iter([kind is RetryError, kind is UserError])
    monkeypatch.setattr(workdir.processes, "any_process", lambda value: next(answers))
    with pytest.raises(kind, match="process 0 cannot work in"):
        enter(tmp_path)


def test_a_result_that_goes_elsewhere_needs_no_lock_of_the_run(tmp_path: Path) -> None:
    """A run that is being trained, or lies on a disk that is read only, can still be read."""
    run = epath.Path(tmp_path / "run")
    (run / "sub").mkdir(parents=True)
    with locked(run):
        for target in (tmp_path / "a.npz", run / ".." / "b.npz", tmp_path / "run2" / "c.npz"):
            with locked_for(epath.Path(target), run):
                pass
        for target in (run / "a.npz", run / "sub" / "b.npz", tmp_path / "other" / ".." / "run" / "c"):
            with pytest.raises(LockedError), locked_for(epath.Path(target), run):
                pass
