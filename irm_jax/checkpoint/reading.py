"""Reading checkpoints: which steps there are, their metadata, and their arrays. Safe while another process trains.

Layout: `{directory}/{step}/state` (arrays) and `{directory}/{step}/metadata` (a JSON record). A folder called by a
plain number is complete, see `saving`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from data_pipelines.files import parse_json
from irm_jax.checkpoint import averages, comparing, hashes
from irm_jax.checkpoint.errors import CheckpointError, StorageLost, first_line, is_storage_lost, quieten_orbax

StepChoice = int | Literal["latest", "best"] | None
"""A step, the one with the best metric, or the newest (also None)."""
Tree = TypeVar("Tree")
STATE, METADATA = "state", "metadata"
FORMAT = 2
"""Of the record. What is added to its metadata needs no new format."""
HASHES, RECORD_HASH = "hashes", "record_hash"
"""Keys of a record: its step has hashes of its arrays (`hashes`), and the hash of the record without this key."""


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Complete steps in ascending order; [] if the directory does not exist."""
    folder = as_folder(directory)
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(folder))


def read_metadata(directory: str | os.PathLike[str], step: StepChoice = None) -> tuple[int, dict[str, Any]]:
    """Returns (step, metadata) without reading any array.

    "best" goes by the metric and mode that the newest checkpoint was saved with. Raises CheckpointError.
    """
    quieten_orbax()
    folder = as_folder(directory)
    chosen = choose_step(folder, step)
    return chosen, read_record(folder, chosen)["metadata"]


def array_shapes(directory: str | os.PathLike[str], step: StepChoice = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of every saved array by its path ("params/head/kernel"), reading none of them."""
    quieten_orbax()
    folder = as_folder(directory)
    return _saved_shapes(folder, choose_step(folder, step))


def restore_for_evaluation(
    directory: str | os.PathLike[str],
    abstract_subset: Tree,
    step: StepChoice = None,
    *,
    ignore: Sequence[str] = (),
) -> tuple[Tree, dict[str, Any]]:
    """Returns (subset, metadata) with some parts of the state, say {"params": ..., "batch_stats": ...}.

    `abstract_subset` has top-level names of the saved state (a dict, or the state's class with None in the other
    fields) and must hold every array below them, except those whose path starts with one of `ignore` ("params/heads").
    A leaf without a sharding goes to the first local device. No other array is read, but for a schedule-free optimizer:
    `params` are then the averages that it keeps, which are what is evaluated. Raises CheckpointError as `restore`.
    """
    quieten_orbax()
    folder = as_folder(directory)
    chosen = choose_step(folder, step)
    restored, metadata, saved = _restore(folder, abstract_subset, chosen, partial=True, ignore=tuple(ignore))
    prefix = averages.averages_prefix(saved)
    fields = restored if isinstance(restored, Mapping) else vars(restored)
    if prefix is None or fields.get("params") is None:
        return restored, metadata
    try:
        params = averages.read_averages(folder / str(chosen) / STATE, prefix, fields["params"])
    except Exception as error:
        raise _unreadable(folder, chosen, error) from error
    if isinstance(restored, Mapping):
        return {**restored, "params": params}, metadata  # type: ignore[return-value]
    return dataclasses.replace(restored, params=params), metadata  # type: ignore[type-var]


def load_arrays(directory: str | os.PathLike[str]) -> Any:
    """Returns the tree that `save_arrays` wrote, as NumPy arrays on this host.

    Raises CheckpointError, also if a file is not what was saved; earlier versions saved no hashes to tell by.
    """
    quieten_orbax()
    folder = as_folder(directory)
    try:
        if hashes.has(folder) and (problem := hashes.damaged(folder)):
            raise CheckpointError(f"{problem}: write it again")
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            return reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=arguments))
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read, files are missing or damaged: {first_line(error)}; write it again"
        ) from error


def restore(folder: epath.Path, abstract: Tree, step: StepChoice) -> tuple[Tree, dict[str, Any]]:
    """Returns (state, metadata). `abstract` has shapes, dtypes and target shardings.

    Raises CheckpointError if paths, shapes or dtypes differ from the checkpoint's, or if it cannot be read.
    """
    return _restore(folder, abstract, choose_step(folder, step))[:2]


def _restore(
    folder: epath.Path, abstract: Tree, chosen: int, *, partial: bool = False, ignore: tuple[str, ...] = ()
) -> tuple[Tree, dict[str, Any], dict[str, jax.ShapeDtypeStruct]]:
    """As `restore`, with the shapes of all saved arrays (`array_shapes`); `partial`: of some fields only."""
    record = read_record(folder, chosen)
    _check_hashes(folder, chosen, record)
    metadata = record["metadata"]
    target = jax.tree.map(lambda leaf: _target(leaf, partial), abstract)
    expected = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    every = saved = _saved_shapes(folder, chosen)
    if partial:
        parts = {path.partition("/")[0] for path in expected}
        saved = {
            path: leaf
            for path, leaf in every.items()
            if path in expected or (path.partition("/")[0] in parts and not path.startswith(ignore))
        }
    comparing.check_arrays(saved, expected, f"step {chosen} in {folder}")
    # Orbax takes a None for a part of the tree: of a partial target only the fields that hold arrays are passed on.
    fields, structure = jax.tree_util.tree_flatten_with_path(target, is_leaf=lambda node: node is not target)
    item = {_path(path): field for path, field in fields if jax.tree.leaves(field)} if partial else target
    arguments = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=partial)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restored = reader.restore(folder / str(chosen) / STATE, args=args)
    except Exception as error:
        raise _unreadable(folder, chosen, error) from error
    if partial:
        restored = jax.tree.unflatten(structure, [restored.get(_path(path), field) for path, field in fields])
    return restored, metadata, every


def _check_hashes(folder: epath.Path, step: int, record: Mapping[str, Any]) -> None:
    """Raises CheckpointError naming the first file of a step's arrays that is not what was saved."""
    if not record.get(HASHES):  # saved by an earlier version
        return
    try:
        problem = hashes.damaged(folder / str(step) / STATE)
    except Exception as error:
        raise _unreadable(folder, step, error) from error
    if problem:
        raise CheckpointError(f"step {step} in {folder} is damaged, {problem}: {_cure(folder, step)}")


def _target(leaf: Any, default_device: bool) -> jax.ShapeDtypeStruct:
    placement = getattr(leaf, "sharding", None)
    if placement is None:
        if not default_device:
            raise ValueError("abstract_state needs a sharding on every leaf: where the arrays shall go")
        placement = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)


