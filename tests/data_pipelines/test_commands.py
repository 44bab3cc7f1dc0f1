"""How commands end: status and message, whatever the error; Ctrl-C at any moment leaves no traceback."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_shards

from data_pipelines import commands
from data_pipelines.errors import RetryError, UserError

ROOT = Path(__file__).parents[2]
STOPPED = "stopped by Ctrl-C. What is finished is kept: run the same command again to continue\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("no folder x: correct the path"), 2, "error: no folder x: correct the path\n"),
        (RetryError("a worker was killed"), 1, "error: a worker was killed\n"),
        (KeyboardInterrupt(), 1, STOPPED),
    ],
)
def test_an_error_is_one_message_and_a_status(error, status, said, capsys, tmp_path, monkeypatch):
    def main():
        raise error

    monkeypatch.setenv("IRM_JAX_MISTAKE", str(tmp_path / "mistake"))
    before = signal.getsignal(signal.SIGINT)
    try:
        assert commands.run(main) == status
        assert commands.run(lambda: None) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == said
    assert (tmp_path / "mistake").exists() == (status == 2)


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("data_pipelines.batches.show", "--stepp=1"),
        ("data_pipelines.batches.show", "--config=configs/quickstart.py", "--config.data.train.x=1"),
        ("data_pipelines.batches.show", "--config=configs/quickstart.py", "--step=one"),
        ("irm_jax.main", "--config=quickstart", "--mode=trian"),
        ("irm_jax.main", "--config.train.steps=one", "--config=quickstart"),
        ("data_pipelines.build", "--dataset", "markt1501", "--out", "x"),
        ("data_pipelines.procedural.contact_sheet", "--people", "1", "--size", "32", "16", "--out", "/dev/null/x"),
        ("data_pipelines.procedural.vocabulary", "--out", "/dev/null/x/vocab.txt"),
    ],
)
def test_a_mistaken_flag_is_status_2_without_a_traceback(arguments):
    status, said = run(*arguments)
    assert status == 2, said
    assert "Traceback" not in said


PRINTED = """
import sys
from data_pipelines import commands
def main():
    print("Zo\u00eb \U0001f642", *range(100_000))
    if sys.argv[1:]:
        sys.exit(int(sys.argv[1]))
sys.exit(commands.run(main))
"""


@pytest.mark.parametrize("ends", [(), ("0",), ("2",)])
def test_an_output_that_cannot_be_written_is_one_line_and_one_that_nobody_reads_none(ends):
    def run(output, **more):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        command = [sys.executable, "-c", PRINTED, *ends]
        return subprocess.run(command, env=environment, stdout=output, stderr=subprocess.PIPE, check=False, timeout=60)

    with open("/dev/full", "w") as full:
        done = run(full)
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"error: the output, or a file, cannot be written (No space left on device): free space"
    )
    assert done.stderr.count(b"\n") == 1
    reading, writing = os.pipe()
    os.close(reading)
    done = run(writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
    done = run(subprocess.PIPE, PYTHONIOENCODING="latin-1")  # a locale that has no such characters
    assert done.stdout.startswith(b"Zo\xeb \\U0001f642 0 1 2")
    assert (done.returncode, done.stderr) == (int((ends or "0")[0]), b"")


INTERRUPT = """
import os, signal, sys
modules = os.environ["CTRL_C_AT"].split()
def look(event, arguments):
    if event == "import" and arguments[0] in modules:
        modules.clear()
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
"""
CHILDREN = {"data_pipelines.child_processes", "irm_jax.compile.compiler_process"}
COMMANDS = sorted(
    {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
     for package in ("data_pipelines", "irm_jax") for path in (ROOT / package).rglob("*.py")
     if '\nif __name__ == "__main__":' in path.read_text("utf-8")} - CHILDREN
)  # fmt: skip


@pytest.mark.parametrize("modules", ["argparse typing", "absl numpy"])
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_within_the_first_imports_is_one_line(command, modules, tmp_path):
    """At the first import of one of the modules."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "CTRL_C_AT": modules, "GLIBC_TUNABLES": ""}
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, STOPPED)


LATER = """
import sys
from data_pipelines import commands
def main():
    import late
sys.exit(commands.run(main))
"""


def test_ctrl_c_within_a_later_import_ends_the_program_as_extension_modules_crash_of_an_exception(tmp_path):
    (tmp_path / "late.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(1)\n"
        "finally:\n    print('an exception was raised')"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", LATER], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "", STOPPED)


def test_an_error_that_ctrl_c_became_is_ctrl_c(capsys):
    def main():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    before = signal.getsignal(signal.SIGINT)
    try:
        assert commands.run(main) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == STOPPED


BUILD = """
import functools, sys
from pathlib import Path
import toy_shards
from data_pipelines import commands
load = functools.partial(toy_shards.load, block_at=30)
sys.exit(commands.run(lambda: toy_shards.build(Path(sys.argv[1]), load=load, workers=2) and None))
"""


def test_ctrl_c_within_the_garbage_collector_is_not_lost(capsys):
    def collect(phase, _):
        if phase == "start":
            gc.callbacks.clear()
            raise KeyboardInterrupt

    def main():
        kept = list(gc.callbacks)
        gc.callbacks[:] = [collect]
        try:
            gc.collect()
            for _ in range(1000):
                time.sleep(0.001)
        finally:
            gc.callbacks[:] = kept

    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    try:
        assert commands.run(main) == 1
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert sys.unraisablehook is before[1]
    assert capsys.readouterr().err == STOPPED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_build_is_one_line_and_the_same_build_goes_on(number, tmp_path):
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdout.readline() == "blocked\n"
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)  # the pipe ends with the last builder
    if number == signal.SIGINT:
        assert process.returncode == 1
        assert said == STOPPED
    else:
        assert (process.returncode, said) == (-number, "")
    toy_shards.build(tmp_path)
    toy_shards.build(tmp_path / "straight")
    assert toy_shards.contents(tmp_path / "toy") == toy_shards.contents(tmp_path / "straight/toy")
