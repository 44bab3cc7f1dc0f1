"""Kills commands at random, runs them again until they end, and compares what they leave with an undisturbed run.

    python -m tests.soak --kills 200 [--seed 0] [--folder DIR] [--tasks train,build]

Training with two reader processes, building with two processes, evaluating, embedding and converting are killed: the
command itself, a reader or builder, or the whole process group (SIGTERM, SIGINT as a terminal's Ctrl-C, SIGKILL); a
third of the kills come at an exact write, rename or removal (hook/sitecustomize.py), the others at any time. After
each, no process of the command may be left, nor shared memory, no file of results may be half-written, and the message
and the exit status must fit; in the end parameters and results must be bit-equal to the undisturbed run's, and the same
files must be there. Prints a summary; exits with 1 at the first difference, and keeps the folder.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILDER = """
import functools, sys
from data_pipelines import build, procedural
small = procedural.Benchmark(train_people=16, test_people=6, image_size=(64, 32))
procedural.build = functools.partial(procedural.build, benchmark=small)
sys.exit(build.main(sys.argv[1:]))
"""
LEAVE_SECONDS = 5.0
"""In which every process of a command must be gone after the command."""
END_SECONDS = 120.0
"""In which a command must have ended after a signal or the death of a child; far more than it needs."""


class Fault(Exception):
    """What a kill left behind, or broke."""


def run_file(data: Path) -> str:
    """Returns a run file: two tasks, every part of the state, seconds from start to report."""
    sys.path.insert(0, str(ROOT))
    from irm_jax.config import load

    config = load("procedural")
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_trad", "procedural_t2i"}:
            del config.data.train[name]
        for name in set(config.evaluation.sets) - {"procedural_trad"}:
            del config.evaluation.sets[name]
    config.data.update({"dir": str(data), "batch_size": 24, "batch_blocks": 2, "workers": 2, "threads": 1})
    config.data.procedural.update({"train_people": 16, "test_people": 6, "image_size": (64, 32)})
    config.data.train.procedural_trad.update({"images_per_identity": 2, "share": 2.0})
    config.compilation_cache = ""
    config.model.update(
        {"width": 16, "image_size": (64, 32), "image_depth": 1, "image_heads": 2, "text_depth": 1, "text_heads": 2,
         "template_depth": 1, "template_heads": 2, "projection_width": 8, "editing_depth": 1, "mlp_ratio": 2.0}
    )  # fmt: skip
    config.memory_bank.update({"size": 72, "ramp_steps": 2})
    config.text_to_image.update({"momentum_contrast": True, "queue_size": 16})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    config.train.update({"steps": 12, "log_every": 1})
    config.checkpoint.update({"every": 3})
    config.evaluation.update({"controls": False, "task_free": False, "top500": False, "batch_size": 32})
    config.report.update({"queries": 1, "rollouts": 1})
    values = repr(config.to_dict())
    return f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values})\n"


@dataclasses.dataclass(frozen=True)
class Task:
    """A command, and how its results are read.

    Attributes:
      weight: of 10, how often it is drawn.
      command: arguments of python; FOLDER and BASE stand for where it writes and where its input lies.
      given: what of BASE is copied into FOLDER before.
      read: FOLDER -> what must be equal.
    """

    weight: int
    command: tuple[str, ...]
    given: tuple[str, ...]
    read: Callable[[Path], dict[str, Any]]


def arrays_of(folder: Path) -> dict[str, bytes]:
    """{array: bytes} of every .npz and .safetensors file below `folder`, whatever the folders between are called."""
    import numpy as np
    from safetensors.numpy import load_file

    found = {}
    for file in folder.rglob("*"):
        content = {}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as opened:
                content = {name: opened[name] for name in opened.files}
        elif file.suffix == ".safetensors":
            content = load_file(file)
        found.update({f"{file.name}:{name}": array.tobytes() for name, array in content.items()})
    return found


def read_run(folder: Path) -> dict[str, Any]:
    """The whole state of the last checkpoint, losses of every step, figures and per-query results."""
    import jax

    from irm_jax import checkpoint

    found: dict[str, Any] = {}
    checkpoints = folder / "run/checkpoints"
    if steps := checkpoint.saved_steps(checkpoints):
        tree = checkpoint.load_arrays(checkpoints / str(steps[-1]) / "state")
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        found |= {f"step {steps[-1]}{jax.tree_util.keystr(path)}": leaf.tobytes() for path, leaf in leaves}
    if (log := folder / "run/metrics.jsonl").exists():
        for record in map(json.loads, log.read_text().splitlines()):
            kept = {k: v for k, v in record.items() if "/" in k or k in ("loss", "gradient_norm")}
            if f"metrics {record['step']}" in found and "loss" in kept:
                raise Fault(f"{log} has step {record['step']} twice")
            if "loss" in kept:
                found[f"metrics {record['step']}"] = kept
    for file in (folder / "run").rglob("results.json"):
        found["figures"] = json.loads(file.read_text())["figures"]
    return found | arrays_of(folder / "run")


def read_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file."""
    kept = (file for file in folder.rglob("*") if file.is_file() and file.name not in (".lock", "lock"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


def read_conversion(folder: Path) -> dict[str, Any]:
    """The arrays and the manifest of a converted folder."""
    import jax

    from irm_jax import checkpoint

    manifest = json.loads((folder / "weights/manifest.json").read_text())
    tree = checkpoint.load_arrays(folder / "weights/arrays")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"manifest": manifest, **{jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in leaves}}


MAIN = ("-m", "irm_jax.main", "--config", "BASE/run.py", "--workdir", "FOLDER/run")
TASKS = {
    "train": Task(5, MAIN, (), read_run),
    "build": Task(
        2, ("-c", BUILDER, "--dataset", "procedural", "--out", "FOLDER/data", "--workers", "2"), (), read_bytes
    ),
    "evaluate": Task(1, (*MAIN, "--mode", "evaluate"), ("trained",), read_run),
    "embed": Task(1, (*MAIN, "--mode", "embed", "--config.embed.images=BASE/images"), ("trained",), read_run),
    "convert": Task(
        1, ("-m", "irm_jax.convert", "--kind", "vit", "--heads", "2", "--source", "BASE/vit.safetensors", "--out",
            "FOLDER/weights"), (), read_conversion,
    ),
}  # fmt: skip


class Command:
    """A running command of a task, in a process group of its own; every process of it has `mark` in its environment."""

    def __init__(self, task: Task, folder: Path, base: Path, fault: tuple[int, str] | None, count: Path | None = None):
        self.mark, self.hit = uuid.uuid4().hex, folder / "hit"
        self.hit.unlink(missing_ok=True)
        for name in task.given:
            if not (folder / "run").exists():
                shutil.copytree(base / name, folder / "run")
        places = {"FOLDER": str(folder), "BASE": str(base)}
        words = [re.sub("FOLDER|BASE", lambda found: places[found[0]], word) for word in task.command]
        number, name = fault or (0, "SIGKILL")
        places_of_work = [folder / "run", folder / "data", folder / "weights"]
        below = os.path.commonpath(places_of_work) + "/"
        environment = {
            **os.environ, "SOAK_RUN": self.mark, "SOAK_FAULT": f"{below}|{number}|{name}|{base / 'mark'}{self.mark}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/soak/hook"), str(ROOT)]), "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": "", "GLIBC_TUNABLES": "glibc.malloc.arena_max=8",
        }  # fmt: skip
        if count is not None:
            environment["SOAK_COUNT"] = str(count)
        self.mark_file = base / f"mark{self.mark}"
        self.log = folder.with_suffix(".log")
        self.started = time.monotonic()
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """{number: command} of the processes that live; a zombie has ended."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if f"SOAK_RUN={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        return found

    def children(self) -> list[int]:
        return [pid for pid, command in self.processes().items() if "child_processes" in command]


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def use_own_shared_memory() -> bool:
    """Gives this process and its children a /dev/shm of their own, where the system lets it (root on Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        mine = libc.unshare(0x20000) == 0 and libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
        return mine and libc.mount(b"soak", b"/dev/shm", b"tmpfs", 0, b"size=64m") == 0
    except AttributeError:
        return False


class Soak:
    """The kills; `summary` counts them."""

    def __init__(self, base: Path, seed: int, names: Sequence[str]) -> None:
        self.base, self.random, self.names = base, random.Random(seed), list(names)
        self.kills: collections.Counter[str] = collections.Counter()
        self.ends: dict[str, list[float]] = collections.defaultdict(list)
        self.chains, self.starts = 0, 0
        self.seconds: dict[str, float] = {}
        self.events: dict[str, int] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        self.files: dict[str, set[str]] = {}

    def prepare(self) -> None:
        """Runs every command undisturbed, and what they need."""
        self.base.mkdir(parents=True, exist_ok=True)
        self._undisturbed("build")
        (self.base / "run.py").write_text(run_file(self.base / "straight_build/data"))
        self._undisturbed("train")  # compiles
        shutil.rmtree(self.base / "straight_train")
        self._undisturbed("train")
        shutil.copytree(self.base / "straight_train/run/checkpoints", self.base / "trained/checkpoints")
        self._write_inputs()
        for name in ("evaluate", "embed", "convert"):
            if name in self.names:
                self._undisturbed(name)
                shutil.rmtree(self.base / f"straight_{name}")
                self._undisturbed(name)

    def _write_inputs(self) -> None:
        from data_pipelines.dataset.reader import open_dataset

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

    def run(self, kills: int) -> None:
        """Kills until there were so many; then the running chain is finished undisturbed."""
        for name in self._names_in_turn():
            if sum(self.kills.values()) >= kills:
                return
            folder = self.base / f"chain{self.chains}_{name}"
            folder.mkdir()
            # As many kills as a user might meet, then the end.
            left = min(self.random.randint(1, 6), kills - sum(self.kills.values()))
            while True:
                done, killed = self._start(name, folder, disturbed=left > 0)
                left -= killed
                if done:
                    break
            self._compare(name, folder)
            self.chains += 1
            shutil.rmtree(folder)
            folder.with_suffix(".log").unlink()
            print(f"{sum(self.kills.values())} kills; chain {self.chains} ({name}): as undisturbed", flush=True)

    def _names_in_turn(self) -> Iterator[str]:
        while True:
            yield self.random.choices(self.names, [TASKS[name].weight for name in self.names])[0]

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
            command.process.wait(self.random.uniform(0, self.seconds[name]))
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
            allowed |= {1} if "child" in what else {-signal.SIGKILL} if "KILL" in what else {1, -signal.SIGTERM}
            # A child that dies of an exact kill is as one that is killed.
            allowed |= {1} if "write" in what else set()
        if status not in allowed or ("Traceback" in said and not (killed and "KILL" in what and status < 0)):
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


def names_of(folder: Path) -> set[str]:
    """The names of all files, numbers as N (steps are compared by `read`); event files are one per start."""
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {re.sub(r"[0-9a-f]*\d[0-9a-f]*", "N", str(file)) for file in files if "tensorboard" not in file.parts}


def check_whole(folder: Path) -> None:
    """Raises Fault for a file of results that is half-written: it may be missing, or old, but not broken."""
    import numpy as np

    for file in folder.rglob("*"):
        if file.name.startswith(("tmp-", ".")) or any(part.startswith((".", "tmp-")) for part in file.parts):
            continue
        if "checkpoint" in str(file) or "tmp" in file.name:
            continue  # orbax's own; a step that is not whole has another name
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix == ".npz":
                with np.load(file) as opened:
                    _ = [opened[name] for name in opened.files]
            elif file.suffix == ".html" and not file.read_text().rstrip().endswith("</html>"):
                raise ValueError("no end")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise Fault(f"{file} is half-written: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if all kills were clean."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in, new; a temporary one by default")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated: %(default)s")
    options = parser.parse_args(arguments)
    base = (options.folder or Path(tempfile.mkdtemp(prefix="soak"), "work")).absolute()
    print(f"in {base}; a /dev/shm of its own: {use_own_shared_memory()}", flush=True)
    soak = Soak(base, options.seed, options.tasks.split(","))
    try:
        soak.prepare()
        soak.run(options.kills)
    except Fault as fault:
        print(f"{soak.summary()}\nFAULT: {fault}\nkept: {base}", flush=True)
        return 1
    print(f"{soak.summary()}\nall clean", flush=True)
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
