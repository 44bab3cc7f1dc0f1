"""What any system would score without the model's help, or with perfect help: printed beside every figure.

Each control is a pair of embeddings, ranked by the same code as the model's; only chance is computed in closed form.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_pipelines import pipeline, shards
from irm_jax.evaluation import selection
from irm_jax.evaluation.figures import METRICS
from irm_jax.evaluation.protocols import Columns, Protocol
from irm_jax.evaluation.related_pairs import RelatedPairs
from irm_jax.evaluation.trials import taken

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


def color_histogram(dataset: shards.Dataset, split: str, *, threads: int) -> np.ndarray:
    """f32[N, 512]: square root of the joint 8x8x8 RGB histogram of each image (cosine = Bhattacharyya coefficient)."""
    reader = dataset.reader(split, ("image", "file"))
    out = np.empty((len(reader), HISTOGRAM_BINS**3), np.float32)
    where = f"data set {dataset.name}, split {split}"
    with pipeline.image_batches(
        reader, np.arange(len(reader)), HISTOGRAM_SIZE, 256, where=where, threads=threads
    ) as batches:
        for ids, images in batches:
            for record, image in zip(ids, images, strict=True):
                histogram = cv2.calcHist([image], [0, 1, 2], None, [HISTOGRAM_BINS] * 3, [0, 256] * 3)
                out[record] = np.sqrt(histogram.ravel() / image.shape[0] / image.shape[1])
    return out


def perfect_identity(
    query: Columns, gallery: Columns, seed: int, *, query_is_image: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Knows every person and ignores the instruction -> a pair of embeddings.

    Among the images of the person, those in the clothes of the query image come first, as they would for any system
    that compares looks (where the query has an image and its outfit is known); the rest is a guess (seeded noise).
    """
    people = _one_hots(query["identity"], gallery["identity"])
    worn = query["clothes"] if query_is_image else np.full(len(query["clothes"]), -1)
    clothes = _one_hots(worn, gallery["clothes"])
    pair = []
    for number in (0, 1):
        noise = np.random.default_rng(seed + number).standard_normal((len(people[number]), 16)).astype(np.float32)
        pair.append(np.concatenate([people[number], 0.3 * clothes[number], 0.01 * noise], axis=1))
    return pair[0], pair[1]


def _one_hots(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of values of both sides, f32[Q, V] and f32[G, V]; a row of zeros for an unknown (negative) value."""
    values = np.unique(np.concatenate([query, gallery]))
    values = values[values >= 0]
    return (
        (query[:, None] == values[None]).astype(np.float32),
        (gallery[:, None] == values[None]).astype(np.float32),
    )


def perfect_oracle(query: Columns, gallery: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Knows every person and what each image shows; ranks the person's images by the share of what was asked.

    Score = 2 * (same person) + share of the asked slots (outfit and attributes) that the image shows.
    """
    people = _one_hots(query["identity"], gallery["identity"])
    pieces_q, pieces_g = [2.0 * people[0]], [people[1]]
    asked = np.concatenate([query["instruction_clothes"][:, None], query["instruction_attributes"]], axis=1)
    shown = np.concatenate([gallery["clothes"][:, None], gallery["attributes"]], axis=1)
    named = np.maximum((asked >= 0).sum(axis=1, keepdims=True), 1).astype(np.float32)
    for slot in range(asked.shape[1]):
        wanted, worn = _one_hots(asked[:, slot], shown[:, slot])
        pieces_q.append(wanted / named)
        pieces_g.append(worn)
    # Cosine ranking divides a gallery row by its length: pad all rows to one length, so that scores stay as built.
    query_rows, gallery_rows = np.concatenate(pieces_q, axis=1), np.concatenate(pieces_g, axis=1)
    squared = (gallery_rows**2).sum(axis=1)
    slack = np.sqrt(squared.max() - squared)[:, None]
    return np.pad(query_rows, ((0, 0), (0, 1))), np.concatenate([gallery_rows, slack], axis=1).astype(np.float32)


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
