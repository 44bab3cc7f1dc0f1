"""Hashes of a checkpoint's files: whatever changes after a save is named when the checkpoint is read."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from small_state import State, abstract, assert_same, build, mesh_of

from irm_jax.checkpoint import Checkpointer, CheckpointError, load_arrays, read_metadata, save_arrays
from irm_jax.checkpoint.hashes import FILE, LATER
from irm_jax.checkpoint.reading import restore_for_evaluation
from irm_jax.parallel import processes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpointer(folder, best_metric="m") as checkpointer:
        checkpointer.save(1, build(1), {"config": {"ö": [1.5, None]}})
        checkpointer.set_metrics(1, {"m": 0.1})
    return folder


def flip(path: Path, place: int = -1) -> bytes:
    """Flips one bit in the middle, and returns the content of before."""
    before = path.read_bytes()
    place = len(before) // 2 if place < 0 else place
    path.write_bytes(before[:place] + bytes([before[place] ^ 4]) + before[place + 1 :])
    return before


def contents(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in LATER]


def test_a_flipped_bit_anywhere_is_named(saved: Path) -> None:
    bare = jax.eval_shape(lambda: {"params": build(0).params, "batch_stats": build(0).batch_stats})
    files = contents(saved / "1" / "state")
    assert len(files) > 5
    for path in files:
        before = flip(path)
        for read in (lambda: restore_for_evaluation(saved, bare), lambda: restored(saved, mesh_of(2, 4))):
            with pytest.raises(CheckpointError, match=rf"step 1 in .*{path.name}.*start afresh"):
                read()
        path.write_bytes(before)
    for place in range(0, len((saved / "1" / "metadata" / "metadata").read_bytes()), 29):
        before = flip(saved / "1" / "metadata" / "metadata", place)
        with pytest.raises(CheckpointError, match=r"step 1 in .* cannot be read|format"):
            read_metadata(saved)
        (saved / "1" / "metadata" / "metadata").write_bytes(before)
    for name in LATER:  # nothing that is read depends on them
        if (path := saved / "1" / name).exists():
            path.write_text("{")
    assert_same(restored(saved, mesh_of(4, 2)), build(1))


def restored(folder: Path, mesh: jax.sharding.Mesh) -> State:
    with Checkpointer(folder, best_metric="m") as checkpointer:
        return checkpointer.restore(abstract(mesh))[0]


def test_a_missing_file_is_named_and_missing_hashes_too(saved: Path) -> None:
    for path in (max(contents(saved / "1" / "state"), key=lambda path: path.stat().st_size), saved / "1/state" / FILE):
        path.rename(path.with_name("away"))
        with pytest.raises(CheckpointError, match=rf"{path.name} is missing"):
            restored(saved, mesh_of(2, 4))
        path.with_name("away").rename(path)


def test_a_checkpoint_without_hashes_is_read(saved: Path) -> None:
    """Those of earlier versions have none, and no key that says so."""
    path = saved / "1" / "metadata" / "metadata"
    before = path.read_bytes()
    record = json.loads(before)
    path.write_text(json.dumps({key: value for key, value in record.items() if key not in ("hashes", "record_hash")}))
    hashes = (saved / "1" / "state" / FILE).read_bytes()
    (saved / "1" / "state" / FILE).unlink()
    assert_same(restored(saved, mesh_of(2, 4)), build(1))
    path.write_bytes(before)
    (saved / "1" / "state" / FILE).write_bytes(hashes)


def test_the_files_are_shared_among_processes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads its share, and the first damaged file of any is what all name."""
    from irm_jax.checkpoint import hashes

    state = saved / "1" / "state"
    names = [str(path.relative_to(state)) for path in contents(state) if path.name != FILE]
    damaged = names[3]
    before = flip(state / damaged)
    read: list[str] = []
    same = hashes._same
    monkeypatch.setattr(hashes, "_same", lambda path, digest: read.append(str(path)) or same(path, digest))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    answers = {}
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(hashes.processes, "smallest", lambda value, index=index: answers.setdefault(index, value))
        hashes.damaged(saved / "1" / "state")
    assert sorted(read) == sorted(str(state / name) for name in names)
    assert answers == {0: len(names), 1: 3}
    (state / damaged).write_bytes(before)
    assert processes.smallest(3) == 3


def test_trees_of_arrays_are_hashed_too(tmp_path: Path) -> None:
    """Converted weights, say."""
    tree = {"a": np.arange(50_000, dtype=np.float32), "b": {"c": np.ones((3, 2), np.int32)}}
    save_arrays(tmp_path / "w", tree)
    assert_same(load_arrays(tmp_path / "w"), tree)
    largest = max(contents(tmp_path / "w"), key=lambda path: path.stat().st_size)
    flip(largest)
    with pytest.raises(CheckpointError, match=rf"{largest.name} is missing or is not what was saved: write it again"):
        load_arrays(tmp_path / "w")
