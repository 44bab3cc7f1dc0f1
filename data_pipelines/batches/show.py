"""Draws a training batch as a picture: every row after augmentation, with its instruction.

python -m data_pipelines.batches.show --config configs/quickstart.py --step 0 --out batch.png
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from data_pipelines import commands, run_file
from data_pipelines.batches import training_data
from data_pipelines.batches.layout import BatchPlan, UnitLayout
from data_pipelines.batches.make import Batch
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.dataset import schema
from data_pipelines.errors import ConfigError
from data_pipelines.files import write_atomically
from data_pipelines.images import Size

_COLUMNS = 8
_CARD_WIDTH = 156  # pixels
_IMAGE_HEIGHT = 144
_THUMBNAIL = 48
_LINE = 12
_WRAP, _MOST_LINES = 25, 5  # characters of a line in a card, lines of a sentence
_BLACK, _GREY, _BLUE = (20, 20, 20), (130, 130, 130), (20, 60, 180)  # RGB


@runtime_checkable
class Words(Protocol):
    """What the picture needs of a tokenizer."""

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of one row of token ids."""
        ...


def _text(canvas: np.ndarray, lines: list[str], left: int, top: int, colour: tuple[int, int, int]) -> int:
    """Writes lines and returns the y of the next one."""
    for line in lines:
        cv2.putText(canvas, line, (left, top), cv2.FONT_HERSHEY_SIMPLEX, 0.34, colour, 1, cv2.LINE_AA)
        top += _LINE
    return top


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(
        np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )


def _paste(canvas: np.ndarray, image: np.ndarray, left: int, top: int) -> None:
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image


def _instruction(
    group: Mapping[str, np.ndarray], block: int, entry: int, plan: BatchPlan, words: Words
) -> str | np.ndarray:
    """Returns the sentence or the instruction image (u8[h,w,3]) of an entry of the table, or of a constant (-1 - c)."""
    if entry < 0:
        return plan.constants[-1 - entry]
    content = group["table"][block, entry]
    return content if content.ndim == 3 else words.decode(content)


def _card_height(layout: UnitLayout) -> int:
    sentences = 0 if layout.constant >= 0 or layout.kind == "visual" else 2 if layout.composed_rows else 1
    return _IMAGE_HEIGHT + 24 + _LINE * max(1, sentences * _MOST_LINES)


def _card(
    group: Mapping[str, np.ndarray], block: int, row: int, layout: UnitLayout, plan: BatchPlan, words: Words
) -> np.ndarray:
    """Draws one row: the image, its labels, its instruction (black; constant: grey) and the composed one (blue)."""
    height, width = _card_height(layout), _CARD_WIDTH
    card = np.full((height, width, 3), 255, np.uint8)
    image = _fit(group["image"][block, row], _IMAGE_HEIGHT, width - _THUMBNAIL - 12)
    _paste(card, image, 4, 4)
    infrared = " IR" if group["modality"][block, row] == schema.INFRARED else ""
    facts = (
        f"id {group['identity'][block, row]} cam {group['camera'][block, row]} outfit {group['clothes'][block, row]}"
    )
    top = _text(card, [facts + infrared], 4, _IMAGE_HEIGHT + 16, _BLACK)
    instructions: list[tuple[str | np.ndarray, tuple[int, int, int]]] = []
    if layout.kind == "caption":
        instructions.append((words.decode(group["tokens"][block, row]), _BLACK))
    else:
        entry = int(group["instruction"][block, row])
        instructions.append((_instruction(group, block, entry, plan, words), _GREY if entry < 0 else _BLACK))
        for place in np.flatnonzero((group["composed_row"][block] == row) & group["composed_valid"][block]):
            wanted = int(group["composed_instruction"][block, place])
            instructions.append((_instruction(group, block, wanted, plan, words), _BLUE))
    thumbnail_top = 4
    for instruction, colour in instructions:
        if isinstance(instruction, str):
            top = _text(card, textwrap.wrap(instruction, _WRAP, max_lines=_MOST_LINES), 4, top, colour)
        else:
            thumbnail = _fit(instruction, _THUMBNAIL, _THUMBNAIL)
            left = width - _THUMBNAIL - 4
            _paste(card, thumbnail, left, thumbnail_top)
            bottom_right = (left + thumbnail.shape[1] - 1, thumbnail_top + thumbnail.shape[0] - 1)
            cv2.rectangle(card, (left, thumbnail_top), bottom_right, colour, 1)
            thumbnail_top += _THUMBNAIL + 6
    return card


