"""The towers of a conversion: sizes read off the weights, and the parameters that a module of those sizes has."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.convert.source import ConvertError
from irm_jax.models import transformer
from irm_jax.models.editing_transformer import EditingTransformer
from irm_jax.models.encoders.vit import ImageEncoder
from irm_jax.models.instruction_encoder import Instruction, TextEncoder, WordHead
from irm_jax.parallel.rules import path_string

Tensors = Mapping[str, np.ndarray]


def text_sizes(tensors: Tensors, prefix: str, heads: int | None) -> dict[str, Any]:
    """Width, depth, heads, hidden, vocab_size, max_length of the BERT below `prefix`.

    Its depth is that of the layers before the first one with cross-attention. Raises ConvertError without `heads`:
    they do not show in the weights.
    """
    words = tensors[f"{prefix}embeddings.word_embeddings.weight"]
    found = text_layers(tensors, prefix)
    fusion = min((n for n, rest in found if rest.startswith("crossattention")), default=math.inf)
    depth = len({n for n, _ in found if n < fusion})
    hidden = tensors[f"{prefix}encoder.layer.0.intermediate.dense.weight"].shape[0]
    sizes = {
        "width": words.shape[1], "depth": depth, "heads": heads, "hidden": hidden, "vocab_size": words.shape[0],
        "max_length": tensors[f"{prefix}embeddings.position_embeddings.weight"].shape[0],
    }  # fmt: skip
    if heads is None:
        raise ConvertError(f"the number of attention heads does not show in the weights {sizes}; say --heads")
    return _whole_heads(sizes)


def text_layers(tensors: Tensors, prefix: str) -> list[tuple[int, str]]:
    """(number, rest of the name) of every tensor in a layer of the BERT below `prefix`."""
    layer = re.compile(re.escape(prefix) + r"encoder\.layer\.(\d+)\.(.*)")
    return [(int(m[1]), m[2]) for m in map(layer.fullmatch, tensors) if m]


def image_sizes(
    kernel: np.ndarray, positions: np.ndarray, depth: int, hidden: int, special: int, in_grid: int,
    heads: int | None, ratio: int,
) -> dict[str, Any]:  # fmt: skip
    """Width, depth, heads, hidden, patch, grid (rows, columns) and special tokens of a ViT.

    kernel [D, 3, p, p]; positions [1, in_grid + N, D], N = rows * columns and rows = ratio * columns. Without `heads`
    each has 64 floats, as in every common ViT up to the large one. Raises ConvertError for another number of patches.
    """
    width, patch = kernel.shape[0], kernel.shape[-1]
    count = positions.shape[1] - in_grid
    columns = math.isqrt(max(count, 0) // ratio)
    if columns * columns * ratio != count:
        raise ConvertError(
            f"{count} patch positions are no grid with {ratio} times as many rows as columns; say --hw_ratio"
        )
    return _whole_heads(
        {
            "width": width, "depth": depth, "heads": heads or width // 64, "hidden": hidden, "patch": patch,
            "grid": (columns * ratio, columns), "special_tokens": special,
        }
    )  # fmt: skip


def _whole_heads(sizes: dict[str, Any]) -> dict[str, Any]:
    if not sizes["heads"] or sizes["width"] % sizes["heads"]:
        raise ConvertError(f"a width of {sizes['width']} has no {sizes['heads']} equal heads; say --heads")
    return sizes


def text_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the text encoder of these sizes, by path."""
    module = TextEncoder(_block(sizes, norm_first=False), sizes["depth"], sizes["vocab_size"], sizes["max_length"])
    return _shapes(lambda: module.init(jax.random.key(0), jnp.ones((1, 1), jnp.int32), train=False))


def fusion_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the layers in which captions read images, by path."""
    x, mask = jnp.zeros((1, 1, sizes["width"])), jnp.ones((1, 1), bool)
    module = transformer.Stack(_block(sizes, norm_first=False), sizes["depth"])
    return _shapes(lambda: module.init(jax.random.key(0), x, mask, x, deterministic=True))


def word_head_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the head of hidden words, by path."""
    x, table = (jnp.zeros((*shape, sizes["width"])) for shape in ((1, 1), (sizes["vocab_size"],)))
    module = WordHead(transformer.BlockConfig(width=sizes["width"], heads=1, norm_first=False))
    return _shapes(lambda: module.init(jax.random.key(0), x, table))


def image_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the image encoder of these sizes, by path."""
    rows, columns = sizes["grid"]
    size = (rows * sizes["patch"], columns * sizes["patch"])
    module = ImageEncoder(
        _block(sizes), sizes["depth"], size, sizes["patch"], sizes["patch"], part_tokens=sizes["special_tokens"] - 1
    )
    return _shapes(lambda: module.init(jax.random.key(0), jnp.zeros((1, *size, 3), jnp.uint8), train=False))


def editing_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the editing transformer of these sizes, by path."""
    tokens = jnp.zeros((1, 2, sizes["width"]))
    every = jnp.ones((1, 2), bool)
    instruction = Instruction(tokens, every, every, tokens[:, 0])
    module = EditingTransformer(_block(sizes), sizes["depth"])
    return _shapes(lambda: module.init(jax.random.key(0), tokens[:, 0], tokens, instruction, train=False))


def _block(sizes: Mapping[str, Any], *, norm_first: bool = True) -> transformer.BlockConfig:
    return transformer.BlockConfig(
        width=sizes["width"], heads=sizes["heads"], norm_first=norm_first,
        mlp_ratio=(sizes["hidden"] + 0.5) / sizes["width"],  # whatever the rounding, the block's hidden width
    )  # fmt: skip


def _shapes(make: Any) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(make)["params"]
    return {path_string(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
