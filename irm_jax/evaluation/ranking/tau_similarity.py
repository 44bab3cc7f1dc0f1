"""How far two instructions agree, for mAP_tau: a function of columns and the name of its source."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from irm_jax.evaluation.ranking.relations import Columns, Test


@dataclasses.dataclass(frozen=True)
class InstructionSimilarity:
    """rho(query, gallery) for mAP_tau, with the name of its source, which is printed with the figure.

    `function` computes on columns as a rule does. Equal instructions (`instruction_key`) have similarity 1,
    as in training: under constant sentences mAP_tau = mAP. `column`: what the instructions must tell (-1: unknown).
    """

    source: str
    function: Test
    column: str | None = None

    def __call__(self, q: Columns, g: Columns) -> Any:
        return np.where(q["instruction_key"] == g["instruction_key"], 1.0, self.function(q, g))

    def missing(self, query: Columns, gallery: Columns) -> str | None:
        """Why mAP_tau under this similarity would say nothing about a test set, or None if it does.

        Instructions that differ while no query tells the column are all equally unlike: every tau would give one value.
        """
        keys = np.concatenate([query["instruction_key"], gallery["instruction_key"]])
        if self.column is None or (query[self.column] >= 0).any() or (keys == keys[0]).all():
            return None
        return (
            f"no query's instruction tells its {self.source}; another config.evaluation.tau_similarity may know these "
            "instructions apart"
        )


def _attribute_agreement(q: Columns, g: Columns) -> Any:
    """Share of the slots in which the outfits that the instructions ask for agree, of those known of both (none: 0).

    Of the outfits, not of the words: two sentences about one outfit agree whichever slots they mention.
    """
    asked, shown = q["instruction_outfit"], g["instruction_outfit"]
    common = (asked >= 0) & (shown >= 0)
    return (common & (asked == shown)).sum(axis=-1) / np.maximum(common.sum(axis=-1), 1)


def _clothes_agreement(q: Columns, g: Columns) -> Any:
    """1 if both instructions ask for the same outfit, else 0 (pairs of one person: outfits are numbered a person)."""
    asked = q["instruction_clothes"]
    return 1.0 * ((asked >= 0) & (asked == g["instruction_clothes"]))


ATTRIBUTES = InstructionSimilarity("attributes", _attribute_agreement, "instruction_outfit")
CLOTHES = InstructionSimilarity("clothes", _clothes_agreement, "instruction_clothes")


def similarity_of(source: str) -> InstructionSimilarity:
    """By the name that the configuration gives it."""
    table = {"attributes": ATTRIBUTES, "clothes": CLOTHES}
    return table[source] if source in table else feature_similarity(source)


def feature_similarity(source: str, column: str = "instruction_feature") -> InstructionSimilarity:
    """Cosine of instruction features f32[n,E], a column the caller adds (centred or raw). `source`: "frozen_encoder" |
    "model"; with its own features a model chooses its own positives, so "model" compares nothing between models."""

    def cosine(q: Columns, g: Columns) -> Any:
        a, b = q[column].astype(np.float64), g[column].astype(np.float64)
        length = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
        return (a * b).sum(axis=-1) / np.maximum(length, 1e-30)

    return InstructionSimilarity(source, cosine)
