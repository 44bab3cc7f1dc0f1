"""Chains of kills: a command is started again and again until it ends, and is then compared."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from data_pipelines.dataset.reader import open_dataset
from tests.soak.results import Fault, check_whole, names_of
from tests.soak.running import ROOT, TASKS, Command, run_file, shared_memory

LEAVE_SECONDS = 5.0
"""In which every process of a command must be gone after the command."""
END_SECONDS = 300.0
"""In which a command must have ended after a signal or the death of a child; far more than it needs."""


class Soak:
    """The kills; `summary` counts them."""

    def __init__(self, base: Path, seed: int, names: Sequence[str]) -> None:
        self.base, self.random, self.names = base, random.Random(seed), list(names)
        self.kills: collections.Counter[str] = collections.Counter()
        self.ends: dict[str, list[float]] = collections.defaultdict(list)
        self.chains, self.starts, self.numbers, self.ended = 0, 0, itertools.count(), False
        self.seconds: dict[str, float] = {}
        self.events: dict[str, int] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        self.files: dict[str, set[str]] = {}

    def prepare(self) -> None:
        """Runs every command undisturbed, and what they need."""
        self.base.mkdir(parents=True, exist_ok=True)
        self._undisturbed("build")
        (self.base / "run.py").write_text(run_file(self.base / "straight_build/data"))
        self._undisturbed("train")
        shutil.copytree(self.base / "straight_train/run/checkpoints", self.base / "trained/checkpoints")
        self._write_inputs()
        for name in ("evaluate", "embed", "convert"):
            if name in self.names:
                self._undisturbed(name)

    def _write_inputs(self) -> None:
        reader = open_dataset(self.base / "straight_build/data", "procedural_trad").reader("query", ("image",))
        (self.base / "images").mkdir()
        for number in range(40):
            (self.base / f"images/{number}.jpg").write_bytes(reader[number % len(reader)]["image"])
        sys.path.insert(0, str(ROOT / "tests/convert"))
        import weights

        weights.write(weights.vit(layers=6), self.base / "vit.safetensors")

    def _undisturbed(self, name: str) -> None:
        folder = self.base / f"straight_{name}"
        folder.mkdir()
        count = self.base / f"count_{name}"
        command = Command(TASKS[name], folder, self.base, None, count)
        status = command.process.wait(1200)
        self.seconds[name] = time.monotonic() - command.started
        if status:
            raise Fault(f"{name}, undisturbed, ended with status {status}:\n{command.log.read_text()[-3000:]}")
        self.events[name] = max(file.stat().st_size for file in self.base.glob(f"count_{name}.*"))
        self.expected[name] = TASKS[name].read(folder)
        self.files[name] = names_of(folder)
        print(f"{name}: {self.seconds[name]:.1f} s, {self.events[name]} writes and renames undisturbed", flush=True)

    def run(self, kills: int, jobs: int) -> None:
        """Kills until there were so many, in as many chains at once as `jobs`; the last ones end undisturbed."""
        with futures.ThreadPoolExecutor(jobs) as pool:
            running = [pool.submit(self._chains, kills) for _ in range(jobs)]
            for future in futures.as_completed(running):
                if future.exception() is not None:
                    self.ended = True
            for future in running:
                future.result()

    def _chains(self, kills: int) -> None:
        while not self.ended and sum(self.kills.values()) < kills:
            name = self.random.choices(self.names, [TASKS[name].weight for name in self.names])[0]
            folder = self.base / f"chain{next(self.numbers)}_{name}"
            folder.mkdir()
            # As many kills as a user might meet, then the end.
            left = self.random.randint(4, 14)
            while True:
                wanted = left > 0 and not self.ended and sum(self.kills.values()) < kills
                done, killed = self._start(name, folder, disturbed=wanted)
                left -= killed
                if done:
                    break
            self._compare(name, folder)
            self.chains += 1
            shutil.rmtree(folder)
            folder.with_suffix(".log").unlink()
            print(f"{sum(self.kills.values())} kills; chain {self.chains} ({name}): as undisturbed", flush=True)

    def _start(self, name: str, folder: Path, disturbed: bool) -> tuple[bool, bool]:
        """One start of the command -> whether it came to its end, and whether it was killed."""
        task, before = TASKS[name], shared_memory()
        self.starts += 1
        exact = disturbed and self.random.random() < 1 / 3
        fault = None
        if exact:
            sent = self.random.choice(["SIGKILL", "SIGKILL", "GROUP:SIGKILL", "GROUP:SIGTERM", "GROUP:SIGINT"])
            fault = self.random.randint(1, self.events[name]), sent
        command = Command(task, folder, self.base, fault)
        what, killed = "", False
        if exact:
            what = f"{fault[1]} at a write"
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(self.seconds[name] * 20 + END_SECONDS)
            killed = command.mark_file.exists()
        elif disturbed:
            what, killed = self._kill_any_time(name, command)
        try:
            status = command.process.wait(END_SECONDS if disturbed else self.seconds[name] * 20 + END_SECONDS)
        except subprocess.TimeoutExpired:
            raise Fault(
                f"{name} goes on {END_SECONDS:.0f} s after {what or 'its start'}: {command.processes()}\n"
                f"{command.log.read_text()[-3000:]}"
            ) from None
        if killed:
            self.kills[f"{name}: {what}"] += 1
        command.mark_file.unlink(missing_ok=True)
        self._check_end(name, folder, command, what, killed, status)
        self._check_left(command, what, before)
        check_whole(folder)
        return status == 0, killed

    def _kill_any_time(self, name: str, command: Command) -> tuple[str, bool]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(self.random.uniform(0, 1.5 * self.seconds[name]))
            return "", False  # it was faster
        kind = self.random.choice(["main", "main", "child", "child", "SIGTERM", "SIGINT", "SIGKILL"])
        children = command.children()
        if kind == "child" and children:
            os.kill(self.random.choice(children), signal.SIGKILL)
            kind = "SIGKILL to a child"
        elif kind in ("main", "child"):
            command.process.kill()
            kind = "SIGKILL"
        else:
            os.killpg(command.process.pid, getattr(signal, kind))
            kind = f"GROUP:{kind}"
        begun = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(END_SECONDS)
        self.ends[kind].append(time.monotonic() - begun)
        return kind, True

    def _check_end(self, name: str, folder: Path, command: Command, what: str, killed: bool, status: int) -> None:
        said = command.log.read_text(errors="replace")
        allowed = {0}
        if killed:
            allowed |= (
                {1}
                if "child" in what
                else {-signal.SIGKILL}
                if "KILL" in what
                else {1, -signal.SIGTERM, -signal.SIGINT}
            )
            # A child that dies of an exact kill is as one that is killed.
            allowed |= {1} if "write" in what else set()
        # Python's own start, before it runs a line of ours, prints a traceback at Ctrl-C, and says status 1.
        traceback = re.search(rf'File "{ROOT}/(irm_jax|data_pipelines)/', said)
        if status not in allowed or (traceback and not (killed and "KILL" in what and status < 0)):
            raise Fault(f"{name} ended with status {status} after {what or 'no kill'}:\n{said[-4000:]}")
        if status == 1 and not said.strip():
            raise Fault(f"{name} ended with status 1 after {what} without a message")

    def _check_left(self, command: Command, what: str, before: set[str]) -> None:
        deadline = time.monotonic() + LEAVE_SECONDS
        while (left := command.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            raise Fault(f"{LEAVE_SECONDS:.0f} s after {what or 'the end'} there are {left}")
        if more := shared_memory() - before:
            raise Fault(f"after {what or 'the end'} there is shared memory: {sorted(more)}")

    def _compare(self, name: str, folder: Path) -> None:
        found, expected = TASKS[name].read(folder), self.expected[name]
        if found != expected:
            other = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
            raise Fault(f"{name} in {folder}: another result than undisturbed: {len(other)}, as {other[:10]}")
        if names_of(folder) != self.files[name]:
            raise Fault(f"{name} in {folder}: other files than undisturbed: {names_of(folder) ^ self.files[name]}")

    def summary(self) -> str:
        lines = [f"{sum(self.kills.values())} kills in {self.starts} starts, {self.chains} chains came to their end"]
        lines += [f"  {count:4d} {what}" for what, count in sorted(self.kills.items())]
        for kind, seconds in sorted(self.ends.items()):
            median = sorted(seconds)[len(seconds) // 2]
            lines.append(f"  ended after {kind}: median {median:.2f} s, at most {max(seconds):.2f} s")
        return "\n".join(lines)
