"""Checkpoints: the training state and a metadata JSON, saved together; the only file that imports orbax.

Layout: `{directory}/{step}/state` (arrays) and `{directory}/{step}/metadata` (JSON). Orbax writes a step under a
temporary name and renames it once everything is on disk, so a folder called by a plain number is complete, and a killed
or failed save leaves only a temporary folder, which the next `Checkpointer` removes. An old step is renamed into
`.deleted` for the same reason; its files go at the next `save`, `wait` or `close`.

Which steps are kept: the `keep` newest, and beside them the best by `best_metric` (ties: the newer). A step saved
without that metric, or with a NaN, competes only by age. A step is deleted only after a newer one is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging as python_logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from data_pipelines.files import jsonable, write_atomically
from irm_jax.parallel import processes

StepChoice = int | Literal["latest", "best"] | None
Tree = TypeVar("Tree")

_STATE, _METADATA, _DELETED = "state", "metadata", ".deleted"
_FORMAT = 2
_LISTED = 10  # differences named in one error message


class CheckpointError(Exception):
    """A checkpoint cannot be saved, found or used; the message names the directory, the cause and the cure."""


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
        best_mode: Literal["max", "min"] = "max",
        async_: bool = True,
    ):
        """`keep` >= 1: see the module docstring. `async_`: `save` returns once the state is copied to host memory."""
        if keep < 1 or best_mode not in ("max", "min"):
            raise ValueError(f"keep must be at least 1 and best_mode 'max' or 'min', not {keep} and {best_mode!r}")
        _tame_orbax()
        self.directory = _folder(directory)
        self.keep, self.best_metric, self.best_mode = keep, best_metric, best_mode
        self._asynchronous = async_
        self._scores: dict[int, float | None] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(self._kept),
            enable_async_checkpointing=async_,
            cleanup_tmp_directories=True,
            todelete_subdir=_DELETED,
            single_host_load_and_broadcast=True,
        )
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            self._empty_trash()
        except Exception as error:
            raise self._explained("opening", error) from error
        for step in self._manager.all_steps():
            self._scores[step] = _score(_read_record(self.directory, step), best_metric)

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> bool:
        """Saves `state` (a pytree of arrays) and `metadata` (plain values) as one step; False if it is saved already.

        `metadata["metrics"]`, if there, maps names to numbers; `best_metric` is looked up in it. NaN and infinities
        become None. The state may be donated or changed as soon as this returns. A failure of the previous
        asynchronous save is raised here, or by `wait` or `close`. Raises CheckpointError (full disk, a step older than
        the newest one).
        """
        step = int(step)
        record = {
            "format": _FORMAT,
            "step": step,
            "best_metric": self.best_metric,
            "best_mode": self.best_mode,
            "metadata": jsonable(metadata),
        }
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
        self._scores[step] = _score(record, self.best_metric)  # the policy is asked within the next call
        with self._failures(f"saving step {step}"):
            items = {_STATE: ocp.args.StandardSave(state), _METADATA: ocp.args.JsonSave(record)}
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        if not self._asynchronous:
            self._empty_trash()
        return True

    def set_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a saved step its metrics, which count for `best` from now on. Raises CheckpointError."""
        self.wait()
        record = _read_record(self.directory, step)
        record["metadata"]["metrics"] = jsonable(metrics)
        if jax.process_index() == 0:
            with self._failures(f"writing the metrics of step {step}"):
                write_atomically(_record_file(self.directory, step), json.dumps(record))
        self._scores[step] = _score(record, self.best_metric)

    def metrics(self, step: int) -> dict[str, float]:
        """A saved step's metrics; empty if it was not given any."""
        return dict(_read_record(self.directory, step)["metadata"].get("metrics") or {})

    def restore(self, abstract_state: Tree, step: StepChoice = None) -> tuple[Tree, dict[str, Any]]:
        """Returns (state, metadata) of a step: a number, "best", or the latest (None).

        `abstract_state`: shapes, dtypes and *target* shardings (jax.ShapeDtypeStruct or arrays); the mesh may differ
        from the one that saved. Raises CheckpointError if the arrays are not exactly those of the checkpoint.
        """
        self.wait()
        return _restore(self.directory, abstract_state, step, partial=False, ignore=())

    def latest_step(self) -> int | None:
        """The newest complete step, None without any. Waits for a save in progress."""
        self.wait()
        return max(self._manager.all_steps(), default=None)

    def best_step(self) -> int | None:
        """The complete step with the best metric, None if no step has it. Waits for a save in progress."""
        self.wait()
        return self._best_of(self._manager.all_steps())

    def wait(self) -> None:
        """Waits for the save in progress, if any. Raises CheckpointError if it failed."""
        with self._failures("writing a checkpoint"):
            self._manager.wait_until_finished()
        self._empty_trash()

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
        except CheckpointError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # the first error is the one to raise

    def _best_of(self, steps: Sequence[int]) -> int | None:
        return _best({step: self._scores[step] for step in steps}, self.best_mode)

    def _kept(self, steps: Sequence[int]) -> set[int | None]:
        return {*sorted(steps)[-self.keep :], self._best_of(steps)}

    def _require_space(self, step: int, state: Any) -> None:
        """Refuses a save that cannot fit before a byte is written; compression (5 to 10% of floats) is not counted."""
        if "://" in str(self.directory):
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if processes.any_process(free < needed):
            raise CheckpointError(
                f"no space to save step {step} in {self.directory}: it needs {_size(needed)} and {_size(free)} are "
                f"free. {self._full_disk_cure()}"
            )

    def _full_disk_cure(self) -> str:
        steps = saved_steps(self.directory)
        have = f"The checkpoints there ({steps}) are intact" if steps else "There is no older checkpoint"
        return f"Free space there or lower the number of checkpoints kept (now {self.keep}), then resume. {have}."

    @contextlib.contextmanager
    def _failures(self, doing: str) -> Iterator[None]:
        """Turns any failure into a CheckpointError and brings folder and lists back to the last complete step."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            if jax.process_index() == 0:
                self._remove_unfinished()
            if jax.process_count() == 1:  # a collective otherwise, and the other processes may not have failed
                self._manager.reload()
            raise self._explained(doing, error) from error

    def _explained(self, doing: str, error: Exception) -> CheckpointError:
        if _is_disk_full(error):
            return CheckpointError(f"{doing} failed: no space left in {self.directory}. {self._full_disk_cure()}")
        return CheckpointError(
            f"{doing} in {self.directory} failed: {_first_line(error)}. Complete checkpoints are untouched: check that "
            "the directory is writable, then resume"
        )

    def _remove_unfinished(self) -> None:
        """Frees the space of a failed save; what other writer threads still add, the next opening removes."""
        for path in self.directory.iterdir():
            if ocp.utils.TMP_DIR_SUFFIX in path.name:
                with contextlib.suppress(OSError):
                    path.rmtree()

    def _empty_trash(self) -> None:
        trash = self.directory / _DELETED
        if "://" in str(trash):  # orbax deletes old steps there itself
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


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Complete steps in ascending order; [] if the directory does not exist. Safe while another process trains."""
    folder = _folder(directory)
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def read_metadata(directory: str | os.PathLike[str], step: StepChoice = None) -> tuple[int, dict[str, Any]]:
    """(step, metadata) of a step (a number, "best", or the latest) without reading any array.

    "best" goes by the metric and mode that the newest checkpoint was saved with. Raises CheckpointError.
    """
    _tame_orbax()
    folder = _folder(directory)
    chosen = _choose(folder, step)
    return chosen, _read_record(folder, chosen)["metadata"]


