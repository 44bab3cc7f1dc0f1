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
        ("data_pipelines.batches.show", "--config=configs/quickstart.py", "--step=one"),
        ("irm_jax.main", "--config=quickstart", "--mode=trian"),
        ("irm_jax.main", "--config.train.steps=one", "--config=quickstart"),
        ("data_pipelines.build", "--dataset", "markt1501", "--out", "x"),
    ],
)
def test_a_mistaken_flag_is_status_2_without_a_traceback(arguments):
    status, said = run(*arguments)
    assert status == 2, said
    assert "Traceback" not in said


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
