"""ALBEF: a BERT whose last layers read the image, a plain ViT, and heads; the released IRM names these alike."""

from __future__ import annotations

from irm_jax.convert import bert, image
from irm_jax.convert.conversion import Conversion, Options, Tower, find_tower
from irm_jax.convert.source import Source
from irm_jax.models.encoders import vit
from irm_jax.models.weight_files import Reasons, Rule, Tensors, dense

TEXT = "text_encoder."  # below it `bert.` and `cls.`
IMAGE, MOMENTUM_IMAGE = "visual_encoder.", "visual_encoder_m."
PROJECTIONS: tuple[Rule, ...] = (
    *dense("vision_proj", "image_projection"),
    *dense("text_proj", "text_projection"),
    Rule("temp", "temperature"),
)
"""Into the space in which captions are compared with images."""
HEADS = {"matching_head": "itm_head", "replaced_head": "mrtd_head"}
"""Heads of two classes, ALBEF's and RaSa's: class 1 means that caption and image belong together, or that another word
stands here."""
_PLAIN = vit.ViTWeights.families["vit"]
_LEFT: Reasons = (
    (r"(text_encoder|visual_encoder|vision_proj|text_proj)_m\..*", "momentum copy"),
    (r"(image|text|idx)_queue|queue_ptr", "queue of the pre-training"),
    *((rf"text_encoder\.(bert\.)?{name}", why) for name, why in bert.LEFT),
    *((rf"visual_encoder\.{name}", why) for name, why in _PLAIN.left),
)


def head_rules(name: str) -> tuple[Rule, ...]:
    """Rules of a head of two classes."""
    return (Rule(f"{HEADS[name]}.weight", "kernel", "dense"), Rule(f"{HEADS[name]}.bias", "bias"))


def read(source: Source, options: Options) -> Conversion:
    """Converts text encoder, fusion layers, heads and image encoder. Raises ConvertError."""
    anchor = f"{IMAGE}patch_embed.proj.weight"
    tensors, _ = find_tower(source.tensors, (anchor,), options.prefix)
    conversion = Conversion("albef", _PLAIN.resize, sentence_sep=False)
    left = add_text_and_fusion(conversion, tensors, options.heads)
    own = tensors.below(MOMENTUM_IMAGE if options.momentum else IMAGE)
    conversion.add(image.person_tower(own, vit.TIMM, options, _PLAIN), vit.TIMM, own)
    if options.momentum:
        left += ((r"visual_encoder\..*", "the momentum copy was asked for"),)
    conversion.add_rest(PROJECTIONS, tensors, {})
    conversion.account(tensors, (*left, *_LEFT))
    return conversion


def add_text_and_fusion(conversion: Conversion, tensors: Tensors, heads: int | None) -> Reasons:
    """Takes the text encoder of a whole model, its fusion layers and their heads; returns why parts are left out.

    `heads`: of attention, where the width is none of `bert.HEADS`.
    """
    words = tensors.below(f"{TEXT}bert.")
    if bert.ANCHOR in words:
        heads = bert.HEADS.get(words[bert.ANCHOR].shape[1], heads)
    bert.add_text(conversion, words, heads)
    bert.add_fusion(conversion, words)
    for name in HEADS:
        if f"{HEADS[name]}.weight" in tensors:
            width = conversion.towers["text_encoder"]["width"]
            tower = Tower(name, {"width": width}, {"kernel": (width, 2), "bias": (2,)})
            conversion.add(tower, head_rules(name), tensors)
    return bert.add_word_head(conversion, tensors.below(TEXT))
