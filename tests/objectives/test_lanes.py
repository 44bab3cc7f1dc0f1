"""Lanes of keys: first in first out, laid out anew, how full they are; and the momentum model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.objectives import lanes
from irm_jax.objectives.lanes import EMPTY, MomentumKeys
from irm_jax.training import momentum

BLOCKS, ROWS, WIDTH, INSTRUCTION = 4, 3, 2, 5


def batch(number):
    """Entry i of batch `number` has identity 100 * number + i, and a key that says so."""
    identity = 100 * number + np.arange(BLOCKS * ROWS)
    ints = jnp.asarray(identity, jnp.int32)
    return MomentumKeys(
        key=jnp.asarray(np.stack([identity, -identity], 1), jnp.float32),
        instruction=jnp.asarray(np.repeat(identity[:, None], INSTRUCTION, 1), jnp.float32),
        identity=ints, dataset=ints + 1, task=ints + 2, kind=ints + 3,
    )  # fmt: skip


def filled(pushes, size=BLOCKS * ROWS * 3):
    bank = lanes.create(MomentumKeys.spec(WIDTH, INSTRUCTION, jnp.float32), size, BLOCKS, ROWS)
    for number in range(pushes):
        bank = lanes.push(bank, batch(number))
    return bank


def check_fields(bank):
    """Every filled slot still holds one entry, not a mixture."""
    found = jax.tree.map(np.asarray, bank.entries)
    full = found.identity != EMPTY
    identity = found.identity[full]
    for name, offset in (("dataset", 1), ("task", 2), ("kind", 3)):
        np.testing.assert_array_equal(getattr(found, name)[full], identity + offset)
    np.testing.assert_array_equal(found.key[full][:, 0], identity)
    np.testing.assert_array_equal(found.instruction[full][:, -1], identity)


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (12, 1), (13, 2), (36, 3)])
def test_slots_hold_at_least_the_size(size, expected):
    assert lanes.slots(size, BLOCKS, ROWS) == expected


def test_a_row_writes_into_its_own_lane_over_the_oldest():
    bank = filled(5)
    for block in range(BLOCKS):
        for row in range(ROWS):
            found = np.asarray(bank.entries.identity[block, row])
            np.testing.assert_array_equal(
                found, [300 + block * ROWS + row, 400 + block * ROWS + row, 200 + block * ROWS + row]
            )
    assert int(bank.pushes) == 5
    check_fields(bank)


def test_entries_are_all_slots_as_rows():
    bank = filled(2)
    flat = lanes.flat(bank)
    assert flat.key.shape == (BLOCKS * ROWS * 3, WIDTH)
    assert sorted(np.asarray(flat.identity)[np.asarray(flat.identity) >= 0]) == [*range(12), *range(100, 112)]
    np.testing.assert_array_equal(np.asarray(flat.key)[np.asarray(flat.identity) < 0], 0)


def test_soft_supervision_waits_until_the_bank_is_full():
    shares = [float(lanes.full_share(filled(n), 4)) for n in range(8)]
    assert shares == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [float(lanes.full_share(filled(n), 0)) for n in (2, 3)] == [0, 1]


@pytest.mark.parametrize("pushes", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(4, 3, 3), (2, 2, 5), (8, 3, 1), (1, 1, 4), (4, 3, 9)])
def test_a_new_layout_keeps_the_newest_in_order(pushes, shape):
    laid = lanes.relayout(filled(pushes), shape)
    assert laid.entries.identity.shape == shape
    check_fields(laid)
    room = int(np.prod(shape))
    written = [100 * n + i for n in range(max(pushes - 3, 0), pushes) for i in range(BLOCKS * ROWS)]
    order = np.moveaxis(laid.entries.identity[:, :, : int(laid.pushes)], 2, 0).ravel()
    np.testing.assert_array_equal(order[order >= 0], written[max(len(written) - room, 0) :])
    # The next batches go where the oldest lie, or where nothing does.
    slot = int(laid.pushes) % shape[2]
    assert int(laid.pushes) in (shape[2], 0) or np.all(laid.entries.identity[:, :, slot] == EMPTY)


def test_the_same_layout_changes_no_key():
    bank = filled(4)
    laid = lanes.relayout(bank, (BLOCKS, ROWS, 3))
    for name in ("key", "instruction", "identity", "dataset", "task", "kind"):
        before, after = (np.asarray(getattr(b.entries, name)).reshape(36, -1) for b in (bank, laid))
        np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))


def test_key_dtype_is_the_banks():
    bank = lanes.create(MomentumKeys.spec(WIDTH, INSTRUCTION, jnp.bfloat16), 12, BLOCKS, ROWS)
    assert lanes.push(bank, batch(1)).entries.key.dtype == jnp.bfloat16


def test_a_push_has_no_collective():
    """Read from the compiled program on eight devices, the rows cut as the batch is."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    bank = jax.eval_shape(lambda: lanes.create(MomentumKeys.spec(WIDTH, INSTRUCTION, jnp.float32), 96, 8, 3))
    ints = jax.ShapeDtypeStruct((24,), jnp.int32)
    new = MomentumKeys(
        jax.ShapeDtypeStruct((24, WIDTH), jnp.float32), jax.ShapeDtypeStruct((24, INSTRUCTION), jnp.float32),
        ints, ints, ints, ints,
    )  # fmt: skip
    where = jax.tree.map(lambda leaf: rows if leaf.ndim else whole, bank)
    compiled = (
        jax.jit(
            lanes.push,
            in_shardings=(where, jax.tree.map(lambda _: rows, new)),
            out_shardings=where,
            donate_argnums=0,
        )
        .lower(bank, new)
        .compile()
    )
    text = compiled.as_text()
    assert "dynamic-update-slice" in text
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"):
        assert collective not in text


def test_the_momentum_model_by_hand():
    """.75 of what it was and .25 of the parameters, in its own type, without the heads."""
    params = {"encoder": {"w": jnp.asarray([1.0, 4.0])}, "head_person": jnp.ones(3)}
    start = momentum.start(params)
    assert start.keys() == {"encoder"}
    moved = momentum.update(start, {**params, "encoder": {"w": jnp.asarray([3.0, 0.0])}}, 0.75)
    np.testing.assert_array_equal(moved["encoder"]["w"], [1.5, 3.0])
