"""Makes docs/query.jpg from a run on drawn people: `python docs/picture.py runs/quickstart`.

Each line is the query with the highest AP of a task: its picture, its instruction, and the images ranked first, with a
green frame where the strict rule of the task holds. The evaluation is the project's own, of these test sets alone.
"""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from irm_jax import run as runs  # noqa: E402
from irm_jax.checkpoint import read_metadata  # noqa: E402
from irm_jax.config.keys import completed  # noqa: E402
from irm_jax.evaluation.report.examples import sections_of  # noqa: E402
from irm_jax.evaluation.report.results import RankList  # noqa: E402

SETS = ("procedural_trad", "procedural_ctcc", "procedural_li", "procedural_t2i")
HIGH, WIDE, GAP, TEXT, TOP = 144, 72, 10, 250, 30
INK, PAPER, GREEN, RED = (30, 34, 40), (255, 255, 255), (30, 150, 80), (205, 60, 60)


def rank_lists(workdir: epath.Path, sets: list[str], shown: int) -> list[RankList]:
    """Returns the query with the highest AP of each test set, with its first images."""
    step, metadata = read_metadata(workdir / runs.CHECKPOINTS, None)
    config = completed(metadata["config"])
    with config.unlocked():
        for name in set(config.evaluation.sets) - set(sets):
            del config.evaluation.sets[name]
    e = config.evaluation
    e.controls = e.task_free = e.top500 = e.open_set = False
    e.top_k = shown
    step, run = runs.from_checkpoint(config, workdir, step)
    model = run.saved_model(workdir, step)
    sections = {s.test_set: s for s in sections_of(run.evaluate(model), model, queries=1, rollouts=0, seed=0)}
    return [sections[name].best[0] for name in sets]


def draw(lists: list[RankList], shown: int) -> Image.Image:
    """Returns the picture: a line per query."""
    line = HIGH + 2 * GAP
    page = Image.new("RGB", (WIDE + TEXT + shown * (WIDE + GAP) + 4 * GAP, TOP + len(lists) * line), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=17)
    for x, title in ((GAP, "query"), (WIDE + 3 * GAP, "instruction"), (WIDE + TEXT + 3 * GAP, "ranked first")):
        pen.text((x, GAP), title, fill=(110, 116, 124), font=font)
    for number, one in enumerate(lists):
        y = TOP + number * line + GAP
        caption = "t2i" in one.query_id
        if one.query_image is not None and not caption:
            page.paste(_picture(one.query_image, WIDE, HIGH), (GAP, y))
        if isinstance(one.instruction, str):
            words = "\n".join(textwrap.wrap(f"“{one.instruction}”", 27))
            pen.multiline_text((WIDE + 3 * GAP, y + HIGH // 2), words, fill=INK, font=font, anchor="lm", spacing=6)
        else:
            page.paste(_picture(one.instruction, HIGH * 2 // 3, HIGH * 2 // 3), (WIDE + 3 * GAP, y + HIGH // 6))
        for place, image in enumerate(one.ranked[:shown]):
            x = WIDE + TEXT + 3 * GAP + place * (WIDE + GAP)
            frame = GREEN if image.relation == "positive" else RED
            pen.rectangle((x - 4, y - 4, x + WIDE + 3, y + HIGH + 3), fill=frame)
            page.paste(_picture(image.image, WIDE, HIGH), (x, y))
    return page


def _picture(picture: bytes | np.ndarray, width: int, height: int) -> Image.Image:
    image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else Image.fromarray(np.asarray(picture))
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", help="workdir of a run on the drawn benchmark")
    p.add_argument("--out", default=str(ROOT / "docs" / "query.jpg"))
    p.add_argument("--sets", nargs="+", default=list(SETS), help="test sets, a line each")
    p.add_argument("--images", type=int, default=8, help="ranked images per line")
    options = p.parse_args()
    page = draw(rank_lists(epath.Path(options.run), options.sets, options.images), options.images)
    page.save(options.out, quality=88, optimize=True)
    print(f"{options.out}: {page.size[0]} x {page.size[1]}, {Path(options.out).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
