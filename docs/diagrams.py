"""Draws docs/diagrams/*.svg from the text below: `python docs/diagrams.py` (extra `docs`).

A diagram is rows of boxes `name: text` (`;` between them, `|` starts a new line within a box), and arrows `a -> b`.
`--check` draws nothing, and ends with status 1 if a file is not what its text says.
"""

from __future__ import annotations

import sys
from pathlib import Path

import schemdraw
from schemdraw import flow

FOLDER = Path(__file__).parent / "diagrams"
WIDE, HIGH, COLUMN, ROW = 4.3, 1.3, 5.4, 2.3
DIAGRAMS = {
    "overview": """
        raw: raw data sets, | a table; build: shards, | index, manifest; batch: batches: functions | of seed and step
        drawn: drawn people; weights: converted | weights; train: training
        search: search index, | page; embed: Embedder, | export; checkpoint: checkpoint
        compare: comparison | of runs; report: report, | results.json; evaluate: evaluation: | protocols, controls
        raw -> build, drawn -> build, build -> batch, batch -> train, weights -> train, train -> checkpoint
        checkpoint -> evaluate, checkpoint -> embed, embed -> search, evaluate -> report, report -> compare
    """,
    "model": """
        image: person image; sentence: sentence; template: picture of clothes
        vit: image encoder | (ViT, part tokens); bert: text encoder | (BERT); clothes: template encoder | (ViT)
        person: editing transformer | [image cls, instruction]; guided: editing transformer | [instruction cls, patches]
        neck: BNNeck; neck2: BNNeck
        none:; embedding: retrieval embedding | of 2D numbers
        image -> vit, sentence -> bert, template -> clothes, vit -> person, vit -> guided, bert -> person
        bert -> guided, clothes -> guided, clothes -> person
        person -> neck, guided -> neck2, neck2 -> embedding, neck -> embedding
    """,
    "query": """
        record: query: picture | and instruction; gallery: gallery images; columns: identity, camera, | clothes of both
        vec: query embedding; many: gallery embeddings; case: protocol: | positives, junk
        scores: cosines, by blocks | on the devices; ranks: rank of each | positive; ap: AP, CMC, INP | of the query
        page: report; row: row of | results.json; mean: mean over queries
        record -> vec, gallery -> many, columns -> case, vec -> scores, many -> scores, scores -> ranks, case -> ranks
        ranks -> ap, ap -> mean, mean -> row, row -> page
    """,
}


def svg(text: str) -> str:
    """Returns a diagram as SVG."""
    boxes: dict[str, flow.Box] = {}
    arrows: list[tuple[str, str]] = []
    with schemdraw.Drawing(canvas="svg", show=False) as drawing:
        drawing.config(fontsize=12, font="sans-serif", bgcolor="white", lw=1.4, margin=0.3)
        for row, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
            if "->" in line:
                arrows += [(a.strip(), b.strip()) for a, b in (pair.split("->") for pair in line.split(","))]
                continue
            for column, cell in enumerate(line.split(";")):
                name, _, label = (part.strip() for part in cell.partition(":"))  # a name, and its text
                if label:
                    words = "\n".join(part.strip() for part in label.split("|"))
                    box = flow.Box(w=WIDE, h=HIGH).anchor("center").at((column * COLUMN, -row * ROW)).label(words)
                    boxes[name] = drawing.add(box.fill("#eef3f8").color("#2b3a4a"))
        for a, b in arrows:
            start, end = _sides(boxes[a], boxes[b])
            drawing.add(flow.Arrow().at(start).to(end).color("#5a6b7c"))
    return drawing.get_imagedata("svg").decode("utf-8") + "\n"


def _sides(a: flow.Box, b: flow.Box) -> tuple[object, object]:
    """Returns where an arrow leaves one box and enters the other."""
    if abs(a.center.y - b.center.y) < ROW / 2:
        return (a.E, b.W) if a.center.x < b.center.x else (a.W, b.E)
    return (a.S, b.N) if a.center.y > b.center.y else (a.N, b.S)


def main() -> int:
    stale = []
    for name, text in DIAGRAMS.items():
        made, path = svg(text), FOLDER / f"{name}.svg"
        if "--check" not in sys.argv:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(made, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != made:
            stale.append(path.name)
    if stale:
        print(f"not as docs/diagrams.py draws them: {', '.join(stale)}; run python docs/diagrams.py", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
