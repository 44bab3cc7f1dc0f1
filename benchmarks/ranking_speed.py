"""How long exact ranking takes beside its distance matmul, a NumPy argsort and other projects' evaluators.

    python benchmarks/ranking_speed.py                      # Market-1501 size, then a million gallery images
    python benchmarks/ranking_speed.py --case million --queries 512
    python benchmarks/ranking_speed.py --case market1501 --torchreid CHECKOUT --fastreid CHECKOUT  # beside both
    python benchmarks/ranking_speed.py --case msmt17 --fastreid CHECKOUT  # mAP_tau too

Each case runs in a process of its own, so that its peak memory is its own. Embeddings are drawn: a centre per identity
plus noise, with the numbers of images per person and cameras of the real set.

CHECKOUT is one of KaiyangZhou/deep-person-reid or JDAI-CV/fast-reid, of which rank.py alone is loaded; its Cython
ranking is measured if it was built there (`python setup.py build_ext --inplace` in rank_cylib; Cython needed), else the
Python one. They want the whole distance matrix and its argsort, so they and the NumPy argsort rank as many queries as
fit half of the free memory (--reference_queries: fewer), and their time is scaled to all of them. Their peak memory is
that of the queries ranked, beside what ours left behind. Every mAP and rank-1 must equal ours.

Two times are compared with theirs, the fastest of two runs: from the embeddings to the figures, with distances by
NumPy, which the limit is about; and from one and the same matrix of distances on, which their evaluators are given.

Processor time stands beside the time that passed: where other programs run it is the steadier of the two, but it does
not show that ours uses all cores and the other rankings, after their distances, one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from irm_jax.evaluation.case import prepare, rank_cases
from irm_jax.evaluation.protocols import MARKET
from irm_jax.evaluation.ranking import rank as ranking
from irm_jax.evaluation.ranking.metrics import Ranking, summarize
from irm_jax.evaluation.ranking.scores import EmbeddingScores, HostScores
from irm_jax.evaluation.ranking.tau_similarity import InstructionSimilarity
from irm_jax.evaluation.records import Records

CASE = flags.DEFINE_enum("case", "all", ["all", "market1501", "million", "msmt17"], "Which size to run.")
TORCHREID = flags.DEFINE_string("torchreid", "", "Checkout of KaiyangZhou/deep-person-reid, to measure it as well.")
FASTREID = flags.DEFINE_string("fastreid", "", "Checkout of JDAI-CV/fast-reid, to measure it as well.")
SCALE = flags.DEFINE_float("scale", 1.0, "Share of the gallery, for a try at a smaller size.")
QUERIES = flags.DEFINE_integer("queries", 0, "Rank only so many queries (0: all of the case).")
REFERENCES = flags.DEFINE_integer("reference_queries", 0, "Rank at most so many by the references (0: as many as fit).")
REPEATS = flags.DEFINE_integer("repeats", 5, "Runs in turns, of which the fastest counts (the million case runs once).")


BYTES_PER_PAIR = 24
"""Of a reference's distance, its argsort, and what the Cython ranking makes of that."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, and what must hold: time over that of the matmul alone, peak memory of the process in GiB."""

    queries: int
    gallery: int
    width: int
    identities: int
    distractors: float  # share of gallery images that no query belongs to
    noise: float
    most_ratio: float
    most_memory: float
    once: bool  # too long to repeat
    cameras: int = 6
    taus: bool = False  # mAP_tau as well
    least_gain: float = 0.0  # times faster than the others' rankings with their distances


CASES = {
    # 19,732 files of which 13,115 show the 750 query people.
    "market1501": Case(3_368, 19_732, 768, 750, 1 - 13_115 / 19_732, 3.0, 2.2, 4, once=False, least_gain=3),
    "million": Case(20_000, 1_000_000, 256, 20_000, 0.4, 1.7, float("inf"), 4, once=True),
    "msmt17": Case(
        11_659, 82_161, 1_536, 3_060, 0.0, 3.0, float("inf"), 2, once=True, cameras=15, taus=True, least_gain=4
    ),
}
TAUS = (0.5, 0.7, 0.9)
Drawn = tuple[np.ndarray, np.ndarray, Records, Records]
"""Embeddings f32 and records of queries and gallery."""


def draw(case: Case, queries: int) -> Drawn:
    random = np.random.default_rng(0)
    centre = random.standard_normal((case.identities, case.width), np.float32)

    def side(count: int, identity: np.ndarray) -> tuple[np.ndarray, Records]:
        embedding = np.empty((count, case.width), np.float32)
        for start in range(0, count, 1 << 14):
            rows = embedding[start : start + (1 << 14)]
            random.standard_normal(out=rows, dtype=np.float32)
            person = identity[start : start + (1 << 14)]
            rows *= np.float32(case.noise)
            rows[person >= 0] += centre[person[person >= 0]]
        columns = {"identity": identity, "camera": random.integers(0, case.cameras, count, dtype=np.int32)}
        if case.taus:  # instructions that name four slots of two values each
            slots = np.pad(random.integers(0, 2, (count, 4), dtype=np.int32), ((0, 0), (0, 4)), constant_values=-1)
            columns |= {"instruction_outfit": slots, "instruction_key": slots[:, :4] @ np.int32([1, 2, 4, 8])}
        return embedding, Records.of(**columns)

    # People have unequal numbers of images, as in the real set (2 to 72 per person there).
    share = random.lognormal(0, 0.5, case.identities)
    identity = random.choice(case.identities, case.gallery, p=share / share.sum()).astype(np.int32)
    identity[random.random(case.gallery) < case.distractors] = -1
    gallery, gallery_columns = side(case.gallery, identity)
    query, query_columns = side(queries, random.integers(0, case.identities, queries, dtype=np.int32))
    return query, gallery, query_columns, gallery_columns


