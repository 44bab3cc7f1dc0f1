"""Vision transformers: the person image encoder in PASS's layout, and the plain one that reads instruction images."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from irm_jax.models import transformer
from irm_jax.models.config import POOLED_CLASS, token_grid
from irm_jax.models.convolution import convolution
from irm_jax.models.encoders import positions as position_grids
from irm_jax.models.encoders.features import IMAGENET_MEAN, IMAGENET_STD, ImageFeatures, normalize

Grid = tuple[int, int]
"""Rows and columns of patches."""


class PatchEmbedding(nn.Module):
    """The stem: one strided convolution (`patch`), or a small convolutional network (`conv`).

    The conv stem folds squares of stride/4 pixels into channels and halves the map twice with 3x3 convolutions, two
    per size, until one position is one token of `stride` pixels. Thin convolutions at full size would cost five times
    as much on a CPU. Trained from scratch for minutes, a model with a plain patch stem learns nothing, with this one it
    does.
    """

    width: int
    patch: int
    stride: int
    stem: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        if self.stem == "patch":
            conv = nn.Conv(
                self.width,
                (self.patch,) * 2,
                (self.stride,) * 2,
                padding="VALID",
                dtype=self.dtype,
                kernel_init=transformer.INIT,
                conv_general_dilated=convolution,
                name="projection",
            )
            x = conv(x)
        elif self.stem == "conv":
            x = space_to_depth(x, self.stride // 4)
            for i, (width, step) in enumerate(
                ((self.width // 2, 2), (self.width // 2, 1), (self.width, 2), (self.width, 1))
            ):
                if i:
                    x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm_{i}")(x)
                    x = transformer.gelu(x)
                options: dict[str, Any] = {
                    "dtype": self.dtype,
                    "conv_general_dilated": convolution,
                    "name": f"conv_{i}",
                }
                x = nn.Conv(width, (3, 3), (step, step), padding="SAME", **options)(x)
        else:
            raise ValueError(f"unknown stem {self.stem!r}; the stems are 'patch' and 'conv'")
        return x.reshape(x.shape[0], -1, self.width)


def space_to_depth(x: Float[Array, "B H W C"], side: int) -> Float[Array, "B h w c"]:
    """Folds squares of side x side pixels into channels: [B, H/side, W/side, side*side*C]."""
    rows, height, width, channels = x.shape
    x = x.reshape(rows, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(rows, height // side, width // side, side * side * channels)


class ViTModule(nn.Module):
    """A ViT over [cls, part tokens, patches]; each special token has its own position, patches have grid positions.

    `part_tokens=3` is the layout of PASS's ViT, the person image encoder; 0 that of timm's `VisionTransformer`, the
    encoder of instruction images. With `class_only` the last block is computed for `cls` alone, and the output's
    `parts` and `patches` are empty.

    `pooled_class`: the class token starts from the picture: a dense layer of the patch embeddings is added to it, of
    the largest value of each row of the grid ("rows": where on a body something is, whatever its column), or of all
    patches ("all"). So attention need not learn first where to look.

    `patch_dropout`: in training each image keeps as many patches as `kept_patches` says, drawn anew in each step, and
    everything after the stem reads these alone; the special tokens always stay.

    `smaller_images`: images may be smaller than `image_size`; positions, and the part of a pooled class token, are then
    interpolated between the grids.
    """

    block: transformer.BlockConfig
    depth: int
    image_size: tuple[int, int]
    patch: int
    stride: int
    stem: str = "patch"
    part_tokens: int = 3
    drop_path: float = 0.0
    patch_dropout: float = 0.0
    smaller_images: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    pooled_class: Literal["none", "rows", "all"] = "none"
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self, image: UInt8[Array, "B H W 3"], *, train: bool, class_only: bool = False
    ) -> ImageFeatures:  # fmt: skip
        width, dtype = self.block.width, self.block.dtype
        size = (image.shape[1], image.shape[2])
        smaller = self.smaller_images and size[0] <= self.image_size[0] and size[1] <= self.image_size[1]
        if size != self.image_size and not smaller:
            raise ValueError(f"image encoder built for {self.image_size} images got an array of shape {image.shape}")
        embed = PatchEmbedding(width, self.patch, self.stride, self.stem, dtype, name="patch_embedding")
        patches = embed(normalize(image, self.mean, self.std, dtype))
        grid, full = (token_grid(one, self.patch, self.stride, self.stem) for one in (size, self.image_size))
        special = 1 + self.part_tokens
        tokens = self.param("special_tokens", transformer.EMBEDDING_INIT, (1, special, width))
        token_positions = self.param("special_positions", transformer.EMBEDDING_INIT, (1, special, width))
        positions = self.param("grid_positions", transformer.EMBEDDING_INIT, (1, *full, width))
        first = jnp.broadcast_to((tokens + token_positions).astype(dtype), (image.shape[0], special, width))
        kept = None
        if train and self.patch_dropout:
            kept = draw_patches(self.make_rng("dropout"), patches, self.patch_dropout)
        if self.pooled_class != "none":
            first = first.at[:, 0].add(self._pooled(patches, grid, kept, full))
        patches = patches + resized(positions, grid).reshape(1, -1, width).astype(dtype)
        if kept is not None:
            patches = transformer.take_tokens(patches, kept)
        x = transformer.Stack(
            self.block, self.depth, transformer.linear_drop_path(self.drop_path, self.depth),
            scan_layers=self.scan_layers, remat=self.remat, name="blocks",
        )(
            jnp.concatenate([first, patches], axis=1), queries=1 if class_only else None, deterministic=not train
        )  # fmt: skip
        x = self.block.layer_norm("final_norm")(x)
        return ImageFeatures(cls=x[:, 0], parts=x[:, 1:special], patches=x[:, special:])

    def _pooled(
        self, patches: Float[Array, "B N D"], grid: Grid, kept: Int[Array, "B K"] | None, full: Grid
    ) -> Float[Array, "B D"]:
        """What is added to the class token. A row of the grid of which no patch is `kept` counts as 0.

        `full`: the grid of images of `image_size`, for which the dense layer is.
        """
        rows = patches.reshape(-1, *grid, self.block.width)
        if kept is None:
            pooled = jnp.max(rows, axis=2) if self.pooled_class == "rows" else rows
        else:
            there = jax.nn.one_hot(kept, patches.shape[1], dtype=bool).any(axis=1).reshape(-1, *grid, 1)
            largest = jnp.max(rows, axis=2, where=there, initial=-jnp.inf)
            largest = jnp.where(there.any(axis=2), largest, 0)
            pooled = largest if self.pooled_class == "rows" else jnp.where(there, rows, 0)
        if grid != full:
            pooled = resized(pooled[:, :, None], (full[0], 1)) if self.pooled_class == "rows" else resized(pooled, full)
        dense = nn.Dense(self.block.width, kernel_init=transformer.INIT, dtype=self.block.dtype, name=POOLED_CLASS)
        return dense(pooled.reshape(pooled.shape[0], -1))


def kept_patches(count: int, share: float) -> int:
    """How many of `count` patches are left if a share is left out: at least (1 - share) * count."""
    return count - math.floor(share * count + 1e-9)  # .7 * 10 is 7 in f64 as well, (1 - .7) * 10 more than 3


def draw_patches(key: Array, patches: Float[Array, "B N D"], share: float) -> Int[Array, "B K"]:
    """Draws for each row which of its patches stay, in their order."""
    draw = jax.random.uniform(key, patches.shape[:2], jnp.float32)
    return jnp.sort(jnp.argsort(draw, axis=1)[:, : kept_patches(patches.shape[1], share)], axis=1)


def resized(grid: Float[Array, "B h w D"], size: Grid) -> Float[Array, "B rows columns D"]:
    """`positions.resize` with its bilinear rule, within the model. A grid of that size is returned as it is."""
    if grid.shape[1:3] == size:
        return grid
    rows, columns = (
        jnp.asarray(position_grids.weights(old, new, "bilinear"), grid.dtype)
        for old, new in zip(grid.shape[1:3], size, strict=True)
    )
    return jnp.einsum("rh,cw,bhwd->brcd", rows, columns, grid, precision=jax.lax.Precision.HIGHEST)
