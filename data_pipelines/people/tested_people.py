"""Keeps test people out of training: leaves them out of a build, and finds them before a training starts.

A person is known by name, by the origin that a file name states (see `names`), and, once pictures are built, by the
bytes of the picture; `leaks` says more on this evidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.dataset.reader import Dataset
from data_pipelines.errors import DatasetError
from data_pipelines.people.leaks import Leak, Part, compare
from data_pipelines.people.names import known_person
from data_pipelines.sources import Scan, checks
from data_pipelines.sources.reading import Picture

TRAIN = "train"


def leave_out(scan: Scan, name: str, tested: Sequence[Dataset]) -> tuple[Scan, dict[str, Any]]:
    """Takes test people of built data sets out of `train`.

    Args:
      scan: of a raw data set.
      name: of the data set, for messages.
      tested: built data sets; the people of their splits other than `train` are left out.

    Returns:
      The Scan, and what its source says: {"tested_in": names, "people": count, "images": count}.

    Raises:
      DatasetError: there is no `train`, nobody is left in it, or the descriptors name no people (SYNTH-PEDES).
    """
    items = scan.splits.get(TRAIN, ())
    if not len(items):
        raise DatasetError(f"{name} has no training part: leave --leave_out out")
    if not isinstance(items[0], Picture):
        raise DatasetError(f"{name} shows nobody of other data sets: leave --leave_out out")
    names: set[str] = set()
    for dataset in tested:
        if own := [split for split in dataset.splits if split != TRAIN]:
            names |= Part(dataset, own, train=False).known
    dropped = [item for item in items if item.person in names or known_person(item.file) in names]
    gone = {item.person for item in dropped}
    kept = [item for item in items if item.person not in gone]
    if not kept:
        where = ", ".join(dataset.name for dataset in tested)
        raise DatasetError(f"{name}: everybody in train is tested in {where}, so nobody is left")
    left_out = {
        "tested_in": [dataset.name for dataset in tested],
        "people": len(gone),
        "images": len(items) - len(kept),
    }
    splits = {**scan.splits, TRAIN: kept}
    changed = dataclasses.replace(
        scan,
        people=sorted({item.person for items in splits.values() for item in items}),
        splits=splits,
        found={**scan.found, TRAIN: checks.counts(kept)},
        source={**scan.source, "left_out_of_train": left_out},
    )
    return changed, left_out


def leaks(training: Iterable[Dataset], tests: Mapping[str, tuple[Dataset, Sequence[str]]]) -> list[Leak]:
    """Finds training people of one data set who are in another's test splits.

    What a data set's own splits share is left to its authors. Beside the indexes, only the training rows that are
    evidence are examined, so that millions of other rows cost nothing.

    Args:
      training: data sets with a split `train`.
      tests: name -> (data set, test splits).
    """
    tested = [Part(dataset, splits, train=False) for dataset, splits in tests.values()]
    found: list[Leak] = []
    for part in (Part(dataset, [TRAIN], train=True) for dataset in training):
        for other in tested:
            if other.dataset.name != part.dataset.name and (rows := part.evidence([other])).any():
                found += compare(part.side(rows), other.side(other.evidence([part])))
    return sorted(found)


def refusal(found: Sequence[Leak]) -> str:
    """Returns the message for leaks that `leaks` found: what is wrong, and the cure."""
    people = len({leak.person_b for leak in found})
    tested_in: dict[str, list[str]] = {}
    for leak in found:
        names = tested_in.setdefault(leak.dataset_a, [])
        if leak.dataset_b not in names:
            names.append(leak.dataset_b)
    options = "; ".join(f"{name}: --leave_out {' '.join(names)} --overwrite" for name, names in tested_in.items())
    first = found[0]
    return (
        f"{people} person(s) of the test sets would be trained on, for example {first.person_b} of {first.dataset_b} "
        f"({first.example[1]}), who is {first.person_a} in {first.dataset_a}'s train ({first.example[0]}). Build the "
        f"training set again as before but without them ({options})"
    )
