"""A run's training data: open data sets, the plan of a batch, one numbering of people, and the stream of batches.

There is no iterator state to save: a training batch is a function of its step, so a run continues with `start_step`,
and the stream is bit-equal for any number of workers, threads and hosts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import options, procedural, storage
from data_pipelines.batches import sampling
from data_pipelines.batches.layout import BatchPlan, plan_batch
from data_pipelines.batches.make import Batch, BatchMaker, BatchOptions, Labels, UnitSource, reader_fields
from data_pipelines.batches.prefetch import ReadAhead, Stream
from data_pipelines.dataset import schema
from data_pipelines.dataset.folder import sha256
from data_pipelines.dataset.reader import Dataset, open_copy, open_dataset
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError
from data_pipelines.images import Size
from data_pipelines.instructions import unknown_words
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.own import build as own_build
from data_pipelines.own import plan as own_plan
from data_pipelines.people.identity_space import IdentitySpace, TrainPeople

_ENDLESS = 2**31 - 1
_COLUMNS = tuple(name for name in schema.COLUMNS if name not in ("file", "content", "shard", "offset"))
"""Columns of the index that training reads; file names are most of an index."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """The training side of a run.

    `stated_data.plan_training` makes one without data: its `datasets` and `sources` are empty, and it has no stream.

    Attributes:
      plan: the layout of a batch.
      space: one numbering of people.
      tokenizer: gives token ids of the length of `plan.constant_tokens`.
      datasets: open data sets by name.
      sources: what each unit of the plan reads.
      options: what batches depend on beside plan and data.
    """

    plan: BatchPlan
    space: IdentitySpace
    tokenizer: Tokenizer
    datasets: Mapping[str, Dataset] = dataclasses.field(default_factory=dict)
    sources: Sequence[UnitSource] = ()
    options: BatchOptions | None = None

    @classmethod
    def of(
        cls, plan: BatchPlan, datasets: Mapping[str, Dataset], tokenizer: Tokenizer, options: BatchOptions
    ) -> TrainingData:
        """Reads the train index of each data set of the plan, once.

        Raises:
          ValueError: a data set is missing, too small, or without the instructions its task needs.
        """
        missing = [name for name in plan.datasets if name not in datasets]
        if missing:
            raise ValueError(f"the plan draws from {missing}, but only {sorted(datasets)} are open; build or open them")
        indexes = {name: datasets[name].index("train", _COLUMNS) for name in plan.datasets}
        people = sampling.people_of(plan, indexes, functools.partial(_file_of, datasets))
        space = IdentitySpace(
            plan,
            {name: TrainPeople(datasets[name].manifest.people, np.unique(i.identity)) for name, i in indexes.items()},
        )
        labels = {name: Labels.of(index, space.of(name)) for name, index in indexes.items()}
        sources = [
            UnitSource(
                own,
                labels[layout.unit.dataset],
                datasets[layout.unit.dataset].reader("train", reader_fields(layout)),
                options.augment_of(layout.unit.dataset),
                datasets[layout.unit.dataset].max_pixels,
            )
            for layout, own in zip(plan.units, people, strict=True)
        ]
        return cls(plan, space, tokenizer, datasets, sources, options)

    def stream_fingerprint(self) -> dict[str, Any]:
        """Returns JSON values: what the stream depends on but for the words. Workers and hosts change nothing."""
        assert self.options is not None
        return {
            "plan": self.plan.fingerprint(),
            **self.options.fingerprint(self.plan.datasets),
            "data": {name: self.datasets[name].manifest.content_hash for name in self.plan.datasets},
        }

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON values, saved with checkpoints; equal fingerprints give equal streams."""
        people = sha256(self.space.names)
        return {**self.stream_fingerprint(), "vocabulary": self.tokenizer.fingerprint(), "people": people}

    def stream(
        self, start_step: int, num_steps: int | None, blocks: Sequence[int], ahead: ReadAhead | None = None
    ) -> Stream[tuple[int, Batch]]:
        """Returns the stream of (step, batch), see `BatchMaker`; close it.

        Args:
          start_step: first step to deliver.
          num_steps: how many; None: endless.
          blocks: the global batch blocks this host needs, in the order of axis 0.
          ahead: who makes the batches.

        Raises:
          ValueError: blocks out of range.
          StreamError: batches cannot be read ahead so.
        """
        assert self.options is not None, "data that is only planned has no stream"
        if not len(blocks) or not all(0 <= block < self.plan.batch_blocks for block in blocks):
            raise ValueError(f"blocks {list(blocks)} must be some of the plan's {self.plan.batch_blocks} batch blocks")
        make = BatchMaker(self.plan, self.sources, self.options, self.tokenizer, blocks)
        stop = _ENDLESS if num_steps is None else start_step + num_steps
        sizes = [math.prod(s) * np.dtype(t).itemsize for fields in make.spec.values() for s, t in fields.values()]
        return Stream(make, start_step, stop, ahead or ReadAhead(), self.options.accumulate * sum(sizes))


