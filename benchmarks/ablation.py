"""What the memory bank and the text-to-image objectives do, on the procedural benchmark: variants x seeds, paired.

Usage: python -m benchmarks.ablation --study bank|captions --workdir runs/ablation [--seeds 5] [--steps 400]
       python -m benchmarks.ablation --study bank --workdir runs/ablation --table   (only write what is there)
       python -m benchmarks.ablation --study bank --workdir runs/ablation --table --base hard   (beside another variant)

Each variant is `configs/quickstart.py` with some keys changed, trained by `python -m irm_jax.main` as a user would,
with the same steps and seeds for all, in WORKDIR/runs/VARIANT/SEED; the studies share their baseline. WORKDIR/STUDY.md
gets the mean over seeds of each variant and the paired difference to the first one with its 95% interval, task by task
and over tasks, task-specific and task-free, and the same of all variants but the first together (what a step costs is
benchmarks.paper_step's to say); WORKDIR/STUDY.svg shows the differences; WORKDIR/STUDY.jsonl keeps what is known of
every run, and `--known` with such a file goes on from it elsewhere.

A study can be stopped at any time: finished runs are kept, unfinished ones resume. `--seeds 2`, later `--seeds 5`, or
`--only hard soft`, run a part of it. Several processes may work on one study, each on a run that no other is at:

    taskset -c 0 python -m benchmarks.ablation --study bank --workdir runs/ablation &
    taskset -c 1 python -m benchmarks.ablation --study bank --workdir runs/ablation
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import paired

# The runs are short, so the momentum model must follow faster than at paper scale.
FAST = "--config.momentum.decay=0.9"
BANK = ("--config.memory_bank.size=2048", "--config.memory_bank.ramp_steps=100", FAST)
CAPTIONS = (FAST, "--config.model.fusion_depth=2", "--config.text_to_image.soft_ramp_steps=100")
CONTRAST = (*CAPTIONS, "--config.text_to_image.momentum_contrast=True", "--config.text_to_image.queue_size=2048")
STUDIES: dict[str, dict[str, tuple[str, ...]]] = {
    "bank": {
        "irm": (),
        "hard": BANK,
        "soft": (*BANK, "--config.memory_bank.hard_weight=0", "--config.memory_bank.soft_weight=1"),
        "both": (*BANK, "--config.memory_bank.soft_weight=0.5"),
        "hard_raw": (*BANK, "--config.loss.instruction_similarity=raw"),
        "hard_second_view": (*BANK, "--config.momentum.second_view=True"),
        "hard_task": (*BANK, "--config.memory_bank.negatives=task"),
        "hard_1k": (*BANK, "--config.memory_bank.size=1024"),
        "hard_8k": (*BANK, "--config.memory_bank.size=8192"),
        "hard_64k": (*BANK, "--config.memory_bank.size=65536"),
    },
    "captions": {
        "irm": (),
        "contrast": CONTRAST,
        "matching": (*CAPTIONS, "--config.loss.matching_weight=1"),
        "masked": (*CAPTIONS, "--config.loss.masked_weight=1"),
        "replaced": (*CAPTIONS, "--config.loss.replaced_weight=0.5"),
        "all": (
            *CONTRAST, "--config.loss.matching_weight=1", "--config.loss.masked_weight=1",
            "--config.loss.replaced_weight=0.5", "--config.momentum.second_view=True",
        ),
    },
}  # fmt: skip
TOGETHER = "all of these"
T2I = "procedural_t2i"
PANELS: dict[str, paired.Panels] = {
    "bank": paired.MEANS,
    "captions": {
        "mean": "all tasks", f"{paired.FREE}mean": "all, task-free",
        T2I: "t2i", T2I + paired.RESCORED: "ranked again, less t2i",
    },
}  # fmt: skip


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int | None]:
    """Makes and locks a folder; gives the lock's file descriptor, or None if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock.fileno()


def options_of(overrides: Sequence[str], seed: int, steps: int) -> list[str]:
    """The options of a variant's run, but for those that say where things are."""
    return [
        f"--config.seed={seed}", f"--config.train.steps={steps}", "--config.evaluation.controls=False",
        "--config.evaluation.top500=False", "--config.report.rollouts=0", *overrides,
    ]  # fmt: skip


def check_options(run: str, known: Sequence[str], options: Sequence[str], cure: str) -> None:
    """Raises SystemExit, with the cure, if a run was started with other options than `options`."""
    if list(known) != list(options):
        changed = [
            *(f"was {x}" for x in known if x not in options),
            *(f"now {x}" for x in options if x not in known),
        ]
        raise SystemExit(f"{run} a run of another command ({', '.join(changed) or 'other order'}): {cure}")


