"""`irm_jax.evaluate`: the protocols of this project for the embeddings of any model (docs/python.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from irm_jax.evaluation.case import prepare
from irm_jax.evaluation.compare import bootstrap_interval
from irm_jax.evaluation.protocols import protocol_of
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.rank import Options
from irm_jax.evaluation.ranking.scores import EmbeddingScores
from irm_jax.evaluation.records import Records

Labels = Sequence[Any] | np.ndarray
"""One label per record, numbers or names; None where a single one is not known."""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The figures of embeddings under one protocol.

    figures: mAP, rank1, rank5, rank10, mINP as fractions, and what else `metrics.summarize` gives. mAP_interval: 95%
    interval of mAP over the queries (bootstrap), None without valid queries. ranking: the best images and the AP of
    every query.
    """

    figures: dict[str, Any]
    mAP_interval: tuple[float, float] | None
    ranking: Ranking

    @property
    def mAP(self) -> float | None:
        return self.figures["mAP"]


def evaluate(
    query: np.ndarray, gallery: np.ndarray, query_ids: Labels, gallery_ids: Labels, *, protocol: str = "market",
    metric: str = "cosine", top_k: int = 10, samples: int = 2000, **labels: Labels,
) -> Evaluated:  # fmt: skip
    """Ranks a gallery for each query and returns the figures of a protocol.

    Args:
        query, gallery: embeddings float[Q, d] and float[G, d] of any model.
        query_ids, gallery_ids: who each image shows.
        protocol: a rule of irm_jax/evaluation/protocols.py; market: images of the query's person under its own camera
            are junk.
        metric: cosine or euclidean.
        top_k: ranked images kept per query.
        samples: of the bootstrap for the interval.
        labels: further columns that a rule reads, as `query_cams` and `gallery_cams`, `query_clothes` and
            `gallery_clothes`, `query_modality` and `gallery_modality` (0 visible, 1 infrared). Unknown ones match
            nothing.

    Raises ValueError for labels or embeddings that do not match each other, and ProtocolError for an unknown protocol
    or one that drops every query.
    """
    sides = {"query": np.asarray(query), "gallery": np.asarray(gallery)}
    columns = {"ids": (query_ids, gallery_ids)}
    for name in sorted(labels):
        side, _, column = name.partition("_")
        if side not in sides or column not in _COLUMNS or column == "ids":
            known = ", ".join(f"query_{c}, gallery_{c}" for c in _COLUMNS if c != "ids")
            raise TypeError(f"evaluate() has no argument {name!r}; columns are {known}")
        if not {f"query_{column}", f"gallery_{column}"} <= labels.keys():
            raise ValueError(f"{name} is given for one side alone; give query_{column} and gallery_{column}")
        columns[column] = labels[f"query_{column}"], labels[f"gallery_{column}"]
    made: dict[str, dict[str, np.ndarray]] = {"query": {}, "gallery": {}}
    for column, both in columns.items():
        numbers = both if column == "modality" else _numbers(*both)
        for (side, embeddings), values in zip(sides.items(), numbers, strict=True):
            if len(values) != len(embeddings):
                raise ValueError(f"{len(values)} {side}_{column} for {len(embeddings)} embeddings; give one each")
            made[side].update(dict.fromkeys(_COLUMNS[column], np.asarray(values)))
    first, second = len(sides["query"]), len(sides["gallery"])
    content = np.arange(first + second)  # no image is another's copy
    records = (
        Records.of(**made["query"], content=content[:first]),
        Records.of(**made["gallery"], content=content[first:]),
    )
    case = prepare(protocol_of(protocol), *records)
    case.check()
    ranking = case.rank(EmbeddingScores(sides["query"], sides["gallery"], metric), Options(top_k=top_k))
    valid = ranking.ap[ranking.valid]
    interval = None
    if len(valid):
        low, high = bootstrap_interval(valid[:, None], samples=samples, seed=0)[:, 0]
        interval = float(low), float(high)
    return Evaluated(summarize(ranking), interval, ranking)


_COLUMNS = {
    "ids": ("identity",), "cams": ("camera", "camera_number"), "clothes": ("clothes",), "modality": ("modality",),
}  # fmt: skip
"""What a label is called -> the columns of `Records` that it fills."""


def _numbers(query: Labels, gallery: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' labels as numbers from 0, equal for equal labels; -1 for None."""
    both = [*query, *gallery]
    known = {label: number for number, label in enumerate(dict.fromkeys(x for x in both if x is not None))}
    numbers = np.array([-1 if label is None else known[label] for label in both], np.int32)
    return numbers[: len(query)], numbers[len(query) :]
