"""`irm_jax.Embedder`: a trained model as functions from images and sentences to embeddings (docs/python.md)."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import tasks
from data_pipelines.images import MAX_PIXELS, Picture, pixels_of
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax import pretrained
from irm_jax.config import keys
from irm_jax.errors import ImageError
from irm_jax.evaluation.embed import EmbeddingModel, Instruction, finite, of_length_one
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel.devices import enable_compilation_cache, memory_named, warn_of_unseen_gpu

__all__ = ["Embedder", "ImageError"]

SIZES = (1, 4, 16, 64)
"""Numbers of rows that programs are compiled for, beside whole batches."""
LOGGED_EVERY = 20
"""Batches per progress line."""
_LESS = "lower batch_size (in --mode embed: --config.evaluation.batch_size)"


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint that was opened: the folder, the step, the saved configuration, and the model."""

    workdir: epath.Path
    step: int
    config: ConfigDict
    model: EmbeddingModel

    @property
    def sentence_doubt(self) -> str | None:
        """Why images have no meaningful order by a sentence alone, and the cure; None if the configuration does not
        show it. Captions alone train the projections that are compared; given weights may bring trained ones."""
        init = self.config.init
        learned = {unit.task for unit in self.config.data.train.values()}
        given = init.model or (init.text_encoder and init.text_encoder == init.image_encoder)
        if given or not learned or any(tasks.task(name).kind == "caption" for name in learned):
            return None
        return (
            "A sentence alone means nothing to this model, nor does an order of images by it: it was trained on "
            f"{', '.join(sorted(learned))}, and on no captions. Train with a data set of the task t2i, or ask by a "
            "picture."
        )


def open_checkpoint(
    checkpoint_dir: str | os.PathLike[str], step: Any = None, batch_size: int = 64,
    devices: Sequence[jax.Device] | None = None,
) -> Opened:  # fmt: skip
    """Opens a checkpoint, or a folder of `save_pretrained`, on `devices`, for whole batches and for a few rows."""
    if (folder := pretrained.folder_of(checkpoint_dir)) is not None:
        opened = _open_pretrained(folder, None, batch_size, devices)
        if step not in (None, opened.step):
            raise pretrained.PretrainedError(f"{folder} holds step {opened.step} alone, not {step}")
        return opened
    # Imported here: what trains takes a second to import, and a folder of weights needs none of it.
    from irm_jax import checkpoint, run

    workdir = epath.Path(checkpoint_dir).expanduser()
    if workdir.name == run.CHECKPOINTS:
        workdir = workdir.parent
    chosen, saved = checkpoint.read_metadata(workdir / run.CHECKPOINTS, step)
    checkpoint.check_record(saved, f"step {chosen} in {workdir / run.CHECKPOINTS}")
    config = keys.completed(saved["config"])
    config.evaluation.batch_size = batch_size
    enable_compilation_cache(config)
    found_step, restored = run.from_checkpoint(config, workdir, step, mesh=_mesh(devices))
    found = restored.saved_model(workdir, found_step)
    model = EmbeddingModel(found.model, found.variables, found.tokenizer, found.mesh, batch_size, SIZES)
    return Opened(workdir, found_step, config, model)


def _open_pretrained(
    source: str | os.PathLike[str], revision: str | None, batch_size: int, devices: Sequence[jax.Device] | None
) -> Opened:
    found, config, mesh = pretrained.load(source, revision), keys.get_config(), _mesh(devices)
    config.data.max_pixels = found.max_pixels
    enable_compilation_cache(config)
    variables = jax.device_put(found.variables, mesh_lib.replicated(mesh))
    model = EmbeddingModel(IRM(found.config), variables, found.tokenizer, mesh, batch_size, SIZES)
    return Opened(epath.Path(source), found.step, config, model)


