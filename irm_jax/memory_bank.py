"""The memory bank of IRM++: past keys of the momentum model, first in first out, kept where the rows were computed.

The bank lies in lanes that follow the batch blocks: row (r, i) of every batch writes into lane (r, i). Axis 0 is cut
over the data axes as the batch is, so a push moves nothing between devices, and similarities are computed where the
entries lie. Layout and rules: method.md section 7 [ours].
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array
EMPTY = -1


@struct.dataclass
class MemoryBank:
    """Entries in R x b lanes of S slots.

    `key` [R, b, S, 2D] unit rows and `instruction` [R, b, S, D] unit rows of the momentum model's instruction features,
    centred when they were pushed, both of the key dtype. `identity`, `dataset`, `task`, `kind` i32[R, b, S]: identity
    -1 is an empty slot, kind -1 an entry without an instruction of its own. `pushes` i32[]: batches written so far;
    the next one goes to slot pushes % S.
    """

    key: Array
    instruction: Array
    identity: Array
    dataset: Array
    task: Array
    kind: Array
    pushes: Array


@struct.dataclass
class Entries:
    """Candidates of the bank's loss, one a row: the fields of `MemoryBank`, flat: [N, 2D], [N, D] and i32[N]."""

    key: Array
    instruction: Array
    identity: Array
    dataset: Array
    task: Array
    kind: Array


def slots(size: int, blocks: int, rows: int) -> int:
    """S: slots of a lane so that at least `size` entries fit into blocks * rows lanes."""
    return math.ceil(size / (blocks * rows))


def create(size: int, blocks: int, rows: int, key_width: int, instruction_width: int, dtype: jnp.dtype) -> MemoryBank:
    """An empty bank of at least `size` entries for batches of `blocks` blocks of `rows` rows."""
    lanes = (blocks, rows, slots(size, blocks, rows))
    # One array a field: a donated state must not hold an array twice.
    return MemoryBank(
        key=jnp.zeros((*lanes, key_width), dtype),
        instruction=jnp.zeros((*lanes, instruction_width), dtype),
        identity=jnp.full(lanes, EMPTY, jnp.int32),
        dataset=jnp.full(lanes, EMPTY, jnp.int32),
        task=jnp.full(lanes, EMPTY, jnp.int32),
        kind=jnp.full(lanes, EMPTY, jnp.int32),
        pushes=jnp.zeros((), jnp.int32),
    )


def push(bank: MemoryBank, entries: Entries) -> MemoryBank:
    """Writes a batch of R * b entries, in row order, over the oldest slot of their lanes. No collective."""
    blocks, rows, count = bank.identity.shape
    slot = bank.pushes % count

    def write(field: Array, new: Array) -> Array:
        lanes = new.reshape(blocks, rows, 1, *new.shape[1:]).astype(field.dtype)
        return jax.lax.dynamic_update_slice_in_dim(field, lanes, slot, axis=2)

    return MemoryBank(
        key=write(bank.key, entries.key),
        instruction=write(bank.instruction, entries.instruction),
        identity=write(bank.identity, entries.identity),
        dataset=write(bank.dataset, entries.dataset),
        task=write(bank.task, entries.task),
        kind=write(bank.kind, entries.kind),
        pushes=bank.pushes + 1,
    )


def entries(bank: MemoryBank) -> Entries:
    """All slots as rows [R*b*S, ...], cut over the data axes as the bank is (the reshape moves nothing)."""

    def flat(field: Array) -> Array:
        return field.reshape(-1, *field.shape[3:])

    return Entries(
        flat(bank.key), flat(bank.instruction), flat(bank.identity), flat(bank.dataset), flat(bank.task),
        flat(bank.kind),
    )  # fmt: skip


def full_share(bank: MemoryBank, ramp_pushes: int) -> Array:
    """f32[]: 0 until every slot is written, then rising to 1 over `ramp_pushes` batches (at once for 0)."""
    since = (bank.pushes - bank.identity.shape[2] + 1).astype(jnp.float32)
    return jnp.clip(since / max(ramp_pushes, 1), 0.0, 1.0)


def relay(bank: MemoryBank, lanes: tuple[int, int, int]) -> MemoryBank:
    """The entries of a bank in other lanes (R, b, S): the newest that fit, oldest first. Takes and gives host arrays.

    For another batch or size. The entries of one old batch keep their order, but no longer lie where its rows are
    computed now, which is all the same to the loss.
    """
    old = jax.tree.map(np.asarray, bank)
    count, written = old.identity.shape[2], int(old.pushes)
    slot_order = [push % count for push in range(max(written - count, 0), written)]

    def sequence(field: Any) -> Any:
        """[R, b, S, ...] -> entries in the order in which they were written."""
        return np.moveaxis(field[:, :, slot_order], 2, 0).reshape(-1, *field.shape[3:])

    filled = np.flatnonzero(sequence(old.identity) != EMPTY)
    rows = lanes[0] * lanes[1]
    kept = filled[max(len(filled) - rows * lanes[2], 0) :]
    batches = math.ceil(len(kept) / rows)
    empty_rows = batches * rows - len(kept)  # of the oldest batch

    def laid(field: Any, blank: int) -> Any:
        shape = field.shape[3:]
        out = np.full((*lanes, *shape), blank, field.dtype)
        if batches:
            values = np.concatenate([np.full((empty_rows, *shape), blank, field.dtype), sequence(field)[kept]])
            out[:, :, :batches] = np.moveaxis(values.reshape(batches, *lanes[:2], *shape), 0, 2)
        return out

    numbers = {name: laid(getattr(old, name), EMPTY) for name in ("identity", "dataset", "task", "kind")}
    pushes: Any = np.asarray(batches, np.int32)
    return MemoryBank(key=laid(old.key, 0), instruction=laid(old.instruction, 0), **numbers, pushes=pushes)
