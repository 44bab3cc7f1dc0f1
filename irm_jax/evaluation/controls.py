"""Controls: what any system would score without the model's help, or with perfect help; they stand beside every figure.

Each control is a pair of embeddings or scores of pairs, ranked by the same code as the model's; only chance is
computed in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from data_pipelines.batches.image_batches import StoredImages, image_batches
from data_pipelines.batches.prefetch import ReadAhead
from irm_jax.evaluation.case import Case, prepare, rank_cases
from irm_jax.evaluation.embedded_set import EmbeddedSet
from irm_jax.evaluation.features import GREY, NEUTRAL, OWN, SWAPPED
from irm_jax.evaluation.figures import METRICS, Figure
from irm_jax.evaluation.figures import SWAPPED as SWAPPED_SYSTEM
from irm_jax.evaluation.protocols import Protocol
from irm_jax.evaluation.ranking.metrics import CMC_RANKS, summarize
from irm_jax.evaluation.ranking.pairs import RelatedPairs
from irm_jax.evaluation.ranking.scores import EmbeddingScores, HostScores, Scores
from irm_jax.evaluation.records import Records
from irm_jax.evaluation.test_sets import SplitData

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(query records i[n], gallery records i[m]) -> f32[n,m], larger for images that it holds for right."""
HISTOGRAM_BINS = 8
HISTOGRAM_SIZE = (64, 32)


def control_rows(embedded: EmbeddedSet) -> list[Figure]:
    """Ranks every control under each protocol. Colours and parts of the query need a query image."""
    test, options = embedded.test, embedded.options
    rows = [random_row(embedded, case) for case in test.cases]
    for system, metric, scores in _systems(embedded):
        rankings = rank_cases(test.cases, scores, [options.ranking()] * len(test.cases))
        for case, ranking in zip(test.cases, rankings, strict=True):
            metrics = summarize(ranking)
            short = {key: metrics[key] for key in METRICS}
            rows.append(embedded.row(case, short, system=system, metric=metric))
    return rows


def random_row(embedded: EmbeddedSet, case: Case, **fields: Any) -> Figure:
    """The expected figure of a random ranking."""
    return embedded.row(case, random_ranking(case), system="random", **fields)


def _systems(embedded: EmbeddedSet) -> Iterator[tuple[str, str, Scores]]:
    """(system, metric, scores) of the controls, one at a time: each may hold a gallery on the devices."""
    test, options, mesh = embedded.test, embedded.options, embedded.mesh
    query, gallery = test.query.records, test.gallery_records
    image = test.task.has_query_image
    judge = perfect_identity(query, gallery, options.seed, query_is_image=image)
    yield "perfect_identity", "cosine", HostScores(judge, mesh)
    yield "oracle", "cosine", HostScores(perfect_oracle(query, gallery), mesh)
    if not image:
        return
    colours = np.concatenate([color_histogram(part, threads=options.threads) for part in test.parts])
    of_queries = color_histogram(test.query, threads=options.threads)
    yield "color_histogram", "cosine", EmbeddingScores(of_queries, colours, "cosine", mesh)
    yield "image_only", embedded.metric, embedded.scores(NEUTRAL, NEUTRAL)
    yield "instruction_only", embedded.metric, embedded.scores(GREY, GREY)


def swapped_row(embedded: EmbeddedSet) -> Figure | None:
    """Ranks the first protocol's targets under wrong instructions; None if no query has one.

    A caption is swapped with another person's, another instruction with one for another outfit of the same person,
    which the follow rate then looks for. `mAP_own`: of the same queries under their own instructions.
    """
    test, features, options = embedded.test, embedded.features, embedded.options
    caption, case = features.caption, test.cases[0]
    swaps = another_person(test.query.records.identity) if caption else features.swaps
    if swaps is None or (swaps < 0).all():  # nobody owns a second outfit
        return None
    keep = np.flatnonzero(swaps >= 0)
    other = swaps[keep]
    own = features.of_queries(OWN)
    wrong = own[other] if caption else features.of_queries(SWAPPED)[keep]
    query, gallery = test.query.records.take(keep), test.gallery_records
    kept = prepare(case.protocol, query, gallery)

    def ranked(case: Case, embedding: np.ndarray, *, follow: bool = False) -> Mapping[str, Any]:
        return summarize(case.rank(embedded.own.with_queries(embedding), options.ranking(follow=follow)))

    before, after = ranked(kept, own[keep]), ranked(kept, wrong)
    metrics = {"mAP": after["mAP"], "mAP_own": before["mAP"], "queries": after["queries"]}
    words = "under another person's caption"
    if not caption:
        words = "under the instruction for another outfit of the same person"
        names = ("instruction_clothes", "instruction_attributes", "instruction_outfit", "instruction_key")
        swapped = query.replace(**{name: gallery[name][other] for name in names})
        followed = ranked(prepare(case.protocol, swapped, gallery), wrong, follow=True)
        metrics["follow_rate"] = followed["follow_rate"]
    return embedded.row(kept, metrics, words, system=SWAPPED_SYSTEM)


