"""Instructions as tokens, a mask and one feature, alike for a sentence and for an image; and the text encoder."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from irm_jax.models import attention, transformer

PAD = 0


@struct.dataclass
class Instruction:
    """An encoded instruction; nothing after the encoders knows whether it was a sentence or an image.

    `tokens` [B, 1+M, D]: the class token first. `mask` bool[B, 1+M]: False for a sentence's own [PAD] and for the
    tokens that `fitted` adds. `encoded` bool[B, 1+M]: False only for the latter, which no encoder has seen. `feature`
    [B, D]: the class token.
    """

    tokens: transformer.Leaf
    mask: transformer.Leaf
    encoded: transformer.Leaf
    feature: transformer.Leaf

    def fitted(self, length: int) -> Instruction:
        """The same instruction in `length` tokens, so that both kinds share one shape.

        Masked zero tokens are added at the end, or its last tokens are cut off (the feature has read them).
        """
        missing = max(length - self.tokens.shape[1], 0)
        tokens = jnp.pad(self.tokens[:, :length], ((0, 0), (0, missing), (0, 0)))
        mask, encoded = (jnp.pad(x[:, :length], ((0, 0), (0, missing))) for x in (self.mask, self.encoded))
        return Instruction(tokens, mask, encoded, self.feature)


class TextEncoder(nn.Module):
    """BERT: word, position and type embeddings, then post-norm blocks; the text-only layers, 6 at the paper's size.

    Matches Hugging Face's `BertModel` (`BertEmbeddings`, `BertLayer`).
    """

    block: transformer.BlockConfig
    depth: int
    vocab_size: int
    max_length: int
    scan_layers: bool = False
    remat: str = "none"

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], *, train: bool) -> Instruction:
        """Encodes token ids, 0 = [PAD] -> L = 1 + M tokens. Raises ValueError for more than `max_length` of them."""
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

    def word_table(self) -> Float[Array, "V D"]:
        """The word embedding, which the word head shares. It exists once a sentence was encoded."""
        return self.get_variable("params", "word_embedding")


class WordHead(nn.Module):
    """BERT's head of masked language modelling.

    Matches Hugging Face's `BertLMPredictionHead`: a dense layer, GELU and LayerNorm, then the word embedding
    transposed.
    """

    block: transformer.BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], table: Float[Array, "V D"]) -> Float[Array, "B L V"]:
        """Logits of the words of `table` at every position, in at least float32."""
        dtype = self.block.dtype
        x = nn.Dense(self.block.width, kernel_init=transformer.INIT, dtype=dtype, name="transform")(x)
        x = self.block.layer_norm("transform_norm")(transformer.gelu(x))
        bias = self.param("word_bias", nn.initializers.zeros, (table.shape[0],))
        full = attention.at_least_f32(dtype)
        logits = jnp.einsum("bld,vd->blv", x, table.astype(dtype), preferred_element_type=full)
        return logits + bias[None, None, :]
