"""Writes converted weights, or the parameters of a run, as a safetensors or PyTorch file with the original names."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from data_pipelines.files import write_atomically
from data_pipelines.instructions.tokenizer import read_vocabulary
from irm_jax import checkpoint
from irm_jax.convert import folder, irm_release
from irm_jax.convert.conversion import Taken, give_back
from irm_jax.convert.kinds import Names, kinds
from irm_jax.convert.source import TORCH_SUFFIXES
from irm_jax.errors import UserError, pip_line
from irm_jax.models.config import POOLED_CLASS, IRMConfig
from irm_jax.models.weight_files import ConvertError, single_layers

Place = str | os.PathLike[str]


def names_of(kind: str, model: IRMConfig) -> Names:
    """The names that a file of `kind` has for what `model` has."""
    found = kinds()[kind]
    return (*found.names, *(found.fusion(model.text_depth) if model.fusion_depth else ()))


class Export(NamedTuple):
    """The tensors that were written, our arrays or the source's tensors that were not, and what the user must know."""

    written: list[str]
    left: list[str]
    notes: list[str]


def export_folder(source: Place, file: Place) -> Export:
    """Writes every tensor that a converted folder took, bit by bit as it was, under its name in its state dict.

    A file ending with .pth, .pt, .bin, .tar or .ckpt is PyTorch's, with the state dict in a dictionary of the same name
    as in the source ("state_dict"). Raises ConvertError without torch for such a file.
    """
    record, arrays = folder.load(source)

    def sizes(path: str) -> Any:
        return record["towers"].get(path.partition("/")[0], {})

    tensors = give_back(folder.taken(record), arrays, sizes)
    container = _container(tensors, record.get("containers", []))
    tensors = {name.removeprefix(container): tensor for name, tensor in tensors.items()}
    _write(file, tensors, container)
    return Export(sorted(tensors), [name for name, _ in record["left"]], [])


def _container(names: Iterable[str], known: Sequence[str]) -> str:
    """The dictionary of a PyTorch file that holds these tensors; "" for the outermost, or if they lie in several."""
    held = {max((c for c in known if name.startswith(c)), key=len, default="") for name in names}
    return held.pop() if len(held) == 1 else ""


def export_run(workdir: Place, kind: str, file: Place, step: Any = None) -> Export:
    """Writes the newest checkpoint of a run (or `step`), its tensors named as in a file of `kind`.

    The word table keeps the rows that pad it where the run's vocabulary cannot be read any more, and the identity heads
    their padded columns. Raises ConvertError for a model with a convolutional stem, or with other part tokens than the
    kind has, and for a diverged one.
    """
    directory = epath.Path(workdir).expanduser() / "checkpoints"
    _, saved = checkpoint.read_metadata(directory, step)
    saved_arrays = checkpoint.array_shapes(directory, step)
    model = checkpoint.saved_model(saved, saved_arrays)
    wanted = {p: x for p, x in saved_arrays.items() if p.startswith(("params/", "batch_stats/"))}
    restored, _ = checkpoint.restore_for_evaluation(directory, unflatten_dict(wanted, sep="/"), step)
    found = flatten_dict(jax.tree.map(np.asarray, restored), sep="/")
    arrays = single_layers({path.removeprefix("params/"): array for path, array in found.items()})
    if diverged := [path for path, array in arrays.items() if not np.all(np.isfinite(array))]:
        raise ConvertError(
            f"{workdir}: {len(diverged)} arrays hold NaN or infinity, the first is {diverged[0]}: the run diverged. "
            "Export an earlier checkpoint"
        )
    notes = _fit_to_kind(arrays, kind, model, saved["config"]["data"]["vocab"])
    if epath.Path(file).suffix in TORCH_SUFFIXES:
        notes.extend(_fill_positions(arrays, kinds()[kind].positions))
    taken, left = [], []
    names = names_of(kind, model)
    for path, array in arrays.items():
        pieces = _pieces(names, path, array)
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
    _write(file, tensors, kinds()[kind].container)
    return Export(sorted(tensors), left, notes)


def _fit_to_kind(arrays: dict[str, np.ndarray], kind: str, model: IRMConfig, vocab: str) -> list[str]:
    """Changes arrays, in place, to what a file of `kind` holds; returns what the user must know of it."""
    notes = []
    words = _vocabulary_size(vocab)
    for path in ("text_encoder/word_embedding", "word_head/word_bias"):
        if path in arrays and 0 < words < len(arrays[path]):
            arrays[path] = arrays[path][:words]  # the other rows pad the table
    if kinds()[kind].sentence_sep is False and model.sentence_sep:
        notes.append("sentences of this run end with [SEP]; the tokenizer of such a model's code gives none")
    if kind == irm_release.NAME:
        notes.extend(irm_release.fit_run(arrays, model))
    return notes


def _fill_positions(arrays: dict[str, np.ndarray], count: int) -> list[str]:
    """Adds positions of zeros: the code that a PyTorch file is for skips a tensor of another shape than its own."""
    path = "text_encoder/position_embedding"
    learned = len(arrays.get(path, ()))
    if not 0 < learned < count:
        return []
    arrays[path] = np.pad(arrays[path], ((0, count - learned), (0, 0)))
    return [f"position embeddings: {learned} learned ones, then zeros up to the {count} of that code"]


def _vocabulary_size(vocab: str) -> int:
    """The number of entries of a run's vocabulary, 0 if it cannot be read any more."""
    try:
        return len(read_vocabulary(vocab))
    except (UserError, OSError):
        return 0


def _write(file: Place, tensors: Mapping[str, np.ndarray], container: str) -> None:
    place = epath.Path(file).expanduser()
    if place.suffix in TORCH_SUFFIXES:
        write_atomically(place, _torch_file(place, tensors, container))
    elif place.suffix == ".safetensors":
        write_atomically(place, save(dict(tensors)))
    else:
        raise ConvertError(f"{file}: write to a .safetensors file, or for PyTorch to {', '.join(TORCH_SUFFIXES)}")


def _torch_file(place: epath.Path, tensors: Mapping[str, np.ndarray], container: str) -> bytes:
    try:
        import torch
    except ImportError as error:
        raise ConvertError(
            f"{place.name} is written with torch, which is not installed: {pip_line('convert')}, or write to a "
            ".safetensors file"
        ) from error

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    whole: dict[str, Any] = {name: tensor(array) for name, array in tensors.items()}
    for key in reversed(container.removesuffix(".").split(".") if container else []):
        whole = {key: whole}
    content = io.BytesIO()
    torch.save(whole, content)
    return content.getvalue()


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
