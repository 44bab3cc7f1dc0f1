"""Makes docs/query.jpg from the newest report of a run on drawn people: `python docs/picture.py runs/quickstart`.

Each line is the query of a test set with the highest AP: its picture, its instruction, and the images
ranked first, with a green frame where the strict rule of the task holds.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import html
import io
import re
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from irm_jax.evaluation import folders  # noqa: E402

SETS = ("procedural_trad", "procedural_ctcc", "procedural_li", "procedural_t2i")
HIGH, WIDE, GAP, TEXT, TOP = 144, 72, 10, 250, 32
INK, PALE, PAPER, GREEN, RED = (30, 34, 40), (110, 116, 124), (255, 255, 255), (30, 150, 80), (205, 60, 60)


@dataclasses.dataclass(frozen=True)
class RankList:
    """One query of the report. `instruction`: a sentence or a picture; `ranked`: (picture, right or not)."""

    ap: float
    query: Image.Image | None
    instruction: str | Image.Image
    ranked: list[tuple[Image.Image, bool]]


def best_lists(report: str, sets: list[str]) -> list[RankList]:
    """Returns the rank list with the highest AP of each test set."""
    data = re.findall(r'<image id="(\w+)"[^>]*href="data:image/\w+;base64,([^"]+)"', report)
    pictures = {name: Image.open(io.BytesIO(base64.b64decode(content))) for name, content in data}
    sections = re.findall(r'<section id="section-.*?</section>', report, re.DOTALL)
    found = []
    for name in sets:
        section = next((text for text in sections if f"<code>{name}</code></h2>" in text), "")
        articles = re.findall(r'<article class="ranklist.*?</article>', section, re.DOTALL)
        lists = [_rank_list(article, pictures) for article in articles]
        if not lists:
            raise SystemExit(f"the report shows no query of {name}")
        found.append(max(lists, key=lambda one: one.ap))
    return found


def _rank_list(article: str, pictures: dict[str, Image.Image]) -> RankList:
    about, _, ranks = article.partition('<ol class="ranks">')
    shown = {kind: pictures[name] for name, kind in re.findall(r'href="#(\w+)".*?<figcaption>(\w+)', about, re.DOTALL)}
    sentence, ap = re.search(r"<blockquote>(.*?)</blockquote>", about), re.search(r"AP <b>([\d.]+)%", about)
    ranked = re.findall(r'<li class="thumb (\w+)".*?href="#(\w+)"', ranks)
    return RankList(
        float(ap[1]) if ap else 0.0,
        shown.get("query"),
        html.unescape(sentence[1]) if sentence else shown["instruction"],
        [(pictures[name], relation == "positive") for relation, name in ranked],
    )


def draw(lists: list[RankList], images: int) -> Image.Image:
    """Returns the picture: a line per query."""
    line = HIGH + 2 * GAP
    page = Image.new("RGB", (WIDE + TEXT + images * (WIDE + GAP) + 4 * GAP, TOP + len(lists) * line), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=17)
    words, ranks = WIDE + 3 * GAP, WIDE + TEXT + 3 * GAP
    for x, title in ((GAP, "query"), (words, "instruction"), (ranks, "ranked first")):
        pen.text((x, GAP), title, fill=PALE, font=font)
    for number, one in enumerate(lists):
        y = TOP + number * line + GAP
        if one.query is not None:
            page.paste(_sized(one.query, WIDE, HIGH), (GAP, y))
        if isinstance(one.instruction, str):
            text = "\n".join(textwrap.wrap(f"“{one.instruction}”", 27))
            pen.multiline_text((words, y + HIGH // 2), text, fill=INK, font=font, anchor="lm", spacing=6)
        else:
            page.paste(_sized(one.instruction, HIGH * 2 // 3, HIGH * 2 // 3), (words, y + HIGH // 6))
        for place, (image, right) in enumerate(one.ranked[:images]):
            x = ranks + place * (WIDE + GAP)
            pen.rectangle((x - 4, y - 4, x + WIDE + 3, y + HIGH + 3), fill=GREEN if right else RED)
            page.paste(_sized(image, WIDE, HIGH), (x, y))
    return page


def _sized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", help="workdir of a run on the drawn benchmark, or the folder of one of its evaluations")
    p.add_argument("--out", default=str(ROOT / "docs" / "query.jpg"))
    p.add_argument("--sets", nargs="+", default=list(SETS), help="test sets, a line each")
    p.add_argument("--images", type=int, default=8, help="ranked images per line")
    options = p.parse_args()
    report = (folders.newest(options.run) / "report.html").read_text("utf-8")
    page = draw(best_lists(report, options.sets), options.images)
    page.save(options.out, quality=88, optimize=True)
    print(f"{options.out}: {page.size[0]} x {page.size[1]}, {Path(options.out).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
