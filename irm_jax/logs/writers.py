"""Metric writers: JSON lines, TensorBoard, the console's progress line, Weights & Biases; one class each.

`config.logs.writers` lists the names of a run's writers (`WRITERS`). Their files are in the workdir, which may be on
object storage: there a file is written every half minute and at the end. Only process 0 writes.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TextIO

import numpy as np
from absl import logging
from etils import epath
from rich import console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from data_pipelines import storage
from data_pipelines.files import StorageLost, WriteError, jsonable, parse_json, write_atomically, write_failure
from irm_jax.errors import UserError, pip_line
from irm_jax.logs.files import EventFile, open_for_append
from irm_jax.logs.timing import DATA_WAIT, IMAGES_PER_SECOND

METRICS_FILE = "metrics.jsonl"
LOSS = "loss"


class MetricLogError(UserError, RuntimeError):
    """Metrics cannot be written, or those that were written cannot be read; the message names the file and the cure."""


@dataclasses.dataclass(frozen=True)
class RunStart:
    """What a writer may need to know of the run that starts.

    `resume_step`: the step that training continues from; writers drop what they hold of later steps, left by a process
    that died after its last checkpoint, so that no step appears twice. None for a fresh run.
    """

    workdir: epath.Path
    resume_step: int | None = None
    total_steps: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def first_step(self) -> int:
        """The first step that this start may write."""
        return 0 if self.resume_step is None else self.resume_step + 1


class MetricWriter:
    """Base class of writers, which are made of a `RunStart`."""

    every_step: ClassVar[bool] = False
    """False: `write` gets metrics every `config.train.log_every` steps, to keep them. True: it gets them after every
    step, to show them."""

    def __init__(self, start: RunStart) -> None:
        self.start = start

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of a step, by name. Nothing that was written may be lost when the process is killed."""
        raise NotImplementedError

    def close(self) -> None:
        """Finishes the output; called once, also after an error."""