def random_ranking(case: Case) -> dict[str, float | None]:
    """The expected METRICS of a ranking in random order, exact.

    A mean over the queries that have a positive, and over trials; None for each figure if none has, and for rank-5 and
    rank-10 if CMC counts distinct people (no closed form).
    """
    found: dict[str, list[float]] = {key: [] for key in METRICS}
    for trial in case.trials:
        counts = trial.related().counts
        sizes = np.stack([len(trial.gallery) - counts.junk, counts.positives])[:, counts.positives > 0]
        kinds, weights = np.unique(sizes, axis=1, return_counts=True)
        figures = [chance(int(images), int(positives)) for images, positives in kinds.T]
        for key in METRICS if len(weights) else ():
            found[key].append(float(np.average([f[key] for f in figures], weights=weights)))
    unknown = ("rank5", "rank10") if case.protocol.distinct_identities else ()
    return {key: float(np.mean(v)) if v and key not in unknown else None for key, v in found.items()}


def chance(images: int, positives: int) -> dict[str, float]:
    """Expected METRICS of one query whose `positives` >= 1 lie in random order among `images` (junk not counted).

    mAP: the positive at rank k has (positives - 1) / (images - 1) * (k - 1) others before it on average, and every rank
    is as likely. rank-k: one minus the odds that the first k are all wrong. mINP: positives / L, where the last
    positive lies at L with probability C(L - 1, positives - 1) / C(images, positives).
    """
    n, r = images, positives
    harmonic = float((1.0 / np.arange(1, n + 1)).sum())
    others = (r - 1) / (n - 1) if n > 1 else 0.0
    figures = {"mAP": (harmonic + others * (n - harmonic)) / n}
    for k in CMC_RANKS:
        left = n - np.arange(min(k, n))
        figures[f"rank{k}"] = 1.0 - float(np.prod(np.maximum(left - r, 0) / left))
    last = np.arange(n, r, -1)  # P(n) = r / n, P(L - 1) = P(L) (L - r) / (L - 1)
    odds = r / n * np.cumprod(np.concatenate([[1.0], (last - r) / (last - 1)]))
    figures["mINP"] = float((odds * r / np.arange(n, r - 1, -1)).sum())
    return figures


def color_histogram(split: SplitData, *, threads: int) -> Float32[np.ndarray, "N 512"]:
    """Square root of the joint 8x8x8 RGB histogram of each image (cosine = Bhattacharyya coefficient)."""
    reader = split.dataset.reader(split.split, ("image", "file"))
    out = np.empty((len(reader), HISTOGRAM_BINS**3), np.float32)
    where = f"data set {split.dataset.name}, split {split.split}"
    images = StoredImages(reader, where, max_pixels=split.dataset.max_pixels)
    ahead = ReadAhead(threads=threads)
    with image_batches(images, np.arange(len(reader)), HISTOGRAM_SIZE, 256, ahead) as batches:
        for ids, decoded in batches:
            for record, image in zip(ids, decoded, strict=True):
                histogram = cv2.calcHist([image], [0, 1, 2], None, [HISTOGRAM_BINS] * 3, [0, 256] * 3)
                out[record] = np.sqrt(histogram.ravel() / image.shape[0] / image.shape[1])
    return out


