"""The sizes of IRM: one frozen dataclass, and the presets `tiny`, `small` and `base` (the paper's). No jax here: the
input pipeline reads image sizes and sentence lengths too."""

from __future__ import annotations

import dataclasses
from typing import Any


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
    vocab_size: int = 30_720  # padded: 30,522 words do not shard
    num_identities: int = 1_024  # padded
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    drop_path: float = 0.1
    temperature: float = 0.07
    mask_instruction_padding: bool = True
    dtype: str = "float32"  # of the computation; parameters are float32
    scan_layers: bool = False
    remat: bool = False

    @property
    def embedding_width(self) -> int:
        return 2 * self.width


PRESETS: dict[str, dict[str, Any]] = {
    # From scratch in minutes on two cores: a conv stem, narrow and shallow.
    "tiny": {
        "width": 128, "image_size": (128, 64), "image_depth": 3, "image_heads": 4, "patch": 16, "stride": 16,
        "stem": "conv", "part_tokens": 3, "text_depth": 2, "text_heads": 4, "max_length": 40,
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
        "projection_width": 256, "drop_path": 0.1, "dropout": 0.1,
    },
}  # fmt: skip


def preset(name: str, **changes: Any) -> IRMConfig:
    """The named sizes with `changes` on top. Raises ValueError for an unknown preset."""
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}; the presets are {', '.join(PRESETS)}")
    return IRMConfig(**{**PRESETS[name], **changes})
