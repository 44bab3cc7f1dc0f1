"""Compiles a TPU program up to its schedule and memory layout, without waiting for machine code.

All figures of the table are known then. At paper scale this takes a few minutes of one core, and code generation over
half an hour more. The compiler cannot be told to stop, but it dumps its stages: it runs in a process of its own
(`compiler_process`), which is ended as soon as the files are complete.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from data_pipelines.files import temporary_folder
from irm_jax.compile.chips import Topology
from irm_jax.errors import UserError

COMPILER = ("-m", "irm_jax.compile.compiler_process")
JOB, ERROR, LOG = "job.pickle", "error.txt", "log.txt"
PROGRAM = "*.after_optimizations_after_buffer_assignment.txt"  # the last file before code generation
MEMORY = "*.after_optimizations-memory-usage-report.txt"
POLL_S, TELL_S = 0.5, 60.0


class CompilerError(UserError, RuntimeError):
    """The compiler refused the program, or its process ended early; the message says how."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the process needs to make a program again: it is number `number` of a step of a configuration."""

    config: ConfigDict
    step: str
    number: int
    topology: Topology


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A program before code generation.

    `text`: as `compiled.as_text()`, except for what code generation still changes (in a two-block transformer, 5% of
    the memory traffic). `peak_bytes`: what is allocated in a device's memory.
    """

    text: str
    peak_bytes: int


class Compilation:
    """A compilation in a process of its own. It begins with the object and ends on leaving the `with` block."""

    def __init__(self, job: Job) -> None:
        self._kept = temporary_folder("irm_jax_compile_")
        self.folder = Path(self._kept.name)
        (self.folder / JOB).write_bytes(pickle.dumps(job))
        with open(self.folder / LOG, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *COMPILER, str(self.folder), str(os.getpid())], stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Compilation:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._kept.cleanup()

    def result(self) -> Scheduled:
        """Waits for the memory layout. Raises CompilerError with the compiler's message."""
        told, before = time.monotonic(), -1
        while True:
            ended = self._process.poll() is not None  # first, so that files written before its end are seen
            if (error := self.folder / ERROR).is_file():
                raise CompilerError(error.read_text("utf-8"))
            size = sum(file.stat().st_size for file in self.folder.glob(PROGRAM))
            if size and (ended or size == before):
                return self._read()
            if ended:
                raise CompilerError(self._last_words())
            before = size
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                logging.info("still compiling")
            time.sleep(POLL_S)

    def _read(self) -> Scheduled:
        program, memory = (next(self.folder.glob(name)).read_text("utf-8") for name in (PROGRAM, MEMORY))
        return Scheduled(program, peak_bytes(memory))

    def _last_words(self) -> str:
        status = self._process.returncode
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        last = "\n".join((self.folder / LOG).read_text("utf-8", errors="replace").splitlines()[-20:])
        return f"the compiler's process ended {how} before the memory layout was done:\n{last}"


def peak_bytes(report: str) -> int:
    """The bytes allocated in a device's main memory, read from the compiler's memory report."""
    found = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.MULTILINE)
    if not found:
        raise CompilerError(f"a memory report in an unknown form: {report[:200]!r}")
    return int(found[1])
