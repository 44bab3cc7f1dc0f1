"""Exact search beside faiss, usearch and NumPy on drawn vectors, in one run: seconds and their ratios.

pip install -e '.[search]' faiss-cpu usearch
python benchmarks/search_speed.py [--entries 20000 200000 1000000] [--width 1536] [--queries 1 1000]
python benchmarks/search_speed.py --serve RUN --entries 1000000   # memory of `search serve`, drawn vectors
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from irm_jax.search.gallery import VectorBuffer, rounded

TOP = 20
BLOCK = 20_000


def drawn(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Vectors f32[count, width] of length 1."""
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


class Gallery:
    """Drawn vectors in our buffer, and as float32 for the others."""

    def __init__(self, entries: int, width: int, others: bool) -> None:
        rng = np.random.default_rng(0)
        self.ours = VectorBuffer(entries, width)
        self.whole = np.empty((entries, width), np.float32) if others else None
        for start in range(0, entries, BLOCK):
            rows = np.arange(start, min(start + BLOCK, entries))
            block = drawn(rng, len(rows), width)
            self.ours.fill(rows, block)
            if self.whole is not None:
                self.whole[rows] = block
        self.ours.finish()

    def compare(self, query: np.ndarray) -> dict[str, float]:
        """Seconds by engine; the engines' answers are compared first."""
        repeats = 5 if len(query) == 1 else 2
        seconds = {"ours (bfloat16)": best_of(lambda: self.ours.top(query, TOP), repeats)}
        if (whole := self.whole) is None:
            return seconds
        import faiss
        from usearch.index import MetricKind, search

        def flat() -> np.ndarray:  # what IndexFlatIP calls, without its copy of the vectors
            return faiss.knn(query, whole, TOP, metric=faiss.METRIC_INNER_PRODUCT)[1]

        agree = np.mean([len(set(a) & set(b)) for a, b in zip(flat(), self.ours.top(query, TOP)[1], strict=True)])
        print(f"  {agree / TOP:.3f} of the first {TOP} are the same as in float32", flush=True)
        seconds["faiss IndexFlatIP (float32)"] = best_of(flat, repeats)
        if len(query) == 1:
            seconds["NumPy, reading the vectors once"] = best_of(lambda: whole @ query[0], repeats)
        if len(whole) > 200_000 and len(query) > 1:
            return seconds

        def numpy() -> None:
            scores = query @ whole.T
            np.argpartition(-scores, TOP, axis=1)

        seconds["NumPy (float32)"] = best_of(numpy, repeats)
        seconds["usearch exact (float32)"] = best_of(
            lambda: search(whole, query if len(query) > 1 else query[0], TOP, MetricKind.IP, exact=True), 1
        )
        return seconds


def serve_memory(run: str, entries: int) -> None:
    """Prints the memory of a `serve` process of an index of drawn vectors of the model's widths."""
    from irm_jax.search import engines, store
    from irm_jax.search.crops import table_of
    from irm_jax.search.model import SearchModel

    model = SearchModel(run)
    kinds = dict(store.FIXED)
    about = store.About(model.workdir, model.step, model.fingerprint, model.widths, kinds)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder, "index"))
        made = engines.create_store(uri, about)
        for start in range(0, entries, BLOCK):
            numbers = range(start, min(start + BLOCK, entries))
            vectors = {store.vector_column(s): rounded(drawn(rng, len(numbers), w)) for s, w in model.widths.items()}
            ids = [f"{int.from_bytes(rng.bytes(16)):032x}" for _ in numbers]
            columns = [{"path": f"/pictures/camera{i % 8}/{i:09}.jpg", "camera": f"camera{i % 8}"} for i in numbers]
            made.add(table_of(about.schema(), ids, columns, [b"\xff\xd8"] * len(ids), vectors))
        words = [sys.executable, "-m", "irm_jax.search", "serve", uri, "--port", "0"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ) as page:
            assert page.stdout is not None
            print(next(line for line in page.stdout if line.startswith("serving")).strip())
            status = Path(f"/proc/{page.pid}/status").read_text().splitlines()
            now, peak = (
                int(next(line for line in status if line.startswith(name)).split()[1]) / 2**20
                for name in ("VmRSS", "VmHWM")
            )
            page.terminate()
    vectors_gib = 2 * entries * sum(model.widths.values()) / 2**30
    print(f"vectors {vectors_gib:.2f} GiB; serve {now:.2f} GiB, {now - vectors_gib:.2f} more than the vectors; at its "
          f"peak {peak:.2f} GiB, {peak - vectors_gib:.2f} more")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--alone", action="store_true", help="ours alone, to see its memory")
    parser.add_argument("--serve", metavar="RUN", help="the memory of serve, by the model of a run")
    options = parser.parse_args()
    for entries in options.entries:
        if options.serve:
            serve_memory(options.serve, entries)
            continue
        held = Gallery(entries, options.width, not options.alone)
        for queries in options.queries:
            print(f"{entries:,} x {options.width}, {queries} queries", flush=True)
            seconds = held.compare(drawn(np.random.default_rng(1), queries, options.width))
            ours = seconds["ours (bfloat16)"]
            for name, value in seconds.items():
                print(f"  {name:32} {1000 * value:10.1f} ms   {ours / value:6.2f} = ours over this", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