@jax.jit
def matmul(query: jax.Array, gallery: jax.Array) -> jax.Array:
    return jnp.einsum("qd,gd->qg", query, gallery, precision=jax.lax.Precision.HIGHEST)


def distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Cosine distances less one, f32[Q, G]."""
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return -(query / np.linalg.norm(query, axis=1, keepdims=True)) @ unit.T


def peers() -> dict[str, Callable[..., tuple[float, float]]]:
    """The evaluators of the checkouts that are given, by name; says which are not."""
    found: dict[str, Callable[..., tuple[float, float]]] = {}
    for name, flag, module in (
        ("torchreid", TORCHREID, "torchreid.metrics.rank"), ("fast-reid", FASTREID, "fastreid.evaluation.rank"),
    ):  # fmt: skip
        if not flag.value:
            print(f"  {name}: not measured (--{flag.name}=CHECKOUT)")
            continue
        rank = _module(flag.value, module)
        kind = "Cython" if rank.IS_CYTHON_AVAI else "Python; its Cython is not built"
        found[f"{name} ({kind})"] = functools.partial(by_peer, rank.evaluate_rank)
    return found


def _module(checkout: str, name: str) -> Any:
    """A module of a checkout, without the `__init__` of its packages, which import all of the project."""
    parts = name.split(".")[:-1]
    for count in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:count]))
        package.__path__ = [os.path.join(checkout, *parts[:count])]
        sys.modules[package.__name__] = package
    return importlib.import_module(name)


def by_peer(evaluate: Any, distance: np.ndarray, q: Records, g: Records) -> tuple[float, float]:
    """mAP and rank-1 by another project's `evaluate_rank`, from distances f32[Q, G]."""
    cmc, precision, *_ = evaluate(distance, q.identity, g.identity, q.camera, g.camera, 50)
    return float(np.mean(precision)), float(cmc[0])


