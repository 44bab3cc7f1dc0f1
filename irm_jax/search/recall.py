"""How many of the exact answers a store's approximate index finds, for each kind of query."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipelines.instructions.sentences import wanted_sentence
from data_pipelines.procedural.outfits import BASE_SLOTS
from irm_jax.evaluation.embed import of_length_one
from irm_jax.search import filters
from irm_jax.search.filters import Filter, Predicate
from irm_jax.search.index import Index
from irm_jax.search.snapshot import Snapshot
from irm_jax.search.store import ID, SearchError

SEED = 0


def recall(index: Index, top: int, queries: int, where: str | None) -> Iterator[str]:
    """Yields a line per kind of query: the share of the exact `top` that the store's own search returns.

    Picture queries are entries of the index with noise of a tenth of their length. Filtered ones are the same under
    `where`; None keeps a tenth of the entries. Sentence queries are drawn sentences, embedded by the index's model: no
    picture lies where sentences do, and approximate indices find less there.
    """
    store, snapshot = index.store, index.snapshot
    if min(top, queries) < 1:
        raise SearchError(f"--top {top} --queries {queries}: each is 1 at least")
    if not len(snapshot):
        raise SearchError(f"{store.uri} is empty")
    top = min(top, len(snapshot))
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.choice(len(snapshot), min(queries, len(snapshot)), replace=False))
    condition = filters.parse(where, store.about.columns) if where else _tenth(snapshot)
    passes = snapshot.passes(condition)
    if passes is not None and not passes.any():
        raise SearchError("no entry passes the filter: there is nothing to compare")
    near = _noisy(snapshot.vectors("neutral").host_vectors(chosen), rng)
    sentences = np.stack([index.model.embed_sentence(one) for one in _sentences(rng, queries)])
    for name, space, asked, narrowed in (
        ("picture", "neutral", near, None), ("picture, filtered", "neutral", near, condition),
        ("sentence", "caption", sentences, None),
    ):  # fmt: skip
        passes = snapshot.passes(narrowed)
        _, exact = snapshot.vectors(space).top(asked, top, passes)
        found = [store.search(space, one, narrowed, top)[0] for one in asked]
        shares = [
            len({snapshot.ids[row].decode() for row in rows[rows >= 0]} & set(ids)) / max(1, int((rows >= 0).sum()))
            for rows, ids in zip(exact, found, strict=True)
        ]
        passing = len(snapshot) if passes is None else int(passes.sum())
        yield (
            f"{name:20} recall@{top} {np.mean(shares):.4f} (lowest {np.min(shares):.2f}) over {len(asked)} queries, "
            f"{passing:,} entries pass"
        )


def _noisy(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(vectors.shape).astype(np.float32) / np.sqrt(vectors.shape[1])
    return of_length_one(vectors + 0.1 * noise)


def _sentences(rng: np.random.Generator, count: int) -> list[str]:
    """Returns drawn sentences about clothes, as the benchmark has them."""
    made = []
    for _ in range(count):
        worn = {slot.name: slot.values[int(rng.integers(len(slot.values)))] for slot in BASE_SLOTS}
        made.append(wanted_sentence(worn, rng))
    return made


def _tenth(snapshot: Snapshot) -> Filter:
    """A filter that keeps about a tenth of the entries: ids are hashes, so their order is a random one."""
    place = max(0, len(snapshot) // 10 - 1)
    return Predicate(ID, "text", "<=", snapshot.ids[place].decode())
