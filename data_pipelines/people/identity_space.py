"""One numbering of people over all training data sets: the same person name is the same identity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from data_pipelines.batches.layout import BatchPlan
from data_pipelines.dataset.reader import Dataset


class IdentitySpace:
    """Global identities of a plan's training people (test people have none).

    People of data sets with an identity classifier (text and visual units) come first, in unit order and by name within
    a set, then those who only appear in caption sets: classifier weights cover 0 .. num_head - 1 (method.md section 5).

    Attributes:
      names: str of every identity, by global index.
      num_head: identities with a classifier weight.
      members: bool[D, num_head], row d = `plan.datasets[d]`: the identities that rows of it are classified among.
    """

    def __init__(self, plan: BatchPlan, datasets: Mapping[str, Dataset]) -> None:
        """Reads the people of each data set and which of them its train split holds."""
        people = {name: datasets[name].manifest.people for name in plan.datasets}
        present = {name: np.unique(datasets[name].identities("train")) for name in plan.datasets}
        head = [layout.dataset for layout in plan.units if layout.group != "caption"]
        order = [plan.datasets[d] for d in dict.fromkeys([*head, *range(len(plan.datasets))])]
        number: dict[str, int] = {}
        self.num_head = 0
        for place, dataset in enumerate(order):
            for local in present[dataset]:
                number.setdefault(people[dataset][local], len(number))
            if place < len(set(head)):
                self.num_head = len(number)
        self.names = tuple(number)
        self._maps: dict[str, np.ndarray] = {}
        self.members = np.zeros((len(plan.datasets), self.num_head), bool)
        for row, dataset in enumerate(plan.datasets):
            local_to_global = np.full(len(people[dataset]), -1, np.int32)
            local_to_global[present[dataset]] = [number[people[dataset][local]] for local in present[dataset]]
            self._maps[dataset] = local_to_global
            known = local_to_global[present[dataset]]
            self.members[row, known[known < self.num_head]] = True

    def __len__(self) -> int:
        return len(self.names)

    def of(self, dataset: str) -> np.ndarray:
        """i32[len(manifest.people)]: local to global identity; -1 for people outside the train split."""
        return self._maps[dataset]
