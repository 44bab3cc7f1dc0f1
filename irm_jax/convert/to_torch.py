"""Writes converted weights, or the parameters of a run, as a safetensors file with the original names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from irm_jax import checkpoint
from irm_jax.convert import folder
from irm_jax.convert.conversion import Taken, give_back
from irm_jax.convert.kinds import Names, kinds
from irm_jax.models.config import POOLED_CLASS, IRMConfig
from irm_jax.models.weight_files import ConvertError, single_layers

Place = str | os.PathLike[str]
PER_STREAM = "batch_stats/edited_neck/statistics/"
"""Running statistics that a run has per stream and the released model for both together."""


def names_of(kind: str, model: IRMConfig) -> Names:
    """The names that a file of `kind` has for what `model` has."""
    found = kinds()[kind]
    return (*found.names, *(found.fusion(model.text_depth) if model.fusion_depth else ()))


def export_folder(source: Place, file: Place) -> tuple[list[str], list[str]]:
    """Writes every tensor that a converted folder took, bit by bit as it was. Returns the names (written, left out)."""
    record, arrays = folder.load(source)

    def sizes(path: str) -> Any:
        return record["towers"].get(path.partition("/")[0], {})

    tensors = give_back(folder.taken(record), arrays, sizes)
    _write(file, tensors)
    return sorted(tensors), [name for name, _ in record["left"]]


def export_run(workdir: Place, kind: str, file: Place, step: Any = None) -> tuple[list[str], list[str]]:
    """Writes the newest checkpoint of a run (or `step`), its tensors named as in a file of `kind`.

    The word table keeps the rows that pad it, and the identity heads their padded columns. Returns (written names,
    our arrays that such a file has no place for). Raises ConvertError for a model with a convolutional stem, or with
    other part tokens than the kind has.
    """
    directory = epath.Path(workdir).expanduser() / "checkpoints"
    _, saved = checkpoint.read_metadata(directory, step)
    saved_arrays = checkpoint.array_shapes(directory, step)
    model = checkpoint.saved_model(saved, saved_arrays)
    wanted = {p: x for p, x in saved_arrays.items() if p.startswith(("params/", "batch_stats/"))}
    restored, _ = checkpoint.restore_for_evaluation(directory, unflatten_dict(wanted, sep="/"), step)
    found = flatten_dict(jax.tree.map(np.asarray, restored), sep="/")
    arrays = single_layers({path.removeprefix("params/"): array for path, array in found.items()})
    taken, left = [], []
    names = names_of(kind, model)
    for path, array in arrays.items():
        pieces = [] if path.startswith(PER_STREAM) else _pieces(names, path, array)
        taken.extend(pieces)
        if not pieces:
            left.append(path)
    if not taken:
        raise ConvertError(f"{workdir} holds nothing that a file of kind {kind} has a place for")
    _check_layout(kind, arrays)
    heads = {"template": model.template_heads, "text": model.text_heads, "fusion": model.text_heads}

    def sizes(path: str) -> Any:
        return {"width": model.width, "heads": heads.get(path.partition("_")[0], model.image_heads)}

    tensors = give_back(taken, arrays, sizes)
    _write(file, tensors)
    return sorted(tensors), left


def _write(file: Place, tensors: Mapping[str, np.ndarray]) -> None:
    epath.Path(file).expanduser().write_bytes(save(dict(tensors)))


def _pieces(names: Names, path: str, array: np.ndarray) -> list[Taken]:
    """The tensors that `path` becomes: several where it is joined of slots, or where the file has it twice."""
    found: dict[tuple[str, int], Taken] = {}
    for tower, prefix, rules in names:
        if not path.startswith(tower):
            continue
        for rule in rules:
            name = rule.match_path(path.removeprefix(tower))
            if name is not None and not name.endswith((".gamma", ".beta")):
                found[prefix + name, rule.slot] = Taken(
                    prefix + name, path, rule.layout, rule.slot, None, str(array.dtype)
                )
    return list(found.values())


def _check_layout(kind: str, arrays: dict[str, np.ndarray]) -> None:
    for tower, _, rules in kinds()[kind].names:
        if any(path.startswith(f"{tower}patch_embedding/conv_") for path in arrays) and tower:
            raise ConvertError(f"{tower} has a convolutional stem, which no file of kind {kind} has")
        if tower and f"{tower}{POOLED_CLASS}/kernel" in arrays:
            raise ConvertError(
                f"the class token of {tower.rstrip('/')} starts from the pooled patches, which no file of kind {kind} "
                "has: train with config.model.pooled_class_token=False"
            )
        tokens = arrays.get(f"{tower}special_tokens")
        wanted = sum(rule.path == "special_tokens" for rule in rules)
        if tokens is not None and wanted and tokens.shape[1] != wanted:
            raise ConvertError(
                f"{tower}special_tokens holds {tokens.shape[1]} tokens (a class token and the parts'), a file of kind "
                f"{kind} {wanted}: choose another --kind, or train with config.model.part_tokens={wanted - 1}"
            )
