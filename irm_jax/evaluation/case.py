"""A test set ready to be ranked under a protocol: what takes part, what trials draw, which pairs are related.

`prepare` works this out once; `Case.rank` then takes scores from any source.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from irm_jax.evaluation.protocols import Protocol, ProtocolError, Where
from irm_jax.evaluation.ranking.metrics import Ranking, merge
from irm_jax.evaluation.ranking.pairs import RelatedPairs
from irm_jax.evaluation.ranking.rank import Options, rank, rank_together
from irm_jax.evaluation.ranking.relations import same_identity
from irm_jax.evaluation.ranking.scores import Scores, Selection
from irm_jax.evaluation.records import Records, Subset

EXPLAINED_QUERIES = 1000
"""Queries whose pairs are looked at to say why a protocol has no positive."""


class Trial:
    """One ranking of a case: the records that it takes, and their relations, computed when they are first needed."""

    def __init__(self, protocol: Protocol, query: Records, gallery: Records, selection: Selection) -> None:
        self.protocol, self.selection = protocol, selection
        self.query, self.gallery = Subset(query, selection.query), Subset(gallery, selection.gallery)
        self._related: dict[bool, RelatedPairs] = {}

    def related(self, *, person: bool = False) -> RelatedPairs:
        """The pairs that are not plain negatives; `person` lists all pairs of one identity."""
        if person not in self._related:
            sizes = len(self.query), len(self.gallery)
            self._related[person] = RelatedPairs(self.protocol, self.query, self.gallery, sizes, person=person)
        return self._related[person]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A protocol over queries and gallery: `selection` is what takes part, `trials` what each trial ranks of it."""

    protocol: Protocol
    query: Records
    gallery: Records
    selection: Selection
    trials: tuple[Trial, ...]
    distractors: bool = False

    def rank(self, scores: Scores, options: Options | None = None) -> Ranking:
        """Ranks the selected queries against the selected gallery images by `scores` of all records.

        The result has one row per query of `selection`, and its `top_ids` index the images of `selection`, whatever
        the trials drew. `Options.similarity` is called with numbers of records.
        """
        options = options or Options()
        rankings = [rank(scores.place(t.selection), *self._rule(t, options)) for t in self.trials]
        if not self.protocol.draw:
            return rankings[0]
        query = [np.searchsorted(self.selection.query, trial.selection.query) for trial in self.trials]
        gallery = [np.searchsorted(self.selection.gallery, trial.selection.gallery) for trial in self.trials]
        return merge(rankings, query, gallery, len(self.selection.query))

    def _rule(self, trial: Trial, options: Options) -> tuple[RelatedPairs, Options]:
        """The pairs of a trial, and `options` whose similarity is called with numbers within the trial."""
        similarity, chosen = options.similarity, trial.selection
        if similarity is not None:
            of_records = similarity
            options = dataclasses.replace(
                options, similarity=lambda q, g: of_records(chosen.query[q], chosen.gallery[g])
            )
        return trial.related(person=options.follow), options

    def narrowed(self, selection: Selection) -> Case:
        """The case with one trial, of the given records (a part of those that take part)."""
        protocol = dataclasses.replace(self.protocol, draw=(), trials=1)
        trial = Trial(protocol, self.query, self.gallery, selection)
        return dataclasses.replace(self, protocol=protocol, selection=selection, trials=(trial,))

    def check(self) -> None:
        """Raises ProtocolError, with the rule and why, if the protocol would drop every query."""
        trial, protocol = self.trials[0], self.protocol
        counts = trial.related().counts
        if not counts.positives.any():
            raise ProtocolError(
                f"protocol {protocol.name} ({protocol.description}) drops all {len(trial.query)} queries: no gallery "
                f"image is positive, {int(counts.junk.sum())} pairs are junk. {_why(trial)} Rebuild the data set with "
                "the fields that the rule needs, or take the protocol out of config.evaluation.sets"
            )


def rank_cases(cases: Sequence[Case], scores: Scores, options: Sequence[Options]) -> list[Ranking]:
    """Ranks each case as `Case.rank` does. Cases that select the same records share one computation of the scores."""
    rankings: dict[int, Ranking] = {}
    for i, case in enumerate(cases):
        if i in rankings:
            continue
        if case.protocol.draw:
            rankings[i] = case.rank(scores, options[i])
            continue
        same = [
            j for j in range(i, len(cases)) if not cases[j].protocol.draw and cases[j].selection.equals(case.selection)
        ]
        rules = [cases[j]._rule(cases[j].trials[0], options[j]) for j in same]
        rankings |= zip(same, rank_together(scores.place(case.selection), rules), strict=True)
    return [rankings[i] for i in range(len(cases))]


