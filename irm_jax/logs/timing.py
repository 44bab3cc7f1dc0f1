"""Where the time of a training goes: images per second, waiting for data, goodput, MFU, and a trace of some steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

IMAGES_PER_SECOND, DATA_WAIT, GOODPUT, MFU = "images_per_second", "data_wait", "goodput", "mfu"
"""Names of the metrics.

`data_wait`: share of the time spent waiting for data. `goodput`: share of the time since the process started that was
spent in steps. `mfu`, model FLOPs utilisation: FLOP/s of the model's products over the peak of the chips.
"""
WINDOW = 10
"""Steps that speed, wait and MFU are averaged over, at least."""


class StepTimer:
    """Measures the speed of a training, one call per finished step."""

    def __init__(
        self,
        rows: int,
        step: int,
        ideal_seconds: float | None = None,
        *,
        age: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`rows`: images per step. `step`: steps done before. `ideal_seconds`: see the function; None gives no MFU.
        `age`: seconds since the process started, by default what the system says."""
        self._rows, self._step, self._ideal, self._clock = rows, step, ideal_seconds, clock
        self._since = self._seen = clock()
        self._waited = self._waited_since_seen = 0.0
        self._born = self._since - (process_age() if age is None else age)
        self._in_steps, self._compiled = 0.0, False

    def wait_for(self, get: Callable[[], Any]) -> Any:
        """Calls `get`, counts its time as waiting for data, and returns its value."""
        begin = self._clock()
        value = get()
        waited = self._clock() - begin
        self._waited += waited
        self._waited_since_seen += waited
        return value

    def finished(self, step: int) -> dict[str, float]:
        """Returns the metrics when `step` is known to be done: over the current window, goodput since the start.

        The time up to the first call counts as compiling.
        """
        now = self._clock()
        if self._compiled:
            self._in_steps += max(now - self._seen - self._waited_since_seen, 0.0)
        self._compiled, self._seen, self._waited_since_seen = True, now, 0.0
        elapsed, steps = max(now - self._since, 1e-9), step - self._step
        result = {
            IMAGES_PER_SECOND: self._rows * steps / elapsed,
            DATA_WAIT: min(self._waited / elapsed, 1.0),
            GOODPUT: min(self._in_steps / max(now - self._born, 1e-9), 1.0),
        }
        if self._ideal is not None:
            result[MFU] = self._ideal * steps / elapsed
        if steps >= WINDOW:
            self._step, self._since, self._waited = step, now, 0.0
        return result

    def restart(self, step: int) -> None:
        """Begins a new window after `step`: the time since then, spent on evaluating or saving, counts nowhere."""
        self._step, self._since, self._waited = step, self._clock(), 0.0
        self._seen, self._waited_since_seen = self._since, 0.0


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        started = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def ideal_seconds(flops: Mapping[str, float], peak: Mapping[str, float], devices: int) -> float:
    """Seconds that a step's products take at the peak of all devices.

    `flops`: FLOPs per step by kind of product (bf16, f32, ...); `peak`: FLOP/s of one device for each kind.
    """
    return sum(count / peak[kind] for kind, count in flops.items()) / devices


def profiled_steps(text: str) -> range:
    """Parses START:STOP: `10:20` -> steps 10 to 19; '' -> none. Raises ValueError for another form."""
    if not text:
        return range(0)
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) < int(last)):
        raise ValueError(f"{text!r} is not START:STOP with 1 <= START < STOP, say 10:20 for the steps 10 to 19")
    return range(int(first), int(last))


class Profile:
    """Writes a trace of the steps `text` (see `profiled_steps`) into WORKDIR/profile, for TensorBoard's profiler or
    Perfetto. As a context manager it closes the trace of a training that ends in between."""

    def __init__(self, text: str, workdir: epath.Path) -> None:
        self._steps, self._folder = profiled_steps(text), workdir / "profile"
        self._open = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, running: Any) -> None:
        """To be called before each step starts. `running`: arrays of the step under way, which is waited for."""
        import jax  # late: config.check, which reads `profiled_steps`, works without jax

        if step in self._steps and not self._open:
            jax.block_until_ready(running)  # the steps before are not traced
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        elif self._open and step not in self._steps:
            jax.block_until_ready(running)
            self._stop()

    def _stop(self) -> None:
        import jax

        if self._open:
            jax.profiler.stop_trace()
            self._open = False
            logging.info("the trace of steps %d to %d is in %s", self._steps[0], self._steps[-1], self._folder)
