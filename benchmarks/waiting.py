"""What a user waits for, from the command to the answer, with this checkout and with an earlier revision beside it.

Usage: python -m benchmarks.waiting [--against REVISION] [--rounds 3] [--steps 20] [--cold] [--config quickstart]

Each round trains and then evaluates the finished run, once per checkout in turn, so that a machine whose speed drifts
slows both alike. Every command is a process of its own; what it prints is timed as it comes, and the processor time
that it has used by then is read from /proc (Linux). A first round, which is not counted, builds the drawn data and,
without --cold, the compiled programs. Compare the processor seconds: other processes slow them less than the clock.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
MARKS = {
    "first step": r"\bstep 1/",
    "last step": r"\bstep (\d+)/\1\b",
    "evaluating": r"\] evaluating ",
    "report": r"\] (report of |done: report at )",
}
"""What a command prints when a part of the wait is over; the same in all versions."""
TICKS = os.sysconf("SC_CLK_TCK")


class Moment(NamedTuple):
    """Seconds of the clock, and of the processor, since a command began."""

    clock: float
    processor: float

    def since(self, other: Moment) -> Moment:
        """The seconds between two moments."""
        return Moment(self.clock - other.clock, self.processor - other.processor)


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[dict[str, Moment], float]:
    """Runs a command; returns when each mark was first printed, and its end, and its peak memory in GB.

    Raises:
      RuntimeError: the command failed; the message has the end of what it printed.
    """
    start, found, printed = time.perf_counter(), dict[str, Moment](), list[str]()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, errors="replace", **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            for name, pattern in MARKS.items():
                if name not in found and re.search(pattern, line):
                    found[name] = Moment(time.perf_counter() - start, processor_seconds(process.pid))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found["end"] = Moment(time.perf_counter() - start, usage.ru_utime + usage.ru_stime)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} in {folder}: status {process.returncode}\n{''.join(printed[-20:])}")
    return found, usage.ru_maxrss / 1e6


def processor_seconds(process: int) -> float:
    """Seconds of the processor of a process and of those of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def one_round(checkout: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Moment]:
    """Trains and evaluates once with the code of a checkout; returns the rows of the table."""
    cache = scratch / "programs"
    if options.cold:
        shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(scratch / "run", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    base = [sys.executable, "-m", "irm_jax.main", "--config", options.config, "--workdir", str(scratch / "run")]
    base += [f"--config.data.dir={scratch / 'data'}", f"--config.compilation_cache={cache}"]
    base.append(f"--config.train.steps={options.steps}")
    train, memory = timed(base, checkout, environment)
    evaluate, memory_evaluate = timed([*base, "--mode", "evaluate"], checkout, environment)
    return {
        "start to first step": train["first step"],
        "first to last step": train["last step"].since(train["first step"]),
        "last step to report": train["report"].since(train["last step"]),
        "training command, whole": train["end"],
        "evaluate, start to first set": evaluate["evaluating"],
        "evaluate, whole": evaluate["end"],
        "GB: training, evaluate": Moment(memory, memory_evaluate),
    }


def table(found: dict[str, dict[str, list[Moment]]], options: argparse.Namespace) -> str:
    """The medians of each checkout in processor seconds and seconds, and this checkout's over the other's."""
    names = list(found)
    lines = [
        f"{options.config}, {options.steps} steps, programs {'cold' if options.cold else 'kept'}, median of "
        f"{options.rounds}: seconds of the processor (of the clock)",
        f"{'':30}" + "".join(f"{name[:16]:>18}" for name in names) + ("    ratio (clock)" if names[1:] else ""),
    ]
    for row in found[names[0]]:
        medians = [Moment(*map(statistics.median, zip(*found[name][row], strict=True))) for name in names]
        cells = "".join(f"{m.processor:>10.1f} ({m.clock:5.1f})" for m in medians)
        ratio = ""
        for other in medians[1:]:
            ratio = f"    {medians[0].processor / other.processor:5.2f} ({medians[0].clock / other.clock:.2f})"
        lines.append(f"{row:30}{cells}{ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="", help="a revision of this repository, or the folder of a checkout")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are counted")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--config", default="configs/quickstart.py", help="run file, relative to each checkout")
    parser.add_argument("--cold", action="store_true", help="without compiled programs of an earlier run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"this checkout": ROOT}
        if options.against:
            checkouts[Path(options.against).name] = extracted(options.against, Path(folder, "code"))
        found: dict[str, dict[str, list[Moment]]] = {name: defaultdict(list) for name in checkouts}
        for number in range(options.rounds + 1):
            for name, checkout in checkouts.items():
                rows = one_round(checkout, Path(folder, name.replace(" ", "_")), options)
                whole = rows["training command, whole"].clock
                print(f"round {number} of {options.rounds}, {name}: training {whole:.0f} s", file=sys.stderr)
                for row, moment in rows.items() if number else ():
                    found[name][row].append(moment)
    print(table(found, options))


def extracted(revision: str, folder: Path) -> Path:
    """The folder of a checkout, or the files of a revision written into `folder`."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


if __name__ == "__main__":
    main()
