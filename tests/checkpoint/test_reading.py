"""Reading checkpoints: other meshes, parts of a state, what is missing or damaged."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_state import State, abstract, assert_same, build, mesh_of

from irm_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    array_shapes,
    read_metadata,
    restore_for_evaluation,
    saved_steps,
)


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (4, 2)])
def test_restores_into_another_mesh(saved: Path, states: list[State], shape: tuple[int, int]) -> None:
    target = abstract(mesh_of(*shape))
    state, _ = restore_for_evaluation(saved, target, 1)
    assert_same(state, states[1])
    with Checkpointer(saved) as checkpointer:
        again, _ = checkpointer.restore(target, 1)
    assert_same(again, states[1])
    jax.tree.map(lambda got, want: np.testing.assert_equal(got.sharding, want.sharding), again, target)


def test_readers_need_no_state_and_know_the_best(saved: Path) -> None:
    assert read_metadata(saved) == (
        2,
        {"metrics": {"mAP": 0.4}, "config": {"model": "tiny"}, "fingerprint": {}},
    )
    assert read_metadata(saved, "best")[0] == 1
    assert read_metadata(saved, "latest")[0] == 2
    shapes = array_shapes(saved)
    assert shapes["params/heads/kernel"] == jax.ShapeDtypeStruct((32, 24), jnp.float32)
    assert "opt_state/1/0/mu/encoder/bias" in shapes


def test_missing_checkpoints_are_named(saved: Path, tmp_path: Path, states: list[State]) -> None:
    assert saved_steps(tmp_path / "nowhere") == []
    with pytest.raises(CheckpointError, match=r"no complete checkpoint in .*nowhere"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9 in .*there are \[1, 2\]"):
        read_metadata(saved, 9)
    with Checkpointer(tmp_path, best_metric="mAP") as checkpointer:
        checkpointer.save(0, states[0], {})
    with pytest.raises(CheckpointError, match="metric 'mAP'"):
        read_metadata(tmp_path, "best")


def test_restore_for_evaluation_reads_only_what_is_asked(saved: Path, tmp_path: Path, states: list[State]) -> None:
    whole = abstract(mesh_of(2, 4))
    subset = {"params": whole.params, "batch_stats": whole.batch_stats, "instruction_mean": whole.instruction_mean}
    restored, metadata = restore_for_evaluation(saved, subset, "best")
    assert metadata["metrics"] == {"mAP": 0.5}
    assert_same(restored, {name: getattr(states[1], name) for name in subset})
    # The same in the state's own class, the other fields None; and without shardings, onto one device.
    fields, _ = restore_for_evaluation(saved, dataclasses.replace(whole, step=None, opt_state=None), 1)
    assert_same(fields, dataclasses.replace(states[1], step=None, opt_state=None))
    bare, _ = restore_for_evaluation(saved, jax.eval_shape(lambda: {"params": build(0).params}), 1)
    assert_same(bare, {"params": states[1].params})
    assert bare["params"]["heads"]["kernel"].devices() == {jax.local_devices()[0]}
    # Heads left out on purpose; forgotten ones are an error (another model would have other arrays there).
    encoder = {"params": {"encoder": whole.params["encoder"]}}
    part, _ = restore_for_evaluation(saved, encoder, 1, ignore=("params/heads",))
    assert_same(part, {"params": {"encoder": states[1].params["encoder"]}})
    with pytest.raises(CheckpointError, match=r"params/heads/kernel: saved float32\[32,24\], unknown to this model"):
        restore_for_evaluation(saved, encoder, 1)


def test_restore_for_evaluation_does_not_open_the_optimizer_state(tmp_path: Path, states: list[State]) -> None:
    """Damages the stored moments, hashed again: the parameters are still read, the whole state is not."""
    moments = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    big = dataclasses.replace(states[1], opt_state={"moments": jnp.asarray(moments)})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, big, {})
    largest = max((tmp_path / "1" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 4 : len(damaged) // 2] = bytes(len(damaged) // 2 - len(damaged) // 4)
    largest.write_bytes(bytes(damaged))
    state = tmp_path / "1" / "state"
    table = json.loads((state / "sha256.json").read_text())
    table["files"][str(largest.relative_to(state))] = hashlib.sha256(damaged).hexdigest()
    table["sha256"] = hashlib.sha256(json.dumps(table["files"], sort_keys=True).encode()).hexdigest()
    (state / "sha256.json").write_text(json.dumps(table))
    bare = jax.eval_shape(lambda: {"params": build(0).params, "batch_stats": build(0).batch_stats})
    restored, _ = restore_for_evaluation(tmp_path, bare)
    assert_same(restored, {"params": states[1].params, "batch_stats": states[1].batch_stats})
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), big)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match=r"step 1 in .* cannot be read, files are missing or damaged"),
    ):
        checkpointer.restore(whole)
    gc.collect()  # the reads that orbax gave up say nothing


def test_unreadable_metadata_is_named(tmp_path: Path, states: list[State]) -> None:
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, states[1], {})
        checkpointer.save(2, states[2], {})
    shutil.rmtree(tmp_path / "2" / "metadata")
    with pytest.raises(CheckpointError, match=r"step 2 in .* cannot be read.*use another step \(\[1\]\) or delete"):
        read_metadata(tmp_path)
    (tmp_path / "1" / "metadata" / "metadata").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99"):
        read_metadata(tmp_path, 1)
