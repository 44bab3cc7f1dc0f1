"""Vision transformers: the person image encoder (PASS layout) and the plain one that reads instruction images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from irm_jax.models import transformer
from irm_jax.models.config import token_grid

Array = jax.Array

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalize(image: Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype) -> Array:
    """u8[..., H, W, 3] -> dtype[..., H, W, 3] with the channels' mean removed and divided by std (both of [0, 1]).

    Computed in at least f32 and rounded once: in bf16 neighbouring pixel values would become one.
    """
    full = transformer.at_least_f32(dtype)
    scale = jnp.asarray([1.0 / (255.0 * s) for s in std], full)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], full)
    extra = image.ndim - 1
    whole = image.astype(full) * scale.reshape((1,) * extra + (3,)) + shift.reshape((1,) * extra + (3,))
    return whole.astype(dtype)


@struct.dataclass
class ImageFeatures:
    """Output of an image encoder: `cls` [B, D], `parts` [B, P, D], `patches` [B, N, D] of the final norm."""

    cls: Array
    parts: Array
    patches: Array


class PatchEmbedding(nn.Module):
    """f[B, H, W, 3] -> f[B, N, D]: one strided convolution (`patch`), or a small convolutional stem (`conv`).

    The conv stem folds squares of stride/4 pixels into channels and halves the map twice with 3x3 convolutions, two a
    size, until one position is one token of `stride` pixels (thin full-size convolutions cost five times as much on a
    CPU). A plain patch stem trained from scratch learns nothing in minutes; this one does.
    """

    width: int
    patch: int
    stride: int
    stem: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.stem == "patch":
            conv = nn.Conv(
                self.width,
                (self.patch,) * 2,
                (self.stride,) * 2,
                padding="VALID",
                dtype=self.dtype,
                kernel_init=transformer.INIT,
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
                x = nn.Conv(width, (3, 3), (step, step), padding="SAME", dtype=self.dtype, name=f"conv_{i}")(x)
        else:
            raise ValueError(f"unknown stem {self.stem!r}; the stems are 'patch' and 'conv'")
        return x.reshape(x.shape[0], -1, self.width)


def space_to_depth(x: Array, side: int) -> Array:
    """f[B, H, W, C] -> f[B, H/side, W/side, side*side*C]: squares of pixels become channels."""
    rows, height, width, channels = x.shape
    x = x.reshape(rows, height // side, side, width // side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(rows, height // side, width // side, side * side * channels)


class ImageEncoder(nn.Module):
    """ViT over [cls, part tokens, patches], each special token with its own position, patches with grid positions.

    image u8[B, H, W, 3] -> ImageFeatures. `part_tokens=3` is the PASS layout of the person encoder, 0 the plain ViT of
    the visual instruction encoder (paper section on the image encoder; PASS's ViT, timm's `VisionTransformer`).
    `class_only`: `parts` and `patches` are empty, and the last block is computed for `cls` alone.
    """

    block: transformer.BlockConfig
    depth: int
    image_size: tuple[int, int]
    patch: int
    stride: int
    stem: str = "patch"
    part_tokens: int = 3
    drop_path: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, image: Array, *, train: bool, class_only: bool = False) -> ImageFeatures:
        width, dtype = self.block.width, self.block.dtype
        if image.shape[1:] != (*self.image_size, 3):
            raise ValueError(f"image encoder built for {self.image_size} images got an array of shape {image.shape}")
        embed = PatchEmbedding(width, self.patch, self.stride, self.stem, dtype, name="patch_embedding")
        patches = embed(normalize(image, self.mean, self.std, dtype))
        grid = token_grid(self.image_size, self.patch, self.stride, self.stem)
        special = 1 + self.part_tokens
        tokens = self.param("special_tokens", transformer.EMBEDDING_INIT, (1, special, width))
        token_positions = self.param("special_positions", transformer.EMBEDDING_INIT, (1, special, width))
        positions = self.param("grid_positions", transformer.EMBEDDING_INIT, (1, *grid, width))
        first = jnp.broadcast_to((tokens + token_positions).astype(dtype), (image.shape[0], special, width))
        patches = patches + positions.reshape(1, -1, width).astype(dtype)
        x = transformer.Stack(
            self.block, self.depth, transformer.linear_drop_path(self.drop_path, self.depth),
            scan_layers=self.scan_layers, remat=self.remat, name="blocks",
        )(
            jnp.concatenate([first, patches], axis=1), queries=1 if class_only else None, deterministic=not train
        )  # fmt: skip
        x = self.block.layer_norm("final_norm")(x)
        return ImageFeatures(cls=x[:, 0], parts=x[:, 1:special], patches=x[:, special:])
