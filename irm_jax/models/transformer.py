"""Transformer blocks shared by all encoders: attention, MLP, pre-norm (ViT) and post-norm (BERT) blocks, and stacks.

Arrays are [B, N, D]: rows, tokens, width. Attention runs in the layout [B, H, N, d], in which a CPU computes batched
products at twice the rate of [B, N, H, d]; accelerators do not differ. Parameters are float32; `dtype` is the dtype of
the computation.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from irm_jax.models import attention, dense
from irm_jax.models.config import IRMConfig
from irm_jax.parallel.mesh import constrain_first_axis

if TYPE_CHECKING:
    Leaf = jax.Array
else:
    Leaf = Any
"""A field of a tree of arrays. Under `jax.eval_shape`, and in a tree of layouts, it holds a shape or a sharding."""
_KEPT = {
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
EMBEDDING_INIT = nn.initializers.truncated_normal(stddev=0.02)
INIT = nn.initializers.xavier_uniform()
"""For dense layers, as in the original ViT: a deviation of 0.02 everywhere lets narrow models collapse."""


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes and options of a block. `norm_first`: pre-norm (ViT) if True, post-norm (BERT) if False."""

    width: int
    heads: int
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    norm_first: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"model width {self.width} is not divisible by {self.heads} attention heads")

    def layer_norm(self, name: str) -> nn.LayerNorm:
        """A LayerNorm with the block's epsilon and dtype."""
        return nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name=name)


def image_block(config: IRMConfig, heads: int) -> BlockConfig:
    """Blocks of an image stream, as a ViT has them: pre-norm with epsilon 1e-6, no dropout."""
    return BlockConfig(
        config.width, heads, config.mlp_ratio, layer_norm_eps=1e-6, norm_first=True, dtype=jnp.dtype(config.dtype)
    )


def text_block(config: IRMConfig) -> BlockConfig:
    """Blocks of a sentence, as BERT has them: post-norm with epsilon 1e-12, with dropout."""
    return BlockConfig(
        config.width, config.text_heads, config.mlp_ratio, layer_norm_eps=1e-12, norm_first=False,
        dropout=config.text_dropout, dtype=jnp.dtype(config.dtype),
    )  # fmt: skip


