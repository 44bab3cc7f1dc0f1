"""The authors' released joint model (hwz-zju/Instruct-ReID, `PASS_Transformer_DualAttn_joint`).

Its editing transformer is a deep copy of two blocks of the image encoder. Before the copy, each block is wrapped for
activation checkpointing, which replaces its `forward` by one bound to that very block, and the copy carries it along.
So the copies' weights, `fusion.*`, never run and never learn: the image encoder's blocks 0 and 11 do, and learn from
both uses. Only so do outputs agree to 1e-6 (docs/parity.md). A version that does train the copies shows in their norms,
whose scales start at exactly 1 and whose biases at 0. Weight decay alone shrinks all scales of a norm alike, gradients
do not: `--editing auto` takes `fusion.*` if the scales of a norm differ, or a bias is not 0, and the image encoder's
blocks if not; `fusion` and `encoder` insist.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irm_jax.convert import albef, bert, image
from irm_jax.convert.conversion import Conversion, Options, Tower, find_tower, parameter_shapes
from irm_jax.convert.conversion import refuse as refuse_tensors
from irm_jax.convert.source import Source
from irm_jax.models import transformer
from irm_jax.models.config import IRMConfig
from irm_jax.models.editing_transformer import EditingTransformer
from irm_jax.models.encoders import vit
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.weight_files import ConvertError, Reasons, Rule, Sizes, Tensors, mlp_ratio

NAME = "irm_release"
PER_STREAM = "batch_stats/edited_neck/statistics/"
"""Running statistics that a run has per stream and the released model for both together."""
IMAGE, TEMPLATE = "visual_encoder.", "visual_encoder_m."
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
_ZERO = ("feat_bn.bias", "fusion_feat_bn.bias")
"""Frozen at 0 there and absent here: another value is an error."""
_PASS = vit.ViTWeights.families["pass"]
_LEFT: Reasons = (
    (r"text_encoder_m\..*|text_proj_m\..*", "momentum copy: ours starts as a copy of the weights"),
    (r"(image|text|idx)_queue|queue_ptr", "queue of the text-to-image loss"),
    (r"(prd_head|project)\..*", "never used there"),
    (r"visual_encoder\.fc\..*", "classifier of 1,000 classes, never used there"),
    (r"(fusion_)?feat_bn\.bias", "frozen at 0 (checked)"),
    (r"(fusion_)?feat_bn\.num_batches_tracked", "a counter, not a weight"),
    *((rf"text_encoder\.(bert\.)?{name}", why) for name, why in bert.LEFT),
    *((rf"visual_encoder\.{name}", why) for name, why in _PASS.left),
)


def read(source: Source, options: Options) -> Conversion:
    """Converts the whole model. Raises ConvertError."""
    anchor = f"{IMAGE}patch_embed.proj.weight"
    tensors, _ = find_tower(source.tensors, (anchor,), options.prefix)
    person, template = tensors.below(IMAGE), tensors.below(TEMPLATE)
    refuse_tensors(person, _PASS.refused)
    for name in _ZERO:
        if name in tensors and np.any(tensors[name]):
            raise ConvertError(f"{tensors.prefix + name} is not 0, and the necks have no bias: this is another model")
    conversion = Conversion(NAME, _PASS.resize, sentence_sep=False)
    tower = image.person_tower(person, vit.PASS, options, _PASS)
    conversion.add(tower, vit.PASS, person)
    width, depth = template["patch_embed.proj.weight"].shape[0], template.depth("blocks.{n}")
    heads = vit.HEADS.get((width, depth), options.heads)  # what the user says is of the image encoder
    conversion.add(image.image_tower("template_encoder", template, vit.TIMM, heads, 1), vit.TIMM, template)
    left = albef.add_text_and_fusion(conversion, tensors, options.heads)
    left += _add_editing(conversion, tensors, tower.sizes, options.editing)
    conversion.add_rest(REST, tensors, tower.sizes)
    conversion.account(tensors, (*left, *_LEFT))
    conversion.notes.append(
        "computes as there with --config.model.sentence_sep=False --config.model.mask_instruction_padding=False "
        '--config.evaluation.metric=euclidean --config.data.sentences.vi="cross modiality" (spelled so); templates are '
        "tested with --config.model.template_statistics=imagenet"
    )
    return conversion


def fit_run(arrays: dict[str, np.ndarray], model: IRMConfig) -> list[str]:
    """Changes a run's arrays, in place, to what a released file holds; returns what the user must know of it."""
    notes = []
    for name in ("mean", "var"):
        path = PER_STREAM + name
        if path in arrays:
            person, guided = np.split(arrays[path], 2)
            if not np.array_equal(person, guided):
                notes.append(f"fusion_feat_bn.running_{name}: the mean of both streams' (here each stream has its own)")
            arrays[path] = np.tile(((person.astype(np.float64) + guided) / 2).astype(person.dtype), 2)
    if model.editing_patches is not None:
        notes.append(
            f"the guided stream of this run reads {model.editing_patches} patches (config.model.editing_patches), that "
            "of the released code all: embeddings differ there"
        )
    own, ran = "editing_transformer/blocks/layer_{}/", "image_encoder/blocks/layer_{}/"
    blocks = [(own.format(n), ran.format(-n % model.image_depth)) for n in range(model.editing_depth)]
    same = all(
        np.array_equal(array, arrays[there + path.removeprefix(here)])
        for here, there in blocks for path, array in arrays.items() if path.startswith(here)
    )  # fmt: skip
    if not same:
        notes.append(
            "fusion.*: the released code never runs these weights of the editing transformer. Its copies run the image "
            f"encoder's blocks 0 and {model.image_depth - 1}, so that embeddings differ there, unless after loading "
            "`for block in model.fusion: del block.forward` gives them back their own forward (docs/parity.md)"
        )
    return notes


