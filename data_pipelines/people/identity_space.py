"""One numbering of people over all training data sets: the same person name is the same identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.batches.layout import BatchPlan
from data_pipelines.people.names import same_name


@dataclasses.dataclass(frozen=True, eq=False)
class TrainPeople:
    """The people of one data set.

    Attributes:
      names: of all its people, as in the manifest.
      identities: i32[n], ascending: numbers in `names` of those whom the train split holds.
    """

    names: Sequence[str]
    identities: np.ndarray


class IdentitySpace:
    """Global identities of a plan's training people (test people have none).

    People of data sets with an identity classifier (text and visual units) come first, in unit order and by name within
    a set, then those who only appear in caption sets: classifier weights cover 0 .. num_head - 1.

    Attributes:
      names: str of every identity, by global index.
      num_head: identities with a classifier weight.
      members: bool[D, num_head], row d = `plan.datasets[d]`: the identities that rows of it are classified among.
    """

    def __init__(self, plan: BatchPlan, people: Mapping[str, TrainPeople]) -> None:
        """Numbers the people of every data set of the plan."""
        head = [layout.dataset for layout in plan.units if layout.kind != "caption"]
        order = [plan.datasets[d] for d in dict.fromkeys([*head, *range(len(plan.datasets))])]
        number: dict[str, int] = {}
        written: dict[str, str] = {}  # as the first data set writes it: checkpoints state a hash of these
        self.num_head = 0
        for place, dataset in enumerate(order):
            for local in people[dataset].identities:
                name = people[dataset].names[local]
                number.setdefault(same_name(name), len(number))
                written.setdefault(same_name(name), name)
            if place < len(set(head)):
                self.num_head = len(number)
        self.names = tuple(written.values())
        self._to_global: dict[str, np.ndarray] = {}
        self.members = np.zeros((len(plan.datasets), self.num_head), bool)
        for row, dataset in enumerate(plan.datasets):
            names, identities = people[dataset].names, people[dataset].identities
            to_global = np.full(len(names), -1, np.int32)
            to_global[identities] = [number[same_name(names[local])] for local in identities]
            self._to_global[dataset] = to_global
            known = to_global[identities]
            self.members[row, known[known < self.num_head]] = True

    def __len__(self) -> int:
        return len(self.names)

    def of(self, dataset: str) -> np.ndarray:
        """Returns i32[people of the data set]: local to global identity; -1 for people outside the train split."""
        return self._to_global[dataset]