def _saved_shapes(folder: epath.Path, step: int) -> dict[str, jax.ShapeDtypeStruct]:
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(folder / str(step) / STATE).tree
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {_path(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    except Exception as error:
        raise _unreadable(folder, step, error) from error


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def record_file(folder: epath.Path, step: int) -> epath.Path:
    """Where orbax's JSON handler puts the record of a step."""
    return folder / str(step) / METADATA / METADATA


def read_record(folder: epath.Path, step: int) -> dict[str, Any]:
    """Reads the record of a step: format, step, best_metric, metadata. Raises CheckpointError."""
    path = record_file(folder, step)
    try:
        record = parse_json(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError(f"{path} holds no record")
        if record.get("format") == FORMAT and record.get(RECORD_HASH, record_hash(record)) != record_hash(record):
            raise ValueError(f"{path} is not what was saved")
        missing = {"step", "best_metric", "metadata"} - record.keys()
        if record.get("format") == FORMAT and (missing or not isinstance(record["metadata"], dict)):
            raise ValueError(f"{path} lacks {', '.join(sorted(missing)) or 'metadata'}")
    except (OSError, ValueError) as error:
        raise _unreadable(folder, step, error) from error
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {record.get('format')}, this code reads {FORMAT}: use the irm_jax that wrote it"
        )
    return record


def record_hash(record: Mapping[str, Any]) -> str:
    """The SHA-256 of a record without its own hash, in hexadecimal digits."""
    rest = {key: value for key, value in record.items() if key != RECORD_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def choose_step(folder: epath.Path, step: StepChoice) -> int:
    """Resolves "best", "latest" and None to a step. Raises CheckpointError if there is no such checkpoint."""
    steps = saved_steps(folder)
    if not steps:
        raise CheckpointError(f"no complete checkpoint in {folder}: train first, or name the right workdir")
    if step in (None, "latest"):
        return steps[-1]
    if step == "best":
        record = read_record(folder, steps[-1])
        scores = {saved: score_of(read_record(folder, saved), record["best_metric"]) for saved in steps}
        best = best_of(scores)
        if best is None:
            raise CheckpointError(
                f"no checkpoint in {folder} was saved with the metric {record['best_metric']!r}: use the latest, or "
                f"one of the steps {steps}"
            )
        return best
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step!r} in {folder}: there are {steps}")
    return int(step)


def score_of(record: Mapping[str, Any], metric: str | None) -> float | None:
    """The value of a metric in a record; None if it was saved without it. Raises CheckpointError if it is no number."""
    metrics = record["metadata"].get("metrics") or {}
    value = metrics.get(metric) if metric is not None and isinstance(metrics, dict) else None
    if value is not None and not isinstance(value, (int, float)):
        raise CheckpointError(
            f"the metric {metric!r} at step {record['step']} is no number: choose another best_metric"
        )
    return value


def best_of(scores: Mapping[int, float | None]) -> int | None:
    """The step with the largest score, the newest of equals; None if no step has one."""
    ranked = {step: (score, step) for step, score in scores.items() if score is not None}
    return max(ranked, key=ranked.__getitem__, default=None)


def _unreadable(folder: epath.Path, step: int, error: Exception) -> CheckpointError | StorageLost:
    if is_storage_lost(error):
        return StorageLost(f"step {step} in {folder} cannot be read now: {first_line(error)}. Start again")
    return CheckpointError(
        f"step {step} in {folder} cannot be read, files are missing or damaged: {_cure(folder, step)}. "
        f"Cause: {first_line(error)}"
    )


def _cure(folder: epath.Path, step: int) -> str:
    others = [other for other in saved_steps(folder) if other != step]
    return f"use another step ({others}) or delete that one" if others else "there is no other, so start afresh"


def as_folder(directory: str | os.PathLike[str]) -> epath.Path:
    """An absolute path, or one on object storage."""
    text = os.fspath(directory)
    return epath.Path(text if "://" in text else os.path.abspath(text))
