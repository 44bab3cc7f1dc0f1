"""Names of ALBEF: a BERT whose last layers read the image, and a plain ViT."""

from __future__ import annotations

from irm_jax.convert import bert, vit
from irm_jax.convert.rules import Left, Rule, dense

TEXT_PREFIX = "text_encoder."  # below it `bert.` and `cls.`
IMAGE_PREFIX, MOMENTUM_IMAGE_PREFIX = "visual_encoder.", "visual_encoder_m."
PROJECTIONS: tuple[Rule, ...] = (
    *dense("vision_proj", "image_projection"),
    *dense("text_proj", "text_projection"),
    Rule("temp", "temperature"),
)
"""Into the space in which captions are compared with images."""
LEFT: Left = (
    (r"(text_encoder|visual_encoder|vision_proj|text_proj)_m\..*", "momentum copy"),
    (r"(image|text|idx)_queue|queue_ptr", "queue of the pre-training"),
    *((rf"text_encoder\.(bert\.)?{name}", why) for name, why in bert.LEFT),
    *((rf"visual_encoder\.{name}", why) for name, why in vit.LEFT),
)
