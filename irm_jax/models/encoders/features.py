"""What image encoders read and return: normalised pixels, and features of an image."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, UInt8

from irm_jax.models.attention import at_least_f32
from irm_jax.models.transformer import Leaf

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STATISTICS = {"clip": (CLIP_MEAN, CLIP_STD), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}
"""By `config.model.template_statistics`: the released code trains with `clip` and tests with `imagenet`."""


def normalize(
    image: UInt8[Array, "*B H W 3"], mean: tuple[float, ...], std: tuple[float, ...], dtype: Any
) -> Float[Array, "*B H W 3"]:
    """Returns pixels in units of [0, 1] with `mean` subtracted and divided by `std`, per channel.

    Computed in at least float32 and rounded once: in bfloat16 neighbouring pixel values would become one.
    """
    full = at_least_f32(dtype)
    scale = jnp.asarray([1.0 / (255.0 * s) for s in std], full)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], full)
    extra = image.ndim - 1
    whole = image.astype(full) * scale.reshape((1,) * extra + (3,)) + shift.reshape((1,) * extra + (3,))
    return whole.astype(dtype)


@struct.dataclass
class ImageFeatures:
    """Output of an image encoder after its final norm: `cls` [..., D], `parts` [..., P, D], `patches` [..., N, D]."""

    cls: Leaf
    parts: Leaf
    patches: Leaf
