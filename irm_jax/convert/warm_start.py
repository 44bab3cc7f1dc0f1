"""Converted weights into a fresh training state: whole models or single towers, positions resized, layouts kept."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from irm_jax.convert import folder, manifest, positions
from irm_jax.convert.rules import unscanned
from irm_jax.convert.source import ConvertError
from irm_jax.models.config import IRMConfig
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import momentum
from irm_jax.training.state import TrainState

PREFIXES = ("special_tokens", "special_positions", "word_embedding", "word_bias")
"""Arrays of which a smaller source fills the first entries: fewer part tokens, a vocabulary that is not padded."""
CUT = ("special_tokens", "special_positions", "position_embedding")
"""Arrays of which a larger source gives its first entries: more part tokens, longer sentences."""


FIRST_LAYERS = "fusion_encoder/layers/"
"""Stacked layers of which a source may hold the first ones: a BERT's layers after the text layers."""
IDENTITY_HEADS = ("head_cls", "head_person", "head_guided")


@dataclasses.dataclass(frozen=True)
class Sources:
    """Folders of converted weights; '' is none. `model` comes first, towers of their own replace its towers.

    With the text encoder comes what reads captions and images together (`fusion.py`); a plain BERT's layers after the
    model's text layers start the self-attention and MLPs of its fusion layers, as ALBEF began. `editing_blocks`: the
    editing transformer starts from the image encoder's last blocks.
    """

    model: str = ""
    image_encoder: str = ""
    text_encoder: str = ""
    template_encoder: str = ""
    editing_blocks: bool = False


def warm_start(state: TrainState, model: IRMConfig, sources: Sources) -> TrainState:
    """The state with the parameters that the sources hold, each in the layout that it has; the rest as it is.

    The momentum model starts again from the new parameters. Raises ConvertError naming all arrays that do not fit.
    """
    if sources == Sources():
        return state
    wanted: dict[str, np.ndarray] = {}
    if sources.model:
        record, arrays = folder.load(sources.model)
        # Identities are those of the source's data sets, and their columns mean nobody here.
        others = (*IDENTITY_HEADS, *manifest.WITH_TEXT)
        part = {path: array for path, array in arrays.items() if _top(path) not in others}
        for tower in record["towers"]:
            part = _tower(part, tower, tower, model)
        if not sources.text_encoder:
            part |= _with_text(arrays, model, "model")
        wanted |= _with_grids(part, record, model)
        _tell("model", sources.model, record, part)
    for tower in manifest.TOWERS:
        name = getattr(sources, tower)
        if name:
            record, arrays = folder.load(name)
            there = manifest.source_tower(record, tower)
            part = {path: array for path, array in arrays.items() if path.startswith(f"{there}/")}
            part = _tower(part, there, tower, model)
            if tower == "text_encoder":
                part |= _with_text(arrays, model, tower)
                part |= _projections(arrays, sources)
            wanted |= _with_grids(part, record, model)
            _tell(tower, name, record, part)
    if sources.editing_blocks:
        wanted |= _editing_blocks(wanted, state.params, model)
        logging.info("init.editing_blocks: the editing transformer starts from the image encoder's last blocks")
    if model.scan_layers:
        wanted = _scanned(wanted)
    _tell_initial(state.params, wanted)
    stats = {path.removeprefix("batch_stats/"): a for path, a in wanted.items() if path.startswith("batch_stats/")}
    params = _filled(state.params, {p: a for p, a in wanted.items() if not p.startswith("batch_stats/")})
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=_filled(state.batch_stats, stats),
        momentum_params=momentum.start(params) if state.momentum_params is not None else None,
    )


def _tower(arrays: Mapping[str, np.ndarray], there: str, here: str, model: IRMConfig) -> dict[str, np.ndarray]:
    """The arrays with tower `there` called `here`, layer scale multiplied in, and only the text layers in use."""
    depth = model.text_depth if here == "text_encoder" else math.inf
    found = {}
    for path, array in arrays.items():
        if path.startswith(f"{there}/layer_scale/"):
            continue
        own = re.sub(f"^{there}/", f"{here}/", path)
        layer = re.match(f"{here}/blocks/layer_(\\d+)/", own)
        if layer and int(layer[1]) >= depth:
            continue
        found[own] = array * _scale_of(arrays, there, path)
    return found


def _with_text(arrays: Mapping[str, np.ndarray], model: IRMConfig, key: str) -> dict[str, np.ndarray]:
    """What of a text encoder's source starts the model's layers that read images, and the heads on them."""
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


def _projections(arrays: Mapping[str, np.ndarray], sources: Sources) -> dict[str, np.ndarray]:
    """The projections of a source that gives both encoders; no other one's fit."""
    found = {path: array for path, array in arrays.items() if _top(path) in manifest.PROJECTIONS}
    if found and sources.image_encoder != sources.text_encoder:
        logging.info("init.text_encoder: left: %s, since the image encoder comes from elsewhere", ", ".join(found))
        return {}
    return found


