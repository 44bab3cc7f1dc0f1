"""The ViT as an image encoder: what it states of itself, and the weight files that it reads. No jax here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from absl import logging

from irm_jax.models.config import ENCODER_KEYS, IRMConfig, ModelConfigError, token_grid
from irm_jax.models.encoders import positions
from irm_jax.models.encoders.encoder import Encoder, TokenLayout
from irm_jax.models.weight_files import (
    ConvertError,
    EncoderWeights,
    Family,
    Ratio,
    Reasons,
    Rule,
    Sizes,
    Tensors,
    dense,
    misfit,
    mlp_ratio,
    norm,
    size_misfits,
    slots,
    whole_heads,
)

if TYPE_CHECKING:
    from irm_jax.models.encoders.vit_module import ViTModule

BLOCK = "blocks/layer_{n}"
SCALE = "layer_scale/{n}"
"""Where the factors of layer scale stand; `fitted` multiplies them into the layers before them."""


def timm_blocks(name: str, path: str) -> tuple[Rule, ...]:
    """Rules of a block of timm's `VisionTransformer`, whose query, key and value are one layer."""
    return (
        *norm(f"{name}.norm1", f"{path}/norm_attention"),
        Rule(f"{name}.attn.qkv.weight", f"{path}/attention/query_key_value/kernel", "fused_kernel"),
        Rule(f"{name}.attn.qkv.bias", f"{path}/attention/query_key_value/bias", "fused_bias"),
        *dense(f"{name}.attn.proj", f"{path}/attention/output", "output_kernel"),
        *norm(f"{name}.norm2", f"{path}/norm_mlp"),
        *dense(f"{name}.mlp.fc1", f"{path}/mlp/expand"),
        *dense(f"{name}.mlp.fc2", f"{path}/mlp/contract"),
    )


TIMM: tuple[Rule, ...] = (
    Rule("cls_token", "special_tokens"),
    Rule("pos_embed", "special_positions", "first_position"),
    Rule("pos_embed", "grid_positions", "other_positions"),
    *dense("patch_embed.proj", "patch_embedding/projection", "convolution"),
    *timm_blocks("blocks.{n}", BLOCK),
    Rule("blocks.{n}.ls1.gamma", f"{SCALE}/attention"),
    Rule("blocks.{n}.ls2.gamma", f"{SCALE}/mlp"),
    *norm("norm", "final_norm"),
)
_LAYER = "encoder.layer.{n}"
HUGGING_FACE: tuple[Rule, ...] = (
    Rule("embeddings.cls_token", "special_tokens"),
    Rule("embeddings.position_embeddings", "special_positions", "first_position"),
    Rule("embeddings.position_embeddings", "grid_positions", "other_positions"),
    *dense("embeddings.patch_embeddings.projection", "patch_embedding/projection", "convolution"),
    *slots(f"{_LAYER}.attention.attention.*", f"{BLOCK}/attention/query_key_value", "kernel", "bias"),
    *dense(f"{_LAYER}.attention.output.dense", f"{BLOCK}/attention/output", "output_kernel"),
    *norm(f"{_LAYER}.layernorm_before", f"{BLOCK}/norm_attention"),
    *norm(f"{_LAYER}.layernorm_after", f"{BLOCK}/norm_mlp"),
    *dense(f"{_LAYER}.intermediate.dense", f"{BLOCK}/mlp/expand"),
    *dense(f"{_LAYER}.output.dense", f"{BLOCK}/mlp/contract"),
    # DINOv2
    *norm(f"{_LAYER}.norm1", f"{BLOCK}/norm_attention"),
    *norm(f"{_LAYER}.norm2", f"{BLOCK}/norm_mlp"),
    *dense(f"{_LAYER}.mlp.fc1", f"{BLOCK}/mlp/expand"),
    *dense(f"{_LAYER}.mlp.fc2", f"{BLOCK}/mlp/contract"),
    Rule(f"{_LAYER}.layer_scale1.lambda1", f"{SCALE}/attention"),
    Rule(f"{_LAYER}.layer_scale2.lambda1", f"{SCALE}/mlp"),
    *norm("layernorm", "final_norm"),
)
_LEFT: Reasons = (
    (r"(head|fc|classifier|head_dist|pre_logits)(\..*)?", "classifier of the pre-training data"),
    (r"(fc_norm)\..*", "norm of averaged tokens: the class token is read here"),
    (r"pooler\..*", "pooler: the class token itself is read"),
    (r"(embeddings\.)?mask_token", "for masked pre-training only"),
)
_REFUSED: Reasons = (
    (r".*(dist_token|distillation_token)", "a distilled DeiT: take the model without distillation"),
    (r".*(reg_token|register_tokens)", "register tokens: take the model without registers"),
    (r".*mlp\.(w12|w3|weights_in|weights_out|fc1_g|fc1_x)\..*", "a gated MLP (SwiGLU)"),
    (r".*(q_norm|k_norm)\..*", "norms of queries and keys"),
    (r"norm_pre\..*", "a norm before the first block (CLIP)"),
)
_PARTS = 3
PASS: tuple[Rule, ...] = (
    Rule("cls_token", "special_tokens", "token", 0),
    *(Rule(f"part_token{i}", "special_tokens", "token", i) for i in range(1, _PARTS + 1)),
    Rule("cls_pos", "special_positions", "token", 0),
    *(Rule(f"part{i}_pos", "special_positions", "token", i) for i in range(1, _PARTS + 1)),
    Rule("pos_embed", "grid_positions", "grid"),
    *dense("patch_embed.proj", "patch_embedding/projection", "convolution"),
    *timm_blocks("blocks.{n}", BLOCK),
    *norm("norm", "final_norm"),
)
PASS_LEFT: Reasons = (
    (r"(head|fc)(\..*)?", "classifier or projection head of the pre-training"),
    (r"gem\..*", "pooling that the method does not use"),
)
PASS_REFUSED: Reasons = (
    (r"patch_embed\.conv\..*", "a convolutional stem (stem_conv): take the model with patches"),
    (r"sie_embed", "camera or view embeddings: take the model without them"),
)


