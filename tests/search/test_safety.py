"""Kills, object storage, several processes: nothing committed is lost, and no half entry is shown."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_stores import about, entries

from irm_jax.errors import RetryError
from irm_jax.search import engines, snapshot, store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]
KILLS = 100


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests'}", **more}


def test_kills_lose_no_commit_and_show_no_half_entry(lancedb: None, tmp_path: Path) -> None:
    """A writer is killed again and again. What it had printed is there; each entry is whole and there once."""
    uri = str(tmp_path / "index")
    engines.create_store(uri, about())
    rng = random.Random(0)
    expected: set[int] = set()
    maybe: set[int] = set()
    for kill in range(KILLS):
        first = 1_000 * kill
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "killed_writer.py"), uri, str(first)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        assert lines[0].startswith("added"), child.stderr.read() if child.stderr else ""
        time.sleep(rng.random() * 0.5)
        child.kill()
        lines += child.stdout.read().splitlines()
        child.wait()
        added: set[int] = set()
        for line in lines:
            word, _, number = line.strip().partition(" ")
            at = int(number)
            if word == "added":
                added |= set(range(at, at + 10))
            elif word == "added5":
                added |= set(range(at, at + 5))
            elif word == "removed":
                added.discard(at)
        last = max(at for at in added if at < 5_000_000)
        start = last - last % 10
        # What may have been under way when it was killed.
        maybe |= set(range(start + 10, start + 20)) | {start}
        maybe |= set(range(start + 5_000_000, start + 5_000_015))
        expected |= added
        if kill % 10 == 9:
            made = engines.open_store(uri)
            rows = [row for batch in made.scan(made.about.schema().names) for row in batch.to_pylist()]
            numbers = [int(row[store.ID], 16) for row in rows]
            assert len(numbers) == len(set(numbers))
            assert expected - maybe <= set(numbers) <= expected | maybe
            for row in rows[:: max(1, len(rows) // 50)]:
                assert row[store.PICTURE] == f"picture {int(row[store.ID], 16)}".encode()
                assert None not in (row["_neutral"], row["_caption"])
    made = engines.open_store(uri)
    with made.lock():  # a killed process holds none
        made.commit_parts()
        made.compact()
    assert not list(Path(uri).glob("part-*"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of moto's server, as s3://."""
    pytest.importorskip("moto.server", reason="needs pip install 'moto[server,s3]'")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    settings |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
    settings |= dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="people")
    yield "s3://people/index"
    server.stop()


def test_an_index_on_object_storage(
    lancedb: None, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writer and two readers, with a local copy of the vectors that only what is new is added to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    writer = engines.create_store(bucket, about())
    writer.add(entries(50))
    readers = [engines.open_store(bucket) for _ in range(2)]
    for reader in readers:
        first = snapshot.Snapshot(reader)
        first.vectors("neutral")
        assert len(first) == 50
    asked: list[tuple[tuple[str, ...], object]] = []
    scan = type(writer).scan
    monkeypatch.setattr(type(writer), "scan", lambda self, columns, where=None: (
        asked.append((tuple(columns), where)), scan(self, columns, where))[1])  # fmt: skip
    again = snapshot.Snapshot(readers[0])
    again.vectors("neutral")
    assert not any("_neutral" in columns for columns, _ in asked)
    writer.add(entries(3, 60))
    writer.remove([f"{1:032x}"])
    newer = snapshot.Snapshot(readers[1])
    assert newer.version > again.version
    vectors = newer.vectors("neutral")
    fetched = [where for columns, where in asked if "_neutral" in columns]
    assert len(fetched) == 1
    assert fetched[0] is not None
    assert len(newer) == 52
    query = vectors.host_vectors([51])
    assert vectors.top(query, 1)[1].tolist() == [[51]]
    with writer.lock(), pytest.raises(RetryError, match="another process"), readers[0].lock():
        pass
    writer.compact()
    assert newer.vectors("neutral") is vectors


BUILD = """
import sys
from irm_jax.parallel import processes
from irm_jax.search import __main__ as command, ingest
ingest.WRITE_ENTRIES = ingest.BATCH = 4
if len(sys.argv) > 5:
    from irm_jax.search import lance
    write = lance._LancePart.add
    def killed(self, entries):
        write(self, entries)
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    lance._LancePart.add = killed
sys.exit(command.main(["build", sys.argv[1], "--model", sys.argv[2], "--images", sys.argv[3], "--table", sys.argv[4]]))
"""


def test_two_processes_build_and_one_is_killed(run_dir: str, crops_dir: Path, tmp_path: Path) -> None:
    """The restart embeds what no part has yet; readers see nothing before the one commit, then all."""
    uri = str(tmp_path / "index")

    def run(kill: bool) -> list[subprocess.CompletedProcess]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for number in range(2):
            words = [sys.executable, "-c", BUILD, uri, run_dir, str(crops_dir), str(crops_dir / "crops.csv")]
            more = ["kill"] if kill and number == 1 else []
            place = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
                     "JAX_PROCESS_ID": str(number), "XLA_FLAGS": ""}  # fmt: skip
            children.append(subprocess.Popen(
                [*words, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(**place)
            ))  # fmt: skip
        found = []
        for child in children:
            output, _ = child.communicate(timeout=400)
            found.append(subprocess.CompletedProcess(child.args, child.returncode, output))
        return found

    first = run(kill=True)
    assert first[1].returncode == -signal.SIGKILL, first[1].stdout
    assert first[0].returncode != 0
    made = engines.open_store(uri)
    assert made.count() == 0
    waiting = made.sizes()["entries of unfinished builds"]
    assert 4 <= waiting < 30
    second = run(kill=False)
    assert [child.returncode for child in second] == [0, 0], "\n".join(child.stdout for child in second)
    embedded = sum(int(child.stdout.split(" added")[0].split()[-1]) for child in second)
    assert embedded == 30 - waiting
    assert made.count() == len(store.ids_of(made)) == 30
    assert made.sizes()["entries of unfinished builds"] == 0
