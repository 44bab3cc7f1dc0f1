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
class Entries:
    """What IRM++ keeps of every row: `key` [..., 2D] unit rows and `instruction` [..., D] unit rows of the momentum
    model's instruction features, centred when they were made, both of the key dtype; `identity`, `dataset`, `task`,
    `kind` i32[...]: identity -1 is an empty slot, kind -1 an entry without an instruction of its own."""

    key: Array
    instruction: Array
    identity: Array
    dataset: Array
    task: Array
    kind: Array


@struct.dataclass
class CaptionKeys:
    """What the queue of the text-to-image contrast keeps of every caption row (method section 6): `image`, `text`
    [..., P] unit rows of the momentum model's projections, `identity` i32[...], -1 in an empty slot, `clothes` i32[...]
    the outfit, numbered a person, -1 unknown."""

    image: Array
    text: Array
    identity: Array
    clothes: Array


@struct.dataclass
class MemoryBank:
    """Entries in R x b lanes of S slots, and `pushes` i32[]: batches written so far; the next goes to slot pushes % S.

    `entries`: `Entries` or `CaptionKeys`, every field [R, b, S, ...].
    """

    entries: Any
    pushes: Array

    @property
    def lanes(self) -> tuple[int, int, int]:
        """(R, b, S)."""
        return self.entries.identity.shape


def entry_spec(key_width: int, instruction_width: int, dtype: jnp.dtype) -> Entries:
    """Shape and dtype of one entry of IRM++'s bank, for `create`."""
    number = _leaf((), jnp.int32)
    return Entries(_leaf((key_width,), dtype), _leaf((instruction_width,), dtype), number, number, number, number)


def caption_spec(width: int, dtype: jnp.dtype) -> CaptionKeys:
    """Shape and dtype of one entry of the caption queue, for `create`."""
    number = _leaf((), jnp.int32)
    return CaptionKeys(_leaf((width,), dtype), _leaf((width,), dtype), number, number)


def _leaf(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def slots(size: int, blocks: int, rows: int) -> int:
    """S: slots of a lane so that at least `size` entries fit into blocks * rows lanes."""
    return math.ceil(size / (blocks * rows))


def create(spec: Any, size: int, blocks: int, rows: int) -> MemoryBank:
    """An empty bank of at least `size` entries of the given shapes, for batches of `blocks` blocks of `rows` rows."""
    lanes = (blocks, rows, slots(size, blocks, rows))
    # One array a field: a donated state must not hold an array twice.
    fields = jax.tree.map(lambda leaf: jnp.full((*lanes, *leaf.shape), _blank(leaf.dtype), leaf.dtype), spec)
    return MemoryBank(fields, jnp.zeros((), jnp.int32))


def push(bank: MemoryBank, new: Any, after: Array | None = None) -> MemoryBank:
    """Writes a batch of R * b entries, in row order, over the oldest slot of their lanes. No collective.

    `after`: a number that was computed from the bank. The write then waits for it and happens in place; otherwise the
    compiler, which orders reads and writes by dependency alone, copies the whole bank first (577 MiB at paper scale).
    """
    blocks, rows, count = bank.lanes
    slot = bank.pushes % count
    if after is not None:  # not a number: no slot matters any more
        slot = (slot + jnp.isnan(after).astype(jnp.int32)) % count

    def write(field: Array, values: Array) -> Array:
        lanes = values.reshape(blocks, rows, 1, *values.shape[1:]).astype(field.dtype)
        return jax.lax.dynamic_update_slice_in_dim(field, lanes, slot, axis=2)

    return MemoryBank(jax.tree.map(write, bank.entries, new), bank.pushes + 1)


def flat(bank: MemoryBank) -> Any:
    """All slots as entries in rows [R*b*S, ...], cut over the data axes as the bank is (the reshape moves nothing)."""
    return jax.tree.map(lambda field: field.reshape(-1, *field.shape[3:]), bank.entries)


def full_share(bank: MemoryBank, ramp_pushes: int) -> Array:
    """f32[]: 0 until every slot is written, then rising to 1 over `ramp_pushes` batches (at once for 0)."""
    since = (bank.pushes - bank.lanes[2] + 1).astype(jnp.float32)
    return jnp.clip(since / max(ramp_pushes, 1), 0.0, 1.0)


def relay(bank: MemoryBank, lanes: tuple[int, int, int]) -> MemoryBank:
    """The entries of a bank in other lanes (R, b, S): the newest that fit, oldest first. Takes and gives host arrays.

    For another batch or size. The entries of one old batch keep their order, but no longer lie where its rows are
    computed now, which is all the same to the loss.
    """
    old = jax.tree.map(np.asarray, bank)
    count, written = old.lanes[2], int(old.pushes)
    slot_order = [push % count for push in range(max(written - count, 0), written)]

    def sequence(field: Any) -> Any:
        """[R, b, S, ...] -> entries in the order in which they were written."""
        return np.moveaxis(field[:, :, slot_order], 2, 0).reshape(-1, *field.shape[3:])

    filled = np.flatnonzero(sequence(old.entries.identity) != EMPTY)
    rows = lanes[0] * lanes[1]
    kept = filled[max(len(filled) - rows * lanes[2], 0) :]
    batches = math.ceil(len(kept) / rows)
    empty_rows = batches * rows - len(kept)  # of the oldest batch

    def laid(field: Any) -> Any:
        shape, blank = field.shape[3:], _blank(field.dtype)
        out = np.full((*lanes, *shape), blank, field.dtype)
        if batches:
            values = np.concatenate([np.full((empty_rows, *shape), blank, field.dtype), sequence(field)[kept]])
            out[:, :, :batches] = np.moveaxis(values.reshape(batches, *lanes[:2], *shape), 0, 2)
        return out

    pushes: Any = np.asarray(batches, np.int32)
    return MemoryBank(jax.tree.map(laid, old.entries), pushes)


def _blank(dtype: Any) -> int:
    """What an empty slot holds: no number, or a key of zeros."""
    return EMPTY if jnp.issubdtype(dtype, jnp.integer) else 0