def _qkv_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Applies `INIT` to query, key and value separately -> [D, 3, H, d]."""
    width = shape[0]
    parts = [INIT(k, (width, width), dtype) for k in jax.random.split(key, shape[1])]
    return jnp.stack(parts, axis=1).reshape(shape)


def gelu(x: Array) -> Array:
    """Exact GELU, x * (1 + erf(x / sqrt 2)) / 2, as PyTorch computes it.

    `jax.nn.gelu` uses erfc, for the relative error of small values. In float32 that matters below 1e-7 alone, and takes
    twice the time on a CPU; in bfloat16 `1 + erf` is off by a factor of 2 already at x = -3.
    """
    if x.dtype == jnp.bfloat16:
        return jax.nn.gelu(x, approximate=False)
    return x * (0.5 * (1.0 + jax.lax.erf(x * jnp.asarray(2.0**-0.5, x.dtype))))


def _dense(features: int | tuple[int, ...], dtype: Any, name: str, **options: Any) -> nn.DenseGeneral:
    return nn.DenseGeneral(features, kernel_init=INIT, dtype=dtype, dot_general=dense.product, name=name, **options)


class QueryKeyValue(nn.Module):
    """Projects tokens to query, key and value, with one kernel [D, 3, H, d] but three products.

    After one product that is split, the backward pass pads and adds three copies (an attention layer's gradient takes
    1.6 to 2.2 times as long on a CPU), and queries that are not read are computed.
    """

    config: BlockConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], queries: int | None
    ) -> tuple[Float[Array, "B H Q d"], Float[Array, "B H N d"], Float[Array, "B H N d"]]:
        """Returns the query of the first Q = `queries` tokens (all if None), and key and value of all tokens."""
        c = self.config
        head_width = c.width // c.heads
        kernel = self.param("kernel", _qkv_init, (c.width, 3, c.heads, head_width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (3, c.heads, head_width), jnp.float32)
        x, kernel, bias = x.astype(c.dtype), kernel.astype(c.dtype), bias.astype(c.dtype)

        def project(rows: Array, part: int) -> Array:
            weight, shift = kernel[:, part].reshape(c.width, c.width), bias[part].reshape(1, 1, c.width)
            heads = dense.product(rows, weight, (((2,), (0,)), ((), ()))) + shift
            return constrain_first_axis(jnp.swapaxes(heads.reshape(*rows.shape[:2], c.heads, head_width), 1, 2))

        return project(x[:, :queries], 0), project(x, 1), project(x, 2)


def _weight_dropout(rate: float, *, deterministic: bool) -> attention.Drop | None:
    """Dropout of attention weights; None where it does nothing."""
    return partial(nn.Dropout(rate), deterministic=False) if rate and not deterministic else None


class Attention(nn.Module):
    """Multi-head self-attention with biases on query, key, value and output.

    Sows `attention` f32[B, H, Q, N] into `intermediates` when that collection is mutable. Matches timm's `Attention`
    and Hugging Face's `BertSelfAttention` (kernels reshaped to [D, 3, H, d] and [H, d, D]).
    """

    config: BlockConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], mask: Bool[Array, "B N"] | None, *, queries: int | None, deterministic: bool
    ) -> Float[Array, "B Q D"]:
        """Computes the first Q = `queries` tokens (all if None); those whose `mask` is False are not attended to."""
        c = self.config
        query, key, value = QueryKeyValue(c, name="query_key_value")(x, queries)
        query = query * jnp.asarray((c.width // c.heads) ** -0.5, c.dtype)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", attention.softmax(attention.attention_scores(query, key, mask)))
        mixed = attention.mix(query, key, value, mask, _weight_dropout(c.dropout, deterministic=deterministic))
        return _dense(c.width, c.dtype, "output", axis=(-2, -1))(mixed)


class CrossAttention(nn.Module):
    """Multi-head attention to every token of a context.

    Matches Hugging Face's `BertAttention` with `is_cross_attention` (kernels reshaped to [D, H, d] and [H, d, D]).
    """

    config: BlockConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N D"], context: Float[Array, "B K E"], *, deterministic: bool
    ) -> Float[Array, "B N D"]:
        c = self.config
        head_width = c.width // c.heads

        def project(rows: Array, name: str) -> Array:
            heads = _dense((c.heads, head_width), c.dtype, name)(rows)
            return constrain_first_axis(jnp.swapaxes(heads, 1, 2))

        query = project(x, "query") * jnp.asarray(head_width**-0.5, c.dtype)
        key, value = project(context, "key"), project(context, "value")
        mixed = attention.mix(query, key, value, None, _weight_dropout(c.dropout, deterministic=deterministic))
        return _dense(c.width, c.dtype, "output", axis=(-2, -1))(mixed)


class Mlp(nn.Module):
    """Two dense layers with exact GELU between them."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        c = self.config
        hidden = _dense(int(c.width * c.mlp_ratio), c.dtype, "expand")(x)
        hidden = gelu(constrain_first_axis(hidden))
        return _dense(c.width, c.dtype, "contract")(hidden)


def with_remat(block: type[nn.Module], remat: str, **options: Any) -> type[nn.Module]:
    """The block with `remat`, one of `models.config.REMAT`. Raises KeyError for another name."""
    return block if remat == "none" else nn.remat(block, policy=_KEPT[remat], **options)


