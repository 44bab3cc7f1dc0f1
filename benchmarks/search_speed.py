"""Exact search beside faiss, usearch and NumPy on drawn vectors, in one run: seconds and their ratios.

pip install -e '.[search]' faiss-cpu usearch
python benchmarks/search_speed.py [--entries 20000 200000] [--width 1536] [--queries 1 1000]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np

from irm_jax.search.gallery import VectorBuffer

TOP = 20
BLOCK = 20_000


def drawn(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Vectors f32[count, width] of length 1 whose numbers bfloat16 holds nearly."""
    made = rng.standard_normal((count, width), np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def best_of(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compare(entries: int, width: int, queries: int, others: bool) -> dict[str, float]:
    """Seconds by engine; the engines' answers are compared first."""
    rng = np.random.default_rng(0)
    ours = VectorBuffer(entries, width)
    whole = np.empty((entries, width), np.float32) if others else None
    for start in range(0, entries, BLOCK):
        rows = np.arange(start, min(start + BLOCK, entries))
        block = drawn(rng, len(rows), width)
        ours.fill(rows, block)
        if whole is not None:
            whole[rows] = block
    ours.finish()
    query = drawn(rng, queries, width)
    repeats = 5 if queries == 1 else 1
    seconds = {"ours (bfloat16)": best_of(lambda: ours.top(query, TOP), repeats)}
    if whole is None:
        return seconds
    import faiss
    from usearch.index import MetricKind, search

    flat = faiss.IndexFlatIP(width)
    flat.add(whole)
    agree = np.mean(
        [len(set(a) & set(b)) for a, b in zip(flat.search(query, TOP)[1], ours.top(query, TOP)[1], strict=True)]
    )
    print(f"  {agree / TOP:.3f} of the first {TOP} are the same as in float32")
    seconds["faiss IndexFlatIP (float32)"] = best_of(lambda: flat.search(query, TOP), repeats)
    seconds["usearch exact (float32)"] = best_of(
        lambda: search(whole, query if queries > 1 else query[0], TOP, MetricKind.IP, exact=True), repeats
    )

    def numpy() -> None:
        scores = whole @ query.T
        np.argpartition(-scores, TOP, axis=0)

    seconds["NumPy (float32)"] = best_of(numpy, repeats)
    if queries == 1:
        seconds["NumPy, reading the vectors once"] = best_of(lambda: whole @ query[0], repeats)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--alone", action="store_true", help="ours alone, to see its memory")
    options = parser.parse_args()
    for entries in options.entries:
        for queries in options.queries:
            print(f"{entries:,} x {options.width}, {queries} queries")
            seconds = compare(entries, options.width, queries, not options.alone)
            ours = seconds["ours (bfloat16)"]
            for name, value in seconds.items():
                print(f"  {name:32} {1000 * value:10.1f} ms   {ours / value:6.2f} = ours over this")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
