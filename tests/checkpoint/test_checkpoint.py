"""Checkpoints: exactness, retention, mismatches, kills and full disks, on a small made-up state over eight devices."""

from __future__ import annotations

import dataclasses
import gc
import logging as python_logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from irm_jax import checkpoint
from irm_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    array_shapes,
    check_fingerprint,
    read_metadata,
    restore_for_evaluation,
    saved_steps,
)


@struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    instruction_mean: Any
    opt_state: Any


def mesh_of(data: int, fsdp: int) -> Mesh:
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def optimizer() -> optax.GradientTransformation:
    """Masked decay and clipping, as in training: their states hold empty nodes."""
    mask = {"encoder": {"kernel": True, "bias": False}, "heads": {"kernel": True}}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mask=mask))


def build(seed: jax.Array | int, width: int = 32) -> State:
    def draw(number: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape)

    params = {
        "encoder": {"kernel": draw(0, 16, width), "bias": draw(1, width)},
        "heads": {"kernel": draw(2, width, 24)},
    }
    opt_state = jax.tree.map(lambda x: x + jnp.ones_like(x), optimizer().init(params))
    return State(jnp.asarray(seed, jnp.int32), params, {"neck": {"mean": draw(3, width)}}, draw(4, 2, width), opt_state)


def abstract(mesh: Mesh, width: int = 32) -> State:
    shapes = jax.eval_shape(lambda: build(0, width))

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = P(None, "fsdp") if len(leaf.shape) == 2 and leaf.shape[0] > 2 else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)


def assert_same(left: Any, right: Any) -> None:
    assert str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(2, 4)


