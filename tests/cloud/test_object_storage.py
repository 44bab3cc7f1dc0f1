"""Workdir and data on object storage, against a bucket in memory behind gs:// (bucket.py)."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from bucket import Bucket, install
from etils import epath
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event

from data_pipelines import procedural, storage
from data_pipelines.batches import stated_data, training_data
from data_pipelines.dataset import reader
from data_pipelines.dataset.folder import MANIFEST, save_manifest
from data_pipelines.dataset.reader import Dataset, ShardReader, open_copy, open_dataset
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError
from data_pipelines.files import StorageLost
from irm_jax.config import check, command_line
from irm_jax.evaluation import compare
from irm_jax.evaluation.figures import Figure, Results
from irm_jax.evaluation.ranking.metrics import Ranking
from irm_jax.evaluation.report import write
from irm_jax.logs.files import GrowingFile
from irm_jax.logs.run_record import append_run_record
from irm_jax.logs.writers import MetricLog, MetricLogError, RunStart, read_metrics


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return install(monkeypatch)


def test_a_growing_file_is_written_whole_now_and_then_and_at_the_end(bucket: Bucket) -> None:
    now = [100.0]
    file = GrowingFile(epath.Path("gs://bucket/log"), b"old\n", seconds=30.0, clock=lambda: now[0])
    for seconds in (0.0, 10.0, 19.0, 2.0, 5.0):
        now[0] += seconds
        file.write(f"{seconds}\n".encode())
        file.flush()
    assert bucket.files["bucket/log"] == b"old\n0.0\n10.0\n19.0\n2.0\n"
    assert bucket.written == ["bucket/log"] * 2
    file.close()
    file.close()
    assert bucket.files["bucket/log"] == b"old\n0.0\n10.0\n19.0\n2.0\n5.0\n"
    assert bucket.written == ["bucket/log"] * 3


@pytest.mark.parametrize(("answer", "kind"), [("502 bad gateway", StorageLost), ("403 Forbidden", MetricLogError)])
def test_a_log_that_the_storage_does_not_take_ends_the_run_with_a_message(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, answer: str, kind: type[Exception]
) -> None:
    """Clients of object storage have errors of their own, which are no OSError."""
    log = open_log(epath.Path("gs://bucket/run"))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(answer)

    monkeypatch.setattr(bucket, "_open", refuse)
    monkeypatch.setattr(bucket, "pipe_file", refuse)
    with pytest.raises(kind, match=rf"gs://bucket/run/metrics.jsonl cannot be written .*{answer}"):
        log.write(1, {"loss": 1.0})
    with pytest.raises(kind, match=answer):
        log.close()


def events(data: bytes) -> list[Event]:
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def open_log(workdir: epath.Path, resume_step: int | None = None) -> MetricLog:
    return MetricLog.open(("jsonl", "tensorboard"), RunStart(workdir, resume_step), primary=True)


def test_the_metric_log_of_a_run_and_of_its_resumption(bucket: Bucket) -> None:
    workdir = epath.Path("gs://bucket/runs/a")
    with open_log(workdir) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    with open_log(workdir, 2) as log:
        log.write(3, {"loss": 30.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(workdir)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    first, second = (events(bucket.files[name]) for name in sorted(bucket.files) if "tensorboard/events" in name)
    values = [(v.tag, e.step, v.simple_value) for e in first for v in e.summary.value]
    assert values == [("loss", 1, 1.0), ("loss", 2, 2.0), ("loss", 3, 3.0)]
    assert [e.step for e in second if e.HasField("session_log")] == [3]  # what TensorBoard drops from there on
    with open_log(workdir):
        pass
    assert b"30.0" in bucket.files["bucket/runs/a/metrics.previous.jsonl"]
    assert read_metrics(workdir) == []
    for seed in (3, 4):
        append_run_record(workdir, {"seed": seed})
    assert [start["seed"] for start in json.loads(bucket.files["bucket/runs/a/run.json"])] == [3, 4]


def test_report_and_comparison(bucket: Bucket, tmp_path: Path) -> None:
    """The files are those of a local workdir, byte by byte."""
    metrics = dict.fromkeys(("mAP", "rank1", "rank5", "rank10", "mINP"), 0.5)
    results = Results((Figure(test_set="p", task="trad", protocol="market", **metrics, queries=2, dropped={}),))
    data = write.ReportData({"config": {}, "seed": 0, "versions": {}, "git": None, "command": "python"})
    where = (tmp_path, epath.Path("gs://bucket/runs/a"))
    for workdir in where:
        write.write_report(workdir, results, data)
        for protocol, ap in (("market", [0.5, 1.0]), ("identity", [0.25, 0.75])):
            figure = Figure(test_set="p", task="trad", protocol=protocol)
            compare.save_per_query(workdir, figure, ranking(ap), [7, 8], range(4))
    local = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert {name.removeprefix("bucket/runs/a/"): data for name, data in bucket.files.items()} == local
    assert set(local) == {
        "report.html", "results.json", "results.csv", "results.md", "results.tex", "per_query/p_market.npz",
        "per_query/p_identity.npz",
    }  # fmt: skip
    rows = compare.compare_runs(tmp_path, "gs://bucket/runs/a", samples=10)
    assert [(row.figure, row.metric, row.a, row.b) for row in rows if row.metric == "mAP"] == [
        ("p/identity", "mAP", 0.5, 0.5), ("p/market", "mAP", 0.75, 0.75),
    ]  # fmt: skip


def ranking(ap: list[float]) -> Ranking:
    queries = len(ap)
    return Ranking(
        gallery=4, ap=np.array(ap), inp=np.array(ap),
        first_positive_rank=np.ones(queries, np.int32), num_positives=np.ones(queries, np.int32),
        drop_cause=np.full(queries, ""),
        top_ids=np.zeros((queries, 1), np.int32), top_scores=np.zeros((queries, 1), np.float32),
    )  # fmt: skip


def upload(bucket: Bucket, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.files[f"{prefix}/{path.relative_to(folder)}"] = path.read_bytes()


def same_files(copy: Dataset, original: Dataset) -> bool:
    found = [{file.name: file.read_bytes() for file in dataset.folder.iterdir()} for dataset in (copy, original)]
    return found[0] == found[1]


def test_a_copy_of_the_data_is_made_once_and_gives_the_same_records(
    bucket: Bucket,
    procedural_dir: Path,
    make_micro_config: Callable[[], ConfigDict],
    tmp_path: Path,
) -> None:
    upload(bucket, procedural_dir, "bucket/shards")
    config = make_micro_config()
    config.data.dir, config.data.cache = "gs://bucket/shards", str(tmp_path / "cache")
    check.check_values(config)
    [copied] = training_data.open_datasets(config, ["procedural_trad"]).values()
    there = open_dataset(procedural_dir, "procedural_trad")
    assert copied.folder == epath.Path(tmp_path, "cache/gs/bucket/shards/procedural_trad", there.folder.name)
    assert same_files(copied, there)
    for split in there.splits:
        reader, original = copied.reader(split), there.reader(split)
        assert len(reader) == len(original) > 0
        assert reader[len(reader) - 1] == original[len(original) - 1]
        np.testing.assert_array_equal(copied.index(split).content, there.index(split).content)
    # Once: not even a lost shard is fetched again, since the manifest says that the copy is there.
    shard = copied.folder / copied.manifest.splits["train"]["shards"][0]["file"]
    shard.unlink()
    with pytest.raises(DatasetError, match="is missing: delete the folder"):
        training_data.open_datasets(config, ["procedural_trad"])
    # Data that were built again replace the copy.
    manifest = f"bucket/shards/procedural_trad/{there.folder.name}/manifest.json"
    again = dataclasses.replace(there.manifest, task="cc")
    save_manifest(tmp_path, again)
    bucket.files[manifest] = (tmp_path / MANIFEST).read_bytes()
    open_copy("gs://bucket/shards", "procedural_trad", tmp_path / "cache")
    assert shard.exists()
    assert json.loads((copied.folder / "manifest.json").read_bytes())["task"] == "cc"


def test_a_copy_that_was_cut_short_goes_on(
    bucket: Bucket,
    procedural_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(bucket, procedural_dir, "bucket/shards")
    copy, copied = reader._copy, []

    def cut(source: epath.Path, target: Path) -> None:
        if target.name == MANIFEST:
            raise OSError("connection lost")
        copied.append(target.name)
        copy(source, target)

    monkeypatch.setattr(storage, "THREADS", 1)  # in order: some files before the manifest, some not
    monkeypatch.setattr(reader, "_copy", cut)
    with pytest.raises(OSError, match="connection lost"):
        open_copy("gs://bucket/shards", "procedural_trad", tmp_path)
    assert not list(tmp_path.rglob("1.*"))  # nothing that could be taken for a data set
    before = set(copied)

    def again(source: epath.Path, target: Path) -> None:
        copied.extend([] if target.exists() else [target.name])
        copy(source, target)

    monkeypatch.setattr(reader, "_copy", again)
    dataset = open_copy("gs://bucket/shards", "procedural_trad", tmp_path)
    assert before
    assert len(copied) == len(set(copied)) > len(before)
    assert same_files(dataset, open_dataset(procedural_dir, "procedural_trad"))


def test_a_withdrawn_version_is_no_longer_opened_from_the_cache(
    bucket: Bucket, procedural_dir: Path, tmp_path: Path
) -> None:
    upload(bucket, procedural_dir / "procedural_trad" / "1.0.0", "bucket/shards/procedural_trad/1.0.0")
    upload(bucket, procedural_dir / "procedural_trad" / "1.0.0", "bucket/shards/procedural_trad/1.1.0")
    newest = open_copy("gs://bucket/shards", "procedural_trad", tmp_path)
    for name in [name for name in bucket.files if "/1.1.0/" in name]:
        del bucket.files[name]
    left = open_copy("gs://bucket/shards", "procedural_trad", tmp_path)
    assert [dataset.folder.name for dataset in (newest, left)] == ["1.1.0", "1.0.0"]


def test_a_start_with_a_copy_asks_for_no_size_and_one_without_for_many_at_a_time(
    bucket: Bucket, procedural_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, procedural_dir, "bucket/shards")
    open_copy("gs://bucket/shards", "procedural_trad", tmp_path)
    threads = set()
    size = storage._file_size

    def asked(path: epath.Path) -> int | None:
        if storage.is_remote(path):
            threads.add(threading.get_ident())
            together.wait(timeout=10)
        return size(path)

    monkeypatch.setattr(storage, "_file_size", asked)
    together = threading.Barrier(3)  # a shard a split: all three are under way before the first is answered
    open_copy("gs://bucket/shards", "procedural_trad", tmp_path)
    assert not threads
    open_dataset("gs://bucket/shards", "procedural_trad")
    assert len(threads) == 3


def test_a_plan_without_training_reads_data_on_gs_too(
    bucket: Bucket, procedural_dir: Path, micro_config: ConfigDict
) -> None:
    upload(bucket, procedural_dir, "bucket/shards")
    micro_config.data.dir = "gs://bucket/shards"
    assert stated_data.plan_training(micro_config, max_length=40).space.num_head == 5 * 16
    micro_config.data.procedural.train_people = 99
    with pytest.raises(DatasetError, match=r"gs://bucket/shards/procedural_.* was drawn with other options"):
        stated_data.plan_training(micro_config, max_length=40)


def test_records_on_gs_are_asked_from_there_and_other_kinds_need_a_copy(
    bucket: Bucket,
    procedural_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(bucket, procedural_dir, "bucket/shards")
    dataset = open_dataset("gs://bucket/shards", "procedural_trad")
    asked: list[str] = []

    class Reader:
        def __init__(self, path: str, *_: object, **__: object) -> None:
            asked.append(path)
            raise RuntimeError("not found")

    monkeypatch.setattr(reader.array_record_module, "ArrayRecordReader", Reader)
    with pytest.raises(DatasetError, match="gs://bucket/shards/procedural_trad"):
        dataset.reader("train")[0]
    assert asked == [f"{dataset.folder}/{dataset.manifest.splits['train']['shards'][0]['file']}"]
    with pytest.raises(DatasetError, match=r"set config\.data\.cache"):
        ShardReader("s3://bucket/shards/a/1.0.0", [])


def test_builds_are_refused_with_the_way_to_go() -> None:
    with pytest.raises(DatasetError, match="build there, then copy"):
        procedural.build("gs://bucket/shards", options=BuildOptions(workers=1, progress=False))


def test_a_missing_library_and_an_unknown_kind_are_configuration_errors(
    micro_config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(fsspec.registry, "gs", raising=False)
    micro_config.data.dir = "gs://bucket/shards"
    with pytest.raises(check.ConfigError, match=r"config\.data\.dir: gs:// needs a library .*irm_jax\[gcs\]"):
        check.check_values(micro_config)
    with pytest.raises(check.ConfigError, match="--workdir: 'gx://bucket/run' is on no known kind"):
        command_line.folder("gx://bucket/run", "--workdir")
    assert command_line.folder("~/run", "--workdir") == epath.Path("~/run").expanduser()
    storage.require_library("runs/a")


def test_s3_needs_a_copy_of_the_data_and_holds_no_runs(
    micro_config: ConfigDict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda kind: Bucket)  # as if s3fs were installed
    micro_config.data.dir = "s3://bucket/shards"
    with pytest.raises(check.ConfigError, match=r"config\.data\.dir: records .* set config\.data\.cache to a local"):
        check.check_values(micro_config)
    micro_config.data.cache = str(tmp_path)
    check.check_values(micro_config)
    for kind in ("s3", "az"):
        with pytest.raises(
            check.ConfigError, match=rf"--workdir: {kind}://bucket/run cannot hold a run.* a folder of gs://"
        ):
            command_line.folder(f"{kind}://bucket/run", "--workdir")
    command_line.folder("gs://bucket/run", "--workdir")
