"""Kills, object storage, several processes: nothing committed is lost, and no half entry is shown."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import pytest
from search_pictures import picture
from test_stores import about, entries

from irm_jax.errors import RetryError
from irm_jax.search import engines, snapshot, store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]
KILLS = 100
SIGNED = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}:{ROOT / 'tests'}", **more}


def test_kills_lose_no_commit_and_show_no_half_entry(lancedb: None, tmp_path: Path) -> None:
    """A writer is killed again and again. What it had printed is there; each entry is whole and there once."""
    rng = random.Random(0)
    writer = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "killed_writer.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert writer.stdin is not None
    assert writer.stdout is not None
    for kill in range(KILLS):
        if kill % 20 == 0:  # a new index, whose making is killed five times at first
            uri = str(tmp_path / f"index{kill}")
            expected: set[int] = set()
            maybe: set[int] = set()
        first = 1_000 * kill
        print(uri, first, file=writer.stdin, flush=True)
        added: set[int] = set()
        found: dict[str, int] = {}

        def said(
            until: str, lines: IO[str] = writer.stdout, added: set[int] = added, found: dict[str, int] = found
        ) -> None:
            while until not in found:
                word, number = lines.readline().split()
                assert word != "gone" or until == "gone", "the writer ended by itself"
                at = found[word] = int(number)
                if word.startswith("added"):
                    added.update(range(at, at + (10 if word == "added" else 5)))
                elif word == "removed":
                    added.discard(at)

        said("process")
        said("ready")
        if kill % 20 >= 5:
            said("added")
        time.sleep(rng.random() * (0.5 if kill % 20 >= 5 else 0.03))
        os.kill(found["process"], signal.SIGKILL)
        said("gone")
        last = max((at for at in added if at < 5_000_000), default=first - 10)
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
            with made.lock():  # a killed process holds none
                made.commit_parts()
            assert not list(Path(uri).glob("part-*"))
    writer.stdin.close()
    writer.wait()


class AsGoogle:
    """Google's XML interface in front of moto's S3, which has the same operations under other headers."""

    def __init__(self, application: Any) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        environ["HTTP_AUTHORIZATION"] = SIGNED
        if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", "") == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        if "HTTP_X_GOOG_COPY_SOURCE" in environ:
            environ["HTTP_X_AMZ_COPY_SOURCE"] = environ.pop("HTTP_X_GOOG_COPY_SOURCE")
        return self._application(environ, start)


def test_an_index_on_googles_storage(lancedb: None, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What LanceDB does there; the writer's lock is that of every object (tests/data_pipelines/test_object_lock.py)."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, AsGoogle(DomainDispatcherApplication(create_backend_app)), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"127.0.0.1:{server.port}")
    uri = bucket.replace("s3://", "gs://")
    assert not engines.exists(uri)
    made = engines.create_store(uri, about())
    made.add(entries(20))
    reader = engines.open_store(uri)
    assert reader.count() == 20
    made.part("00000").add(entries(5, 30))
    made.commit_parts()
    assert made.remove([f"{1:032x}"]) == 1
    made.compact()
    assert reader.count() == len(store.ids_of(reader)) == 24
    table = entries(20)
    vector = np.asarray(table["_neutral"].to_pylist()[3], np.float32)
    assert reader.search("neutral", vector, None, 1)[0] == [f"{3:032x}"]
    server.shutdown()


def test_two_served_pages_follow_one_writer(
    bucket: str, run_dir: str, crops_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two `serve` processes on an index on object storage; each shows a new version within a minute."""
    pytest.importorskip("gradio", reason="needs pip install -e '.[search]'")
    pytest.importorskip("s3fs", reason="needs pip install s3fs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-m", "irm_jax.search"]
    words = ["build", bucket, "--model", run_dir, "--images", str(crops_dir), "--table", str(crops_dir / "crops.csv")]
    subprocess.run([*command, *words], check=True, env=environment())
    with contextlib.ExitStack() as stack:
        pages = []
        for _ in range(2):
            page = subprocess.Popen(
                [*command, "serve", bucket, "--port", "0", "--refresh", "2"], stdout=subprocess.PIPE, text=True,
                env=environment(),
            )  # fmt: skip
            stack.callback(page.wait)
            stack.callback(page.terminate)
            assert page.stdout is not None
            pages.append(page.stdout)
        for lines in pages:
            assert "(30 pictures)" in next(line for line in lines if line.startswith("serving"))
        cv2.imwrite(str(tmp_path / "new.png"), picture(77))
        subprocess.run([*command, "add", bucket, str(tmp_path / "new.png").rsplit("/", 1)[0]], check=True,
                       env=environment())  # fmt: skip
        for lines in pages:
            assert "31 pictures" in next(line for line in lines if line.startswith("version"))


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
    name = f"people{port}"  # moto keeps the buckets of an earlier server of this process
    boto3.client("s3").create_bucket(Bucket=name)
    yield f"s3://{name}/index"
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
