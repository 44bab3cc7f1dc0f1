"""Names of BERT (Hugging Face `BertModel`, `BertForMaskedLM`): the text encoder."""

from __future__ import annotations

from irm_jax.convert.rules import Rule, dense, norm, slots

LAYER, BLOCK = "encoder.layer.{n}", "blocks/layer_{n}"
RULES: tuple[Rule, ...] = (
    Rule("embeddings.word_embeddings.weight", "word_embedding"),
    Rule("embeddings.position_embeddings.weight", "position_embedding"),
    Rule("embeddings.token_type_embeddings.weight", "type_embedding"),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *slots(f"{LAYER}.attention.self.*", f"{BLOCK}/attention/query_key_value", "kernel", "bias"),
    *dense(f"{LAYER}.attention.output.dense", f"{BLOCK}/attention/output", "output_kernel"),
    *norm(f"{LAYER}.attention.output.LayerNorm", f"{BLOCK}/norm_attention"),
    *dense(f"{LAYER}.intermediate.dense", f"{BLOCK}/mlp/expand"),
    *dense(f"{LAYER}.output.dense", f"{BLOCK}/mlp/contract"),
    *norm(f"{LAYER}.output.LayerNorm", f"{BLOCK}/norm_mlp"),
)
LEFT: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?pooler\..*", "pooler: the CLS vector itself is the instruction feature"),
    (r"(.*\.)?embeddings\.position_ids", "a counter, not a weight"),
    (r"cls\..*", "head of BERT's pre-training tasks"),
)
ANCHOR = "embeddings.word_embeddings.weight"
"""The tensor by which a BERT is found among others."""