def check_command(folder: Path, options: Sequence[str]) -> None:
    """Notes the options of the run that begins in the folder. Raises SystemExit if it holds a run of other ones."""
    note = folder / paired.COMMAND
    if note.is_file():
        cure = "choose another --workdir, give the options of before, or delete that folder"
        check_options(f"{folder} holds", json.loads(note.read_text("utf-8")), options, cure)
    elif (folder / "run.json").exists():
        raise SystemExit(f"{folder} holds a run of an unknown command: choose another --workdir, or delete that folder")
    else:
        note.write_text(json.dumps(list(options), indent=1) + "\n", "utf-8")


def run(folder: Path, overrides: Sequence[str], seed: int, steps: int, data_dir: str) -> bool:
    """Trains and evaluates one run, unless it is finished or another process is at it; returns whether it is finished.

    Raises SystemExit if the folder holds a run of another command.
    """
    options = options_of(overrides, seed, steps)
    with held(folder) as lock:
        if lock is None:
            print(f"{folder}: another process is at it", flush=True)
            return False
        check_command(folder, options)
        if (folder / "results.json").is_file():
            return True
        command = [
            sys.executable, "-m", "irm_jax.main", "--config", "configs/quickstart.py", "--workdir", str(folder),
            f"--config.data.dir={data_dir}", *options,
        ]  # fmt: skip
        print(" ".join(command[1:]), flush=True)
        with open(folder / "log.txt", "a") as log:
            # The run holds the lock as well: if this process is killed alone, no other starts beside it.
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)).returncode
        done = status == 0 and (folder / "results.json").is_file()
        if not done:
            print(f"{folder}: not finished (status {status}), see log.txt there", flush=True)
        return done


def run_all(
    folder: Path,
    variants: Mapping[str, Sequence[str]],
    only: Sequence[str] | None,
    seeds: int,
    steps: int,
    data_dir: str,
    known: paired.Runs,
) -> bool:
    """Runs what is not known of a study, FOLDER/VARIANT/SEED, and goes on after a run that fails; returns whether all
    is finished. Raises SystemExit, before any training, if a known run was started with other options."""
    wanted = [
        (variant, seed)
        for seed in range(seeds)  # seed by seed, so that a study that is cut short has pairs
        for variant in variants
        if only is None or variant in only
    ]
    for variant, seed in wanted:
        if (variant, seed) in known:
            cure = "give the options of then, or take its line out of the file"
            options = options_of(variants[variant], seed, steps)
            check_options(f"--known has, as {variant} of seed {seed},", known[variant, seed].options, options, cure)
    runs = [
        run(folder / variant / str(seed), variants[variant], seed, steps, data_dir)
        for variant, seed in wanted
        if (variant, seed) not in known
    ]
    return all(runs)


def results(study: str, workdir: Path, seeds: int, known: paired.Runs, base: str | None = None) -> str:
    """Writes WORKDIR/STUDY.md and the files beside it; returns the table. With a `base`: WORKDIR/STUDY-BASE.md, where
    the differences are to that variant, and no row of all others together."""
    variants = list(STUDIES[study])
    name, together = study, TOGETHER
    if base:
        variants.remove(base)
        variants.insert(0, base)
        name, together = f"{study}-{base}", ""
    return paired.write(
        workdir / "runs", workdir / name, variants, seeds, together=together, known=known, panels=PANELS[study]
    )


def add_options(parser: argparse.ArgumentParser, *, seeds: int, steps: int) -> None:
    """Options that every study has."""
    parser.add_argument("--workdir", required=True, type=Path, help="folder of all runs and of the results")
    parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=steps, help="training steps of every run")
    parser.add_argument("--data_dir", default="data", help="folder of the procedural benchmark")
    parser.add_argument("--only", nargs="+", help="names of variants, instead of all")
    parser.add_argument("--known", type=Path, help="STUDY.jsonl of runs made elsewhere, which are not made again")
    parser.add_argument("--table", action="store_true", help="write and print the results so far, run nothing")


def check_names(parser: argparse.ArgumentParser, only: Sequence[str] | None, variants: Mapping[str, object]) -> None:
    if unknown := set(only or ()) - variants.keys():
        parser.error(f"unknown variants {sorted(unknown)}; there are {', '.join(variants)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True, choices=STUDIES)
    parser.add_argument("--base", help="variant that the differences are to, written to STUDY-BASE (default: irm)")
    add_options(parser, seeds=5, steps=400)
    args = parser.parse_args()
    variants = STUDIES[args.study]
    check_names(parser, [*(args.only or ()), *([args.base] if args.base else ())], variants)
    runs = args.workdir / "runs"
    known = paired.read_known(args.known)
    done = args.table or run_all(runs, variants, args.only, args.seeds, args.steps, args.data_dir, known)
    args.workdir.mkdir(parents=True, exist_ok=True)
    print(results(args.study, args.workdir, args.seeds, known, args.base))
    sys.exit(0 if done else "not all runs are finished: run the same command again")


if __name__ == "__main__":
    main()
