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

from irm_jax import momentum, sharding
from irm_jax.convert import folder, manifest, positions
from irm_jax.convert.rules import unscanned
from irm_jax.convert.source import ConvertError
from irm_jax.models.presets import IRMConfig
from irm_jax.state import TrainState

PREFIXES = ("special_tokens", "special_positions", "word_embedding")
"""Arrays of which a smaller source fills the first entries: fewer part tokens, a vocabulary that is not padded."""
CUT = ("special_tokens", "special_positions", "position_embedding")
"""Arrays of which a larger source gives its first entries: more part tokens, longer sentences."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """Folders of converted weights; '' is none. `model` comes first, towers of their own replace its towers.

    `editing_blocks`: the editing transformer starts from the image encoder's last blocks.
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
        part = {path: array for path, array in arrays.items() if not path.startswith("head_")}
        for tower in record["towers"]:
            part = _tower(part, tower, tower, model)
        wanted |= _with_grids(part, record, model)
        _tell("model", sources.model, record, part)
    for tower in manifest.TOWERS:
        name = getattr(sources, tower)
        if name:
            record, arrays = folder.load(name)
            there = manifest.source_tower(record, tower)
            part = {path: array for path, array in arrays.items() if path.startswith(f"{there}/")}
            part = _tower(part, there, tower, model)
            wanted |= _with_grids(part, record, model)
            _tell(tower, name, record, part)
    if sources.editing_blocks:
        wanted |= _editing_blocks(wanted, state.params, model)
        logging.info("init.editing_blocks: the editing transformer starts from the image encoder's last blocks")
    if model.scan_layers:
        wanted = _scanned(wanted)
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
        whole = jax.jit(lambda x: x, out_shardings=sharding.everywhere(blocks))(blocks)  # other hosts hold parts of it
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
        layer = re.match(r"(?!editing_transformer)(.*/blocks)/layer_(\d+)/(.*)", path)
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
        fits = array.shape == leaf.shape or (name in PREFIXES and same_rest and array.shape[-1] == leaf.shape[-1])
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


def _tell(key: str, name: str, record: Mapping[str, Any], part: Mapping[str, np.ndarray]) -> None:
    logging.info(
        "init.%s: %d arrays from %s (%s, source %s of sha256 %s); initial there: %s",
        key, len(part), name, record["kind"], record["source"]["name"], record["source"]["sha256"][:12],
        ", ".join(record["initial"]) or "none",
    )  # fmt: skip
