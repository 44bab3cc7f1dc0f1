"""What a training will take: steps, epochs, memory and disk before its first step, time after ten of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from absl import logging
from ml_collections import ConfigDict

from data_pipelines import options, storage, words
from data_pipelines.batches import layout
from data_pipelines.images import Size
from irm_jax import checkpoint
from irm_jax.errors import ConfigError
from irm_jax.parallel import devices, processes

if TYPE_CHECKING:
    from irm_jax.training.hooks import Training

TIMED = 10
"""Steps that the time of a step is measured over; the one before them compiles."""
LISTED = 4
"""Training entries whose epochs are listed."""


def announce(training: Training, state: Any) -> None:
    """Logs steps, epochs, memory and disk of the training that is about to start.

    Raises ConfigError if the checkpoints do not fit the disk of the workdir.
    """
    left = training.steps - training.start
    if left <= 0:
        return
    config, plan = training.run.config, training.run.data.plan
    here = _bytes_here(state)
    logging.info(
        "%s steps of %s rows%s; %s of parameters and optimizer on each device",
        f"{left:,}", f"{plan.batch_size * config.optimizer.accumulate:,}", _epochs(training, left), words.size(here),
    )  # fmt: skip
    if growth := _growth(training):
        sizes = "; ".join(f"{height} x {width} pixels from step {first + 1:,}" for first, (height, width) in growth)
        logging.info("images grow (config.data.growth), and the step is compiled once for each size: %s", sizes)
    if remat_saves_nothing(config, jax.default_backend()):
        logging.warning(
            "config.model.remat=%s saves no memory on a CPU without --config.model.scan_layers=True: the compiler sees "
            "that what is computed again was computed before, and keeps it", config.model.remat,
        )  # fmt: skip
    if storage.is_remote(training.workdir):
        return
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    saved = checkpoint.saved_steps(training.checkpoints.directory)
    scored = any(training.checkpoints.metrics(step) for step in saved)
    kept, more = checkpoints_at_most(config, training.start, len(saved), scored)
    free = shutil.disk_usage(training.workdir).free
    said = f"{kept} checkpoints of {words.size(one)} at most in {training.workdir}, where {words.size(free)} are free"
    if processes.any_process(more * one > free):
        raise ConfigError(
            f"the disk does not hold the run's checkpoints: {said}. Free space there, choose another --workdir, or "
            f"keep fewer by --config.checkpoint.keep (now {config.checkpoint.keep})"
        )
    logging.info("%s", said)


def checkpoints_at_most(config: ConfigDict, start: int, there: int, scored: bool) -> tuple[int, int]:
    """Returns the most checkpoints that lie on the disk at a time, and how many more than the `there` of now.

    An old one is deleted once a newer one is complete; the best one is kept beside the newest. `scored`: whether one of
    now was evaluated, as the last one of a finished run that goes on.
    """
    c, t = config.checkpoint, config.train
    ahead = {t.steps} if t.steps > start else set()
    for every in (c.every, t.evaluate_every):
        if every:
            ahead |= set(range((start // every + 1) * every, t.steps, every))
    most = min(there + len(ahead), c.keep + bool(t.evaluate_every or scored) + 1)
    return max(most, there), max(most - there, 0)


def remat_saves_nothing(config: ConfigDict, platform: str) -> bool:
    """Whether `model.remat` has no effect: XLA for CPUs merges equal computations, except in a loop over layers."""
    return config.model.remat != "none" and not config.model.scan_layers and platform == "cpu"


def _epochs(training: Training, steps: int) -> str:
    """Returns how often the images of each training entry are shown: ", 60 epochs" or ", epochs: a 60, b 4"."""
    data, accumulate = training.run.data, training.run.config.optimizer.accumulate
    found = []
    for unit, source in zip(data.plan.units, data.sources, strict=False):  # planned data has no sources
        rows = unit.identities * data.plan.batch_blocks * unit.unit.images_per_identity * accumulate
        epochs = rows * steps / max(len(source.labels.identity), 1)
        found.append((data.plan.title(unit), f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.1f}"))
    if len(found) < 2:
        return "".join(f", {count} epochs of {name}" for name, count in found)
    listed = ", ".join(f"{name} {count}" for name, count in found[:LISTED])
    return f", epochs: {listed}" + (", ..." if len(found) > LISTED else "")


def _growth(training: Training) -> Sequence[tuple[int, Size]]:
    """Returns (first step, size) of images that grow, see `BatchOptions`."""
    options = training.run.data.options
    return () if options is None else options.growth


def same_size_until(training: Training) -> int:
    """Returns the last of the steps that take as long as the first: their images have one size."""
    return min([first for first, _ in _growth(training) if first > training.start] + [training.steps])


def _bytes_here(state: Any) -> int:
    """Returns the bytes of a state on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


class Pace:
    """Says once, after TIMED steps, how long the training takes and how much memory it has used."""

    def __init__(self, start: int, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._first, self._last, self._clock = start + 1, steps, clock
        self._since = 0.0

    def finished(self, step: int) -> None:
        """To be called when a step is known to be done."""
        if step == self._first:
            self._since = self._clock()
        if step != self._first + TIMED:
            return
        each = (self._clock() - self._since) / TIMED
        left = each * (self._last - step)
        end = time.strftime("%H:%M" if left < 12 * 3600 else "%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        used, there = devices.peak_memory()
        memory = words.size(used) + (f" of {words.size(there)}" if there else "")
        logging.info(
            "%.3g s a step: %s to step %s, at about %s, without evaluations; memory used at most so far: %s",
            each, words.duration(left), f"{self._last:,}", end, memory,
        )  # fmt: skip


def memory_cure(config: ConfigDict) -> str:
    """Returns what to do if a training step does not fit the memory of the devices."""
    d, accumulate = config.data, config.optimizer.accumulate
    half = layout.next_batch_size(options.units_of(config), d.batch_size // 2, d.batch_blocks)
    fewer = (
        f"--config.data.batch_size={half} --config.optimizer.accumulate={accumulate * 2} computes about as many rows a "
        "step in half the memory"
        if half < d.batch_size
        else f"config.data.batch_size = {d.batch_size} is the least of these data sets and batch_blocks; lower "
        "config.data.batch_blocks or images_per_identity"
    )
    return f"{fewer}; --config.model.remat=minimal stores less and computes more"
