"""Builds: killed ones continue where they stopped, bad input is named, nothing unfinished looks finished."""

import dataclasses
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from concurrent import futures
from pathlib import Path

import pytest
import toy_shards

from data_pipelines import build, files, procedural
from data_pipelines.dataset import build_folder, schema, shard_writer, writer
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import worker_pool
from data_pipelines.errors import DatasetError
from data_pipelines.sources import reading


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted")
    toy_shards.build(out)
    return toy_shards.contents(out)


def start(out: Path, *arguments: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, toy_shards.__file__, str(out), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_killed_build_resumes_to_the_same_bytes(tmp_path: Path, uninterrupted: dict[str, bytes], workers: int) -> None:
    process = start(tmp_path, workers, 30)  # record 30 of train is in shard 3: shards 0 to 2 were handed out before
    assert process.stdout.readline() == "blocked\n"
    os.kill(process.pid, signal.SIGKILL)
    # The pipe ends with the last worker: none may outlive the build and write into the next one.
    process.communicate(timeout=60)
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(tmp_path, "toy")
    assert not (tmp_path / "toy" / "1.0.0").exists()
    work = tmp_path / "toy" / ".1.0.0.building"
    names = [f"toy-train.array_record-{path.stem[-5:]}-of-00005" for path in work.glob("parts/train-*.json")]
    kept = {name: (work / "data" / name).stat() for name in names}
    assert len(kept) >= 4 - workers
    toy_shards.build(tmp_path)
    assert toy_shards.contents(tmp_path) == uninterrupted
    for name, before in kept.items():
        after = (tmp_path / "toy" / "1.0.0" / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_full_disk_is_named_and_nothing_finished_is_lost(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    process = start(tmp_path, 1, -1, 6000)  # no file may grow beyond 6,000 bytes, which a shard of 8 records does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot write" in errors
    assert "make room on that disk" in errors
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(tmp_path, "toy")
    toy_shards.build(tmp_path)
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_a_build_that_does_not_fit_the_disk_is_refused_before_it_starts(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(DatasetError, match=r"does not hold toy: 57 records of about [\d.]+ KiB are [\d.]+ KiB, and"):
        toy_shards.build(tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    toy_shards.build(tmp_path)
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_processes_write_the_same_bytes(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    with worker_pool(2) as pool:
        toy_shards.build(tmp_path, pool=pool)
        assert toy_shards.contents(tmp_path) == uninterrupted
        # The same workers, folder name and version, but other people: identities must not be remembered.
        shutil.rmtree(tmp_path / "toy")
        toy_shards.build(tmp_path, pool=pool, people=["toy/-", *toy_shards.PEOPLE])
        assert open_dataset(tmp_path, "toy").index("train").identity[:3].tolist() == [1, 2, 3]
        # An error in a worker comes through whole.
        with pytest.raises(DatasetError, match=r"picture\(s\) do not decode:\n  train: Ordner ä/007.jpg: "):
            toy_shards.build(
                tmp_path, pool=pool, version="2.0.0", load=functools.partial(toy_shards.load_damaged, damaged=(7,))
            )
        with pytest.raises(DatasetError, match="load cannot be sent to worker processes"):
            toy_shards.build(tmp_path, pool=pool, version="3.0.0", load=functools.partial(hash, threading.Lock()))


def refuse(i: int) -> schema.Record:
    raise AssertionError(f"record {i} was loaded again")


def test_finished_build_is_returned_as_it_is(tmp_path: Path) -> None:
    manifest = toy_shards.build(tmp_path)
    assert toy_shards.build(tmp_path, load=refuse) == manifest
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == [".lock", "1.0.0"]


def test_same_pictures_of_other_people_are_other_content(tmp_path: Path) -> None:
    def load_of_others(i: int) -> schema.Record:
        record = toy_shards.load(i)
        return dataclasses.replace(record, person=record.person.replace("toy", "others"))

    mine = toy_shards.build(tmp_path / "mine")
    others = [person.replace("toy", "others") for person in toy_shards.PEOPLE]
    theirs = toy_shards.build(tmp_path / "theirs", people=others, load=load_of_others)
    assert [part["shards"] for part in mine.splits.values()] == [part["shards"] for part in theirs.splits.values()]
    assert mine.content_hash != theirs.content_hash
    assert toy_shards.build(tmp_path / "again").content_hash == mine.content_hash


def test_other_content_under_the_same_version(tmp_path: Path) -> None:
    toy_shards.build(tmp_path)
    other = {**toy_shards.SPLITS, "query": range(100, 103)}
    with pytest.raises(
        DatasetError, match=r"holds another build \(different: source, splits\): choose another version"
    ):
        toy_shards.build(tmp_path, splits=other, source={"kind": "other"})
    assert open_dataset(tmp_path, "toy").manifest.splits["query"]["records"] == 5
    toy_shards.build(tmp_path, splits=other, overwrite=True)
    assert open_dataset(tmp_path, "toy").manifest.splits["query"]["records"] == 3
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == [".lock", "1.0.0"]


def fail_at_30(i: int) -> schema.Record:
    if i == 30:
        raise FileNotFoundError("no such picture")
    return toy_shards.load(i)


def leave_unfinished(out: Path) -> Path:
    """Leaves a build of three finished shards; returns its folder."""
    with pytest.raises(FileNotFoundError, match="no such picture") as caught:
        toy_shards.build(out, load=fail_at_30)
    assert caught.value.__notes__ == ["while building toy, split train, record 30: 30"]
    return out / "toy" / ".1.0.0.building"


def test_half_a_build_with_npz_parts_is_written_again(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """Older code kept the index rows of finished shards as .npz files."""
    work = leave_unfinished(tmp_path)
    parts = list(work.glob("parts/*.parquet"))
    assert len(parts) == 3
    for part in parts:
        part.rename(part.with_suffix(".npz"))
    toy_shards.build(tmp_path)
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_left_over_of_another_request_is_not_used(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    work = leave_unfinished(tmp_path)
    assert len(list((work / "data").iterdir())) == 3
    toy_shards.build(tmp_path, source={"kind": "other"})
    found = toy_shards.contents(tmp_path)
    assert json.loads(found["toy/1.0.0/manifest.json"])["source"] == {"kind": "other"}
    shutil.rmtree(tmp_path / "toy")
    toy_shards.build(tmp_path)
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_build_that_stopped_after_its_last_shard_goes_on(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with worker_pool(1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(build_folder, "complete", stop)
            with pytest.raises(KeyboardInterrupt):
                toy_shards.build(tmp_path, pool=pool)
        toy_shards.build(tmp_path, pool=pool)
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_damaged_left_over_is_written_again(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    work = leave_unfinished(tmp_path)
    shard = work / "data" / "toy-train.array_record-00001-of-00005"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    (work / "parts" / "train-00002.json").write_text("{")
    toy_shards.build(tmp_path)
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_two_builds_at_once_are_refused(tmp_path: Path) -> None:
    work = leave_unfinished(tmp_path)
    with files.lock(work.parent), pytest.raises(files.LockedError, match=rf"process {os.getpid()} .* working in .*toy"):
        toy_shards.build(tmp_path)
    toy_shards.build(tmp_path)


def test_a_build_waits_for_the_processes_of_a_killed_one(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """Its file must not lie in data/, where TFDS finds a name that it cannot parse."""
    work = leave_unfinished(tmp_path)
    left = work / shard_writer.SCRATCH / "123-toy-train.array_record-00001-of-00005"
    left.write_bytes(b"half a shard")
    with futures.ThreadPoolExecutor(1) as pool:
        with open(work / shard_writer.WORKING) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            waiting = pool.submit(toy_shards.build, tmp_path)
            with pytest.raises(futures.TimeoutError):
                waiting.result(timeout=0.3)
            assert left.exists()
        waiting.result()
    assert toy_shards.contents(tmp_path) == uninterrupted


def test_builds_at_once_that_wait_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, meet = [], threading.Barrier(4)

    def build_at_once(_: int) -> schema.Manifest:
        meet.wait()
        return toy_shards.build(tmp_path, wait=True)

    prepare = build_folder.prepare
    monkeypatch.setattr(build_folder, "prepare", lambda *given: (starts.append(given), prepare(*given)))
    with futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(build_at_once, range(4)))
    assert found == [open_dataset(tmp_path, "toy").manifest] * 4
    assert len(starts) == 1
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == [".lock", "1.0.0"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(files.WriteError, match=r"file/toy/\.lock cannot be written .*choose another name or folder"):
        toy_shards.build(tmp_path / "file")


@pytest.mark.parametrize("what", ["image", "instruction"])
def test_truncated_picture_is_refused_or_skipped_and_counted(tmp_path: Path, what: str) -> None:
    load = functools.partial(toy_shards.load_damaged, damaged=(9, 11, 201), what=what)  # JPEG, PNG; gallery
    with pytest.raises(DatasetError) as caught:
        toy_shards.build(tmp_path, load=load)
    message = str(caught.value)
    assert "2 picture(s) do not decode" in message
    assert "train: Ordner ä/009.jpg: " in message
    assert "train: Ordner ä/011.jpg: " in message
    assert "--on_bad_image skip" in message
    with pytest.raises(DatasetError, match="did not finish"):
        open_dataset(tmp_path, "toy")
    manifest = toy_shards.build(tmp_path, load=load, on_bad_image="skip")
    assert {split: (v["records"], len(v["skipped"])) for split, v in manifest.splits.items()} == {
        "train": (38, 2), "query": (5, 0), "gallery": (11, 1),
    }  # fmt: skip
    assert [item["file"] for item in manifest.splits["train"]["skipped"]] == ["Ordner ä/009.jpg", "Ordner ä/011.jpg"]
    dataset = open_dataset(tmp_path, "toy")
    index, reader = dataset.index("train"), dataset.reader("train")
    assert index.file.tolist() == [reader[i]["file"] for i in range(38)]
    assert index.offset.tolist()[8:16] == [0, 1, 2, 3, 4, 5, 0, 1]
    # Without the option the skipped pictures are an error, not a silent success.
    with pytest.raises(DatasetError, match=r"3 picture\(s\) do not decode"):
        toy_shards.build(tmp_path, load=load)


def test_shard_and_split_of_bad_pictures_only(tmp_path: Path) -> None:
    load = functools.partial(toy_shards.load_damaged, damaged=tuple(range(8, 16)))
    toy_shards.build(tmp_path, load=load, on_bad_image="skip")
    dataset = open_dataset(tmp_path, "toy")
    assert [shard["records"] for shard in dataset.manifest.splits["train"]["shards"]] == [8, 0, 8, 8, 8]
    assert dataset.reader("train")[8]["file"] == "Ordner ä/016.jpg"
    load = functools.partial(toy_shards.load_damaged, damaged=tuple(toy_shards.SPLITS["query"]))
    with pytest.raises(DatasetError, match="no picture of split 'query' decodes"):
        toy_shards.build(tmp_path, version="2.0.0", load=load, on_bad_image="skip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Toy"}, "data set name 'Toy' must be lower-case"),
        ({"splits": {"train-1": [0]}}, "split name 'train-1' must be lower-case"),
        ({"version": "1"}, r"version '1' of toy must have the form 1\.0\.0"),
        ({"task": "reid"}, "unknown task 'reid'"),
        ({"people": []}, "no people given"),
        ({"splits": {}}, "no splits given"),
        ({"splits": {"train": []}}, "split 'train' is empty; check that the raw folder is complete"),
        ({"people": toy_shards.PEOPLE[:4]}, "person 'toy/0004' is not among the people"),
        ({"source": {"size": (1, 2)}}, "source must be plain JSON"),
        ({"source": {"path": Path("x")}}, "source must be plain JSON"),
        ({"splits": {"train": [object()]}}, "shows its address, not its value"),
        ({"splits": {"train": [(1, [object()])]}}, "shows its address, not its value"),
        ({"records_per_shard": 0}, "records_per_shard is 0"),
        ({"max_pixels": 0}, "max_pixels is 0; it must lie between 1 and"),
        ({"on_bad_image": "ignore"}, "on_bad_image is 'ignore'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy_shards.build(tmp_path, **changes)
    assert not (tmp_path / "toy" / "1.0.0").exists()


def test_help_and_error_name_every_form_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = "CSV, TSV, JSON, JSON lines or Parquet, a list of files, or a folder of pictures"
    assert build.main(["--dataset", "table", "--task", "trad", "--name", "mine", "--out", str(tmp_path)]) == 2
    assert forms in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build.main(["--help"])
    assert forms in " ".join(capsys.readouterr().out.split())


def test_a_folder_without_a_name_is_refused() -> None:
    """The data sets would go into the current folder."""
    with pytest.raises(DatasetError, match="the folder for the data set is empty text: name one"):
        toy_shards.build("")


def test_count_report_names_what_differs() -> None:
    table, differences = build.count_report(
        {"train": {"images": 3, "ids": 2}}, {"train": {"images": 12_936, "ids": 2}, "query": {"images": 1}}
    )
    assert differences == ["train: 3 images instead of 12,936", "query: 0 images instead of 1"]
    assert [line.split() for line in table.splitlines()] == [
        ["split", "what", "found", "expected"],
        ["train", "images", "3", "12,936", "differs"],
        ["train", "ids", "2", "2"],
        ["query", "images", "0", "1", "differs"],
    ]
    table, differences = build.count_report({"test": {"images": 5}}, {})  # nothing published: shown, never different
    assert (table.splitlines()[1].split(), differences) == (["test", "images", "5"], [])


def test_progress_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = [0.0], []
    monkeypatch.setattr(writer.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(writer.logging, "info", lambda text, *values: lines.append((clock[0], text % values)))
    progress = writer._Progress("toy", shards=5, missing=4 * [types.SimpleNamespace(items=range(100))], enabled=True)
    for clock[0] in (1.0, 50.0, 51.0, 80.0):  # a line every few seconds, and one at the end
        progress.add(100)
    assert lines == [
        (50.0, "toy: 3 of 5 shards, 4 images/s, 50 s left"),
        (80.0, "toy: 5 of 5 shards, 5 images/s"),
    ]


def test_procedural_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(out: str, options: writer.BuildOptions) -> list[schema.Manifest]:
        assert options == writer.BuildOptions(workers=3, overwrite=True)
        return [toy_shards.build(Path(out))]

    monkeypatch.setattr(procedural, "build", small)
    options = ["--dataset", "procedural", "--out", str(tmp_path), "--workers", "3", "--overwrite"]
    assert build.main(options) == 0
    printed = capsys.readouterr().out
    assert f"toy 1.0.0: {tmp_path / 'toy' / '1.0.0'}" in printed
    assert "train: 40 records in 5 shards" in printed


def test_a_picture_may_be_named_like_an_address() -> None:
    """Only an object that is printed with its address is refused."""
    item = reading.Picture("look at 0x7.jpg", "people/a man at 0xa", 0, 100, sentences=("seen at 0x1",))
    assert writer._describe(item) == repr(item)
    with pytest.raises(DatasetError, match="shows its address"):
        writer._describe(("look at 0x7.jpg", lambda: None))
