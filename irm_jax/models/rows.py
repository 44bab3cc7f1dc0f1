"""Rows of a joint batch: blocks [R, b, ...] and rows [R*b, ...], and the instruction of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Int, Shaped

from irm_jax.models import attention
from irm_jax.models.encoders.features import ImageFeatures
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.parallel.mesh import constrain_rows

Batch = Mapping[str, Mapping[str, Array]]
"""Groups of block arrays [R, b, ...] by instruction kind, see `data_pipelines.batches.make`."""
Tree = TypeVar("Tree")


def full_precision(x: Inexact[Array, "*S"]) -> Float[Array, "*S"]:
    """bfloat16 as float32; float32 and float64 unchanged."""
    return x.astype(attention.at_least_f32(x.dtype))


def to_rows(tree: Tree) -> Tree:
    """Arrays [R, b, ...] -> [R*b, ...], rows cut over the data axes."""
    return jax.tree.map(lambda x: constrain_rows(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])), tree)


def to_blocks(tree: Tree, blocks: int) -> Tree:
    """Arrays [R*b, ...] -> [R, b, ...], blocks cut over the data axes."""
    return jax.tree.map(lambda x: constrain_rows(x.reshape(blocks, x.shape[0] // blocks, *x.shape[1:])), tree)


def join(parts: Sequence[Tree]) -> Tree:
    """Joins the rows of trees of arrays [R, b, ...] along axis 1."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def split(tree: Tree, sizes: Sequence[int]) -> list[Tree]:
    """The inverse of `join`: pieces of `sizes` rows each along axis 1."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [
        jax.tree.map(lambda x, a=start, b=start + size: x[:, a:b], tree)
        for start, size in zip(starts, sizes, strict=True)
    ]


def take_in_blocks(x: Shaped[Array, "R n *S"], index: Int[Array, "R b"]) -> Shaped[Array, "R b *S"]:
    """Each block picks rows of its own."""
    return jax.vmap(lambda rows, i: jnp.take(rows, i, axis=0))(x, index)


def take_instruction(table: Instruction, index: Int[Array, "R b"], constants: int) -> Instruction:
    """Rows of a table [R, constants + s, ...] per block: index i >= 0 is slot i, index -1-c is constant sentence c."""
    position = jnp.where(index >= 0, index + constants, -1 - index)
    return jax.tree.map(lambda x: take_in_blocks(x, position), table)


def image_tokens(image: ImageFeatures) -> Inexact[Array, "*B n D"]:
    """[..., 1+N, D]: class token and patches, which captions read of an image; part tokens are left out."""
    return jnp.concatenate([image.cls[..., None, :], image.patches], axis=-2)
