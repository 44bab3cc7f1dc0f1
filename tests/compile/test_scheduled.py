"""The process that lays a program out: what is made of its files, its refusals and its end."""

import importlib.util
import signal
import tempfile

import pytest

from data_pipelines.files import WriteError
from irm_jax.compile import scheduled, targets
from irm_jax.compile.chips import GIB, parse_topology
from irm_jax.compile.scheduled import Compilation, CompilerError, Job

REPORT = """Memory Space: default (color=0)
Total bytes: 2172399616 (2.02GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
Memory Space: vmem (color=1)
Total bytes: 116453376 (111.06MiB)
"""
PROGRAM = "HloModule m\n\nENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %x = f32[8]{0} parameter(0)\n}\n"
WRITES = f"""
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "m.after_optimizations-memory-usage-report.txt").write_text({REPORT!r})
time.sleep(1)
with open(folder / "m.after_optimizations_after_buffer_assignment.txt", "w") as file:
    file.write({PROGRAM[:20]!r})
    file.flush()
    file.write({PROGRAM[20:]!r})
"""
REFUSES = """
import pathlib, sys
print("Used 20.51G of 15.75G hbm is what the log says too")
(pathlib.Path(sys.argv[1]) / "error.txt").write_text("RESOURCE_EXHAUSTED: Ran out. Used 20.51G of 15.75G hbm.")
"""


@pytest.fixture
def job(micro_config):
    return Job(micro_config, "train", 0, parse_topology("v5e:2x2"))


def stand_in(monkeypatch, script):
    monkeypatch.setattr(scheduled, "COMPILER", ("-c", script))


@pytest.mark.parametrize("after", ["", "time.sleep(600)"])
def test_the_files_are_read_and_the_process_is_ended(monkeypatch, job, after):
    """Whether it would go on with machine code or ends by itself."""
    stand_in(monkeypatch, WRITES + after)
    with Compilation(job) as compilation:
        found = compilation.result()
    assert (found.text, found.peak_bytes) == (PROGRAM, 2172399616)
    assert not after or compilation._process.returncode == -signal.SIGKILL  # it did not come to its own end
    assert not compilation.folder.exists()


def test_a_program_that_does_not_fit_is_a_result(monkeypatch, job, micro_config):
    stand_in(monkeypatch, REFUSES)

    class Traced:
        jaxpr = None

    class Program:
        name = "train_step"

        def trace(self):
            return Traced()

    monkeypatch.setattr(targets, "count", lambda jaxpr: {"bfloat16": 7})
    found = targets.schedule_program(Program(), job)
    assert (found.fits, found.peak_bytes, found.flops) == (False, int(20.51 * GIB), {"bfloat16": 7})


@pytest.mark.parametrize(
    ("script", "words"),
    [("print('no such thing'); raise SystemExit(3)", "status 3 .*\n.*no such thing"),
     ("import os; os.kill(os.getpid(), 11)", "signal 11 ")],
)  # fmt: skip
def test_an_end_without_a_word_is_told(monkeypatch, job, script, words):
    stand_in(monkeypatch, script)
    with Compilation(job) as compilation, pytest.raises(CompilerError, match=f"(?s)ended (with|by) {words}"):
        compilation.result()


def test_no_place_for_temporary_files_is_told(monkeypatch, job, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(WriteError, match=r"no place for temporary files.*set TMPDIR"):
        Compilation(job)


def test_another_kind_of_report_is_refused():
    with pytest.raises(CompilerError, match="in an unknown form"):
        scheduled.peak_bytes("Memory: a lot")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is here")
def test_the_process_makes_the_mesh_of_the_job(job):
    """Without the TPU compiler that is as far as it comes; test_compile_mode.py has the rest."""
    with Compilation(job) as compilation, pytest.raises(CompilerError, match=r"not installed: pip install .*\[tpu\]"):
        compilation.result()
