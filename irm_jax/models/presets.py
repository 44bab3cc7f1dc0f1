"""The sizes of IRM: one frozen dataclass, and the presets `tiny`, `small` and `base` (the paper's). No jax here: the
input pipeline reads image sizes and sentence lengths too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

REMAT = ("none", "minimal", "full")
"""What a block's backward pass computes again, by the field's names for it: nothing; all but the outputs of its dense
layers (so attention weights, norms, GELU, dropout); everything."""


@dataclasses.dataclass(frozen=True)
class IRMConfig:
    """Everything that fixes IRM's parameters and computation. Sizes in pixels are (height, width)."""

    width: int
    image_size: tuple[int, int]
    image_depth: int
    image_heads: int
    patch: int
    stride: int
    stem: str  # "patch" | "conv"
    part_tokens: int
    text_depth: int  # BERT's text-only layers (fusion_layer)
    text_heads: int
    max_length: int
    instruction_image_size: tuple[int, int]
    template_depth: int
    template_heads: int
    template_patch: int
    template_stem: str
    template_statistics: str  # "clip" | "imagenet"
    editing_depth: int
    editing_drop_path: float
    projection_width: int
    fusion_depth: int = 0  # BERT's layers with cross-attention to an image, for the text-to-image objectives (ALBEF: 6)
    vocab_size: int = 30_720  # padded: 30,522 words do not shard
    num_identities: int = 1_024  # padded
    mlp_ratio: float = 4.0
    text_dropout: float = 0.0  # of BERT; the image streams have stochastic depth alone
    drop_path: float = 0.1
    temperature: float = 0.07
    mask_instruction_padding: bool = True
    instruction_tokens: int | None = None  # that the editing transformer reads, a template's at least; None = all
    dtype: str = "float32"  # of the computation; parameters are float32
    scan_layers: bool = False
    remat: str = "none"  # one of REMAT

    @property
    def embedding_width(self) -> int:
        return 2 * self.width

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of patch tokens of each image tower."""
        return {
            "image_encoder": token_grid(self.image_size, self.patch, self.stride, self.stem),
            "template_encoder": token_grid(
                self.instruction_image_size, self.template_patch, self.template_patch, self.template_stem
            ),
        }


PRESETS: dict[str, dict[str, Any]] = {
    # From scratch in minutes on two cores: a conv stem, narrow and shallow.
    "tiny": {
        "width": 128, "image_size": (128, 64), "image_depth": 3, "image_heads": 4, "patch": 16, "stride": 16,
        "stem": "conv", "part_tokens": 3, "text_depth": 2, "text_heads": 4, "max_length": 40, "instruction_tokens": 24,
        "instruction_image_size": (32, 32), "template_depth": 1, "template_heads": 4, "template_patch": 8,
        "template_stem": "conv", "template_statistics": "clip", "editing_depth": 2, "editing_drop_path": 0.0,
        "projection_width": 64, "drop_path": 0.0,
    },
    # ViT-S / MiniLM width: one GPU.
    "small": {
        "width": 384, "image_size": (256, 128), "image_depth": 12, "image_heads": 6, "patch": 16, "stride": 16,
        "stem": "patch", "part_tokens": 3, "text_depth": 6, "text_heads": 12, "max_length": 70,
        "instruction_image_size": (128, 128), "template_depth": 12, "template_heads": 6, "template_patch": 16,
        "template_stem": "patch", "template_statistics": "clip", "editing_depth": 2, "editing_drop_path": 0.1,
        "projection_width": 256, "drop_path": 0.1,
    },
    # The paper's: ViT-B/16 + the first 6 layers of BERT-base + ViT-B/16 for templates.
    "base": {
        "width": 768, "image_size": (256, 128), "image_depth": 12, "image_heads": 12, "patch": 16, "stride": 16,
        "stem": "patch", "part_tokens": 3, "text_depth": 6, "text_heads": 12, "max_length": 70,
        "instruction_image_size": (128, 128), "template_depth": 12, "template_heads": 12, "template_patch": 16,
        "template_stem": "patch", "template_statistics": "clip", "editing_depth": 2, "editing_drop_path": 0.1,
        "projection_width": 256, "drop_path": 0.1, "text_dropout": 0.1,
    },
}  # fmt: skip


def preset(name: str, **changes: Any) -> IRMConfig:
    """The named sizes with `changes` on top. Raises ValueError for an unknown preset."""
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}; the presets are {', '.join(PRESETS)}")
    return IRMConfig(**{**PRESETS[name], **changes})


def from_options(options: Mapping[str, Any], *, vocab_size: int = 1, num_identities: int = 1) -> IRMConfig:
    """The preset with the keys that `config.model` sets; vocabulary and identities rounded up to their multiples.

    Raises ValueError for an unknown preset and for sizes that do not fit each other.
    """
    own = ("preset", "vocab_multiple", "identity_multiple")
    changes = {key: value for key, value in options.items() if key not in own and value is not None}
    for key in ("image_size", "instruction_image_size"):
        if key in changes:
            changes[key] = tuple(changes[key])
    for key, count, multiple in (
        ("vocab_size", vocab_size, options["vocab_multiple"]),
        ("num_identities", num_identities, options["identity_multiple"]),
    ):
        changes[key] = math.ceil(max(count, 1) / multiple) * multiple
    found = preset(options["preset"], **changes)
    token_grid(found.image_size, found.patch, found.stride, found.stem)
    token_grid(found.instruction_image_size, found.template_patch, found.template_patch, found.template_stem)
    for key in ("image_heads", "text_heads", "template_heads"):
        if found.width % getattr(found, key):
            raise ValueError(f"width {found.width} is not divisible by {key} = {getattr(found, key)}")
    return found


def token_grid(image_size: tuple[int, int], patch: int, stride: int, stem: str) -> tuple[int, int]:
    """Rows and columns of patch tokens. A patch stem leaves out what its last stride does not reach, as a convolution
    does. Raises ValueError for sizes that give no grid."""
    if stem == "conv":
        if stride % 4 or any(side % stride for side in image_size):
            raise ValueError(
                f"a conv stem needs a stride that is a multiple of 4 and divides the image: {stride}, {image_size}"
            )
        return image_size[0] // stride, image_size[1] // stride
    if any(side < patch for side in image_size):
        raise ValueError(f"image size {image_size} is smaller than one patch of {patch} pixels")
    return (image_size[0] - patch) // stride + 1, (image_size[1] - patch) // stride + 1
