"""The lock of a folder on object storage, against a bucket in memory behind gs:// (bucket.py)."""

from __future__ import annotations

import json
import threading

import pytest
from bucket import Bucket, install
from etils import epath
from lock_contest import contest

from data_pipelines import files, object_lock

FOLDER = epath.Path("gs://bucket/runs/a")
FIRST = "bucket/runs/a/.lock-000001.json"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(object_lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(object_lock, "EXPIRY", 0.5)
    return install(monkeypatch)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes do not know of each other whether they are on one machine."""
    monkeypatch.setattr(object_lock, "_place", dict[str, object])


def held_by(bucket: Bucket, **record: object) -> None:
    bucket.files[FIRST] = json.dumps({"token": "other", "owner": "process 7 on b", **record}).encode()


def take() -> None:
    with files.lock(FOLDER):
        pass


def test_it_is_made_held_and_removed(bucket: Bucket) -> None:
    with files.lock(FOLDER):
        assert list(bucket.files) == [FIRST]
        with pytest.raises(files.LockedError, match=r"process \d+ on .* is working in gs://bucket/runs/a"):
            take()
    assert bucket.files == {}
    with files.lock(FOLDER):
        assert list(bucket.files) == [FIRST]


def test_a_try_whose_answer_was_lost_holds_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of object storage try again by themselves, and are told that their own object is there."""
    put = bucket.pipe_file

    def twice(path: str, value: bytes, **options: object) -> None:
        put(path, value, **options)
        put(path, value, **options)

    monkeypatch.setattr(bucket, "pipe_file", twice)
    take()
    assert bucket.files == {}


def test_an_owner_that_renews_it_keeps_it(bucket: Bucket, elsewhere: None) -> None:
    with files.lock(FOLDER), pytest.raises(files.LockedError):
        take()
    assert bucket.written.count(FIRST) > 1


def test_it_expires_with_its_owner(bucket: Bucket, elsewhere: None) -> None:
    held_by(bucket)
    with files.lock(FOLDER):
        assert list(bucket.files) == ["bucket/runs/a/.lock-000002.json"]
    assert bucket.files == {}


def test_an_owner_of_this_machine_that_has_ended_does_not_keep_others_waiting(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_lock, "EXPIRY", 1e9)
    place = object_lock._place()
    held_by(bucket, place={**place, "start": "of another process of this number"})
    with files.lock(FOLDER):
        pass
    held_by(bucket, place=place)
    with pytest.raises(files.LockedError, match="process 7 on b"):
        take()


def test_of_many_that_try_at_once_at_most_one_holds_it(bucket: Bucket, elsewhere: None) -> None:
    held_by(bucket)
    most, refused = contest(FOLDER, 0.1)
    assert most == 1
    assert len(refused) >= 1
    assert bucket.files == {}


def test_one_who_lost_it_is_told(bucket: Bucket, elsewhere: None) -> None:
    told = threading.Event()
    with object_lock.hold(FOLDER, on_loss=told.set):
        bucket.files["bucket/runs/a/.lock-000002.json"] = b"{}"
        assert told.wait(10)


def test_storage_that_refuses_is_a_write_error(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Forbidden: https://storage.googleapis.com/upload")

    monkeypatch.setattr(bucket, "pipe_file", refuse)
    with pytest.raises(files.WriteError, match=r"gs://bucket/runs/a cannot be written \(Forbidden"):
        take()
