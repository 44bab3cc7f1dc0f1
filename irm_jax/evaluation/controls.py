"""What any system would score without the model's help, or with perfect help: printed beside every figure.

Each control is a pair of embeddings or a `Judge` of pairs, ranked by the same code as the model's; only chance is
computed in closed form.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data_pipelines.batches.image_batches import StoredImages, image_batches
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.dataset.reader import Dataset
from irm_jax.evaluation.protocols import Columns, Protocol
from irm_jax.evaluation.ranking import selection
from irm_jax.evaluation.ranking.metrics import METRICS
from irm_jax.evaluation.ranking.related_pairs import RelatedPairs
from irm_jax.evaluation.ranking.trials import taken

Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(query records i[n], gallery records i[m]) -> f32[n, m], larger for images that it thinks right."""
HISTOGRAM_BINS = 8
HISTOGRAM_SIZE = (64, 32)


def random_ranking(query: Columns, gallery: Columns, protocol: Protocol) -> dict[str, float | None]:
    """The expected figures of a ranking in random order, exact: {"mAP", "rank1", "rank5", "rank10", "mINP"}.

    A mean over the queries that have a positive, and over trials; None for each figure where none has, and for rank-5
    and rank-10 where CMC counts distinct people (no closed form).
    """
    found: dict[str, list[float]] = {key: [] for key in METRICS}
    for trial in selection.trials(protocol, query, gallery):
        sizes = len(trial.query), len(trial.gallery)
        pairs = RelatedPairs(protocol, taken(query, trial.query), taken(gallery, trial.gallery), sizes)
        positives, junk, _ = pairs.counts()
        kinds, counts = np.unique(np.stack([sizes[1] - junk, positives])[:, positives > 0], axis=1, return_counts=True)
        figures = [chance(int(images), int(right)) for images, right in kinds.T]
        for key in METRICS if len(counts) else ():
            found[key].append(float(np.average([f[key] for f in figures], weights=counts)))
    unknown = ("rank5", "rank10") if protocol.distinct_identities else ()
    return {key: float(np.mean(v)) if v and key not in unknown else None for key, v in found.items()}


def chance(images: int, positives: int) -> dict[str, float]:
    """Expected figures of one query whose `positives` >= 1 lie in random order among `images` (junk not counted).

    mAP: the positive at rank k has (positives - 1) / (images - 1) * (k - 1) others before it on average, and every rank
    is as likely. rank-k: one minus the odds that the first k are all wrong. mINP: positives / L, where the last
    positive lies at L with probability C(L - 1, positives - 1) / C(images, positives).
    """
    n, r = images, positives
    harmonic = float((1.0 / np.arange(1, n + 1)).sum())
    others = (r - 1) / (n - 1) if n > 1 else 0.0
    figures = {"mAP": (harmonic + others * (n - harmonic)) / n}
    for k in (1, 5, 10):
        left = n - np.arange(min(k, n))
        figures[f"rank{k}"] = 1.0 - float(np.prod(np.maximum(left - r, 0) / left))
    last = np.arange(n, r, -1)  # P(n) = r / n, P(L - 1) = P(L) (L - r) / (L - 1)
    odds = r / n * np.cumprod(np.concatenate([[1.0], (last - r) / (last - 1)]))
    figures["mINP"] = float((odds * r / np.arange(n, r - 1, -1)).sum())
    return figures


def color_histogram(dataset: Dataset, split: str, *, threads: int) -> np.ndarray:
    """f32[N, 512]: square root of the joint 8x8x8 RGB histogram of each image (cosine = Bhattacharyya coefficient)."""
    reader = dataset.reader(split, ("image", "file"))
    out = np.empty((len(reader), HISTOGRAM_BINS**3), np.float32)
    where = f"data set {dataset.name}, split {split}"
    images, ahead = StoredImages(reader, where), ReadAhead(threads=threads)
    with image_batches(images, np.arange(len(reader)), HISTOGRAM_SIZE, 256, ahead) as batches:
        for ids, decoded in batches:
            for record, image in zip(ids, decoded, strict=True):
                histogram = cv2.calcHist([image], [0, 1, 2], None, [HISTOGRAM_BINS] * 3, [0, 256] * 3)
                out[record] = np.sqrt(histogram.ravel() / image.shape[0] / image.shape[1])
    return out


