"""Which records of a test set take part in a protocol, and what each of its trials draws from them."""

from __future__ import annotations

import dataclasses
import random

import numpy as np

from irm_jax.evaluation.protocols import Columns, Protocol, Where
from irm_jax.evaluation.ranking.related_pairs import RelatedPairs
from irm_jax.evaluation.ranking.relations import identity_rule

EXPLAINED_QUERIES = 1000
"""Queries whose pairs are looked at to say why a protocol has no positive."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Indices into the columns of queries and gallery, i64[Q] and i64[G]: what takes part, or what one trial takes."""

    query: np.ndarray
    gallery: np.ndarray


def select(protocol: Protocol, query: Columns, gallery: Columns) -> Selection:
    """The records that take part, in their order.

    Against the union of galleries (`task_free`) the protocol's choice is among the images of the queries' own source;
    images of other sources take part, but no distractors of other test sets. Raises ValueError if a side is left empty.
    """
    asking = _matches(protocol.queries, query, len(query["identity"]))
    searched = _matches(protocol.gallery, gallery, len(gallery["identity"]))
    distractors: bool | np.ndarray = protocol.distractors
    if protocol.setting == "task_free" and len(query["identity"]):
        searched |= gallery["source"] != query["source"][0]
        distractors = distractors & (gallery["dataset"] == query["dataset"][0])
    if "distractor" in gallery:
        searched &= (gallery["distractor"] == 0) | distractors
    for side, mask, where, columns in (
        ("query", asking, protocol.queries, query), ("gallery", searched, protocol.gallery, gallery),
    ):  # fmt: skip
        if not mask.any():
            raise ValueError(_empty_side(protocol, side, where, columns))
    return Selection(np.flatnonzero(asking), np.flatnonzero(searched))


def _matches(where: Where, columns: Columns, size: int) -> np.ndarray:
    mask = np.ones(size, bool)
    for name, values in where.items():
        mask &= np.isin(columns[name], values)
    return mask


def _empty_side(protocol: Protocol, side: str, where: Where, columns: Columns) -> str:
    wanted = " and ".join(f"{name} {' or '.join(map(str, values))}" for name, values in where.items()) or "any record"
    found = "; ".join(f"{name} {_few(np.unique(columns[name]))}" for name in where) or "none"
    return (
        f"protocol {protocol.name} ({protocol.description}) takes {side} records of {wanted} and leaves out all "
        f"{len(columns['identity'])}: they have {found} (-1, -2: unknown). Rebuild the data set with these fields, or "
        "take the protocol out of config.evaluation.sets"
    )


def _few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:8].tolist())) + (", ..." if len(values) > 8 else "")


def trials(protocol: Protocol, query: Columns, gallery: Columns) -> list[Selection]:
    """What each trial ranks, as indices into the given columns; one trial with everything where nothing is drawn.

    Trial t draws as `random.Random(t)` does when it is asked for one record of each group in turn: groups in order of
    person name (and camera), the records of a group in order of file name. So the authors of LLCM and SYSU-MM01 draw.
    """
    whole = select(protocol, query, gallery)
    if not protocol.draw:
        return [whole]
    side = protocol.draw_from
    columns, records = (query, whole.query) if side == "query" else (gallery, whole.gallery)
    draws = (drawn(columns, records, protocol.draw, trial) for trial in range(protocol.trials))
    return [dataclasses.replace(whole, **{side: taken}) for taken in draws]


def drawn(columns: Columns, records: np.ndarray, keys: tuple[str, ...], seed: int) -> np.ndarray:
    """One of the `records` for each group that agrees in the columns `keys`, in order of `columns["order"]`."""
    ordered = records[np.argsort(columns["order"][records], kind="stable")]
    group = np.stack([columns[key][ordered] for key in keys])
    new = np.concatenate([[True], (group[:, 1:] != group[:, :-1]).any(axis=0)])
    starts = np.flatnonzero(new).tolist()
    generator = random.Random(seed)
    picked = [
        generator.choice(range(start, stop)) for start, stop in zip(starts, [*starts[1:], len(ordered)], strict=True)
    ]
    return ordered[picked]


def check(protocol: Protocol, query: Columns, gallery: Columns) -> None:
    """Raises ValueError, with the rule and why, if the protocol would drop every query."""
    first = trials(protocol, query, gallery)[0]
    query = {name: column[first.query] for name, column in query.items()}
    gallery = {name: column[first.gallery] for name, column in gallery.items()}
    sizes = len(first.query), len(first.gallery)
    positives, junk, _ = RelatedPairs(protocol, query, gallery, sizes).counts()
    if not positives.any():
        raise ValueError(
            f"protocol {protocol.name} ({protocol.description}) drops all {sizes[0]} queries: no gallery image is "
            f"positive, {int(junk.sum())} pairs are junk. {_why(protocol, query, gallery)} Rebuild the data set with "
            "the fields that the rule needs, or take the protocol out of config.evaluation.sets"
        )


class _Read(dict[str, np.ndarray]):
    """Columns that note which of them a rule reads."""

    def __init__(self, columns: Columns, records: np.ndarray, read: set[str]) -> None:
        super().__init__({name: column[records] for name, column in columns.items()})
        self._names = read

    def __getitem__(self, name: str) -> np.ndarray:
        self._names.add(name)
        return super().__getitem__(name)


def _why(protocol: Protocol, query: Columns, gallery: Columns) -> str:
    """What the pairs of one identity have in common, of all that the rule reads."""
    person = Protocol("", protocol.task, "", identity_rule)
    sizes = min(len(query["identity"]), EXPLAINED_QUERIES), len(gallery["identity"])
    query = {name: column[: sizes[0]] for name, column in query.items()}
    pairs = RelatedPairs(person, query, gallery, sizes).of(np.arange(sizes[0]))
    if not len(pairs.row):
        return "No query shares its identity with a gallery image: the two splits name people differently."
    names: set[str] = set()
    asking, shown = _Read(query, pairs.row, names), _Read(gallery, pairs.column, names)
    protocol.relate(asking, shown)
    said = []
    for name in sorted(names - {"identity", "content"}):
        q, g = dict.__getitem__(asking, name), dict.__getitem__(shown, name)
        if name.startswith("instruction_"):
            said += [f"{name} is unknown"] if (q < 0).all() else []
        elif (q < 0).all() or (g < 0).all():
            said.append(f"{name} is unknown")
        elif (q == g).all():
            said.append(f"{name} is the same")
    if not said:
        return f"The {len(pairs.row)} pairs of one identity differ, but not as the rule asks."
    return f"In all {len(pairs.row)} pairs of one identity {', '.join(said)}."
