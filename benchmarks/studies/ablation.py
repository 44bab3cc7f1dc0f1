"""Ablations of the quick recipe, the memory bank and the text-to-image objectives: variants x seeds on drawn people.

Usage: python -m benchmarks.studies.ablation --study STUDY --workdir runs/study [--seeds 5] [--steps 400]
       python -m benchmarks.studies.ablation --study bank --workdir runs/ablation --table   (write the results so far)
       python -m benchmarks.studies.ablation --study bank --workdir runs/ablation --table --base hard   (another base)

Each variant is `configs/quickstart_paper.py` with some keys changed, trained by `python -m irm_jax.main` with the same
steps and seeds for all, in WORKDIR/runs/VARIANT/SEED; bank and captions share their baseline. The variants of `recipe`
are `configs/quickstart.py` less one part each; take another workdir for them, and `--steps 150`. Those of `task_free`
are it with each part that is meant for the task-free setting, alone and together; those of `objectives` it with each
text-to-image objective; those of `cuts` it with less work per step, in one way each, for `--steps 150` or more.

WORKDIR/STUDY.md gets, per task and over tasks, task-specific and task-free, the mean over seeds of each variant and its
paired difference to the first variant with a 95% interval; a last row gives the mean of all variants but the first.
WORKDIR/STUDY.svg shows the differences. WORKDIR/STUDY.jsonl holds the figures of every run: `--known` with such a file
continues a study elsewhere. What a variant costs per step is measured by `benchmarks.paper_step`.

A study can be stopped at any time: finished runs are kept, unfinished ones resume. `--seeds 2`, later `--seeds 5`, or
`--only hard soft`, run a part of it. Several processes may work on one study, each on another run:

    taskset -c 0 python -m benchmarks.studies.ablation --study bank --workdir runs/ablation &
    taskset -c 1 python -m benchmarks.studies.ablation --study bank --workdir runs/ablation
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.studies import paired, runner

# The runs are short, so the momentum model must follow faster than at paper scale.
FAST = "--config.momentum.decay=0.9"
BANK = ("--config.memory_bank.size=2048", "--config.memory_bank.ramp_steps=100", FAST)
CAPTIONS = (FAST, "--config.model.fusion_depth=2", "--config.text_to_image.soft_ramp_steps=100")
CONTRAST = (*CAPTIONS, "--config.text_to_image.momentum_contrast=True", "--config.text_to_image.queue_size=2048")
BANK_VARIANTS: dict[str, tuple[str, ...]] = {
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
}
CAPTION_VARIANTS: dict[str, tuple[str, ...]] = {
    "irm": (),
    "contrast": CONTRAST,
    "matching": (*CAPTIONS, "--config.loss.matching_weight=1"),
    "masked": (*CAPTIONS, "--config.loss.masked_weight=1"),
    "replaced": (*CAPTIONS, "--config.loss.replaced_weight=0.5"),
    "all": (
        *CONTRAST,
        "--config.loss.matching_weight=1",
        "--config.loss.masked_weight=1",
        "--config.loss.replaced_weight=0.5",
        "--config.momentum.second_view=True",
    ),
}
ADAMW = ("--config.optimizer.name=adamw", "--config.optimizer.learning_rate=2e-3")
LEARNED_CLASS = ("--config.model.pooled_class_token=False",)
NO_NEUTRAL = ("--config.data.instruction_dropout=0.2",)
NO_COMPOSED = ("--config.loss.composed_contrast_weight=0",)
NO_ROWS = ("--config.loss.contrast_weight=0",)
RECIPE_VARIANTS: dict[str, tuple[str, ...]] = {
    "quickstart": (),
    "paper": (*ADAMW, *LEARNED_CLASS, *NO_NEUTRAL, *NO_COMPOSED, *NO_ROWS),
    "paper_losses": (*NO_NEUTRAL, *NO_COMPOSED, *NO_ROWS),
    "adamw": ADAMW,
    "learned_class": LEARNED_CLASS,
    "no_neutral": NO_NEUTRAL,
    "no_composed": NO_COMPOSED,
    "no_rows": NO_ROWS,
}
KEYS = "--config.memory_bank.neutral_keys=True"
TASK_FREE_VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (*NO_NEUTRAL, *NO_COMPOSED),
    "neutral": NO_COMPOSED,
    "composed": NO_NEUTRAL,
    "both": (),
    "both_bank": BANK,
    "both_neutral_keys": (*BANK, KEYS),
    "both_bank_composed": (*BANK, KEYS, "--config.memory_bank.composed_weight=1"),
}
CUT_VARIANTS: dict[str, tuple[str, ...]] = {
    "quickstart": (),
    "patch_dropout": ("--config.model.patch_dropout=0.5",),
    "growth": ("--config.data.growth=('0=0.5', '75=0.75', '125=1')",),
    "editing_patches": ("--config.model.editing_patches=16",),  # of 32
}
TOGETHER = "all of these"
T2I = "procedural_t2i"
CAPTION_PANELS = {
    "mean": "all tasks", f"{paired.FREE}mean": "all, task-free",
    T2I: "t2i", T2I + paired.RESCORED: "ranked again, less t2i",
}  # fmt: skip
STUDIES = {
    "bank": paired.Study(BANK_VARIANTS, together=TOGETHER),
    "captions": paired.Study(CAPTION_VARIANTS, CAPTION_PANELS, TOGETHER),
    "recipe": paired.Study(RECIPE_VARIANTS, run_file="quickstart"),
    "objectives": paired.Study(CAPTION_VARIANTS, CAPTION_PANELS, TOGETHER, run_file="quickstart"),
    "cuts": paired.Study(CUT_VARIANTS, run_file="quickstart"),
    "task_free": paired.Study(TASK_FREE_VARIANTS, run_file="quickstart"),
}


def results(name: str, workdir: Path, seeds: int, known: paired.Runs, base: str | None = None) -> str:
    """Writes WORKDIR/STUDY.md and the files beside it; returns the table.

    With a `base`, differences are relative to that variant, and the files are named STUDY-BASE.
    """
    study = STUDIES[name].relative_to(base) if base else STUDIES[name]
    return paired.write(study, workdir / "runs", workdir / (f"{name}-{base}" if base else name), seeds, known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True, choices=STUDIES)
    parser.add_argument("--base", help="variant that the differences are to, written to STUDY-BASE (default: irm)")
    runner.add_options(parser, seeds=5, steps=400)
    args = parser.parse_args()
    study = STUDIES[args.study]
    variants = study.variants
    runner.check_names(parser, [*(args.only or ()), *([args.base] if args.base else ())], variants)
    known = paired.read_known(args.known)
    done = args.table or runner.run_all(
        args.workdir / "runs", variants, runner.plan_of(args, study.run_file), known, args.only
    )
    args.workdir.mkdir(parents=True, exist_ok=True)
    print(results(args.study, args.workdir, args.seeds, known, args.base))
    sys.exit(0 if done else "not all runs are finished: run the same command again")


if __name__ == "__main__":
    main()