def prepare(
    protocol: Protocol, query: Records, gallery: Records, *, union: bool = False, distractors: bool = False
) -> Case:
    """Selects the records that take part, and draws the trials.

    union: `gallery` holds the galleries of several test sets. The protocol's choice is then among the images of the
      queries' own source; images of other sources take part, but no distractors of other test sets.
    distractors: the gallery's distractors take part.

    Raises ProtocolError if no query or no gallery image takes part.
    """
    queries = _matches(protocol.queries, query)
    images = _matches(protocol.gallery, gallery)
    allowed = np.full(len(gallery), distractors)
    if union and len(query):
        images |= gallery.source != query.source[0]
        allowed &= gallery.dataset == query.dataset[0]
    images &= ~gallery.distractor | allowed
    for side, mask, where, records in (
        ("query", queries, protocol.queries, query), ("gallery", images, protocol.gallery, gallery),
    ):  # fmt: skip
        if not mask.any():
            raise ProtocolError(_empty_side(protocol, side, where, records))
    selection = Selection(np.flatnonzero(queries), np.flatnonzero(images))
    trials = tuple(Trial(protocol, query, gallery, drawn) for drawn in _draws(protocol, query, gallery, selection))
    return Case(protocol, query, gallery, selection, trials, distractors)


def _matches(where: Where, records: Records) -> np.ndarray:
    mask = np.ones(len(records), bool)
    for name, values in where.items():
        mask &= np.isin(records[name], values)
    return mask


def _empty_side(protocol: Protocol, side: str, where: Where, records: Records) -> str:
    wanted = " and ".join(f"{name} {' or '.join(map(str, values))}" for name, values in where.items()) or "any record"
    found = "; ".join(f"{name} {_few(np.unique(records[name]))}" for name in where) or "none"
    return (
        f"protocol {protocol.name} ({protocol.description}) takes {side} records of {wanted} and leaves out all "
        f"{len(records)}: they have {found} (negative: unknown). Rebuild the data set with these fields, or take the "
        "protocol out of config.evaluation.sets"
    )


def _few(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:8].tolist())) + (", ..." if len(values) > 8 else "")


def _draws(protocol: Protocol, query: Records, gallery: Records, selection: Selection) -> Sequence[Selection]:
    """What each trial takes; one trial with everything if nothing is drawn."""
    if not protocol.draw:
        return [selection]
    records, chosen = (query, selection.query) if protocol.draw_from == "query" else (gallery, selection.gallery)
    draws = (draw_records(records, chosen, protocol.draw, trial) for trial in range(protocol.trials))
    return [dataclasses.replace(selection, **{protocol.draw_from: drawn}) for drawn in draws]


def draw_records(
    records: Records, chosen: Int64[np.ndarray, " n"], keys: tuple[str, ...], seed: int
) -> Int64[np.ndarray, " m"]:
    """Draws one of the chosen records of each group that agrees in the columns `keys`.

    `random.Random(seed)` chooses one record of each group in turn: groups in order of person name (and camera), the
    records of a group in order of file name. The authors of LLCM and SYSU-MM01 draw this way, with the trial as seed.
    """
    ordered = chosen[np.argsort(records.order[chosen], kind="stable")]
    group = np.stack([records[key][ordered] for key in keys])
    new = np.concatenate([[True], (group[:, 1:] != group[:, :-1]).any(axis=0)])
    starts = np.flatnonzero(new).tolist()
    generator = random.Random(seed)
    picked = [
        generator.choice(range(start, stop)) for start, stop in zip(starts, [*starts[1:], len(ordered)], strict=True)
    ]
    return ordered[picked]


def _why(trial: Trial) -> str:
    """What the pairs of one identity have in common, of all that the rule reads."""
    sizes = min(len(trial.query), EXPLAINED_QUERIES), len(trial.gallery)
    query = {name: trial.query[name][: sizes[0]] for name in ("identity", *trial.protocol.columns)}
    pairs = RelatedPairs(Protocol("identity", same_identity), query, trial.gallery, sizes).of(np.arange(sizes[0]))
    if not len(pairs.row):
        return "No query shares its identity with a gallery image: the two splits name people differently."
    read = trial.protocol.positive.columns | (trial.protocol.junk.columns if trial.protocol.junk else frozenset())
    words = []
    for name in sorted(read - {"identity", "content"}):
        q, g = query[name][pairs.row], trial.gallery[name][pairs.column]
        if name.startswith("instruction_"):
            words += [f"{name} is unknown"] if (q < 0).all() else []
        elif (q < 0).all() or (g < 0).all():
            words.append(f"{name} is unknown")
        elif (q == g).all():
            words.append(f"{name} is the same")
    if not words:
        return f"The {len(pairs.row)} pairs of one identity differ, but not as the rule requires."
    return f"In all {len(pairs.row)} pairs of one identity {', '.join(words)}."
