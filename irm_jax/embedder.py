"""`--mode evaluate` and `--mode embed`: what a checkpoint gives, without training; and the one-line Python way in."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batches import training_data
from data_pipelines.images import decode
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax import checkpoint, run
from irm_jax.convert import warm_start
from irm_jax.errors import ConfigError
from irm_jax.evaluation.embed import Ask, EmbeddingModel, of_length_one
from irm_jax.evaluation.report.write import write_evaluation
from irm_jax.logs import run_record
from irm_jax.models.irm import IRM
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import state
from irm_jax.training.loop import CHECKPOINTS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Picture = str | Path | bytes | np.ndarray


class ImageError(ValueError):
    """A picture cannot be read; the message names it."""


def evaluate(config: ConfigDict, workdir: epath.Path) -> None:
    """Evaluates a checkpoint of `workdir` under the configuration and writes the report there.

    Where there is none and `config.init.model` names converted weights, those are evaluated, as step 0.
    """
    run.enable_compilation_cache(config)
    mesh = mesh_lib.make_mesh(config.mesh)
    sets = run.open_evaluation_sets(config)
    if config.init.model and not checkpoint.saved_steps(workdir / CHECKPOINTS):
        step, embedder = 0, converted(config, mesh)
    else:
        step, embedder = load(workdir, config, mesh, _chosen(config))
    result = run.evaluate(config, embedder, sets)
    metadata = run_record.run_record(config.to_dict(), config.seed)
    write_evaluation(workdir, config, embedder, result, metadata, step=step)
    logging.info("evaluated step %d: report at %s", step, workdir / "report.html")


def load(workdir: epath.Path, config: ConfigDict, mesh: Mesh, chosen: Any) -> tuple[int, EmbeddingModel]:
    """The model of a checkpoint in `workdir`, its parameters laid out on `mesh`; no optimizer state is read.

    Raises CheckpointError naming the keys if the checkpoint is of another model, or if its vocabulary is another one.
    """
    directory = workdir / CHECKPOINTS
    step, saved = checkpoint.read_metadata(directory, chosen)
    of = checkpoint.saved_model(saved, checkpoint.array_shapes(directory, step))
    run.check_model(of, config)
    sizes = run.model_config(config)
    tokenizer = training_data.make_tokenizer(config, sizes.max_length)
    if tokenizer.fingerprint() != saved["fingerprint"]["vocabulary"]:
        raise checkpoint.CheckpointError(
            f"the vocabulary of config.data.vocab = {config.data.vocab!r} is not the one that {directory} was trained "
            "with: name that one"
        )
    # Words and identities as they were padded, whatever config.model's multiples are now.
    model = IRM(dataclasses.replace(sizes, vocab_size=of.vocab_size, num_identities=of.num_identities))
    constant = tokenizer.encode([NEUTRAL_SENTENCE])
    abstract = state.abstract_state(model, run.make_optimizer(config), constant, mesh)
    subset = {"params": abstract.params, "batch_stats": abstract.batch_stats}
    variables, _ = checkpoint.restore_for_evaluation(directory, subset, step)
    return step, run.embedding_model(config, model, variables, tokenizer, mesh)


def converted(config: ConfigDict, mesh: Mesh) -> EmbeddingModel:
    """The model that `config.init` describes, before any training. Raises ConvertError for weights that do not fit."""
    tokenizer = training_data.make_tokenizer(config, run.model_config(config).max_length)
    model = IRM(run.model_config(config, vocab_size=tokenizer.vocab_size))
    constant = tokenizer.encode([NEUTRAL_SENTENCE])
    fresh = state.create_state(model, optax.identity(), constant, config.seed, mesh)  # nothing to optimize
    started = warm_start.warm_start(fresh, model.config, run.init_sources(config))
    variables = {"params": started.params, "batch_stats": started.batch_stats}
    return run.embedding_model(config, model, variables, tokenizer, mesh)


def embed_folder(config: ConfigDict, workdir: epath.Path) -> None:
    """Embeds every image below `config.embed.images` under one instruction -> .npz with `files` and `embeddings`.

    With `config.embed.text_to_image` they are embedded as the gallery of a text-to-image search, and `query` [P] is the
    sentence: `embeddings @ query` ranks the folder. Raises ConfigError if there are no images, or then no sentence,
    ImageError naming the first image that cannot be read.
    """
    folder = Path(config.embed.images).expanduser()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if config.embed.images else []
    if not files:
        raise ConfigError(
            f"no images in config.embed.images = {config.embed.images!r}; name a folder with "
            f"{', '.join(IMAGE_SUFFIXES)} files"
        )
    ask = config.embed.instruction or NEUTRAL_SENTENCE
    instruction: Picture = Path(ask) if Path(ask).suffix.lower() in IMAGE_SUFFIXES else ask
    search = config.embed.text_to_image
    if search and not (config.embed.instruction and isinstance(instruction, str)):
        raise ConfigError(
            f"config.embed.text_to_image searches by a sentence, but config.embed.instruction = {str(ask)!r}"
            if config.embed.instruction
            else "config.embed.text_to_image searches by a sentence: give it as config.embed.instruction"
        )
    embedder = Embedder(workdir, step=_chosen(config))
    embeddings = embedder.project_images(files) if search else embedder(files, [instruction] * len(files))
    query = {"query": embedder.project_sentences([ask])[0]} if search else {}
    target = workdir / config.embed.output
    target.parent.mkdir(parents=True, exist_ok=True)
    names = np.array([str(p.relative_to(folder)) for p in files])
    content = io.BytesIO()
    np.savez_compressed(content, files=names, embeddings=embeddings, instruction=np.array(str(ask)), **query)
    target.write_bytes(content.getvalue())
    logging.info("%d embeddings of %d floats in %s", *embeddings.shape, target)


class Embedder:
    """A trained model in one line: `irm_jax.Embedder("runs/quickstart")(images, instructions)`.

    Called, it gives embeddings of images under instructions; text-to-image search, whose queries are sentences alone,
    compares `project_sentences` with `project_images`.

    `checkpoint`: the workdir of a run; its saved configuration says how to build the model. `step`: a number, "best",
    or None for the latest.
    """

    def __init__(self, checkpoint_dir: str | os.PathLike[str], *, step: Any = None, batch_size: int = 64) -> None:
        workdir = epath.Path(checkpoint_dir).expanduser()
        if workdir.name == CHECKPOINTS:
            workdir = workdir.parent
        _, saved = checkpoint.read_metadata(workdir / CHECKPOINTS, step)
        config = ConfigDict(saved["config"])
        config.evaluation.batch_size = batch_size
        mesh = mesh_lib.make_mesh({"data": -1, "fsdp": 1, "model": 1}, jax.local_devices())
        self.step, self._model = load(workdir, config, mesh, step)

    @property
    def model(self) -> IRM:
        return self._model.model

    @property
    def variables(self) -> Mapping[str, Any]:
        """Parameters and batch statistics."""
        return self._model.variables

    def __call__(self, images: Sequence[Picture], instructions: Sequence[Picture] | str | None = None) -> np.ndarray:
        """Images under instructions -> f32[n, 2D], rows of length 1: compare them by dot product.

        images: paths, encoded bytes or u8[H, W, 3] RGB arrays. instructions: one an image, or one sentence for all; a
        string is a sentence, a Path, bytes or array an instruction image; None is the neutral sentence.
        """
        if instructions is None or isinstance(instructions, str):
            instructions = [instructions or NEUTRAL_SENTENCE] * len(images)
        if len(images) != len(instructions):
            raise ValueError(f"{len(images)} images but {len(instructions)} instructions; give one each")
        if not len(images):
            return np.zeros((0, self._model.model.config.embedding_width), np.float32)
        return self._model.embed(lambda i: _pixels(images[i]), _asks(instructions))

    def project_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Queries of text-to-image search -> f32[n, P], rows of length 1: compare them with `project_images`.

        sentences: descriptions of people, no instructions; there is no query image.
        """
        if not len(sentences):
            return np.zeros((0, self._model.model.config.projection_width), np.float32)
        return of_length_one(self._model.project_sentences(sentences))

    def project_images(self, images: Sequence[Picture]) -> np.ndarray:
        """The gallery of text-to-image search -> f32[n, P], rows of length 1: compare them with `project_sentences`.

        images: paths, encoded bytes or u8[H, W, 3] RGB arrays.
        """
        if not len(images):
            return np.zeros((0, self._model.model.config.projection_width), np.float32)
        return self._model.project(lambda i: _pixels(images[i]), len(images))


def _asks(instructions: Sequence[Picture]) -> list[Ask]:
    """Pictures decoded, each distinct path, bytes or array once."""
    decoded: dict[Any, Ask] = {}
    asks = []
    for given in instructions:
        key = id(given) if isinstance(given, np.ndarray) else given
        if key not in decoded:
            decoded[key] = given if isinstance(given, str) else _pixels(given)
        asks.append(decoded[key])
    return asks


def _pixels(picture: Picture) -> np.ndarray:
    """A path, encoded bytes or an array -> u8[H, W, 3] RGB. Raises ImageError naming the picture."""
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ImageError(f"an image array must be u8[H, W, 3], not {picture.dtype}{list(picture.shape)}")
        return picture
    try:
        return decode(picture if isinstance(picture, bytes) else Path(picture).expanduser().read_bytes())
    except (ValueError, OSError) as error:
        name = "the given bytes" if isinstance(picture, bytes) else str(picture)
        raise ImageError(f"{name} is no readable image: {error}") from error


def _chosen(config: ConfigDict) -> Any:
    """`config.evaluation.checkpoint` as a step: None for the latest."""
    chosen = str(config.evaluation.checkpoint)
    if chosen == "latest":
        return None
    return int(chosen) if chosen.isdigit() else chosen