def _add_editing(conversion: Conversion, tensors: Tensors, encoder: Sizes, origin: str) -> Reasons:
    """Takes the editing transformer from `fusion.*` or from the image encoder's blocks, see the module."""
    sizes = {**encoder, "depth": tensors.depth("fusion.{n}")}
    norms = [name for name in tensors if re.match(r"fusion\.\d+\.norm[12]\.", name)]
    untrained = all(_never_learned(tensors[name], name.endswith(".weight")) for name in norms)
    if origin == "fusion" or (origin == "auto" and not untrained):
        conversion.add(Tower("editing_transformer", sizes, _editing_shapes(sizes)), EDITING, tensors)
        conversion.notes.append(
            "editing transformer: from fusion.*" + ("" if origin != "auto" else ", which was trained")
        )
        return ()
    for number in range(sizes["depth"]):
        start = f"image_encoder/blocks/layer_{-number % encoder['depth']}/"
        for path in [path for path in conversion.arrays if path.startswith(start)]:
            own = f"editing_transformer/blocks/layer_{number}/{path.removeprefix(start)}"
            conversion.arrays[own] = conversion.arrays[path].copy()
    conversion.towers["editing_transformer"] = sizes
    conversion.notes.append(
        "editing transformer: from the image encoder's first and last blocks, which ran in its place"
    )
    return ((r"fusion\..*", "never ran: the image encoder's own blocks did"),)


def _never_learned(norm: np.ndarray, is_scale: bool) -> bool:
    """Whether a norm's scales or biases still have their first values, shrunk by weight decay or not."""
    values = norm.astype(np.float64)
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max()) if is_scale else not np.any(values)


def _editing_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    tokens = jnp.zeros((1, 2, sizes["width"]))
    every = jnp.ones((1, 2), bool)
    instruction = Instruction(tokens, every, every, tokens[:, 0])
    block = transformer.BlockConfig(sizes["width"], sizes["heads"], mlp_ratio(sizes))
    module = EditingTransformer(block, sizes["depth"])
    return parameter_shapes(
        lambda: module.init(jax.random.key(0), tokens[:, 0], tokens, instruction, train=False)
    )  # fmt: skip
