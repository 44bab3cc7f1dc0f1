"""Metric writers: JSON lines, TensorBoard files, the progress line, and what a resumed run keeps."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from data_pipelines.files import StorageLost
from irm_jax.logs.files import EventFile
from irm_jax.logs.writers import (
    WRITERS,
    Console,
    JsonLines,
    MetricLog,
    MetricLogError,
    MetricWriter,
    RunStart,
    TensorBoard,
    read_metrics,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def open_log(workdir: Path, resume_step: int | None = None) -> MetricLog:
    """The files of a run, without the console."""
    return MetricLog.open(("jsonl", "tensorboard"), RunStart(epath.Path(workdir), resume_step), primary=True)


def events(folder: Path) -> list[Event]:
    """Every TensorBoard event below a folder (TFRecord framing: u64 length, crc, payload, crc)."""
    found = []
    for path in sorted(folder.rglob("events.out.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            payload = data[12 : 12 + length]
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(payload)
            found.append(Event.FromString(payload))
            data = data[16 + length :]
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value}


def test_records_reach_both_files_at_once(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.write(10, {"loss": jnp.float32(1.5), "trad/identity_loss": np.float64(0.25)})
        log.write(np.int64(20), {"loss": float("nan"), "gradient_norm": jnp.asarray(jnp.inf, jnp.bfloat16)})  # type: ignore[arg-type]
        # Before close: a killed run has lost nothing. Strict JSON: no NaN literal.
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert lines[0] == '{"step": 10, "loss": 1.5, "trad/identity_loss": 0.25}'
        assert json.loads(lines[1], parse_constant=pytest.fail) == {"step": 20, "loss": None, "gradient_norm": None}
        assert len(lines) == 2
    assert [record["step"] for record in read_metrics(tmp_path)] == [10, 20]
    shown = scalars(tmp_path)
    assert shown["loss", 10] == 1.5
    assert shown["trad/identity_loss", 10] == 0.25
    assert np.isnan(shown["loss", 20])
    assert np.isinf(shown["gradient_norm", 20])


def test_resume_drops_later_records_and_the_torn_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with open_log(tmp_path, 2) as log:
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
        log.write(3, {"loss": 30.0})
    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    # TensorBoard is told to drop what it has from step 3 on.
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [0, 3]


def test_a_fresh_start_keeps_the_old_file_aside(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.write(1, {"loss": 1.0})
    with open_log(tmp_path):
        assert read_metrics(tmp_path) == []
    with open_log(tmp_path):  # the start before it was killed before its first line
        assert "1.0" in (tmp_path / "metrics.previous.jsonl").read_text()
    with open_log(tmp_path / "new", 5) as log:  # a checkpoint without its log: nothing to cut
        log.write(6, {"loss": 6.0})
    assert read_metrics(tmp_path / "new") == [{"step": 6, "loss": 6.0}]
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize("broken", [
        b"{}", b"[]", b"not json", b"", b'{"step": "\xff"}', b'{"step": "x"}', b'{"step": null}', b"[" * 100_000,
        b"1" * 5000,
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n')
    with pytest.raises(MetricLogError, match=r"metrics\.jsonl, line 2, is not a metric record"):
        read_metrics(tmp_path)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with MetricLog.open(tuple(WRITERS), RunStart(epath.Path(tmp_path / "run")), primary=False) as log:
        log.write(1, {"loss": 1.0})
        log.progress(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


class Full(MetricWriter):
    """A writer whose output is /dev/full, which has no space for anything."""

    def __init__(self, start: RunStart) -> None:
        super().__init__(start)
        self._file = open("/dev/full", "w")  # noqa: SIM115

    def write(self, step: int, values: Any) -> None:
        self._file.write(f"{step}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def test_a_full_disk_names_folder_and_cure(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, which this system does not have")
    log = MetricLog([Full(RunStart(epath.Path(tmp_path)))])
    message = rf"metrics cannot be written in {tmp_path} \(No space left on device\): free space there and resume"
    with pytest.raises(MetricLogError, match=message):
        log.write(1, {"loss": 1.0})
    with pytest.raises(MetricLogError, match=message):  # what is not on disk is not passed over in silence
        log.close()
    log.close()  # nothing is left to close

    def fail() -> None:
        with MetricLog([Full(RunStart(epath.Path(tmp_path)))]) as log:
            log.write(1, {"loss": 1.0})

    with pytest.raises(MetricLogError, match=message):
        fail()


class Unanswered(MetricWriter):
    """A writer whose disk does not answer."""

    def write(self, step: int, values: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def close(self) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_storage_that_does_not_answer_is_worth_another_start(tmp_path: Path) -> None:
    log = MetricLog([Unanswered(RunStart(epath.Path(tmp_path)))])
    with pytest.raises(StorageLost, match="cannot be written now"):
        log.write(1, {"loss": 1.0})
    with pytest.raises(StorageLost, match="Start again"):
        log.close()


def test_a_workdir_that_cannot_be_written_names_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricLogError, match=r"cannot be written in .*file"):
        open_log(tmp_path / "file" / "run")


def test_a_writer_gets_logged_metrics_or_those_of_every_step(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []

    class Recorder(MetricWriter):
        def write(self, step: int, values: Any) -> None:
            assert all(type(value) is float for value in values.values())
            calls.append((type(self).__name__, step))

    class Display(Recorder):
        every_step = True

    start = RunStart(epath.Path(tmp_path))
    with MetricLog([Recorder(start), Display(start)]) as log:
        log.progress(1, {"loss": jnp.float32(1)})
        log.write(2, {"loss": np.float64(1)})
    assert calls == [("Display", 1), ("Recorder", 2)]


def test_event_files_are_what_tensorboard_reads(tmp_path: Path) -> None:
    """Field by field against the message's own definition, numbers of several bytes among them."""
    file = EventFile(epath.Path(tmp_path), 300)
    file.write(70_000, {"loss/größe": 1.5, "x": float("-inf"), "y" * 300: 1e39})
    file.write(70_001, {})
    file.close()
    version, start, logged, empty = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (300, 1)
    assert [(v.tag, v.simple_value) for v in logged.summary.value] == [
        ("loss/größe", 1.5), ("x", float("-inf")), ("y" * 300, float("inf")),
    ]  # fmt: skip
    assert (logged.step, empty.step) == (70_000, 70_001)
    assert 0 <= logged.wall_time - version.wall_time < 60
    assert version.wall_time > 1.7e9


