"""Divides the people of a table that has no column `split` into training and test, and chooses the queries.

A share of the people who have at least two pictures is tested, drawn by a seed; all others train. People who have
near-duplicate pictures in common stay together. Of each test person one picture per camera (and modality) is a query
while the person keeps a picture in the gallery that the rule `market` lets it find; the other pictures are the gallery.
Near-duplicates of a query are left out of the gallery where the query's camera or theirs is unknown.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

TRAIN, QUERY, GALLERY = "train", "query", "gallery"


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the division needs of one picture: who, by which camera (None: unknown), in which modality."""

    person: str
    camera: int | None
    modality: int


@dataclasses.dataclass(frozen=True)
class Division:
    """The split of each picture ("" is left out), and the rule in words."""

    splits: tuple[str, ...]
    rule: str


def divide(
    shown: Sequence[Shown],
    near: Sequence[tuple[int, int]],
    seed: int = 0,
    share: float = 0.25,
    tested: Collection[str] | None = None,
) -> Division:
    """Divides N pictures.

    Args:
      shown: what is known of each picture.
      near: pairs of pictures that look the same.
      seed, share: of the people, who are tested.
      tested: the test people, where they are known already; queries alone are chosen then.
    """
    of_person: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(shown):
        of_person[item.person].append(row)
    names = sorted(of_person)
    if tested is None:
        tested = _drawn(names, of_person, shown, near, seed, share)
        rule = (
            f"{len(tested)} of {len(names)} people are tested (share {share:g}, seed {seed}), people with "
            f"near-duplicate pictures on one side; "
        )
    else:
        rule = f"the {len(tested)} test people are the table's; "
    like: dict[int, set[int]] = defaultdict(set)
    for i, j in near:
        like[i].add(j)
        like[j].add(i)
    splits = [TRAIN] * len(shown)
    left_out = 0
    for name in sorted(tested):
        rows = of_person[name]
        queries, out = _queries(rows, shown, like, np.random.default_rng([seed, names.index(name)]))
        for row in rows:
            splits[row] = QUERY if row in queries else "" if row in out else GALLERY
        left_out += len(out)
    rule += f"one query per person and camera ({splits.count(QUERY)}), the other pictures are the gallery"
    if left_out:
        rule += f"; {left_out} near-duplicates of queries, camera unknown, left out"
    return Division(tuple(splits), rule)


def _drawn(
    names: Sequence[str],
    of_person: Mapping[str, Sequence[int]],
    shown: Sequence[Shown],
    near: Sequence[tuple[int, int]],
    seed: int,
    share: float,
) -> set[str]:
    """Draws the test people: a share of all, of those with two pictures, in groups that have near-duplicates."""
    rng = np.random.default_rng(seed)
    together = _joined(names, [(shown[i].person, shown[j].person) for i, j in near])
    groups = [sorted(group) for group in together]
    testable = [group for group in groups if any(len(of_person[name]) > 1 for name in group)]
    wanted = max(1, round(share * len(names)))
    tested: set[str] = set()
    for at in rng.permutation(len(testable)).tolist():
        if len(tested) >= wanted:
            break
        if len(tested) + len(testable[at]) <= max(wanted, 1) or not tested:
            tested |= {*testable[at]}
    return tested


def _joined(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[set[str]]:
    """Returns the names in groups: whoever is in a pair is in one group."""
    group = {name: {name} for name in names}
    for a, b in pairs:
        if group[a] is not group[b]:
            group[a] |= group[b]
            for name in group[b]:
                group[name] = group[a]
    return list({id(own): own for own in group.values()}.values())


def _queries(
    rows: Sequence[int], shown: Sequence[Shown], like: dict[int, set[int]], rng: np.random.Generator
) -> tuple[set[int], set[int]]:
    """Returns the queries of one person, and the pictures that leave the gallery because they look like one."""
    by_camera: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in rows:
        camera = shown[row].camera
        by_camera[-1 if camera is None else camera, shown[row].modality].append(row)
    queries: set[int] = set()
    out: set[int] = set()

    def answered(asked: set[int], gone: set[int]) -> bool:
        gallery = [row for row in rows if row not in asked | gone]
        return all(any(not _junk(shown[query], shown[row]) for row in gallery) for query in asked)

    for key in [sorted(by_camera)[at] for at in rng.permutation(len(by_camera)).tolist()]:
        candidates = [row for row in by_camera[key] if row not in out]
        for row in [candidates[at] for at in rng.permutation(len(candidates)).tolist()]:
            near = {n for n in like[row] if n in rows and None in (shown[row].camera, shown[n].camera)}
            gone = out | (near - queries)
            if answered(queries | {row}, gone):
                queries, out = queries | {row}, gone
                break
    return queries, out - queries


def _junk(query: Shown, image: Shown) -> bool:
    return query.camera is not None and query.camera == image.camera
