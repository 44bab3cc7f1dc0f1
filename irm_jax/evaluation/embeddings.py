"""`irm_jax.evaluate`: the protocols of this project for the embeddings of any model (docs/python.md)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from absl import logging

from data_pipelines.dataset.schema import INFRARED, MAX_CAMERA, VISIBLE
from irm_jax.evaluation.case import Case, prepare
from irm_jax.evaluation.compare import bootstrap_interval
from irm_jax.evaluation.protocols import Protocol, ProtocolError, protocol_of
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.pairs import RelatedPairs
from irm_jax.evaluation.ranking.rank import Options
from irm_jax.evaluation.ranking.relations import same_file
from irm_jax.evaluation.ranking.scores import EmbeddingScores
from irm_jax.evaluation.records import UNKNOWN, Records, Subset

Labels = Sequence[Any] | np.ndarray
"""One label per record, numbers or names of one kind; None or NaN where a single one is not known."""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The figures of embeddings under one protocol.

    figures: mAP, rank1, rank5, rank10, mINP as fractions, and what else `metrics.summarize` gives. mAP_interval: 95%
    interval of mAP over the queries (bootstrap), None without valid queries. ranking: the best images and the AP of
    every query that the rule takes; `top_ids` are rows of the gallery. queries: i64[n], the queries' rows.
    """

    figures: dict[str, Any]
    mAP_interval: tuple[float, float] | None
    ranking: Ranking
    queries: np.ndarray

    @property
    def mAP(self) -> float | None:
        return self.figures["mAP"]


def evaluate(
    query: np.ndarray, gallery: np.ndarray, query_ids: Labels, gallery_ids: Labels, *, protocol: str = "market",
    metric: str = "cosine", top_k: int = 10, samples: int = 2000, **labels: Labels | None,
) -> Evaluated:  # fmt: skip
    """Ranks a gallery for each query and returns the figures of a protocol, as `--mode evaluate` computes them.

    Args:
        query, gallery: embeddings float[Q, d] and float[G, d] of any model.
        query_ids, gallery_ids: who each image shows; an unknown person is nobody else.
        protocol: a rule of irm_jax/evaluation/protocols.py; market: images of the query's person under its own camera
            are junk.
        metric: cosine or euclidean.
        top_k: ranked images kept per query.
        samples: of the bootstrap for the interval.
        labels: further columns that a rule reads, of both sides: `query_cams` and `gallery_cams`; likewise
            `camera_numbers`, the number of each camera in its data set, from 0, for the rules that select by it or draw
            (they stand for `cams` as well); `clothes`; `modality`, 0 or "visible", 1 or "infrared". Negative cameras
            and clothes are unknown too; an unknown camera or outfit is never another image's.

    Rules that draw take the images of a person and camera in the order of the rows: sort them by file name.

    Raises ValueError for labels or embeddings that do not match each other, and ProtocolError for an unknown protocol,
    one that reads a column that is missing, or one that drops every query.
    """
    if top_k < 0 or samples < 1:
        raise ValueError(f"top_k = {top_k}, samples = {samples}: top_k is at least 0, samples at least 1")
    rule = protocol_of(str(protocol))
    scores = EmbeddingScores(np.asarray(query), np.asarray(gallery), metric)
    columns = _columns({"query_ids": query_ids, "gallery_ids": gallery_ids, **labels}, scores)
    _require(rule, columns)
    first = len(scores.query)
    sides = ({name: column[rows] for name, column in columns.items()} for rows in (slice(first), slice(first, None)))
    case = prepare(rule, *map(_records, sides))
    case.check()
    _warn(case)
    ranking = case.rank(scores, Options(top_k=top_k))
    figures, valid = summarize(ranking), ranking.ap[ranking.valid]
    interval = None
    if len(valid):
        low, high = bootstrap_interval(valid[:, None], samples=samples, seed=0)[:, 0]
        interval = float(low), float(high)
    ids = ranking.top_ids
    rows = np.where(ids >= 0, case.selection.gallery[ids], ids).astype(ids.dtype)
    return Evaluated(figures, interval, dataclasses.replace(ranking, top_ids=rows), case.selection.query)


_COLUMNS = {
    "ids": "identity", "cams": "camera", "camera_numbers": "camera_number", "clothes": "clothes",
    "modality": "modality",
}  # fmt: skip
"""What a label is called -> the column of `Records` that it fills."""
_MODALITIES = {VISIBLE: VISIBLE, INFRARED: INFRARED, "visible": VISIBLE, "infrared": INFRARED}


def _columns(labels: Mapping[str, Any], scores: EmbeddingScores) -> dict[str, np.ndarray]:
    """The columns of both sides, queries first. Raises TypeError for an unknown label, ValueError for wrong ones."""
    rows = {"query": scores.query, "gallery": scores.gallery}
    for name in labels:
        side, _, label = name.partition("_")
        if side not in rows or label not in _COLUMNS:
            known = ", ".join(f"query_{c}, gallery_{c}" for c in _COLUMNS if c != "ids")
            raise TypeError(f"evaluate() has no argument {name!r}; columns are {known}")
    columns = {}
    for label, column in _COLUMNS.items():
        both = {side: labels.get(f"{side}_{label}") for side in rows}
        missing = [side for side, given in both.items() if given is None]
        if len(missing) == 2 and label != "ids":
            continue
        if missing:
            raise ValueError(f"{missing[0]}_{label} is missing; give query_{label} and gallery_{label}")
        listed = [x for side in rows for x in _listed(both[side], f"{side}_{label}", len(rows[side]))]
        columns[column] = _numbers(label, listed)
    unknown = np.full(len(columns["identity"]), UNKNOWN)
    columns.setdefault("camera", columns.get("camera_number", unknown))
    # `_warn` takes equal embeddings for one picture.
    columns["content"] = np.array([hash(row.tobytes()) for part in rows.values() for row in part], np.int64)
    return columns


