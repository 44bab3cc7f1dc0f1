"""Names of plain vision transformers: timm (ViT, DeiT, DINO, DINOv2, and ALBEF's), and Hugging Face's of the same."""

from __future__ import annotations

from irm_jax.convert.rules import Left, Rule, dense, norm, slots

BLOCK = "blocks/layer_{n}"
SCALE = "layer_scale/{n}"
"""Where the factors of layer scale are kept; at a warm start they are multiplied into the layers before them."""


def timm_blocks(name: str, path: str) -> tuple[Rule, ...]:
    """The rules of a block of timm's `VisionTransformer`, whose qkv is one layer."""
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
LEFT: Left = (
    (r"(head|fc|classifier|head_dist|pre_logits)(\..*)?", "classifier of the pre-training data"),
    (r"(fc_norm)\..*", "norm of averaged tokens: the class token is read here"),
    (r"pooler\..*", "pooler: the class token itself is read"),
    (r"(embeddings\.)?mask_token", "for masked pre-training only"),
)
REFUSED: Left = (
    (r".*(dist_token|distillation_token)", "a distilled DeiT: take the model without distillation"),
    (r".*(reg_token|register_tokens)", "register tokens: take the model without registers"),
    (r".*mlp\.(w12|w3|weights_in|weights_out|fc1_g|fc1_x)\..*", "a gated MLP (SwiGLU)"),
    (r".*(q_norm|k_norm)\..*", "norms of queries and keys"),
    (r"norm_pre\..*", "a norm before the first block (CLIP)"),
)
"""What cannot be left out without computing something else."""
ANCHORS = {"patch_embed.proj.weight": TIMM, "embeddings.patch_embeddings.projection.weight": HUGGING_FACE}
