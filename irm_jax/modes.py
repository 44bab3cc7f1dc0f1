"""What `--mode` does, as functions of a checked configuration and the folder of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import files as writing
from data_pipelines import images, storage
from data_pipelines.images import SUFFIXES, Picture
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax import checkpoint, objectives
from irm_jax import run as runs
from irm_jax.compile import programs
from irm_jax.embedder import Embedder
from irm_jax.errors import ConfigError
from irm_jax.evaluation.report import explain as explaining
from irm_jax.evaluation.report import gallery_map
from irm_jax.evaluation.report.write import write_evaluation
from irm_jax.export import folder as exporting
from irm_jax.export import functions
from irm_jax.logs import run_record, writers
from irm_jax.logs.workdir import locked, locked_for, require_free
from irm_jax.parallel import devices, processes
from irm_jax.training import estimates
from irm_jax.training.hooks import Hook, hooks_of
from irm_jax.training.loop import fit


def train(config: ConfigDict, workdir: epath.Path, hooks: Sequence[Hook] | None = None) -> None:
    """Trains to `config.train.steps`, from the newest checkpoint of `workdir` if there is one; then evaluates.

    `hooks`: see `fit`.
    """
    writers.require(config.logs.writers)
    run = runs.build(config)
    # What the configuration names is found, or refused, before a device or a data set is touched.
    _ = run.optimizer
    objectives.check_names(config)
    hooks = hooks_of(config) if hooks is None else hooks
    _join_processes(workdir)
    devices.enable_compilation_cache(config)
    run.ideal_seconds = partial(programs.ideal_seconds, run)
    rows = f"training with batches of {config.data.batch_size} rows"
    with devices.memory_named(rows, estimates.memory_cure(config)):
        fit(run, workdir, hooks)


def evaluate(config: ConfigDict, workdir: epath.Path) -> None:
    """Evaluates a checkpoint of `workdir` under the configuration and writes an evaluation there (`folders`).

    Without a checkpoint, the converted weights that `config.init.model` names are evaluated, as step 0.
    """
    _join_processes()
    devices.enable_compilation_cache(config)
    untrained = config.init.model and not checkpoint.saved_steps(workdir / runs.CHECKPOINTS)
    if not untrained:  # before the lock, which makes the folder
        checkpoint.read_metadata(workdir / runs.CHECKPOINTS, _chosen_step(config))
    with locked(workdir):
        if untrained:
            step, run = 0, runs.untrained(config)
            model = run.initial_model()
        else:
            step, run = runs.from_checkpoint(config, workdir, _chosen_step(config))
            model = run.saved_model(workdir, step)
        result = run.evaluate(model)
        record = run_record.run_record(config.to_dict(), config.seed)
        write_evaluation(workdir, config, model, result, record, step=step)


def embed_folder(config: ConfigDict, workdir: epath.Path) -> None:
    """Embeds every image below `config.embed.images` under one instruction; writes an .npz file into `workdir`.

    The file holds `files` and `embeddings` f32[n, 2D]. With `config.embed.text_to_image` the images are embedded as the
    gallery of a text-to-image search, f32[n, P], and `query` f32[P] is the sentence: `embeddings @ query` ranks them.

    Several processes share the images, each reading its rows of a batch; process 0 writes.

    Raises ConfigError if there are no images, or no sentence to search by; ImageError naming the first image that
    cannot be read.
    """
    folder = Path(config.embed.images).expanduser()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if config.embed.images else []
    if not files:
        raise ConfigError(
            f"no images in config.embed.images = {config.embed.images!r}; name a folder with "
            f"{', '.join(SUFFIXES)} files"
        )
    ask = config.embed.instruction or NEUTRAL_SENTENCE
    instruction: Picture = Path(ask) if _is_picture(ask) else ask
    search = config.embed.text_to_image
    if search and not (config.embed.instruction and isinstance(instruction, str)):
        raise ConfigError(
            f"config.embed.text_to_image searches by a sentence, but config.embed.instruction = {str(ask)!r}"
            if config.embed.instruction
            else "config.embed.text_to_image searches by a sentence: give it as config.embed.instruction"
        )
    _join_processes()
    size = min(64, config.evaluation.batch_size)
    embedder = Embedder(workdir, step=_chosen_step(config), batch_size=size, devices=jax.devices())
    target = workdir / config.embed.output
    with locked_for(target, workdir):
        if processes.is_main():
            writing.check_writable(target)
        embeddings = embedder.project_images(files) if search else embedder(files, [instruction] * len(files))
        query = {"query": embedder.project_sentences([ask])[0]} if search else {}
        names = np.array([str(p.relative_to(folder)) for p in files])
        content = io.BytesIO()
        np.savez_compressed(content, files=names, embeddings=embeddings, instruction=np.array(str(ask)), **query)
        if processes.is_main():
            writing.write_atomically(target, content.getvalue())
        processes.barrier("embed")
    logging.info("%d embeddings of %d floats in %s", *embeddings.shape, target)


def explain(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes the page of one query, `config.explain.output` in `workdir`: what its instruction changed, and why.

    Raises ConfigError if the query or its instruction is missing or there is no such test set, ImageError for a picture
    that cannot be read.
    """
    e = config.explain
    if not e.query or not e.instruction:
        missing = "query" if not e.query else "instruction"
        raise ConfigError(
            f"config.explain.{missing} is missing: --mode explain --config.explain.query=q.jpg "
            '--config.explain.instruction="ignore clothes" (or the path of an instruction image)'
        )
    name = e.test_set or next(iter(config.evaluation.sets), "")
    if name not in config.evaluation.sets:
        raise ConfigError(f"config.explain.test_set = {name!r}; the test sets are {', '.join(config.evaluation.sets)}")
    gallery_map.require(e.map)
    path, limit = Path(e.query).expanduser(), config.data.max_pixels
    picture = images.pixels_of(path, limit)
    asked = images.pixels_of(Path(e.instruction), limit) if _is_picture(e.instruction) else e.instruction
    question = explaining.Question(path.name, picture, asked, images.read_file(path, limit))
    _join_processes()
    devices.enable_compilation_cache(config)
    target = workdir / e.output
    checkpoint.read_metadata(workdir / runs.CHECKPOINTS, _chosen_step(config))  # before the lock makes the folder
    with locked_for(target, workdir):
        writing.check_writable(target)
        step, run = runs.from_checkpoint(config, workdir, _chosen_step(config))
        options = explaining.Options(
            config.evaluation.top_k, e.points, e.map, config.seed, config.data.threads, config.data.workers
        )
        test = next(test for test in run.test_sets if test.name == name)
        model = run.saved_model(workdir, step)
        facts = {"run": workdir.name, "step": step}
        page = explaining.page(model, test, question, options, facts)
        if processes.is_main():
            writing.write_atomically(target, page)
        processes.barrier("explain")
    logging.info("%s is explained: %s", path.name, target)


