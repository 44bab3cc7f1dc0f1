"""Result files: strict JSON, content that is replaced in one step, and locked folders."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from data_pipelines import files
from data_pipelines.errors import RetryError, UserError
from data_pipelines.files import jsonable, parse_json, write_atomically, write_json


def test_jsonable_is_strict_and_names_the_place() -> None:
    value = {
        1: (np.int32(2), np.float32("nan"), True),
        "array": np.arange(3),
        "jax": jnp.float32(0.5),
        "none": None,
        "text": "a",
    }
    assert jsonable(value) == {"1": [2, None, True], "array": [0, 1, 2], "jax": 0.5, "none": None, "text": "a"}
    json.dumps(jsonable(value), allow_nan=False)
    with pytest.raises(TypeError, match=r"model\.layers\[1\] has type object"):
        jsonable({"model": {"layers": [1, object()]}})


@pytest.mark.parametrize("data", [b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b""])
def test_broken_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(data)


@pytest.mark.parametrize("make", [Path, epath.Path])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: type) -> None:
    path = make(tmp_path / "a.json")
    write_atomically(path, "först")
    assert path.read_bytes() == "först".encode()
    write_json(path, {"b": [1, "ö"]})
    assert path.read_bytes() == b'{\n "b": [\n  1,\n  "\xc3\xb6"\n ]\n}\n'

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.WriteError, match=r"a\.json cannot be written \(No space.*free space"):
        write_atomically(path, b"second")
    assert b'"b"' in path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 1000 bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_that_outgrows_the_disk_leaves_the_old_one(tmp_path: Path, small_files: None) -> None:
    write_atomically(tmp_path / "a", "old")
    with pytest.raises(files.WriteError, match=r"free space") as caught:
        write_atomically(tmp_path / "a", b"x" * 2000)
    assert isinstance(caught.value, UserError)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


@pytest.mark.parametrize(
    ("number", "kind", "cure"),
    [
        (errno.EROFS, UserError, "make it writable"),
        (errno.EDQUOT, UserError, "free space"),
        (errno.ENOTDIR, UserError, "another name"),
        (errno.EIO, RetryError, "Start again"),
        (errno.ESTALE, RetryError, "Start again"),
    ],
)
def test_failures_say_what_to_do(number: int, kind: type, cure: str) -> None:
    error = files.write_failure("/x/run.json", OSError(number, os.strerror(number)))
    assert isinstance(error, kind)
    assert isinstance(error, OSError)
    assert str(error).startswith("/x/run.json cannot be written")
    assert cure in str(error)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with files.folder_in_one_step(tmp_path / "a") as folder:
        (folder / "b").mkdir()
        (folder / "b" / "c").write_text("d")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "b" / "c").read_text() == "d"

    def half(path: Path, error: Exception) -> None:
        with files.folder_in_one_step(path) as folder:
            (folder / "f").write_text("g")
            raise error

    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "e", ZeroDivisionError())
    with pytest.raises(FileNotFoundError, match="x/source"):  # no failure to write: it keeps its own message
        half(tmp_path / "e", FileNotFoundError(errno.ENOENT, "No such file", "x/source"))
    with pytest.raises(files.WriteError, match=r"e cannot be written \(No space"):
        half(tmp_path / "e", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(files.WriteError, match=r"/e/f cannot be written \(No space") as caught:
        half(tmp_path / "e", files.write_failure(files.scratch_path(tmp_path / "e") / "f", OSError(28, "No space")))
    assert "tmp-" not in str(caught.value).replace(str(tmp_path), "")
    with pytest.raises(files.WriteError, match="File exists"), files.folder_in_one_step(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_stays_and_a_file_keeps_its_rights(tmp_path: Path) -> None:
    """Results may lie on another disk than the folder of the run; a rename would put a file in the link's place."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a").write_text("old")
    (elsewhere / "a").chmod(0o640)
    for name in ("a", "not_there_yet"):
        (tmp_path / name).symlink_to(elsewhere / name)
        files.check_writable(tmp_path / name)
        write_atomically(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()
        assert (elsewhere / name).read_text() == "new"
    assert (elsewhere / "a").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in elsewhere.iterdir()) == ["a", "not_there_yet"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """For root, /dev/null and /dev/stdout are names like others."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        for write in (files.check_writable, lambda path: write_atomically(path, "x")):
            with pytest.raises(files.WriteError, match="a device or a pipe"):
                write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_may_be_as_long_as_the_file_system_has_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("n" * 255), "x")
    write_atomically(tmp_path / ("\u00e4" * 127), "x")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lock_names_its_owner_in_a_locale_without_the_letters_of_its_command(tmp_path: Path) -> None:
    code = "import sys; from data_pipelines import files; files.lock(sys.argv[1]).__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "Zo\u00eb"], text=True, encoding="utf-8", capture_output=True,
        check=False, env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sweep_takes_leftovers_only(tmp_path: Path) -> None:
    left = ("tmp-irm_jax-12-results.json", ".p_market.npz.4711")
    kept = ("tmp-results.json", "tmp-2024-results.csv", "results.json", ".lock", "tmp-x-1", ".p_market.npz")
    for name in (*left, *kept):
        (tmp_path / name).write_text(name)
    (tmp_path / "tmp-irm_jax-3-step_2").mkdir()
    (tmp_path / "tmp-irm_jax-3-step_2" / "results.json").write_text("half")
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    files.sweep(tmp_path / "missing")


def take(folder: Path) -> None:
    with files.lock(folder):
        pass


HOLD = "import sys, pathlib; from data_pipelines import files\nwith files.lock(pathlib.Path(sys.argv[1])):\n"


def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD + "    print('held', flush=True); sys.stdin.read()", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(files.LockedError, match=rf"process {holder.pid} on .* is working in .*run") as caught:
            take(folder)
        assert isinstance(caught.value, RetryError)
        holder.kill()
        holder.wait()
    with files.lock(folder), pytest.raises(files.LockedError):
        take(folder)
    with files.lock(folder, wait=True):
        pass


def test_a_folder_that_cannot_be_made_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(files.WriteError, match="cannot be written"):
        take(tmp_path / "file" / "run")
