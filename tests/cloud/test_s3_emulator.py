"""s3:// against moto's server on this machine, through s3fs: data sets, and the lock object. No real bucket is met.

Needs pip install -e '.[dev,s3]' 'moto[server,s3]'; skipped without.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from lock_contest import contest
from ml_collections import ConfigDict

pytest.importorskip("s3fs", reason="needs pip install -e '.[s3]'")
pytest.importorskip("moto.server", reason="needs pip install 'moto[server,s3]'")

from data_pipelines import files, object_lock
from data_pipelines.batches import training_data
from data_pipelines.dataset.reader import open_dataset
from irm_jax.config import check

# Botocore's use of what Python will remove, and the server's connections that clients drop.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment variables by which clients find the server."""
    from moto.server import ThreadedMotoServer

    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    settings |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
    yield settings | dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1")
    made.stop()


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> epath.Path:
    """An empty bucket."""
    import boto3
    import s3fs

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = "".join(c for c in request.node.name.lower() if c.isalpha())[:40]
    boto3.client("s3").create_bucket(Bucket=name)
    return epath.Path(f"s3://{name}")


def upload(folder: Path, target: epath.Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())


def test_data_sets_are_read_through_a_copy(
    bucket: epath.Path, procedural_dir: Path, make_micro_config: Callable[[], ConfigDict], tmp_path: Path
) -> None:
    upload(procedural_dir / "procedural_trad", bucket / "shards/procedural_trad")
    config = make_micro_config()
    config.data.dir, config.data.cache = f"{bucket}/shards", str(tmp_path / "cache")
    check.check_values(config)
    here = open_dataset(procedural_dir, "procedural_trad")
    [copied] = training_data.open_datasets(config, ["procedural_trad"]).values()
    for split in here.splits:
        for i in (0, len(here.reader(split)) - 1):
            assert copied.reader(split)[i] == here.reader(split)[i]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short times, and processes that do not know whether they are on one machine."""
    monkeypatch.setattr(object_lock, "HEARTBEAT", 0.2)
    monkeypatch.setattr(object_lock, "EXPIRY", 2.0)
    monkeypatch.setattr(object_lock, "_place", dict[str, Any])


def test_the_lock_object_is_made_only_if_absent(bucket: epath.Path, quick: None) -> None:
    """Of many who put it at once the store lets one succeed; its client is told by status 412."""
    folder = bucket / "run"
    most, refused = contest(folder, 0.5)
    assert most == 1
    assert refused
    assert all(f"is working in {folder}" in text for text in refused)
    with files.lock(folder):  # all are removed
        assert [path.name for path in folder.iterdir()] == [".lock-000001.json"]
    store = object_lock._ObjectLock(folder, lambda: None)._store
    store.pipe_file(f"{folder}/a", b"1", mode="create")
    with pytest.raises((FileExistsError, OSError)):
        store.pipe_file(f"{folder}/a", b"2", mode="create")
    assert store.cat_file(f"{folder}/a") == b"1"


def test_the_lock_object_has_a_heartbeat(bucket: epath.Path, quick: None) -> None:
    with files.lock(bucket / "run"):
        path = bucket / "run/.lock-000001.json"
        first = json.loads(path.read_bytes())
        with pytest.raises(files.LockedError), files.lock(bucket / "run"):
            pass
        assert json.loads(path.read_bytes())["beat"] > first.get("beat", 0)


def hold_and_stop(folder: str, settings: dict[str, str], held: Any) -> None:
    import os

    os.environ.update(settings)
    object_lock._place = dict
    with object_lock.hold(epath.Path(folder)):
        held.send("held")
        os.kill(os.getpid(), 19)  # SIGSTOP


def test_the_lock_of_a_process_that_is_gone_expires(bucket: epath.Path, server: dict[str, str], quick: None) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold_and_stop, args=(f"{bucket}/run", server, there))
    process.start()
    assert here.recv() == "held"
    with files.lock(bucket / "run"):
        assert [path.name for path in (bucket / "run").iterdir()] == [".lock-000002.json"]
    process.kill()
    process.join()
