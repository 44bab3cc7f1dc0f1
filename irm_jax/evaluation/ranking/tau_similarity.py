"""How far the instructions of a query and a gallery image agree, for mAP_tau."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from irm_jax.evaluation.ranking.relations import Columns
from irm_jax.evaluation.records import Records


def attribute_agreement(q: Columns, g: Columns) -> Any:
    """Share of the slots in which the outfits that the instructions ask for agree, of those known of both (none: 0).

    Of the outfits, not of the words: two sentences about one outfit agree whichever slots they mention.
    """
    query, gallery = q["instruction_outfit"], g["instruction_outfit"]
    common = (query >= 0) & (gallery >= 0)
    return (common & (query == gallery)).sum(axis=-1) / np.maximum(common.sum(axis=-1), 1)


def clothes_agreement(q: Columns, g: Columns) -> Any:
    """1 if both instructions ask for the same outfit, else 0 (of one person: outfits are numbered per person)."""
    query = q["instruction_clothes"]
    return 1.0 * ((query >= 0) & (query == g["instruction_clothes"]))


def feature_agreement(query: Float[np.ndarray, "n E"], gallery: Float[np.ndarray, "n E"]) -> Float64[np.ndarray, " n"]:
    """Cosine of instruction features, 0 for a feature of length 0."""
    a, b = query.astype(np.float64), gallery.astype(np.float64)
    length = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return (a * b).sum(axis=-1) / np.maximum(length, 1e-30)


AGREEMENTS: dict[str, tuple[Callable[[Columns, Columns], Any], str]] = {
    "attributes": (attribute_agreement, "instruction_outfit"),
    "clothes": (clothes_agreement, "instruction_clothes"),
}
"""Source -> agreement of records, and the column that the instructions must state."""


@dataclasses.dataclass(frozen=True)
class InstructionSimilarity:
    """rho(query, gallery image) of a test set's records; `source` is printed with the figure.

    Equal instructions (`instruction_key`) have similarity 1, as in training: under one sentence mAP_tau = mAP.

    source: "attributes", "clothes", or "model": the features of the evaluated model. With its own features a model
      chooses its own positives, so "model" compares nothing between models.
    features: of the instructions of queries and gallery, f32[Q,E] and f32[G,E], for "model".
    """

    source: str
    query: Records
    gallery: Records
    features: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, query: np.ndarray, gallery: np.ndarray) -> Float64[np.ndarray, " n"]:
        """Of n pairs, by the numbers of their records."""
        q, g = _Gathered(self.query, query), _Gathered(self.gallery, gallery)
        if self.features is not None:
            agreement = feature_agreement(self.features[0][query], self.features[1][gallery])
        else:
            agreement = AGREEMENTS[self.source][0](q, g)
        return np.where(q["instruction_key"] == g["instruction_key"], 1.0, agreement)

    def missing(self) -> str | None:
        """Why mAP_tau under this similarity would say nothing about the test set, or None if it does.

        If no query states the column, instructions that differ are all equally unlike: every tau would give one value.
        """
        keys = np.concatenate([self.query.instruction_key, self.gallery.instruction_key])
        if self.source not in AGREEMENTS or (keys == keys[0]).all():
            return None
        if (self.query[AGREEMENTS[self.source][1]] >= 0).any():
            return None
        return (
            f"no query's instruction states its {self.source}; another config.evaluation.tau_similarity may tell these "
            "instructions apart"
        )


class _Gathered:
    """Columns at some records, gathered when they are read."""

    def __init__(self, records: Records, index: np.ndarray) -> None:
        self._records, self._index = records, index

    def __getitem__(self, name: str) -> np.ndarray:
        return self._records[name][self._index]
