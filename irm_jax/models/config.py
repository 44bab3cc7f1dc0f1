"""The resolved configuration of a model: one frozen dataclass, its JSON form, and how older forms are read.

A checkpoint keeps `to_json(model.config)`; `from_json` reads it back whatever keys were added or renamed since. A
checkpoint older than this form has the table `config.model` alone: `presets.from_saved_table` resolves that one.

No jax here: the input pipeline and the checks of a configuration read image sizes and sentence lengths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from irm_jax.errors import UserError

REMAT = ("none", "minimal", "full")
"""What a block's backward pass computes again: nothing; all but the outputs of its dense layers (attention weights,
norms, GELU, dropout); everything."""

CHOICES = {
    "dtype": ("float32", "bfloat16"), "remat": REMAT, "stem": ("patch", "conv"), "template_stem": ("patch", "conv"),
    "template_statistics": ("clip", "imagenet"),
}  # fmt: skip
"""Key -> the texts that it takes."""


class ModelConfigError(UserError, ValueError):
    """A model configuration is unknown or contradicts itself; the message names the key, the cause and the cure."""


@dataclasses.dataclass(frozen=True)
class IRMConfig:
    """Everything that fixes IRM's parameters and computation. Sizes of images are (height, width) in pixels."""

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
    patch_dropout: float = 0.0  # of the person image encoder, in training; a ViT's alone
    pooled_class_token: bool = False  # of the ViTs: it starts from the pooled patches
    temperature: float = 0.07
    mask_instruction_padding: bool = True
    sentence_sep: bool = True  # sentences end with [SEP]; in ALBEF, RaSa and the released IRM they do not
    instruction_tokens: int | None = None  # read by the editing transformer, at least a template's; None = all
    editing_patches: int | None = None  # read by the guided stream of the editing transformer; None = all
    dtype: str = "float32"  # of the computation; parameters are float32
    scan_layers: bool = False
    remat: str = "none"  # one of REMAT
    image_encoder: str = "vit"  # a name of irm_jax.models.encoders.ENCODERS
    image_encoder_options: tuple[tuple[str, Any], ...] = ()  # the encoder's own options, sorted by name

    @property
    def embedding_width(self) -> int:
        return 2 * self.width

    @property
    def template_grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens of an instruction image."""
        return token_grid(self.instruction_image_size, self.template_patch, self.template_patch, self.template_stem)


ENCODER_KEYS = ("image_depth", "patch", "stride", "stem", "part_tokens", "patch_dropout")
"""Keys of a person image encoder that another encoder than the ViT may not have, see `ImageEncoder.model_keys`."""
POOLED_CLASS = "pooled_class"
"""Name of the layer that `pooled_class_token` adds to a ViT."""
VERSION = 1
"""Of the JSON form. Raise it when a key is renamed, and add the key to `RENAMED`."""
RENAMED: dict[int, dict[str, str]] = {}
"""Version -> {key before that version: key since}. Renamings are applied in the order of their versions."""
ADDED: dict[str, Any] = {
    "image_encoder": "vit", "image_encoder_options": {}, "pooled_class_token": False, "sentence_sep": True,
    "patch_dropout": 0.0, "editing_patches": None,
}  # fmt: skip
"""Keys that earlier checkpoints lack -> the value that their absence stands for (not today's default)."""
FREE = ("dtype", "remat", "text_dropout", "drop_path", "patch_dropout", "editing_drop_path", "temperature")
"""Keys that may change between a checkpoint and its use: the parameters keep their shapes and their meaning."""


def to_json(config: IRMConfig) -> dict[str, Any]:
    """The configuration as plain values with `version`; `from_json` reads it."""
    values = dataclasses.asdict(config)
    values["image_encoder_options"] = dict(config.image_encoder_options)
    return {"version": VERSION, **{key: _plain(value) for key, value in values.items()}}


def from_json(saved: Mapping[str, Any]) -> IRMConfig:
    """The configuration that `to_json` saved, by this or an earlier version.

    Raises ModelConfigError for a later version, and for keys that are unknown or missing.
    """
    values = upgraded(saved)
    fields = {field.name: field for field in dataclasses.fields(IRMConfig)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise ModelConfigError(
            f"the saved model configuration has unknown keys {', '.join(unknown)}: it was written by a later version, "
            "or edited; update irm_jax (a key that was renamed has an entry in irm_jax.models.config.RENAMED)"
        )
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(required - values.keys()):
        raise ModelConfigError(f"the saved model configuration lacks {', '.join(missing)}: restore its file")
    options = values.pop("image_encoder_options")
    if not isinstance(options, Mapping):
        raise ModelConfigError(f"image_encoder_options = {options!r} is no table")
    frozen = {key: _frozen(value) for key, value in values.items()}
    found = IRMConfig(**frozen, image_encoder_options=as_options(options))
    check(found)
    return found


def check(config: IRMConfig) -> None:
    """Raises ModelConfigError naming the first key whose value no model has, and heads that do not divide the width."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _FITS[str(field.type)](value):
            raise ModelConfigError(f"{field.name} = {value!r}; it must be of type {field.type}")
        least = 0 if field.name in ("part_tokens", "fusion_depth") else 1
        if type(value) is int and value < least:
            raise ModelConfigError(f"{field.name} = {value}; it must be at least {least}")
        if field.name in CHOICES and value not in CHOICES[field.name]:
            raise ModelConfigError(f"{field.name} = {value!r}; it must be one of {', '.join(CHOICES[field.name])}")
    for key in ("image_heads", "text_heads", "template_heads"):
        if config.width % getattr(config, key):
            raise ModelConfigError(f"width {config.width} is not divisible by {key} = {getattr(config, key)}")


_FITS: dict[str, Callable[[Any], bool]] = {
    "int": lambda x: type(x) is int,
    "int | None": lambda x: x is None or type(x) is int,
    "float": lambda x: type(x) in (int, float) and math.isfinite(x),
    "bool": lambda x: type(x) is bool,
    "str": lambda x: type(x) is str,
    "tuple[int, int]": lambda x: type(x) is tuple and len(x) == 2 and all(type(side) is int and side > 0 for side in x),
    "tuple[tuple[str, Any], ...]": lambda x: type(x) is tuple,
}
"""Whether a value is of the type of a field."""


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration, or a saved table `config.model` (which has no version: 0), under today's keys.

    Renamed keys get their new names, added ones the value that their absence stood for. Raises ModelConfigError for a
    version later than this code's.
    """
    if not isinstance(saved, Mapping):
        raise ModelConfigError(f"the saved model configuration is a {type(saved).__name__}, no table: update irm_jax")
    values = dict(saved)
    version = values.pop("version", 0)
    if type(version) is not int or version > VERSION:
        raise ModelConfigError(
            f"the saved model configuration is of version {version}, this code reads {VERSION}: update irm_jax"
        )
    for number in sorted(RENAMED):
        if number > version:
            values = {RENAMED[number].get(key, key): value for key, value in values.items()}
    return {**ADDED, **values}


def differences(saved: IRMConfig, current: IRMConfig) -> list[str]:
    """["image_depth: checkpoint 12, now 3", ...]: the keys by which two models have other parameters (not `FREE`)."""
    before, now = to_json(saved), to_json(current)
    return [f"{key}: checkpoint {before[key]}, now {now[key]}" for key in before if key not in FREE and
            before[key] != now[key]]  # fmt: skip


def as_options(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """An encoder's own options as a hashable value, sorted by name."""
    return tuple(sorted((key, _frozen(value)) for key, value in options.items()))


def token_grid(image_size: tuple[int, int], patch: int, stride: int, stem: str) -> tuple[int, int]:
    """Rows and columns of patch tokens. A patch stem leaves out what its last stride does not reach, as a convolution
    does. Raises ModelConfigError for sizes that give no grid."""
    if stem == "conv":
        if stride % 4 or any(side % stride for side in image_size):
            raise ModelConfigError(
                f"a conv stem needs a stride that is a multiple of 4 and divides the image: {stride}, {image_size}"
            )
        return image_size[0] // stride, image_size[1] // stride
    if any(side < patch for side in image_size):
        raise ModelConfigError(f"image size {image_size} is smaller than one patch of {patch} pixels")
    return (image_size[0] - patch) // stride + 1, (image_size[1] - patch) // stride + 1


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
