"""Where a training's time goes: images a second, waiting for data, goodput, MFU, and a profiler trace of some steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging
from etils import epath

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

    from data_pipelines.batches.training_data import JointData

IMAGES_PER_SECOND, DATA_WAIT, GOODPUT, MFU = "images_per_second", "data_wait", "goodput", "mfu"
"""Names of the metrics. `data_wait`: share of the time spent waiting for data. `goodput`: share of the time since the
process started that was spent in steps. `mfu`: FLOP/s of the model's products over the chips' peak."""


class Watch:
    """`rows` images a step; `step` done before. `ideal_seconds`: see that function. `age` of the process in seconds."""

    def __init__(
        self,
        rows: int,
        step: int,
        ideal_seconds: float | None = None,
        *,
        age: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._rows, self._step, self._ideal, self._clock = rows, step, ideal_seconds, clock
        self._since = self._seen = clock()
        self._waited = self._waited_since_seen = 0.0
        self._born = self._since - (process_age() if age is None else age)
        self._in_steps, self._compiled = 0.0, False

    def waiting(self, get: Callable[[], Any]) -> Any:
        """Calls `get`, whose time is waiting for data."""
        begin = self._clock()
        value = get()
        waited = self._clock() - begin
        self._waited += waited
        self._waited_since_seen += waited
        return value

    def look(self, step: int) -> dict[str, float]:
        """To be called when `step` is known to be done: what happened since the last window of ten steps began, and
        the goodput of the process. The time up to the first look goes to compiling."""
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
        if steps >= 10:
            self._step, self._since, self._waited = step, now, 0.0
        return result

    def reset(self, step: int) -> None:
        """Forgets time spent on evaluating and saving."""
        self._step, self._since, self._waited = step, self._clock(), 0.0
        self._seen, self._waited_since_seen = self._since, 0.0


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not tell."""
    try:
        started = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"), 0.0)
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0


def ideal_seconds(config: ConfigDict, data: JointData, mesh: Mesh) -> float | None:
    """Seconds that the products of a step take at the peak of the mesh's chips, without those that `model.remat` would
    compute twice (a large bank's products are counted as computed, twice); None where the chip is not in the table of
    `irm_jax/compile/chips.py`. Traces the step once more."""
    from irm_jax.compile import analytic_flops, chips, programs

    chip = chips.chip_of(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    plain = config.copy_and_resolve_references()
    plain.model.remat = "none"
    flops = analytic_flops.count(programs.training(plain, data, mesh)[0].trace().jaxpr)
    return sum(count / getattr(chip, kind) for kind, count in flops.items()) / mesh.devices.size


def profiled_steps(text: str) -> range:
    """`10:20` -> the steps 10 to 19; '' -> none. Raises ValueError for another form."""
    if not text:
        return range(0)
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) < int(last)):
        raise ValueError(f"{text!r} is not START:STOP with 1 <= START < STOP, say 10:20 for the steps 10 to 19")
    return range(int(first), int(last))


class Profile:
    """Writes a trace of the steps `text` (see `profiled_steps`) into WORKDIR/profile, for TensorBoard's profiler or
    Perfetto. A context: a training that ends in between closes the trace."""

    def __init__(self, text: str, workdir: epath.Path) -> None:
        self._steps, self._folder = profiled_steps(text), workdir / "profile"
        self._open = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, running: Any) -> None:
        """To be called before each step is started; `running`: arrays of the one under way, which belongs to it."""
        import jax

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
