"""Lanes of momentum keys: past keys of the rows of a batch, first in first out, kept where the rows are computed.

Lanes follow the batch blocks: row (r, i) of every batch writes into lane (r, i). Axis 0 is cut over the data axes as
the batch is, so that a push moves nothing between devices and similarities are computed where the keys lie.

Layout: docs/method.md, "IRM++: memory bank".
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
"""The identity of an empty slot."""


@struct.dataclass
class MomentumKeys:
    """What the memory bank keeps of every row.

    Attributes:
        key: [..., 2D] unit rows, of the key dtype.
        instruction: [..., D] unit rows of the momentum model's instruction features, centred when they were made.
        identity: int32[...], -1 in an empty slot.
        dataset, task: int32[...].
        kind: int32[...], -1 for a row without an instruction of its own.
    """

    key: Array
    instruction: Array
    identity: Array
    dataset: Array
    task: Array
    kind: Array

    @classmethod
    def spec(cls, key_width: int, instruction_width: int, dtype: jnp.dtype) -> MomentumKeys:
        """Shape and dtype of one key, for `create`."""
        number = _leaf((), jnp.int32)
        return cls(_leaf((key_width,), dtype), _leaf((instruction_width,), dtype), number, number, number, number)


@struct.dataclass
class CaptionKeys:
    """What the queue of the text-to-image contrast keeps of every caption row.

    Attributes:
        image, text: [..., P] unit rows of the momentum model's projections, of the key dtype.
        identity: int32[...], -1 in an empty slot.
        clothes: int32[...], the outfit, numbered per person; -1 unknown.
    """

    image: Array
    text: Array
    identity: Array
    clothes: Array

    @classmethod
    def spec(cls, width: int, dtype: jnp.dtype) -> CaptionKeys:
        """Shape and dtype of one key, for `create`."""
        number = _leaf((), jnp.int32)
        return cls(_leaf((width,), dtype), _leaf((width,), dtype), number, number)


@struct.dataclass
class BankLanes:
    """Keys in R x b lanes of S slots.

    Attributes:
        entries: `MomentumKeys` or `CaptionKeys`, every field [R, b, S, ...].
        pushes: int32[], batches written so far; the next one goes to slot pushes % S.
    """

    entries: Any
    pushes: Array

    @property
    def lanes(self) -> tuple[int, int, int]:
        """(R, b, S)."""
        return self.entries.identity.shape


def _leaf(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def slots(size: int, blocks: int, rows: int) -> int:
    """Slots per lane so that at least `size` keys fit into blocks * rows lanes."""
    return math.ceil(size / (blocks * rows))


def create(spec: Any, size: int, blocks: int, rows: int) -> BankLanes:
    """Empty lanes for at least `size` keys like `spec`, for batches of `blocks` blocks of `rows` rows."""
    lanes = (blocks, rows, slots(size, blocks, rows))
    # One array per field: a donated state must not hold an array twice.
    fields = jax.tree.map(lambda leaf: jnp.full((*lanes, *leaf.shape), _blank(leaf.dtype), leaf.dtype), spec)
    return BankLanes(fields, jnp.zeros((), jnp.int32))


def push(bank: BankLanes, new: Any, after: Array | None = None) -> BankLanes:
    """Writes a batch of R * b keys, in the order of the rows, over the oldest slot of their lanes. No collective.

    Args:
        bank: the lanes.
        new: the keys, every field [R * b, ...].
        after: a number that was computed from the bank. The write then waits for it and happens in place. The compiler
            orders reads and writes by dependency alone, and would else copy the whole bank (577 MiB at paper scale).
    """
    blocks, rows, count = bank.lanes
    slot = bank.pushes % count
    if after is not None:  # a NaN may move the slot, since the run ends then
        slot = (slot + jnp.isnan(after).astype(jnp.int32)) % count

    def write(field: Array, values: Array) -> Array:
        lanes = values.reshape(blocks, rows, 1, *values.shape[1:]).astype(field.dtype)
        return jax.lax.dynamic_update_slice_in_dim(field, lanes, slot, axis=2)

    return BankLanes(jax.tree.map(write, bank.entries, new), bank.pushes + 1)


def flat(bank: BankLanes) -> Any:
    """All slots as keys in rows [R*b*S, ...], cut over the data axes as the lanes are: the reshape moves nothing."""
    return jax.tree.map(lambda field: field.reshape(-1, *field.shape[3:]), bank.entries)


def full_share(bank: BankLanes, ramp_pushes: int) -> Array:
    """float32[]: 0 until every slot is written, then rising to 1 over `ramp_pushes` batches (at once for 0)."""
    since = (bank.pushes - bank.lanes[2] + 1).astype(jnp.float32)
    return jnp.clip(since / max(ramp_pushes, 1), 0.0, 1.0)


def relayout(bank: BankLanes, lanes: tuple[int, int, int]) -> BankLanes:
    """Lays the keys out in other lanes (R, b, S), for another batch or size: the newest that fit, oldest first.

    Takes and gives host arrays. The keys of one old batch keep their order, but no longer lie where its rows would be
    computed now, which makes no difference to the loss.
    """
    old = jax.tree.map(np.asarray, bank)
    count, written = old.lanes[2], int(old.pushes)
    slot_order = [push % count for push in range(max(written - count, 0), written)]

    def sequence(field: Any) -> Any:
        """[R, b, S, ...] -> keys in the order in which they were written."""
        return np.moveaxis(field[:, :, slot_order], 2, 0).reshape(-1, *field.shape[3:])

    filled = np.flatnonzero(sequence(old.entries.identity) != EMPTY)
    rows = lanes[0] * lanes[1]
    kept = filled[max(len(filled) - rows * lanes[2], 0) :]
    batches = math.ceil(len(kept) / rows)
    empty_rows = batches * rows - len(kept)  # in the oldest batch

    def laid(field: Any) -> Any:
        shape, blank = field.shape[3:], _blank(field.dtype)
        out = np.full((*lanes, *shape), blank, field.dtype)
        if batches:
            values = np.concatenate([np.full((empty_rows, *shape), blank, field.dtype), sequence(field)[kept]])
            out[:, :, :batches] = np.moveaxis(values.reshape(batches, *lanes[:2], *shape), 0, 2)
        return out

    pushes: Any = np.asarray(batches, np.int32)
    return BankLanes(jax.tree.map(laid, old.entries), pushes)


def _blank(dtype: Any) -> int:
    """What an empty slot holds: -1 for a number, a key of zeros."""
    return EMPTY if jnp.issubdtype(dtype, jnp.integer) else 0
