"""Names of ALBEF: a BERT whose last layers read the image, and a plain ViT."""

from __future__ import annotations

from irm_jax.convert import bert, vit

TEXT_PREFIX = "text_encoder.bert."
IMAGE_PREFIX, MOMENTUM_IMAGE_PREFIX = "visual_encoder.", "visual_encoder_m."
FUSION = (
    r"text_encoder\.bert\.encoder\.layer\.\d+\..*",
    "a layer with cross-attention: the text encoder has its text-only layers",
)
LEFT: tuple[tuple[str, str], ...] = (
    FUSION,
    (r"text_encoder\.cls\..*", "masked-word head: the model has none"),
    (r"(text_encoder|visual_encoder|vision_proj|text_proj)_m\..*", "momentum copy"),
    (r"(image|text|idx)_queue|queue_ptr", "queue of the pre-training"),
    (r"(vision|text)_proj\..*|temp", "projection to the pre-training's common space"),
    (r"itm_head\..*", "matching head: the model has none"),
    *((rf"text_encoder\.bert\.{name}", why) for name, why in bert.LEFT),
    *((rf"visual_encoder\.{name}", why) for name, why in vit.LEFT),
)
