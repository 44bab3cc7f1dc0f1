"""The named sizes of IRM: `tiny`, `small` and `base` (the paper's), and how `config.model` changes them.

No jax here: the input pipeline and the checks of a configuration read image sizes and sentence lengths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from irm_jax.models import encoders
from irm_jax.models.config import ENCODER_KEYS, IRMConfig, ModelConfigError, as_options, check, upgraded

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
    """The named sizes with `changes` on top; own options of the image encoder that are not given get their values.

    Raises ModelConfigError for an unknown preset or image encoder, and for one that does not serve the preset.
    """
    if name not in PRESETS:
        raise ModelConfigError(f"unknown model preset {name!r}; the presets are {', '.join(PRESETS)}")
    found = IRMConfig(**{**PRESETS[name], **changes})
    encoder = encoders.image_encoder(found.image_encoder)
    options = encoder.resolve(name, dict(found.image_encoder_options))
    return dataclasses.replace(found, image_encoder_options=options)


def from_options(options: Mapping[str, Any], *, vocab_size: int = 1, num_identities: int = 1) -> IRMConfig:
    """The preset with the keys that `config.model` sets; vocabulary and identities rounded up to their multiples.

    Raises ModelConfigError for an unknown preset and for sizes that do not fit each other.
    """
    own = ("preset", "vocab_multiple", "identity_multiple", "image_encoder_options")
    changes = {key: value for key, value in options.items() if key not in own and value is not None}
    changes["image_encoder_options"] = as_options(options.get("image_encoder_options") or {})
    for key in ("image_size", "instruction_image_size"):
        if key in changes:
            changes[key] = tuple(changes[key])
    for key, count, multiple in (
        ("vocab_size", vocab_size, options["vocab_multiple"]),
        ("num_identities", num_identities, options["identity_multiple"]),
    ):
        changes[key] = math.ceil(max(count, 1) / multiple) * multiple
    found = preset(options["preset"], **changes)
    check(found)
    encoder = encoders.image_encoder(found.image_encoder)
    if unread := [key for key in ENCODER_KEYS if key in changes and key not in encoder.model_keys]:
        raise ModelConfigError(
            f"the image encoder {found.image_encoder!r} does not read {', '.join(unread)}; leave them unset (None)"
        )
    grids = {"image_size": encoder.tokens(found).grid, "instruction_image_size": found.template_grid}
    for key, grid in grids.items():
        if min(grid) < 1:
            raise ModelConfigError(f"{key} = {getattr(found, key)} gives a grid of {grid} tokens; choose a larger one")
    count = math.prod(grids["image_size"])
    if (found.editing_patches or 0) > count:
        raise ModelConfigError(f"editing_patches = {found.editing_patches}; an image has {count} patches")
    return found


def from_saved_table(table: Mapping[str, Any], *, vocab_size: int = 1, num_identities: int = 1) -> IRMConfig:
    """The model of a checkpoint that kept the table `config.model` and no resolved configuration (see `config`).

    Keys that were added since then take the value that their absence stood for. Raises ModelConfigError.
    """
    return from_options(upgraded(table), vocab_size=vocab_size, num_identities=num_identities)
