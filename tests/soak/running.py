"""The commands that are killed, and what there is of each while it runs: processes, shared memory."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from irm_jax.config import load
from tests.soak.results import read_bytes, read_conversion, read_run

ROOT = Path(__file__).resolve().parents[2]
BUILDER = """
import data_pipelines
data_pipelines.end_at_ctrl_c()
import functools, sys
from data_pipelines import build, commands, procedural
small = procedural.Benchmark(train_people=16, test_people=6, image_size=(64, 32))
procedural.build = functools.partial(procedural.build, benchmark=small)
sys.exit(commands.run(build.main))
"""


def run_file(data: Path) -> str:
    """Returns a run file: one task and a memory bank, a few seconds from start to report."""
    config = load("procedural")
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_trad"}:
            del config.data.train[name]
        for name in set(config.evaluation.sets) - {"procedural_trad"}:
            del config.evaluation.sets[name]
    config.data.update({"dir": str(data), "batch_size": 16, "batch_blocks": 2, "workers": 2, "threads": 1})
    config.data.procedural.update({"train_people": 16, "test_people": 6, "image_size": (64, 32)})
    config.data.train.procedural_trad.update({"images_per_identity": 2, "share": 2.0})
    config.compilation_cache = ""
    config.model.update(
        {"width": 16, "image_size": (64, 32), "image_depth": 1, "image_heads": 2, "text_depth": 1, "text_heads": 2,
         "template_depth": 1, "template_heads": 2, "projection_width": 8, "editing_depth": 1, "mlp_ratio": 2.0}
    )  # fmt: skip
    config.memory_bank.update({"size": 48, "ramp_steps": 2})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    config.train.update({"steps": 12, "log_every": 1})
    config.checkpoint.update({"every": 3})
    config.evaluation.update({"controls": False, "task_free": False, "top500": False, "batch_size": 32})
    config.report.update({"queries": 1, "rollouts": 0})
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


MAIN = ("-m", "irm_jax.main", "--config", "BASE/run.py", "--workdir", "FOLDER/run")
TASKS = {
    "train": Task(4, MAIN, (), read_run),
    "build": Task(
        3, ("-c", BUILDER, "--dataset", "procedural", "--out", "FOLDER/data", "--workers", "2"), (), read_bytes
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