def perfect_identity(query: Records, gallery: Records, seed: int, *, query_is_image: bool = True) -> Judge:
    """Knows every person and ignores the instruction.

    Among the images of the person, those in the clothes of the query image come first, as they would for any system
    that compares looks (if the query has an image and its outfit is known); the rest is a guess (seeded noise).

    The cosine of embeddings (one of V people, 0.3 times one of C outfits, 0.01 times noise), which would take
    [G, V + C]; a query's own length does not change its order.
    """
    noise = [
        0.01 * np.random.default_rng(seed + number).standard_normal((len(side), 16)).astype(np.float32)
        for number, side in enumerate((query, gallery))
    ]
    worn = query.clothes if query_is_image else np.full_like(query.clothes, -1)
    known = (gallery.identity >= 0) + 0.09 * (gallery.clothes >= 0)
    length = np.sqrt(known + (noise[1] ** 2).sum(axis=1)).astype(np.float32)

    def judge(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
        score = noise[0][queries] @ noise[1][images].T
        score += _agree(query.identity[queries], gallery.identity[images])
        score += np.float32(0.09) * _agree(worn[queries], gallery.clothes[images])
        return score / length[images]

    return judge


def _agree(query: np.ndarray, gallery: np.ndarray) -> Float32[np.ndarray, "n m"]:
    """1 where values [n] and [m] are equal and known (not negative), else 0."""
    return ((query[:, None] == gallery) & (query >= 0)[:, None]).astype(np.float32)


def perfect_oracle(query: Records, gallery: Records) -> Judge:
    """Knows every person and what each image shows; ranks the person's images by how well they fit the instruction.

    Score = 2 * (same person) + share of the instruction's slots (outfit and attributes) that the image shows.
    """
    wanted = np.concatenate([query.instruction_clothes[:, None], query.instruction_attributes], axis=1)
    worn = np.concatenate([gallery.clothes[:, None], gallery.attributes], axis=1)
    named = np.maximum((wanted >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    used = np.flatnonzero((wanted >= 0).any(axis=0))

    def judge(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
        score = 2 * _agree(query.identity[queries], gallery.identity[images])
        if len(used):
            score += sum(_agree(wanted[queries, slot], worn[images, slot]) for slot in used) / named[queries]
        return score

    return judge


def swapped_instruction(query: Records, gallery: Records, protocol: Protocol) -> Int32[np.ndarray, " Q"]:
    """For each query a gallery image of the same person whose own instruction asks for another outfit, or -1.

    Chosen among the person's images that are not positive (nor junk): the first one whose instruction the fewest of the
    query's positives fulfil, since the swapped instruction must not describe the right answer too. No image is chosen
    whose instruction all of them fulfil.
    """
    related = RelatedPairs(protocol, query, gallery, (len(query), len(gallery)), person=True)
    chosen = np.full(len(query), -1, np.int32)
    for q in range(len(query)):
        pairs = related.of(np.array([q]))
        positive, candidates = pairs.column[pairs.positive], pairs.column[pairs.person & ~pairs.positive]
        if not len(candidates):
            continue
        if not len(positive):
            chosen[q] = candidates[0]
            continue
        share = fulfils(gallery, candidates[:, None], positive[None]).mean(axis=1)
        if share.min() < 1:
            chosen[q] = candidates[int(np.argmin(share))]
    return chosen


def fulfils(gallery: Records, instruction: Int[Any, "*a"], image: Int[Any, "*b"]) -> Bool[np.ndarray, "*c"]:
    """Do gallery images show what the instructions of other gallery images name? Both are records; they broadcast."""
    wanted = gallery.instruction_attributes[instruction]
    named = wanted >= 0
    slots = (~named | (wanted == gallery.attributes[image])).all(axis=-1)
    outfit = gallery.instruction_clothes[instruction] == gallery.clothes[image]
    return np.where(named.any(axis=-1), slots, outfit)


def another_person(identity: Int[np.ndarray, " Q"]) -> Int[np.ndarray, " Q"]:
    """For each query a query of another person, to swap their captions, or -1.

    The search starts half way round the list, so that the pairs are spread over it.
    """
    count = len(identity)
    chosen = np.full(count, -1, np.int32)
    for q in range(count):
        ring = (q + count // 2 + np.arange(count)) % count
        others = ring[identity[ring] != identity[q]]
        if len(others):
            chosen[q] = others[0]
    return chosen
