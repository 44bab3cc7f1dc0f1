"""k-reciprocal re-ranking against the formulas of the paper, with sets and dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from irm_jax.evaluation.case import prepare
from irm_jax.evaluation.protocols import MARKET
from irm_jax.evaluation.ranking import rerank
from irm_jax.evaluation.ranking.rank import Options
from irm_jax.evaluation.records import Records


def twin(images: np.ndarray, queries: int, k1: int, k2: int, weight: float, cosine: bool) -> np.ndarray:
    """d* f64[Q, G] of the paper, one image at a time; see the module's docstring for the authors' conventions."""
    if cosine:
        images = images / np.linalg.norm(images, axis=1, keepdims=True)
    distance = ((images[:, None] - images[None]) ** 2).sum(axis=-1)
    distance = distance / distance.max(axis=1, keepdims=True)
    count = len(images)

    order = np.argsort(distance, axis=1, kind="stable").tolist()

    def nearest(p: int, k: int) -> list[int]:
        return order[p][: k + 1]  # k others and p itself

    def mutual(p: int, k: int) -> set[int]:
        return {g for g in nearest(p, k) if p in nearest(g, k)}

    half = int(np.around(k1 / 2))
    r_half = [mutual(p, half) for p in range(count)]
    v = np.zeros((count, count))
    for p in range(count):
        r = mutual(p, k1)
        expanded = set(r)
        for q in r:
            if len(r & r_half[q]) > 2 / 3 * len(r_half[q]):
                expanded |= r_half[q]
        for g in expanded:
            v[p, g] = np.exp(-distance[p, g])
        v[p] /= v[p].sum()
    v = np.stack([v[nearest(p, k2 - 1)].mean(axis=0) for p in range(count)])
    smaller = np.minimum(v[:queries, None], v[None, queries:]).sum(axis=-1)
    larger = np.maximum(v[:queries, None], v[None, queries:]).sum(axis=-1)
    return (1 - weight) * (1 - smaller / larger) + weight * distance[:queries, queries:]


def clustered(seed: int, queries: int, gallery: int, width: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    person = np.concatenate([np.arange(queries), random.integers(0, 12, gallery)]) % 12
    centre = random.standard_normal((12, width))
    images = centre[person] + 0.5 * random.standard_normal((len(person), width))
    return images[:queries].astype(np.float32), images[queries:].astype(np.float32), person


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("k1", "k2", "weight"), [(20, 6, 0.3), (5, 1, 0.0), (7, 3, 1.0)])
def test_agrees_with_the_formulas(metric, k1, k2, weight, monkeypatch):
    monkeypatch.setattr(rerank, "ROWS_AT_ONCE", 32)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 50)
    query, gallery, _ = clustered(0, 17, 90)
    distances = rerank.Distances(query, gallery, metric, None, rerank.Parameters(k1, k2, weight))
    expected = twin(np.concatenate([query, gallery]).astype(np.float64), 17, k1, k2, weight, metric == "cosine")
    rows = np.array([3, 16, 0])
    np.testing.assert_allclose(distances(rows), expected[rows], atol=2e-5)


def test_fewer_images_than_neighbours():
    query, gallery, _ = clustered(1, 2, 5)
    found = rerank.Distances(query, gallery, "cosine", None, rerank.Parameters())(np.arange(2))
    np.testing.assert_allclose(
        found, twin(np.concatenate([query, gallery]).astype(float), 2, 20, 6, 0.3, True), atol=2e-5
    )


def test_reranked_figures_follow_the_new_distances():
    """The whole ranking, junk left out, is that of the twin's distances."""
    query, gallery, person = clustered(2, 12, 90)
    columns = [
        Records.of(identity=identity, camera=np.arange(len(identity)) % 3) for identity in (person[:12], person[12:])
    ]
    again = prepare(MARKET, *columns).rank(rerank.KReciprocal(query, gallery), Options(top_k=5))
    distance = twin(np.concatenate([query, gallery]).astype(np.float64), 12, 20, 6, 0.3, True)
    for q in range(12):
        same = columns[0].identity[q] == columns[1].identity
        junk = same & (columns[0].camera[q] == columns[1].camera)
        kept = [g for g in np.argsort(distance[q], kind="stable") if not junk[g]]
        place = np.flatnonzero(same[kept]) + 1
        assert again.ap[q] == pytest.approx(np.mean(np.arange(1, len(place) + 1) / place), abs=1e-6)
        np.testing.assert_allclose(-again.top_scores[q], distance[q, kept[:5]], atol=2e-5)
