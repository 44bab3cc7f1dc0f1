"""Names of BERT (Hugging Face `BertModel`, `BertForMaskedLM`): the text encoder."""

from __future__ import annotations

from irm_jax.convert.rules import Left, Rule, dense, norm, slots

LAYER = "encoder.layer.{n}"


def layer_rules(path: str) -> list[Rule]:
    """The rules of a layer: self-attention and MLP."""
    return [
        *slots(f"{LAYER}.attention.self.*", f"{path}/attention/query_key_value", "kernel", "bias"),
        *dense(f"{LAYER}.attention.output.dense", f"{path}/attention/output", "output_kernel"),
        *norm(f"{LAYER}.attention.output.LayerNorm", f"{path}/norm_attention"),
        *dense(f"{LAYER}.intermediate.dense", f"{path}/mlp/expand"),
        *dense(f"{LAYER}.output.dense", f"{path}/mlp/contract"),
        *norm(f"{LAYER}.output.LayerNorm", f"{path}/norm_mlp"),
    ]


RULES: tuple[Rule, ...] = (
    Rule("embeddings.word_embeddings.weight", "word_embedding"),
    Rule("embeddings.position_embeddings.weight", "position_embedding"),
    Rule("embeddings.token_type_embeddings.weight", "type_embedding"),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *layer_rules("blocks/layer_{n}"),
)
LEFT: Left = (
    (r"(.*\.)?pooler\..*", "pooler: the CLS vector itself is the instruction feature"),
    (r"(.*\.)?embeddings\.position_ids", "a counter, not a weight"),
    (r"cls\.seq_relationship\..*", "does a sentence follow another: no task here"),
)
ANCHOR = "embeddings.word_embeddings.weight"
"""The tensor by which a BERT is found among others."""
MEASURED = ("embeddings.position_embeddings.weight", "encoder.layer.0.intermediate.dense.weight")
"""Beside it, the tensors that its sizes are read off."""
