"""Saving checkpoints: the training state and a metadata JSON together, one folder per step.

Orbax writes a step under a temporary name and renames it once everything, with the hashes of its files, is on disk. So
a folder called by a plain number is complete, and a killed or failed save leaves only a temporary folder, which the
next `Checkpointer` removes. An old step is renamed into `.deleted` for the same reason; its files go at the next
`save`, `wait` or `close`.

Kept are the `keep` newest steps, and beside them the best, whose `best_metric` is largest (the newer of equals). A step
saved without that metric, or with a NaN, competes by age only. A step is deleted only after a newer one is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging

from data_pipelines import storage, words
from data_pipelines.files import jsonable, write_atomically
from irm_jax.checkpoint import reading
from irm_jax.checkpoint.errors import (
    CheckpointError,
    StorageLost,
    first_line,
    is_disk_full,
    is_storage_lost,
    quieten_orbax,
)
from irm_jax.checkpoint.hashes import HashedHandler, HashedSave
from irm_jax.checkpoint.reading import METADATA, STATE, StepChoice
from irm_jax.parallel import processes

Tree = TypeVar("Tree")
_DELETED = ".deleted"


class Checkpointer:
    """Saves and restores the checkpoints of one run. Only the process that trains holds one: it removes leftovers.

    Every process of a multi-host run makes the same calls with the same arguments; `directory` is shared by all. Use it
    as a context manager or call `close`: a process that ends without it may lose the last save.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        best_metric: str | None = None,
        async_: bool = True,
    ):
        """`keep` >= 1: see the module docstring. `async_`: `save` returns once the state is copied to host memory."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        quieten_orbax()
        self.directory = reading.as_folder(directory)
        self.keep, self.best_metric = keep, best_metric
        self._asynchronous = async_
        self._scores: dict[int, float | None] = {}
        self._failed = False  # a save of this run: see `_remove_unfinished`
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(self._kept),
            enable_async_checkpointing=async_,
            cleanup_tmp_directories=True,
            todelete_subdir=_DELETED,
            single_host_load_and_broadcast=True,
        )
        try:
            handlers = {STATE: HashedHandler(), METADATA: ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
            self._empty_trash()
        except Exception as error:
            raise self._explained("opening", error) from error
        for step in self._manager.all_steps():
            self._scores[step] = reading.score_of(reading.read_record(self.directory, step), best_metric)

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> bool:
        """Saves `state` (a pytree of arrays) and `metadata` (plain values) as one step; False if it is saved already.

        `metadata["model"]` is the resolved configuration of the model (`models.config.to_json`), by which readers know
        what the checkpoint holds. `metadata["metrics"]`, if there, maps names to numbers; `best_metric` is looked up in
        it. NaN and infinities become None. The state may be donated or changed as soon as this returns. A failure of
        the previous asynchronous save is raised here, or by `wait` or `close`. Raises CheckpointError (full disk, a
        step older than the newest one).
        """
        step = int(step)
        record = {
            "format": reading.FORMAT,
            "step": step,
            "best_metric": self.best_metric,
            "best_mode": "max",  # earlier versions read it
            "metadata": jsonable(metadata),
            reading.HASHES: True,
        }
        record[reading.RECORD_HASH] = reading.record_hash(record)
        self.wait()
        steps = self._manager.all_steps()
        if step in steps:
            return False
        if steps and step < max(steps):
            raise CheckpointError(
                f"step {step} is older than the newest checkpoint ({max(steps)}) in {self.directory}: resume from that "
                "one, or give the run a new workdir"
            )
        self._require_space(step, state)
        self._scores[step] = reading.score_of(record, self.best_metric)  # the policy is asked within the next call
        with self._failures(f"saving step {step}"):
            items = {STATE: HashedSave(state), METADATA: ocp.args.JsonSave(record)}
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        if not self._asynchronous:
            self._empty_trash()
        return True

    def set_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a saved step its metrics, which count for `best` from now on. Raises CheckpointError."""
        self.wait()
        record = reading.read_record(self.directory, step)
        record["metadata"]["metrics"] = jsonable(metrics)
        record[reading.RECORD_HASH] = reading.record_hash(record)
        if jax.process_index() == 0:
            with self._failures(f"writing the metrics of step {step}"):
                write_atomically(reading.record_file(self.directory, step), json.dumps(record))
        self._scores[step] = reading.score_of(record, self.best_metric)

    def metrics(self, step: int) -> dict[str, float]:
        """A saved step's metrics; empty if it was not given any."""
        return dict(reading.read_record(self.directory, step)["metadata"].get("metrics") or {})

    def restore(self, abstract_state: Tree, step: StepChoice = None) -> tuple[Tree, dict[str, Any]]:
        """Returns (state, metadata) of a step: a number, "best", or the latest (None).

        `abstract_state`: shapes, dtypes and *target* shardings (jax.ShapeDtypeStruct or arrays); the mesh may differ
        from the one that saved. Raises CheckpointError if paths, shapes or dtypes differ from the checkpoint's.
        """
        self.wait()
        return reading.restore(self.directory, abstract_state, step)

    def latest_step(self) -> int | None:
        """The newest complete step, None without any. Waits for a save in progress."""
        self.wait()
        return max(self._manager.all_steps(), default=None)

    def wait(self) -> None:
        """Waits for the save in progress, if any. Raises CheckpointError if it failed."""
        with self._failures("writing a checkpoint"):
            self._manager.wait_until_finished()
        self._empty_trash()
        if self._failed:
            self._remove_unfinished()

    def close(self) -> None:
        """Waits, then frees the threads. Raises CheckpointError if the last save failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except (CheckpointError, StorageLost) as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the first error is the one to raise

    def _kept(self, steps: Sequence[int]) -> set[int | None]:
        return {*sorted(steps)[-self.keep :], reading.best_of({step: self._scores[step] for step in steps})}

    def _require_space(self, step: int, state: Any) -> None:
        """Refuses a save that cannot fit before a byte is written; compression (5 to 10% of floats) is not counted."""
        if storage.is_remote(self.directory):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if processes.any_process(free < needed):
            raise CheckpointError(
                f"no space to save step {step} in {self.directory}: it needs {words.size(needed)} and "
                f"{words.size(free)} are free. {self._full_disk_cure()}"
            )

    def _full_disk_cure(self) -> str:
        steps = reading.saved_steps(self.directory)
        have = f"The checkpoints there ({steps}) are intact" if steps else "There is no older checkpoint"
        return f"Free space there or lower the number of checkpoints kept (now {self.keep}), then resume. {have}."

    @contextlib.contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        """Turns any failure into a CheckpointError and brings folder and lists back to the last complete step."""
        try:
            yield
        except (CheckpointError, StorageLost):
            raise
        except Exception as error:
            self._failed = True
            self._remove_unfinished()
            if jax.process_count() == 1:  # a collective otherwise, and the other processes may not have failed
                self._manager.reload()
            raise self._explained(doing, error) from error

    def _explained(self, doing: str, error: Exception) -> CheckpointError | StorageLost:
        if is_storage_lost(error):
            return StorageLost(
                f"{doing} in {self.directory} failed, the storage does not answer: {first_line(error)}. Complete "
                "checkpoints are untouched: resume"
            )
        if is_disk_full(error):
            return CheckpointError(f"{doing} failed: no space left in {self.directory}. {self._full_disk_cure()}")
        return CheckpointError(
            f"{doing} in {self.directory} failed: {first_line(error)}. Complete checkpoints are untouched: check that "
            "the directory is writable, then resume"
        )

    def _remove_unfinished(self) -> None:
        """Frees the space of a failed save. Its other threads may write on for a moment, so each `wait` asks again."""
        if jax.process_index() != 0:
            return
        for path in self.directory.iterdir():
            if ocp.utils.TMP_DIR_SUFFIX in path.name:
                with contextlib.suppress(OSError):
                    path.rmtree()

    def _empty_trash(self) -> None:
        trash = self.directory / _DELETED
        if storage.is_remote(trash):  # orbax deletes old steps there itself
            return
        if jax.process_index() == 0 and trash.exists():
            trash.rmtree()


class _LatestAndBest:
    """The orbax preservation policy that asks the Checkpointer."""

    def __init__(self, kept: Callable[[Sequence[int]], set[int | None]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = self._kept(steps)
        return [step in kept for step in steps]


def save_arrays(directory: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree of arrays that is no training state (converted weights). Raises CheckpointError."""
    quieten_orbax()
    folder = reading.as_folder(directory)
    try:
        with ocp.Checkpointer(HashedHandler()) as writer:
            writer.save(folder, args=HashedSave(tree), force=True)
    except Exception as error:
        raise CheckpointError(f"writing {folder} failed: {first_line(error)}; is there space?") from error