def by_argsort(distance: np.ndarray, q: Records, g: Records) -> tuple[float, float]:
    """mAP and rank-1 of the market rule the plain way, from distances and a full argsort."""
    precisions, firsts = [], []
    for row, order in enumerate(np.argsort(distance, axis=1, kind="stable")):
        same, camera = g.identity[order] == q.identity[row], g.camera[order] == q.camera[row]
        hit = same[~(same & camera)]
        if hit.any():
            place = np.flatnonzero(hit)
            precisions.append(np.mean(np.arange(1, len(place) + 1) / (place + 1)))
            firsts.append(hit[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


def compare(case: Case, drawn: Drawn, ours: Ranking, ours_spent: float, fit: int) -> list[float]:
    """Prints what the others take for the first `fit` queries; returns how much longer, with their distances."""
    query, gallery, q, g = drawn
    scale, columns, found = len(query) / fit, q.take(np.arange(fit)), []
    made = [seconds(lambda: found.append(distances(query[:fit], gallery))) for _ in range(2)]
    distance = found.pop()
    found.clear()

    def from_distances() -> None:
        similarity = InstructionSimilarity("attributes", columns, g) if case.taus else None
        options = ranking.Options(taus=TAUS if case.taus else (), similarity=similarity, tau_source="attributes")
        prepare(MARKET, columns, g).rank(HostScores(lambda row, _: -distance[row]), options)

    from_distances()  # compiles
    own = min(seconds(from_distances) for _ in range(2)) * scale
    made_in = min(made) * scale
    print(f"  ranking, from distances    {own:8.3f} s   {fit} queries timed; the distances by NumPy {made_in:.3f} s")
    first, gains = ours.first_positive_rank[:fit], []
    expected = float(np.nanmean(ours.ap[:fit])), float(np.mean(first[first > 0] == 1))
    for words, other in {"NumPy argsort": by_argsort, **peers()}.items():
        result: list[tuple[float, float]] = []
        times = [seconds(lambda: result.append(other(distance, columns, g))) for _ in range(2)]  # noqa: B023
        spent = min(times) * scale
        whole = spent + made_in
        print(
            f"  {words:25}  {spent:8.3f} s   {spent / own:6.2f} x ours from distances; with them {whole:.3f} s, "
            f"{whole / ours_spent:.2f} x ours; peak {peak_memory():.2f} GiB"
        )
        mean, first_rank = result[0]
        print(
            f"  {'':25}  mAP {mean:.6f} (ours {expected[0]:.6f}), rank-1 {first_rank:.6f} (ours {expected[1]:.6f})",
            flush=True,
        )
        if np.abs(np.subtract(result[0], expected)).max() > 1e-4:
            raise RuntimeError(f"{words} finds {result[0]} where ranking finds {expected}: one of them is wrong")
        if other is not by_argsort:
            gains.append(whole / ours_spent)
    return gains


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory() -> float:
    """GiB that this process has held at once so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(name: str) -> bool:
    """Runs one case, prints its table, and returns whether its limits hold."""
    case = CASES[name]
    case = dataclasses.replace(case, gallery=int(case.gallery * SCALE.value))
    queries = QUERIES.value or case.queries
    query, gallery, q, g = draw(case, queries)
    print(f"\n{name}: {queries} queries x {case.gallery} gallery images x {case.width}, {jax.devices()}", flush=True)
    result: dict[str, Ranking] = {}

    def rank(count: int = queries) -> None:
        records = q.take(np.arange(count))
        similarity = InstructionSimilarity("attributes", records, g) if case.taus else None
        options = ranking.Options(taus=TAUS if case.taus else (), similarity=similarity, tau_source="attributes")
        scores = EmbeddingScores(query[:count], gallery)
        result["ranking"] = prepare(MARKET, records, g).rank(scores, options)

    rows = min(queries, ranking.default_block(queries, case.gallery))
    rank(rows)  # compiles
    start = time.process_time()
    total = [seconds(rank) for _ in range(1 if case.once else 2)]
    processor = (time.process_time() - start) / len(total)
    # The peak is read before the matmul alone makes its own copy of the gallery.
    peak = peak_memory()
    placed = jax.device_put(gallery)
    starts = list(range(0, queries - rows + 1, rows))[: 64 if case.once else None]

    def by_blocks() -> None:
        for start in starts:
            matmul(query[start : start + rows], placed).block_until_ready()

    matmul(query[:rows], placed).block_until_ready()
    share = queries / (len(starts) * rows)
    blocked = [seconds(by_blocks) * share]
    # Taken in turns, so that ranking and matmul see the same machine.
    for _ in range(0 if case.once else REPEATS.value):
        total.append(seconds(rank))
        blocked.append(seconds(by_blocks) * share)
    fastest = min(blocked)
    ratio = min(total) / fastest
    words = f"{ratio:5.2f} x the matmul alone, {processor:.1f} s processor"
    print(f"  ranking, everything        {min(total):8.3f} s   {words}", flush=True)
    print(f"  matmul alone, by blocks    {fastest:8.3f} s   {len(starts)} blocks of {rows} queries timed")
    if not case.once:
        rules = [MARKET, dataclasses.replace(MARKET, junk=None)] * 2

        def together() -> None:
            rank_cases(
                [prepare(rule, q, g) for rule in rules], EmbeddingScores(query, gallery), [ranking.Options()] * 4
            )

        four = min(seconds(together) for _ in range(REPEATS.value))
        print(f"  four rules together        {four:8.3f} s   {four / min(total):5.2f} x one")
        whole = min(seconds(lambda: matmul(query, placed).block_until_ready()) for _ in range(1 + REPEATS.value))
        fastest = min(fastest, whole)
        print(f"  matmul alone, whole [Q,G]  {whole:8.3f} s   {min(total) / whole:5.2f} x")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    fit = min(queries, free // 2 // (gallery.shape[0] * BYTES_PER_PAIR), REFERENCES.value or queries)
    drawn = query, gallery, q, g
    gains = compare(case, drawn, result["ranking"], min(total), fit) if fit and name != "million" else []
    summary = summarize(result["ranking"])
    print(f"  mAP {summary['mAP']:.6f}, rank-1 {summary['rank1']:.4f}, dropped {summary['dropped']}")
    print(f"  peak memory                {peak:8.2f} GiB, {gallery.nbytes / 2**30:.2f} of it the caller's gallery")
    ratio = min(total) / fastest
    least_gain = case.least_gain if gains and SCALE.value == 1 else 0.0
    # With fewer queries the fixed costs (placing the gallery, its norms) weigh more than the ratio is about.
    most_ratio = case.most_ratio if queries == case.queries and SCALE.value == 1 else float("inf")
    holds = ratio <= most_ratio and peak < case.most_memory and min(gains, default=0.0) >= least_gain
    limits = f"at most {most_ratio} x the matmul and {case.most_memory} GiB"
    limits += f", at least {least_gain} x faster than the others" if least_gain else ""
    print(f"  {limits}: {'holds' if holds else 'MISSED'}", flush=True)
    return holds


def main(argv: list[str]) -> None:
    del argv
    if CASE.value != "all":
        sys.exit(not run(CASE.value))
    codes = []
    for name in ("market1501", "million"):  # msmt17 by itself: the references take long
        options = [f"--{flag.name}={flag.value}" for flag in (TORCHREID, FASTREID, SCALE, QUERIES, REFERENCES, REPEATS)]
        codes.append(subprocess.call([sys.executable, __file__, f"--case={name}", *options]))
    sys.exit(max(codes))


if __name__ == "__main__":
    app.run(main)