def export_functions(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes the folder `config.export.output` in `workdir`: the model as StableHLO and ONNX, with all its user needs.

    Raises ExportError for a format whose packages are missing, and WriteError if the folder is there already.
    """
    e = config.export
    functions.require(e.formats)
    target = workdir / e.output
    if storage.is_remote(target):
        raise ConfigError(f"{target}: exports go to a local folder; give config.export.output as an absolute path")
    if target.exists():
        raise ConfigError(f"{target} is there already: delete it, or name another by --config.export.output=NAME")
    embedder = Embedder(workdir, step=_chosen_step(config))
    with locked_for(target, workdir):
        exporting.export(embedder, Path(target), e.formats, e.functions)
    print(f"{target}: step {embedder.step}; README.md there says how to use it")


def _is_picture(instruction: str) -> bool:
    return Path(instruction).suffix.lower() in SUFFIXES


def _join_processes(workdir: epath.Path | None = None) -> None:
    """Joins the other processes of this run, if any. All but the first log warnings only.

    With `workdir`, raises what `workdir.require_free` does before a device is touched.
    """
    processes.start()
    if workdir is not None:
        require_free(workdir)
    if processes.is_main():
        devices.warn_of_unseen_gpu()
    else:
        logging.set_verbosity(logging.WARNING)


def _chosen_step(config: ConfigDict) -> Any:
    """`config.evaluation.checkpoint` as a step: None for the latest."""
    chosen = str(config.evaluation.checkpoint)
    if chosen == "latest":
        return None
    return int(chosen) if chosen.isascii() and chosen.isdecimal() else chosen