def draw_batch(batch: Batch, plan: BatchPlan, words: Words) -> np.ndarray:
    """Draws all rows of a batch (without an axis of accumulated batches), unit by unit: u8[height,width,3] RGB."""
    width = _CARD_WIDTH
    strips = []
    for layout in plan.units:
        group, height = batch[layout.kind], _card_height(layout)
        header = np.full((26, _COLUMNS * width, 3), 235, np.uint8)
        blocks = group["image"].shape[0]
        facts = (
            f"{layout.unit.dataset}: task {layout.unit.task}, kind {layout.kind}, {blocks} blocks of "
            f"{layout.identities} identities x {layout.unit.images_per_identity} images"
            + ("; blue: the composed row's instruction" if layout.composed_rows else "")
        )
        _text(header, [facts], 6, 17, _BLACK)
        strips.append(header)
        rows = range(layout.row, layout.row + layout.rows)
        cards = [_card(group, block, row, layout, plan, words) for block in range(blocks) for row in rows]
        for start in range(0, len(cards), _COLUMNS):
            strip = np.full((height, _COLUMNS * width, 3), 255, np.uint8)
            for column, card in enumerate(cards[start : start + _COLUMNS]):
                _paste(strip, card, column * width, 0)
            strips.append(strip)
    return np.concatenate(strips)


def save_png(path: str | Path, image: np.ndarray) -> None:
    """Writes u8[H,W,3] RGB; the folder is made. Raises WriteError if the file cannot be written."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise OSError(f"{path}: an image of shape {image.shape} does not encode as PNG")
    write_atomically(Path(path), data.tobytes())


def main(argv: list[str]) -> None:
    del argv
    config = _CONFIG.value
    first = _STEP.value * config.optimizer.accumulate
    config.optimizer.accumulate = 1
    data = training_data.open_training(
        config,
        image_size=_size(_IMAGE_SIZE.value, config.model.image_size, (256, 128)),
        instruction_image_size=_size(_INSTRUCTION_IMAGE_SIZE.value, config.model.instruction_image_size, (128, 128)),
        max_length=config.model.max_length or 70,
    )
    blocks = range(data.plan.batch_blocks)
    with data.stream(first, 1, blocks, ReadAhead(workers=0, threads=0, prefetch=1)) as stream:
        _, batch = next(stream)
    save_png(_OUT.value, draw_batch(batch, data.plan, data.tokenizer))
    logging.info("step %d drawn to %s", _STEP.value, _OUT.value)


def parse(argv: Sequence[str]) -> list[str]:
    """Returns the arguments that are no flags. Raises ConfigError for a run file that fails, or a key it has not."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in ("-config", "--config"):
            file, colon, rest = (value if equals else following).partition(":")
            run_file.load(Path(file), *([rest] if colon else []))
    try:
        return commands.parse_flags(argv)
    except (AttributeError, KeyError) as error:  # of the library for such flags, at an unknown key
        key = str(error).strip("\"'")
        raise ConfigError(f"the configuration has no key {key}: correct the flag --config.KEY=VALUE") from error


def _size(given: Sequence[str] | None, configured: Size | None, default: Size) -> Size:
    """Returns (height, width): the flag's, else the configuration's, else the default."""
    if given is None:
        return configured or default
    if len(given) != 2 or not all(side.isascii() and side.isdigit() and 0 < int(side) <= 4096 for side in given):
        raise ConfigError(f"a size is HEIGHT,WIDTH in pixels, such as 256,128, not {','.join(given)}")
    return int(given[0]), int(given[1])


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The run's configuration.", lock_config=True)
    _STEP = flags.DEFINE_integer(
        "step", 0, "Step whose batch is drawn, the first of them if it accumulates several.", lower_bound=0
    )
    _IMAGE_SIZE = flags.DEFINE_list(
        "image_size", None, "HEIGHT,WIDTH of the model's images (default: config.model.image_size, else 256,128)."
    )
    _INSTRUCTION_IMAGE_SIZE = flags.DEFINE_list(
        "instruction_image_size", None, "HEIGHT,WIDTH of instruction images (default: as configured, else 128,128)."
    )
    _OUT = flags.DEFINE_string("out", "batch.png", "Picture to write.")
    flags.mark_flag_as_required("config")
    sys.exit(commands.run(lambda: app.run(main, flags_parser=parse)))
