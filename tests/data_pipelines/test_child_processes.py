"""Child processes: what they are sent and answer, errors, their end."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import child_processes
from data_pipelines.child_processes import ChildEnded, Pool


class Odd(Exception):
    """Cannot be pickled back: it is made of two arguments and keeps one."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def work(task):
    kind, value = task
    if kind == "raise":
        raise Odd(value, "more")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind, os.getpid(), value * 2


def test_arrays_of_any_size_and_layout_come_back_whole():
    values = [np.arange(3_000_000), np.zeros((0, 4)), np.ones((5, 6), order="F")[:, 1:3], np.float32(7)]
    with Pool(2, "process") as pool:
        answers = list(pool.map(work, [(n, value) for n, value in enumerate(values)]))
        twice = 2
        assert list(pool.map(lambda n: n * twice, [4])) == [8]  # a function without a name
    assert len({pid for _, pid, _ in answers} - {os.getpid()}) == 2
    for number, _, found in answers:
        np.testing.assert_array_equal(found, values[number] * 2)
        assert found.dtype == values[number].dtype


def test_an_error_comes_with_its_text_and_the_pool_goes_on():
    with Pool(1, "process") as pool:
        with pytest.raises(RuntimeError, match="Odd: 3 and more"):
            list(pool.map(work, [("raise", 3)]))
        assert [value for _, _, value in pool.map(work, [("", 1), ("", 2)])] == [2, 4]
        with pytest.raises(TypeError, match="pickle"):
            list(pool.map(work, [("", (n for n in ()))]))


def test_a_process_that_dies_is_named_however_large_its_tasks_are():
    tasks = [("", np.zeros(2**17)), ("die", np.zeros(2**17)), *[("", np.zeros(2**17))] * 9]
    with (
        Pool(2, "process") as pool,
        pytest.raises(ChildEnded, match=r"process \d of 2 \(pid \d+\) was ended by SIGKILL"),
    ):
        list(pool.map(work, tasks))


def test_errors_are_portable():
    assert str(child_processes.portable(StopIteration(3))) == "StopIteration: 3"
    assert str(child_processes.portable(SystemExit(2))) == "SystemExit: 2"
    found = child_processes.portable(ValueError("x"))
    assert type(found) is ValueError
    assert "ValueError: x" in found.__notes__[0]


def test_the_last_act_comes_when_the_parent_is_gone(tmp_path):
    child = (
        "import sys, time, pathlib; from data_pipelines import child_processes;"
        "child_processes.end_with_parent(int(sys.argv[1]), last=pathlib.Path(sys.argv[2]).touch); time.sleep(600)"
    )
    parent = (
        "import os, subprocess, sys;"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid()), sys.argv[1]]);"
        "print('started', flush=True); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path / "last")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    process.kill()
    process.communicate(timeout=30)  # the pipe ends with the child
    assert (tmp_path / "last").exists()
