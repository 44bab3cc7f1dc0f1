"""Draws one picture per data set to check by eye that every row shows one identity.

    python -m data_pipelines.procedural.contact_sheet --out DIR [--people 8] [--size 192 96] [--seed 0]

Rows are people. `procedural_<task>.png` shows test people: their queries, each followed by its instruction, then the
gallery. `procedural_<task>_train.png` shows training people with the instruction of their first image.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import textwrap

import cv2
import numpy as np

from data_pipelines import commands, tasks
from data_pipelines.dataset import schema
from data_pipelines.files import write_atomically
from data_pipelines.images import decode
from data_pipelines.procedural.benchmark import Benchmark

_INK, _PAPER = (20, 20, 20), 255
HEADER = 18


def _written(text: str, height: int, width: int) -> np.ndarray:
    """Returns black text on white, u8[height, width, 3], wrapped to the width."""
    page = np.full((height, width, 3), _PAPER, np.uint8)
    for i, line in enumerate(textwrap.wrap(text, max(8, width // 7))):
        cv2.putText(page, line, (4, 14 + 14 * i), cv2.FONT_HERSHEY_SIMPLEX, 0.36, _INK, 1, cv2.LINE_AA)
    return page


def _picture(record: schema.Record) -> np.ndarray:
    return decode(record.image)


def _instruction(record: schema.Record, task: str, height: int) -> np.ndarray:
    """Returns the record's instruction as a picture of the given height: a template, or its sentences."""
    if record.instruction_images:
        template = decode(record.instruction_images[0])
        page = np.full((height, height * 5 // 6, 3), _PAPER, np.uint8)
        side = page.shape[1]
        page[:side] = cv2.resize(template, (side, side), interpolation=cv2.INTER_AREA)
        return page
    sentences = record.sentences or (tasks.task(task).sentence or "",)
    return _written(" / ".join(sentences), height, height)


def draw_sheet(benchmark: Benchmark, task: str, people: int, train: bool) -> np.ndarray:
    """Returns the contact sheet of a task's test or training people, u8[H, W, 3]."""
    height = benchmark.image_size[0]
    splits = benchmark.shots(task)
    queries, gallery = (splits["train"], splits["train"]) if train else (splits["query"], splits["gallery"])
    lines: list[np.ndarray] = []
    for person in dict.fromkeys(shot.person for shot in gallery):
        if len(lines) == people:
            break
        cells: list[np.ndarray] = [_written(person.rpartition("/")[2], height, 46)]
        for shot in [shot for shot in queries if shot.person == person][: 1 if train else None]:
            record = benchmark.load(shot)
            if train or tasks.task(task).has_query_image:
                cells.append(_picture(record))
            cells.append(_instruction(record, task, height))
        # Ordered by camera within each outfit, so that what changes from one image to the next is one thing at a time.
        own = sorted((s for s in gallery if s.person == person), key=lambda s: (s.row.outfit, s.scene.camera))
        cells += [_picture(benchmark.load(shot)) for shot in own]
        lines.append(np.hstack([np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=_PAPER) for cell in cells]))
    kind = "training people: first instruction, images" if train else "test people: queries, gallery"
    return np.vstack([_written(f"procedural_{task}, {kind}", HEADER, lines[0].shape[1]), *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws contact sheets of the procedural benchmark.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the pictures")
    parser.add_argument("--people", type=int, default=8, help="rows per picture")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(192, 96), metavar=("HEIGHT", "WIDTH"), help="of one image"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the benchmark")
    options = parser.parse_args()
    if options.people < 1:
        parser.error(f"--people {options.people}: draw 1 or more")
    height, width = options.size
    try:
        benchmark = Benchmark(seed=options.seed, image_size=(height, width), template_size=(height, height))
    except ValueError as error:
        parser.error(str(error))
    for task in tasks.TASK_NAMES:
        for train in (False, True):
            path = options.out / f"procedural_{task}{'_train' if train else ''}.png"
            sheet = draw_sheet(benchmark, task, options.people, train)
            write_atomically(path, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
            print(path)


if __name__ == "__main__":
    sys.exit(commands.run(main))
