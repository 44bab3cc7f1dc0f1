"""Exact search beside faiss, usearch and NumPy in one run, and what a user of search waits for: times and their ratios.

pip install -e '.[search]' faiss-cpu usearch
python benchmarks/search_speed.py [--entries 20000 200000 1000000] [--width 1536] [--queries 1 1000]
python benchmarks/search_speed.py --part add --entries 2000     # adding pictures, beside Embedder on the same files
python benchmarks/search_speed.py --part query --entries 2000   # one query of each kind, model and vectors loaded
python benchmarks/search_speed.py --part start --entries 20000  # `search query`, from the command to the answer
python benchmarks/search_speed.py --part serve --entries 1000000  # memory of `search serve`

Vectors are drawn at random, pictures are noise. Parts other than the first take the model of --model, by default the
demo weights; `serve` by default one of their form with random weights, whose vectors have --width numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from irm_jax import pretrained
from irm_jax.search.gallery import VectorBuffer, rounded

TOP = 20
BLOCK = 20_000
REPEATS, ENOUGH = 5, 20.0
"""Calls that are timed, and seconds after which no other one is begun."""


def drawn(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Vectors f32[count, width] of length 1."""
    made = rng.standard_normal((count, width), np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def in_turns(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the fastest of some calls of each, in turns; a first round of quick calls is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(REPEATS + 1):
        for name, call in calls.items():
            if sum(seconds[name]) > ENOUGH:
                continue
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
        if round == 0:
            seconds = {name: [one for one in found if one > ENOUGH] for name, found in seconds.items()}
    return {name: min(found) for name, found in seconds.items()}


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
        calls: dict[str, Callable[[], Any]] = {"ours (bfloat16)": lambda: self.ours.top(query, TOP)}
        if (whole := self.whole) is None:
            return in_turns(calls)
        import faiss
        from usearch.index import MetricKind, search

        def flat() -> np.ndarray:  # what IndexFlatIP calls, without its copy of the vectors
            return faiss.knn(query, whole, TOP, metric=faiss.METRIC_INNER_PRODUCT)[1]

        def numpy() -> None:
            scores = query @ whole.T
            np.argpartition(-scores, TOP, axis=1)

        few = query[:8]
        pairs = zip(faiss.knn(few, whole, TOP, metric=faiss.METRIC_INNER_PRODUCT)[1], self.ours.top(few, TOP)[1],
                    strict=True)  # fmt: skip
        agree = np.mean([len(set(a) & set(b)) for a, b in pairs])
        print(f"  {agree / TOP:.3f} of the first {TOP} are the same as in float32", flush=True)
        calls["faiss IndexFlatIP (float32)"] = flat
        if len(query) == 1:
            calls["NumPy, reading the vectors once"] = lambda: whole @ query[0]
        if len(query) == 1 or len(whole) <= 200_000:
            calls["NumPy (float32)"] = numpy
            calls["usearch exact (float32)"] = lambda: search(
                whole, query if len(query) > 1 else query[0], TOP, MetricKind.IP, exact=True
            )
        return in_turns(calls)


def noise(rng: np.random.Generator) -> bytes:
    """A picture of coloured noise, 128 x 64, as JPEG of about 3 KB."""
    pixels = cv2.resize(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8), (64, 128), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@contextlib.contextmanager
def drawn_index(model: str, entries: int) -> Iterator[str]:
    """The address of an index of drawn vectors of a model's widths; each entry has the same picture."""
    from irm_jax.search import engines, store
    from irm_jax.search.crops import table_of
    from irm_jax.search.model import SearchModel

    opened = SearchModel(model)
    about = store.About(opened.workdir, opened.step, opened.fingerprint, opened.widths, dict(store.FIXED))
    rng = np.random.default_rng(0)
    picture = noise(rng)
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder, "index"))
        made = engines.create_store(uri, about)
        for start in range(0, entries, BLOCK):
            numbers = range(start, min(start + BLOCK, entries))
            vectors = {store.vector_column(s): rounded(drawn(rng, len(numbers), w)) for s, w in about.widths.items()}
            ids = [f"{int.from_bytes(rng.bytes(16)):032x}" for _ in numbers]
            columns = [{"path": f"/pictures/camera{i % 8}/{i:09}.jpg", "camera": f"camera{i % 8}"} for i in numbers]
            made.add(table_of(about.schema(), ids, columns, [picture] * len(ids), vectors))
        print(f"{entries:,} entries, widths {about.widths}", flush=True)
        yield uri


