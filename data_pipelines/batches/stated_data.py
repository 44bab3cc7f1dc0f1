"""A run's training data without any data: batches planned from the number of people that each data set states.

For compiling ahead of time. A data set that `data.dir` holds is opened; of the published ones the counts of their
sources are taken, of the procedural ones `data.procedural.train_people`.
"""

from __future__ import annotations

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import procedural, sources
from data_pipelines.batches import layout, training_data
from data_pipelines.batches.training_data import TrainingData
from data_pipelines.dataset.reader import dataset_names
from data_pipelines.errors import DatasetError
from data_pipelines.people.identity_space import IdentitySpace, TrainPeople
from data_pipelines.people.names import person_name


def stated_people(config: ConfigDict, name: str) -> TrainPeople:
    """Returns the training people that data set `name` is known to have. Raises DatasetError if nothing is known."""
    if name.startswith(f"{procedural.NAMESPACE}_"):
        namespace, count = name, config.data.procedural.train_people
    else:
        try:
            source = sources.get_source(name)
            namespace, count = source.namespace, source.expected["train"]["identities"]
        except (ValueError, KeyError) as error:
            raise DatasetError(
                f"nothing is known of the training people of data set {name}: build it, and give its folder as "
                "config.data.dir"
            ) from error
    return TrainPeople([person_name(namespace, number) for number in range(count)], np.arange(count, dtype=np.int32))


def plan_training(config: ConfigDict, *, max_length: int) -> TrainingData:
    """Returns what `training_data.open_training` does as far as shapes go; it has nothing to stream.

    Raises:
      DatasetError: a batch cannot be laid out, or takes more people than a data set has.
    """
    tokenizer = training_data.make_tokenizer(config, max_length)
    plan = training_data.plan_of(config, tokenizer)
    folder = epath.Path(config.data.dir).expanduser()
    built = dataset_names(folder) if folder.is_dir() else []
    people = {name: stated_people(config, name) for name in plan.datasets if name not in built}
    opened = training_data.open_datasets(config, [name for name in plan.datasets if name in built])
    for name, dataset in opened.items():
        people[name] = TrainPeople(dataset.manifest.people, np.unique(dataset.identities("train")))
    try:
        for name, known in people.items():
            count = len(known.identities)
            layout.check_people(plan, f"data set {name!r}", count, plan.identities_per_batch(name))
    except ValueError as error:
        raise DatasetError(f"config.data: {error}") from error
    return TrainingData(plan, IdentitySpace(plan, people), tokenizer)
