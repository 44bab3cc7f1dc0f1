"""A map of embeddings in two dimensions: t-SNE where scikit-learn is installed, else the two main axes (PCA)."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from irm_jax.errors import UserError, pip_line

METHODS = ("auto", "tsne", "pca")
LEAST_TSNE = 10
"""Fewer points than this are drawn by their main axes: t-SNE needs neighbourhoods."""


@dataclasses.dataclass(frozen=True)
class Map:
    """Points in the plane, and in words how far the plane can be trusted."""

    points: Float[np.ndarray, "n 2"]
    words: str


def _has_tsne() -> bool:
    return importlib.util.find_spec("sklearn") is not None


def require(method: str) -> None:
    """Raises UserError for "tsne" without scikit-learn."""
    if method == "tsne" and not _has_tsne():
        raise UserError(f"config.explain.map=tsne needs scikit-learn: {pip_line('explain')}, or set it to pca")


def project(rows: Float[np.ndarray, "n d"], method: str, seed: int) -> Map:
    """Returns the map of n embeddings of length 1. `method`: one of METHODS; "auto" is t-SNE if it can be had.

    Raises UserError for "tsne" without scikit-learn.
    """
    has_tsne = _has_tsne()
    require(method)
    if method == "pca" or not has_tsne or len(rows) < LEAST_TSNE:
        points, share = main_axes(rows)
        words = f"The two main axes (PCA), which hold {share:.0%} of the spread: what lies apart here is apart, what "
        words += "lies together need not be near."
        if method == "auto" and not has_tsne:
            words += f" With {pip_line('explain')} the map is t-SNE, which keeps neighbours together."
        return Map(points, words)
    manifold: Any = importlib.import_module("sklearn.manifold")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    found = manifold.TSNE(perplexity=perplexity, init="pca", metric="cosine", random_state=seed).fit_transform(rows)
    words = f"t-SNE (perplexity {perplexity:g}): neighbours lie together; sizes of groups and distances between them "
    return Map(found, f"{words}mean nothing.")


def main_axes(rows: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n 2"], float]:
    """Returns the coordinates on the two main axes and their share of the variance."""
    centred = np.asarray(rows, np.float64) - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(rows), 2))
    kept = min(2, len(values))
    points[:, :kept] = left[:, :kept] * values[:kept]
    whole = float((values**2).sum())
    return points, float((values[:2] ** 2).sum() / whole) if whole > 0 else 1.0


def most_frequent(groups: Int[np.ndarray, " n"], first: list[int], most: int) -> list[int]:
    """Returns up to `most` groups to colour: `first`, then the largest others. -1 is no group."""
    names, counts = np.unique(groups[groups >= 0], return_counts=True)
    by_size = names[np.argsort(-counts, kind="stable")].tolist()
    return list(dict.fromkeys([*(g for g in first if g in by_size), *by_size]))[:most]
