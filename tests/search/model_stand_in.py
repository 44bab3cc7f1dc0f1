"""A model of colours in place of a trained one, for tests of what search does with vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from data_pipelines.instructions.tokenizer import clean_text
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.search.store import SearchError
from irm_jax.search.thresholds import constant_tasks


class StandIn:
    """Has the methods of `SearchModel`; pictures are their halves' mean colours, mapped by matrices of its step."""

    judges = True
    constant_tasks: ClassVar = constant_tasks({})
    image_size = (64, 32)
    widths: ClassVar = {"neutral": 24, "caption": 16}
    sentence_doubt: str | None = None

    def __init__(self, workdir: str, step: int | None = None) -> None:
        if step not in (None, 2, 8):
            raise SearchError(f"there is no step {step}")
        self.workdir, self.step = workdir, step or 8
        self.fingerprint = f"stand-in {self.step}"
        rng = np.random.default_rng(self.step)
        self._neutral, self._caption, self._edited = (rng.standard_normal((6, width)) for width in (24, 16, 24))

    def embed_pictures(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        colours = _colours(pictures)
        return _unit(colours @ self._neutral), _unit(colours @ self._caption)

    def embed_under(self, pictures: Sequence[np.ndarray], instruction: str | np.ndarray) -> np.ndarray:
        if isinstance(instruction, str):
            instruction = clean_text(instruction)
            share = 0.0 if instruction == NEUTRAL_SENTENCE else (len(instruction) % 7 + 1) / 8
        else:
            share = float(instruction.mean()) / 255
        return _unit(_colours(pictures) @ (self._neutral + share * self._edited))

    def embed_sentence(self, sentence: str) -> np.ndarray:
        return _unit(np.random.default_rng(len(sentence)).standard_normal((1, 16)))[0]

    def match(self, sentence: str, pictures: Sequence[np.ndarray]) -> np.ndarray:
        return _colours(pictures) @ np.arange(6.0) + len(sentence)

    def unknown_words(self, sentence: str) -> tuple[int, tuple[str, ...]]:
        words = sentence.split()
        unknown = tuple(word for word in words if word == "zzyzx" or not word.isascii())
        return len(words) - len(unknown), unknown


def _colours(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([np.r_[one[:32].mean((0, 1)), one[32:].mean((0, 1))] for one in pictures]) / 128 - 1


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
