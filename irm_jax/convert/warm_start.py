"""Converted weights into a fresh model: whole models or single towers, positions resized, layouts kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from irm_jax.convert import folder, manifest
from irm_jax.models import encoders
from irm_jax.models.config import POOLED_CLASS, IRMConfig
from irm_jax.models.weight_files import ConvertError, single_layers, stacked_layers
from irm_jax.parallel import mesh as mesh_lib

Arrays = dict[str, np.ndarray]
PREFIXES = ("special_tokens", "special_positions", "word_embedding", "word_bias")
"""A smaller source fills the first entries of these: fewer part tokens, a vocabulary without padding."""
CUT = ("special_tokens", "special_positions", "position_embedding")
"""A larger source gives its first entries to these: more part tokens, longer sentences."""
FIRST_LAYERS = "fusion_encoder/layers/"
"""A source may hold only the first of these stacked layers: a BERT's layers after the text layers."""
IDENTITY_HEADS = ("head_cls", "head_person", "head_guided")


@dataclasses.dataclass(frozen=True)
class Sources:
    """Folders of converted weights; '' is none. `model` comes first, single towers replace its towers.

    With the text encoder come the fusion layers and their heads; a plain BERT's layers after the model's text layers
    start the self-attention and MLPs of the fusion layers, as ALBEF began. `editing_blocks`: the editing transformer
    starts from the image encoder's last blocks.
    """

    model: str = ""
    image_encoder: str = ""
    text_encoder: str = ""
    template_encoder: str = ""
    editing_blocks: bool = False


def warm_start(variables: Mapping[str, Any], model: IRMConfig, sources: Sources) -> dict[str, Any]:
    """The variables `params` and `batch_stats` with what the sources hold, each array in the layout that it has.

    Arrays that no source holds stay as they are. Raises ConvertError naming all arrays that do not fit.
    """
    params, stats = variables["params"], variables["batch_stats"]
    if sources == Sources():
        return {"params": params, "batch_stats": stats}
    wanted: Arrays = {}
    if sources.model:
        wanted |= _whole_model(model, sources)
    for tower in manifest.TOWERS:
        if getattr(sources, tower):
            wanted |= _single_tower(tower, model, sources)
    if sources.editing_blocks:
        wanted |= _editing_blocks(wanted, params, model)
        logging.info("init.editing_blocks: the editing transformer starts from the image encoder's last blocks")
    if model.scan_layers:
        wanted = stacked_layers(wanted)
    wanted = _without_pooled_part(params, wanted)
    _log_initial(params, wanted)
    start = "batch_stats/"
    return {
        "params": _filled(params, {path: a for path, a in wanted.items() if not path.startswith(start)}),
        "batch_stats": _filled(stats, {p.removeprefix(start): a for p, a in wanted.items() if p.startswith(start)}),
    }


def _whole_model(model: IRMConfig, sources: Sources) -> Arrays:
    record, arrays = folder.load(sources.model)
    # Identity heads classify people of the source's data sets.
    apart = (*IDENTITY_HEADS, *manifest.WITH_TEXT, *manifest.TOWERS)
    found = {path: array for path, array in arrays.items() if _top(path) not in apart}
    for tower in manifest.TOWERS:
        found |= _tower(record, arrays, tower, tower, model)
    if not sources.text_encoder:
        found |= _with_text(arrays, model, "model")
        _warn_of_sep(record, sources.model, model)
    _log_source("model", sources.model, record, found)
    return found


def _single_tower(tower: str, model: IRMConfig, sources: Sources) -> Arrays:
    place = getattr(sources, tower)
    record, arrays = folder.load(place)
    found = _tower(record, arrays, manifest.source_tower(record, tower), tower, model)
    if tower == "text_encoder":
        found |= _with_text(arrays, model, tower)
        found |= _projections(arrays, sources)
        _warn_of_sep(record, place, model)
    _log_source(tower, place, record, found)
    return found


def _warn_of_sep(record: Mapping[str, Any], place: str, model: IRMConfig) -> None:
    without = not record["sentence_sep"] if "sentence_sep" in record else record["kind"] in manifest.WITHOUT_SEP
    if without and model.sentence_sep:
        logging.warning("%s: %s", place, manifest.SEP_MISFIT)


def _tower(
    record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], source: str, tower: str, model: IRMConfig
) -> Arrays:
    """Renames the arrays of a folder's tower `source` to the model's `tower`, and fits them to the model's sizes."""
    own = {p.removeprefix(f"{source}/"): a for p, a in arrays.items() if p.startswith(f"{source}/")}
    if tower == "text_encoder":
        layers = {path: re.match(r"blocks/layer_(\d+)/", path) for path in own}
        own = {path: own[path] for path, layer in layers.items() if not layer or int(layer[1]) < model.text_depth}
    else:
        weights = encoders.image_encoder(manifest.encoder_of(record, source)).weights
        grid = encoders.token_layout(model).grid if tower == "image_encoder" else model.template_grid
        if weights is not None:
            own = weights.fitted(own, grid, record["resize"])
    return {f"{tower}/{path}": array for path, array in own.items()}


