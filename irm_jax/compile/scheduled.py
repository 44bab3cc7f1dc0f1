"""A TPU program as its compiler schedules it and lays it out in memory, without waiting for machine code.

All figures of the table stand then. At paper scale that is a few minutes of one core, and code generation over half an
hour more. The compiler cannot be told to stop there, but it writes down what it has: a process of its own compiles
until those files stand, and is then ended.
"""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from irm_jax.compile.chips import Topology
from irm_jax.errors import UserError

COMPILER = ("-m", "irm_jax.compile.compiler_process")
JOB, ERROR, LOG = "job.pickle", "error.txt", "log.txt"
PROGRAM = "*.after_optimizations_after_buffer_assignment.txt"  # the last that is written before code is generated
MEMORY = "*.after_optimizations-memory-usage-report.txt"
POLL_S, TELL_S = 0.5, 60.0


class CompilerError(UserError, RuntimeError):
    """The compiler's refusal, or how its process ended without a word."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What the process needs to make the program again: program `number` of a step of a configuration."""

    config: ConfigDict
    step: str
    number: int
    topology: Topology


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """`text`: the program, as `compiled.as_text()` has it but for what code generation still changes (what it writes
    and reads differed by 5% in a two-block transformer). `peak_bytes`: all that is allocated in a device's memory."""

    text: str
    peak_bytes: int


class Compilation:
    """A compilation in a process of its own, begun when this is made and ended on leaving the `with` block."""

    def __init__(self, job: Job) -> None:
        self._kept = tempfile.TemporaryDirectory(prefix="irm_jax_compile_", ignore_cleanup_errors=True)
        self.folder = Path(self._kept.name)
        (self.folder / JOB).write_bytes(pickle.dumps(job))
        with open(self.folder / LOG, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *COMPILER, str(self.folder)], stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Compilation:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._kept.cleanup()

    def result(self) -> Scheduled:
        """Waits until the program is laid out. Raises CompilerError with the compiler's message."""
        told, before = time.monotonic(), -1
        while True:
            ended = self._process.poll() is not None  # asked first: what it wrote before its end counts
            if (error := self.folder / ERROR).is_file():
                raise CompilerError(error.read_text("utf-8"))
            size = sum(file.stat().st_size for file in self.folder.glob(PROGRAM))
            if size and (ended or size == before):
                return self._read()
            if ended:
                raise CompilerError(self._epitaph())
            before = size
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                logging.info("the compiler is still at it")
            time.sleep(POLL_S)

    def _read(self) -> Scheduled:
        program, memory = (next(self.folder.glob(name)).read_text("utf-8") for name in (PROGRAM, MEMORY))
        return Scheduled(program, peak_bytes(memory))

    def _epitaph(self) -> str:
        status = self._process.returncode
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        last = "\n".join((self.folder / LOG).read_text("utf-8", errors="replace").splitlines()[-20:])
        return f"the compiler's process ended {how} before the program was laid out:\n{last}"


def peak_bytes(report: str) -> int:
    """The bytes allocated in a device's main memory, from the compiler's memory report."""
    found = re.search(r"^Memory Space: default .*\nTotal bytes: (\d+)", report, re.MULTILINE)
    if not found:
        raise CompilerError(f"a memory report of a kind that is not known here: {report[:200]!r}")
    return int(found[1])
