"""Position embeddings for another image size: torch's interpolation of a grid, as two small matrix products."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float64

METHODS = ("bilinear", "bicubic", "bicubic_antialias")
"""`bilinear`: PASS. `bicubic`: ALBEF, Hugging Face's ViT. `bicubic_antialias`: timm (differs where a grid shrinks)."""


def resize(
    grid: Float[np.ndarray, "1 h w D"], size: tuple[int, int], method: str
) -> Float[np.ndarray, "1 rows columns D"]:
    """Resizes a grid as torch.nn.functional.interpolate(..., align_corners=False) does.

    `bilinear` and `bicubic` are torch's with antialias=False (cubic constant -0.75, samples beyond the border repeat
    it); `bicubic_antialias` with antialias=True (constant -0.5, the kernel widens as the grid shrinks). Computed in
    float64. A grid of the same size is returned as it is. Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown resize method {method!r}; the methods are {', '.join(METHODS)}")
    if grid.shape[1:3] == tuple(size):
        return grid
    rows, columns = (weights(old, new, method) for old, new in zip(grid.shape[1:3], size, strict=True))
    return np.einsum("rh,cw,bhwd->brcd", rows, columns, grid.astype(np.float64), optimize=True).astype(grid.dtype)


def weights(old: int, new: int, method: str) -> Float64[np.ndarray, "{new} {old}"]:
    """The share of each old sample in each new one; rows sum to 1."""
    scale = old / new
    centre = (np.arange(new) + 0.5) * scale - 0.5
    found = np.zeros((new, old))
    if method == "bicubic_antialias":
        stretch = max(scale, 1.0)
        for i, c in enumerate(centre):
            # Torch rounds the support to whole samples, and normalises over those inside the grid.
            low = max(int(c + 0.5 - 2 * stretch + 0.5), 0)
            high = min(int(c + 0.5 + 2 * stretch + 0.5), old)
            found[i, low:high] = [_cubic((j - c) / stretch, -0.5) for j in range(low, high)]
        return found / found.sum(1, keepdims=True)
    for i, c in enumerate(centre):
        if method == "bilinear":
            c = max(c, 0.0)
        first = math.floor(c)
        taps = range(first, first + 2) if method == "bilinear" else range(first - 1, first + 3)
        for j in taps:
            weight = max(1 - abs(j - c), 0.0) if method == "bilinear" else _cubic(j - c, -0.75)
            found[i, min(max(j, 0), old - 1)] += weight
    return found


def _cubic(x: float, a: float) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((x - 5) * x + 8) * x * a - 4 * a if x < 2 else 0.0