def array_shapes(directory: str | os.PathLike[str], step: StepChoice = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every saved array by its tree path ("params/head/kernel"), reading none of them."""
    _tame_orbax()
    folder = _folder(directory)
    return _saved_shapes(folder, _choose(folder, step))


def restore_for_evaluation(
    directory: str | os.PathLike[str],
    abstract_subset: Tree,
    step: StepChoice = None,
    *,
    ignore: Sequence[str] = (),
) -> tuple[Tree, dict[str, Any]]:
    """(subset, metadata) with only some parts of the state, say {"params": ..., "batch_stats": ...}, no others read.

    `abstract_subset` has top-level names of the saved state (a dict, or the state's class with None in the other
    fields) and must hold every array below them, except those whose path starts with one of `ignore` ("params/heads").
    A leaf without a sharding goes to the first local device. Writes nothing: safe while another process trains.
    Raises CheckpointError as `Checkpointer.restore`.
    """
    _tame_orbax()
    return _restore(_folder(directory), abstract_subset, step, partial=True, ignore=tuple(ignore))


def save_arrays(directory: str | os.PathLike[str], tree: Any) -> None:
    """Writes a tree of arrays that is no training state (converted weights). Raises CheckpointError."""
    _tame_orbax()
    folder = _folder(directory)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
            writer.save(folder, args=ocp.args.PyTreeSave(tree), force=True)
    except Exception as error:
        raise CheckpointError(f"writing {folder} failed: {_first_line(error)}; is there space?") from error


def load_arrays(directory: str | os.PathLike[str]) -> Any:
    """The tree that `save_arrays` wrote, as NumPy arrays on this host. Raises CheckpointError."""
    _tame_orbax()
    folder = _folder(directory)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            restore = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore))
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read, files are missing or damaged: {_first_line(error)}; write it again"
        ) from error


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises CheckpointError listing every differing key with both values; compares as JSON would store them."""
    lines = differences(saved, current)
    if lines:
        raise CheckpointError(
            f"the data plan changed since the checkpoint ({len(lines)} keys differ):\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nThe stream of batches would not continue: set these keys back, start in a new workdir, or go on with "
            "the new batches by --config.data.accept_changes"
        )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """["a.b[0]: checkpoint 1, now 2", ...]: the leaves in which two nested JSON values differ."""
    old, new = _flatten(jsonable(saved)), _flatten(jsonable(current))
    keys = [key for key in sorted({*old, *new}) if old.get(key, "absent") != new.get(key, "absent")]
    return [f"{key}: checkpoint {old.get(key, 'absent')}, now {new.get(key, 'absent')}" for key in keys]


def _flatten(value: Any, path: str = "") -> dict[str, str]:
    """Nested JSON values -> {"a.b[0]": text of the leaf}; empty containers are leaves."""
    if isinstance(value, dict) and value:
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    else:
        return {path: json.dumps(value)}
    return {key: leaf for name, item in items for key, leaf in _flatten(item, name).items()}


def _restore(
    folder: epath.Path, abstract: Tree, step: StepChoice, *, partial: bool, ignore: tuple[str, ...]
) -> tuple[Tree, dict[str, Any]]:
    chosen = _choose(folder, step)
    metadata = _read_record(folder, chosen)["metadata"]
    target = jax.tree.map(lambda leaf: _target(leaf, partial), abstract)
    _check_arrays(folder, chosen, target, partial, ignore)
    # Orbax takes a None for a part of the tree: of a partial target only the fields that hold arrays are asked for.
    fields, structure = jax.tree_util.tree_flatten_with_path(target, is_leaf=lambda node: node is not target)
    item = {_path(path): field for path, field in fields if jax.tree.leaves(field)} if partial else target
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(folder / str(chosen) / _STATE, args=args)
    except Exception as error:
        raise _unreadable(folder, chosen, error) from error
    if partial:
        restored = jax.tree.unflatten(structure, [restored.get(_path(path), field) for path, field in fields])
    return restored, metadata


def _target(leaf: Any, default_device: bool) -> jax.ShapeDtypeStruct:
    placement = getattr(leaf, "sharding", None)
    if placement is None:
        if not default_device:
            raise ValueError("abstract_state needs a sharding on every leaf: where the arrays shall go")
        placement = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)


