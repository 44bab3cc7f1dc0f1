"""From a run's configuration to its data: the mix of training sets as one plan, and the open test sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import options, procedural, storage
from data_pipelines.batches import pipeline, sampling
from data_pipelines.batches.layout import BatchPlan, plan_batch
from data_pipelines.dataset.folder import sha256
from data_pipelines.dataset.reader import Dataset, dataset_names, open_copy, open_dataset
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.people.identity_space import IdentitySpace

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class JointData:
    """The training side of a run: open data sets, the plan of a batch and one numbering of people."""

    datasets: dict[str, Dataset]
    plan: BatchPlan
    space: IdentitySpace
    tokenizer: Tokenizer
    stream_options: dict[str, Any]  # what the stream's content depends on, beside plan and data

    def fingerprint(self) -> dict[str, Any]:
        """JSON-able; equal fingerprints give equal streams."""
        stream = pipeline.data_fingerprint(self.plan, self.datasets, **self.stream_options)
        people = sha256(self.space.names)
        return {**stream, "vocabulary": self.tokenizer.fingerprint(), "people": people}

    def stream(
        self, start_step: int, num_steps: int, blocks: Sequence[int], *, workers: int, threads: int, prefetch: int
    ) -> pipeline.Stream[tuple[int, pipeline.Batch]]:
        """Batches of steps start_step, start_step + 1, ... for the given global blocks; close it."""
        return pipeline.train_stream(
            self.plan, self.datasets, start_step=start_step, num_steps=num_steps, blocks=blocks,
            tokenizer=self.tokenizer, workers=workers, threads=threads, prefetch=prefetch, **self.stream_options,
        )  # fmt: skip


def make_tokenizer(config: ConfigDict, max_length: int) -> Tokenizer:
    return Tokenizer(vocab=config.data.vocab, max_length=max_length)


def plan_of(config: ConfigDict, tokenizer: Tokenizer) -> BatchPlan:
    """The layout of the batches. Raises DatasetError if they cannot be laid out so."""
    try:
        return plan_batch(
            options.units_of(config), config.data.batch_size, config.data.batch_blocks, tokenizer=tokenizer,
            instruction_dropout=config.data.instruction_dropout, repeat_people=config.data.repeat_people,
        )  # fmt: skip
    except ValueError as error:
        raise DatasetError(f"config.data: {error}") from error


def open_training(config: ConfigDict, *, image_size: Size, instruction_image_size: Size, max_length: int) -> JointData:
    """Opens (and, if procedural and allowed, builds) the training sets and lays out their batches.

    Raises DatasetError or ValueError naming what is missing and what to run or change.
    """
    tokenizer = make_tokenizer(config, max_length)
    plan = plan_of(config, tokenizer)
    datasets = open_datasets(config, plan.datasets)
    try:
        sampling.people_of(plan, {name: datasets[name].index("train") for name in plan.datasets})
    except ValueError as error:
        raise DatasetError(f"config.data: {error}") from error
    stream_options = {
        "seed": config.seed,
        "accumulate": config.optimizer.accumulate,
        "second_view": config.momentum.second_view and options.needs_keys(config),
        "image_size": image_size,
        "instruction_image_size": instruction_image_size,
        "augment": options.augments_of(config),
    }
    return JointData(datasets, plan, IdentitySpace(plan, datasets), tokenizer, stream_options)


def open_datasets(config: ConfigDict, names: Sequence[str]) -> dict[str, Dataset]:
    """Opens each data set once; builds the procedural ones that `data.dir` lacks, if `data.build_missing`.

    Raises DatasetError for a data set that is missing or damaged, and for procedural ones of other options than
    `config.data.procedural`.
    """
    folder = epath.Path(config.data.dir).expanduser()
    wanted = list(dict.fromkeys(names))
    drawn = [name for name in wanted if name.startswith(f"{procedural.NAMESPACE}_")]
    found = dataset_names(folder) if folder.is_dir() else []
    benchmark = options.benchmark_of(config)
    if config.data.build_missing and set(drawn) - set(found):
        logging.info("building the procedural benchmark in %s", folder)
        # Several processes of a host may start at once.
        procedural.build(folder, benchmark, BuildOptions(wait=True))
    if config.data.cache and storage.is_remote(folder):
        opened = {name: open_copy(folder, name, config.data.cache) for name in wanted}
    else:
        opened = {name: open_dataset(folder, name) for name in wanted}
    source = benchmark.source() if drawn else {}
    for name in drawn:
        there = opened[name].manifest.source
        changed = [key for key in source if there.get(key) != source[key]]
        other = [f"{key} = {there.get(key)!r}, not {source[key]!r}" for key in changed]
        if other:
            raise DatasetError(
                f"{folder / name} was drawn with other options than config.data.procedural: {'; '.join(other)}. "
                "Choose another config.data.dir, or set the options to those of the folder"
            )
    return opened
