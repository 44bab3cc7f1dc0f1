"""Exact ranking of bfloat16 vectors against NumPy's product and a stable sort."""

from __future__ import annotations

import numpy as np
import pytest

from irm_jax.search import gallery
from irm_jax.search.gallery import VectorBuffer, rounded


def buffer_of(vectors: np.ndarray) -> VectorBuffer:
    made = VectorBuffer(len(vectors), vectors.shape[1])
    order = np.random.default_rng(0).permutation(len(vectors))
    for rows in np.array_split(order, 3):
        made.fill(rows, vectors[rows])
    made.finish()
    return made


def unit(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("count", "queries", "host"),
    [(1, 1, False), (700, 1, False), (3000, 20, False), (1, 2, True), (700, 5, True), (3000, 20, True)],
)
def test_best_of_queries(count: int, queries: int, host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host in chunks, and on the devices, where one query is ranked in any case."""
    monkeypatch.setattr(gallery, "on_host", lambda mesh: host)
    monkeypatch.setattr(gallery, "CHUNK", 512 if host else gallery.CHUNK)
    rng = np.random.default_rng(count)
    vectors = rounded(unit(rng, count, 40))
    query = unit(rng, queries, 40)
    exact = query.astype(np.float64) @ vectors.astype(np.float64).T
    for passes in (None, rng.random(count) < 0.1, np.zeros(count, bool)):
        allowed = exact if passes is None else np.where(passes, exact, -np.inf)
        scores, rows = buffer_of(vectors).top(query, 25, passes)
        order = np.argsort(-allowed, axis=1, kind="stable")[:, :25]
        best = np.take_along_axis(allowed, order, axis=1)
        # Neighbours closer than float32 tells apart may stand in either order.
        np.testing.assert_allclose(np.where(rows < 0, -np.inf, scores), best, atol=2e-6)
        found = np.where(rows >= 0, np.take_along_axis(allowed, np.maximum(rows, 0), axis=1), -np.inf)
        np.testing.assert_allclose(found, best, atol=2e-6)
        assert (rows[np.isneginf(best)] == -1).all()


@pytest.mark.parametrize("queries", [1, 2])
def test_equal_vectors_are_in_order_of_their_rows(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CHUNK", 64)
    vectors = rounded(unit(np.random.default_rng(0), 1, 8).repeat(600, axis=0))
    _, rows = buffer_of(vectors).top(vectors[:queries].astype(np.float32), 10)
    assert rows.tolist() == [list(range(10))] * queries


def test_rounded_numbers_are_bfloat16_ones() -> None:
    import ml_dtypes

    vectors = unit(np.random.default_rng(0), 50, 1536)
    kept = rounded(vectors)
    assert kept.dtype == np.float16
    again = kept.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(again, kept.astype(np.float32))
    assert np.abs(kept.astype(np.float32) @ vectors.T - vectors @ vectors.T).max() < 1e-3