def _check_arrays(folder: epath.Path, step: int, target: Any, partial: bool, ignore: tuple[str, ...]) -> None:
    """Compares paths, shapes and dtypes; raises CheckpointError naming each difference (the first ones of many)."""
    expected = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    saved = _saved_shapes(folder, step)
    if partial:
        parts = {path.partition("/")[0] for path in expected}
        saved = {
            path: leaf
            for path, leaf in saved.items()
            if path in expected or (path.partition("/")[0] in parts and not path.startswith(ignore))
        }
    lines = []
    for path in sorted({*expected, *saved}):
        there, here = _describe(saved.get(path)), _describe(expected.get(path))
        if there is None:
            lines.append(f"  {path}: expected {here}, missing in the checkpoint")
        elif here is None:
            lines.append(f"  {path}: saved {there}, unknown to this model")
        elif there != here:
            lines.append(f"  {path}: saved {there}, expected {here}")
    if lines:
        more = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        raise CheckpointError(
            f"step {step} in {folder} does not fit this model ({len(lines)} of {len(expected)} arrays differ):\n"
            + "\n".join([*lines[:_LISTED], *more])
            + "\nIs it a checkpoint of another preset? Use the config it was saved with (it is in the checkpoint's "
            "metadata), or another workdir"
        )


def _saved_shapes(folder: epath.Path, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(folder / str(step) / _STATE).tree
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_path(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    except Exception as error:
        raise _unreadable(folder, step, error) from error


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _describe(leaf: jax.ShapeDtypeStruct | None) -> str | None:
    return None if leaf is None else f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _record_file(folder: epath.Path, step: int) -> epath.Path:
    return folder / str(step) / _METADATA / _METADATA  # where Orbax's JSON handler puts it


def _read_record(folder: epath.Path, step: int) -> dict[str, Any]:
    path = folder / str(step) / _METADATA
    try:
        record = dict(ocp.JsonCheckpointHandler().restore(path))
    except (OSError, ValueError) as error:
        raise _unreadable(folder, step, error) from error
    if record.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path} has format {record.get('format')}, this code reads {_FORMAT}: use the irm_jax that wrote it"
        )
    return record


