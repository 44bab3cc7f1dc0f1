"""BERT (Hugging Face `BertModel`, `BertForMaskedLM`): the text encoder, its fusion layers, and its word head.

ALBEF, RaSa and the released IRM name these alike. The layers stand below `bert.`; those with `crossattention` are the
fusion layers. The word head stands below `cls.`, in a plain BERT too.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.convert.conversion import Conversion, Options, Taken, Tower, find_tower, parameter_shapes, refuse
from irm_jax.convert.source import Source
from irm_jax.models import transformer
from irm_jax.models.instruction_encoder import TextEncoder, WordHead
from irm_jax.models.weight_files import (
    ConvertError,
    Reasons,
    Rule,
    Sizes,
    Tensors,
    dense,
    mlp_ratio,
    norm,
    slots,
    whole_heads,
)

_LAYER, _FUSION_LAYER = "encoder.layer.{n}", "layer_{n}"


def _layer_rules(path: str) -> list[Rule]:
    """Rules of a layer's self-attention and MLP."""
    return [
        *slots(f"{_LAYER}.attention.self.*", f"{path}/attention/query_key_value", "kernel", "bias"),
        *dense(f"{_LAYER}.attention.output.dense", f"{path}/attention/output", "output_kernel"),
        *norm(f"{_LAYER}.attention.output.LayerNorm", f"{path}/norm_attention"),
        *dense(f"{_LAYER}.intermediate.dense", f"{path}/mlp/expand"),
        *dense(f"{_LAYER}.output.dense", f"{path}/mlp/contract"),
        *norm(f"{_LAYER}.output.LayerNorm", f"{path}/norm_mlp"),
    ]


def _cross_rules(part: str) -> list[Rule]:
    """Rules of the query, key or value of a layer's cross-attention."""
    name, path = f"{_LAYER}.crossattention.self.{part}", f"{_FUSION_LAYER}/cross_attention/{part}"
    return [
        Rule(f"{name}.weight", f"{path}/kernel", "cross_kernel"),
        Rule(f"{name}.bias", f"{path}/bias", "cross_bias"),
    ]


RULES: tuple[Rule, ...] = (
    Rule("embeddings.word_embeddings.weight", "word_embedding"),
    Rule("embeddings.position_embeddings.weight", "position_embedding"),
    Rule("embeddings.token_type_embeddings.weight", "type_embedding"),
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *_layer_rules("blocks/layer_{n}"),
)
_FUSION_RULES: tuple[Rule, ...] = (
    *_layer_rules(_FUSION_LAYER),
    *(rule for part in ("query", "key", "value") for rule in _cross_rules(part)),
    *dense(f"{_LAYER}.crossattention.output.dense", f"{_FUSION_LAYER}/cross_attention/output", "output_kernel"),
    *norm(f"{_LAYER}.crossattention.output.LayerNorm", f"{_FUSION_LAYER}/norm_cross_attention"),
)
WORD_HEAD: tuple[Rule, ...] = (
    *dense("cls.predictions.transform.dense", "transform"),
    *norm("cls.predictions.transform.LayerNorm", "transform_norm"),
    Rule("cls.predictions.bias", "word_bias"),
    Rule("cls.predictions.decoder.bias", "word_bias"),
)
TIED = Rule("cls.predictions.decoder.weight", "text_encoder/word_embedding")
"""The table of the word head is the word embedding."""
LEFT: Reasons = (
    (r"(.*\.)?pooler\..*", "pooler: the CLS vector itself is the instruction feature"),
    (r"(.*\.)?embeddings\.position_ids", "a counter, not a weight"),
    (r"cls\.seq_relationship\..*", "does a sentence follow another: no task here"),
)
COMPUTES = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "is_decoder": False}
"""Entries of config.json that the weights do not show, and what `TextEncoder` computes."""
ANCHOR = "embeddings.word_embeddings.weight"
"""The tensor by which a BERT is found among others."""
HEADS = {768: 12, 1024: 16}
"""Attention heads of BERT-base and BERT-large by their width, on which ALBEF and its kin are built."""


def fusion_rules(first: int) -> tuple[Rule, ...]:
    """Rules of the layers from number `first` of a BERT on, which are 0, 1, ... of the fusion encoder."""
    return tuple(dataclasses.replace(rule, first=first) for rule in _FUSION_RULES)


def read(source: Source, options: Options) -> Conversion:
    """Converts a plain BERT of any width and depth. Raises ConvertError for one with cross-attention."""
    _check_config(source)
    tensors, _ = find_tower(source.tensors, (ANCHOR,), options.prefix)
    refuse(tensors, ((r".*\.crossattention\..*", "a BERT with cross-attention: use --kind albef"),))
    conversion = Conversion("bert", "", sentence_sep=True)
    add_text(conversion, tensors, options.heads or source.heads)
    outer = tensors.prefix.removesuffix("bert.")
    left = add_word_head(conversion, Tensors(source.tensors, outer)) if outer != tensors.prefix else ()
    conversion.account(tensors, (*left, *LEFT))
    return conversion