def _listed(labels: Any, name: str, count: int) -> list[Any]:
    """The labels of one side as Python's numbers and strings, None for unknown ones."""
    array = hasattr(labels, "__array__")
    if isinstance(labels, str | bytes) or not (array or isinstance(labels, Sequence)):
        raise ValueError(f"{name} is a {type(labels).__name__}; give a list or an array with one label per embedding")
    if (array and np.ndim(labels) != 1) or len(labels) != count:
        given = len(labels) if np.ndim(labels) == 1 else f"an array {np.shape(labels)} as"
        raise ValueError(f"{given} {name} for {count} embeddings; give one each")
    listed = np.asarray(labels).tolist() if array else list(labels)
    for number, label in enumerate(listed):
        label = label.item() if hasattr(label, "item") else label
        if not isinstance(label, str | bytes | Real | tuple | None):
            raise ValueError(f"{name}[{number}] is a {type(label).__name__}; labels are numbers or names")
        listed[number] = None if label != label else label
    return listed


def _numbers(label: str, listed: Sequence[Any]) -> np.ndarray:
    """A column: equal numbers for equal labels, in their order, so that what is drawn is drawn in it; -1: unknown."""
    known = {x for x in listed if x is not None}
    if label == "modality":
        if wrong := [x for x in listed if x not in _MODALITIES]:
            raise ValueError(f"modality {wrong[0]!r} is none: 0 or 'visible', 1 or 'infrared'")
        return np.array([_MODALITIES[x] for x in listed])
    if label != "ids":
        known = {x for x in known if not (isinstance(x, Real) and x < 0)}
    kinds = {"numbers" if isinstance(x, Real) else type(x).__name__ for x in known}
    if len(kinds) > 1:
        raise ValueError(
            f"query_{label} and gallery_{label} are {' and '.join(sorted(kinds))}, never equal: give one kind"
        )
    if label == "camera_numbers":
        if wrong := [x for x in known if not (isinstance(x, Real) and float(x).is_integer() and x <= MAX_CAMERA)]:
            raise ValueError(f"camera number {wrong[0]!r} is none: they are whole numbers from 0")
        return np.array([int(x) if x in known else UNKNOWN for x in listed])
    place = {x: number for number, x in enumerate(sorted(known))}
    strangers = itertools.count(len(place))  # each unknown person is another one
    return np.array([place[x] if x in place else next(strangers) if label == "ids" else UNKNOWN for x in listed])


def _require(rule: Protocol, columns: Mapping[str, np.ndarray]) -> None:
    """Raises ProtocolError if the rule reads a column that is not given. All images are of one source."""
    missing = sorted(rule.columns - columns.keys() - {"order", "source"})
    if not missing:
        return
    names = {column: label for label, column in _COLUMNS.items()}
    cures = [f"give query_{names[column]} and gallery_{names[column]}" for column in missing if column in names]
    if len(cures) < len(missing):
        cures = ["evaluate() does not take it: rank a built data set by --mode evaluate"]
    raise ProtocolError(f"protocol {rule.name} ({rule.description}) reads {', '.join(missing)}: {'; '.join(cures)}")


def _records(columns: Mapping[str, np.ndarray]) -> Records:
    """The records of one side, in the order of person, camera and row."""
    count = len(columns["identity"])
    order = np.empty(count, np.int64)
    cameras = columns.get("camera_number", np.zeros(count))
    order[np.lexsort((cameras, columns["identity"]))] = np.arange(count)
    return Records.of(**columns, order=order)


def _warn(case: Case) -> None:
    """Warns of what is allowed, and often a mistake."""
    rule, sides = case.protocol, (case.query, case.gallery)
    if "camera" in rule.columns and any((side.camera < 0).all() for side in sides):
        logging.warning(
            "protocol %s reads cameras, and no camera is known: no image is left out for being of the query's camera; "
            "give query_cams and gallery_cams", rule.name,
        )  # fmt: skip
    if "camera_number" in {*rule.queries, *rule.gallery} and not any((side.camera_number == 0).any() for side in sides):
        logging.warning(
            "protocol %s selects by the number of the camera, and none is 0: camera_numbers count from 0 (camera 1 of "
            "a data set is number 0)", rule.name,
        )  # fmt: skip
    right = rule.positive & ~rule.junk if rule.junk else rule.positive
    taken = Subset(case.query, case.selection.query), Subset(case.gallery, case.selection.gallery)
    pairs = RelatedPairs(Protocol("copies", same_file & right), *taken, (len(taken[0]), len(taken[1])))
    if copies := int(pairs.counts.positives.sum()):
        logging.warning(
            "right answers with the very embedding of their query: %d; if it is the same picture, leave it out of the "
            "gallery, or give query_cams and gallery_cams", copies,
        )  # fmt: skip
