"""`irm_jax.Embedder`: a trained model as functions from images and sentences to embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from data_pipelines.images import Picture, pixels_of
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax import checkpoint, run
from irm_jax.config import keys
from irm_jax.errors import ImageError
from irm_jax.evaluation.embed import Instruction, of_length_one
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib

__all__ = ["Embedder", "ImageError"]


class Embedder:
    """A trained model: `irm_jax.Embedder("runs/quickstart")(images, instructions)`.

    A call returns the embeddings of images under instructions. For text-to-image search, whose queries are sentences
    alone, `project_sentences` and `project_images` return what to compare.

    Args:
        checkpoint_dir: the workdir of a run. Its saved configuration says how the model is built.
        step: the number of a checkpoint, "best", or None for the latest.
        batch_size: images embedded at a time.

    Raises CheckpointError if there is no such checkpoint or it cannot be read.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str], *, step: Any = None, batch_size: int = 64) -> None:
        workdir = epath.Path(checkpoint_dir).expanduser()
        if workdir.name == run.CHECKPOINTS:
            workdir = workdir.parent
        _, saved = checkpoint.read_metadata(workdir / run.CHECKPOINTS, step)
        config = keys.completed(saved["config"])
        config.evaluation.batch_size = batch_size
        self._max_pixels = config.data.max_pixels
        mesh = mesh_lib.make_mesh({"data": -1, "fsdp": 1, "model": 1}, jax.local_devices())
        self.step, restored = run.from_checkpoint(config, workdir, step, mesh=mesh)
        self._model = restored.saved_model(workdir, self.step)

    @property
    def model(self) -> IRM:
        return self._model.model

    @property
    def variables(self) -> Mapping[str, Any]:
        """Parameters and batch statistics."""
        return self._model.variables

    def __call__(self, images: Sequence[Picture], instructions: Sequence[Picture] | str | None = None) -> np.ndarray:
        """Embeds n images under instructions -> f32[n, 2D], rows of length 1: compare them by dot product.

        Args:
            images: paths, encoded bytes or u8[H, W, 3] RGB arrays.
            instructions: one per image, or one sentence for all. A string is a sentence; a Path, bytes or an array is
                an instruction image; None stands for the neutral sentence.

        Raises ImageError naming the first image that cannot be read, and UnknownWordsError naming a sentence without a
        word that the vocabulary knows.
        """
        if instructions is None or isinstance(instructions, str):
            instructions = [NEUTRAL_SENTENCE if instructions is None else instructions] * len(images)
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} images but {len(instructions)} instructions; give one each")
        if not len(images):
            return np.zeros((0, self._model.model.config.embedding_width), np.float32)
        return self._model.embed(lambda i: self._pixels(images[i]), self._asks(instructions))

    def project_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Embeds n descriptions of people as queries of a text-to-image search -> f32[n, P], rows of length 1.

        Compare them with `project_images` by dot product.
        """
        if not len(sentences):
            return np.zeros((0, self._model.model.config.projection_width), np.float32)
        return of_length_one(self._model.project_sentences(sentences))

    def project_images(self, images: Sequence[Picture]) -> np.ndarray:
        """Embeds n images as the gallery of a text-to-image search -> f32[n, P], rows of length 1.

        `images`: paths, encoded bytes or u8[H, W, 3] RGB arrays.
        """
        if not len(images):
            return np.zeros((0, self._model.model.config.projection_width), np.float32)
        return self._model.project(lambda i: self._pixels(images[i]), len(images))

    def _pixels(self, picture: Picture) -> np.ndarray:
        """Decodes an image at full size, as evaluation does -> u8[H, W, 3] RGB. Raises ImageError naming it."""
        return pixels_of(picture, self._max_pixels)

    def _asks(self, instructions: Sequence[Picture]) -> list[Instruction]:
        """The instructions with images decoded, each distinct path, bytes object or array once."""
        decoded: dict[Any, Instruction] = {}
        asks = []
        for given in instructions:
            key = id(given) if isinstance(given, np.ndarray) else given
            if key not in decoded:
                decoded[key] = given if isinstance(given, str) else self._pixels(given)
            asks.append(decoded[key])
        return asks