@pytest.fixture(scope="module")
def states(mesh: Mesh) -> list[State]:
    create = jax.jit(build, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract(mesh)))
    return [create(jnp.int32(seed)) for seed in range(6)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, states: list[State]) -> Path:
    """A directory with steps 1 and 2 for tests that only read."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpointer(folder, keep=5, best_metric="mAP") as checkpointer:
        checkpointer.save(1, states[1], {"metrics": {"mAP": 0.5}, "config": {"model": "tiny"}, "fingerprint": {}})
        checkpointer.save(2, states[2], {"metrics": {"mAP": 0.4}, "config": {"model": "tiny"}, "fingerprint": {}})
    return folder


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 7 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("a full disk needs a small tmpfs, and there is no mount command")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a full disk needs a small tmpfs, and mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_state_and_metadata_come_back_exactly(tmp_path: Path, mesh: Mesh, states: list[State]) -> None:
    metadata = {
        "fingerprint": {"units": [{"dataset": "a", "share": 0.5}]},
        "config": {"size": (128, 64), "rate": np.float64(0.25)},
        "metrics": {"mAP": 0.5, "broken": float("nan")},
    }
    with Checkpointer(tmp_path / "run" / "checkpoints") as checkpointer:
        assert checkpointer.latest_step() is None
        assert checkpointer.best_step() is None
        assert checkpointer.save(7, states[1], metadata)
        state, read = checkpointer.restore(abstract(mesh))
        assert checkpointer.latest_step() == 7
    assert_same(state, states[1])
    same = jax.tree.map(lambda got, want: want.sharding.is_equivalent_to(got.sharding, got.ndim), state, states[1])
    assert all(jax.tree.leaves(same))
    assert read == {
        "fingerprint": {"units": [{"dataset": "a", "share": 0.5}]},
        "config": {"size": [128, 64], "rate": 0.25},
        "metrics": {"mAP": 0.5, "broken": None},
    }
    assert saved_steps(tmp_path / "run" / "checkpoints") == [7]


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (4, 2)])
def test_restores_into_another_mesh(saved: Path, states: list[State], shape: tuple[int, int]) -> None:
    target = abstract(mesh_of(*shape))
    state, _ = restore_for_evaluation(saved, target, 1)
    assert_same(state, states[1])
    with Checkpointer(saved) as checkpointer:
        again, _ = checkpointer.restore(target, 1)
    assert_same(again, states[1])
    jax.tree.map(lambda got, want: np.testing.assert_equal(got.sharding, want.sharding), again, target)


def test_save_is_a_snapshot_of_a_state_that_is_donated_at_once(tmp_path: Path, mesh: Mesh, states: list[State]) -> None:
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones_like(x), s), donate_argnums=0)
    state = jax.tree.map(lambda x: x.copy(), states[3])
    with Checkpointer(tmp_path, keep=9) as checkpointer:
        for number in range(4):
            checkpointer.save(number, state, {})
            before = state
            state = step(state)
            assert before.params["encoder"]["kernel"].is_deleted()
        for number in range(4):
            restored, _ = checkpointer.restore(abstract(mesh), number)
            assert int(restored.step) == 3 + number
            expected = states[3].params["encoder"]["kernel"]
            for _ in range(number):
                expected = expected + jnp.ones_like(expected)
            np.testing.assert_array_equal(restored.params["encoder"]["kernel"], expected)


@pytest.mark.parametrize("async_", [True, False])
def test_keeps_the_newest_and_the_best(tmp_path: Path, states: list[State], async_: bool) -> None:
    scores = {0: 0.2, 1: 0.9, 2: None, 3: float("nan"), 4: 0.3, 5: 0.4}
    expected = {0: [0], 1: [0, 1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 3, 4], 5: [1, 4, 5]}
    with Checkpointer(tmp_path, keep=2, best_metric="mAP", async_=async_) as checkpointer:
        for step, score in scores.items():
            checkpointer.save(step, states[step], {"metrics": {} if score is None else {"mAP": score}})
            checkpointer.wait()
            assert saved_steps(tmp_path) == expected[step]
            assert checkpointer.best_step() == (0 if step == 0 else 1)
            assert checkpointer.latest_step() == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4", "5"]
    # A new process learns the scores from the files; a newer best one takes the old one's place.
    with Checkpointer(tmp_path, keep=2, best_metric="mAP", async_=async_) as checkpointer:
        assert checkpointer.best_step() == 1
        checkpointer.save(6, states[0], {"metrics": {"mAP": 0.95}})
        assert checkpointer.best_step() == 6
        assert saved_steps(tmp_path) == [5, 6]


def test_an_old_step_leaves_in_one_rename(tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the rename and the deletion of its files leaves nothing that looks like a checkpoint."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "_empty_trash", lambda self: None)
        with Checkpointer(tmp_path, keep=1) as checkpointer:
            checkpointer.save(1, states[1], {})
            checkpointer.save(2, states[2], {})
    assert (tmp_path / ".deleted" / "1" / "state" / "_METADATA").exists()
    assert saved_steps(tmp_path) == [2]
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert not (tmp_path / ".deleted").exists()
        assert checkpointer.latest_step() == 2


def test_metrics_can_follow_their_checkpoint(tmp_path: Path, states: list[State]) -> None:
    with Checkpointer(tmp_path, keep=1, best_metric="mAP") as checkpointer:
        for step, score in ((1, 0.5), (2, 0.4), (3, 0.3)):
            checkpointer.save(step, states[step], {"config": {"model": "tiny"}})
            checkpointer.set_metrics(step, {"mAP": score})
        assert checkpointer.best_step() == 1
    assert saved_steps(tmp_path) == [1, 3]
    assert read_metadata(tmp_path, "best") == (1, {"config": {"model": "tiny"}, "metrics": {"mAP": 0.5}})
    with Checkpointer(tmp_path, keep=1, best_metric="mAP") as again:
        assert again.best_step() == 1


def test_best_by_smallest_value_and_the_newer_of_equals(tmp_path: Path, mesh: Mesh, states: list[State]) -> None:
    with Checkpointer(tmp_path, keep=1, best_metric="loss", best_mode="min") as checkpointer:
        for step, loss in enumerate([3.0, 1.0, 1.0, 2.0, 2.5]):
            checkpointer.save(step, states[step], {"metrics": {"loss": loss}})
        assert checkpointer.best_step() == 2
        state, metadata = checkpointer.restore(abstract(mesh), "best")
    assert saved_steps(tmp_path) == [2, 4]
    assert_same(state, states[2])
    assert metadata == {"metrics": {"loss": 1.0}}


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
    """Damages the stored moments: the parameters are still read, the whole state is not."""
    moments = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    big = dataclasses.replace(states[1], opt_state={"moments": jnp.asarray(moments)})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, big, {})
    largest = max((tmp_path / "1" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 4 : len(damaged) // 2] = bytes(len(damaged) // 2 - len(damaged) // 4)
    largest.write_bytes(bytes(damaged))
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


def test_mismatches_name_path_and_both_shapes(saved: Path, mesh: Mesh) -> None:
    target = abstract(mesh)
    with Checkpointer(saved, keep=9) as checkpointer:
        with pytest.raises(CheckpointError) as caught:
            checkpointer.restore(abstract(mesh, width=64))
        message = str(caught.value)
        assert "params/encoder/kernel: saved float32[16,32], expected float32[16,64]" in message
        assert "11 of 13 arrays differ" in message
        assert "and 1 more" in message
        assert "another preset?" in message
        assert str(saved) in message

        more = {**target.params, "extra": {"bias": target.params["encoder"]["bias"]}}
        missing = dataclasses.replace(target, params=more)
        with pytest.raises(CheckpointError, match=r"params/extra/bias: expected float32\[32\], missing in the check"):
            checkpointer.restore(missing)
        fewer = dataclasses.replace(target, batch_stats={})
        with pytest.raises(CheckpointError, match=r"batch_stats/neck/mean: saved float32\[32\], unknown to this model"):
            checkpointer.restore(fewer)
        other = jax.ShapeDtypeStruct((), jnp.float32, sharding=target.step.sharding)
        with pytest.raises(CheckpointError, match=r"step: saved int32\[\], expected float32\[\]"):
            checkpointer.restore(dataclasses.replace(target, step=other))
        with pytest.raises(ValueError, match="needs a sharding"):
            checkpointer.restore(jax.eval_shape(lambda: build(0)))
        # Nothing is wrong with the checkpoint itself.
        assert int(checkpointer.restore(target)[0].step) == 2


def test_fingerprint_lists_every_differing_key() -> None:
    units = [{"dataset": "a", "share": 0.5}, {"dataset": "b"}]
    saved = {"units": units, "seed": 1, "old": {}, "blocks": 8}
    check_fingerprint(saved, {**saved, "units": tuple(units), "blocks": np.int64(8)})
    now = {"units": [{"dataset": "a", "share": 0.25}], "seed": 1, "new": None, "blocks": 8}
    with pytest.raises(CheckpointError) as caught:
        check_fingerprint(saved, now)
    listed = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert listed == [
        "  new: checkpoint absent, now null",
        "  old: checkpoint {}, now absent",
        "  units[0].share: checkpoint 0.5, now 0.25",
        '  units[1].dataset: checkpoint "b", now absent',
    ]


def test_refuses_what_it_cannot_save_well(tmp_path: Path, states: list[State]) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Checkpointer(tmp_path, keep=0)
    with Checkpointer(tmp_path, best_metric="mAP") as checkpointer:
        assert checkpointer.save(4, states[4], {})
        assert not checkpointer.save(4, states[4], {})
        with pytest.raises(CheckpointError, match=r"step 3 is older than the newest checkpoint \(4\)"):
            checkpointer.save(3, states[3], {})
        with pytest.raises(TypeError, match=r"config\.model has type object"):
            checkpointer.save(5, states[5], {"config": {"model": object()}})
        with pytest.raises(CheckpointError, match="'mAP' at step 5 is no number"):
            checkpointer.save(5, states[5], {"metrics": {"mAP": "high"}})
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match=r"opening in .*file.* failed"):
        Checkpointer(blocked / "checkpoints")


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


KILLED = """
import os, signal, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from irm_jax.checkpoint import Checkpointer