class Embedder:
    """A trained model: `irm_jax.Embedder("runs/quickstart").embed(images, instructions)`.

    `embed`, which a call is short for, returns the embeddings of images under instructions. For text-to-image search,
    whose queries are sentences alone, `embed_text` and `project_images` return what to compare. Methods may be called
    from several threads.

    Pictures are paths, encoded bytes, u8[H, W, 3] arrays in RGB, PIL pictures, or torch tensors (channels first, u8 or
    floats from 0 to 1). Where several are asked for, any iterable of them will do: an iterator is read batch by batch,
    and an item with four axes counts as that many pictures, as a DataLoader yields them.

    Args:
        checkpoint_dir: the workdir of a run, whose saved configuration says how the model is built; a folder of
            `save_pretrained`; or "demo", weights that come with the package and know drawn people alone
            (irm_jax/weights/demo/README.md).
        step: the number of a checkpoint, "best", or None for the latest.
        batch_size: images embedded at a time; fewer are padded to 1, 4, 16 or 64. The first call of each size compiles,
            and says so; `compile` does it ahead.
        devices: the devices that share the work; None stands for all devices of this process. If they belong to several
            processes, every process makes the same calls, reads its share of the images, and has the whole result.

    Raises CheckpointError if there is no such checkpoint or it cannot be read.
    """

    def __init__(
        self, checkpoint_dir: str | os.PathLike[str], *, step: Any = None, batch_size: int = 64,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:  # fmt: skip
        opened = open_checkpoint(checkpoint_dir, step, batch_size, devices)
        self.step = opened.step
        self._set(opened.model, opened.config.data.max_pixels, opened.sentence_doubt)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None,
                        batch_size: int = 64) -> Embedder:  # fmt: skip
        """The model in a folder that `save_pretrained` wrote, or in a repository `owner/name` of the Hugging Face Hub.

        The Hub needs huggingface_hub (extra `hub`). Raises PretrainedError for a folder that holds no such model.
        """
        opened = _open_pretrained(source, revision, batch_size, None)
        return cls.of(opened.model, opened.step, opened.config.data.max_pixels)

    @classmethod
    def of(cls, model: EmbeddingModel, step: int = 0, max_pixels: int = MAX_PIXELS) -> Embedder:
        """The embedder of a model that is on the devices already."""
        embedder = cls.__new__(cls)
        embedder.step = step
        embedder._set(model, max_pixels)
        return embedder

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: Any = np.float32) -> None:
        """Writes the model as people know it from Hugging Face: safetensors, configuration, tokenizer files and card.

        Weights are stored as `dtype`, float32 or float16, and computed with in float32.
        `from_pretrained` reads it, here or from the Hub. Raises PretrainedError if the folder holds a model already.
        """
        held = self._model
        variables = jax.device_get(dict(held.variables))
        pretrained.save(
            folder, pretrained.Pretrained(held.model.config, variables, held.tokenizer, self._max_pixels, self.step),
            _float(dtype),
        )  # fmt: skip

    def _set(self, model: EmbeddingModel, max_pixels: int, sentence_doubt: str | None = None) -> None:
        self._model, self._max_pixels, self._sentence_doubt = model, max_pixels, sentence_doubt
        self._known: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    @property
    def model(self) -> IRM:
        return self._model.model

    @property
    def variables(self) -> Mapping[str, Any]:
        """Parameters and batch statistics."""
        return self._model.variables

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def compile(self, rows: Sequence[int] = (1,)) -> None:
        """Compiles the programs for queries of so many images under one sentence, ahead of the first query."""
        picture = np.zeros((*self.model.config.image_size, 3), np.uint8)
        for count in rows:
            self.embed([picture] * count)

    def embed(
        self, images: Iterable[Any], instructions: Iterable[Any] | str | None = None, *, dtype: Any = np.float32,
        progress: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Embeds n images under instructions -> [n, 2D], rows of length 1: compare them by dot product.

        Args:
            images: pictures, or one picture.
            instructions: one per image, or one sentence for all. A string is a sentence; any other picture, a Path
                included, is an instruction image; None stands for the neutral sentence.
            dtype: of the result, np.float32 or np.float16.
            progress: log a line every LOGGED_EVERY batches.

        Raises ImageError naming the first image that cannot be read, UnknownWordsError naming a sentence without a
        word that the vocabulary knows, and NotFiniteError for a diverged checkpoint.
        """
        width = self.model.config.embedding_width
        return self._batches(images, instructions, width, dtype, self._embed_batch, progress)

    __call__ = embed

    def embed_text(self, sentences: Iterable[str], *, dtype: Any = np.float32) -> np.ndarray:
        """Embeds n descriptions of people as queries of a text-to-image search -> [n, P], rows of length 1.

        Compare them with `project_images` by dot product. Raises UnknownWordsError as `embed`.
        """
        given = [sentences] if isinstance(sentences, str) else list(sentences)
        self._warn_of_sentences()
        if not given:
            return np.zeros((0, self.model.config.projection_width), _float(dtype))
        with self._saying("sentences", len(given)):
            return of_length_one(self._model.project_sentences(given)).astype(_float(dtype))

    def project_sentences(self, sentences: Iterable[str]) -> np.ndarray:
        """The same as `embed_text`, in f32."""
        return self.embed_text(sentences)

    def project_images(self, images: Iterable[Any], *, dtype: Any = np.float32, progress: bool = False) -> np.ndarray:
        """Embeds n images as the gallery of a text-to-image search -> [n, P], rows of length 1; see `embed`."""
        self._warn_of_sentences()
        width = self.model.config.projection_width
        return self._batches(images, None, width, dtype, lambda pictures, _: self._project_batch(pictures), progress)

    @staticmethod
    def rank(query: np.ndarray, gallery: np.ndarray, top: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Ranks gallery embeddings [G, d] for each query embedding [Q, d], or for one [d], by cosine.

        Returns (numbers of the best `top` images i64[Q, top], best first, the lower number first among equals; their
        cosines f32[Q, top]), without the axis Q for one query. Raises ValueError for arrays that do not match.
        """
        rows, images = (np.asarray(x, np.float32) for x in (query, gallery))
        if rows.ndim not in (1, 2) or images.ndim != 2 or rows.shape[-1] != images.shape[-1]:
            raise ValueError(f"query {rows.shape} and gallery {images.shape} are no embeddings of one width")
        scores = of_length_one(finite(np.atleast_2d(rows))) @ of_length_one(finite(images)).T
        kept = min(top, len(images))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
        best = np.take_along_axis(scores, order, axis=1)
        return (order, best) if rows.ndim == 2 else (order[0], best[0])

    def _batches(
        self, images: Iterable[Any], instructions: Any, width: int, dtype: Any, embed: Any, progress: bool
    ) -> np.ndarray:
        """Embeds batch by batch; an iterator is read no further than the batch that is embedded."""
        one = instructions is None or isinstance(instructions, str)
        asks = itertools.repeat(NEUTRAL_SENTENCE if instructions is None else instructions) if one else instructions
        if isinstance(images, Sequence) and isinstance(asks, Sequence) and len(images) != len(asks):
            raise ValueError(f"{len(images)} images but {len(asks)} instructions; give one each")
        pictures, asked = _each(images), iter(asks)
        done: list[np.ndarray] = []
        while batch := list(itertools.islice(pictures, self._model.batch_size)):
            own = list(itertools.islice(asked, len(batch)))
            if len(own) < len(batch):
                count = len(done) * self._model.batch_size
                raise ValueError(f"{count + len(batch)} images or more but {count + len(own)} instructions; one each")
            with memory_named(f"embedding {len(batch)} images at a time", _LESS):
                done.append(embed(batch, own).astype(_float(dtype)))
            if progress and len(done) % LOGGED_EVERY == 0:
                logging.info("%d images embedded", sum(map(len, done)))
        if not one and next(asked, None) is not None:
            raise ValueError(f"{sum(map(len, done))} images but more instructions; give one each")
        return np.concatenate(done) if done else np.zeros((0, width), _float(dtype))

    def _embed_batch(self, pictures: Sequence[Any], asks: Sequence[Any]) -> np.ndarray:
        with self._saying("embedding", len(pictures)):
            return self._model.embed(lambda i: self._pixels(pictures[i]), self._asks(asks))

    def _project_batch(self, pictures: Sequence[Any]) -> np.ndarray:
        with self._saying("projection", len(pictures)):
            return self._model.project(lambda i: self._pixels(pictures[i]), len(pictures))

    def _warn_of_sentences(self) -> None:
        if self._sentence_doubt:
            logging.warning("%s", self._sentence_doubt)
            self._sentence_doubt = None  # once

    def _saying(self, what: str, count: int) -> _Compiling:
        return _Compiling(self, what, next((size for size in SIZES if size >= count), count))

    def _pixels(self, picture: Any) -> np.ndarray:
        """Decodes an image at full size, as evaluation does -> u8[H, W, 3] RGB. Raises ImageError naming it."""
        return pixels_of(_plain(picture), self._max_pixels)

    def _asks(self, instructions: Sequence[Any]) -> list[Instruction]:
        """The instructions with images decoded, each distinct path, bytes object or array once."""
        decoded: dict[Any, Instruction] = {}
        asks = []
        for given in instructions:
            key = given if isinstance(given, str | bytes | os.PathLike) else id(given)
            if key not in decoded:
                decoded[key] = given if isinstance(given, str) else self._pixels(given)
            asks.append(decoded[key])
        return asks


class _Compiling:
    """Says before a block that it compiles, the first time for a kind and number of rows."""

    def __init__(self, embedder: Embedder, what: str, rows: int) -> None:
        self.embedder, self.key = embedder, (what, rows)

    def __enter__(self) -> None:
        with self.embedder._lock:
            new = self.key not in self.embedder._known
            self.embedder._known.add(self.key)
        if new:
            logging.info("compiling the programs for %s of %d rows, or reading them from the cache", *self.key)

    def __exit__(self, *_: object) -> None: ...


def _mesh(devices: Sequence[jax.Device] | None = None) -> Any:
    warn_of_unseen_gpu()
    return mesh_lib.make_mesh({"data": -1, "fsdp": 1, "model": 1}, devices or jax.local_devices())


def _float(dtype: Any) -> np.dtype:
    found = np.dtype(dtype)
    if found not in (np.float32, np.float16):
        raise ValueError(f"dtype must be float32 or float16, not {found}")
    return found


def _each(images: Iterable[Any]) -> Iterator[Any]:
    """Every picture: of one picture alone, of an iterable, and of its batches."""
    if isinstance(images, str | bytes | os.PathLike) or getattr(images, "ndim", 0) == 3 or hasattr(images, "getbands"):
        yield images
        return
    for item in images:
        if getattr(item, "ndim", 0) == 4:
            yield from item
        else:
            yield item


def _plain(picture: Any) -> Picture:
    """A PIL picture or torch tensor as u8[H, W, 3]; anything else as it is. Imports neither library."""
    if hasattr(picture, "getbands"):  # PIL
        from PIL import ImageOps

        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if not hasattr(picture, "detach"):
        return picture
    array = picture.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[0] == 3:
        array = np.moveaxis(array, 0, -1)
    if array.dtype.kind == "f":
        if not (array.size and array.min() >= 0 and array.max() <= 1):
            raise ImageError("a tensor of floats must hold numbers from 0 to 1 (give pictures before normalisation)")
        array = np.round(array * 255).astype(np.uint8)
    return np.ascontiguousarray(array)
