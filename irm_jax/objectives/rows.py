"""Rows of a joint batch: block arrays as flat rows, their weights in the loss, and means per task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from data_pipelines.tasks import TaskSpec
from irm_jax.models.irm import EDITED_GROUPS, EditedRows
from irm_jax.objectives.base import Batch, Metrics
from irm_jax.parallel import mesh as mesh_lib

Array = jax.Array
INSTRUCTION_KINDS = EDITED_GROUPS
"""Kinds of instructions, by number; each has its own running mean of instruction features."""
COMPARED = (
    "identity",
    "dataset",
    "task",
    "clothes",
    "modality",
    "valid",
    "attributes",
    "instruction",
    "instruction_key",
)
"""Columns of a batch that losses compare between any two rows."""


def flat(x: Array) -> Array:
    """[R, b, ...] -> [R*b, ...]."""
    return x.reshape(-1, *x.shape[2:])


def join(parts: Sequence[Array]) -> Array:
    """A field of several groups, [R, b_g, ...] each -> [R*B, ...] in the order of the rows."""
    return flat(jnp.concatenate([*parts], axis=1))


def joint_features(rows: EditedRows, which: slice) -> Array:
    """[R*b, 2D]: what retrieval compares, person and guided features side by side, of the rows `which` of a block."""
    return flat(jnp.concatenate([rows.person[:, which], rows.guided[:, which]], axis=-1))


def whole_columns(batch: Batch) -> Batch:
    """The batch with its compared columns [R, b] and [R, b, slots] whole on every device, by one collective.

    Left to the compiler, each comparison gathers its columns again: a hundred collectives of a few kilobytes.
    """
    names = [(group, name) for group, fields in batch.items() for name in COMPARED if name in fields]
    parts = [batch[group][name] for group, name in names]
    flattened = [part.reshape(part.shape[0], -1).astype(jnp.int32) for part in parts]
    stops = list(itertools.accumulate(part.shape[1] for part in flattened))
    gathered = jnp.split(mesh_lib.constrain_replicated(jnp.concatenate(flattened, axis=1)), stops[:-1], axis=1)
    whole: dict[str, dict[str, Array]] = {group: dict(fields) for group, fields in batch.items()}
    for (group, name), part, column in zip(names, parts, gathered, strict=True):
        whole[group][name] = column.reshape(part.shape).astype(part.dtype)
    return whole


def composed_columns(batch: Batch, names: Sequence[str]) -> dict[str, Array]:
    """Columns [C] of the composed rows: the named ones of the rows whose images they take, `valid` and `wanted`.

    `wanted` [C, slots] is what the other instruction names.
    """
    groups = [g for g in EDITED_GROUPS if g in batch and batch[g]["composed_row"].shape[1]]
    columns = {
        name: join([jnp.take_along_axis(batch[g][name], batch[g]["composed_row"], axis=1) for g in groups])
        for name in names
    }
    wanted = join([batch[g]["composed_attributes"] for g in groups])
    return {**columns, "valid": join([batch[g]["composed_valid"] for g in groups]), "wanted": wanted}


def row_weights(dataset: Array, valid: Array, data_set_weight: Sequence[float], total: float) -> Array:
    """f32[B]: weight of each row, so that a weighted sum is sum_d w_d * mean over rows of d / total."""
    weights = jnp.asarray(data_set_weight, jnp.float32)
    member = (dataset[:, None] == jnp.arange(len(data_set_weight))[None]) & valid[:, None]
    rows = jnp.maximum(jnp.sum(member, axis=0).astype(jnp.float32), 1.0)
    share = weights / (rows * jnp.float32(total))
    return jnp.sum(jnp.where(member, share[None], 0.0), axis=1)


def per_task(measured: Metrics, task: Array, valid: Array, tasks: Sequence[TaskSpec]) -> Metrics:
    """Means over the valid rows of each task, named `task/measure`."""
    metrics = {}
    for spec in tasks:
        member = (task == spec.id) & valid
        rows = jnp.maximum(jnp.sum(member), 1)
        for key, value in measured.items():
            total = jnp.sum(jnp.where(member, value, jnp.zeros((), value.dtype)))
            metrics[f"{spec.name}/{key}"] = total / rows.astype(value.dtype)
    return metrics
