"""Runs the variants of a study with several seeds, as separate trainings by `python -m irm_jax.main`.

A study can be stopped at any time: finished runs are kept, unfinished ones resume. Several processes may work on one
study, each on a run that no other process holds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.studies import paired
from data_pipelines.files import write_json
from irm_jax.evaluation.folders import is_evaluated


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs of a study have in common: seeds 0 to seeds - 1, steps, folder of the data, run file."""

    seeds: int
    steps: int
    data_dir: str = "data"
    run_file: str = "quickstart_paper"

    def options(self, overrides: Sequence[str], seed: int) -> list[str]:
        """Returns the options of a variant's run, without the ones that name folders."""
        return [
            f"--config.seed={seed}", f"--config.train.steps={self.steps}", "--config.evaluation.controls=False",
            "--config.evaluation.top500=False", "--config.report.rollouts=0", *overrides,
        ]  # fmt: skip


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Makes and locks a folder; yields the lock's file descriptor, or None if another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock.fileno()


def run_all(
    folder: Path,
    variants: Mapping[str, Sequence[str]],
    plan: Plan,
    known: paired.Runs,
    only: Sequence[str] | None = None,
) -> bool:
    """Runs FOLDER/VARIANT/SEED for all variants (or `only` some) that are not known; returns whether all are finished.

    Continues after a run that fails. Raises SystemExit, before any training, if a known run had other options.
    """
    wanted = [
        (variant, seed)
        for seed in range(plan.seeds)  # seed by seed, so that a study that is cut short has pairs
        for variant in variants
        if only is None or variant in only
    ]
    for variant, seed in wanted:
        if (variant, seed) in known:
            cure = "give the options of then, or take its line out of the file"
            options = plan.options(variants[variant], seed)
            check_options(f"--known has, as {variant} of seed {seed},", known[variant, seed].options, options, cure)
    runs = [
        run(folder / variant / str(seed), plan.options(variants[variant], seed), plan.data_dir, plan.run_file)
        for variant, seed in wanted
        if (variant, seed) not in known
    ]
    return all(runs)


def run(folder: Path, options: Sequence[str], data_dir: str, run_file: str = "quickstart_paper") -> bool:
    """Trains and evaluates one run unless it is finished or another process holds it; returns whether it is finished.

    Raises SystemExit if the folder holds a run with other options.
    """
    with locked(folder) as lock:
        if lock is None:
            print(f"{folder}: another process is at it", flush=True)
            return False
        check_command(folder, options)
        if is_evaluated(folder):
            return True
        command = [
            sys.executable, "-m", "irm_jax.main", "--config", run_file, "--workdir", str(folder),
            f"--config.data.dir={data_dir}", *options,
        ]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        with open(folder / "log.txt", "a") as log:
            # The run holds the lock as well: if this process is killed alone, no other starts beside it.
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)).returncode
        done = status == 0 and is_evaluated(folder)
        if not done:
            print(f"{folder}: not finished (status {status}), see log.txt there", flush=True)
        return done


def check_command(folder: Path, options: Sequence[str]) -> None:
    """Writes the options of a new run into its folder. Raises SystemExit if the folder holds a run with other ones."""
    note = folder / paired.COMMAND
    if note.is_file():
        cure = "choose another --workdir, give the options of before, or delete that folder"
        check_options(f"{folder} holds", json.loads(note.read_text("utf-8")), options, cure)
    elif (folder / "run.json").exists():
        raise SystemExit(f"{folder} holds a run of an unknown command: choose another --workdir, or delete that folder")
    else:
        write_json(note, list(options))


def check_options(run: str, known: Sequence[str], options: Sequence[str], cure: str) -> None:
    """Raises SystemExit with the difference and the cure if a run was started with other options than `options`."""
    if list(known) != list(options):
        changed = [
            *(f"was {x}" for x in known if x not in options),
            *(f"now {x}" for x in options if x not in known),
        ]
        raise SystemExit(f"{run} a run of another command ({', '.join(changed) or 'other order'}): {cure}")


def add_options(parser: argparse.ArgumentParser, *, seeds: int, steps: int) -> None:
    """Adds the options that every study has."""
    parser.add_argument("--workdir", required=True, type=Path, help="folder of all runs and of the results")
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=steps, help="training steps of every run")
    parser.add_argument("--data_dir", default="data", help="folder of the procedural benchmark")
    parser.add_argument("--only", nargs="+", help="names of variants, instead of all")
    parser.add_argument("--known", type=Path, help="STUDY.jsonl of runs made elsewhere, which are not made again")
    parser.add_argument("--table", action="store_true", help="write and print the results so far, run nothing")


def plan_of(args: argparse.Namespace, run_file: str = "quickstart_paper") -> Plan:
    return Plan(args.seeds, args.steps, args.data_dir, run_file)


def check_names(parser: argparse.ArgumentParser, only: Sequence[str] | None, variants: Mapping[str, object]) -> None:
    """Ends the program with a usage message if a name is not a variant of the study."""
    if unknown := set(only or ()) - variants.keys():
        parser.error(f"unknown variants {sorted(unknown)}; there are {', '.join(variants)}")
