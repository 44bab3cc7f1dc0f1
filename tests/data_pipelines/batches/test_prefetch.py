"""Elements made ahead: by whom, in which order, and how errors arrive."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.batches import prefetch
from data_pipelines.batches.prefetch import ReadAhead, Stream
from data_pipelines.errors import RetryError, UserError


def wait_for(done) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_with_threads_the_consumer_makes_nothing_itself():
    def who(step: int) -> int:
        return threading.get_ident()

    with Stream(who, 0, 20, ReadAhead(workers=0, threads=2)) as made:
        assert threading.get_ident() not in set(made)
    with Stream(who, 0, 3, ReadAhead(workers=0, threads=0)) as made:
        assert set(made) == {threading.get_ident()}


def fail_at_two(step: int) -> int:
    if step == 2:
        raise ValueError("step two cannot be made")
    return step


@pytest.mark.parametrize(
    ("workers", "threads"), [(0, 0), (0, 2), pytest.param(1, 1, marks=pytest.mark.nightly)]
)  # with worker processes on every push: test_training_stream
def test_an_error_reaches_the_consumer_after_what_came_before(workers, threads):
    with Stream(fail_at_two, 0, 9, ReadAhead(workers=workers, threads=threads)) as made:
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(ValueError, match="step two cannot be made"):
            next(made)


def test_too_little_memory_is_an_error_before_any_worker(monkeypatch):
    monkeypatch.setattr(prefetch, "available_memory", lambda: 64 * 2**20)
    message = r"workers = 2, threads = 1, prefetch = 2\) take up to 100 MiB, 10 of 10.0 MiB; 64 MiB .* lower workers"
    with pytest.raises(UserError, match=message):
        Stream(fail_at_two, 0, 9, ReadAhead(workers=2, threads=1, prefetch=2), element_bytes=10 * 2**20)
    Stream(fail_at_two, 0, 9, ReadAhead(workers=0, threads=1, prefetch=2), element_bytes=10 * 2**20).close()


def make_and_tell(folder: Path, number: int) -> np.ndarray:
    (folder / str(number)).touch()
    return np.full(2**16, number, np.int32)  # more than a pipe's buffer


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (2, 3)])
def test_no_more_elements_exist_than_the_check_of_the_memory_counts(tmp_path, threads, prefetch):
    ahead = ReadAhead(workers=2, threads=threads, prefetch=prefetch)
    with Stream(functools.partial(make_and_tell, tmp_path), 0, 1000, ahead) as made:
        next(made)
        wait_for(lambda: len(list(tmp_path.iterdir())) >= 1 + ahead.workers * ahead.prefetch)
        time.sleep(0.3)  # if more were made, they would be by now
        assert len(list(tmp_path.iterdir())) <= ahead.held


def test_available_memory_is_that_of_the_tightest_control_group(tmp_path):
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        "proc/self/cgroup": "3:cpu:/other\n0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": "5000000",
        "sys/fs/cgroup/job/memory.current": "4000000",
        "sys/fs/cgroup/job/memory.stat": "anon 7\ninactive_file 500\n",
        "sys/fs/cgroup/job/step/memory.max": "max",
        "sys/fs/cgroup/job/step/memory.current": "1",
        "sys/fs/cgroup/job/step/memory.stat": "inactive_file 5",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert prefetch.available_memory(tmp_path) == 1_000_500
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("max")
    assert prefetch.available_memory(tmp_path) == 8000 * 1024
    assert prefetch.available_memory(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_dies_ends_the_stream_with_a_message(number, tmp_path):
    with Stream(functools.partial(make_and_tell, tmp_path), 0, 10**6, ReadAhead(workers=2)) as made:
        assert [int(next(made)[-1]) for _ in range(3)] == [0, 1, 2]
        pids = [reader.pid for reader in made._iterator._readers]
        os.kill(pids[0], number)
        if number == signal.SIGSTOP:
            told = f"(pid {pids[0]}, stopped: kill -CONT {pids[0]})"
            wait_for(lambda: told in str(made._iterator._readers[0]))
            os.kill(pids[0], signal.SIGCONT)
            assert int(next(made)[-1]) == 3
            os.kill(pids[0], signal.SIGSTOP)  # and closing ends it all the same
        else:
            os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
            with pytest.raises(RetryError, match=rf"reader process 0 of 2 \(pid {pids[0]}\) was ended by SIGKILL"):
                list(made)
            assert list(made) == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def exit_at_two(number: int) -> int:
    if number == 2:
        sys.exit(7)
    return number


def test_a_reader_that_ends_itself_is_an_error_too():
    with Stream(exit_at_two, 0, 9, ReadAhead(workers=1, threads=1)) as made:
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(RuntimeError, match="SystemExit: 7"):
            next(made)


PROGRAM = """
import functools, signal, sys, time
from pathlib import Path
from data_pipelines.batches.prefetch import ReadAhead, Stream
from test_prefetch import make_and_tell
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
with Stream(functools.partial(make_and_tell, Path(sys.argv[1])), 0, 10**6, ReadAhead(workers=2)) as made:
    next(made), next(made)
    try:
        maps = Path("/proc/self/maps")
        print("/dev/shm/" in maps.read_text() if maps.exists() else False, flush=True)
        for _ in made:
            time.sleep(0.01)
    except KeyboardInterrupt:
        print(int(next(made)[0]) >= 2)  # the readers live on: what a signal means is decided here
"""


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGINT, True)],
)
def test_readers_end_with_their_parent_however_it_ends(number, group, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *(path for path in sys.path if path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout.readline() == "False\n"  # no memory with a name, which would be left over
    (os.killpg if group else os.kill)(parent.pid, number)
    # The pipe ends with the last process that holds it: readers, and whatever else the parent started.
    output, _ = parent.communicate(timeout=30)
    assert parent.returncode == (0 if number == signal.SIGINT else -number)
    assert output == ("True\n" if number == signal.SIGINT else "")