def _file_of(datasets: Mapping[str, Dataset], name: str, record: int) -> str:
    """Reads the file name of a training record, for a message."""
    return str(datasets[name].index("train", ("file",)).file[record])


def make_tokenizer(config: ConfigDict, max_length: int) -> Tokenizer:
    """Returns the tokenizer of `config.data.vocab` with sentences of `max_length` ids, as `config.model` reads them."""
    return Tokenizer(vocab=config.data.vocab, max_length=max_length, sep=config.model.sentence_sep)


def plan_of(config: ConfigDict, tokenizer: Tokenizer) -> BatchPlan:
    """Returns the layout of the batches.

    Raises:
      DatasetError: they cannot be laid out so.
      UnknownWordsError: the vocabulary knows no word of a constant sentence.
    """
    try:
        plan = plan_batch(
            options.units_of(config), config.data.batch_size, config.data.batch_blocks, tokenizer=tokenizer,
            instruction_dropout=config.data.instruction_dropout, repeat_people=config.data.repeat_people,
        )  # fmt: skip
    except ValueError as error:
        raise DatasetError(f"config.data: {error}") from error
    unknown_words.check(tokenizer, plan.constants, "the sentences of the tasks (config.data.vocab)")
    return plan


def open_training(
    config: ConfigDict,
    *,
    image_size: Size,
    instruction_image_size: Size,
    max_length: int,
    growth: Sequence[tuple[int, Size]] = (),
) -> TrainingData:
    """Opens (and, if procedural and allowed, builds) the training sets and lays out their batches.

    `growth`: (first step, size) of images that grow to `image_size`, see `BatchOptions`.

    Raises:
      DatasetError, ValueError: the message names what is missing and what to run or change.
    """
    tokenizer = make_tokenizer(config, max_length)
    plan = plan_of(config, tokenizer)
    datasets = open_datasets(config, plan.datasets)
    batch_options = BatchOptions(
        seed=config.seed,
        image_size=image_size,
        instruction_image_size=instruction_image_size,
        augment=options.augments_of(config),
        accumulate=config.optimizer.accumulate,
        second_view=config.momentum.second_view and options.needs_keys(config),
        growth=tuple(growth),
    )
    try:
        return TrainingData.of(plan, datasets, tokenizer, batch_options)
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(f"config.data: {error}") from error


def open_datasets(config: ConfigDict, names: Sequence[str]) -> dict[str, Dataset]:
    """Opens each data set once; builds the procedural ones that `data.dir` lacks, if `data.build_missing`.

    Raises:
      DatasetError: a data set is missing or damaged, or a procedural one has other options than
        `config.data.procedural`.
    """
    folder = epath.Path(config.data.dir).expanduser()
    wanted = list(dict.fromkeys(names))
    drawn = [name for name in wanted if name.startswith(f"{procedural.NAMESPACE}_")]
    if config.data.table:
        on_bad_image = config.data.own.on_bad_image
        own_build.build(
            own_plan.make(options.own_of(config)), folder, BuildOptions(wait=True, on_bad_image=on_bad_image)
        )
    benchmark = options.benchmark_of(config)
    version = dict.fromkeys(drawn, benchmark.version)
    if config.data.build_missing and not all((folder / name / benchmark.version).is_dir() for name in drawn):
        logging.info("building the procedural benchmark in %s", folder)
        # Several processes of a host may start at once.
        procedural.build(folder, benchmark, BuildOptions(wait=True))
    if config.data.cache and storage.is_remote(folder):
        opened = {name: open_copy(folder, name, config.data.cache, version.get(name)) for name in wanted}
    else:
        opened = {name: open_dataset(folder, name, version.get(name)) for name in wanted}
    opened = {name: dataclasses.replace(found, max_pixels=config.data.max_pixels) for name, found in opened.items()}
    source = benchmark.source() if drawn else {}
    for name in drawn:
        built = opened[name].manifest.source
        changed = [key for key in source if built.get(key) != source[key]]
        if changed:
            differences = "; ".join(f"{key} = {built.get(key)!r}, not {source[key]!r}" for key in changed)
            raise DatasetError(
                f"{folder / name} was drawn with other options than config.data.procedural: {differences}. "
                "Choose another config.data.dir, or set the options to those of the folder"
            )
    return opened