def _check_config(source: Source) -> None:
    """Raises ConvertError for a configuration that says of the weights that they are of another computation."""
    for key, own in COMPUTES.items():
        if (stated := source.config.get(key, own)) != own:
            raise ConvertError(
                f"{source.folder / 'config.json'}: {key} is {stated!r}, but the text encoder here computes with "
                f"{own!r}: take another text encoder"
            )


def add_text(conversion: Conversion, tensors: Tensors, heads: int | None) -> None:
    """Takes the layers before the first one with cross-attention. Raises ConvertError without `heads`."""
    sizes = _text_sizes(tensors, heads)
    module = TextEncoder(_block(sizes), sizes["depth"], sizes["vocab_size"], sizes["max_length"])
    shapes = parameter_shapes(lambda: module.init(jax.random.key(0), jnp.ones((1, 1), jnp.int32), train=False))
    text_only = [name for name in tensors if (number := _layer_of(name)) is None or number < sizes["depth"]]
    own = Tensors({tensors.prefix + name: tensors[name] for name in text_only}, tensors.prefix)
    conversion.add(Tower("text_encoder", sizes, shapes), RULES, own)


def add_fusion(conversion: Conversion, tensors: Tensors) -> None:
    """Takes the layers with cross-attention, if there are any. Raises ConvertError for a gap in their numbers."""
    text = conversion.towers["text_encoder"]
    first = text["depth"]
    numbers = {number for name in tensors if (number := _layer_of(name)) is not None and number >= first}
    if not numbers:
        return
    if numbers != set(range(first, first + len(numbers))):
        raise ConvertError(
            f"the layers {tensors.prefix}encoder.layer.N with cross-attention are numbered {sorted(numbers)}; "
            f"expected {first}, {first + 1}, ... without a gap"
        )
    sizes = {"width": text["width"], "depth": len(numbers), "heads": text["heads"], "hidden": text["hidden"]}
    x, mask = jnp.zeros((1, 1, sizes["width"])), jnp.ones((1, 1), bool)
    stack = transformer.Stack(_block(sizes), sizes["depth"])
    shapes = parameter_shapes(lambda: stack.init(jax.random.key(0), x, mask, x, deterministic=True))
    conversion.add(Tower("fusion_encoder", sizes, shapes), fusion_rules(first), tensors)


def add_word_head(conversion: Conversion, tensors: Tensors) -> Reasons:
    """Takes the word head of the BERT below whose prefix `bert.` and `cls.` stand, if it has one.

    Returns why it was left out, for `Conversion.account`, where its table is not the word embedding.
    """
    if not any(name.startswith("cls.predictions.") for name in tensors):
        return ()
    table = tensors.get(TIED.name)
    if table is not None and not np.array_equal(table, tensors[f"bert.{ANCHOR}"]):
        return ((r"(.*\.)?cls\.predictions\..*", "word head with a table of its own: here it is the word embedding"),)
    text = conversion.towers["text_encoder"]
    sizes = {"width": text["width"], "vocab_size": text["vocab_size"]}
    x, words = (jnp.zeros((*shape, sizes["width"])) for shape in ((1, 1), (sizes["vocab_size"],)))
    head = WordHead(transformer.BlockConfig(width=sizes["width"], heads=1, norm_first=False))
    shapes = parameter_shapes(lambda: head.init(jax.random.key(0), x, words))
    conversion.add(Tower("word_head", sizes, shapes), WORD_HEAD, tensors)
    if table is not None:
        name, path = tensors.prefix + TIED.name, TIED.path
        conversion.taken.append(Taken(name, path, TIED.layout, TIED.slot, tuple(table.shape), str(table.dtype)))
    return ()


def _text_sizes(tensors: Tensors, heads: int | None) -> dict[str, Any]:
    words, positions = tensors[ANCHOR], tensors["embeddings.position_embeddings.weight"]
    hidden = tensors["encoder.layer.0.intermediate.dense.weight"].shape[0]
    numbers = {number for name in tensors if (number := _layer_of(name)) is not None}
    fused = {number for name in tensors if (number := _layer_of(name)) is not None and ".crossattention." in name}
    sizes = {
        "width": words.shape[1], "depth": len({n for n in numbers if n < min(fused, default=n + 1)}), "heads": heads,
        "hidden": hidden, "vocab_size": words.shape[0], "max_length": positions.shape[0],
    }  # fmt: skip
    if heads is None:
        raise ConvertError(f"the number of attention heads does not show in the weights {sizes}; say --heads")
    return whole_heads(sizes)


def _layer_of(name: str) -> int | None:
    found = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(found[1]) if found else None


def _block(sizes: Sizes) -> transformer.BlockConfig:
    return transformer.BlockConfig(sizes["width"], sizes["heads"], mlp_ratio(sizes), norm_first=False)
