"""What any system would score without the model's help, or with perfect help: printed beside every figure.

Each control is a pair of embeddings, ranked by the same code as the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from data_pipelines import pipeline, shards
from irm_jax.evaluation.evaluation_sets import Columns, SplitData

HISTOGRAM_BINS = 8
HISTOGRAM_SIZE = (64, 32)


def random_embedding(count: int, seed: int, width: int = 64) -> np.ndarray:
    """f32[count, width] of independent normal numbers: chance."""
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


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


def perfect_identity(query: Columns, gallery: Columns, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Knows every person and ignores the instruction; among images of the person it guesses (small seeded noise)."""
    people = 1 + int(max(query["identity"].max(), gallery["identity"].max()))
    both = []
    for number, columns in enumerate((query, gallery)):
        one_hot = np.zeros((len(columns["identity"]), people), np.float32)
        one_hot[np.arange(len(one_hot)), columns["identity"]] = 1.0
        both.append(np.concatenate([one_hot, 0.01 * random_embedding(len(one_hot), seed + number, 16)], axis=1))
    return both[0], both[1]


def perfect_oracle(query: Columns, gallery: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Knows every person and what each image shows; ranks the person's images by the share of what was asked.

    Score = 2 * (same person) + share of the asked slots (outfit and attributes) that the image shows.
    """
    people = 1 + int(max(query["identity"].max(), gallery["identity"].max()))
    asked = np.concatenate([query["instruction_clothes"][:, None], query["instruction_attributes"]], axis=1)
    shown = np.concatenate([gallery["clothes"][:, None], gallery["attributes"]], axis=1)
    pieces_q, pieces_g = [], []
    for columns, pieces, weight in ((query, pieces_q, 2.0), (gallery, pieces_g, 1.0)):
        one_hot = np.zeros((len(columns["identity"]), people), np.float32)
        one_hot[np.arange(len(one_hot)), columns["identity"]] = weight
        pieces.append(one_hot)
    named = np.maximum((asked >= 0).sum(axis=1, keepdims=True), 1)
    for slot in range(asked.shape[1]):
        values = 1 + max(int(asked[:, slot].max()), int(shown[:, slot].max()), 0)
        for column, pieces, weight in ((asked, pieces_q, 1.0 / named[:, 0]), (shown, pieces_g, np.ones(len(shown)))):
            one_hot = np.zeros((len(column), values), np.float32)
            present = np.flatnonzero(column[:, slot] >= 0)
            one_hot[present, column[present, slot]] = weight[present]
            pieces.append(one_hot)
    # Cosine ranking divides a gallery row by its length: pad all rows to one length, so that scores stay as built.
    query_rows, gallery_rows = np.concatenate(pieces_q, axis=1), np.concatenate(pieces_g, axis=1)
    squared = (gallery_rows**2).sum(axis=1)
    slack = np.sqrt(squared.max() - squared)[:, None]
    return np.pad(query_rows, ((0, 0), (0, 1))), np.concatenate([gallery_rows, slack], axis=1).astype(np.float32)


def swapped_instruction(query: SplitData, gallery: SplitData, positive: np.ndarray) -> np.ndarray:
    """i32[Q]: for each query a gallery image of the same person whose own instruction asks for another outfit; -1 if none.

    `positive` bool[Q, G] are the query's strict positives. Images whose instruction none of the positives fulfils come
    first: the swapped instruction must not describe the right answer too.
    """
    same = query.columns["identity"][:, None] == gallery.columns["identity"][None, :]
    chosen = np.full(len(query), -1, np.int32)
    for q in range(len(query)):
        candidates = np.flatnonzero(same[q] & ~positive[q])
        if not len(candidates):
            continue
        targets = np.flatnonzero(positive[q])
        fulfilled = [
            np.mean([_fulfils(gallery.columns, target, candidate) for target in targets]) if len(targets) else 0.0
            for candidate in candidates
        ]
        chosen[q] = candidates[int(np.argmin(fulfilled))]
    return chosen


def _fulfils(gallery: Columns, image: int, asking: int) -> bool:
    """Does gallery image `image` show what the instruction of gallery image `asking` names?"""
    asked, shown = gallery["instruction_attributes"][asking], gallery["attributes"][image]
    named = asked >= 0
    if named.any():
        return bool((asked[named] == shown[named]).all())
    return bool(gallery["instruction_clothes"][asking] == gallery["clothes"][image])


def another_person(identity: np.ndarray) -> np.ndarray:
    """i32[Q]: for each query the next query, in order, of another person (used for another person's caption)."""
    count = len(identity)
    chosen = np.full(count, -1, np.int32)
    for q in range(count):
        for step in range(1, count):
            other = (q + step * (count // 2 + 1)) % count
            if identity[other] != identity[q]:
                chosen[q] = other
                break
    return chosen


def names() -> Sequence[str]:
    """The controls in the order of the report."""
    return ("random", "color_histogram", "image_only", "instruction_only", "perfect_identity", "oracle")