def perfect_identity(query: Columns, gallery: Columns, seed: int, *, query_is_image: bool = True) -> Judge:
    """Knows every person and ignores the instruction.

    Among the images of the person, those in the clothes of the query image come first, as they would for any system
    that compares looks (where the query has an image and its outfit is known); the rest is a guess (seeded noise).

    The cosine of embeddings (one of V people, 0.3 times one of C outfits, 0.01 times noise), which would take
    [G, V + C]; a query's own length does not change its order.
    """
    noise = [
        0.01 * np.random.default_rng(seed + number).standard_normal((len(side["identity"]), 16)).astype(np.float32)
        for number, side in enumerate((query, gallery))
    ]
    worn = query["clothes"] if query_is_image else np.full_like(query["clothes"], -1)
    told = (gallery["identity"] >= 0) + 0.09 * (gallery["clothes"] >= 0)
    length = np.sqrt(told + (noise[1] ** 2).sum(axis=1)).astype(np.float32)

    def judge(asking: np.ndarray, shown: np.ndarray) -> np.ndarray:
        score = noise[0][asking] @ noise[1][shown].T
        score += _agree(query["identity"][asking], gallery["identity"][shown])
        score += np.float32(0.09) * _agree(worn[asking], gallery["clothes"][shown])
        return score / length[shown]

    return judge


def _agree(asked: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """f32[n, m] of values [n] and [m]: 1 where they are equal and known (not negative), else 0."""
    return ((asked[:, None] == shown) & (asked >= 0)[:, None]).astype(np.float32)


def perfect_oracle(query: Columns, gallery: Columns) -> Judge:
    """Knows every person and what each image shows; ranks the person's images by the share of what was asked.

    Score = 2 * (same person) + share of the asked slots (outfit and attributes) that the image shows.
    """
    asked = np.concatenate([query["instruction_clothes"][:, None], query["instruction_attributes"]], axis=1)
    worn = np.concatenate([gallery["clothes"][:, None], gallery["attributes"]], axis=1)
    named = np.maximum((asked >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    used = np.flatnonzero((asked >= 0).any(axis=0))

    def judge(asking: np.ndarray, shown: np.ndarray) -> np.ndarray:
        score = 2 * _agree(query["identity"][asking], gallery["identity"][shown])
        if len(used):
            score += sum(_agree(asked[asking, slot], worn[shown, slot]) for slot in used) / named[asking]
        return score

    return judge


def swapped_instruction(query: Columns, gallery: Columns, protocol: Protocol) -> np.ndarray:
    """i32[Q]: for each query a gallery image of the same person whose own instruction asks for another outfit, or -1.

    Chosen among the person's images that are not positive (nor junk): the first one whose instruction the fewest of the
    query's positives fulfil, since the swapped instruction must not describe the right answer too. No image is chosen
    whose instruction all of them fulfil.
    """
    sizes = len(query["identity"]), len(gallery["identity"])
    related = RelatedPairs(protocol, query, gallery, sizes, person=True)
    chosen = np.full(sizes[0], -1, np.int32)
    for q in range(sizes[0]):
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


def fulfils(gallery: Columns, asking: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Do gallery images `shown` show what the instructions of gallery images `asking` name? Indices broadcast."""
    asked = gallery["instruction_attributes"][asking]
    named = asked >= 0
    slots = (~named | (asked == gallery["attributes"][shown])).all(axis=-1)
    outfit = gallery["instruction_clothes"][asking] == gallery["clothes"][shown]
    return np.where(named.any(axis=-1), slots, outfit)


def another_person(identity: np.ndarray) -> np.ndarray:
    """i32[Q]: for each query a query of another person (to ask by another person's caption), or -1.

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
