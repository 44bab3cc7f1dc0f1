"""The metric log: JSON lines, TensorBoard files, progress line, run metadata, and what a resumed run keeps."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from irm_jax.logs import metric_log
from irm_jax.logs.metric_log import (
    MetricLog,
    MetricLogError,
    git_revision,
    read_metrics,
    run_metadata,
    write_run_metadata,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def events(folder: Path) -> list[Event]:
    """Every TensorBoard event below a folder (TFRecord framing: u64 length, crc, payload, crc)."""
    found = []
    for path in sorted(folder.rglob("events.out.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            payload = data[12 : 12 + length]
            assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(payload)
            found.append(Event.FromString(payload))
            data = data[16 + length :]
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    return {(v.tag, e.step): v.simple_value for e in events(folder) for v in e.summary.value}


def test_records_reach_both_files_at_once(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
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
    with MetricLog(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with MetricLog(tmp_path, 2) as log:
        assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]
        log.write(3, {"loss": 30.0})
    assert [(record["step"], record["loss"]) for record in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    # TensorBoard is told to drop what it has from step 3 on.
    assert [event.step for event in events(tmp_path) if event.HasField("session_log")] == [0, 3]


def test_a_fresh_start_keeps_the_old_file_aside(tmp_path: Path) -> None:
    with MetricLog(tmp_path) as log:
        log.write(1, {"loss": 1.0})
    with MetricLog(tmp_path):
        assert read_metrics(tmp_path) == []
    assert "1.0" in (tmp_path / "metrics.previous.jsonl").read_text()
    with MetricLog(tmp_path / "new", 5) as log:  # a checkpoint without its log: nothing to cut
        log.write(6, {"loss": 6.0})
    assert read_metrics(tmp_path / "new") == [{"step": 6, "loss": 6.0}]
    assert read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize("broken", ["{}", "[]", "not json", ""])
def test_a_broken_line_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n')
    with pytest.raises(MetricLogError, match=r"metrics\.jsonl, line 2, is not a metric record"):
        read_metrics(tmp_path)


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    with MetricLog(tmp_path / "run", stream=stream) as log:
        log.write(1, {"loss": 1.0})
        log.progress(1, 10, {"loss": 1.0})
    write_run_metadata(tmp_path / "run", {"seed": 0})
    assert list(tmp_path.iterdir()) == []
    assert stream.getvalue() == ""


def test_a_full_disk_names_file_and_cure(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full, which this system does not have")

    def run() -> None:
        with open("/dev/full", "w") as full, MetricLog(tmp_path) as log:
            log._file.close()
            log._file = full
            log.write(1, {"loss": 1.0})

    with pytest.raises(MetricLogError, match=r"written to /dev/full .*: free space there and resume"):
        run()


METRICS = {"loss": jnp.float32(2.34567), "images_per_second": 312.4, "data_wait": 0.031}


def test_progress_in_a_file_is_plain_sparse_lines(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    with MetricLog(tmp_path, stream=stream, every_seconds=10.0, clock=clock) as log:
        for step in range(1, 31):
            log.progress(step, 30, METRICS)
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
    with MetricLog(tmp_path, 5, stream=stream, clock=clock) as log:
        log.progress(6, 24_000, {"loss": 1.0})
        clock.now += 1.5
        log.progress(7, 24_000, {})
    assert stream.getvalue() == (
        "\x1b[Kstep 6/24,000  loss 1  left --:--\r\x1b[Kstep 7/24,000  left 9:59:50\r\n"
    )  # fmt: skip


def test_run_metadata_tells_how_the_run_was_made(tmp_path: Path) -> None:
    metadata = run_metadata({"model": {"size": (128, 64)}}, seed=3)
    assert metadata["config"] == {"model": {"size": [128, 64]}}
    assert metadata["seed"] == 3
    assert metadata["versions"]["jax"] == jax.__version__
    assert metadata["devices"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1}
    assert metadata["command"]
    json.dumps(metadata, allow_nan=False)
    write_run_metadata(tmp_path / "run", metadata)
    write_run_metadata(tmp_path / "run", {**metadata, "seed": 4})
    starts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [start["seed"] for start in starts] == [3, 4]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_log, "PACKAGES", ("numpy", "no-such-distribution-here"))
    versions = run_metadata({}, 0)["versions"]
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
