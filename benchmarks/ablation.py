"""What the memory bank and the text-to-image objectives do, on the procedural benchmark: variants x seeds, paired.

Usage: python -m benchmarks.ablation --study bank|captions --workdir runs/ablation [--seeds 5] [--steps 400]
       python -m benchmarks.ablation --study bank --workdir runs/ablation --table   (only print what is there)

Each variant is `configs/quickstart.py` with some keys changed, trained by `python -m irm_jax.main` as a user would,
with the same steps and seeds for all. Finished runs are kept, unfinished ones resume, so that the study can be stopped
at any time. The table gives, for each variant, the mean over seeds and the paired difference to the first variant with
its 95% interval (Student's t over seeds), task by task and over tasks, task-specific and task-free, and the time of a
step as a ratio to the first variant's of the same seed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TASKS = ("trad", "cc", "ctcc", "vi", "t2i", "li")
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
        "batch": (),
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
# Two-sided 95% quantiles of Student's t by degrees of freedom, 1 to 9.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def run(folder: Path, overrides: Sequence[str], seed: int, steps: int, data_dir: str) -> None:
    """Trains and evaluates one run, unless it is finished. Raises CalledProcessError if it fails."""
    if (folder / "results.json").is_file():
        return
    command = [
        sys.executable, "-m", "irm_jax.main", "--config", "configs/quickstart.py", "--workdir", str(folder),
        f"--config.seed={seed}", f"--config.train.steps={steps}", f"--config.data.dir={data_dir}",
        "--config.evaluation.controls=False", "--config.evaluation.top500=False", *overrides,
    ]  # fmt: skip
    print(" ".join(command[1:]), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)


def figures(folder: Path) -> dict[str, float]:
    """mAP by protocol of a finished run, means over the tasks, and images a second of its training (median)."""
    protocols = json.loads((folder / "results.json").read_text())["protocols"]
    found = {}
    for setting in ("", "task_free/"):
        names = [f"{setting}procedural_{task}" for task in TASKS]
        found |= {name: protocols[name]["mAP"] for name in names}
        found[f"{setting}mean"] = float(np.mean([protocols[name]["mAP"] for name in names]))
    found |= {name: value["mAP"] for name, value in protocols.items() if name.endswith("+rescored")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found["images_per_second"] = float(np.median([x["images_per_second"] for x in lines if "images_per_second" in x]))
    return found


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95% interval; the half width of one seed is infinite."""
    count = len(differences)
    if count < 2:
        return float(differences.mean()), math.inf
    half = T_95[min(count - 2, len(T_95) - 1)] * float(differences.std(ddof=1)) / math.sqrt(count)
    return float(differences.mean()), half


def table(workdir: Path, study: str, seeds: int) -> str:
    """The study's results so far as Markdown."""
    variants = list(STUDIES[study])
    found = {
        (variant, seed): figures(folder)
        for variant in variants
        for seed in range(seeds)
        if ((folder := workdir / study / variant / str(seed)) / "results.json").is_file()
    }
    base = variants[0]
    shown = [
        f"{setting}{name}" for setting in ("", "task_free/") for name in ("mean", *(f"procedural_{t}" for t in TASKS))
    ]
    lines = [
        "| figure | " + " | ".join(variants) + " |",
        "|---" * (len(variants) + 1) + "|",
        "| seeds | " + " | ".join(str(sum((v, s) in found for s in range(seeds))) for v in variants) + " |",
    ]
    for figure in shown:
        cells = []
        for variant in variants:
            own = [s for s in range(seeds) if (variant, s) in found]
            both = [s for s in own if (base, s) in found]
            if not own:
                cells.append("")
                continue
            cell = f"{np.mean([found[variant, s][figure] for s in own]):.3f}"
            if variant != base and both:
                differences = np.array([found[variant, s][figure] - found[base, s][figure] for s in both])
                mean, half = interval(differences)
                cell += f" ({mean:+.3f} ± {half:.3f})"
            cells.append(cell)
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    cells = []
    for variant in variants:
        both = [s for s in range(seeds) if (variant, s) in found and (base, s) in found]
        ratios = [found[base, s]["images_per_second"] / found[variant, s]["images_per_second"] for s in both]
        cells.append(f"{np.median(ratios):.2f}" if ratios else "")
    lines.append("| time of a step, ratio | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True, choices=STUDIES)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of all runs: WORKDIR/STUDY/VARIANT/SEED")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=400, help="training steps of every run")
    parser.add_argument("--data_dir", default="data", help="folder of the procedural benchmark")
    parser.add_argument("--only", nargs="*", default=None, help="names of variants, instead of all")
    parser.add_argument("--table", action="store_true", help="print the results so far, run nothing")
    args = parser.parse_args()
    unknown = set(args.only or ()) - STUDIES[args.study].keys()
    if unknown:
        parser.error(f"unknown variants {sorted(unknown)}; those of {args.study} are {', '.join(STUDIES[args.study])}")
    if not args.table:
        # Seed by seed, so that a study that is cut short has pairs.
        for seed in range(args.seeds):
            for variant, overrides in STUDIES[args.study].items():
                if args.only is None or variant in args.only:
                    folder = args.workdir / args.study / variant / str(seed)
                    run(folder, overrides, seed, args.steps, args.data_dir)
    print(table(args.workdir, args.study, args.seeds))


if __name__ == "__main__":
    main()
