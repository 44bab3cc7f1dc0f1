"""Names of PASS's ViT (class `TransReID`): part tokens, each special token with a position of its own."""

from __future__ import annotations

from irm_jax.convert import vit
from irm_jax.convert.rules import Left, Rule, dense, norm

PARTS = 3
RULES: tuple[Rule, ...] = (
    Rule("cls_token", "special_tokens", "token", 0),
    *(Rule(f"part_token{i}", "special_tokens", "token", i) for i in range(1, PARTS + 1)),
    Rule("cls_pos", "special_positions", "token", 0),
    *(Rule(f"part{i}_pos", "special_positions", "token", i) for i in range(1, PARTS + 1)),
    Rule("pos_embed", "grid_positions", "grid"),
    *dense("patch_embed.proj", "patch_embedding/projection", "convolution"),
    *vit.timm_blocks("blocks.{n}", vit.BLOCK),
    *norm("norm", "final_norm"),
)
LEFT: Left = (
    (r"(head|fc)(\..*)?", "classifier or projection head of the pre-training"),
    (r"gem\..*", "pooling that the method does not use"),
)
REFUSED: Left = (
    (r"patch_embed\.conv\..*", "a convolutional stem (stem_conv): take the model with patches"),
    (r"sie_embed", "camera or view embeddings: take the model without them"),
)
