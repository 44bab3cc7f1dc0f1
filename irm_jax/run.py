"""Builds a run from its configuration: mesh, data, model, optimizer, step and test sets. Nothing else assembles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import options, tasks
from data_pipelines.batches import stated_data, training_data
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.batches.training_data import TrainingData
from data_pipelines.instructions import unknown_words
from data_pipelines.instructions import vocabulary as caption_vocabulary
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.people import tested_people
from irm_jax import checkpoint, objectives
from irm_jax.config import check
from irm_jax.convert import warm_start
from irm_jax.errors import ConfigError
from irm_jax.evaluation import test_sets
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluator import Evaluation, Evaluator, Options
from irm_jax.evaluation.test_sets import TestSet
from irm_jax.models import encoders, presets
from irm_jax.models.config import IRMConfig
from irm_jax.models.irm import IRM
from irm_jax.objectives.base import Objective, TrainingMix
from irm_jax.parallel import devices, processes
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training.loop import CHECKPOINTS
from irm_jax.training.optimizer import OptimizerOptions, make_optimizer
from irm_jax.training.state import MemoryShapes, TrainState, abstract_state, create_state, with_variables
from irm_jax.training.step import StepOptions, make_train_step


class Run:
    """The parts of a run, each made from the configuration when it is first asked for, and then kept.

    An evaluation opens no training data this way, and a program can be compiled for devices that are not here. Every
    part is an attribute that may be replaced before the parts that depend on it are made.

    Args:
        config: the checked configuration.
        mesh: devices; by default all of this machine, in the shape `config.mesh`.
        data: the training data; by default the built data sets that `config.data` names.
        model: the model; by default the one that the configuration and the training data describe.

    Attributes:
        ideal_seconds: returns the seconds that the products of a step take at the peak of the devices, for the MFU in
            the logs, None where that is not known. `compile.programs.ideal_seconds` counts them; training asks once.
    """

    ideal_seconds: Callable[[], float | None]

    def __init__(
        self, config: ConfigDict, *, mesh: Mesh | None = None, data: TrainingData | None = None,
        model: IRM | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.ideal_seconds = lambda: None
        if model is not None:
            self.model = model
        if mesh is not None:
            self.mesh = mesh
        if data is not None:
            self.data = data

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices, in axes (data, fsdp, model)."""
        return mesh_lib.make_mesh(self.config.mesh)

    @functools.cached_property
    def data(self) -> TrainingData:
        """The training sets and the layout of a batch, in the image and sentence sizes of the model.

        Raises DatasetError for a data set that is missing or damaged.
        """
        sizes = model_config(self.config)
        with processes.main_first("training data"):
            return training_data.open_training(
                self.config, image_size=sizes.image_size, instruction_image_size=sizes.instruction_image_size,
                max_length=sizes.max_length, growth=encoders.sizes_of(sizes, options.growth_of(self.config)),
            )  # fmt: skip

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """From sentences to token ids i32[n, max_length]."""
        return training_data.make_tokenizer(self.config, model_config(self.config).max_length)

    @functools.cached_property
    def model(self) -> IRM:
        """The module; its parameters are in a state or in `embedding_model`."""
        words, people = self.data.tokenizer.vocab_size, self.data.space.num_head
        return IRM(model_config(self.config, vocab_size=words, num_identities=people))

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of `config.optimizer`, on the schedule of `config.train.steps`."""
        return make_optimizer(OptimizerOptions.from_config(self.config))

    @functools.cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """The terms of the training loss that the configuration switches on. Raises ConfigError."""
        return objectives.build(self.config, TrainingMix.of(self.data, self.model.config.num_identities))

    @functools.cached_property
    def memory(self) -> MemoryShapes:
        """The momentum model, memory bank and caption queue of the state."""
        return MemoryShapes.of(self.config, self.data.plan, self.objectives)

    @functools.cached_property
    def train_step(self) -> jax.stages.Wrapped:
        """The jitted `step(state, batch, constant_tokens, key) -> (state, metrics)`; the state is donated."""
        options = StepOptions(self.config.momentum.decay, self.config.optimizer.frozen)
        return make_train_step(self.model, self.optimizer, self.objectives, self.mesh, options)

    @functools.cached_property
    def test_sets(self) -> list[TestSet]:
        """The test sets, their people and cameras numbered over all of them."""
        return _open_test_sets(self.config)

    def check_training(self) -> None:
        """Raises ConfigError for data that must not be trained on: blocks that do not divide, leaks into test sets.

        Raises UnknownWordsError for a test sentence without a known word.
        """
        if problem := check.block_problem(self.config, mesh_lib.row_shards(self.mesh)):
            raise ConfigError(problem)
        self.check_leaks()
        self.check_sentences()

    def check_sentences(self) -> None:
        """Raises UnknownWordsError for a sentence of the test sets without a word that the vocabulary knows.

        Warns of the unknown words of other sentences, and of sentences that are equal once they are cut.
        """
        for test in self.test_sets:
            for part in (test.query, *test.parts):
                own = [str(one) for one in part.instructions if isinstance(one, str)]
                where = f"test set {test.name}, split {part.split}"
                unknown_words.check(self.tokenizer, own, where)
                caption_vocabulary.warn_of_cut(self.tokenizer, own, where)

    def check_leaks(self) -> None:
        """Raises ConfigError if people of a training set are tested in another data set; warns if that is allowed."""
        splits: dict[str, list[str]] = {}
        opened = {}
        for part in (part for test in self.test_sets for part in (test.query, *test.parts)):
            opened[part.dataset.name] = part.dataset
            splits.setdefault(part.dataset.name, []).append(part.split)
        tests = {name: (dataset, sorted(set(splits[name]))) for name, dataset in opened.items()}
        found = tested_people.leaks(self._training_sets(), tests)
        if found and self.config.data.leaks == "refuse":
            raise ConfigError(
                f"{tested_people.refusal(found)}, or accept figures that are too good with config.data.leaks=warn"
            )
        if found:
            logging.warning("%s", tested_people.refusal(found))

    def check_vocabulary(self) -> None:
        """Raises ConfigError if the built-in vocabulary lacks the words of the training captions.

        Warns if another vocabulary lacks them. Raises UnknownWordsError for a caption without a known word; a caption
        that is not looked at here raises it when it is read.
        """
        sentences: dict[str, list[str]] = {}
        for dataset in self._training_sets():
            looked_at = list(caption_vocabulary.sentences_of(dataset, caption_vocabulary.LOOKED_AT))
            sentences[dataset.name] = looked_at
            where = f"data set {dataset.name}, split train"
            unknown_words.check(self.data.tokenizer, looked_at, where)
            caption_vocabulary.warn_of_cut(self.data.tokenizer, looked_at, where)
        found = caption_vocabulary.misfits(sentences, self.data.tokenizer)
        if not found:
            return
        words = f"config.data.vocab = {self.config.data.vocab!r} does not suit the training data. {'; '.join(found)}"
        if self.config.data.vocab != "builtin":
            logging.warning("%s", words)
            return
        raise ConfigError(
            f"{words}. It holds the words of the drawn benchmark: give the folder of another, "
            "--config.data.vocab=FOLDER. `python -m data_pipelines.instructions.vocabulary --data_dir "
            f"{self.config.data.dir} --out FOLDER` makes one of the training captions; BERT's comes with its weights "
            "(docs/pretrained.md)"
        )

    def _training_sets(self) -> list[Any]:
        return [self.data.datasets[name] for name in self.data.plan.datasets]

    def check_checkpoint(self, saved: IRMConfig) -> None:
        """Raises CheckpointError if a checkpoint's model (`checkpoint.saved_model`) is another one than this run's."""
        checkpoint.check_model(saved, model_config(self.config))

    def fresh_state(self) -> TrainState:
        """The state before the first step: random numbers of `config.seed`, then the weights that `config.init` names.

        Raises ConfigError for a vocabulary that does not suit the training data, ConvertError for weights that do not
        fit the model.
        """
        if self.data.datasets:  # planned data has no sentences
            self.check_vocabulary()
        constants = self.data.plan.constant_tokens
        state = create_state(self.model, self.optimizer, constants, self.config.seed, self.mesh, self.memory)
        return self._with_given_weights(state, self.optimizer)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, nothing allocated: what a checkpoint is restored into."""
        return abstract_state(self.model, self.optimizer, self.data.plan.constant_tokens, self.mesh, self.memory)

    def initial_model(self) -> EmbeddingModel:
        """The model before any training, with the weights that `config.init` names; no training data is opened.

        Raises ConvertError for weights that do not fit the model.
        """
        unused = optax.identity()
        fresh = create_state(self.model, unused, self._neutral_tokens(), self.config.seed, self.mesh)
        started = self._with_given_weights(fresh, unused)
        return self.embedding_model({"params": started.params, "batch_stats": started.batch_stats})

    def saved_model(self, workdir: epath.Path, step: int) -> EmbeddingModel:
        """The model with the parameters of a checkpoint, laid out on the mesh; the optimizer state is read only
        where it holds their averages.

        Raises CheckpointError if the checkpoint cannot be read.
        """
        variables, _ = checkpoint.restore_for_evaluation(workdir / CHECKPOINTS, self.abstract_variables(), step)
        return self.embedding_model(variables)

    def abstract_variables(self) -> dict[str, Any]:
        """Shapes, dtypes and shardings of the parameters and batch statistics; no training data is opened."""
        abstract = abstract_state(self.model, optax.identity(), self._neutral_tokens(), self.mesh)
        return {"params": abstract.params, "batch_stats": abstract.batch_stats}

    def _with_given_weights(self, state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """The state with the weights that `config.init` names, from which the optimizer starts."""
        sources = warm_start.Sources(**self.config.init.to_dict())
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return with_variables(state, warm_start.warm_start(variables, self.model.config, sources), optimizer)

    def _neutral_tokens(self) -> np.ndarray:
        """i32[1, max_length]: a sentence to trace the model with."""
        return self.tokenizer.encode([tasks.NEUTRAL_SENTENCE])

    def stream(self, start_step: int, num_steps: int, *, workers: int | None = None) -> Any:
        """This process's blocks of the batches of steps start_step, start_step + 1, ...; a context to be closed.

        `workers`: reader processes; None stands for `config.data.workers`.
        """
        d = self.config.data
        return self.data.stream(
            start_step,
            num_steps,
            mesh_lib.addressable_blocks(self.mesh, self.data.plan.batch_blocks),
            ReadAhead(d.workers if workers is None else workers, d.threads, d.prefetch),
        )

    def embedding_model(self, variables: Mapping[str, Any]) -> EmbeddingModel:
        """The model with these variables (`params`, `batch_stats`) as functions of host arrays."""
        return EmbeddingModel(
            self.model, variables, self.tokenizer, self.mesh, self.config.evaluation.batch_size
        )  # fmt: skip

    def evaluate(self, embedding_model: EmbeddingModel) -> Evaluation:
        """Ranks all test sets. Raises UnknownWordsError, see `check_sentences`."""
        self.check_sentences()
        config, e = self.config, self.config.evaluation
        # A head that judges pairs was trained here, or came with a whole model.
        judges = config.loss.matching_weight > 0 or (config.init.model and embedding_model.model.config.fusion_depth)
        options = Options(
            metric=e.metric,
            query_block=e.query_block,
            top_k=e.top_k,
            taus=tuple(e.taus),
            tau_similarity=e.tau_similarity,
            task_free=e.task_free,
            overlaps=tuple(tuple(pair.split(":")) for pair in e.overlaps),
            controls=e.controls,
            top500=e.top500,
            flip=e.flip,
            rerank=e.rerank,
            rescore_top=e.rescore_top if judges else 0,
            two_stage=e.two_stage,
            open_set=e.open_set,
            seed=config.seed,
            threads=config.data.threads,
            workers=config.data.workers,
        )
        sizes = f"evaluating {e.batch_size} images and {e.query_block or 'many'} queries at a time"
        cure = (
            f"lower --config.evaluation.batch_size={max(e.batch_size // 2, 1)} and --config.evaluation.query_block=64"
        )
        with devices.memory_named(sizes, cure):
            return Evaluator(embedding_model, self.test_sets, options).run()


def build(
    config: ConfigDict, *, mesh: Mesh | None = None, data: TrainingData | None = None, model: IRM | None = None
) -> Run:
    """The parts of a run. Nothing is opened or allocated yet, see `Run`."""
    return Run(config, mesh=mesh, data=data, model=model)


def from_checkpoint(
    config: ConfigDict, workdir: epath.Path, step: Any = None, *, mesh: Mesh | None = None
) -> tuple[int, Run]:
    """The step of a checkpoint in `workdir`, and a run with its model; `saved_model` reads the parameters.

    `step`: a number, "best", or None for the latest. Raises CheckpointError if there is none, naming the keys if it is
    of another model, and if its vocabulary is another one.
    """
    directory = workdir / CHECKPOINTS
    step, metadata = checkpoint.read_metadata(directory, step)
    checkpoint.check_record(metadata, f"step {step} in {directory}")
    # Only an earlier version's record leaves sizes to the arrays, and restoring reads their shapes again.
    arrays = {} if "model" in metadata else checkpoint.array_shapes(directory, step)
    saved = checkpoint.saved_model(metadata, arrays)
    # Words and identities as they were padded, whatever the multiples of config.model are now.
    sizes = dataclasses.replace(
        model_config(config), vocab_size=saved.vocab_size, num_identities=saved.num_identities
    )  # fmt: skip
    run = build(config, mesh=mesh, model=IRM(sizes))
    run.check_checkpoint(saved)
    if run.tokenizer.fingerprint() != metadata["fingerprint"]["vocabulary"]:
        raise checkpoint.CheckpointError(
            f"the vocabulary of config.data.vocab = {config.data.vocab!r} is not the one that {directory} was trained "
            "with: name that one"
        )
    return step, run


def untrained(config: ConfigDict, *, mesh: Mesh | None = None) -> Run:
    """A run whose model has no identities yet; `initial_model` gives it the weights that `config.init` names."""
    run = build(config, mesh=mesh)
    run.model = IRM(model_config(config, vocab_size=run.tokenizer.vocab_size))
    return run


def planned(config: ConfigDict, mesh: Mesh) -> Run:
    """A run on devices and data that need not be here: its state and its batches are shapes alone."""
    data = stated_data.plan_training(config, max_length=model_config(config).max_length)
    return build(config, mesh=mesh, data=data)


def model_config(config: ConfigDict, *, vocab_size: int = 1, num_identities: int = 1) -> IRMConfig:
    """The preset with the keys that `config.model` sets; vocabulary and identities rounded up to their multiples."""
    return presets.from_options(config.model.to_dict(), vocab_size=vocab_size, num_identities=num_identities)


def _open_test_sets(config: ConfigDict) -> list[TestSet]:
    """All test sets, in one space of people and cameras."""
    entries = {name: config.evaluation.sets[name] for name in sorted(config.evaluation.sets)}
    parts = {name: [(e.data_set, e.query_split), (e.data_set, e.gallery_split)] for name, e in entries.items()}
    for name, entry in entries.items():
        for text in entry.distractors:
            data_set, _, split = text.rpartition(":")
            parts[name].append((data_set or entry.data_set, split))
    with processes.main_first("test data"):
        datasets = training_data.open_datasets(config, [data_set for part in parts.values() for data_set, _ in part])
    loader = test_sets.Loader()
    for name, entry in entries.items():
        query, gallery, *distractors = [(datasets[data_set], split) for data_set, split in parts[name]]
        own = config.data.sentences.get(entry.task)
        task = tasks.task(entry.task) if own is None else dataclasses.replace(tasks.task(entry.task), sentence=own)
        described = test_sets.Entry(name, task, tuple(entry.protocols), entry.task_free, entry.get("query_sentence", 0))
        loader.load(described, query, gallery, distractors)
    return loader.sets