class JsonLines(MetricWriter):
    """metrics.jsonl, one strict JSON object per line: {"step": 20, "loss": 1.5, ...}; NaN and infinities are null.

    A fresh run keeps an older metrics.jsonl that has lines beside the new one, as metrics.previous.jsonl.
    """

    def __init__(self, start: RunStart) -> None:
        super().__init__(start)
        start.workdir.mkdir(parents=True, exist_ok=True)
        path = start.workdir / METRICS_FILE
        if start.resume_step is not None:
            records = [record for record in read_metrics(start.workdir) if record["step"] <= start.resume_step]
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
        elif path.exists() and path.stat().length:  # an empty one must not take an earlier one's place
            path.replace(path.with_name("metrics.previous.jsonl"))
        self._file = open_for_append(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write((json.dumps(jsonable({"step": step, **values})) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard(MetricWriter):
    """Event files in WORKDIR/tensorboard, a new one per start; NaN and infinities are kept."""

    def __init__(self, start: RunStart) -> None:
        super().__init__(start)
        self._file = EventFile(start.workdir / "tensorboard", start.first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(step, values)

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases(MetricWriter):
    """A Weights & Biases run per start, in the group of the workdir; needs the extra `wandb`.

    Written offline into WORKDIR/wandb, to be uploaded by `wandb sync`; WANDB_MODE=online uploads at once. With a
    workdir on object storage the files lie in the current folder.
    """

    def __init__(self, start: RunStart) -> None:
        super().__init__(start)
        require(["wandb"])
        import wandb

        start.workdir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project="irm_jax", group=start.workdir.name, name=f"{start.workdir.name}.from-{start.first_step}",
            dir=None if storage.is_remote(start.workdir) else str(start.workdir), config=dict(start.config),
            mode=os.environ.get("WANDB_MODE", "offline"), settings=wandb.Settings(silent=True),
        )  # fmt: skip

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class LiveLine:
    """A bar and a text at the bottom of a terminal. What is printed or logged meanwhile appears above it."""

    def __init__(self, stream: TextIO) -> None:
        self._console = console.Console(file=stream, highlight=False)
        self._live: Live | None = None
        self._handler: Any = logging.get_absl_handler().python_handler
        self._messages: Any = None

    def show(self, text: str, done: int, total: int) -> None:
        """Draws the line with a bar of `done` out of `total`."""
        if self._live is None:
            self._start()
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=max(total, 1), completed=done, width=20), Text(text, no_wrap=True, overflow="ellipsis")
        )
        assert self._live is not None
        self._live.update(line, refresh=True)

    def close(self) -> None:
        """Leaves the last line where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self._messages is not None:
                self._handler.stream = self._messages

    def _start(self) -> None:
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()
        self._console.show_cursor(True)  # a kill would leave the terminal without it
        # The log's handler keeps the stream that it was made with; now it prints above the line as well.
        if self._handler.stream is sys.__stderr__ or self._handler.stream is self._console.file:
            self._messages, self._handler.stream = self._handler.stream, sys.stderr


class Pace:
    """The time that is left, by the last hundred reports: a slow start and compilation soon leave the estimate."""

    def __init__(self) -> None:
        self._times: collections.deque[tuple[float, int]] = collections.deque(maxlen=100)

    def add(self, now: float, done: int) -> None:
        self._times.append((now, done))

    def rate(self) -> float:
        """How many a second; 0 while that is unknown."""
        (start, first), (now, last) = self._times[0], self._times[-1]
        return (last - first) / max(now - start, 1e-9) if last > first else 0.0

    def left(self, total: int) -> str:
        """Minutes and seconds, or hours, until `total` are done."""
        rate = self.rate()
        if not rate:
            return "--:--"
        seconds = round(max(total - self._times[-1][1], 0) / rate)
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


class Console(MetricWriter):
    """The progress line: step, loss, images per second, share of time waiting for data, and the time left.

    On a terminal it stays below the messages, with a bar, and is redrawn ten times a second at most. Elsewhere it is a
    line of its own, at most one per `every_seconds`, and one for the last step.
    """

    every_step = True

    def __init__(
        self,
        start: RunStart,
        *,
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stream` defaults to stderr."""
        super().__init__(start)
        self._stream, self._clock = stream or sys.stderr, clock
        self._live = LiveLine(self._stream) if self._stream.isatty() else None
        self._every = every_seconds if self._live is None else 0.1
        self._pace = Pace()
        self._shown_at = -math.inf

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now, total = self._clock(), self.start.total_steps
        self._pace.add(now, step)
        if now - self._shown_at < self._every and step < total:
            return
        self._shown_at = now
        parts = [f"step {step:,}/{total:,}"]
        if LOSS in values:
            parts.append(f"loss {values[LOSS]:.4g}")
        if IMAGES_PER_SECOND in values:
            parts.append(f"{values[IMAGES_PER_SECOND]:.4g} img/s")
        if DATA_WAIT in values:
            parts.append(f"waiting for data {values[DATA_WAIT]:.0%}")
        text = "  ".join([*parts, f"left {self._pace.left(total)}"])
        if self._live is not None:
            self._live.show(text, step, total)
            return
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        if self._live is not None:
            self._live.close()


WRITERS: dict[str, Callable[[RunStart], MetricWriter]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "console": Console,
    "wandb": WeightsAndBiases,
}
"""Writers by the names that `config.logs.writers` takes. The curves of a report are read from what `jsonl` writes."""


def require(names: Sequence[str]) -> None:
    """Raises MetricLogError for a writer whose package is missing, before a run that would open it starts."""
    if "wandb" in names:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise MetricLogError(
                f"config.logs.writers names wandb, which is not installed: {pip_line('wandb')}, or leave it out"
            ) from error


class MetricLog:
    """The writers of a run. Use it as a context manager, or call `close`."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = list(writers)

    @classmethod
    def open(cls, names: Sequence[str], start: RunStart, *, primary: bool) -> MetricLog:
        """Makes the named writers; none unless `primary`, which is `processes.is_main()`.

        Raises MetricLogError if one of them cannot write into the workdir, StorageLost if its storage does not answer,
        KeyError for a name not in `WRITERS`.
        """
        log = cls([])
        try:
            for name in names if primary else ():
                log._writers.append(WRITERS[name](start))
        except OSError as error:
            log.close()
            raise _unwritable(start.workdir, error) from error
        return log

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs scalars of a step.

        Raises MetricLogError if they cannot be written, say on a full disk, StorageLost if the storage does not answer.
        """
        self._write(step, metrics, every_step=False)

    def progress(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows scalars of a step by the writers of every step."""
        self._write(step, metrics, every_step=True)

    def _write(self, step: int, metrics: Mapping[str, Any], every_step: bool) -> None:
        values = {name: float(np.asarray(value)) for name, value in metrics.items()} if self._writers else {}
        for writer in self._writers:
            if writer.every_step != every_step:
                continue
            try:
                writer.write(int(step), values)
            except OSError as error:
                raise _unwritable(writer.start.workdir, error) from error

    def close(self) -> None:
        """Closes all writers, then raises as `write` if one of them could not write its last metrics."""
        failure: MetricLogError | StorageLost | None = None
        while self._writers:
            writer = self._writers.pop()
            try:
                writer.close()
            except OSError as error:
                failure = _unwritable(writer.start.workdir, error)
        if failure is not None:
            raise failure

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except (MetricLogError, StorageLost):
            if kind is None:  # otherwise the first error is the one to report
                raise


def _unwritable(workdir: epath.Path, error: OSError) -> MetricLogError | StorageLost:
    failure = error if isinstance(error, WriteError | StorageLost) else write_failure(workdir, error)
    if isinstance(failure, StorageLost):
        return failure
    if failure is error:
        return MetricLogError(str(error))
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "free space there and resume" if full else "make it writable and resume"
    return MetricLogError(f"metrics cannot be written in {workdir} ({error.strerror or error}): {cure}")


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of metrics.jsonl in order; [] without the file.

    A last line without its end, where the process was killed while writing, is left out. Raises MetricLogError for any
    other line that is no record.
    """
    path = epath.Path(workdir) / METRICS_FILE
    if not path.exists():
        return []
    try:
        *lines, unfinished = path.read_bytes().split(b"\n")
    except OSError as error:
        raise MetricLogError(f"{path} cannot be read ({error.strerror or error}): move it away") from error
    del unfinished  # b"" after a complete last line
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or type(record["step"]) is not int:
                raise ValueError("no object with a number of a step")
        except (ValueError, KeyError) as error:
            raise MetricLogError(
                f"{path}, line {number}, is not a metric record: repair or delete that line"
            ) from error
        records.append(record)
    return records
