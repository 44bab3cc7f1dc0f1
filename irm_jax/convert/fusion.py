"""Names of what reads captions and images together: BERT's layers with cross-attention, and the heads on them.

ALBEF, RaSa and the released IRM name them alike: below `text_encoder.bert.` the layers from the first with
`crossattention` on, below `text_encoder.cls.` the head of hidden words, beside them `itm_head` (ALBEF) and `mrtd_head`
(RaSa). A plain BERT has the head of hidden words too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from irm_jax.convert import bert, towers
from irm_jax.convert.rules import Left, Rule, Taken, dense, norm
from irm_jax.convert.source import ConvertError

if TYPE_CHECKING:
    from irm_jax.convert.conversion import Conversion

LAYER, BLOCK = bert.LAYER, "layer_{n}"


def _cross_rules(part: str) -> list[Rule]:
    """The rules of a layer's query, key or value of cross-attention."""
    name, path = f"{LAYER}.crossattention.self.{part}", f"{BLOCK}/cross_attention/{part}"
    return [
        Rule(f"{name}.weight", f"{path}/kernel", "cross_kernel"),
        Rule(f"{name}.bias", f"{path}/bias", "cross_bias"),
    ]


_LAYERS: tuple[Rule, ...] = (
    *bert.layer_rules(BLOCK),
    *(rule for part in ("query", "key", "value") for rule in _cross_rules(part)),
    *dense(f"{LAYER}.crossattention.output.dense", f"{BLOCK}/cross_attention/output", "output_kernel"),
    *norm(f"{LAYER}.crossattention.output.LayerNorm", f"{BLOCK}/norm_cross_attention"),
)
WORD_HEAD: tuple[Rule, ...] = (
    *dense("cls.predictions.transform.dense", "transform"),
    *norm("cls.predictions.transform.LayerNorm", "transform_norm"),
    Rule("cls.predictions.bias", "word_bias"),
    Rule("cls.predictions.decoder.bias", "word_bias"),
)
TIED = Rule("cls.predictions.decoder.weight", "text_encoder/word_embedding")
"""The table of the word head is the word embedding."""
HEADS = {"matching_head": "itm_head", "replaced_head": "mrtd_head"}
"""Heads of two classes: 1 means that caption and image belong together, that another word stands here."""


def layer_rules(first: int) -> tuple[Rule, ...]:
    """The rules of a text encoder's layers from number `first` on, which are 0, 1, ... here."""
    return tuple(dataclasses.replace(rule, first=first) for rule in _LAYERS)


def head_rules(name: str) -> tuple[Rule, ...]:
    """The rules of a head of two classes."""
    return (Rule(f"{HEADS[name]}.weight", "kernel", "dense"), Rule(f"{HEADS[name]}.bias", "bias"))


def add_layers(conversion: Conversion, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
    """Takes the layers with cross-attention of the BERT below `prefix`, if it has any. Raises ConvertError."""
    text = conversion.towers["text_encoder"]
    first = text["depth"]
    numbers = {number for number, _ in towers.text_layers(tensors, prefix) if number >= first}
    if not numbers:
        return
    if numbers != set(range(first, first + len(numbers))):
        raise ConvertError(f"the layers {prefix}encoder.layer.N with cross-attention are numbered {sorted(numbers)}; "
                           f"expected {first}, {first + 1}, ... without a gap")  # fmt: skip
    sizes = {"width": text["width"], "depth": len(numbers), "heads": text["heads"], "hidden": text["hidden"]}
    conversion.add("fusion_encoder", layer_rules(first), tensors, prefix, sizes, towers.fusion_shapes(sizes))


def add_word_head(conversion: Conversion, tensors: Mapping[str, np.ndarray], prefix: str) -> Left:
    """Takes the head of hidden words of the text encoder whose `bert.` and `cls.` stand below `prefix`, if it has one.

    Returns why it was left, as pairs for `Conversion.account`, where its table is not the word embedding.
    """
    if not any(name.startswith(f"{prefix}cls.predictions.") for name in tensors):
        return ()
    table = tensors.get(prefix + TIED.name)
    if table is not None and not np.array_equal(table, tensors[f"{prefix}bert.{bert.ANCHOR}"]):
        why = "head of hidden words with a table of its own: here it is the word embedding"
        return ((r"(.*\.)?cls\.predictions\..*", why),)
    text = conversion.towers["text_encoder"]
    sizes = {"width": text["width"], "vocab_size": text["vocab_size"]}
    conversion.add("word_head", WORD_HEAD, tensors, prefix, sizes, towers.word_head_shapes(sizes))
    if table is not None:
        name, path = prefix + TIED.name, TIED.path
        conversion.taken.append(Taken(name, path, TIED.layout, TIED.slot, tuple(table.shape), str(table.dtype)))
    return ()


def add_head(conversion: Conversion, name: str, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
    """Takes the head `name` of two classes below `prefix`, if it is there."""
    if f"{prefix}{HEADS[name]}.weight" in tensors:
        width = conversion.towers["text_encoder"]["width"]
        shapes = {"kernel": (width, 2), "bias": (2,)}
        conversion.add(name, head_rules(name), tensors, prefix, {"width": width}, shapes)
