"""A run's training data without any data: batches planned from the number of people that each data set states.

For compiling ahead of time. A data set that `data.dir` holds is opened; of the published ones the counts of their
sources are taken, of the procedural ones `data.procedural.train_people`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data_pipelines import procedural, sources
from data_pipelines.batches import layout, training_data
from data_pipelines.batches.training_data import JointData
from data_pipelines.dataset.reader import dataset_names
from data_pipelines.errors import DatasetError
from data_pipelines.people.identity_space import IdentitySpace
from data_pipelines.people.names import person_name


@dataclasses.dataclass(frozen=True)
class _Manifest:
    people: list[str]


class StatedPeople:
    """What `IdentitySpace` reads of a data set: `count` people of a namespace, all of them in the train split."""

    def __init__(self, namespace: str, count: int) -> None:
        self.manifest = _Manifest([person_name(namespace, number) for number in range(count)])
        self._identities = np.arange(count, dtype=np.int32)

    def identities(self, split: str) -> np.ndarray:
        """i32[count], whatever the split."""
        del split
        return self._identities


def stated_people(config: ConfigDict, name: str) -> StatedPeople:
    """The training people that data set `name` is known to have. Raises DatasetError if nothing is known of it."""
    if name.startswith(f"{procedural.NAMESPACE}_"):
        return StatedPeople(name, config.data.procedural.train_people)
    try:
        source = sources.get_source(name)
        return StatedPeople(source.namespace, source.expected["train"]["identities"])
    except (ValueError, KeyError) as error:
        raise DatasetError(
            f"nothing is known of the training people of data set {name}: build it, and give its folder as "
            "config.data.dir"
        ) from error


def plan_training(config: ConfigDict, *, max_length: int) -> JointData:
    """`joint_data.open_training` as far as shapes go: plan, numbering of people and tokenizer, nothing to stream.

    Raises DatasetError for a batch that cannot be laid out, or takes more people than a data set has.
    """
    tokenizer = training_data.make_tokenizer(config, max_length)
    plan = training_data.plan_of(config, tokenizer)
    folder = epath.Path(config.data.dir).expanduser()
    built = dataset_names(folder) if folder.is_dir() else []
    known: dict[str, Any] = {name: stated_people(config, name) for name in plan.datasets if name not in built}
    known |= training_data.open_datasets(config, [name for name in plan.datasets if name in built])
    try:
        for name, data in known.items():
            layout.check_people(
                plan, f"data set {name!r}", len(np.unique(data.identities("train"))),
                plan.identities_per_batch(name),
            )  # fmt: skip
    except ValueError as error:
        raise DatasetError(f"config.data: {error}") from error
    return JointData({}, plan, IdentitySpace(plan, cast(Any, known)), tokenizer, {})