def _choose(folder: epath.Path, step: StepChoice) -> int:
    steps = saved_steps(folder)
    if not steps:
        raise CheckpointError(f"no complete checkpoint in {folder}: train first, or name the right workdir")
    if step in (None, "latest"):
        return steps[-1]
    if step == "best":
        record = _read_record(folder, steps[-1])
        scores = {saved: _score(_read_record(folder, saved), record["best_metric"]) for saved in steps}
        best = _best(scores, record["best_mode"])
        if best is None:
            raise CheckpointError(
                f"no checkpoint in {folder} was saved with the metric {record['best_metric']!r}: use the latest, or "
                f"one of the steps {steps}"
            )
        return best
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step!r} in {folder}: there are {steps}")
    return int(step)


def _score(record: Mapping[str, Any], metric: str | None) -> float | None:
    value = None if metric is None else (record["metadata"].get("metrics") or {}).get(metric)
    if value is not None and not isinstance(value, (int, float)):
        raise CheckpointError(
            f"the metric {metric!r} at step {record['step']} is no number: choose another best_metric"
        )
    return value


def _best(scores: Mapping[int, float | None], mode: str) -> int | None:
    sign = 1.0 if mode == "max" else -1.0
    ranked = {step: (sign * score, step) for step, score in scores.items() if score is not None}
    return max(ranked, key=ranked.__getitem__, default=None)


def _unreadable(folder: epath.Path, step: int, error: Exception) -> CheckpointError:
    others = [other for other in saved_steps(folder) if other != step]
    cure = f"use another step ({others}) or delete that one" if others else "there is no other, so start afresh"
    return CheckpointError(f"step {step} in {folder} cannot be read, files are missing or damaged: {cure}. Cause: "
                           f"{_first_line(error)}")  # fmt: skip


def _is_disk_full(error: BaseException | None) -> bool:
    """Tensorstore reports a full disk as a ValueError with the system's text; plain files as an OSError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 300 else text[:297] + "..."


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _folder(directory: str | os.PathLike[str]) -> epath.Path:
    text = os.fspath(directory)
    return epath.Path(text if "://" in text else os.path.abspath(text))


class _OrbaxFilter(python_logging.Filter):
    """Of orbax's log only warnings and errors, without tracebacks: each failure is raised as a CheckpointError too."""

    def filter(self, record: python_logging.LogRecord) -> bool:
        if _is_orbax(record.pathname):
            record.exc_info = record.exc_text = None
            return record.levelno >= python_logging.WARNING
        return True


_ORBAX_FILTER = _OrbaxFilter()


def _tame_orbax() -> None:
    """Keeps the message of a failed save or restore readable; process-wide, harmless to repeat.

    On a failure orbax abandons its other reads and writes: each would print a traceback of its own, when it reports to
    an event loop that is closed or when its coroutine is collected.
    """
    logging.get_absl_logger().addFilter(_ORBAX_FILTER)
    previous = sys.unraisablehook
    if getattr(previous, "knows_orbax", False):
        return

    def hook(unraisable: Any) -> None:
        error, code = unraisable.exc_value, getattr(unraisable.object, "cr_code", None)
        closed_loop = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not closed_loop and not (code is not None and _is_orbax(code.co_filename)):
            previous(unraisable)

    hook.knows_orbax = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _is_orbax(source_file: str) -> bool:
    return f"{os.sep}orbax{os.sep}" in source_file
