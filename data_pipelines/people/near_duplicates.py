"""Finds pictures that look the same: copies, neighbouring frames, the same picture in another size or quality.

Each picture becomes a grey thumbnail and 64 bits that say where it brightens to the right. Pictures that agree in a
quarter of the bits are compared: at most MOST_BITS bits may differ, and the thumbnails by MOST_GREY levels on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import cv2
import numpy as np

from data_pipelines.images import Pixels, decode, read_file

MOST_BITS = 4
MOST_GREY = 4.0
THUMB = (32, 16)
_BANDS = 4
_NEIGHBOURS = 32
"""Pictures of one band that each is compared with; a plain background puts thousands into one."""
_THREADS = 8


def thumbnails(files: Sequence[Path]) -> np.ndarray:
    """Returns u8[N, 32, 16], grey; zeros for a file that cannot be read, which is near nothing."""
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        return np.stack([*pool.map(_thumbnail, files)]) if files else np.zeros((0, *THUMB), np.uint8)


def _thumbnail(file: Path) -> np.ndarray:
    try:
        return of_pixels(decode(read_file(file), THUMB))
    except (OSError, ValueError):
        return np.zeros(THUMB, np.uint8)


def of_pixels(picture: Pixels) -> np.ndarray:
    """Returns the thumbnail of a decoded picture, u8[32, 16]."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, THUMB[::-1], interpolation=cv2.INTER_AREA)


def pairs(thumbs: np.ndarray) -> list[tuple[int, int]]:
    """Returns the pairs (i, j), i < j, of thumbnails u8[N, 32, 16] that look the same, sorted."""
    if len(thumbs) < 2:
        return []
    grey = thumbs.astype(np.int16)
    small = grey.reshape(len(grey), 8, 4, 16).mean(axis=2)  # 8 rows of 16
    columns = small[:, :, np.linspace(0, 15, 9).round().astype(int)]
    bits = np.packbits((columns[:, :, 1:] > columns[:, :, :-1]).reshape(len(grey), 64), axis=1)
    seen = np.asarray(grey.reshape(len(grey), -1).any(axis=1))
    found: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        key = bits[:, 2 * band].astype(np.int64) << 8 | bits[:, 2 * band + 1]
        order = np.lexsort((grey.reshape(len(grey), -1).mean(axis=1), key))
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            a, b = order[:-step], order[step:]
            near = np.flatnonzero((key[a] == key[b]) & seen[a] & seen[b])
            a, b = a[near], b[near]
            if not len(a):
                break
            differ = np.unpackbits(bits[a] ^ bits[b], axis=1).sum(axis=1) <= MOST_BITS
            a, b = a[differ], b[differ]
            close = np.abs(grey[a] - grey[b]).mean(axis=(1, 2)) <= MOST_GREY
            found |= {(min(i, j), max(i, j)) for i, j in zip(a[close].tolist(), b[close].tolist(), strict=True)}
    return sorted(found)