def test_writers_load_neither_jax_nor_torch() -> None:
    code = "import sys, irm_jax.logs.writers; print({'jax', 'torch', 'tensorboardX', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


METRICS = {"loss": jnp.float32(2.34567), "images_per_second": 312.4, "data_wait": 0.031}


def test_progress_in_a_file_is_plain_sparse_lines(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(RunStart(epath.Path(tmp_path), total_steps=30), stream=stream, every_seconds=10.0, clock=clock)
    with MetricLog([console]) as log:
        for step in range(1, 31):
            log.progress(step, METRICS)
            clock.now += 2.0
    lines = stream.getvalue().splitlines()
    # The first, one each ten seconds, and the last.
    assert [line.split()[1] for line in lines] == ["1/30", "6/30", "11/30", "16/30", "21/30", "26/30", "30/30"]
    assert lines[0] == "step 1/30  loss 2.346  312.4 img/s  waiting for data 3%  left --:--"
    assert lines[1].endswith("left 0:48")
    assert lines[-1].endswith("left 0:00")
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_progress_on_a_terminal_is_redrawn_in_place(tmp_path: Path) -> None:
    stream, clock = Terminal(), Clock()
    with MetricLog([Console(RunStart(epath.Path(tmp_path), 5, 24_000), stream=stream, clock=clock)]) as log:
        log.progress(6, {"loss": 1.0})
        clock.now += 1.5
        log.progress(7, {})
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for text in ("step 6/24,000  loss 1  left --:--", "step 7/24,000  left 9:59:50"):
        assert drawn.count(text) >= 1
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")  # the cursor is there
    assert drawn.endswith("\n")


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_offline_runs_of_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in; `test_weights_and_biases_writes_offline` uses the library where it is installed."""
    started: list[dict[str, Any]] = []
    run = FakeRun()

    class FakeWandb:
        Settings = dict

        @staticmethod
        def init(**options: Any) -> FakeRun:
            started.append(options)
            return run

    monkeypatch.setitem(sys.modules, "wandb", FakeWandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    start = RunStart(epath.Path(tmp_path / "a"), 20, 100, {"seed": 1})
    with MetricLog.open(("wandb",), start, primary=True) as log:
        log.write(40, {"loss": jnp.float32(0.5)})
        log.progress(41, {"loss": 0.5})
    assert run.logged == [(40, {"loss": 0.5})]
    assert run.finished == 1
    [options] = started
    assert (options["mode"], options["group"], options["name"]) == ("offline", "a", "a.from-21")
    assert options["config"] == {"seed": 1}
    assert options["dir"] == str(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MetricLogError, match=r"wandb, which is not installed: pip install 'irm_jax\[wandb\]'"):
        MetricLog.open(("wandb",), start, primary=True)


def test_weights_and_biases_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb, which is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with MetricLog.open(("wandb",), RunStart(epath.Path(tmp_path), config={"seed": 1}), primary=True) as log:
        log.write(1, {"loss": 0.5})
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"loss" in file.read_bytes()


def test_the_files_of_a_run_are_those_of_its_writers(tmp_path: Path) -> None:
    start = RunStart(epath.Path(tmp_path / "run"))
    with MetricLog([JsonLines(start)]):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    with MetricLog([TensorBoard(start)]):
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "tensorboard"]
