"""A ConvNeXt as image encoder (Liu et al., "A ConvNet for the 2020s", 2022), in one file.

Registered by one line, before the run is built:

    ENCODERS["convnext"] = ConvNeXt
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from irm_jax.models import transformer
from irm_jax.models.config import IRMConfig, ModelConfigError
from irm_jax.models.encoders.encoder import Encoder, TokenLayout
from irm_jax.models.encoders.features import IMAGENET_MEAN, IMAGENET_STD, ImageFeatures, normalize
from irm_jax.models.weight_files import EncoderWeights, Family, Ratio, Rule, Sizes, Tensors, dense, norm


@dataclasses.dataclass(frozen=True)
class Options:
    """`config.model.image_encoder_options`: blocks and channels per stage (the defaults: ConvNeXt-T)."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)


class Block(nn.Module):
    """A depthwise 7x7 convolution, a norm and an MLP, scaled per channel and added: [B, H, W, C] -> the same."""

    dtype: Any
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        rows, height, width, channels = x.shape
        branch = nn.Conv(channels, (7, 7), feature_group_count=channels, dtype=self.dtype, name="depthwise")(x)
        block = transformer.BlockConfig(channels, heads=1, dtype=self.dtype)
        branch = block.layer_norm("norm")(branch).reshape(rows, height * width, channels)
        branch = transformer.Mlp(block, name="mlp")(branch)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (channels,))
        branch = branch * scale.reshape(1, 1, channels).astype(self.dtype)
        if train and self.drop_path:
            branch = transformer.drop_rows(branch, jnp.float32(self.drop_path), self.make_rng("dropout"))
        return x + branch.reshape(x.shape)


class ConvNeXtWeights(EncoderWeights):
    """Weight files of timm's `ConvNeXt`: `python -m irm_jax.convert --kind convnext`."""

    families: Mapping[str, Family] = {
        "convnext": Family(
            {"stem.0.weight": (
                *dense("stem.0", "stem", "convolution"),
                *norm("stem.1", "stem_norm"),
                *norm("head.norm", "final_norm"),
                *(rule for stage in range(4) for rule in (
                    *norm(f"stages.{stage}.downsample.0", f"downsample_norm_{stage}"),
                    *dense(f"stages.{stage}.downsample.1", f"downsample_{stage}", "convolution"),
                    *dense(f"stages.{stage}.blocks.{{n}}.conv_dw", f"stage_{stage}_{{n}}/depthwise", "convolution"),
                    *norm(f"stages.{stage}.blocks.{{n}}.norm", f"stage_{stage}_{{n}}/norm"),
                    *dense(f"stages.{stage}.blocks.{{n}}.mlp.fc1", f"stage_{stage}_{{n}}/mlp/expand"),
                    *dense(f"stages.{stage}.blocks.{{n}}.mlp.fc2", f"stage_{stage}_{{n}}/mlp/contract"),
                    Rule(f"stages.{stage}.blocks.{{n}}.gamma", f"stage_{stage}_{{n}}/layer_scale"),
                )),
            )},
            "a ConvNeXt, in timm's names",
            left=((r"head\.fc\..*", "classifier of the pre-training data"),),
        )
    }  # fmt: skip

    def measure(self, tensors: Tensors, rules: Sequence[Rule], heads: int | None, hw_ratio: Ratio) -> dict[str, Any]:
        """Blocks and channels per stage."""
        del rules, heads, hw_ratio
        stages = tensors.depth("stages.{n}.")
        return {
            "depths": tuple(tensors.below(f"stages.{stage}.").depth("blocks.{n}") for stage in range(stages)),
            "widths": tuple(tensors[f"stages.{stage}.blocks.0.gamma"].shape[0] for stage in range(stages)),
        }

    def misfits(self, sizes: Sizes, model: IRMConfig, tower: str) -> Iterator[str]:
        """Stages of other sizes, with the key to set."""
        for name, value in dict(model.image_encoder_options).items():
            if tuple(sizes[name]) != value:
                yield f"it has {name} {sizes[name]}, the model {value}: set config.model.image_encoder_options.{name}"


class ConvNeXtModule(nn.Module):
    """Stages of `Block`s between which the map is halved; the class token is the mean of the last map."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    dtype: Any = jnp.float32
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool, class_only: bool = False) -> ImageFeatures:
        def halve(x: jax.Array, channels: int, side: int, name: str) -> jax.Array:
            return nn.Conv(channels, (side, side), (side, side), dtype=self.dtype, name=name)(x)

        def layer_norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

        x = halve(normalize(image, IMAGENET_MEAN, IMAGENET_STD, self.dtype), self.widths[0], 4, "stem")
        x = layer_norm("stem_norm")(x)
        rates = iter(transformer.linear_drop_path(self.drop_path, sum(self.depths)))
        for stage, (depth, channels) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage:
                x = halve(layer_norm(f"downsample_norm_{stage}")(x), channels, 2, f"downsample_{stage}")
            for number in range(depth):
                x = Block(self.dtype, next(rates), name=f"stage_{stage}_{number}")(x, train=train)
        final_norm = layer_norm("final_norm")
        patches = x.reshape(x.shape[0], math.prod(x.shape[1:3]), x.shape[3])
        return ImageFeatures(cls=final_norm(patches.mean(axis=1)), parts=patches[:, :0], patches=final_norm(patches))


class ConvNeXt(Encoder):
    """The entry of the registry."""

    Options: ClassVar = Options
    presets: ClassVar = {"tiny": {"depths": (1, 1, 2), "widths": (32, 64, 128)}, "base": {}}
    layouts: ClassVar = (
        (r"depthwise/kernel$", (None,)),
        (r"(stem|downsample_\d)/kernel$", (None, "fsdp")),
        (r"stage_\d_\d+/layer_scale$", (None,)),
    )
    weights: ClassVar = ConvNeXtWeights()

    @classmethod
    def build(cls, config: IRMConfig) -> ConvNeXtModule:
        own = cls.options(config)
        return ConvNeXtModule(own.depths, own.widths, jnp.dtype(config.dtype), config.drop_path)

    @classmethod
    def build_from(cls, sizes: Sizes) -> tuple[ConvNeXtModule, tuple[int, int]]:
        side = 4 * 2 ** (len(sizes["depths"]) - 1)
        return ConvNeXtModule(tuple(sizes["depths"]), tuple(sizes["widths"])), (side, side)

    @classmethod
    def tokens(cls, config: IRMConfig) -> TokenLayout:
        own = cls.options(config)
        stride = 4 * 2 ** (len(own.depths) - 1)
        if any(side % stride for side in config.image_size):
            raise ModelConfigError(f"image_size = {config.image_size} is no multiple of the stride {stride}")
        return TokenLayout(own.widths[-1], (config.image_size[0] // stride, config.image_size[1] // stride))