folder = Path(sys.argv[1])
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
layout = NamedSharding(mesh, P("data"))
draw = jax.jit(lambda key: {"w": jax.random.bits(key, (8, 2**23), "uint32")}, out_shardings=layout)  # 256 MiB
checkpointer = Checkpointer(folder, keep=1)
checkpointer.save(1, {"w": jnp.arange(8, dtype=jnp.uint32)}, {"metrics": {}})
checkpointer.wait()
state = draw(jax.random.key(0))
checkpointer.save(2, state, {"metrics": {}})
while not any(path.stat().st_size for path in folder.glob("2.*tmp*/state*/**/d/*")):
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_in_the_middle_of_a_save_leaves_the_last_complete_checkpoint(tmp_path: Path) -> None:
    # A restart that was itself killed while it deleted an old step.
    (tmp_path / ".deleted" / "0" / "state").mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    leftovers = [path for path in tmp_path.iterdir() if "tmp" in path.name]
    assert [path.name.split(".")[0] for path in leftovers] == ["2"]
    assert any(path.is_file() for path in leftovers[0].rglob("d/*"))
    assert saved_steps(tmp_path) == [1]

    bare = {"w": jax.ShapeDtypeStruct((8,), jnp.uint32)}
    restored, _ = restore_for_evaluation(tmp_path, bare)  # reads beside the leftovers, and leaves them
    np.testing.assert_array_equal(restored["w"], np.arange(8))
    assert leftovers[0].exists()
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        assert checkpointer.latest_step() == 1
        assert checkpointer.save(3, {"w": jnp.full(8, 3, jnp.uint32)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    restored, _ = restore_for_evaluation(tmp_path, bare)
    np.testing.assert_array_equal(restored["w"], np.full(8, 3))


@pytest.mark.parametrize("async_", [True, False])
def test_full_disk_is_a_clear_error_and_loses_nothing(
    tmpfs: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, async_: bool
) -> None:
    rng = np.random.default_rng(0)
    layout = NamedSharding(mesh, P("data", "fsdp"))

    def draw() -> dict[str, jax.Array]:  # 4 MiB of noise in many writes
        arrays = {str(number): rng.normal(size=(128, 512)).astype(np.float32) for number in range(16)}
        return jax.tree.map(lambda array: jax.device_put(array, layout), arrays)

    states = [draw() for _ in range(4)]
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), states[0])
    folder = tmpfs / "checkpoints"
    with Checkpointer(folder, keep=1, async_=async_) as checkpointer:
        checkpointer.save(1, states[1], {})
        checkpointer.wait()
        # Foreseen: refused before a byte is written.
        with pytest.raises(CheckpointError, match=r"no space to save step 2 in .*checkpoints: it needs 4\.0 MiB"):
            checkpointer.save(2, states[2], {})
        # Not foreseen (another process fills the disk meanwhile): the write fails in the middle.
        with monkeypatch.context() as patch:
            patch.setattr(Checkpointer, "_require_space", lambda self, step, state: None)

            def save_and_wait() -> None:
                checkpointer.save(2, states[2], {})
                checkpointer.wait()

            with pytest.raises(CheckpointError) as caught:
                save_and_wait()
        message = str(caught.value)
        assert f"no space left in {folder}" in message
        assert "Free space there" in message
        assert "checkpoints there ([1]) are intact" in message
        assert saved_steps(folder) == [1]
        assert checkpointer.latest_step() == 1
        assert_same(restore_for_evaluation(folder, bare)[0], states[1])
        # The failed save's space is free again; with enough of it the same run goes on.
        assert [path.name for path in folder.iterdir()] == ["1"]
        subprocess.run(["mount", "-o", "remount,size=64m", tmpfs], check=True)
        checkpointer.save(3, states[3], {})
    assert saved_steps(folder) == [3]
    assert_same(restore_for_evaluation(folder, bare)[0], states[3])
    assert [record.message for record in caplog.records if record.exc_info] == []
    gc.collect()


def test_failed_save_surfaces_at_close_but_never_hides_another_error(tmpfs: Path, mesh: Mesh) -> None:
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=2**22), jnp.float32)}  # 16 MiB

    def unforeseen(folder: Path) -> Checkpointer:
        checkpointer = Checkpointer(folder)
        checkpointer._require_space = lambda step, state: None  # type: ignore[method-assign]
        return checkpointer

    def run(error: Exception | None) -> None:
        with unforeseen(tmpfs / "checkpoints") as checkpointer:
            checkpointer.save(1, state, {})
            if error is not None:
                raise error

    with pytest.raises(CheckpointError, match="no space left"):
        run(None)
    with pytest.raises(KeyError, match="first"):
        run(KeyError("first"))


def test_orbax_stays_quiet(tmp_path: Path, mesh: Mesh, states: list[State], caplog: pytest.LogCaptureFixture) -> None:
    """Even at verbosity INFO, which a training run may choose for its own messages."""
    caplog.set_level(python_logging.INFO, logger="absl")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, states[1], {})
        checkpointer.save(2, states[2], {})
        checkpointer.restore(abstract(mesh))
    logging.info("our own message")
    assert [record.message for record in caplog.records] == ["our own message"]
