"""The lock of a folder on object storage, which has neither flock nor rename: an object that is made only if absent.

The object `.lock-000001.json` names its owner, and its owner writes it again every HEARTBEAT seconds. Whoever finds one
that is not written any more within EXPIRY seconds, or whose owner is a process of this machine that has ended, makes
the object of the next number; of several who try, the store lets one succeed. The store's clock and the owner's are
not compared: the one who waits watches whether the object changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath
from etils.epath import backend

from data_pipelines.errors import RetryError

HEARTBEAT, EXPIRY = 10.0, 60.0
"""Seconds between two writes of the object, and without one after which its owner counts as dead."""
_PREFIX = ".lock-"


class LockedError(RetryError):
    """Reports a folder that another process writes into; the message names that process."""


def locked(folder: object, owner: str) -> LockedError:
    """Returns the error for a folder whose lock is held."""
    by = f" ({owner.strip()})" if owner.strip() else ""
    return LockedError(
        f"another process{by} is working in {folder}: wait until it ends, end it, or choose another folder"
    )


def describe_owner() -> str:
    """Returns this process in words: number, machine, start, command."""
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()} since {started}: {shlex.join(sys.argv)[:200]}"


@contextlib.contextmanager
def hold(folder: epath.Path, *, wait: bool = False, on_loss: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of a folder. Raises LockedError if another process holds it, unless `wait`.

    `on_loss` is called in another thread if the lock was lost, because this process could not renew it for EXPIRY
    seconds and another one took it; it defaults to ending this process, which must not write any more.
    """
    made = _ObjectLock(folder, on_loss or _end)
    while not made.acquire():
        if not wait:
            raise locked(folder, made.seen_owner)
        time.sleep(HEARTBEAT)
    try:
        yield
    finally:
        made.release()


def _end() -> None:
    logging.error("the lock of this run's folder was lost to another process: this one ends without writing any more")
    os._exit(RetryError.exit_status)  # an exception would reach the main thread only after its next write


class _ObjectLock:
    """One attempt to hold a lock, and the thread that renews it."""

    def __init__(self, folder: epath.Path, on_loss: Callable[[], None]) -> None:
        self._folder, self._store = str(folder).rstrip("/"), backend.fsspec_backend.fs(folder)
        self._record: dict[str, Any] = {"token": uuid.uuid4().hex, "owner": describe_owner(), "place": _place()}
        self._on_loss, self._released = on_loss, threading.Event()
        self._number, self._thread = 0, threading.Thread(target=self._renew, daemon=True)
        self.seen_owner = ""

    def acquire(self) -> bool:
        """Returns whether this process holds the lock now; it waits until a silent owner counts as dead."""
        dead: set[str] = set()
        while True:
            found = self._objects()
            alive = [name for name in found if name not in dead]
            if alive:
                if not self._is_dead(alive[-1]):
                    return False
                dead.add(alive[-1])
                continue
            self._number = 1 + max((_number(name) for name in found), default=0)
            if not self._create():
                continue  # another process was faster: watch that one
            # Whoever made an object before is seen here, or sees ours: at most one of the two goes on.
            others = [name for name in self._objects() if name not in dead and name != self._name]
            if others:
                self._remove(self._name)
                self.seen_owner = (self._read(others[-1]) or {}).get("owner", "")
                return False
            for name in dead:
                self._remove(name)
            self._thread.start()
            return True

    def release(self) -> None:
        self._released.set()
        self._thread.join(EXPIRY)
        self._remove(self._name)

    @property
    def _name(self) -> str:
        return f"{_PREFIX}{self._number:06d}.json"

    def _objects(self) -> list[str]:
        """Names of the lock's objects, by number."""
        self._store.invalidate_cache()
        try:
            paths = self._store.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted((name for name in names if name.startswith(_PREFIX)), key=_number)

    def _create(self) -> bool:
        """Makes our object if there is none of its number. (GCS: if-generation-match 0; S3: if-none-match.)"""
        try:
            self._store.pipe_file(f"{self._folder}/{self._name}", json.dumps(self._record).encode(), mode="create")
        except FileExistsError:
            pass  # maybe ours: a client tries again if an answer is lost
        except OSError as error:
            if not any(text in str(error) for text in ("412", "PreconditionFailed", "pre-condition")):
                raise
        found = self._read(self._name)
        return found is not None and found.get("token") == self._record["token"]

    def _is_dead(self, name: str) -> bool:
        """Watches an object: it is gone, its owner has ended on this machine, or it does not change for EXPIRY."""
        first = self._read(name)
        if first is None:
            return True
        self.seen_owner = str(first.get("owner", ""))
        place = first.get("place") or {}
        if place and place.get("machine") == _place()["machine"]:
            return _start_of(place["process"]) != place["start"]
        logging.info("waiting up to %.0f s whether the owner of %s/%s is alive", EXPIRY, self._folder, name)
        end = time.monotonic() + EXPIRY
        while time.monotonic() < end:
            time.sleep(HEARTBEAT / 5)
            now = self._read(name)
            if now != first:
                return now is None
        return True

    def _renew(self) -> None:
        beat, renewed, sightings = 0, time.monotonic(), 0
        while not self._released.wait(HEARTBEAT):
            beat += 1
            try:
                taken = any(_number(name) > self._number for name in self._objects())
                sightings = sightings + 1 if taken else 0
                # One sighting may be of a process that withdraws at once.
                if sightings > 1 or (taken and time.monotonic() > renewed + EXPIRY / 2):
                    self._on_loss()
                    return
                content = json.dumps({**self._record, "beat": beat}).encode()
                self._store.pipe_file(f"{self._folder}/{self._name}", content)
                renewed = time.monotonic()
            except Exception as error:  # clients of object storage raise many kinds
                logging.warning("the lock of %s could not be renewed: %s", self._folder, error)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._store.cat_file(f"{self._folder}/{name}")))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(f"{self._folder}/{name}")


def _number(name: str) -> int:
    digits = name.removeprefix(_PREFIX).removesuffix(".json")
    return int(digits) if digits.isascii() and digits.isdecimal() else 0


def _place() -> dict[str, Any]:
    """This process, so that another one of the same machine and the same container can tell whether it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return {}
    return {"machine": machine, "process": os.getpid(), "start": _start_of(os.getpid())}


def _start_of(process: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
