"""Columns of a joint batch, on eight devices."""

import jax
import numpy as np

from irm_jax.objectives.rows import COMPARED, whole_columns
from irm_jax.parallel import mesh as mesh_lib


def columns(seed, blocks, rows, slots):
    """Numbers as a batch has them, beside a field that is no compared column."""
    rng = np.random.default_rng(seed)
    fields = {name: rng.integers(-(2**31), 2**31 - 1, (blocks, rows), np.int32) for name in COMPARED}
    fields["attributes"] = rng.integers(-1, 9, (blocks, rows, slots), np.int32)
    fields["valid"] = rng.random((blocks, rows)) < 0.5
    fields["image"] = rng.integers(0, 255, (blocks, rows, 4, 2, 3), np.uint8)
    return fields


def test_compared_columns_are_gathered_once_and_unchanged():
    batch = {"text": columns(0, 8, 3, 5), "visual": columns(1, 8, 2, 5)}
    batch["caption"] = {name: batch["visual"][name] for name in ("identity", "clothes", "valid", "image")}
    mesh = mesh_lib.make_mesh({"data": 4, "fsdp": 2, "model": 1}, jax.devices()[:8])
    with jax.set_mesh(mesh):
        compiled = jax.jit(whole_columns).lower(mesh_lib.to_global(batch, mesh_lib.batch_sharding(mesh))).compile()
        found = compiled(mesh_lib.to_global(batch, mesh_lib.batch_sharding(mesh)))
    assert compiled.as_text().count(" all-gather(") == 1
    assert "all-reduce" not in compiled.as_text()
    assert jax.tree.structure(found) == jax.tree.structure(batch)
    for group, fields in batch.items():
        for name, field in fields.items():
            assert found[group][name].dtype == field.dtype
            np.testing.assert_array_equal(found[group][name], field, err_msg=name)
            assert found[group][name].sharding.is_fully_replicated == (name != "image")
