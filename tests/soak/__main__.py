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
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.soak.kills import Soak
from tests.soak.results import Fault
from tests.soak.running import TASKS, use_own_shared_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if all kills were clean."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="commands at once; more than one: the seed decides less")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in, new; a temporary one by default")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated: %(default)s")
    options = parser.parse_args(arguments)
    base = (options.folder or Path(tempfile.mkdtemp(prefix="soak"), "work")).absolute()
    print(f"in {base}; a /dev/shm of its own: {use_own_shared_memory()}", flush=True)
    soak = Soak(base, options.seed, options.tasks.split(","))
    try:
        soak.prepare()
        soak.run(options.kills, options.jobs)
    except Fault as fault:
        print(f"{soak.summary()}\nFAULT: {fault}\nkept: {base}", flush=True)
        return 1
    print(f"{soak.summary()}\nall clean", flush=True)
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