class Block(nn.Module):
    """One transformer block, pre-norm or post-norm, with stochastic depth.

    With `queries` only that many first tokens are computed, the others are keys alone: in a last block, only the
    tokens that are read are paid for. With a `context` (of another modality, none of it masked) cross-attention
    follows the self-attention, as in ALBEF's `BertLayer` with `has_cross_attention`.
    """

    config: BlockConfig
    stochastic_depth: bool = False
    queries: int | None = None
    deterministic: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None,
        drop_path: Float[Array, ""],
        context: Float[Array, "B K E"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Returns [B, Q, D] with Q = `queries` or N. `drop_path`: rate of stochastic depth."""
        c = self.config
        self_attention = Attention(c, name="attention")
        mlp = Mlp(c, name="mlp")
        norm_attention, norm_mlp = c.layer_norm("norm_attention"), c.layer_norm("norm_mlp")

        def residual(skip: Array, branch: Array) -> Array:
            branch = nn.Dropout(c.dropout)(branch, deterministic=self.deterministic)
            if self.stochastic_depth and not self.deterministic:
                branch = drop_rows(branch, drop_path, self.make_rng("dropout"))
            return constrain_first_axis(skip + branch)

        attended = self_attention(
            norm_attention(x) if c.norm_first else x, mask, queries=self.queries, deterministic=self.deterministic
        )
        x = residual(x[:, : self.queries], attended)
        if not c.norm_first:
            x = norm_attention(x)
        if context is not None:
            norm_cross = c.layer_norm("norm_cross_attention")
            crossed = CrossAttention(c, name="cross_attention")(
                norm_cross(x) if c.norm_first else x, context, deterministic=self.deterministic
            )
            x = residual(x, crossed)
            x = x if c.norm_first else norm_cross(x)
        if c.norm_first:
            return residual(x, mlp(norm_mlp(x)))
        return norm_mlp(residual(x, mlp(x)))


class _ScanBody(nn.Module):
    """`Block` in the (carry, inputs) -> (carry, outputs) form of a scan."""

    config: BlockConfig
    stochastic_depth: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, drop_path: Array, context: Array | None) -> tuple[Array, None]:
        block = Block(self.config, self.stochastic_depth, None, self.deterministic, name="block")
        return block(x, mask, drop_path, context), None


class Stack(nn.Module):
    """`depth` blocks in a row.

    `drop_path`: rate of stochastic depth per block. `scan_layers` stacks the blocks' parameters on a leading axis and
    compiles one block. `remat`: one of `models.config.REMAT`.
    """

    config: BlockConfig
    depth: int
    drop_path: tuple[float, ...] | None = None
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N D"],
        mask: Bool[Array, "B N"] | None = None,
        context: Float[Array, "B K E"] | None = None,
        *,
        queries: int | None = None,
        deterministic: bool,
    ) -> Float[Array, "B Q D"]:
        """Returns the first Q = `queries` tokens (all if None); without a scan the last block computes no others."""
        rates = self.drop_path or (0.0,) * self.depth
        if len(rates) != self.depth:
            raise ValueError(f"{len(rates)} drop-path rates for {self.depth} blocks")
        stochastic = any(rate > 0 for rate in rates)
        if self.scan_layers:
            scanned = nn.scan(
                with_remat(_ScanBody, self.remat, prevent_cse=False),
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, 0, nn.broadcast),
                length=self.depth,
            )
            layers = scanned(self.config, stochastic, deterministic, name="layers")
            return layers(x, mask, jnp.asarray(rates, jnp.float32), context)[0][:, :queries]
        block = with_remat(Block, self.remat)
        for i, rate in enumerate(rates):
            own = queries if i == self.depth - 1 else None
            layer = block(self.config, stochastic, own, deterministic, name=f"layer_{i}")
            x = layer(x, mask, jnp.float32(rate), context)
        return x


def take_tokens(tokens: Float[Array, "B N D"], index: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """Each row picks tokens of its own; the numbers are within the array."""
    return constrain_first_axis(jnp.take_along_axis(tokens, index[:, :, None], axis=1, mode="promise_in_bounds"))


def drop_rows(branch: Float[Array, "B N D"], rate: Float[Array, ""], key: Array) -> Float[Array, "B N D"]:
    """Stochastic depth: sets each row to 0 with probability `rate`, and divides the others by 1 - rate."""
    keep = 1.0 - rate  # f32: rounded to bf16, a draw near 1 would drop rows at rate 0 as well
    draw = jax.random.uniform(key, (branch.shape[0], 1, 1))
    return jnp.where(draw < keep, branch / keep.astype(branch.dtype), jnp.zeros((), branch.dtype))


def linear_drop_path(rate: float, depth: int) -> tuple[float, ...]:
    """Rates of stochastic depth per block, rising linearly from 0 at the first to `rate` at the last (timm's rule)."""
    return tuple(rate * i / max(depth - 1, 1) for i in range(depth))
