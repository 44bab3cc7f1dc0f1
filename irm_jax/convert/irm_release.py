"""Names of the authors' released joint model (hwz-zju/Instruct-ReID, `PASS_Transformer_DualAttn_joint`).

Its editing transformer is a deep copy of two blocks of the image encoder. Before it is copied, each block is wrapped
for activation checkpointing, which replaces its `forward` by one bound to that very block, and the copy carries it
along. So the copies' weights, `fusion.*`, never run and never learn: the image encoder's blocks 0 and 11 do, and learn
from both uses. Outputs agree to 1e-6 only so (docs/parity.md). A version that does train the copies shows in their
norms, which start at exactly 1 and 0: `editing="auto"` takes `fusion.*` if they moved and the image encoder's blocks if
not; "fusion" and "encoder" insist.
"""

from __future__ import annotations

from irm_jax.convert import albef, bert, pass_vit, vit
from irm_jax.convert.rules import Left, Rule

IMAGE_PREFIX, TEMPLATE_PREFIX, TEXT_PREFIX = "visual_encoder.", "visual_encoder_m.", "text_encoder."
EDITING: tuple[Rule, ...] = vit.timm_blocks("fusion.{n}", vit.BLOCK)
REST: tuple[Rule, ...] = (
    Rule("feat_bn.weight", "cls_neck/scale"),
    Rule("feat_bn.running_mean", "batch_stats/cls_neck/mean"),
    Rule("feat_bn.running_var", "batch_stats/cls_neck/var"),
    Rule("fusion_feat_bn.weight", "edited_neck/scale"),
    Rule("fusion_feat_bn.running_mean", "batch_stats/edited_neck/statistics/mean", "both_streams"),
    Rule("fusion_feat_bn.running_var", "batch_stats/edited_neck/statistics/var", "both_streams"),
    Rule("classifier.weight", "head_cls", "dense"),
    Rule("classifier_f.weight", "head_person", "dense"),
    Rule("classifier_c.weight", "head_guided", "dense"),
    *albef.PROJECTIONS,
)
ZERO = ("feat_bn.bias", "fusion_feat_bn.bias")
"""Frozen at 0 there, absent here: another value is an error."""
LEFT: Left = (
    (r"text_encoder_m\..*|text_proj_m\..*", "momentum copy: ours starts as a copy of the weights"),
    (r"(image|text|idx)_queue|queue_ptr", "queue of the text-to-image loss"),
    (r"(prd_head|project)\..*", "never used there"),
    (r"visual_encoder\.fc\..*", "classifier of 1,000 classes, never used there"),
    (r"(fusion_)?feat_bn\.bias", "frozen at 0 (checked)"),
    (r"(fusion_)?feat_bn\.num_batches_tracked", "a counter, not a weight"),
    *((rf"text_encoder\.(bert\.)?{name}", why) for name, why in bert.LEFT),
    *((rf"visual_encoder\.{name}", why) for name, why in pass_vit.LEFT),
)
