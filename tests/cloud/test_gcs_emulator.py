"""gs:// against an emulator of Google Cloud Storage, through gcsfs, Orbax's tensorstore and ArrayRecord's own client.

Not part of the suite: pip install -e '.[dev,gcs]' gcp-storage-emulator && python -m pytest tests/cloud
"""

from __future__ import annotations

import http.server
import json
import os
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it asks another service, which has no emulator
os.environ["NO_GCE_CHECK"] = "true"
pytest.importorskip("gcsfs", reason="needs pip install -e '.[gcs]'")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs pip install gcp-storage-emulator")

from data_pipelines import files, object_lock  # noqa: E402
from data_pipelines.dataset.reader import open_copy, open_dataset  # noqa: E402
from irm_jax import checkpoint  # noqa: E402
from irm_jax.logs import run_record, writers  # noqa: E402
from irm_jax.logs.workdir import locked  # noqa: E402

# The emulator's errors for files that are not there, connections that clients drop, and gcsfs's try for credentials.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[epath.Path]:
    """An empty bucket of an emulator on this machine."""
    folder = tmp_path_factory.mktemp("emulator")
    handle, lock = emulator.Router.handle, threading.Lock()

    def one_at_a_time(self: object, *arguments: object) -> object:
        with lock:
            return handle(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        # A thread a connection: a client's idle one would block the others. The emulator itself is not made for that.
        server = types.SimpleNamespace(**vars(http.server) | {"HTTPServer": http.server.ThreadingHTTPServer})
        patch.setattr(emulator, "server", server)
        patch.setattr(emulator.Router, "handle", one_at_a_time)
        patch.chdir(folder)
        made = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
        made.start()
        address = f"http://127.0.0.1:{made._api._httpd.server_port}"
        for name in ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "none")
        yield epath.Path("gs://bucket")
        made.stop()


def test_checkpoints(bucket: epath.Path) -> None:
    state = {"params": {"a": jnp.arange(1000.0), "b": jnp.ones((64, 64))}}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    folder = bucket / "run/checkpoints"
    with checkpoint.Checkpointer(folder, keep=1, best_metric="score") as checkpoints:
        assert checkpoints.latest_step() is None
        for step, score in ((1, 0.5), (2, 0.25), (3, 0.125)):
            checkpoints.save(step, state, {})
            checkpoints.set_metrics(step, {"score": score})
    assert checkpoint.saved_steps(folder) == [1, 3]
    assert checkpoint.read_metadata(folder, "best") == (1, {"metrics": {"score": 0.5}})
    assert (folder / "3/commit_success.txt").exists()  # what launch/tpu_vm.sh looks for
    with checkpoint.Checkpointer(folder, keep=1) as checkpoints:
        restored, _ = checkpoints.restore(abstract)
    np.testing.assert_array_equal(restored["params"]["a"], state["params"]["a"])


def test_logs(bucket: epath.Path) -> None:
    kinds = ("jsonl", "tensorboard")
    with writers.MetricLog.open(kinds, writers.RunStart(bucket / "run", None), primary=True) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    with writers.MetricLog.open(kinds, writers.RunStart(bucket / "run", 2), primary=True):
        pass
    assert [record["step"] for record in writers.read_metrics(bucket / "run")] == [1, 2]
    assert len(list((bucket / "run/tensorboard").iterdir())) == 2


def test_records(bucket: epath.Path, procedural_dir: Path, tmp_path: Path) -> None:
    folder = procedural_dir / "procedural_trad"
    for path in folder.rglob("*"):
        if path.is_file():
            (bucket / "shards/procedural_trad" / path.relative_to(folder)).write_bytes(path.read_bytes())
    here = open_dataset(procedural_dir, "procedural_trad")
    there = open_dataset(bucket / "shards", "procedural_trad")
    copied = open_copy(there.folder.parents[1], there.name, tmp_path)
    assert os.fspath(copied.folder).startswith(os.fspath(tmp_path))
    for split in here.splits:
        for i in (0, len(here.reader(split)) - 1):
            assert there.reader(split)[i] == copied.reader(split)[i] == here.reader(split)[i]


def test_the_lock_object(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made only if absent, renewed, and taken over from a process that does not renew it."""
    monkeypatch.setattr(object_lock, "HEARTBEAT", 0.2)
    monkeypatch.setattr(object_lock, "EXPIRY", 2.0)
    monkeypatch.setattr(object_lock, "_place", dict)
    folder = bucket / "locked"
    with files.lock(folder):
        with pytest.raises(files.LockedError, match="is working in gs://bucket/locked"), files.lock(folder):
            pass
        assert json.loads((folder / ".lock-000001.json").read_bytes())["beat"] > 0
    (folder / ".lock-000001.json").write_text('{"owner": "a process that is gone"}')
    with files.lock(folder):
        assert [path.name for path in folder.iterdir()] == [".lock-000002.json"]


def test_a_workdir(bucket: epath.Path) -> None:
    """Lock, run record and the folder of an evaluation."""
    workdir = bucket / "a run"
    with locked(workdir):
        run_record.append_run_record(workdir, {"seed": 1})
    run_record.append_run_record(workdir, {"seed": 2})
    assert [start["seed"] for start in json.loads((workdir / "run.json").read_bytes())] == [1, 2]