@contextlib.contextmanager
def wide_model(width: int) -> Iterator[str]:
    """A folder with a model of the demo's form, random weights, and vectors of `width` and 256 numbers."""
    import jax
    import jax.numpy as jnp

    from irm_jax.models.irm import IRM, initialise

    small = pretrained.load(pretrained.SHIPPED / "demo")
    config = dataclasses.replace(small.config, width=width // 2, projection_width=256)
    variables = IRM(config).init(jax.random.key(0), jnp.ones((1, config.max_length), jnp.int32), method=initialise)
    with tempfile.TemporaryDirectory() as folder:
        made = dataclasses.replace(small, config=config, variables=jax.device_get(variables))
        pretrained.save(Path(folder, "model"), made, np.float16)
        yield str(Path(folder, "model"))


def serve_memory(model: str | None, entries: int, width: int) -> None:
    """Prints the memory of a `serve` process."""
    from irm_jax.search import engines

    with contextlib.ExitStack() as stack:
        uri = stack.enter_context(drawn_index(model or stack.enter_context(wide_model(width)), entries))
        widths = engines.open_store(uri).about.widths
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
    vectors_gib = 2 * entries * sum(widths.values()) / 2**30
    print(f"vectors {vectors_gib:.2f} GiB; serve {now:.2f} GiB, {now - vectors_gib:.2f} more than the vectors; at its "
          f"peak {peak:.2f} GiB, {peak - vectors_gib:.2f} more")  # fmt: skip


def start_to_answer(model: str, entries: int) -> None:
    """Prints how long `search query` takes from the command to the answer, compiled programs from the cache."""
    with drawn_index(model, entries) as uri:
        picture = Path(uri).parent / "query.jpg"
        picture.write_bytes(noise(np.random.default_rng(1)))
        for name, asked in (("picture", ["--image", str(picture)]), ("sentence", ["--sentence", "a red shirt"])):
            words = [sys.executable, "-m", "irm_jax.search", "query", uri, *asked]
            seconds, used = [], []
            for _ in range(4):
                before = os.times()
                subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
                after = os.times()
                seconds.append(after.elapsed - before.elapsed)
                used.append(after.children_user + after.children_system - before.children_user - before.children_system)
            print(f"  {name}: {min(seconds[1:]):.2f} s from the command to the answer, {min(used[1:]):.2f} s of the "
                  f"processor; the first time {seconds[0]:.2f} s", flush=True)  # fmt: skip


def queries() -> dict[str, dict[str, Any]]:
    """One query of each kind, by what is timed."""
    person = {"image": noise(np.random.default_rng(1))}
    dressed = {**person, "instruction": "wearing a red shirt"}
    return {
        "picture": person,
        "sentence": {"sentence": "a person in a red shirt", "rescore": 0},
        "picture + sentence, one stage": {**dressed, "rescore": 0},
        "picture + sentence, 200 judged again": {**dressed, "rescore": 200},
    }


def query_latency(model: str, entries: int) -> None:
    """Prints the time of one query of each kind, from an encoded picture or a sentence to the hits."""
    import irm_jax.search

    with drawn_index(model, entries) as uri:
        index = irm_jax.search.open(uri)
        index.warm()
        for name, given in queries().items():
            seconds = []
            for _ in range(12):
                start = time.perf_counter()
                index.query(**given)
                seconds.append(time.perf_counter() - start)
            print(f"  {name:38} {1000 * statistics.median(seconds[2:]):8.1f} ms", flush=True)


def adding(model: str, entries: int) -> None:
    """Prints pictures/s that are added to an empty index, beside `Embedder.embed` of the same files, in turns."""
    import irm_jax
    from irm_jax.search import engines, ingest, store
    from irm_jax.search.crops import read_crops
    from irm_jax.search.model import SearchModel

    rng = np.random.default_rng(2)
    embedder, opened = irm_jax.Embedder(model), SearchModel(model)
    about = store.About(opened.workdir, opened.step, opened.fingerprint, opened.widths, dict(store.FIXED))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(entries):
            Path(folder, f"{number:06}.jpg").write_bytes(noise(rng))
        found = read_crops(folder)
        files = [str(crop.file) for crop in found.items]
        opened.embed_pictures([np.zeros((128, 64, 3), np.uint8)] * ingest.BATCH)
        embedder.embed(files[:64])

        def add(made: store.GalleryStore) -> float:
            start = time.perf_counter()
            ingest.add(made, opened, found, quiet=True)
            return time.perf_counter() - start

        seconds: dict[str, list[float]] = {"Embedder": [], "added": [], "the same folder again": []}
        for number in range(2):
            start = time.perf_counter()
            embedder.embed(files)
            seconds["Embedder"].append(time.perf_counter() - start)
            made = engines.create_store(str(Path(folder, f"index{number}")), about)
            seconds["added"].append(add(made))
            seconds["the same folder again"].append(add(made))
        for name, values in seconds.items():
            rate = entries / min(values)
            print(f"  {name:22} {rate:8.0f} pictures/s   {min(seconds['Embedder']) / min(values):.2f} of Embedder's")


PARTS = {"start": start_to_answer, "query": query_latency, "add": adding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("engines", "serve", *PARTS), default="engines")
    parser.add_argument("--entries", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--alone", action="store_true", help="ours alone, to see its memory")
    parser.add_argument("--model", metavar="RUN", help="for all parts but the first")
    options = parser.parse_args()
    for entries in options.entries:
        if options.part == "serve":
            serve_memory(options.model, entries, options.width)
            continue
        if options.part != "engines":
            PARTS[options.part](options.model or str(pretrained.SHIPPED / "demo"), entries)
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