def _with_text(arrays: Mapping[str, np.ndarray], model: IRMConfig, key: str) -> Arrays:
    """What of a text encoder's folder starts the model's fusion layers and the heads on them."""
    found = {path: array for path, array in arrays.items() if _top(path) in manifest.WITH_TEXT}
    if not model.fusion_depth:
        for name in sorted({_top(path) for path in found}):
            logging.info("init.%s: left: %s, since no layer of the model reads images (fusion_depth = 0)", key, name)
        return {}
    if "fusion_encoder" not in map(_top, found):
        for path, array in arrays.items():  # a plain BERT
            layer = re.match(r"text_encoder/blocks/layer_(\d+)/(.*)", path)
            if layer and int(layer[1]) >= model.text_depth:
                found[f"fusion_encoder/layer_{int(layer[1]) - model.text_depth}/{layer[2]}"] = array
    layers = {path: re.match(r"fusion_encoder/layer_(\d+)/", path) for path in found}
    return {path: found[path] for path, layer in layers.items() if not layer or int(layer[1]) < model.fusion_depth}


def _projections(arrays: Mapping[str, np.ndarray], sources: Sources) -> Arrays:
    """The projections of a folder that gives both encoders; another folder's would not fit them."""
    found = {path: array for path, array in arrays.items() if _top(path) in manifest.PROJECTIONS}
    if found and sources.image_encoder != sources.text_encoder:
        logging.info("init.text_encoder: left: %s, since the image encoder comes from elsewhere", ", ".join(found))
        return {}
    return found


def _editing_blocks(wanted: Mapping[str, np.ndarray], params: Any, model: IRMConfig) -> Arrays:
    own = wanted
    if not any(path.startswith("image_encoder/blocks/") for path in wanted):
        blocks = flatten_dict({"image_encoder": {"blocks": params["image_encoder"]["blocks"]}}, sep="/")
        # Other hosts hold parts of them.
        whole = jax.jit(lambda x: x, out_shardings=mesh_lib.replicated_like(blocks))(blocks)
        own = single_layers({path: np.asarray(leaf) for path, leaf in whole.items()})
    found = {}
    for path, array in own.items():
        layer = re.match(r"image_encoder/blocks/layer_(\d+)/(.*)", path)
        number = int(layer[1]) - (model.image_depth - model.editing_depth) if layer else -1
        if layer and number >= 0:
            found[f"editing_transformer/blocks/layer_{number}/{layer[2]}"] = array
    return found


def _without_pooled_part(params: Any, wanted: Arrays) -> Arrays:
    """The arrays with a pooled part of 0 where a tower's weights have none: the tower starts as it was trained."""
    zeros = {
        path: np.zeros(leaf.shape, np.float32)
        for path, leaf in flatten_dict(params, sep="/").items()
        if f"/{POOLED_CLASS}/" in path and f"{_top(path)}/special_tokens" in wanted
    }
    return zeros | wanted


def _filled(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree with the arrays in place. Raises ConvertError naming every one that has no place or does not fit."""
    leaves = flatten_dict(tree, sep="/")
    wrong = []
    for path, array in arrays.items():
        leaf = leaves.get(path)
        if leaf is None:
            wrong.append(f"  {path} {list(array.shape)} has no place in this model")
            continue
        if _name(path) in CUT and array.ndim == leaf.ndim:
            array = array[tuple(slice(0, size) for size in leaf.shape)]
        if not _fits(path, array.shape, leaf.shape):
            wrong.append(f"  {path}: the source has {list(array.shape)}, the model {list(leaf.shape)}")
            continue
        leaves[path] = _placed(leaf, array.astype(leaf.dtype))
    if wrong:
        raise ConvertError(
            f"{len(wrong)} arrays of the converted weights do not fit the model:\n" + "\n".join(wrong[:10])
            + "\nSet config.model to the source's sizes (its manifest.json)"
        )  # fmt: skip
    return unflatten_dict(leaves, sep="/")


def _fits(path: str, source: tuple[int, ...], model: tuple[int, ...]) -> bool:
    """Whether an array fills the model's, or its first entries where that has a meaning."""
    if source == model:
        return True
    if len(source) != len(model) or any(a > b for a, b in zip(source, model, strict=True)):
        return False
    prefix = _name(path) in PREFIXES and (len(source) == 1 or source[-1] == model[-1])
    return prefix or (path.startswith(FIRST_LAYERS) and source[1:] == model[1:])


def _placed(leaf: jax.Array, array: np.ndarray) -> jax.Array:
    """`array` in the place, layout and shape of `leaf`, whose last entries stay where it is smaller."""
    if array.shape == leaf.shape:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
    start = (0,) * leaf.ndim
    fill = jax.jit(lambda old, new: jax.lax.dynamic_update_slice(old, new, start), out_shardings=leaf.sharding)
    return fill(leaf, array)


def _log_initial(params: Any, wanted: Mapping[str, np.ndarray]) -> None:
    """Logs which parts of the model no source filled, by their first name."""
    paths = list(flatten_dict(params, sep="/"))
    missing = [_top(path) for path in paths if path not in wanted]
    counts = {name: (missing.count(name), sum(_top(path) == name for path in paths)) for name in sorted({*missing})}
    words = (name if part == whole else f"{name} ({part} of {whole} arrays)" for name, (part, whole) in counts.items())
    logging.info("init: initial stay %s", ", ".join(words) or "none")


def _log_source(key: str, name: str, record: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> None:
    logging.info(
        "init.%s: %d arrays from %s (%s, source %s of sha256 %s); initial there: %s",
        key, len(part), name, record["kind"], record["source"]["name"], record["source"]["sha256"][:12],
        ", ".join(record["initial"]) or "none",
    )  # fmt: skip


def _top(path: str) -> str:
    return path.partition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
