"""Finds people known to be the same in two data sets, inside training and between training and test.

    python -m data_pipelines.people.leaks --data_dir DIR [--datasets A B] [--strict]

Three kinds of evidence count: the same person name; a file name that states its origin (see `names`: CUHK-PEDES keeps
Market-1501's pictures as `Market/0031_c2...`); the same bytes of a picture. People who have two names and share none of
these are not found.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_pipelines import commands
from data_pipelines.dataset.reader import Dataset, dataset_names, open_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.people.names import ORIGINS, known_person, same_name

EVIDENCE = ("identity", "file", "content")
"""The columns of an index that the comparison reads."""


@dataclasses.dataclass(frozen=True, order=True)
class Leak:
    """One person of training who is also elsewhere, possibly under another name.

    Attributes:
      kind: "train_test" (`a` is the training side) or "train_train".
      evidence: "name", "file" or "picture".
      linked: both sides have one person name, so that training treats them as one identity.
      images: records of side a and side b that belong to the evidence.
      example: one file name of each side.
    """

    kind: str
    evidence: str
    dataset_a: str
    person_a: str
    dataset_b: str
    person_b: str
    linked: bool
    images: tuple[int, int]
    example: tuple[str, str]

    @property
    def harmful(self) -> bool:
        """Whether it distorts figures: a linked person in two training sets is one identity with more images."""
        return self.kind == "train_test" or not self.linked


@dataclasses.dataclass(frozen=True)
class _Side:
    """The rows of one part that are compared."""

    dataset: str
    train: bool
    person: np.ndarray  # str[N], name of each record's person
    file: np.ndarray  # str[N]
    content: np.ndarray  # u64[N]
    by_name: dict[str, np.ndarray]  # person name, as `same_name` gives it -> record numbers
    by_origin: dict[str, np.ndarray]  # the same, by the name that the file states


@dataclasses.dataclass(frozen=True)
class _Split:
    """A split of a data set; equal ones hold the same records."""

    folder: str
    content_hash: str
    name: str
    dataset: Dataset = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=64)
def _read(split: _Split) -> tuple[np.ndarray, np.ndarray, dict[int, str | None]]:
    """Returns identity i32[n], content u64[n] and {record: the person that its file name states}, read once a process.

    File names, which are most of an index, are not kept.
    """
    index = split.dataset.index(split.name, EVIDENCE)
    begins = [np.char.startswith(index.file, folder) for folder in ORIGINS]
    of_known_origin = np.flatnonzero(np.logical_or.reduce(begins)).tolist()
    return index.identity, index.content, {row: known_person(str(index.file[row])) for row in of_known_origin}


class Part:
    """The training part or the test part of a data set: N records; only a few are compared one by one.

    Attributes:
      dataset, splits, train: the data set, its splits that belong to the part, and whether it is trained on.
      content: u64[N], the column of that name.
      known: the names of its people (`same_name`), and those that its file names state.
    """

    def __init__(self, dataset: Dataset, splits: Sequence[str], train: bool) -> None:
        self.dataset, self.splits, self.train = dataset, list(splits), train
        folder, content_hash = str(dataset.folder), dataset.manifest.content_hash
        read = [_read(_Split(folder, content_hash, split, dataset)) for split in splits]
        self._identity, self.content = (np.concatenate([columns[at] for columns in read]) for at in (0, 1))
        starts = np.cumsum([0, *(len(columns[0]) for columns in read)]).tolist()
        self._stated = {
            start + row: person
            for start, columns in zip(starts, read, strict=False) for row, person in columns[2].items()
        }  # fmt: skip
        people = dataset.people
        self.known = {people[number] for number in np.unique(self._identity)}
        self.known |= {name for name in self._stated.values() if name is not None}

    def evidence(self, others: Iterable[Part]) -> np.ndarray:
        """Returns bool[N]: records whose person others know by name, or whose picture others have."""
        others = list(others)
        known = set().union(*(other.known for other in others))
        rows = np.isin(np.array(self.dataset.people), sorted(known))[self._identity]
        for other in others:
            rows |= np.isin(self.content, other.content)
        rows[[row for row, person in self._stated.items() if person in known]] = True
        return rows

    def repeated(self) -> np.ndarray:
        """Returns bool[N]: the records whose picture the part has more than once."""
        pictures, count = np.unique(self.content, return_counts=True)
        return np.isin(self.content, pictures[count > 1])

    def side(self, rows: np.ndarray) -> _Side:
        """Returns the records bool[N] as a side of a comparison."""
        file = np.zeros(0, np.str_)
        if rows.any():
            file = np.concatenate([self.dataset.index(split, ("file",)).file for split in self.splits])[rows]
        person = np.array(self.dataset.manifest.people)[self._identity[rows]]
        by_origin = _group((known_person(name) for name in file.tolist()), len(file))
        by_name = _group(map(same_name, person.tolist()), len(file))
        return _Side(self.dataset.name, self.train, person, file, self.content[rows], by_name, by_origin)


def find_leaks(datasets: Sequence[Dataset]) -> list[Leak]:
    """Compares all given data sets, each with itself too; returns the leaks sorted, harmful or not.

    The split `train` is training, all others are test. Each pair of person names gives one Leak with the strongest
    evidence, in the order name, file, picture.
    """
    parts = [part for dataset in datasets for part in _parts(dataset)]
    sides = []
    for at, part in enumerate(parts):
        others = (other for number, other in enumerate(parts) if number != at and (part.train or other.train))
        rows = part.evidence(others)
        sides.append(part.side(rows | part.repeated() if part.train else rows))
    leaks: list[Leak] = []
    for at, a in enumerate(sides):
        if a.train:
            leaks.extend(_relabelled(a))
        for b in sides[at + 1 :]:
            if a.train or b.train:
                leaks.extend(compare(a, b) if a.train else compare(b, a))
    return sorted(leaks)


def _parts(dataset: Dataset) -> Iterator[Part]:
    for train in (True, False):
        splits = [split for split in dataset.splits if (split == "train") == train]
        if splits:
            yield Part(dataset, splits, train)


def _group(keys: Iterable[str | None], count: int) -> dict[str, np.ndarray]:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, key in zip(range(count), keys, strict=True):
        if key is not None:
            groups[key].append(row)
    return {key: np.array(rows) for key, rows in groups.items()}


def compare(a: _Side, b: _Side) -> list[Leak]:
    """Returns the leaks between two sides; `a` is a training side."""
    found: dict[tuple[str, str], Leak] = {}
    kind = "train_train" if b.train else "train_test"

    def add(evidence: str, rows_a: np.ndarray, rows_b: np.ndarray) -> None:
        # The rows of one name or picture may belong to several people on either side: one leak per pair.
        for person_a, person_b in itertools.product(np.unique(a.person[rows_a]), np.unique(b.person[rows_b])):
            own_a, own_b = rows_a[a.person[rows_a] == person_a], rows_b[b.person[rows_b] == person_b]
            leak = Leak(
                kind=kind,
                evidence=evidence,
                dataset_a=a.dataset,
                person_a=str(person_a),
                dataset_b=b.dataset,
                person_b=str(person_b),
                linked=same_name(str(person_a)) == same_name(str(person_b)),
                images=(len(own_a), len(own_b)),
                example=(str(a.file[own_a[0]]), str(b.file[own_b[0]])),
            )
            found.setdefault((leak.person_a, leak.person_b), leak)

    for evidence, keys_a, keys_b in [
        ("name", a.by_name, b.by_name),
        ("file", a.by_origin, b.by_name),
        ("file", a.by_name, b.by_origin),
        ("file", a.by_origin, b.by_origin),
    ]:
        for key in sorted(keys_a.keys() & keys_b.keys()):
            add(evidence, keys_a[key], keys_b[key])
    for pair, (rows_a, rows_b) in sorted(_pairs_by_picture(a, b).items()):
        if pair not in found:
            add("picture", np.array(rows_a), np.array(rows_b))
    return list(found.values())


def _pairs_by_picture(a: _Side, b: _Side) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """Returns {(person of a, person of b): the records of each whose pictures both have, in record order}."""
    by_content: defaultdict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(np.isin(b.content, a.content)).tolist():
        by_content[int(b.content[row])].append(row)
    pairs: defaultdict[tuple[str, str], tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    for row in np.flatnonzero(np.isin(a.content, b.content)).tolist():
        for other in by_content[int(a.content[row])]:
            own, others = pairs[str(a.person[row]), str(b.person[other])]
            own.add(row)
            others.add(other)
    return {pair: (sorted(own), sorted(others)) for pair, (own, others) in pairs.items()}


def _relabelled(side: _Side) -> list[Leak]:
    """Returns the pictures that one training set holds under two names."""
    return [
        Leak(
            kind="train_train",
            evidence="picture",
            dataset_a=side.dataset,
            person_a=person_a,
            dataset_b=side.dataset,
            person_b=person_b,
            linked=False,
            images=(len(rows_a), len(rows_b)),
            example=(str(side.file[rows_a[0]]), str(side.file[rows_b[0]])),
        )
        for (person_a, person_b), (rows_a, rows_b) in sorted(_pairs_by_picture(side, side).items())
        if person_a < person_b
    ]


def summary(leaks: Sequence[Leak]) -> str:
    """Returns a table: how many people each pair of data sets shares, by evidence, with one example."""
    if not leaks:
        return "no person known to be in two places"
    groups = Counter((leak.kind, leak.dataset_a, leak.dataset_b, leak.evidence, leak.linked) for leak in leaks)
    examples = {
        (leak.kind, leak.dataset_a, leak.dataset_b, leak.evidence, leak.linked): leak for leak in reversed(leaks)
    }
    rows = [("people", "kind", "data sets", "evidence", "linked", "harmful", "for example")]
    for key, count in groups.items():
        leak = examples[key]
        rows.append(
            (
                str(count),
                leak.kind,
                f"{leak.dataset_a} / {leak.dataset_b}",
                leak.evidence,
                "yes" if leak.linked else "no",
                "yes" if leak.harmful else "no",
                f"{leak.person_a} ({leak.example[0]}) = {leak.person_b} ({leak.example[1]})",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Finds people known to be the same in two data sets.")
    parser.add_argument("--data_dir", required=True, help="folder of built data sets")
    parser.add_argument(
        "--datasets", nargs="*", default=[], help="the data sets to compare (default: all in the folder)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if anything harmful is found")
    args = parser.parse_args(argv)
    try:
        names = args.datasets or dataset_names(args.data_dir)
        if not names:
            raise DatasetError(
                f"no built data set in {args.data_dir}: build one first (python -m data_pipelines.build)"
            )
        leaks = find_leaks([open_dataset(args.data_dir, name) for name in names])
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(names)} data sets: {', '.join(names)}\n{summary(leaks)}")
    return 1 if args.strict and any(leak.harmful for leak in leaks) else 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
