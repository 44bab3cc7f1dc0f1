"""Where a run's numbers go: metrics.jsonl, TensorBoard files, a progress line, and run.json (how the run was made).

Every file lies in the workdir, local, on a shared file system, or on object storage (gs://), where the logs are written
every half minute and at the end. Only process 0 writes; the others may call the same methods, which then do nothing.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import tensorboardX
from etils import epath

from data_pipelines import storage
from data_pipelines.files import jsonable, write_atomically
from irm_jax.logs import growing_file
from irm_jax.logs.timing import DATA_WAIT, IMAGES_PER_SECOND

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
LOSS = "loss"
PACKAGES = (
    "irm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy",
    "opencv-python-headless", "tokenizers", "transformers",
)  # fmt: skip
"""Distributions whose version can change a result, by their registry names."""


class MetricLogError(RuntimeError):
    """The metrics cannot be written, or what is there cannot be read; the message names the file and the cure."""


class MetricLog:
    """Scalars of one run, by step.

    `resume_step`: the step that training continues from. Records of later steps, left by a run that died after its last
    checkpoint, are cut off, in TensorBoard too, so that no step appears twice. None starts afresh: an older
    metrics.jsonl is kept beside the new one as metrics.previous.jsonl.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        *,
        primary: bool | None = None,
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`primary`: whether this process writes (default: process 0 does). `stream` takes the progress line (default
        stderr); on a terminal it is redrawn in place, elsewhere it is a line of its own, at most one each
        `every_seconds`."""
        self.primary = jax.process_index() == 0 if primary is None else primary
        if not self.primary:
            return
        folder = epath.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS_FILE
        kept = ""
        if resume_step is None:
            if path.exists():
                path.replace(path.with_name("metrics.previous.jsonl"))
        else:
            records = [record for record in read_metrics(folder) if record["step"] <= resume_step]
            kept = "".join(json.dumps(record) + "\n" for record in records)
            write_atomically(path, kept)
        self._file: Any
        if storage.is_remote(folder):
            growing_file.use_for_tensorboard(str(folder).partition("://")[0])
            self._file = growing_file.GrowingFile(path, kept.encode())
        else:
            self._file = path.open("a", encoding="utf-8")
        # TensorBoard drops the events it already has from this step on. File names tell the start to the second
        # only, so the suffix keeps two starts apart.
        first = 0 if resume_step is None else resume_step + 1
        self._tensorboard = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=first, filename_suffix=f".from-{first}"
        )
        self._progress = _ProgressLine(sys.stderr if stream is None else stream, every_seconds, clock)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one record of scalars. Local files are flushed, so a kill loses nothing already written.

        In metrics.jsonl NaN and infinities are null (strict JSON); TensorBoard shows them as they are.
        """
        if not self.primary:
            return
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        try:
            self._file.write(json.dumps(jsonable({"step": int(step), **values})) + "\n")
            self._file.flush()
        except OSError as error:
            cure = "free space there and resume" if error.errno == errno.ENOSPC else "make it writable and resume"
            raise MetricLogError(
                f"metrics cannot be written to {self._file.name} ({error.strerror}): {cure}"
            ) from error
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, int(step))
        self._tensorboard.flush()

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, Any]) -> None:
        """Shows the step, loss, images a second, wait for data (those given) and the time left."""
        if self.primary:
            self._progress.show(int(step), int(total_steps), metrics)

    def close(self) -> None:
        if self.primary and not self._file.closed:
            self._progress.finish()
            with contextlib.suppress(OSError):  # `write` flushes, so an error here is one that it has raised already
                self._file.close()
            self._tensorboard.close()

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ProgressLine:
    def __init__(self, stream: TextIO, every_seconds: float, clock: Callable[[], float]):
        self._stream, self._every, self._clock = stream, every_seconds, clock
        self._in_place = stream.isatty()
        # Pace over the latest hundred calls: compilation and a slow start leave the estimate soon.
        self._times: collections.deque[tuple[float, int]] = collections.deque(maxlen=100)
        self._shown_at = -math.inf
        self._open = False

    def show(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        now = self._clock()
        self._times.append((now, step))
        if not self._in_place and now - self._shown_at < self._every and step < total:
            return
        self._shown_at = now
        parts = [f"step {step:,}/{total:,}"]
        if LOSS in metrics:
            parts.append(f"loss {float(metrics[LOSS]):.4g}")
        if IMAGES_PER_SECOND in metrics:
            parts.append(f"{float(metrics[IMAGES_PER_SECOND]):.4g} img/s")
        if DATA_WAIT in metrics:
            parts.append(f"waiting for data {float(metrics[DATA_WAIT]):.0%}")
        parts.append(f"left {self._left(step, total)}")
        text = "  ".join(parts)
        # On a terminal the cursor goes back to column 0: a log message then overwrites the line, not joins it.
        self._stream.write(f"\x1b[K{text}\r" if self._in_place else f"{text}\n")
        self._stream.flush()
        self._open = self._in_place

    def _left(self, step: int, total: int) -> str:
        (start, first), (now, last) = self._times[0], self._times[-1]
        if last <= first:
            return "--:--"
        seconds = round((now - start) / (last - first) * max(total - step, 0))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"

    def finish(self) -> None:
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; [] without the file.

    A last line without its end (the process was killed while writing) is left out; any other broken line is an error.
    """
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    *lines, unfinished = path.read_text(encoding="utf-8").split("\n")
    del unfinished  # "" after a complete last line
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise MetricLogError(
                f"{path}, line {number}, is not a metric record: repair or delete that line"
            ) from error
        records.append(record)
    return records


def run_metadata(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """How this run is made: config, versions, seed, git revision, devices, command line; plain JSON values."""
    devices = jax.devices()
    return {
        "config": jsonable(config),
        "seed": int(seed),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": git_revision(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "platform": platform.platform(),
        "command": shlex.join([sys.executable, *sys.argv]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_run_metadata(workdir: str | os.PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Appends to run.json, a list with one entry for each start of the run, newest last. Process 0 only."""
    if jax.process_index() != 0:
        return
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN_FILE
    starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    write_atomically(path, json.dumps([*starts, jsonable(metadata)], indent=2) + "\n")


def git_revision(folder: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """{"revision": commit hash, "dirty": whether files differ from it} of the checkout holding `folder` (default: this
    source file); None outside a checkout, in an ignored folder of one (an installed copy), or without git."""
    where = Path(__file__).resolve().parent if folder is None else Path(folder)

    # Inside a git hook GIT_DIR and its kin name another checkout. No optional locks: never disturb a git at work.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(where), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "HEAD")
    if revision is None or git("check-ignore", "--quiet", str(where)) is not None:
        return None
    status = git("status", "--porcelain")
    return {"revision": revision, "dirty": status is None or status != ""}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