HEADS = {
    (192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16, (1536, 40): 24,
}  # fmt: skip
"""Attention heads of the published ViTs by (width, depth): Ti, S, B, L, H, and the two called giant."""


class ViTWeights(EncoderWeights):
    """Weight files of `ViT`: plain ones of one class token, and PASS's."""

    families: Mapping[str, Family] = {
        "vit": Family(
            {"patch_embed.proj.weight": TIMM, "embeddings.patch_embeddings.projection.weight": HUGGING_FACE},
            "a plain ViT, DeiT, DINO or DINOv2, in timm's or Hugging Face's names",
            _LEFT, _REFUSED, "bicubic", hw_ratio=1,
        ),
        "pass": Family(
            {"patch_embed.proj.weight": PASS}, "PASS's ViT with part tokens (teacher and backbone prefixes are found)",
            PASS_LEFT, PASS_REFUSED, "bilinear", hw_ratio=2,
        ),
    }  # fmt: skip

    def measure(self, tensors: Tensors, rules: Sequence[Rule], heads: int | None, hw_ratio: Ratio) -> dict[str, Any]:
        """Width, depth, heads, hidden, patch, grid (rows, columns) and special tokens.

        The N patch positions are rows * columns with rows = hw_ratio * columns. Where `heads` is None, it is that of
        the published ViT of this width and depth. Raises ConvertError for another one, whose heads do not show in its
        weights, and for another number of positions.
        """
        names = {rule.path: rule.name for rule in reversed(rules)}
        kernel = tensors[names["patch_embedding/projection/kernel"]]  # [D, 3, p, p]
        grid_positions = tensors[names["grid_positions"]]  # [1, N, D], with the class token's first in plain ViTs
        blocks = [rule.name for rule in rules if rule.path.endswith("mlp/expand/kernel")]
        block = next((name for name in blocks if name.replace("{n}", "0") in tensors), blocks[0])
        hidden = tensors[block.replace("{n}", "0")].shape[0]
        special = sum(rule.path == "special_tokens" for rule in rules)
        count = grid_positions.shape[1] - (special == 1)
        columns = math.isqrt(int(max(count, 0) / hw_ratio))
        if columns * columns * hw_ratio != count:
            raise ConvertError(
                f"{count} patch positions are no grid with {float(hw_ratio):g} times as many rows as columns; say "
                "--hw_ratio, or --grid ROWSxCOLUMNS (TransReID with stride 12 at 256 x 128 pixels: 21x10)"
            )
        width, depth = kernel.shape[0], tensors.depth(block)
        heads = heads if heads is not None else HEADS.get((width, depth))
        if heads is None:
            raise ConvertError(
                f"the number of attention heads does not show in the weights, and no published ViT has width {width} "
                f"and {depth} blocks; say --heads (TransReID's vit_small of 768 and 8 blocks: 8)"
            )
        return whole_heads(
            {
                "width": width, "depth": depth, "heads": heads, "hidden": hidden,
                "patch": kernel.shape[-1], "grid": (int(columns * hw_ratio), columns), "special_tokens": special,
            }
        )  # fmt: skip

    def misfits(self, sizes: Sizes, model: IRMConfig, tower: str) -> Iterator[str]:
        """What does not fit, with the key to set. Positions of another grid and other part tokens do fit."""
        name = tower.removesuffix("_encoder")  # image | template
        yield from size_misfits(sizes, model, name)
        depth = getattr(model, f"{name}_depth")
        if sizes["depth"] != depth:
            yield misfit(f"{name}_depth", sizes["depth"], depth)
        patch, stem = ("patch", "stem") if name == "image" else ("template_patch", "template_stem")
        if getattr(model, stem) != "patch":
            yield f"it has a stem of patches, the model a convolutional one: set config.model.{stem}=patch"
        if sizes["patch"] != getattr(model, patch):
            key = f"config.model.{patch}={sizes['patch']}"
            key += f" --config.model.stride={sizes['patch']}" if name == "image" else ""
            yield f"it has patches of {sizes['patch']} pixels, the model of {getattr(model, patch)}: set {key}"

    def fitted(self, arrays: Mapping[str, np.ndarray], grid: tuple[int, int], resize: str) -> dict[str, np.ndarray]:
        """The arrays with layer scale multiplied into the layers before it, and positions resized to the grid."""
        found = {}
        for path, array in arrays.items():
            if path.startswith("layer_scale/"):
                continue
            layer = re.fullmatch(r"blocks/layer_(\d+)/(attention/output|mlp/contract)/(kernel|bias)", path)
            key = f"layer_scale/{layer[1]}/{layer[2].partition('/')[0]}" if layer else ""
            found[path] = array * arrays[key] if key in arrays else array
        old = found["grid_positions"]
        if old.shape[1:3] != grid:
            logging.info("positions of patches resized from %s to %s, %s", old.shape[1:3], grid, resize)
            found["grid_positions"] = positions.resize(old, grid, resize)
        return found


class ViT(Encoder):
    """The person image encoder of the paper, PASS's ViT, and the plain ViT that encodes instruction images."""

    presets: ClassVar = {"tiny": {}, "small": {}, "base": {}}  # the sizes are keys of the preset itself
    model_keys: ClassVar = ENCODER_KEYS
    layouts: ClassVar = (
        (r"(patch_embedding/\w+|pooled_class)/kernel$", (None, "fsdp")),
        (r"(special_tokens|special_positions|grid_positions)$", (None,)),
    )
    weights: ClassVar = ViTWeights()
    sows_attention: ClassVar = True

    @classmethod
    def build(cls, config: IRMConfig) -> ViTModule:
        """The encoder of person images."""
        from irm_jax.models import transformer  # late: it imports jax
        from irm_jax.models.encoders.vit_module import ViTModule

        return ViTModule(
            transformer.image_block(config, config.image_heads), config.image_depth, config.image_size, config.patch,
            config.stride, config.stem, config.part_tokens, drop_path=config.drop_path,
            patch_dropout=config.patch_dropout, pooled_class="rows" if config.pooled_class_token else "none",
            smaller_images=True, scan_layers=config.scan_layers, remat=config.remat,
        )  # fmt: skip

    @classmethod
    def build_for_templates(cls, config: IRMConfig) -> ViTModule:
        """The encoder of instruction images: without part tokens and stochastic depth."""
        from irm_jax.models import transformer
        from irm_jax.models.encoders import features
        from irm_jax.models.encoders.vit_module import ViTModule

        cls.add_layouts()
        mean, std = features.STATISTICS[config.template_statistics]
        return ViTModule(
            transformer.image_block(config, config.template_heads), config.template_depth,
            config.instruction_image_size, config.template_patch, config.template_patch, config.template_stem,
            part_tokens=0, mean=mean, std=std, pooled_class="all" if config.pooled_class_token else "none",
            scan_layers=config.scan_layers, remat=config.remat,
        )  # fmt: skip

    @classmethod
    def build_from(cls, sizes: Sizes) -> tuple[ViTModule, tuple[int, int]]:
        """The encoder whose weights have these sizes, and the size of its images."""
        from irm_jax.models import transformer
        from irm_jax.models.encoders.vit_module import ViTModule

        rows, columns = sizes["grid"]
        size = (rows * sizes["patch"], columns * sizes["patch"])
        block = transformer.BlockConfig(sizes["width"], sizes["heads"], mlp_ratio(sizes))
        parts = sizes["special_tokens"] - 1
        return ViTModule(block, sizes["depth"], size, sizes["patch"], sizes["patch"], part_tokens=parts), size

    @classmethod
    def tokens(cls, config: IRMConfig) -> TokenLayout:
        """Shape of the output for person images. Raises ModelConfigError for sizes without a grid."""
        grid = token_grid(config.image_size, config.patch, config.stride, config.stem)
        return TokenLayout(config.width, grid, config.part_tokens)

    @classmethod
    def smaller(cls, config: IRMConfig, share: float) -> tuple[int, int]:
        """Height and width of images with a share of the grid's rows and columns, rounded to whole patches."""
        rows, columns = (round(share * side) for side in cls.tokens(config).grid)
        if not rows or not columns:
            raise ModelConfigError(f"a share of {share:g} of image_size = {config.image_size} is less than one patch")
        edge = config.patch - config.stride if config.stem == "patch" else 0  # patches that overlap
        return rows * config.stride + edge, columns * config.stride + edge