def _scale_of(arrays: Mapping[str, np.ndarray], tower: str, path: str) -> Any:
    """The factors of layer scale for the last axis of an attention's or MLP's output; 1 for all other arrays."""
    found = re.fullmatch(f"{tower}/blocks/layer_(\\d+)/(attention/output|mlp/contract)/(kernel|bias)", path)
    if found is None:
        return np.float32(1)
    key = f"{tower}/layer_scale/{found[1]}/{found[2].partition('/')[0]}"
    return arrays.get(key, np.float32(1))


def _with_grids(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], model: IRMConfig) -> dict[str, np.ndarray]:
    """The arrays with patch positions resized to the model's grids."""
    found = dict(arrays)
    for tower, grid in model.grids.items():
        path = f"{tower}/grid_positions"
        if path in found and found[path].shape[1:3] != grid:
            logging.info("%s: %s resized from %s to %s", path, record["resize"], found[path].shape[1:3], grid)
            found[path] = positions.resize(found[path], grid, record["resize"])
    return found


def _editing_blocks(wanted: Mapping[str, np.ndarray], params: Any, model: IRMConfig) -> dict[str, np.ndarray]:
    own = wanted
    if not any(path.startswith("image_encoder/blocks/") for path in wanted):
        blocks = flatten_dict({"image_encoder": {"blocks": params["image_encoder"]["blocks"]}}, sep="/")
        whole = jax.jit(lambda x: x, out_shardings=mesh_lib.replicated_like(blocks))(
            blocks
        )  # other hosts hold parts of it
        own = unscanned({path: np.asarray(leaf) for path, leaf in whole.items()})
    found = {}
    for path, array in own.items():
        layer = re.match(r"image_encoder/blocks/layer_(\d+)/(.*)", path)
        number = int(layer[1]) - (model.image_depth - model.editing_depth) if layer else -1
        if layer and number >= 0:
            found[f"editing_transformer/blocks/layer_{number}/{layer[2]}"] = array
    return found


def _scanned(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers one by one -> stacked on a leading axis, as `scan_layers` keeps them (not in the editing transformer)."""
    found: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for path, array in arrays.items():
        layer = re.match(r"(?!editing_transformer)(.*/blocks|fusion_encoder)/layer_(\d+)/(.*)", path)
        if layer:
            layers.setdefault(f"{layer[1]}/layers/block/{layer[3]}", {})[int(layer[2])] = array
        else:
            found[path] = array
    return found | {path: np.stack([parts[i] for i in sorted(parts)]) for path, parts in layers.items()}


def _filled(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The tree with the arrays in place. Raises ConvertError naming every one that has no place or does not fit."""
    leaves = flatten_dict(tree, sep="/")
    wrong = []
    for path, array in arrays.items():
        leaf = leaves.get(path)
        name = path.rpartition("/")[2]
        if leaf is None:
            wrong.append(f"  {path} {list(array.shape)} has no place in this model")
            continue
        if name in CUT and array.ndim == leaf.ndim:
            array = array[tuple(slice(0, size) for size in leaf.shape)]
        same_rest = array.ndim == leaf.ndim and all(a <= b for a, b in zip(array.shape, leaf.shape, strict=True))
        same_width = array.ndim == 1 or array.shape[-1:] == leaf.shape[-1:]
        part = (name in PREFIXES and same_width) or (
            path.startswith(FIRST_LAYERS) and array.shape[1:] == leaf.shape[1:]
        )
        fits = array.shape == leaf.shape or (part and same_rest)
        if not fits:
            wrong.append(f"  {path}: the source has {list(array.shape)}, the model {list(leaf.shape)}")
            continue
        leaves[path] = _placed(leaf, array.astype(leaf.dtype))
    if wrong:
        raise ConvertError(
            f"{len(wrong)} arrays of the converted weights do not fit the model:\n" + "\n".join(wrong[:10])
            + "\nSet config.model to the source's sizes (its manifest.json)"
        )  # fmt: skip
    return unflatten_dict(leaves, sep="/")


def _placed(leaf: jax.Array, array: np.ndarray) -> jax.Array:
    """`array` in the place, layout and shape of `leaf`, whose last entries stay where it is smaller."""
    if array.shape == leaf.shape:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])
    start = (0,) * leaf.ndim
    fill = jax.jit(lambda old, new: jax.lax.dynamic_update_slice(old, new, start), out_shardings=leaf.sharding)
    return fill(leaf, array)


def _tell_initial(params: Any, wanted: Mapping[str, np.ndarray]) -> None:
    """Logs what of the model no source filled, by its first name."""
    paths = list(flatten_dict(params, sep="/"))
    missing = [_top(path) for path in paths if path not in wanted]
    counts = {name: (missing.count(name), sum(_top(path) == name for path in paths)) for name in sorted({*missing})}
    words = (name if part == whole else f"{name} ({part} of {whole} arrays)" for name, (part, whole) in counts.items())
    logging.info("init: initial stay %s", ", ".join(words) or "none")


def _top(path: str) -> str:
    return path.partition("/")[0]


def _tell(key: str, name: str, record: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> None:
    logging.info(
        "init.%s: %d arrays from %s (%s, source %s of sha256 %s); initial there: %s",
        key, len(part), name, record["kind"], record["source"]["name"], record["source"]["sha256"][:12],
        ", ".join(record["initial"]) or "none",
    )  # fmt: skip
