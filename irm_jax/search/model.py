"""The model of an index: pictures and queries to vectors, the second stage, and what tells one model from another."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Float32

from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax import pretrained
from irm_jax.embedder import open_checkpoint
from irm_jax.evaluation.embed import EmbeddingModel, Instruction, finite, of_length_one
from irm_jax.models.instruction_encoder import Instruction as EncodedInstruction
from irm_jax.search.thresholds import constant_tasks

KEPT_INSTRUCTIONS = 64


class SearchModel:
    """A trained model for searching. Thread-safe: one call at a time is on the devices.

    Args:
        workdir: the folder of a run, or "demo", see `Embedder`.
        step: the number of a checkpoint, "best", or None for the latest.

    Raises CheckpointError if there is no such checkpoint or it cannot be read.
    """

    def __init__(self, workdir: str, step: Any = None) -> None:
        opened = open_checkpoint(workdir, step)
        folder = opened.workdir
        self.step = opened.step
        local = "://" not in str(folder) and pretrained.shipped(workdir) is None
        self.workdir = str(folder.resolve()) if local else os.fspath(workdir)
        self.sentence_doubt = opened.sentence_doubt
        """Why an answer to a sentence alone means nothing; None where that is not known."""
        self._model = opened.model
        self.judges = bool(self._model.model.config.fusion_depth and opened.config.loss.matching_weight > 0)
        """Whether a matching head was trained."""
        self.constant_tasks = constant_tasks(opened.config.data.sentences)
        """The tasks by the constant sentences that the model was trained and evaluated under."""
        self._lock = threading.Lock()
        self._instructions: OrderedDict[Any, EncodedInstruction] = OrderedDict()
        self.fingerprint = _fingerprint(self._model)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures that the model reads."""
        height, width = self._model.model.config.image_size
        return height, width

    @property
    def widths(self) -> dict[str, int]:
        """Widths of the vectors, by space."""
        config = self._model.model.config
        return {"neutral": config.embedding_width, "caption": config.projection_width}

    def embed_pictures(self, pictures: Sequence[np.ndarray]) -> tuple[Float32[np.ndarray, "n D2"], np.ndarray]:
        """Embeds pictures u8[H,W,3] under the neutral sentence and as captions see them: f32[n,2D], f32[n,P]."""
        neutral, caption = [], []
        for batch, kept in self._batches(pictures):
            with self._lock:
                features = self._model.image_features(batch)
                edited = self._model.edit(features, self._encoded(NEUTRAL_SENTENCE), np.zeros(len(batch), np.int32))
                neutral.append(np.asarray(edited.embedding)[:kept])
                caption.append(self._model.project_images(features)[:kept])
        return _unit(neutral), _unit(caption)

    def embed_under(self, pictures: Sequence[np.ndarray], instruction: Instruction) -> Float32[np.ndarray, "n D2"]:
        """Embeds pictures u8[H,W,3] under one instruction -> f32[n,2D], rows of length 1."""
        found = []
        for batch, kept in self._batches(pictures):
            with self._lock:
                features = self._model.image_features(batch)
                edited = self._model.edit(features, self._encoded(instruction), np.zeros(len(batch), np.int32))
                found.append(np.asarray(edited.embedding)[:kept])
        return _unit(found)

    def embed_sentence(self, sentence: str) -> Float32[np.ndarray, " P"]:
        """Embeds a description of a person, to be compared with pictures in the caption space; length 1."""
        with self._lock:
            return _unit([self._model.project_sentences([sentence])])[0]

    def match(self, sentence: str, pictures: Sequence[np.ndarray]) -> Float[np.ndarray, " n"]:
        """Logits of the matching head: whether a sentence describes each picture u8[H,W,3]."""
        logits = []
        with self._lock:
            tokens, mask = self._model.caption_tokens([sentence])
        for batch, kept in self._batches(pictures):
            with self._lock:
                images = self._model.image_tokens(self._model.image_features(batch))
                rows = len(images)
                found = self._model.match(np.repeat(tokens, rows, axis=0), np.repeat(mask, rows, axis=0), images)
                logits.append(found[:kept])
        return np.concatenate(logits)

    def unknown_words(self, sentence: str) -> tuple[int, tuple[str, ...]]:
        """How many words of a sentence the vocabulary knows, and those that it does not."""
        known, unknown = self._model.tokenizer.known_words(sentence)
        self._model.tokenizer.reported.add(sentence)  # the answer names them: not in the log as well
        return known, tuple(unknown)

    def _encoded(self, instruction: Instruction) -> EncodedInstruction:
        """An instruction on the devices; the last ones are kept."""
        key = instruction if isinstance(instruction, str) else (instruction.shape, instruction.tobytes())
        if key not in self._instructions:
            self._instructions[key] = self._model.instructions([instruction])
            if len(self._instructions) > KEPT_INSTRUCTIONS:
                self._instructions.popitem(last=False)
        self._instructions.move_to_end(key)
        return self._instructions[key]

    def _batches(self, pictures: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
        """Yields batches u8[n,H,W,3] of a compiled size, and how many pictures of each are no padding."""
        for _, kept, batch in self._model.batches(lambda number: pictures[number], len(pictures)):
            yield batch, kept


def _unit(pieces: Sequence[np.ndarray]) -> Float32[np.ndarray, "n d"]:
    return of_length_one(finite(np.concatenate(pieces).astype(np.float32)))


def _fingerprint(model: EmbeddingModel) -> str:
    """A hash of parameters, batch statistics, picture size and vocabulary, whichever file they were read from."""
    total = hashlib.sha256(str(tuple(model.model.config.image_size)).encode())
    total.update(model.tokenizer.fingerprint().encode())
    leaves: Mapping[str, Any] = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(model.variables))
    }
    for name in sorted(leaves):
        value = np.asarray(leaves[name])
        total.update(f"{name} {value.dtype} {value.shape}".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()[:16]
