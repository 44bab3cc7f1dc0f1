"""What an instruction becomes: tokens, mask and one feature, the same for a sentence and for an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from irm_jax.models import transformer

Array = jax.Array
PAD = 0


@struct.dataclass
class Instruction:
    """An encoded instruction: `tokens` [B, 1+M, D] (CLS first), `mask` bool[B, 1+M], `feature` [B, D] (the CLS).

    Nothing after the encoders knows whether it was a sentence or an image. `mask` is False on a sentence's own [PAD]
    and on what `fitted` adds; `encoded` bool[B, 1+M] only on the latter, which no encoder has seen.
    """

    tokens: Array
    mask: Array
    encoded: Array
    feature: Array

    def fitted(self, length: int) -> Instruction:
        """The same instruction in `length` tokens, so that both kinds share one shape: with masked zero tokens at the
        end, or without its last tokens (the feature has read them)."""
        missing = max(length - self.tokens.shape[1], 0)
        tokens = jnp.pad(self.tokens[:, :length], ((0, 0), (0, missing), (0, 0)))
        mask, encoded = (jnp.pad(x[:, :length], ((0, 0), (0, missing))) for x in (self.mask, self.encoded))
        return Instruction(tokens, mask, encoded, self.feature)


class TextEncoder(nn.Module):
    """BERT: word, position and type embeddings, then post-norm blocks.

    tokens i32[B, L] with 0 = [PAD] -> Instruction (L = 1 + M). Only the text-only layers (`fusion_layer` of them, 6 at
    the paper's size) live here. Matches Hugging Face `BertModel` (`BertEmbeddings`, `BertLayer`).
    """

    block: transformer.BlockConfig
    depth: int
    vocab_size: int
    max_length: int
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool) -> Instruction:
        width, dtype = self.block.width, self.block.dtype
        length = tokens.shape[1]
        if length > self.max_length:
            raise ValueError(f"{length} tokens given, but the text encoder has {self.max_length} positions")
        word = self.param("word_embedding", transformer.EMBEDDING_INIT, (self.vocab_size, width))
        position = self.param("position_embedding", transformer.EMBEDDING_INIT, (self.max_length, width))
        kind = self.param("type_embedding", transformer.EMBEDDING_INIT, (2, width))
        x = jnp.take(word, tokens, axis=0) + position[None, :length] + kind[None, :1]
        x = self.block.layer_norm("embedding_norm")(x.astype(dtype))
        x = nn.Dropout(self.block.dropout)(x, deterministic=not train)
        mask = tokens != PAD
        stack = transformer.Stack(self.block, self.depth, scan_layers=self.scan_layers, remat=self.remat, name="blocks")
        x = stack(x, mask, deterministic=not train)
        return Instruction(tokens=x, mask=mask, encoded=jnp.ones_like(mask), feature=x[:, 0])

    def word_table(self) -> Array:
        """The word embedding [V, D], which the word head shares. Exists once a sentence was encoded."""
        return self.get_variable("params", "word_embedding")


class WordHead(nn.Module):
    """BERT's head of masked language modelling: x [B, L, D], the word table [V, D] -> logits f32[B, L, V].

    Matches Hugging Face `BertLMPredictionHead`: a dense layer, GELU and LayerNorm, then the word embedding transposed.
    """

    block: transformer.BlockConfig

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        dtype = self.block.dtype
        x = nn.Dense(self.block.width, kernel_init=transformer.INIT, dtype=dtype, name="transform")(x)
        x = self.block.layer_norm("transform_norm")(transformer.gelu(x))
        bias = self.param("word_bias", nn.initializers.zeros, (table.shape[0],))
        full = transformer.at_least_f32(dtype)
        logits = jnp.einsum("bld,vd->blv", x, table.astype(dtype), preferred_element_type=full)
        return logits + bias[None, None, :]
