"""Pictures of the search tests."""

from __future__ import annotations

import numpy as np


def picture(number: int) -> np.ndarray:
    """A picture u8[64,32,3] of two colours that depend on its number."""
    rng = np.random.default_rng(number)
    made = np.empty((64, 32, 3), np.uint8)
    made[:32], made[32:] = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    return made
