"""Saving checkpoints: exactness, retention, kills and full disks."""

from __future__ import annotations

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

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from small_state import State, abstract, assert_same

from irm_jax import checkpoint
from irm_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    StorageLost,
    read_metadata,
    restore_for_evaluation,
    saved_steps,
)
from irm_jax.errors import RetryError


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


def best(checkpointer: Checkpointer) -> int:
    """The step that readers call the best, once the save in progress is complete."""
    checkpointer.wait()
    return read_metadata(checkpointer.directory, "best")[0]


@pytest.mark.parametrize("async_", [True, False])
def test_keeps_the_newest_and_the_best(tmp_path: Path, states: list[State], async_: bool) -> None:
    scores = {0: 0.2, 1: 0.9, 2: None, 3: float("nan"), 4: 0.3, 5: 0.4}
    expected = {0: [0], 1: [0, 1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 3, 4], 5: [1, 4, 5]}
    with Checkpointer(tmp_path, keep=2, best_metric="mAP", async_=async_) as checkpointer:
        for step, score in scores.items():
            checkpointer.save(step, states[step], {"metrics": {} if score is None else {"mAP": score}})
            checkpointer.wait()
            assert saved_steps(tmp_path) == expected[step]
            assert best(checkpointer) == (0 if step == 0 else 1)
            assert checkpointer.latest_step() == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4", "5"]
    # A new process learns the scores from the files; a newer best one takes the old one's place.
    with Checkpointer(tmp_path, keep=2, best_metric="mAP", async_=async_) as checkpointer:
        assert best(checkpointer) == 1
        checkpointer.save(6, states[0], {"metrics": {"mAP": 0.95}})
        assert best(checkpointer) == 6
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
        assert best(checkpointer) == 1
    assert saved_steps(tmp_path) == [1, 3]
    assert read_metadata(tmp_path, "best") == (1, {"config": {"model": "tiny"}, "metrics": {"mAP": 0.5}})
    with Checkpointer(tmp_path, keep=1, best_metric="mAP") as again:
        assert best(again) == 1


def test_the_newer_of_equals_is_the_best(tmp_path: Path, mesh: Mesh, states: list[State]) -> None:
    with Checkpointer(tmp_path, keep=1, best_metric="mAP") as checkpointer:
        for step, score in enumerate([0.3, 0.9, 0.9, 0.5, 0.4]):
            checkpointer.save(step, states[step], {"metrics": {"mAP": score}})
        assert best(checkpointer) == 2
        state, metadata = checkpointer.restore(abstract(mesh), "best")
    assert saved_steps(tmp_path) == [2, 4]
    assert_same(state, states[2])
    assert metadata == {"metrics": {"mAP": 0.9}}


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
        # A thread of the failed save that writes once more: its folder goes too, and with space the same run goes on.
        (folder / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-o", "remount,size=64m", tmpfs], check=True)
        checkpointer.save(3, states[3], {})
    assert [path.name for path in folder.iterdir()] == ["3"]
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


@pytest.mark.parametrize(
    "error", [TimeoutError("timed out"), ValueError("UNAVAILABLE: the service is down [source locations='...']")]
)
def test_storage_that_does_not_answer_is_worth_another_start(
    tmp_path: Path, states: list[State], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("saving failed") from error

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, states[1], {})
        with monkeypatch.context() as patch:
            patch.setattr(checkpointer._manager, "save", fail)
            with pytest.raises(StorageLost, match=r"saving step 2 in .* failed, the storage does not answer") as caught:
                checkpointer.save(2, states[2], {})
        assert isinstance(caught.value, RetryError)
        assert not isinstance(caught.value, CheckpointError)  # whose status 2 no launcher tries again
        assert saved_steps(tmp_path) == [1]
        assert checkpointer.save(2, states[2], {})


def test_orbax_stays_quiet(tmp_path: Path, mesh: Mesh, states: list[State], caplog: pytest.LogCaptureFixture) -> None:
    """Even at verbosity INFO, which a training run may choose for its own messages."""
    caplog.set_level(python_logging.INFO, logger="absl")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, states[1], {})
        checkpointer.save(2, states[2], {})
        checkpointer.restore(abstract(mesh))
    logging.info("our own message")
    assert [record.message for record in caplog.records] == ["our own message"]
